//! The checkpoint that was seen last: what detects that a Coordinator shows a past or another
//! history.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coordinator_client::{Attested, Session};
use storage_schema::{
    Checkpoint, Head, LogId, StreamId,
    merkle::{Hash, verify_consistency},
    open_signed_head,
};
use wire::history::HeadResponse;

use crate::{client::failed, files::read, printer::Refused, whole_file::replace};

/// Where the checkpoint is kept.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Memory {
    /// Where the last checkpoint that was seen is kept: a later Coordinator must extend it. By
    /// default `checkpoint.note` beside the manifest.
    #[arg(long, env = "CONTRAST_CHECKPOINT", value_name = "FILE")]
    checkpoint: Option<PathBuf>,
}

impl Memory {
    /// The file, for a deployment whose manifest is at `manifest`.
    pub(crate) fn path(&self, manifest: &Path) -> PathBuf {
        self.checkpoint.clone().unwrap_or_else(|| manifest.with_file_name("checkpoint.note"))
    }
}

/// A log and its head, as far as they are known to be genuine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    pub(crate) log: LogId,
    pub(crate) head: Head,
    /// The head as a signed note; empty if the Coordinator waits for its seed.
    pub(crate) note: String,
    /// Events of the checkpoint that was remembered and that it extends; `None` on the first contact.
    pub(crate) extends: Option<u64>,
}

/// The remembered checkpoint as the signed note that it is, for the Coordinator to check; empty if none is remembered.
pub(crate) fn note(path: &Path) -> anyhow::Result<String> {
    if recall(path)?.is_none() {
        return Ok(String::new());
    }
    let text = String::from_utf8(read(path)?).with_context(|| path.display().to_string())?;
    Ok(text.split_once("\n\n").map(|(_, note)| note.to_owned()).unwrap_or_default())
}

/// Reads the remembered checkpoint, if there is one.
pub(crate) fn recall(path: &Path) -> anyhow::Result<Option<Checkpoint>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = String::from_utf8(read(path)?).with_context(|| path.display().to_string())?;
    let (log, note) =
        text.split_once("\n\n").with_context(|| format!("{}: no blank line", path.display()))?;
    let log: LogId = log.parse().with_context(|| path.display().to_string())?;
    Ok(Some(Checkpoint::open(note, log).with_context(|| path.display().to_string())?))
}

fn remember(path: &Path, known: &Known) -> anyhow::Result<()> {
    let text = format!("{}\n\n{}", known.log, known.note);
    replace(path, text.as_bytes()).context(
        "what was seen of the Coordinator could not be remembered (--checkpoint names another file for that)",
    )
}

/// What a Coordinator shows, held against nothing: for who accepts it instead of what is remembered.
pub(crate) async fn shown(coordinator: &impl Heads) -> anyhow::Result<Known> {
    let shown = coordinator.head(0).await?.context("a log with fewer than no events")?;
    let (known, _) = open(&shown)?.ok_or_else(|| Refused("the Coordinator has no event at all".into()))?;
    Ok(known)
}

/// Remembers what a Coordinator shows in place of what was remembered before.
pub(crate) async fn begin_anew(coordinator: &impl Heads, path: &Path) -> anyhow::Result<()> {
    let known = shown(coordinator).await?;
    anyhow::ensure!(!known.note.is_empty(), "the Coordinator waits for its seed: nothing is remembered anew");
    remember(path, &known)
}

/// Something that shows heads of its control stream.
pub(crate) trait Heads {
    /// The head, with a proof that it extends `extends` events. `None`: it has fewer.
    async fn head(&self, extends: u64) -> anyhow::Result<Option<HeadResponse>>;
}

impl Heads for Attested {
    async fn head(&self, extends: u64) -> anyhow::Result<Option<HeadResponse>> {
        self.head(extends).await.map_err(failed)
    }
}

impl Heads for Session {
    async fn head(&self, extends: u64) -> anyhow::Result<Option<HeadResponse>> {
        self.head(extends).await.map_err(failed)
    }
}

