//! `contrast verify`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coordinator_client::{Session, ShownHistory};
use manifest::{KeyDigest, Manifest, ManifestHash, PolicyHash, TransitionHash};
use serde::Serialize;

use crate::{
    client::{Address, HttpOptions, failed},
    files::read_manifest,
    older_head,
    printer::{Printer, Refused},
    remembered::{self, Known, Memory},
    vouch,
    whole_file::replace,
    workloads::trusted_workloads,
};

/// Verify a Coordinator as a data owner: evidence, manifest, history, root CA.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The Coordinator, as host:port, or as the URL of its HTTP API.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The manifest that must be in force, byte for byte.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Where to write root CA, mesh CA and the history.
    #[arg(long, default_value = "verify")]
    directory: PathBuf,
    #[command(flatten)]
    http: HttpOptions,
    #[command(flatten)]
    memory: Memory,
}

/// What was found to be true.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Verified {
    pub(crate) platform: String,
    pub(crate) tcb: String,
    pub(crate) coordinator_policy: PolicyHash,
    pub(crate) history: Vec<ManifestHash>,
    pub(crate) latest_transition: TransitionHash,
    pub(crate) log: String,
    pub(crate) events: u64,
    /// Events of the checkpoint that was remembered and that the history extends; none on the first contact.
    pub(crate) extends: Option<u64>,
    pub(crate) checkpoint: String,
    /// Workload owners who vouch for the root.
    pub(crate) vouched_by: Vec<KeyDigest>,
    /// Histories that were given up after a disaster, oldest first.
    pub(crate) older_heads_accepted: Vec<older_head::Shown>,
    /// Policies that a later version of their workload replaces, and that are trusted until an owner ends that.
    pub(crate) going_out: Vec<PolicyHash>,
    #[serde(skip)]
    pub(crate) manifests: Vec<Vec<u8>>,
    #[serde(skip)]
    pub(crate) policies: Vec<Vec<u8>>,
    #[serde(skip)]
    pub(crate) root_pem: String,
    #[serde(skip)]
    pub(crate) mesh_pem: String,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let memory = args.memory.path(&args.manifest);
    let session = Address::new(&args.coordinator, &args.http).open(&manifest, None).await?;
    let verified = check(&session, &manifest, &memory).await?;
    write(&args.directory, &verified)?;
    let memory = memory.display();
    let extends = match verified.extends {
        Some(events) => format!("extends the {events} that were remembered in {memory}"),
        None => format!(
            "first contact: nothing was remembered in {memory}, so what came before is the Coordinator's word; from now \
             on a history that does not extend this one is refused"
        ),
    };
    let given_up: String =
        verified.older_heads_accepted.iter().map(|head| format!("  WARNING: {head}\n")).collect();
    let text = format!(
        "Verified: {} on {}\n  TCB: {}\n  manifests: {}, in force: {}{}\n  history: {} events; \
         {extends}\n{given_up}  vouched for by: {}\n  log key: {}\n  files: {}",
        args.coordinator,
        verified.platform,
        verified.tcb,
        verified.history.len(),
        manifest.hash(),
        trusted_workloads(&manifest),
        verified.events,
        match verified.vouched_by.as_slice() {
            [] => "no workload owner: pods take any genuine Coordinator, unless their policies name owners"
                .to_owned(),
            owners => owners.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        },
        verified.log,
        args.directory.display(),
    );
    printer.result(&text, &verified)
}

/// Checks everything that can be checked from outside.
pub(crate) async fn check(session: &Session, manifest: &Manifest, memory: &Path) -> anyhow::Result<Verified> {
    let nothing = || Refused("no manifest configured".into());
    let known = remembered::check(session, memory).await?.ok_or_else(nothing)?;
    let shown = session.history().await.map_err(failed)?.ok_or_else(nothing)?;
    judge(shown, manifest, known)
}

fn judge(shown: ShownHistory, manifest: &Manifest, known: Known) -> anyhow::Result<Verified> {
    let latest_transition = shown.latest();
    let ShownHistory { claims, manifests, policies, root_ca, mesh_ca, vouchers, older_heads } = shown;
    let history: Vec<ManifestHash> = manifests.iter().map(|bytes| ManifestHash::of(bytes)).collect();
    let in_force = manifests.last().map(Vec::as_slice).unwrap_or_default();
    if in_force != manifest.bytes() {
        let (found, given) = (ManifestHash::of(in_force), manifest.hash());
        let without_returns =
            |bytes: &[u8]| bytes.iter().copied().filter(|byte| *byte != b'\r').collect::<Vec<_>>();
        let why = match history.iter().rposition(|hash| *hash == given) {
            Some(index) => format!(
                "which was in force until generation {} replaced it; `contrast history diff {} latest` shows what changed",
                index + 2,
                index + 1
            ),
            None if without_returns(in_force) == without_returns(manifest.bytes()) => {
                "which differs in its line ends only: get the file as it was set, byte for byte".to_owned()
            }
            None => "which was never in force there: get the current one from whoever set it".to_owned(),
        };
        let text = format!("the Coordinator enforces manifest {found}, not the given {given}, {why}");
        return Err(Refused(text).into());
    }
    for hash in manifest.policies.keys() {
        if !policies.iter().any(|policy| PolicyHash::of(policy) == *hash) {
            return Err(
                Refused(format!("the Coordinator does not show the document of policy {hash}")).into()
            );
        }
    }
    let mut verified = Verified {
        platform: claims.platform().to_string(),
        tcb: claims.tcb(),
        coordinator_policy: claims.policy_hash(),
        history,
        latest_transition,
        log: known.log.to_string(),
        events: known.head.size,
        extends: known.extends,
        checkpoint: known.note,
        manifests,
        policies,
        root_pem: String::from_utf8(root_ca).context("root CA is not PEM")?,
        mesh_pem: String::from_utf8(mesh_ca).context("mesh CA is not PEM")?,
        vouched_by: Vec::new(),
        older_heads_accepted: older_head::show(known.log.key(), &older_heads)?,
        going_out: manifest.going_out().map(|(hash, _)| *hash).collect(),
    };
    verified.vouched_by = vouch::vouching(&verified, manifest, &vouchers)?;
    Ok(verified)
}

fn write(directory: &std::path::Path, verified: &Verified) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let put = |name: String, content: &[u8]| replace(&directory.join(name), content);
    put("coordinator-root-ca.pem".into(), verified.root_pem.as_bytes())?;
    put("mesh-ca.pem".into(), verified.mesh_pem.as_bytes())?;
    put("log-key".into(), verified.log.as_bytes())?;
    put("checkpoint".into(), verified.checkpoint.as_bytes())?;
    put("latest-transition".into(), verified.latest_transition.to_string().as_bytes())?;
    for (number, manifest) in verified.manifests.iter().enumerate() {
        put(format!("manifest.{number}.json"), manifest)?;
    }
    for policy in &verified.policies {
        put(format!("initdata.{}.toml", PolicyHash::of(policy)), policy)?;
    }
    Ok(())
}
