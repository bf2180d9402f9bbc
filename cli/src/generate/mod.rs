//! `contrast generate`.

mod files;
mod images;
mod manifest;
mod preview;

use std::path::{Path, PathBuf};

use ::manifest::{KeyDigest, ReferenceValues};
use anyhow::Context as _;
use runtime_policy::{
    Deployment, Injection, MAX_LINE_BYTES, PodPolicy, PodSecurity, RULES, Settings, from_host,
};
use serde::Serialize;

use crate::{
    files::read,
    printer::{Printer, Refused},
    runtime,
    usage::out_file,
};

pub(crate) use self::{files::collect, manifest::entry};

/// Prepare Kubernetes YAML: add what confidential pods need, pin images, make policies and the manifest.
///
/// Files are changed in place, comments and order kept; a second run changes nothing. Pods whose
/// runtimeClassName begins with contrast-cc are confidential; everything else passes through untouched.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files and folders of Kubernetes YAML; - is standard input, which is written to standard output.
    #[arg(required_unless_present = "post_renderer")]
    paths: Vec<PathBuf>,
    /// Platform that will carry the pods, such as Metal-QEMU-SNP or Metal-QEMU-TDX; may be repeated.
    #[arg(long, required = true, value_name = "PLATFORM")]
    reference_values: Vec<manifest::Platform>,
    /// Folder of a runtime bundle, which is measured for the reference values and names the runtime class; one for
    /// each platform. See `contrast runtime measure`.
    #[arg(long, value_name = "DIR")]
    runtime_bundle: Vec<PathBuf>,
    /// Reference values that `contrast runtime measure --output json` printed.
    #[arg(long, value_name = "FILE", conflicts_with = "runtime_bundle")]
    measurements: Option<PathBuf>,
    /// Rego instead of the built-in rules; policy_data is put behind it. rules.rego if it is there.
    #[arg(long, short, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// JSON laid over the built-in settings; see `contrast policy settings`. settings.json if it is there.
    #[arg(long, short, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The manifest; made if it is not there, else its policies are replaced.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Keep the Coordinators that the manifest names beside those of the YAML, so that replicas of a new version can
    /// take over from those that run; without it they are taken out again.
    #[arg(long)]
    keep_coordinators: bool,
    /// The update is over: take out the policies that an earlier run marked as going out. Pods that still have them get no
    /// certificate any more, and the others end their connections.
    #[arg(long, conflicts_with = "revoke")]
    finish: bool,
    /// Take out at once every policy that the YAML does not have, such as of a pod that must not run any more. Without
    /// this, policies of before stay in the manifest, marked as going out, so that an update shuts nobody out.
    #[arg(long)]
    revoke: bool,
    /// Folder for the policy documents, which `contrast set` sends.
    #[arg(long, default_value = "policies", value_name = "DIR")]
    policies: PathBuf,
    /// Key that may change the manifest, private or public; made if it is not there. May be repeated.
    #[arg(
        long,
        short = 'w',
        default_value = "workload-owner.pem",
        value_name = "FILE",
        conflicts_with = "disable_updates"
    )]
    add_workload_owner_key: Vec<PathBuf>,
    /// Key that can recover the Coordinator, private or public; made if it is not there. May be repeated.
    #[arg(long, default_value = "seedshare-owner.pem", value_name = "FILE")]
    add_seedshare_owner_key: Vec<PathBuf>,
    /// Name no workload owner: nobody will be able to change the manifest.
    #[arg(long, short)]
    disable_updates: bool,
    /// Write one combined YAML file instead of changing files in place.
    #[arg(long, short, value_name = "FILE", value_parser = out_file)]
    output_file: Option<PathBuf>,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Work as Helm's post-renderer: read standard input, write standard output, and keep everything else in the
    /// workspace. The same as the path -.
    #[arg(long, conflicts_with_all = ["paths", "output_file", "dry_run"])]
    post_renderer: bool,
    /// Publish the values that pods take from Kubernetes Secrets. Whoever can reach the Coordinator can read policies,
    /// and so these values.
    #[arg(long)]
    publish_secrets: bool,
    #[command(flatten)]
    inject: InjectArgs,
    #[command(flatten)]
    images: images::ImageArgs,
}

