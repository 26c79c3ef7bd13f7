//! `meshseal pods`: the pods of the node, as its disk and the Kubernetes API tell of them.

use std::process::ExitCode;

use super::ask::{self, Socket};
use super::{Failure, Format, output};
use crate::status::KubernetesPod;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let (pods, answer) = ask::ask(&args.socket, async |mut agent| {
        Ok(agent.get_json::<Vec<KubernetesPod>>("/v1/pods").await?)
    })?;
    match format {
        Format::Json => output::line(ask::text(&answer)?)?,
        Format::Text => output::text(&render(pods))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(mut pods: Vec<KubernetesPod>) -> String {
    if pods.is_empty() {
        return "no pods\n".to_owned();
    }
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    let known = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
    let rows: Vec<Vec<String>> = pods
        .into_iter()
        .map(|pod| {
            // Where the disk itself names two, neither is said.
            let by = match (pod.contradictory, pod.disk, pod.api, pod.gone_from_api) {
                (true, true, ..) if pod.namespace.is_none() && pod.name.is_none() => {
                    "disk, which contradicts itself"
                }
                (true, ..) => "disk, contradicted by the API",
                (_, true, true, true) => "disk, gone from the API",
                (_, true, true, false) => "disk, API",
                (_, true, false, _) => "disk",
                (_, false, _, true) => "gone",
                (_, false, _, false) => "API",
            };
            let owner = pod.owner.map(|owner| format!("{}/{}", owner.kind, owner.name));
            let owner = owner.unwrap_or_else(|| "-".to_owned());
            vec![
                known(pod.namespace),
                known(pod.name),
                known(pod.service_account),
                owner,
                by.to_owned(),
                pod.uid,
            ]
        })
        .collect();
    output::table(&["NAMESPACE", "NAME", "ACCOUNT", "OWNER", "KNOWN BY", "UID"], &rows)
}

/// What the fuzzers look at.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(pods: Vec<KubernetesPod>) -> String {
    render(pods)
}