/// Fetches the head of the control stream, demands that it extends the remembered one, and
/// remembers it. `None`: the Coordinator has no history yet, and none is remembered.
pub(crate) async fn check(coordinator: &impl Heads, path: &Path) -> anyhow::Result<Option<Known>> {
    let remembered = recall(path)?;
    let Some((mut known, proof)) = head(coordinator, remembered.as_ref()).await? else {
        return match remembered {
            None => Ok(None),
            Some(remembered) => Err(rolled_back(&remembered, "it has no event at all")),
        };
    };
    if let Some(remembered) = remembered {
        let is_same_log = remembered.log == known.log;
        let (old, new) = ((remembered.size, &remembered.root), (known.head.size, &known.head.root));
        if !is_same_log || !verify_consistency(old, new, &proof) {
            let what = if is_same_log {
                "a history that does not extend the remembered one"
            } else {
                "the history of another deployment: it is signed by another key"
            };
            return Err(Refused(format!(
                "the Coordinator shows {what}\n  remembered: {}\n  shown:      {}",
                line(&remembered.log, remembered.size, &remembered.root),
                line(&known.log, known.head.size, &known.head.root)
            ))
            .into());
        }
        known.extends = Some(remembered.size);
    }
    if !known.note.is_empty() {
        remember(path, &known)?;
    }
    Ok(Some(known))
}

fn line(log: &LogId, size: u64, root: &Hash) -> String {
    format!("{} events, tree head {}, log {log}", size, hex::encode(root))
}

fn rolled_back(remembered: &Checkpoint, shown: &str) -> anyhow::Error {
    let Checkpoint { log, size, root, .. } = remembered;
    let text = format!(
        "the Coordinator shows a past: {shown}\n  remembered: {}\n  its storage was rolled back, or this is \
         another Coordinator. If you restored a backup yourself, or began anew, accept what is shown by moving the \
         file of the remembered checkpoint away",
        line(log, *size, root)
    );
    Refused(text).into()
}

async fn head(
    coordinator: &impl Heads,
    remembered: Option<&Checkpoint>,
) -> anyhow::Result<Option<(Known, Vec<Hash>)>> {
    let Some(answer) = coordinator.head(remembered.map_or(0, |checkpoint| checkpoint.size)).await? else {
        let shown = coordinator.head(0).await?.context("a log with fewer than no events")?;
        let remembered = remembered.context("a log with fewer than no events")?;
        let shown = open(&shown)?.map_or("it has no event at all".to_owned(), |(known, _)| {
            line(&known.log, known.head.size, &known.head.root)
        });
        return Err(rolled_back(remembered, &shown));
    };
    open(&answer)
}

fn open(answer: &HeadResponse) -> anyhow::Result<Option<(Known, Vec<Hash>)>> {
    if answer.signed_head.is_empty() {
        return Ok(None);
    }
    let (head, key, _) = open_signed_head(&answer.signed_head, None)
        .map_err(|error| Refused(format!("the Coordinator's head is not genuine: {error}")))?;
    let log = LogId::new(key);
    if head.stream != StreamId::Control {
        return Err(Refused(format!("the Coordinator shows the head of stream {}", head.stream)).into());
    }
    if !answer.checkpoint.is_empty() {
        let checkpoint = Checkpoint::open(&answer.checkpoint, log)?;
        if (checkpoint.size, checkpoint.root, checkpoint.stream) != (head.size, head.root, head.stream) {
            return Err(Refused("the Coordinator's checkpoint is not its head".into()).into());
        }
    }
    let node =
        |node: &Vec<u8>| Hash::try_from(node.as_slice()).context("a proof with a node that is no hash");
    let proof = answer.consistency.iter().map(node).collect::<anyhow::Result<_>>()?;
    Ok(Some((Known { log, head, note: answer.checkpoint.clone(), extends: None }, proof)))
}