/// What is added to pods.
#[derive(Debug, clap::Args)]
struct InjectArgs {
    /// Image of the initializer.
    #[arg(long, value_name = "IMAGE", default_value = concat!("ghcr.io/contrast-rs/initializer:v", env!("CARGO_PKG_VERSION")))]
    initializer_image: String,
    /// Image of the service mesh.
    #[arg(long, value_name = "IMAGE", default_value = concat!("ghcr.io/contrast-rs/service-mesh:v", env!("CARGO_PKG_VERSION")))]
    service_mesh_image: String,
    /// Add no initializer.
    #[arg(long)]
    skip_initializer: bool,
    /// Add no service mesh, whatever pods ask for.
    #[arg(long)]
    skip_service_mesh: bool,
    /// The guest of this runtime lets nobody in from its start (`service-mesh deny`): in pods without a mesh the
    /// initializer lifts that, for which it needs NET_ADMIN.
    #[arg(long)]
    lift_default_deny: bool,
    /// Let the initializer end when it has a certificate, as upstream's does, instead of staying to renew it. Such a pod
    /// is refused by others some time after an update. A pod's annotation contrast.edgeless.systems/renewal comes first.
    #[arg(long)]
    one_shot_initializer: bool,
    /// Keep the layers of images in the VM's memory, not on an encrypted volume. A pod's annotation
    /// contrast.edgeless.systems/image-store-size comes first.
    #[arg(long, alias = "skip-image-store")]
    skip_trusted_store: bool,
    /// Size of that volume, one for each pod; it needs a storage class with block volumes.
    #[arg(long, value_name = "QUANTITY", default_value = "10Gi", conflicts_with = "skip_trusted_store")]
    trusted_store_size: String,
    /// What is the case anyway: for scripts that were written for upstream.
    #[arg(long, hide = true, conflicts_with = "skip_trusted_store")]
    inject_image_store: bool,
    /// The runtime class of this installation, such as contrast-cc-metal-qemu-snp-0a1b2c3d.
    #[arg(long, value_name = "NAME")]
    runtime_class: Option<String>,
    /// Where pods find the Coordinator: a host name. By default `coordinator`, with the Coordinator's namespace behind it for
    /// pods of other namespaces, if the YAML has it.
    #[arg(long, value_name = "HOST")]
    coordinator_host: Option<String>,
    /// Lines of the form from=to: images to put in the place of others.
    #[arg(long, value_name = "FILE")]
    image_replacements: Option<PathBuf>,
}

impl InjectArgs {
    fn injection(&self, (owners, needed): (Vec<KeyDigest>, usize)) -> anyhow::Result<Injection> {
        let mut replacements = Vec::new();
        if let Some(path) = &self.image_replacements {
            let text = String::from_utf8_lossy(&read(path)?).into_owned();
            for (number, line) in (1..).zip(text.lines()) {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let pair = line.split_once('=').filter(|(from, to)| !from.is_empty() && !to.is_empty());
                let (from, to) = pair.with_context(|| {
                    format!("{}:{number}: expected from=to, got {line:?}", path.display())
                })?;
                replacements.push((from.trim().to_owned(), to.trim().to_owned()));
            }
        }
        let replaced = |image: &String| {
            let found = replacements.iter().find(|(from, _)| from == image);
            found.map_or(image, |(_, to)| to).clone()
        };
        Ok(Injection {
            initializer: (!self.skip_initializer).then(|| replaced(&self.initializer_image)),
            service_mesh: (!self.skip_service_mesh).then(|| replaced(&self.service_mesh_image)),
            lift_default_deny: self.lift_default_deny,
            renewal: !self.one_shot_initializer,
            trusted_store: (!self.skip_trusted_store).then(|| self.trusted_store_size.clone()),
            runtime_class: self.runtime_class.clone(),
            image_replacements: replacements,
            workload_owners: owners.iter().map(ToString::to_string).collect(),
            workload_owners_needed: needed,
            coordinator_host: self.coordinator_host.clone(),
        })
    }
}

/// What was made, for machines.
#[derive(Serialize)]
struct Report {
    manifest: PathBuf,
    pods: Vec<PodReport>,
    changed_files: Vec<String>,
    pod_security: Vec<PodSecurityReport>,
    warnings: Vec<String>,
    going_out: Vec<GoingOut>,
    to_fill_in: Vec<String>,
}

/// A policy of before, which the manifest still names.
#[derive(Serialize)]
struct GoingOut {
    name: String,
    policy: String,
}

/// The strictest Pod Security level that a namespace may enforce, and what a stricter one would refuse.
#[derive(Serialize)]
struct PodSecurityReport {
    namespace: String,
    level: String,
    because: Vec<String>,
}

#[derive(Serialize)]
struct PodReport {
    kind: String,
    namespace: String,
    name: String,
    policy: String,
    mr_config_id: String,
    /// For each container the paths that the host fills or writes.
    from_host: std::collections::BTreeMap<String, Vec<String>>,
}

