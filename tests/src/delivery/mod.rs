//! Delivery, shown by receivers that are not ours: rotel, and the reference decoder of OpenTelemetry.
//!
//! A program tampers and keeps a log of its own. What a receiver took is compared whole with the journal's records, and
//! both with that log.

mod contract;
mod kit;
mod tamper;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::kit::{Inbox, Kit, Received, Rotel, Sink, wait};
use self::tamper::Victims;
use self::tls::Pki;
use crate::agent::{Agent, Home};

/// What a test program's `main` returns.
pub fn main() -> ExitCode {
    match tamper::played() {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
        None => crate::main(crate::cases![
            the_reference_decoder_takes_grpc,
            the_reference_decoder_takes_http,
            rotel_takes_grpc,
            rotel_takes_http,
            tls_by_grpc,
            tls_by_http,
            client_certificates_by_grpc_from_the_config,
            client_certificates_by_http_from_the_config,
            client_certificates_by_grpc_from_the_environment,
            client_certificates_by_http_from_the_environment,
            without_its_certificate_nothing_is_taken,
            a_receiver_of_another_authority_gets_nothing,
            killed_while_the_reference_decoder_is_down_by_grpc,
            killed_while_the_reference_decoder_is_down_by_http,
            killed_while_rotel_is_down_by_grpc,
            killed_while_rotel_is_down_by_http,
        ]),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

impl Protocol {
    const fn word(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }

    /// As the reference decoder notes it.
    const fn via(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }

    const fn port(self, (grpc, http): (u16, u16)) -> u16 {
        match self {
            Self::Grpc => grpc,
            Self::Http => http,
        }
    }

    /// The URL for the config: for HTTP the whole of it.
    fn url(self, scheme: &str, ports: (u16, u16)) -> String {
        let path = if self == Self::Http { "/v1/logs" } else { "" };
        format!("{scheme}://127.0.0.1:{}{path}", self.port(ports))
    }
}

/// An agent's home, what it watches, and room for receivers.
struct Bench {
    scratch: tempfile::TempDir,
    home: Home,
    victims: Victims,
    kit: Kit,
}

impl Bench {
    /// With objects for these rounds of tampering, sealed.
    fn new(rounds: &[&str]) -> Result<Self> {
        let kit = Kit::get()?;
        let scratch = tempfile::Builder::new().prefix("delivery-").tempdir_in("/var/tmp")?;
        let victims = Victims::new(scratch.path(), rounds)?;
        let home = Home::new(scratch.path().join("home"))?;
        home.baseline("delivery", 1, &[&victims.dir])?;
        Ok(Self { scratch, home, victims, kit })
    }

    fn sink(&self, pki: Option<(Pki, bool)>) -> Result<Sink> {
        Sink::start(&self.kit, &self.scratch.path().join("sink"), pki)
    }

    fn rotel(&self, onward: &Sink) -> Result<Rotel> {
        Rotel::start(&self.kit, &self.scratch.path().join("rotel"), onward)
    }

    fn pki(&self, name: &str) -> Result<Pki> {
        tls::make(&self.scratch.path().join(name))
    }

    /// Everything the tampering program did is a violation of the journal.
    fn wait_for_violations(&self, agent: &mut Agent) -> Result<()> {
        let done = self.victims.log()?;
        ensure!(!done.is_empty(), "the tampering program did nothing");
        agent.wait("record of each act", |seen| {
            done.iter()
                .all(|(_, path)| seen.iter().any(|r| is_opened(r) && r["object"]["path"] == path.as_str()))
        })
    }

    /// Tampers once under an agent that exports as `config` and `variables` say, and compares what arrives whole.
    fn arrives(&self, config: &str, variables: &[(&str, String)], inbox: &Inbox) -> Result<Vec<Received>> {
        self.home.configure(config)?;
        let mut agent = Agent::start_with(&self.home, 1, variables)?;
        let tamperer = self.victims.tamper("a")?;
        self.wait_for_violations(&mut agent)?;
        drop(tamperer);
        agent.stop()?;
        let received = self.covered(inbox)?;
        self.home.verify_journal()?;
        Ok(received)
    }

    /// Waits until the receiver has each violation of the journal, and each act of the tampering program; then
    /// compares all of it.
    fn covered(&self, inbox: &Inbox) -> Result<Vec<Received>> {
        let journal = self.home.records()?;
        let wanted: BTreeSet<&str> = journal
            .iter()
            .filter(|record| is_violation(record))
            .filter_map(|record| record["uid"].as_str())
            .collect();
        let received = wait("violation at the receiver", || {
            let received = inbox.received()?;
            let got: BTreeSet<&str> = received.iter().filter_map(Received::uid).collect();
            Ok(wanted.is_subset(&got).then_some(()).map(|()| received))
        })?;
        // What was recorded meanwhile may have arrived too.
        let journal = self.home.records()?;
        let by_uid: BTreeMap<&str, &Value> =
            journal.iter().filter_map(|record| Some((record["uid"].as_str()?, record))).collect();
        for one in &received {
            let uid = one.uid().context("a record without a uid")?;
            let record = by_uid.get(uid).with_context(|| format!("{uid} is not in the journal"))?;
            contract::same(one, record).with_context(|| format!("record {uid}"))?;
        }
        for (act, path) in self.victims.log()? {
            let arrived = received.iter().any(|one| {
                one.event_name == "meshseal.violation.opened"
                    && one.attribute("file.path") == Some(&Value::from(path.as_str()))
            });
            ensure!(arrived, "{act} of {path} did not arrive");
        }
        Ok(received)
    }
}

fn is_opened(record: &Value) -> bool {
    record["kind"] == "violation.opened"
}

fn is_violation(record: &Value) -> bool {
    record["kind"].as_str().is_some_and(|kind| kind.starts_with("violation."))
}

/// An `export` section with one receiver, and more lines of it.
fn export(url: &str, protocol: Protocol, more: &str) -> String {
    let mut text = format!("export:\n  otlp:\n    - endpoint: {url}\n      protocol: {}\n", protocol.word());
    for line in more.lines() {
        text.push_str(&format!("      {line}\n"));
    }
    text
}

fn tls_lines(pki: &Pki, client: bool) -> String {
    let mut text = format!("tls:\n  ca: {}\n", pki.ca.display());
    if client {
        text.push_str(&format!(
            "  cert: {}\n  key: {}\n",
            pki.client.cert.display(),
            pki.client.key.display()
        ));
    }
    text
}

fn reference(protocol: Protocol, more: &str) -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let sink = bench.sink(None)?;
    let url = protocol.url("http", (sink.grpc, sink.http));
    let headers = "headers: {authorization: Bearer x%20y, tenant: seven}\n";
    let received = bench.arrives(&export(&url, protocol, &format!("{headers}{more}")), &[], &sink.inbox)?;
    for one in &received {
        ensure!(one.via == protocol.via(), "by {}", one.via);
        ensure!(one.headers.get("authorization").is_some_and(|v| v == "Bearer x%20y"), "{:?}", one.headers);
        ensure!(one.headers.get("tenant").is_some_and(|v| v == "seven"), "{:?}", one.headers);
        let agent = one.headers.get("user-agent").map_or("", String::as_str);
        ensure!(agent.starts_with("OTel-OTLP-Exporter-meshseal/"), "user agent {agent:?}");
    }
    Ok(())
}

fn the_reference_decoder_takes_grpc() -> Result<()> {
    reference(Protocol::Grpc, "")
}

fn the_reference_decoder_takes_http() -> Result<()> {
    reference(Protocol::Http, "compression: gzip\n")
}

fn rotel(protocol: Protocol) -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let sink = bench.sink(None)?;
    let rotel = bench.rotel(&sink)?;
    let url = protocol.url("http", (rotel.grpc, rotel.http));
    bench.arrives(&export(&url, protocol, ""), &[], &sink.inbox).map(drop)
}

