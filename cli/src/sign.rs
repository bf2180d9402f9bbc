//! `contrast sign`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use manifest::TransitionHash;
use serde_json::json;

use crate::{
    files::read_manifest,
    key_file::read_key,
    printer::Printer,
    transition::{latest_transition, transition_after},
    usage::out_file,
    whole_file::replace,
};

/// Sign a manifest change as a workload owner, without a Coordinator: for keys that are kept offline.
///
/// What is signed is the transition: the hash of the new manifest and of the whole history before it. The
/// signature permits this one change and no other.
#[derive(Debug, clap::Args)]
#[command(after_help = "With a key in an HSM, between --prepare and `contrast set --signature`:
  \
    openssl dgst -sha256 -sign pkcs11:... -out signature.der transition.hex")]
pub(crate) struct Args {
    /// The new manifest.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// The transition in force, 64 hex digits. By default what `contrast verify` wrote to
    /// `verify/latest-transition`; if that file does not exist, the manifest is signed as the first one.
    #[arg(long, value_name = "HEX")]
    latest_transition: Option<TransitionHash>,
    /// Private key of a workload owner, P-384 or P-256, PEM.
    #[arg(long, default_value = "workload-owner.pem", conflicts_with = "prepare")]
    workload_owner_key: PathBuf,
    /// Do not sign: write the text that another signer signs (ECDSA with SHA-256).
    #[arg(long)]
    prepare: bool,
    /// Where to write; by default `signature.der`, or `transition.hex` with --prepare.
    #[arg(long, short, value_name = "FILE", value_parser = out_file)]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let latest = match args.latest_transition {
        Some(latest) => latest,
        None => latest_transition(Path::new("verify/latest-transition"))?,
    };
    let transition = transition_after(latest, &manifest);
    let text = transition.to_string();
    let (content, default) = match args.prepare {
        true => (text.clone().into_bytes(), "transition.hex"),
        false => {
            let key = read_key(&args.workload_owner_key)?;
            let signature = keys::sign_ecdsa_sha256(&key, text.as_bytes())
                .with_context(|| args.workload_owner_key.display().to_string())?;
            (signature, "signature.der")
        }
    };
    let out = args.out.unwrap_or_else(|| default.into());
    replace(&out, &content)?;
    let what = if args.prepare { "To be signed" } else { "Signed" };
    let said = format!(
        "{what}: transition {transition}\n  after: {latest}\n  manifest: {}\n  file: {}",
        manifest.hash(),
        out.display()
    );
    let value =
        json!({ "transition": transition, "after": latest, "manifest": manifest.hash(), "file": out });
    printer.result(&said, &value)
}