pub(crate) async fn run(mut args: Args, workspace: Option<&Path>, printer: &Printer) -> anyhow::Result<()> {
    let workspace = workspace.unwrap_or(Path::new(""));
    if args.post_renderer {
        args.paths = vec!["-".into()];
    }
    for (file, name) in [(&mut args.policy, "rules.rego"), (&mut args.settings, "settings.json")] {
        let own = workspace.join(name);
        if file.is_none() && own.exists() {
            printer.note(&format!("With {}", own.display()));
            *file = Some(own);
        }
    }
    let mut senders = Vec::new();
    let measured = measured(&mut args, &mut senders, printer)?;
    let mut draft = manifest::Draft::read(&args, measured)?;
    let mut settings = settings(args.settings.as_deref())?;
    for sender in senders {
        settings = settings.with_sender(sender.each_ref().map(Option::as_deref)).context("runtime bundle")?;
    }
    let rules = match &args.policy {
        Some(path) => String::from_utf8(read(path)?).with_context(|| path.display().to_string())?,
        None => RULES.to_owned(),
    };
    let originals = collect(&args.paths)?;
    let mut deployment = Deployment::read(originals.iter().map(|(name, text)| (name.as_str(), text)))?;
    if deployment.workloads().is_empty() {
        return Err(runtime_policy::PolicyError::NothingConfidential.into());
    }
    if !args.publish_secrets {
        refuse_published_secrets(&deployment)?;
    }
    if workspace != Path::new("") && !args.dry_run {
        let made = std::fs::create_dir_all(workspace);
        made.with_context(|| format!("cannot make the folder {}", workspace.display()))?;
    }
    let owners = draft.owners(&args, printer)?;
    if owners.0.is_empty() && !args.inject.skip_initializer {
        printer.warning(
            "there is no workload owner, so nobody can vouch for the deployment: at its start a pod takes \
             certificate and secret from any genuine Coordinator, also from one that the host runs for itself",
        );
    }
    let mut warnings = deployment.inject(&args.inject.injection(owners)?)?;

    let images = images::resolve(&args.images, &deployment, printer).await?;
    deployment.pin(&images.by_given)?;
    warnings.extend(images.warnings);
    let (policies, found) = deployment.policies(&images.by_pinned, &settings, &rules)?;
    warnings.extend(found);
    warnings.extend(deployment.check(&draft.target(&args)));
    let mut warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    warnings.extend(draft.unmeasured(&args));
    warnings.extend(check(&policies)?);
    deployment.annotate(&policies)?;
    let moved = deployment.namespaces_first()?;

    let changes = files::changes(&originals, &deployment);
    for warning in &warnings {
        printer.warning(warning);
    }
    for note in &moved {
        printer.note(note);
    }
    if args.dry_run {
        return preview::show(&changes, &policies, printer);
    }
    let written = draft.write(&args, &policies, printer)?;
    files::write(&args.paths, args.output_file.as_deref(), &deployment, &changes, printer)?;
    files::write_policies(&args.policies, &policies, &written.going_out)?;
    let report = report(&args, &policies, &changes, &deployment.pod_security(), warnings, written);
    if files::to_stdout(&args.paths, args.output_file.as_deref()) {
        for line in summary(&report).lines() {
            printer.note(line);
        }
        return Ok(());
    }
    printer.result(&summary(&report), &report)
}

/// A policy holds the environment of its containers, and the Coordinator shows policies to whoever asks.
fn refuse_published_secrets(deployment: &Deployment) -> anyhow::Result<()> {
    let found = deployment.published_secrets();
    if found.is_empty() {
        return Ok(());
    }
    let lines: String = found.iter().map(|finding| format!("\n  {finding}")).collect();
    Err(Refused(format!(
        "{} values of Kubernetes Secrets would be published, because policies hold the environment of containers and \
         whoever can reach the Coordinator can read policies:{lines}\n\
         Ways out: derive the value from the workload secret, or decrypt it in the pod with the transit engine (see \
         docs/policies.md, \"Secrets\"); or take the Secret out of the files and mark the reference `optional: true`, and \
         the pod does without it; or --publish-secrets, if everybody may know these values",
        found.len()
    ))
    .into())
}

