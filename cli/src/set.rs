//! `contrast set`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use manifest::{Manifest, PolicyEntry, PolicyHash, Role, TransitionHash};
use runtime_policy::{Deployment, Workload};
use serde::Serialize;
use tokio::{net::TcpStream, time::Instant};
use tonic::Code;
use wire::user::{
    GetManifestsRequest, GetManifestsResponse, SeedShareDocument, SetManifestRequest, SetManifestResponse,
};
use zeroize::Zeroizing;

use crate::{
    client::{Coordinator, dial, failure, read, read_manifest},
    generate,
    http::{self, HttpCoordinator, HttpOptions, is_http},
    printer::{Printer, Refused},
    remembered::{self, Memory},
    sign::{latest_of, latest_transition, transition_after},
};

/// Between two attempts to reach a Coordinator that is not there yet.
const ATTEMPTS: Duration = Duration::from_secs(1);

/// Set the manifest on an attested Coordinator.
///
/// With the YAML that is deployed, its policies and the manifest's must be the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  contrast set -c coordinator.example:1313 ./deployment\n  \
    contrast set -c coordinator.example:1313 -m manifest.json --policies ./policies")]
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
    /// How long to wait for a Coordinator that cannot be reached yet, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,
    /// Key of a workload owner of the manifest in force; not needed for the first manifest.
    #[arg(long)]
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

/// What a seedshare owner keeps.
#[derive(Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SeedSharesFile {
    /// One per owner.
    pub(crate) seed_shares: Vec<SeedShareEntry>,
    /// Hex.
    pub(crate) salt: String,
}

impl SeedSharesFile {
    /// The seed, or this owner's part of it, and the salt.
    pub(crate) fn open(
        &self,
        owner_key: &Zeroizing<String>,
    ) -> anyhow::Result<(Zeroizing<Vec<u8>>, Vec<u8>)> {
        let opened = self.seed_shares.iter().find_map(|share| {
            let ciphertext = hex::decode(&share.encrypted_seed).ok()?;
            keys::decrypt_seed_share(&ciphertext, owner_key).ok()
        });
        let seed =
            opened.ok_or_else(|| Refused("no seed share in the document opens with this key".into()))?;
        Ok((seed, hex::decode(&self.salt).context("seed shares document: Salt is not hex")?))
    }
}

/// The share of one owner.
#[derive(Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SeedShareEntry {
    /// Hex of PKCS#1 DER.
    pub(crate) public_key: String,
    /// Hex.
    pub(crate) encrypted_seed: String,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let mut policies = match args.paths.as_slice() {
        [] => read_policies(&args.policies)?,
        paths => deployed_policies(paths, &args.manifest, &manifest)?,
    };
    let key = args.workload_owner_key.as_deref().map(read_key).transpose()?;
    let signatures = args.signature.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let previous = match (args.atomic, args.latest_transition) {
        (false, _) => None,
        (true, Some(latest)) => Some(latest),
        (true, None) => Some(latest_transition(&args.workspace_dir.join("verify/latest-transition"))?),
    };
    let stream = reach(&args.coordinator, Duration::from_secs(args.wait), printer).await?;
    if is_http(&args.coordinator) {
        drop(stream); // there is one for each request
        let coordinator = HttpCoordinator::new(&args.coordinator, &args.http, &manifest)?;
        let memory = args.memory.path(&args.manifest);
        remembered::check(&coordinator, &memory).await?;
        let mut signatures = signatures;
        if let Some(key) = &key {
            let shown = coordinator.attest().await?;
            let transition = transition_after(latest_of(&shown.manifests)?, &manifest);
            signatures.push(keys::sign_ecdsa_sha256(key, transition.to_string().as_bytes())?);
        }
        if lacks_a_coordinator(&manifest, &policies) {
            let why = "the manifest trusts a Coordinator whose policy was not given, and none is known there";
            let shown = coordinator.attest().await.context(why)?;
            keep_coordinators(&manifest, &mut policies, (&shown.manifests, &shown.policies))?;
        }
        let answer = coordinator.set(&manifest, &policies, &signatures).await?;
        check_answer(&coordinator, &answer).await?;
        remembered::check(&coordinator, &memory).await?;
        return report(&args.workspace_dir, &manifest, &answer, printer);
    }
    let change = Change { manifest: &manifest, policies, signatures, previous };
    let key = key.as_deref().map(String::as_str);
    let memory = args.memory.path(&args.manifest);
    let coordinator = Coordinator::through(stream, &args.coordinator, &manifest, key).await?;
    let answer = send_to(&coordinator, change, &memory).await?;
    report(&args.workspace_dir, &manifest, &answer, printer)
}

