//! `meshseal seal`: a statement from files, from manifests, from images, or from all of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::{Failure, Format, output};
use crate::baseline::meaning::is_conflist;
use crate::baseline::object::Publish;
use crate::baseline::seal::{Options, Proposal, statement_for, writer_for};
use crate::baseline::secret::SecretKey;
use crate::baseline::statement::{Statement, Validity};
use crate::baseline::{Error, Root, write_atomic};
use crate::config::units;
use crate::image::{self, glob::Glob, layout::Platform};
use crate::inventory::mesh::{self, CniDirs};
use crate::inventory::pods;
use crate::inventory::procs::Proc;
use crate::manifest::{self, Manifests};
use crate::model::{Class, HostPath, Time};
use crate::profile::{Layout, ProfileError, Profiles};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, symlinks, directories (closed, with all below) and volumes, as the host names them.
    #[arg(long = "path", required_unless_present_any = ["manifests", "images", "profile"], num_args = 1.., value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What these profiles know of this node, taken as it is: for a golden node.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    profile: Vec<String>,
    /// Rendered Kubernetes manifests, YAML or JSON: files, or directories with all below.
    #[arg(long, num_args = 1.., value_name = "DIR")]
    manifests: Vec<PathBuf>,
    /// Images: OCI layouts (directories or tar archives), `docker save` archives.
    #[arg(long, num_args = 1.., value_name = "LAYOUT")]
    images: Vec<PathBuf>,
    /// Files of the images, such as /usr/local/bin/*; ** crosses directories. Without it, what an image runs and known
    /// executables of meshes.
    #[arg(long = "glob", requires = "images", value_parser = Glob::new, value_name = "PATTERN")]
    globs: Vec<Glob>,
    /// What pods call the image, where its layout does not say: a reference, such as docker.io/istio/proxyv2:1.30.0.
    #[arg(long = "image-name", requires = "images", value_name = "REFERENCE")]
    image_names: Vec<String>,
    /// Platform of the images.
    #[arg(long, default_value = "linux/amd64", value_name = "OS/ARCHITECTURE")]
    platform: Platform,
    /// Namespace of objects in the manifests that name none.
    #[arg(long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Issuer of service account tokens, as the API server's --service-account-issuer; without it any is taken.
    #[arg(long, value_name = "URL")]
    token_issuer: Option<String>,
    /// Where the host's root is; paths given by --path are below it.
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// sealed, generated, rotated or opaque; without it tokens are rotated and all else is sealed.
    #[arg(long, value_parser = class, value_name = "CLASS")]
    class: Option<Class>,
    /// Name of the baseline.
    #[arg(long, default_value = "node", value_name = "NAME")]
    name: String,
    /// Revision of the baseline, higher than the one in force.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    revision: u64,
    /// How long it is valid from now on, such as 90d; without it, for ever.
    #[arg(long, value_parser = units::duration, value_name = "DURATION")]
    valid_for: Option<Duration>,
    /// How long objects of the revision before are superseded, not violated.
    #[arg(long, default_value = "30m", value_parser = units::duration, value_name = "DURATION")]
    transition: Duration,
    /// in-place or redeploy: whether a publish may reach a running pod.
    #[arg(long, default_value = "in-place", value_parser = publish, value_name = "WAY")]
    publish: Publish,
    /// A lawful writer beside the kubelet, as NAME=EXECUTABLE.
    #[arg(long = "writer", value_name = "NAME=PATH")]
    writers: Vec<String>,
    /// What the files were made from.
    #[arg(long, value_name = "COMMIT")]
    source_commit: Option<String>,
    /// The cluster's key, under which secrets are sealed.
    #[arg(long, value_name = "FILE")]
    secret_key: Option<PathBuf>,
    /// Profiles beside or instead of the built-in ones: files, or directories of *.yaml.
    #[arg(long = "profiles", value_name = "FILE")]
    profiles: Vec<PathBuf>,
    /// The statement.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

fn class(text: &str) -> Result<Class, String> {
    Ok(match text {
        "sealed" => Class::Sealed,
        "generated" => Class::Generated,
        "rotated" => Class::Rotated,
        "opaque" => Class::Opaque,
        _ => return Err("expected sealed, generated, rotated or opaque".into()),
    })
}