/// The reference values that were given, as a file or as bundles. A single bundle's runtime is the pods' runtime class.
fn measured(
    args: &mut Args,
    senders: &mut Vec<[Option<String>; 2]>,
    printer: &Printer,
) -> anyhow::Result<Option<ReferenceValues>> {
    let values = match &args.measurements {
        Some(path) => serde_json::from_slice(&read(path)?).with_context(|| path.display().to_string())?,
        None if args.runtime_bundle.is_empty() => return Ok(None),
        None => {
            let mut values = ReferenceValues::default();
            for bundle in &args.runtime_bundle {
                let measured = runtime::measured(bundle, printer)?;
                senders.push(measured.sender);
                let found: ReferenceValues = serde_json::from_value(measured.values)?;
                values.snp.extend(found.snp);
                values.tdx.extend(found.tdx);
                if let ([_], None, Some(handler)) =
                    (args.runtime_bundle.as_slice(), &args.inject.runtime_class, measured.handler)
                {
                    args.inject.runtime_class = Some(handler.to_string());
                }
            }
            values
        }
    };
    Ok(Some(values))
}

pub(crate) fn settings(path: Option<&Path>) -> anyhow::Result<Settings> {
    match path {
        Some(path) => Settings::overlay(&read(path)?).with_context(|| path.display().to_string()),
        None => Ok(Settings::default()),
    }
}

/// A policy that the agent could not read would deny everything: find out now. Warns of what older agents do not read.
fn check(policies: &[PodPolicy]) -> anyhow::Result<Vec<String>> {
    let mut warnings = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        let name = &policy.workload.name;
        // All have the same rules, and to analyse those takes longer than all the rest of this command.
        let readable = match index {
            0 => {
                runtime_policy::Evaluator::new(policy.document.rego()).map(drop).map_err(anyhow::Error::from)
            }
            _ => policy.document.data().map(drop).map_err(anyhow::Error::from),
        };
        readable.with_context(|| format!("the policy of {name}"))?;
        if let Some((number, length)) = policy.document.long_line() {
            warnings.push(format!(
                "the policy of {name}: line {number} has {length} bytes, and older agents deny everything when one has more \
                 than {MAX_LINE_BYTES}: break it"
            ));
        }
    }
    Ok(warnings)
}

fn report(
    args: &Args,
    policies: &[PodPolicy],
    changes: &[files::Change],
    pod_security: &[PodSecurity],
    warnings: Vec<String>,
    written: manifest::Written,
) -> Report {
    let pod = |policy: &PodPolicy| PodReport {
        kind: policy.workload.kind.clone(),
        namespace: policy.workload.namespace.clone(),
        name: policy.workload.name.clone(),
        policy: policy.document.hash().to_string(),
        mr_config_id: hex::encode(policy.document.mr_config_id()),
        from_host: policy
            .document
            .data()
            .map(|data| from_host(&data))
            .unwrap_or_default()
            .into_iter()
            .collect(),
    };
    let security = |found: &PodSecurity| PodSecurityReport {
        namespace: found.namespace.clone(),
        level: found.level.to_string(),
        because: found.because.clone(),
    };
    Report {
        pod_security: pod_security.iter().map(security).collect(),
        manifest: args.manifest.clone(),
        pods: policies.iter().map(pod).collect(),
        changed_files: changes.iter().map(|change| change.name.clone()).collect(),
        warnings,
        going_out: (written.going_out.into_iter())
            .map(|(policy, name)| GoingOut { name, policy: policy.to_string() })
            .collect(),
        to_fill_in: written.to_fill_in,
    }
}

fn summary(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for pod in &report.pods {
        let _ = writeln!(text, "{:.16}…  {} {}/{}", pod.policy, pod.kind, pod.namespace, pod.name);
        for (container, paths) in &pod.from_host {
            let _ = writeln!(text, "    the host decides, in {container}: {}", paths.join(", "));
        }
    }
    for old in &report.going_out {
        let _ = writeln!(text, "{:.16}…  {}, going out", old.policy, old.name);
    }
    if !report.going_out.is_empty() {
        let _ = writeln!(
            text,
            "Pods that go out are trusted until an owner ends that: when none of them runs, `contrast generate --finish` \
             and `contrast set`"
        );
    }
    let changed = match report.changed_files.len() {
        0 => "No file changed".to_owned(),
        _ => format!("Changed: {}", report.changed_files.join(", ")),
    };
    let _ = writeln!(text, "{changed}; {} pods in {}", report.pods.len(), report.manifest.display());
    for namespace in &report.pod_security {
        let _ = write!(
            text,
            "Namespace {} may enforce Pod Security level {}",
            namespace.namespace, namespace.level
        );
        let _ = match namespace.because.split_first() {
            Some((first, [])) => writeln!(text, ", not a stricter one: {first}"),
            Some((first, more)) => writeln!(text, ", not a stricter one: {first}; and {} more", more.len()),
            None => writeln!(text),
        };
    }
    for field in &report.to_fill_in {
        let _ = writeln!(text, "Fill in before `contrast set`: {field}");
    }
    text
}
