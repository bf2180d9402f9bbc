//! `contrast proposals`: manifest changes that several workload owners must sign.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use coordinator_client::{Attested, ShownHistory};
use manifest::{KeyDigest, Manifest, ManifestDiff, PolicyHash, Timestamp, TransitionHash};
use serde::Serialize;
use wire::proposals::{
    ApproveRequest, ListRequest, Proposal, ProposalStatus, ProposeRequest, WithdrawRequest,
};
use zeroize::Zeroizing;

use crate::{
    client::{attested, failed, failure},
    files::{read, read_manifest},
    history::changes,
    key_file::read_key,
    printer::{Printer, Refused, folded},
    remembered::{self, Memory},
    set::{keep_absent, read_policies},
    transition::transition_after,
};

/// Propose, inspect and sign manifest changes that several workload owners must agree on.
///
/// Every signature is over a transition that this program computes itself, from the proposed manifest and
/// the history that the attested Coordinator shows.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Propose a manifest.
    Propose {
        /// The proposed manifest.
        #[arg(long)]
        next: PathBuf,
        /// Directory with the policy documents that it names.
        #[arg(long, default_value = "policies")]
        policies: PathBuf,
        #[command(flatten)]
        signer: Signer,
        #[command(flatten)]
        at: At,
    },
    /// What waits for signatures, and who signed.
    List {
        #[command(flatten)]
        at: At,
    },
    /// What a proposal would change.
    Show {
        /// The beginning of its transition.
        proposal: String,
        /// Write its manifest and policies to this directory.
        #[arg(long, value_name = "DIR")]
        save: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
    /// Sign a proposal. The last signature needed sets the manifest.
    Approve {
        /// The beginning of its transition.
        proposal: String,
        #[command(flatten)]
        signer: Signer,
        #[command(flatten)]
        at: At,
    },
    /// Withdraw a proposal, as any workload owner.
    Withdraw {
        /// The beginning of its transition.
        proposal: String,
        /// Private key of a workload owner, PEM.
        #[arg(long, default_value = "workload-owner.pem")]
        workload_owner_key: PathBuf,
        #[command(flatten)]
        at: At,
    },
}

/// Which Coordinator.
#[derive(Debug, clap::Args)]
struct At {
    /// The Coordinator, as host:port.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The manifest in force: the Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    #[command(flatten)]
    memory: Memory,
}

/// Whose signature.
#[derive(Debug, clap::Args)]
struct Signer {
    /// Private key of a workload owner, PEM.
    #[arg(long, default_value = "workload-owner.pem")]
    workload_owner_key: PathBuf,
    /// A signature that was made elsewhere (see `contrast sign --help`), instead of a key.
    #[arg(long, value_name = "FILE", conflicts_with = "workload_owner_key")]
    signature: Option<PathBuf>,
}

impl Signer {
    fn sign(&self, transition: &TransitionHash) -> anyhow::Result<Vec<u8>> {
        match &self.signature {
            Some(path) => read(path),
            None => {
                let key = read_key(&self.workload_owner_key)?;
                let path = || self.workload_owner_key.display().to_string();
                keys::sign_ecdsa_sha256(&key, transition.to_string().as_bytes()).with_context(path)
            }
        }
    }
}

/// A verified Coordinator, and what is in force there.
struct Session {
    coordinator: Attested,
    shown: ShownHistory,
    latest: TransitionHash,
    current: Manifest,
}

impl At {
    async fn open(&self, key: Option<&Zeroizing<String>>) -> anyhow::Result<Session> {
        let manifest = read_manifest(&self.manifest)?;
        let coordinator = attested(&self.coordinator, &manifest, key).await?;
        remembered::check(&coordinator, &self.memory.path(&self.manifest)).await?;
        let shown = coordinator.history().await.map_err(failed)?;
        let current = Manifest::parse(shown.manifests.last().context("no manifest configured")?)?;
        Ok(Session { coordinator, latest: shown.latest(), shown, current })
    }
}

impl Session {
    /// The proposals, each checked to be what its name says, and how many signatures one needs.
    async fn list(&self) -> anyhow::Result<(Vec<(Proposal, Manifest)>, u32)> {
        let answer = self.coordinator.proposals().list(ListRequest {}).await.map_err(failure)?.into_inner();
        let mut checked = Vec::with_capacity(answer.proposals.len());
        for proposal in answer.proposals {
            let manifest = Manifest::parse(&proposal.manifest).context("a proposal")?;
            let computed = transition_after(self.latest, &manifest);
            if computed.as_bytes().as_slice() != proposal.transition {
                bail!(Refused(format!(
                    "the Coordinator shows a proposal under another name than its own, {computed}"
                )));
            }
            checked.push((proposal, manifest));
        }
        Ok((checked, answer.needed))
    }