fn rotel_takes_grpc() -> Result<()> {
    rotel(Protocol::Grpc)
}

fn rotel_takes_http() -> Result<()> {
    rotel(Protocol::Http)
}

fn tls(protocol: Protocol, clients: bool, more: &str) -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let pki = bench.pki("pki")?;
    let sink = bench.sink(Some((pki.clone(), clients)))?;
    let url = protocol.url("https", (sink.grpc, sink.http));
    let lines = format!("{}{more}", tls_lines(&pki, clients));
    bench.arrives(&export(&url, protocol, &lines), &[], &sink.inbox).map(drop)
}

fn tls_by_grpc() -> Result<()> {
    tls(Protocol::Grpc, false, "")
}

fn tls_by_http() -> Result<()> {
    tls(Protocol::Http, false, "")
}

fn client_certificates_by_grpc_from_the_config() -> Result<()> {
    tls(Protocol::Grpc, true, "compression: gzip\n")
}

fn client_certificates_by_http_from_the_config() -> Result<()> {
    tls(Protocol::Http, true, "compression: gzip\ntimeout: 5s\n")
}

/// All that a collector's operator sets for any OpenTelemetry exporter, and no `export` in the config.
fn environment(protocol: Protocol) -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let pki = bench.pki("pki")?;
    let sink = bench.sink(Some((pki.clone(), true)))?;
    let of = |name: &'static str, value: String| (name, value);
    let variables = [
        // For HTTP the general endpoint is a base: /v1/logs is appended.
        of(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("https://127.0.0.1:{}", protocol.port((sink.grpc, sink.http))),
        ),
        of("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.word().to_owned()),
        of("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,tenant=other".to_owned()),
        of("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "authorization=Bearer%20y,tenant=seven".to_owned()),
        of("OTEL_EXPORTER_OTLP_CERTIFICATE", pki.ca.display().to_string()),
        of("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", pki.client.cert.display().to_string()),
        of("OTEL_EXPORTER_OTLP_CLIENT_KEY", pki.client.key.display().to_string()),
        of("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
        of("OTEL_EXPORTER_OTLP_TIMEOUT", "5000".to_owned()),
    ];
    for one in bench.arrives("", &variables, &sink.inbox)? {
        ensure!(one.via == protocol.via(), "by {}", one.via);
        ensure!(one.headers.get("authorization").is_some_and(|v| v == "Bearer y"), "{:?}", one.headers);
        ensure!(one.headers.get("tenant").is_some_and(|v| v == "seven"), "{:?}", one.headers);
    }
    Ok(())
}

fn client_certificates_by_grpc_from_the_environment() -> Result<()> {
    environment(Protocol::Grpc)
}

fn client_certificates_by_http_from_the_environment() -> Result<()> {
    environment(Protocol::Http)
}

/// Tampers under an agent whose receivers must not take anything: each is reported, once, and nothing is lost.
fn refused(bench: &Bench, config: &str, receivers: u64, inbox: &Inbox) -> Result<Vec<Value>> {
    bench.home.configure(config)?;
    let mut agent = Agent::start(&bench.home, 1)?;
    let tamperer = bench.victims.tamper("a")?;
    bench.wait_for_violations(&mut agent)?;
    drop(tamperer);
    let failed = |seen: &[Value]| seen.iter().filter(|r| r["kind"] == "delivery.failed").count() as u64;
    agent.wait("report of each failed delivery", |seen| failed(seen) >= receivers)?;
    let (status, _) = agent.status()?;
    for export in status["export"].as_array().context("no export")? {
        ensure!(export["acknowledged_seq"] == 0, "acknowledged: {export}");
        ensure!(export["last_error"].as_str().is_some_and(|e| !e.is_empty()), "no error: {export}");
    }
    let journal = agent.stop()?;
    ensure!(failed(&journal) == receivers, "{} reports", failed(&journal));
    ensure!(inbox.received()?.is_empty(), "something was taken");
    Ok(journal)
}

/// Receivers of one list, by both protocols.
fn both(sink: &Sink, lines: &str) -> String {
    let ports = (sink.grpc, sink.http);
    let grpc = export(&Protocol::Grpc.url("https", ports), Protocol::Grpc, lines);
    let http = export(&Protocol::Http.url("https", ports), Protocol::Http, lines);
    grpc + http.trim_start_matches("export:\n  otlp:\n")
}

fn without_its_certificate_nothing_is_taken() -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let pki = bench.pki("pki")?;
    let sink = bench.sink(Some((pki.clone(), true)))?;
    refused(&bench, &both(&sink, &tls_lines(&pki, false)), 2, &sink.inbox)?;
    // With it, all of it arrives.
    bench.home.configure(&both(&sink, &tls_lines(&pki, true)))?;
    let agent = Agent::start(&bench.home, 1)?;
    wait("acknowledgement of all", || {
        let (status, _) = agent.status()?;
        let lag = |one: &Value| one["oldest_unsent_age_s"] == 0 && one["acknowledged_seq"] != 0;
        Ok(status["export"].as_array().is_some_and(|all| all.iter().all(lag)).then_some(()))
    })?;
    agent.stop()?;
    let received = bench.covered(&sink.inbox)?;
    for via in ["grpc", "http"] {
        ensure!(received.iter().any(|one| one.via == via), "nothing by {via}");
    }
    Ok(())
}

fn a_receiver_of_another_authority_gets_nothing() -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let (pki, other) = (bench.pki("pki")?, bench.pki("other")?);
    let sink = bench.sink(Some((pki, false)))?;
    refused(&bench, &both(&sink, &tls_lines(&other, false)), 2, &sink.inbox).map(drop)
}

