//! `contrast vouch`, and what `contrast set` does of it.
//!
//! A pod whose policy names workload owners takes only a deployment whose root one of them vouches for. Whoever vouches
//! says: this Coordinator's seed, and all that it ever gave away, is known to me. So `set` does it by itself only where
//! the manifest that it just set is the whole history: a host could have set one before, with the owner's key in it and
//! with a pod of its own that learnt a workload's secret.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use continuity::{Owners, Voucher};
use coordinator_client::Session;
use manifest::{KeyDigest, Manifest};
use serde_json::json;
use x509_parser::{certificate::X509Certificate, pem::parse_x509_pem, prelude::FromDer as _};

use crate::{
    client::{Address, HttpOptions, failed},
    files::{read, read_manifest},
    key_file::read_key,
    printer::{Printer, Refused},
    remembered::Memory,
    verify::{self, Verified},
    whole_file::replace,
};

/// Vouch for a deployment as a workload owner, so that pods take its certificates and secrets.
///
/// Look at its history first: whoever set an earlier manifest may have learnt workload secrets.
#[derive(Debug, clap::Args)]
#[command(after_help = "With a key in an HSM, between --prepare and --signature:
  \
    openssl dgst -sha256 -sign pkcs11:... -out root.der root.txt")]
pub(crate) struct Args {
    /// The Coordinator, as host:port, or as the URL of its HTTP API.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The manifest in force. The Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Private key of a workload owner.
    #[arg(long, default_value = "workload-owner.pem", conflicts_with_all = ["prepare", "signature"])]
    workload_owner_key: PathBuf,
    /// Do not vouch: write the text that another signer signs (ECDSA with SHA-256).
    #[arg(long, value_name = "FILE")]
    prepare: Option<PathBuf>,
    /// What another signer signed, ASN.1 DER.
    #[arg(long, value_name = "FILE", requires = "public_key")]
    signature: Option<PathBuf>,
    /// The public key of that signer, PKIX DER.
    #[arg(long, value_name = "FILE", requires = "signature")]
    public_key: Option<PathBuf>,
    #[command(flatten)]
    http: HttpOptions,
    #[command(flatten)]
    memory: Memory,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let memory = args.memory.path(&args.manifest);
    let session = Address::new(&args.coordinator, &args.http).open(&manifest, None).await?;
    let verified = verify::check(&session, &manifest, &memory).await?;
    let text = keys::root_voucher(&root_key(&verified)?);
    if let Some(file) = &args.prepare {
        replace(file, text.as_bytes())?;
        let said = format!("To be signed: {text}\n  file: {}", file.display());
        return printer.result(&said, &json!({ "text": text, "file": file }));
    }
    let voucher = match (&args.signature, &args.public_key) {
        (Some(signature), Some(public_key)) => {
            Voucher { public_key: read(public_key)?, signature: read(signature)? }
        }
        _ => sign(&args.workload_owner_key, &text)?,
    };
    let owner = KeyDigest::of(&voucher.public_key);
    session.vouch(voucher).await.map_err(failed)?;
    let said = format!(
        "Vouched for the deployment\n  owner: {owner}\n  {text}\n  manifests: {}",
        verified.history.len()
    );
    printer.result(&said, &json!({ "owner": owner, "root": text, "manifests": verified.history }))
}

fn sign(key_file: &Path, text: &str) -> anyhow::Result<Voucher> {
    let pem = read_key(key_file)?;
    let at = || key_file.display().to_string();
    let public_key = keys::workload_owner_public_key(&pem).with_context(at)?;
    Ok(Voucher { public_key, signature: keys::sign_ecdsa_sha256(&pem, text.as_bytes()).with_context(at)? })
}

/// The root's public key, SubjectPublicKeyInfo DER.
fn root_key(verified: &Verified) -> anyhow::Result<Vec<u8>> {
    let (_, pem) = parse_x509_pem(verified.root_pem.as_bytes()).context("the root CA is not PEM")?;
    let (_, root) = X509Certificate::from_der(&pem.contents).context("the root CA is not a certificate")?;
    Ok(root.public_key().raw.to_vec())
}

/// Workload owners of the manifest who vouch for the root, as far as their signatures are good.
pub(crate) fn vouching(
    verified: &Verified,
    manifest: &Manifest,
    vouchers: &[Voucher],
) -> anyhow::Result<Vec<KeyDigest>> {
    let root_key = root_key(verified)?;
    let vouches =
        |owner: &KeyDigest| Owners { keys: vec![*owner], needed: 1 }.check(&root_key, vouchers).is_ok();
    Ok(manifest.workload_owner_digests().collect::<BTreeSet<_>>().into_iter().filter(vouches).collect())
}

/// The workload owners whose word the pods with these policies demand.
pub(crate) fn demanded(manifest: &Manifest, policies: &[Vec<u8>]) -> Vec<KeyDigest> {
    let demands = |owner: &KeyDigest| {
        let digest = owner.to_string();
        policies.iter().any(|policy| policy.windows(digest.len()).any(|part| part == digest.as_bytes()))
    };
    manifest.workload_owner_digests().collect::<BTreeSet<_>>().into_iter().filter(demands).collect()
}

/// After a manifest was set: vouches for the deployment where its pods demand this owner's word.
pub(crate) async fn after_set(
    session: &Session,
    verified: &Verified,
    manifest: &Manifest,
    demanded: &[KeyDigest],
    key_file: &Path,
    printer: &Printer,
) -> anyhow::Result<()> {
    let needed = manifest.workload_owners_needed().min(demanded.len());
    let has_vouched = |owner: &&KeyDigest| verified.vouched_by.contains(owner);
    if demanded.iter().filter(has_vouched).count() >= needed {
        return Ok(());
    }
    if verified.history.len() > 1 {
        printer.warning(&format!(
            "pods wait for a workload owner to vouch for this deployment, which has {} manifests: look at them \
             (`contrast history`), then run `contrast vouch`",
            verified.history.len()
        ));
        return Ok(());
    }
    if !key_file.exists() {
        printer.warning(&format!(
            "pods wait for a workload owner to vouch for this deployment, and {} is not here: run `contrast vouch`",
            key_file.display()
        ));
        return Ok(());
    }
    let voucher = sign(key_file, &keys::root_voucher(&root_key(verified)?))?;
    let owner = KeyDigest::of(&voucher.public_key);
    if !demanded.contains(&owner) {
        return Err(Refused(format!(
            "the manifest is set, but {} is not a key whose word the pods demand: run `contrast vouch` with one that is",
            key_file.display()
        ))
        .into());
    }
    session.vouch(voucher).await.map_err(failed)?;
    printer.note(&format!("Vouched for the deployment with {}", key_file.display()));
    if needed > 1 {
        printer.note(&format!("Pods wait until {needed} owners have vouched: `contrast vouch`"));
    }
    Ok(())
}