/// Over HTTP an answer is the word of whoever is on the way. What it gives is kept only if the Coordinator's evidence
/// says the same: the certificates of which everybody makes his trust, and the shares without which nobody recovers.
async fn check_answer(coordinator: &HttpCoordinator<'_>, answer: &SetManifestResponse) -> anyhow::Result<()> {
    let shown = coordinator.attest().await?;
    let in_force = shown.manifests.last().map(Vec::as_slice).unwrap_or_default();
    if in_force != coordinator.manifest().bytes() {
        let text = "the manifest is not in force: somebody on the way answered instead of the Coordinator, or another \
                    change came right after; see `contrast history`";
        return Err(Refused(text.into()).into());
    }
    let given = [("root CA", &answer.root_ca, &shown.root_ca), ("mesh CA", &answer.mesh_ca, &shown.mesh_ca)];
    for (what, given, attested) in given {
        if given != attested {
            let text = format!(
                "the answer holds another {what} than the Coordinator's evidence vouches for: somebody on the way \
                 exchanged it; nothing was written"
            );
            return Err(Refused(text).into());
        }
    }
    let standing = coordinator.standing(0).await?.context("a log with fewer than no events")?;
    let is_first = shown.manifests.len() == 1;
    let given = match &answer.seed_shares_doc {
        Some(document) => digest_of(document)?.to_vec(),
        // Later changes bring none.
        None if !is_first => return Ok(()),
        None => Vec::new(),
    };
    if given == standing.seed_shares {
        return Ok(());
    }
    let text = "the seed shares in the answer are not those that the Coordinator made: somebody on the way exchanged \
                them, or took them out; nothing was written. The same command again gives them once more, as long as \
                the Coordinator runs";
    Err(Refused(text.into()).into())
}

fn digest_of(document: &SeedShareDocument) -> anyhow::Result<[u8; 32]> {
    let owners = document.seed_shares.iter().map(|share| hex::decode(&share.public_key));
    let owners = owners.collect::<Result<Vec<_>, _>>().context("seed shares: a public key is not hex")?;
    let ciphertexts = document.seed_shares.iter().map(|share| share.encrypted_seed.as_slice());
    Ok(keys::seed_shares_digest(&document.salt, owners.iter().map(Vec::as_slice).zip(ciphertexts)))
}

fn report(
    workspace: &Path,
    manifest: &Manifest,
    answer: &SetManifestResponse,
    printer: &Printer,
) -> anyhow::Result<()> {
    store(workspace, answer)?;
    let text = format!("Manifest set: {}", manifest.hash());
    printer.result(&text, &serde_json::json!({ "manifest": manifest.hash() }))
}

/// The policies of YAML that is ready to apply. A pod whose policy the manifest lacks would never get a certificate; an
/// entry that no pod has would be trusted for nothing. (A Coordinator's is looked for in the manifest in force.)
fn deployed_policies(paths: &[PathBuf], name: &Path, manifest: &Manifest) -> anyhow::Result<Vec<Vec<u8>>> {
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
    let is_stray =
        |hash: &PolicyHash, entry: &PolicyEntry| entry.role != Role::Coordinator && !found.contains_key(hash);
    if let Some((hash, entry)) = manifest.policies.iter().find(|(hash, entry)| is_stray(hash, entry)) {
        let sans = entry.sans.join(", ");
        let refusal = format!(
            "{name} trusts policy {hash} ({sans}), which no pod in the YAML has: give all of the deployment, or run \
             `contrast generate` again"
        );
        return Err(Refused(refusal).into());
    }
    Ok(found.into_values().map(<[u8]>::to_vec).collect())
}

/// Whether the manifest trusts Coordinators whose policies were not given: those of the version before.
fn lacks_a_coordinator(manifest: &Manifest, policies: &[Vec<u8>]) -> bool {
    absent_coordinators(manifest, policies).next().is_some()
}

fn absent_coordinators(manifest: &Manifest, policies: &[Vec<u8>]) -> impl Iterator<Item = PolicyHash> {
    let given: BTreeSet<PolicyHash> = policies.iter().map(|policy| PolicyHash::of(policy)).collect();
    let coordinators = manifest.policies.iter().filter(|(_, entry)| entry.role == Role::Coordinator);
    coordinators.map(|(hash, _)| *hash).filter(move |hash| !given.contains(hash))
}

/// Adds the policies of Coordinators that the manifest keeps from the one in force.
pub(crate) async fn add_kept_coordinators(
    coordinator: &Coordinator,
    manifest: &Manifest,
    policies: &mut Vec<Vec<u8>>,
) -> anyhow::Result<()> {
    if !lacks_a_coordinator(manifest, policies) {
        return Ok(());
    }
    let shown = match coordinator.user().get_manifests(GetManifestsRequest {}).await {
        Ok(shown) => shown.into_inner(),
        // No manifest is in force.
        Err(status) if status.code() == Code::FailedPrecondition => GetManifestsResponse::default(),
        Err(status) => return Err(failure(status)),
    };
    keep_coordinators(manifest, policies, (&shown.manifests, &shown.policies))
}