const ROUNDS: &[&str] = &["taken", "down", "dead", "after"];

/// The receiver is stopped, the agent is killed while it is stopped, both start again: all violations arrive.
fn killed(bench: &Bench, url: &str, protocol: Protocol, inbox: &Inbox, receiver: Receiver<'_>) -> Result<()> {
    bench.home.configure(&export(url, protocol, ""))?;
    let mut agent = Agent::start(&bench.home, 1)?;
    let mut tamperers = vec![bench.victims.tamper("taken")?];
    bench.wait_for_violations(&mut agent)?;
    // rotel loses what it has acknowledged and not yet passed on, so all of it must have arrived first.
    bench.covered(inbox)?;
    wait("acknowledgement of the first round", || {
        let export = &agent.status()?.0["export"][0];
        Ok((export["oldest_unsent_age_s"] == 0 && export["acknowledged_seq"] != 0).then_some(()))
    })?;
    receiver(false)?;
    tamperers.push(bench.victims.tamper("down")?);
    bench.wait_for_violations(&mut agent)?;
    wait("sign that the receiver is down", || {
        Ok(agent.status()?.0["export"][0]["last_error"].is_string().then_some(()))
    })?;
    agent.kill()?;
    tamperers.push(bench.victims.tamper("dead")?);
    receiver(true)?;
    let mut agent = Agent::start(&bench.home, 1)?;
    tamperers.push(bench.victims.tamper("after")?);
    bench.wait_for_violations(&mut agent)?;
    drop(tamperers);
    agent.stop().map(drop)
}

