//! `contrast set`.

mod preview;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use atls::ConnectionKey;
use coordinator_client::{NewManifest, Session, ShownHistory};
use manifest::{KeyDigest, Manifest, PolicyEntry, PolicyHash, Role, TransitionHash};
use preview::Preview;
use runtime_policy::{Deployment, Workload};
use tokio::{net::TcpStream, time::Instant};
use wire::user::SetManifestResponse;
use zeroize::Zeroizing;

use crate::{
    client::{Address, HttpOptions, failed},
    files::{read, read_manifest},
    generate,
    key_file::read_key,
    printer::{Printer, Refused},
    remembered::{self, Memory},
    seed_shares::{self, Place},
    transition::latest_transition,
    verify, vouch,
    whole_file::replace,
    workloads::trusted_workloads,
};

/// What `generate` calls the key that it makes.
const OWNER_KEY: &str = "workload-owner.pem";

/// What an error after the answer does not change.
const WAS_SET: &str = "the manifest was set, and then";

/// Between two attempts to reach a Coordinator that is not there yet.
const ATTEMPTS: Duration = Duration::from_secs(1);

/// Set the manifest on an attested Coordinator.
///
/// With the YAML that is deployed, its policies and the manifest's must be the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files and folders of Kubernetes YAML after `contrast generate`; - is standard input. The policies are taken
    /// from there.
    #[arg(conflicts_with = "policies")]
    paths: Vec<PathBuf>,
    /// The Coordinator, as host:port, or as the URL of its HTTP API.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The new manifest. The Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Directory with the policy documents that the manifest names, where no YAML is given.
    #[arg(long, default_value = "policies", value_name = "DIR")]
    policies: PathBuf,
    /// Show what would change and who must sign, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for a Coordinator that cannot be reached yet, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,
    /// Key of a workload owner of the manifest in force; not needed for the first manifest. By default the
    /// workload-owner.pem beside the manifest, or in the workspace, if it is there.
    #[arg(long, value_name = "FILE")]
    workload_owner_key: Option<PathBuf>,
    /// Detached signature of a workload owner (see `contrast sign`), or of the bootstrap key for the first
    /// manifest. May be given several times.
    #[arg(long, short, value_name = "FILE", conflicts_with = "workload_owner_key")]
    signature: Vec<PathBuf>,
    /// Set the manifest only if the transition in force is the one that was verified.
    #[arg(long)]
    atomic: bool,
    /// The transition that must be in force, 64 hex digits. By default what `contrast verify` wrote to
    /// `verify/latest-transition`, or none if that file does not exist.
    #[arg(long, value_name = "HEX", requires = "atomic")]
    latest_transition: Option<TransitionHash>,
    /// Where to write the certificates, and after the first manifest the seed shares.
    #[arg(long, default_value = ".")]
    workspace_dir: PathBuf,
    #[command(flatten)]
    http: HttpOptions,
    #[command(flatten)]
    memory: Memory,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let policies = match args.paths.as_slice() {
        [] => read_policies(&args.policies)?,
        paths => deployed_policies(paths, &args.manifest, &manifest, &args.policies)?,
    };
    let owner = Owner::of(&args)?;
    let beside = args.manifest.with_file_name(OWNER_KEY);
    let key_file = args.workload_owner_key.clone().unwrap_or(beside);
    let signatures = args.signature.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let previous = match (args.atomic, args.latest_transition) {
        (false, _) => None,
        (true, Some(latest)) => Some(latest),
        (true, None) => Some(latest_transition(&args.workspace_dir.join("verify/latest-transition"))?),
    };
    let address = Address::new(&args.coordinator, &args.http);
    let stream = reach(&address, &args.coordinator, Duration::from_secs(args.wait), printer).await?;
    let session = address.open_through(stream, &manifest, owner.key.as_ref()).await?;
    let memory = args.memory.path(&args.manifest);
    let is_first = remembered::check(&session, &memory).await?.is_none();
    if args.dry_run {
        let shown = session.history().await.map_err(failed)?;
        return preview(&manifest, shown.as_ref(), &owner, signatures.len(), printer);
    }
    let place = is_first.then(|| Place::take(&args.workspace_dir, &manifest)).transpose()?;
    let demanded = vouch::demanded(&manifest, &policies);
    let change = NewManifest { manifest: &manifest, policies, signatures, previous };
    let answer = send_to(&session, change).await.map_err(|error| owner.explain(error, is_first))?;
    // Before anything else that could fail: nobody can make seed shares again.
    let stored = store(&args.workspace_dir, place, &answer, printer)?;
    remembered::check(&session, &memory).await.context(WAS_SET)?;
    report(&stored, &manifest, &answer, is_first, printer)?;
    if demanded.is_empty() {
        return Ok(());
    }
    let verified = verify::check(&session, &manifest, &memory).await.context(WAS_SET)?;
    let vouched = vouch::after_set(&session, &verified, &manifest, &demanded, &key_file, printer).await;
    vouched.context(WAS_SET)
}