    async fn find(&self, prefix: &str) -> anyhow::Result<(Proposal, Manifest)> {
        let (proposals, _) = self.list().await?;
        let mut found = proposals.into_iter().filter(|(p, _)| hex::encode(&p.transition).starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => bail!(Refused(format!("no proposal begins with {prefix}"))),
            (Some(_), Some(_)) => bail!("more than one proposal begins with {prefix}: give more digits"),
        }
    }
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Propose { next, policies, signer, at } => {
            let session = at.open(None).await?;
            let manifest = read_manifest(&next)?;
            let signature = signer.sign(&transition_after(session.latest, &manifest))?;
            let mut policies = read_policies(&policies)?;
            keep_absent(&manifest, &mut policies, Some(&session.shown))?;
            let request = ProposeRequest { manifest: manifest.bytes().to_vec(), policies, signature };
            let answer = session.coordinator.proposals().propose(request).await.map_err(failure)?;
            report(&answer.into_inner(), printer)
        }
        Command::List { at } => list(&at.open(None).await?, printer).await,
        Command::Show { proposal, save, at } => {
            let session = at.open(None).await?;
            let (proposal, manifest) = session.find(&proposal).await?;
            if let Some(directory) = &save {
                store(directory, &proposal)?;
            }
            show(&session, &proposal, &manifest, printer)
        }
        Command::Approve { proposal, signer, at } => {
            let session = at.open(None).await?;
            let (_, manifest) = session.find(&proposal).await?;
            let transition = transition_after(session.latest, &manifest);
            let signature = signer.sign(&transition)?;
            let request = ApproveRequest { transition: transition.as_bytes().to_vec(), signature };
            let answer = session.coordinator.proposals().approve(request).await.map_err(failure)?;
            report(&answer.into_inner(), printer)
        }
        Command::Withdraw { proposal, workload_owner_key, at } => {
            let session = at.open(Some(&read_key(&workload_owner_key)?)).await?;
            let (proposal, _) = session.find(&proposal).await?;
            let name = hex::encode(&proposal.transition);
            let request = WithdrawRequest { transition: proposal.transition };
            session.coordinator.proposals().withdraw(request).await.map_err(failure)?;
            printer.result(&format!("Withdrawn: {name}"), &serde_json::json!({ "withdrawn": name }))
        }
    }
}

fn digests(signed: &[Vec<u8>]) -> anyhow::Result<Vec<KeyDigest>> {
    signed.iter().map(|owner| Ok(KeyDigest::try_from(owner.as_slice())?)).collect()
}

fn report(status: &ProposalStatus, printer: &Printer) -> anyhow::Result<()> {
    let transition = TransitionHash::try_from(status.transition.as_slice())?;
    let signed = digests(&status.signed)?;
    let text = match status.set {
        true => format!("Manifest set: transition {transition}"),
        false => format!(
            "Waiting: {} of {} signatures\n  proposal: {transition}\n  signed by: {}",
            signed.len(),
            status.needed,
            signed.iter().map(|owner| format!("{owner:.16}…")).collect::<Vec<_>>().join(", ")
        ),
    };
    let value = serde_json::json!({
        "transition": transition, "set": status.set, "signed": signed, "needed": status.needed
    });
    printer.result(&text, &value)
}

async fn list(session: &Session, printer: &Printer) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Row {
        transition: TransitionHash,
        #[serde(serialize_with = "crate::printer::rfc3339")]
        at: Timestamp,
        signed: Vec<KeyDigest>,
        needed: u32,
        changes: String,
    }
    let (proposals, needed) = session.list().await?;
    let mut rows = Vec::with_capacity(proposals.len());
    for (proposal, manifest) in &proposals {
        rows.push(Row {
            transition: TransitionHash::try_from(proposal.transition.as_slice())?,
            at: Timestamp::from_millis(proposal.at),
            signed: digests(&proposal.signed)?,
            needed,
            changes: ManifestDiff::between(session.current.body(), manifest.body()).to_string(),
        });
    }
    let mut text = format!("{:<16}  {:<24}  {:<6}  CHANGES\n", "PROPOSAL", "TIME", "SIGNED");
    for Row { transition, at, signed, changes, .. } in &rows {
        let count = format!("{}/{needed}", signed.len());
        text += &folded(&format!("{transition:.16}  {at:<24}  {count:<6}  "), changes);
    }
    if rows.is_empty() {
        "No proposal waits for signatures.".clone_into(&mut text);
    }
    printer.paged(&text, &rows)
}

fn show(
    session: &Session,
    proposal: &Proposal,
    manifest: &Manifest,
    printer: &Printer,
) -> anyhow::Result<()> {
    let diff = ManifestDiff::between(session.current.body(), manifest.body());
    let name = hex::encode(&proposal.transition);
    let text = format!("proposal {name}\nmanifest {}\n{diff}\n{}", manifest.hash(), changes(&diff));
    let value = serde_json::json!({
        "transition": name, "manifest": manifest.hash(), "signed": digests(&proposal.signed)?,
        "summary": diff.to_string(), "workloads": diff.workloads, "values": diff.values,
    });
    printer.paged(&text, &value)
}

fn store(directory: &Path, proposal: &Proposal) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory.join("policies"))
        .with_context(|| format!("cannot create {}", directory.display()))?;
    ensure!(!directory.join("manifest.json").exists(), "{} holds a manifest already", directory.display());
    std::fs::write(directory.join("manifest.json"), &proposal.manifest)?;
    for policy in &proposal.policies {
        let name = format!("policies/initdata.{}.toml", PolicyHash::of(policy));
        std::fs::write(directory.join(name), policy)?;
    }
    Ok(())
}