/// Starts a receiver (`true`), or stops it.
type Receiver<'a> = &'a mut dyn FnMut(bool) -> Result<()>;

fn killed_with_reference(protocol: Protocol) -> Result<()> {
    let bench = Bench::new(ROUNDS)?;
    let mut sink = bench.sink(None)?;
    let inbox = sink.inbox.clone();
    let url = protocol.url("http", (sink.grpc, sink.http));
    let mut receiver = |up| if up { sink.up() } else { sink.down() };
    killed(&bench, &url, protocol, &inbox, &mut receiver)?;
    bench.covered(&inbox)?;
    bench.home.verify_journal()
}

fn killed_with_rotel(protocol: Protocol) -> Result<()> {
    let bench = Bench::new(ROUNDS)?;
    let sink = bench.sink(None)?;
    let mut rotel = bench.rotel(&sink)?;
    let url = protocol.url("http", (rotel.grpc, rotel.http));
    let mut receiver = |up| if up { rotel.up() } else { rotel.down() };
    killed(&bench, &url, protocol, &sink.inbox, &mut receiver)?;
    bench.covered(&sink.inbox)?;
    bench.home.verify_journal()
}

fn killed_while_the_reference_decoder_is_down_by_grpc() -> Result<()> {
    killed_with_reference(Protocol::Grpc)
}

fn killed_while_the_reference_decoder_is_down_by_http() -> Result<()> {
    killed_with_reference(Protocol::Http)
}

fn killed_while_rotel_is_down_by_grpc() -> Result<()> {
    killed_with_rotel(Protocol::Grpc)
}

fn killed_while_rotel_is_down_by_http() -> Result<()> {
    killed_with_rotel(Protocol::Http)
}