fn publish(text: &str) -> Result<Publish, String> {
    match text {
        "in-place" => Ok(Publish::InPlace),
        "redeploy" => Ok(Publish::Redeploy),
        _ => Err("expected in-place or redeploy".into()),
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        let place = error.place();
        Self::new("profile", place, error.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.what, error.place, error.expected)
    }
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let root = Root::open(&args.root)?;
    let mut paths =
        args.paths.iter().map(|path| host_path(&root, &args.root, path)).collect::<Result<Vec<_>, _>>()?;
    let secret_key = args.secret_key.as_deref().map(SecretKey::read).transpose()?.map(Arc::new);
    let now = Time::now();
    let not_after = args.valid_for.map(|length| {
        let length = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
        Time(now.0.saturating_add(length))
    });
    let options = Options {
        name: args.name.clone(),
        revision: args.revision,
        class: args.class,
        publish: args.publish,
        validity: Validity { not_before: None, not_after },
        transition: args.transition,
        source_commit: args.source_commit.clone(),
        secret_key,
        profiles: Arc::new(Profiles::with(&args.profiles)?),
        layout: Layout {
            cni: CniDirs::find(&args.root),
            kubelet_root: pods::kubelet_root(&root).unwrap_or(Layout::default().kubelet_root),
        },
        ..Options::default()
    };
    if !args.profile.is_empty() {
        paths.extend(known_to_profiles(args, &options)?);
    }
    let open = open_chains(&options.layout.cni, &paths);
    let mut proposal = statement_for(&root, &paths, &options)?;
    proposal.notes.extend(open);
    if !args.manifests.is_empty() {
        proposal = with_manifests(proposal, args, &options)?;
    }
    if !args.images.is_empty() {
        proposal = with_images(proposal, args, &options)?;
    }
    for writer in &args.writers {
        let (name, exe) = writer
            .split_once('=')
            .ok_or_else(|| Failure::new("arguments", "--writer", format!("NAME=PATH, not '{writer}'")))?;
        let exe = host_path(&root, &args.root, Path::new(exe))?;
        proposal.statement = with_writer(proposal.statement, writer_for(&root, name, &exe)?)?;
    }
    write_statement(&proposal.statement, &args.output)?;
    for note in &proposal.notes {
        output::error_line(&output::one_line(&format!("meshseal: note: {note}")));
    }
    for unresolved in &proposal.statement.predicate.unresolved {
        output::error_line(&output::one_line(&format!("meshseal: not sealed: {unresolved}")));
    }
    let (objects, predicate) = (proposal.statement.predicate.objects.len(), &proposal.statement.predicate);
    match format {
        Format::Text => output::line(&output::one_line(&format!(
            "sealed {objects} objects as {} revision {} in {}",
            predicate.name,
            predicate.revision,
            args.output.display()
        )))?,
        Format::Json => output::line(
            &serde_json::json!({
                "name": predicate.name, "revision": predicate.revision, "objects": objects,
                "sha256": proposal.statement.subject.first().map(|subject| &subject.digest.sha256),
                "notes": proposal.notes, "unresolved": predicate.unresolved,
            })
            .to_string(),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where what these profiles tell of lies below the root.
fn known_to_profiles(args: &Args, options: &Options) -> Result<Vec<HostPath>, Failure> {
    let profiles = &options.profiles;
    if let Some(unknown) = args.profile.iter().find(|name| profiles.get(name).is_none()) {
        let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        return Err(Failure::new(
            "arguments",
            format!("--profile {unknown}"),
            format!("one of {}", names.join(", ")),
        ));
    }
    let fail = |expected: String| {
        Failure::new("cannot seal", format!("--profile below {}", args.root.display()), expected)
    };
    // Processes are those of the node whose root it is; a tree that nobody runs has none.
    let proc = Proc::new(args.root.join("proc"));
    let found = mesh::find(&args.root, &options.layout, profiles, &proc);
    if found.truncated {
        return Err(fail(format!("fewer mesh files: {} were found, and there are more", found.files.len())));
    }
    let mut paths = Vec::new();
    for name in &args.profile {
        let before = paths.len();
        paths.extend(found.files.iter().filter(|file| file.profile == *name).map(|file| file.path.clone()));
        if paths.len() == before {
            return Err(fail(format!(
                "something of {name}: nothing that its profile knows and that can be sealed is there"
            )));
        }
    }
    Ok(paths)
}

/// Of chains that are sealed without their directory: what sorts before them, and is taken instead, is a name that nothing seals.
fn open_chains(cni: &CniDirs, paths: &[HostPath]) -> Vec<String> {
    let sealed = |dir: &HostPath| paths.iter().any(|path| path == dir || dir.below(path).is_some());
    let has_chain = |dir: &HostPath| {
        paths.iter().any(|path| is_conflist(path.name()) && path.parent().as_ref() == Some(dir))
    };
    let note = |dir: &HostPath| {
        format!(
            "{dir}: its names are not sealed: a chain that is put before the sealed one is not told; add --path {dir}"
        )
    };
    cni.conf.iter().filter(|dir| has_chain(dir) && !sealed(dir)).map(note).collect()
}

/// Adds what the manifests say.
fn with_manifests(mut proposal: Proposal, args: &Args, options: &Options) -> Result<Proposal, Failure> {
    let manifests = Manifests::read(&args.manifests, &args.namespace)?;
    let options = manifest::Options {
        publish: args.publish,
        secret_key: options.secret_key.clone(),
        token_issuer: args.token_issuer.clone(),
        profiles: Arc::clone(&options.profiles),
    };
    let sealed = manifest::seal(&manifests, &options)?;
    let mut predicate = proposal.statement.predicate;
    predicate.objects.extend(sealed.objects);
    predicate.unresolved.extend(sealed.unresolved);
    proposal.statement = Statement::of(predicate)?;
    proposal.notes.extend(sealed.notes);
    Ok(proposal)
}

/// Adds files of the images.
fn with_images(mut proposal: Proposal, args: &Args, options: &Options) -> Result<Proposal, Failure> {
    let options = image::Options {
        globs: args.globs.clone(),
        platform: args.platform.clone(),
        names: args.image_names.clone(),
        secret_key: options.secret_key.clone(),
        profiles: Arc::clone(&options.profiles),
    };
    let sealed = image::seal(&args.images, &options)?;
    let mut predicate = proposal.statement.predicate;
    predicate.objects.extend(sealed.objects);
    predicate.unresolved.extend(sealed.unresolved);
    proposal.statement = Statement::of(predicate)?;
    Ok(proposal)
}

/// Adds a writer, and lets it write whatever the kubelet may not: objects without a writer of their own.
fn with_writer(
    mut statement: Statement,
    writer: crate::baseline::statement::WireWriter,
) -> Result<Statement, Error> {
    if statement.predicate.writers.iter().any(|known| known.name == writer.name) {
        return Err(Error::new("arguments", "--writer", "each name once"));
    }
    for object in &mut statement.predicate.objects {
        if !object.writers.iter().any(|name| name == crate::baseline::Writer::KUBELET) {
            object.writers.push(writer.name.clone());
        }
    }
    statement.predicate.writers.push(writer);
    Statement::of(statement.predicate)
}

/// Writes a statement, checked by the same reader that will judge it.
///
/// # Errors
/// It would be refused, or cannot be written.
pub(super) fn write_statement(statement: &Statement, path: &Path) -> Result<(), Error> {
    let text = statement.to_json()?;
    crate::baseline::statement::parse(&text)?;
    write_atomic(path, &text, 0o644)
}

/// The path as the host names it. One that is given with the root before it is taken without.
fn host_path(root: &Root, at: &Path, path: &Path) -> Result<HostPath, Failure> {
    let fail = |expected: &str| Failure::new("cannot seal", path.display(), expected);
    let absolute = if path.is_absolute() {
        path.to_owned()
    } else if at == Path::new("/") {
        std::path::absolute(path).map_err(|e| fail(&format!("a path ({e})")))?
    } else {
        Path::new("/").join(path)
    };
    // Drops doubled and final slashes and `.`.
    let clean: PathBuf = absolute.components().collect();
    if clean.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(fail("a path without `..`"));
    }
    let host = HostPath::from(clean.as_path());
    if let (Err(crate::baseline::ObserveError::Missing), Ok(rest)) =
        (root.locate(&host), clean.strip_prefix(at))
        && at != Path::new("/")
    {
        return Ok(HostPath::from(Path::new("/").join(rest).as_path()));
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::{CniDirs, HostPath, open_chains};

    #[test]
    fn a_chain_without_its_directory_is_noted() {
        let cni = CniDirs { conf: vec![HostPath::from("/etc/cni/net.d")], bin: Vec::new() };
        let notes = |paths: &[&str]| {
            let paths: Vec<HostPath> = paths.iter().map(|path| HostPath::from(*path)).collect();
            open_chains(&cni, &paths)
        };
        let told = "/etc/cni/net.d: its names are not sealed: a chain that is put before the sealed one is not told; \
                    add --path /etc/cni/net.d";
        assert_eq!(notes(&["/etc/cni/net.d/10-a.conflist"]), [told]);
        assert_eq!(notes(&["/etc/cni/net.d/10-a.conflist", "/etc/cni/net.d"]), [""; 0]);
        assert_eq!(notes(&["/etc/cni", "/etc/cni/net.d/10-a.conflist"]), [""; 0]);
        assert_eq!(notes(&["/etc/cni/net.d/kubeconfig", "/opt/cni/bin/a.conf"]), [""; 0]);
    }
}