/// Says what the change would be, of the history so far.
fn preview(
    manifest: &Manifest,
    shown: Option<&ShownHistory>,
    owner: &Owner,
    signatures: usize,
    printer: &Printer,
) -> anyhow::Result<()> {
    let history = shown.map(|shown| shown.manifests.as_slice()).unwrap_or_default();
    let latest = shown.map_or(TransitionHash::ZERO, ShownHistory::latest);
    let public_key = owner.key.as_deref().map(|pem| keys::workload_owner_public_key(pem)).transpose()?;
    let own = public_key.map(|key| KeyDigest::of(&key));
    Preview::new(manifest, history, latest, own, signatures)?.print(manifest, &owner.about, printer)
}

/// By whose key a change is made.
struct Owner {
    key: Option<Zeroizing<String>>,
    /// What is to be said of the key when the change is refused.
    about: String,
}

impl Owner {
    /// The key that was given, or else the one that `generate` made. Signatures need no key beside them.
    fn of(args: &Args) -> anyhow::Result<Self> {
        let give =
            "give the key of a workload owner with --workload-owner-key, or a signature with --signature";
        if !args.signature.is_empty() {
            return Ok(Self { key: None, about: "no key was used, because signatures were given".into() });
        }
        if let Some(path) = &args.workload_owner_key {
            return Ok(Self { key: Some(read_key(path)?), about: format!("the key is {}", path.display()) });
        }
        let places = [args.manifest.with_file_name(OWNER_KEY), args.workspace_dir.join(OWNER_KEY)];
        let Some(path) = places.iter().find(|path| path.exists()) else {
            let [beside, _] = places.map(|path| path.display().to_string());
            return Ok(Self {
                key: None,
                about: format!("no key was given, and {beside} is not there: {give}"),
            });
        };
        let (key, name) = (read_key(path)?, path.display());
        Ok(match ConnectionKey::from_pem(&key) {
            Ok(_) => Self { key: Some(key), about: format!("the key is {name}; for another, {give}") },
            Err(_) => Self {
                key: None,
                about: format!("{name} was not used, because it holds no private key: {give}"),
            },
        })
    }

    /// A refusal of a change, with the key that was used or not used. The first manifest needs none.
    fn explain(&self, error: anyhow::Error, is_first: bool) -> anyhow::Error {
        match error.downcast::<Refused>() {
            Ok(Refused(text)) if !is_first => Refused(format!("{text}\n  {}", self.about)).into(),
            Ok(refused) => refused.into(),
            Err(error) => error,
        }
    }
}

