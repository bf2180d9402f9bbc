//! `contrast evict`: shuts a workload or a certificate out of the mesh, for good.
//!
//! The Coordinator puts it on the list that every pod hears of within seconds: the others end their connections to it and
//! make none, and it gets no other certificate. The manifest stays as it is.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use coordinator_client::{Session, is_url};
use manifest::{KeyDigest, Manifest, PolicyHash, Role};
use serde_json::json;
use wire::proposals::EvictRequest;
use x509_parser::{certificate::X509Certificate, pem::parse_x509_pem, prelude::FromDer as _};

use crate::{
    client::{attested, failure},
    files::{read, read_manifest},
    key_file::read_key,
    printer::{Printer, Refused},
    remembered::Memory,
    verify,
};

/// Shut a workload or a certificate out of the mesh, at once and for good.
///
/// Its connections end, and it gets no other certificate. A workload comes back with a changed pod, whose policy is another
/// one. A certificate is shut out by its key; the pod that holds it can make another key, unless its policy is shut out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  contrast evict -c coordinator.example:1313 --workload web\n  \
    contrast evict -c coordinator.example:1313 --policy 3f2a...\n  \
    contrast evict -c coordinator.example:1313 --certificate stolen.pem\n\n\
    With a key in an HSM, or with several owners:\n  contrast evict -c coordinator.example:1313 --workload web --prepare text\n  \
    openssl dgst -sha256 -sign pkcs11:... -out anna.der text\n  \
    contrast evict -c coordinator.example:1313 --workload web --signature anna.der --signature ben.der")]
pub(crate) struct Args {
    /// The Coordinator, as host:port.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The manifest in force. The Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Policies, by at least 8 hex digits of their hash. May be repeated.
    #[arg(long, value_name = "HASH", required_unless_present_any = ["workload", "certificate"])]
    policy: Vec<String>,
    /// Every policy of the workload with this name or secret id, also those that are going out. May be repeated.
    #[arg(long, value_name = "NAME")]
    workload: Vec<String>,
    /// Certificates, PEM: each by its key. May be repeated.
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// Private key of a workload owner.
    #[arg(long, default_value = "workload-owner.pem", conflicts_with_all = ["prepare", "signature"])]
    workload_owner_key: PathBuf,
    /// Do not evict: write the text that another signer signs (ECDSA with SHA-256). It is void when the manifest changes.
    #[arg(long, value_name = "FILE")]
    prepare: Option<PathBuf>,
    /// What other signers signed, ASN.1 DER; as many owners as a change of the manifest needs.
    #[arg(long, value_name = "FILE")]
    signature: Vec<PathBuf>,
    #[command(flatten)]
    memory: Memory,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    ensure!(
        !is_url(&args.coordinator),
        "--coordinator: the HTTP API evicts nobody; give the user API, usually port 1313"
    );
    let manifest = read_manifest(&args.manifest)?;
    let policies = policies(&args, &manifest)?;
    let keys =
        args.certificate.iter().map(|path| key_of(path)).collect::<anyhow::Result<BTreeSet<KeyDigest>>>()?;
    let keys: Vec<KeyDigest> = keys.into_iter().collect();
    let coordinator = attested(&args.coordinator, &manifest, None).await?;
    let session = Session::Grpc(coordinator.clone());
    let verified = verify::check(&session, &manifest, &args.memory.path(&args.manifest)).await?;
    let text = keys::eviction(&verified.latest_transition, &policies, &keys);
    if let Some(file) = &args.prepare {
        std::fs::write(file, &text).with_context(|| format!("cannot write {}", file.display()))?;
        let said = format!("To be signed: {text}\n  file: {}", file.display());
        return printer.result(&said, &json!({ "text": text, "file": file }));
    }
    let signatures = match args.signature.as_slice() {
        [] => {
            let pem = read_key(&args.workload_owner_key)?;
            let signature = keys::sign_ecdsa_sha256(&pem, text.as_bytes());
            vec![signature.with_context(|| args.workload_owner_key.display().to_string())?]
        }
        files => files.iter().map(|path| read(path)).collect::<anyhow::Result<_>>()?,
    };
    let request = EvictRequest {
        policies: policies.iter().map(|policy| policy.as_bytes().to_vec()).collect(),
        keys: keys.iter().map(|key| key.as_bytes().to_vec()).collect(),
        signatures,
    };
    coordinator.proposals().evict(request).await.map_err(failure)?;
    let mut said = "Shut out of the mesh; pods hear of it within seconds".to_owned();
    for policy in &policies {
        let name =
            manifest.policies.get(policy).map_or("of no workload in the manifest", |entry| entry.name());
        said.push_str(&format!("\n  policy {policy} ({name})"));
    }
    keys.iter().for_each(|key| said.push_str(&format!("\n  certificates of key {key}")));
    printer.result(&said, &json!({ "policies": policies, "keys": keys }))
}

/// The policies that were named. A workload's own name is enough: `web` for `shop/deployment/web`.
fn policies(args: &Args, manifest: &Manifest) -> anyhow::Result<Vec<PolicyHash>> {
    let mut found = BTreeSet::new();
    for text in &args.policy {
        if let Ok(hash) = text.parse() {
            found.insert(hash);
            continue;
        }
        let begins = |hash: &&PolicyHash| text.len() >= 8 && hash.to_string().starts_with(text.as_str());
        match manifest.policies.keys().filter(begins).collect::<Vec<_>>().as_slice() {
            [one] => found.insert(**one),
            some => {
                let text = format!(
                    "--policy {text}: {} policies of the manifest begin so, expected one",
                    some.len()
                );
                return Err(Refused(text).into());
            }
        };
    }
    for name in &args.workload {
        let of = manifest.policies.iter().filter(|(_, entry)| {
            let last = entry.name().rsplit('/').next().unwrap_or_default();
            entry.role != Role::Coordinator && (entry.name() == name || last == name)
        });
        let before = found.len();
        found.extend(of.map(|(hash, _)| *hash));
        if found.len() == before {
            return Err(Refused(format!("--workload {name}: the manifest names no such workload")).into());
        }
    }
    Ok(found.into_iter().collect())
}

fn key_of(path: &Path) -> anyhow::Result<KeyDigest> {
    let at = || path.display().to_string();
    let bytes = read(path)?;
    let (_, pem) =
        parse_x509_pem(&bytes).with_context(|| format!("{}: expected a certificate in PEM", at()))?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).with_context(at)?;
    Ok(KeyDigest::of(certificate.public_key().raw))
}
