//! `contrast set`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use manifest::Manifest;
use serde::Serialize;
use wire::user::{SetManifestRequest, SetManifestResponse};
use zeroize::Zeroizing;

use crate::{
    client::{Coordinator, failure, read, read_manifest},
    printer::Printer,
    remembered::{self, Memory},
};

/// Set the manifest on an attested Coordinator.
///
/// Example: contrast set -c coordinator.example:1313 -m manifest.json --policies ./policies
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The Coordinator, as host:port.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The new manifest. The Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Directory with the policy documents that the manifest names.
    #[arg(long, default_value = "policies")]
    policies: PathBuf,
    /// Key of a workload owner of the manifest in force; not needed for the first manifest.
    #[arg(long)]
    workload_owner_key: Option<PathBuf>,
    /// Where to write the certificates, and after the first manifest the seed shares.
    #[arg(long, default_value = ".")]
    workspace_dir: PathBuf,
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
    let mut policies = Vec::new();
    let entries = std::fs::read_dir(&args.policies)
        .with_context(|| format!("cannot read the policies in {}", args.policies.display()))?;
    for entry in entries {
        policies.push(read(&entry?.path())?);
    }
    let key = args.workload_owner_key.as_deref().map(read_key).transpose()?;
    let key = key.as_deref().map(String::as_str);
    let memory = args.memory.path(&args.manifest);
    let answer = send(&args.coordinator, &manifest, policies, key, &memory).await?;
    store(&args.workspace_dir, &answer)?;
    let text = format!("Manifest set: {}", manifest.hash());
    printer.result(&text, &serde_json::json!({ "manifest": manifest.hash() }))
}

pub(crate) fn read_key(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let bytes = Zeroizing::new(read(path)?);
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).with_context(|| path.display().to_string())
}

pub(crate) async fn send(
    address: &str,
    manifest: &Manifest,
    policies: Vec<Vec<u8>>,
    key: Option<&str>,
    memory: &Path,
) -> anyhow::Result<SetManifestResponse> {
    let coordinator = Coordinator::connect(address, manifest, key).await?;
    remembered::check(&coordinator, memory).await?;
    let request = SetManifestRequest {
        manifest: manifest.bytes().to_vec(),
        policies,
        previous_transition_hash: Vec::new(),
        signature: Vec::new(),
    };
    let answer = coordinator.user().set_manifest(request).await.map_err(failure)?.into_inner();
    remembered::check(&coordinator, memory).await?;
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