fn report(
    Stored { seed_shares }: &Stored,
    manifest: &Manifest,
    answer: &SetManifestResponse,
    is_first: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let mut text = format!("Manifest set: {}", manifest.hash());
    text.push_str(&trusted_workloads(manifest));
    if is_first && manifest.going_out().next().is_some() {
        printer.warning(
            "policies are going out, and nothing was in force before: if they are of drafts, take them out with \
             `contrast generate --finish`, and set the manifest again",
        );
    }
    if let Some(path) = seed_shares {
        let owners = answer.seed_shares_doc.as_ref().map_or(0, |document| document.seed_shares.len());
        let (needed, path) = (manifest.seedshare_owners_needed().max(1), path.display());
        text.push_str(&format!(
            "\n  It is the first one of this Coordinator, which made its seed.\n  Seed shares: {path}, for {owners} \
             seedshare owners, of whom {needed} can recover together\n  Keep this file and the owners' keys safe, \
             and not in the cluster: after a restart `contrast recover` needs both, and nobody can make them again."
        ));
    }
    let value = serde_json::json!({
        "manifest": manifest.hash(), "first": seed_shares.is_some(), "seed_shares": seed_shares,
        "going_out": manifest.going_out().map(|(hash, _)| hash).collect::<Vec<_>>(),
    });
    printer.result(&text, &value)
}

/// The policies of YAML that is ready to apply, and those of `folder` that the manifest keeps for pods of before. A pod whose policy the manifest lacks would never get a certificate; an
/// entry that no pod has would be trusted for nothing. (A Coordinator's is looked for in the manifest in force.)
fn deployed_policies(
    paths: &[PathBuf],
    name: &Path,
    manifest: &Manifest,
    folder: &Path,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let files = generate::collect(paths)?;
    let deployment = Deployment::read(files.iter().map(|(name, text)| (name.as_str(), text)))?;
    let policies = deployment.annotated()?;
    let name = name.display();
    let pod = |workload: &Workload| format!("{} {}/{}", workload.kind, workload.namespace, workload.name);
    let with: BTreeSet<String> = policies.iter().map(|policy| pod(&policy.workload)).collect();
    if let Some(without) = deployment.workloads().iter().map(pod).find(|name| !with.contains(name)) {
        return Err(Refused(format!("{without} has no policy: run `contrast generate` first")).into());
    }
    let mut found: BTreeMap<PolicyHash, &[u8]> = BTreeMap::new();
    for policy in &policies {
        let hash = policy.document.hash();
        if !manifest.policies.contains_key(&hash) {
            let pod = pod(&policy.workload);
            let refusal =
                format!("{pod} has policy {hash}, which {name} lacks: run `contrast generate` again");
            return Err(Refused(refusal).into());
        }
        found.insert(hash, policy.document.bytes());
    }
    let is_stray = |hash: &PolicyHash, entry: &PolicyEntry| {
        entry.role != Role::Coordinator && !entry.going_out && !found.contains_key(hash)
    };
    if let Some((hash, entry)) = manifest.policies.iter().find(|(hash, entry)| is_stray(hash, entry)) {
        let sans = entry.sans.join(", ");
        let refusal = format!(
            "{name} trusts policy {hash} ({sans}), which no pod in the YAML has: give all of the deployment, or run \
             `contrast generate` again"
        );
        return Err(Refused(refusal).into());
    }
    let mut policies: Vec<Vec<u8>> = found.into_values().map(<[u8]>::to_vec).collect();
    for (hash, _) in manifest.going_out() {
        let path = folder.join(format!("{hash}.toml"));
        // What is not here, the Coordinator has.
        if path.exists() {
            policies.push(read(&path)?);
        }
    }
    Ok(policies)
}

/// Policies that the manifest keeps from the one in force and that were not given: of Coordinators of the version before,
/// and of workloads that go out.
fn absent(manifest: &Manifest, policies: &[Vec<u8>]) -> impl Iterator<Item = PolicyHash> {
    let given: BTreeSet<PolicyHash> = policies.iter().map(|policy| PolicyHash::of(policy)).collect();
    let kept = |entry: &PolicyEntry| entry.role == Role::Coordinator || entry.going_out;
    let kept = manifest.policies.iter().filter(move |(_, entry)| kept(entry));
    kept.map(|(hash, _)| *hash).filter(move |hash| !given.contains(hash))
}