/// Adds the policies of Coordinators that the manifest keeps from the one in force; `shown` are the manifests and
/// policies of a verified Coordinator. Others are refused: nobody would run them.
fn keep_coordinators(
    manifest: &Manifest,
    policies: &mut Vec<Vec<u8>>,
    shown: (&[Vec<u8>], &[Vec<u8>]),
) -> anyhow::Result<()> {
    let in_force = shown.0.last().map(|bytes| Manifest::read(bytes)).transpose()?;
    let is_coordinator = |hash: &PolicyHash| {
        let entry = in_force.as_ref().and_then(|manifest| manifest.policies.get(hash));
        entry.is_some_and(|entry| entry.role == Role::Coordinator)
    };
    for hash in absent_coordinators(manifest, policies).collect::<Vec<_>>() {
        let document = shown.1.iter().find(|document| PolicyHash::of(document) == hash);
        let document = document.filter(|_| is_coordinator(&hash)).ok_or_else(|| {
            Refused(format!(
                "the manifest trusts the Coordinator with policy {hash}, which was not given and is none of the manifest in \
                 force: give all of the deployment, or run `contrast generate` again"
            ))
        })?;
        policies.push(document.clone());
    }
    Ok(())
}

/// Tries until something accepts connections. What it is, and whether it is the Coordinator, comes after.
async fn reach(address: &str, longest: Duration, printer: &Printer) -> anyhow::Result<TcpStream> {
    let place = http::host_and_port(address).unwrap_or_else(|| address.to_owned());
    let end = Instant::now() + longest;
    let mut told = false;
    loop {
        let error = match dial(&place).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if Instant::now() + ATTEMPTS > end {
            return Err(error).with_context(|| format!("cannot reach the Coordinator at {address}"));
        }
        if !told {
            printer.note(&format!("Waiting up to {} s for {address}: {error}", longest.as_secs()));
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

/// A manifest to be set.
pub(crate) struct Change<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) policies: Vec<Vec<u8>>,
    pub(crate) signatures: Vec<Vec<u8>>,
    /// What must be in force; `None`: anything.
    pub(crate) previous: Option<TransitionHash>,
}

impl<'a> Change<'a> {
    /// A change of whatever is in force, by the key of the connection.
    pub(crate) fn new(manifest: &'a Manifest, policies: Vec<Vec<u8>>) -> Self {
        Self { manifest, policies, signatures: Vec::new(), previous: None }
    }
}

pub(crate) fn read_key(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let bytes = Zeroizing::new(read(path)?);
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).with_context(|| path.display().to_string())
}

pub(crate) async fn send(
    address: &str,
    change: Change<'_>,
    key: Option<&str>,
    memory: &Path,
) -> anyhow::Result<SetManifestResponse> {
    let coordinator = Coordinator::connect(address, change.manifest, key).await?;
    send_to(&coordinator, change, memory).await
}

async fn send_to(
    coordinator: &Coordinator,
    Change { manifest, mut policies, signatures, previous }: Change<'_>,
    memory: &Path,
) -> anyhow::Result<SetManifestResponse> {
    remembered::check(coordinator, memory).await?;
    add_kept_coordinators(coordinator, manifest, &mut policies).await?;
    let request = SetManifestRequest {
        manifest: manifest.bytes().to_vec(),
        policies,
        previous_transition_hash: previous.map(|hash| hash.as_bytes().to_vec()).unwrap_or_default(),
        signature: signatures.first().cloned().unwrap_or_default(),
        more_signatures: signatures.into_iter().skip(1).collect(),
    };
    let answer = coordinator.user().set_manifest(request).await.map_err(failure)?.into_inner();
    remembered::check(coordinator, memory).await?;
    Ok(answer)
}

/// Writes `coordinator-root-ca.pem`, `mesh-ca.pem` and, if there are any, `seedshares.json`.
pub(crate) fn store(directory: &Path, answer: &SetManifestResponse) -> anyhow::Result<()> {
    let put = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    put("coordinator-root-ca.pem", &answer.root_ca)?;
    put("mesh-ca.pem", &answer.mesh_ca)?;
    if let Some(document) = &answer.seed_shares_doc {
        let entry = |share: &wire::user::SeedShare| SeedShareEntry {
            public_key: share.public_key.clone(),
            encrypted_seed: hex::encode(&share.encrypted_seed),
        };
        let file = SeedSharesFile {
            seed_shares: document.seed_shares.iter().map(entry).collect(),
            salt: hex::encode(&document.salt),
        };
        put("seedshares.json", &serde_json::to_vec_pretty(&file)?)?;
    }
    Ok(())
}