/// Adds the policies that the manifest keeps from the one in force, as a verified Coordinator shows it. A Coordinator that
/// is none of the manifest in force is refused: nobody would run it.
pub(crate) fn keep_absent(
    manifest: &Manifest,
    policies: &mut Vec<Vec<u8>>,
    shown: Option<&ShownHistory>,
) -> anyhow::Result<()> {
    let in_force = shown.and_then(|shown| shown.manifests.last());
    let in_force = in_force.map(|bytes| Manifest::read(bytes)).transpose()?;
    let documents = shown.map(|shown| shown.policies.as_slice()).unwrap_or_default();
    let role = |manifest: &Manifest, hash: &PolicyHash| manifest.policies.get(hash).map(|entry| entry.role);
    for hash in absent(manifest, policies).collect::<Vec<_>>() {
        let document = documents.iter().find(|document| PolicyHash::of(document) == hash);
        let same_role = in_force.as_ref().and_then(|known| role(known, &hash)) == role(manifest, &hash);
        let document = document.filter(|_| same_role).ok_or_else(|| {
            let name = manifest.policies.get(&hash).map_or("", PolicyEntry::name);
            Refused(format!(
                "the manifest keeps policy {hash} ({name}), which was not given and is none of the manifest in force: give \
                 all of the deployment, or run `contrast generate` again, with --finish if it is of a draft"
            ))
        })?;
        policies.push(document.clone());
    }
    Ok(())
}

/// Tries until something accepts connections.
async fn reach(
    address: &Address<'_>,
    name: &str,
    longest: Duration,
    printer: &Printer,
) -> anyhow::Result<TcpStream> {
    let end = Instant::now() + longest;
    let mut told = false;
    loop {
        let error = match address.reach().await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if Instant::now() + ATTEMPTS > end {
            return Err(error);
        }
        if !told {
            printer.note(&format!("Waiting up to {} s for {name}: {error:#}", longest.as_secs()));
            told = true;
        }
        tokio::time::sleep(ATTEMPTS).await;
    }
}

/// Every document in a directory.
pub(crate) fn read_policies(directory: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read the policies in {}", directory.display()))?;
    entries.map(|entry| read(&entry?.path())).collect()
}

/// Sets a manifest, whatever is in force, between two looks at the history.
pub(crate) async fn send(
    session: &Session,
    manifest: &Manifest,
    policies: Vec<Vec<u8>>,
    memory: &Path,
) -> anyhow::Result<SetManifestResponse> {
    remembered::check(session, memory).await?;
    let change = NewManifest { manifest, policies, signatures: Vec::new(), previous: None };
    let answer = send_to(session, change).await?;
    remembered::check(session, memory).await?;
    Ok(answer)
}

async fn send_to(session: &Session, mut change: NewManifest<'_>) -> anyhow::Result<SetManifestResponse> {
    if absent(change.manifest, &change.policies).next().is_some() {
        let shown = session.history().await.map_err(failed)?;
        keep_absent(change.manifest, &mut change.policies, shown.as_ref())?;
    }
    session.set(change).await.map_err(failed)
}

/// What the answer to a `set` left in the workspace.
pub(crate) struct Stored {
    /// Of the first manifest.
    pub(crate) seed_shares: Option<PathBuf>,
}

/// Writes the seed shares, if some came, and then `coordinator-root-ca.pem` and `mesh-ca.pem`, which `contrast verify`
/// would give again.
pub(crate) fn store(
    workspace: &Path,
    place: Option<Place>,
    answer: &SetManifestResponse,
    printer: &Printer,
) -> anyhow::Result<Stored> {
    let name = workspace.display();
    std::fs::create_dir_all(workspace).with_context(|| format!("cannot create {name}"))?;
    let shares = answer.seed_shares_doc.as_ref();
    let seed_shares =
        shares.map(|shares| seed_shares::keep(workspace, place, shares, printer)).transpose()?;
    replace(&workspace.join("coordinator-root-ca.pem"), &answer.root_ca)?;
    replace(&workspace.join("mesh-ca.pem"), &answer.mesh_ca)?;
    Ok(Stored { seed_shares })
}
