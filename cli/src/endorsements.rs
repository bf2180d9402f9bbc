//! `contrast endorsements`, and the cache that every verifying command uses.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use anyhow::Context as _;
use clap::Subcommand;
use endorsements::{EndorsementOptions, Endorsements, Reach};
use program::now;
use serde::Serialize;

use crate::{
    evidence::document::Document,
    files::read,
    printer::{Printer, Refused},
    whole_file::replace,
};

/// Opens the cache on first use; most commands need none.
pub(crate) struct Cache {
    options: EndorsementOptions,
    opened: OnceLock<Arc<Endorsements>>,
}

static CACHE: OnceLock<Cache> = OnceLock::new();

impl Cache {
    /// Sets the options, once, at the start.
    pub(crate) fn with(options: EndorsementOptions) -> &'static Self {
        CACHE.get_or_init(|| Self { options, opened: OnceLock::new() })
    }

    /// The one that was set, or one with the defaults.
    pub(crate) fn current() -> &'static Self {
        Self::with(EndorsementOptions::default())
    }

    /// The endorsements, in `$XDG_CACHE_HOME/contrast/endorsements` unless another place was given.
    pub(crate) fn open(&self) -> anyhow::Result<Arc<Endorsements>> {
        if let Some(opened) = self.opened.get() {
            return Ok(Arc::clone(opened));
        }
        let opened = self.options.open(default_directory()).context("cannot open the endorsement cache")?;
        Ok(Arc::clone(self.opened.get_or_init(|| Arc::new(opened))))
    }
}

fn default_directory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("contrast/endorsements"))
}

/// Carry what AMD and Intel sign about their hardware to where no network is, and see when it expires.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch what some evidence needs, into the cache.
    Fetch {
        /// Files with evidence, as `contrast explain` reads them.
        #[arg(required = true)]
        evidence: Vec<PathBuf>,
    },
    /// Fetch anew what is past half of its life.
    Refresh,
    /// Write everything in the cache to a file.
    Export {
        /// The file.
        bundle: PathBuf,
    },
    /// Verify the endorsements in a file and take them into the cache.
    Import {
        /// A file that `export` wrote.
        bundle: PathBuf,
    },
    /// Show what is in the cache, and when it expires.
    Status,
}

pub(crate) async fn run(args: Args, cache: &'static Cache, printer: &Printer) -> anyhow::Result<()> {
    let endorsements = cache.open()?;
    // What asks the network may wait.
    match args.command {
        Command::Fetch { evidence } => fetch(&evidence, &endorsements, printer).await,
        Command::Refresh => {
            let refreshed = tokio::task::spawn_blocking({
                let endorsements = Arc::clone(&endorsements);
                move || endorsements.refresh(now())
            })
            .await?;
            let renewed: Vec<String> = refreshed.renewed.iter().map(ToString::to_string).collect();
            let failed = refreshed.failed;
            let text = format!(
                "Renewed: {}",
                if renewed.is_empty() { "nothing".into() } else { renewed.join(", ") }
            );
            printer.result(&text, &serde_json::json!({ "renewed": renewed, "failed": failed }))?;
            if failed.is_empty() { Ok(()) } else { anyhow::bail!("not renewed: {}", failed.join("; ")) }
        }
        Command::Export { bundle } => {
            let count = endorsements.entries().len();
            if count == 0 {
                return Err(Refused(
                    "the cache is empty, so nothing was written: `contrast endorsements fetch EVIDENCE` fills it, with evidence \
                     of the machines that the bundle is for"
                        .into(),
                )
                .into());
            }
            replace(&bundle, &endorsements.export()?)?;
            let text = format!("{count} endorsements written to {}", bundle.display());
            printer.result(&text, &serde_json::json!({ "exported": count, "file": bundle }))
        }
        Command::Import { bundle } => {
            let bytes = read(&bundle)?;
            let report = endorsements.import(&bytes).with_context(|| bundle.display().to_string())?;
            let imported: Vec<String> = report.imported.iter().map(ToString::to_string).collect();
            let mut text =
                format!("{} imported, {} known in a newer form", imported.len(), report.older.len());
            for line in report.older.iter().chain(&report.refused) {
                let _ = write!(text, "\n  {line}");
            }
            let (older, refused) = (&report.older, &report.refused);
            printer.result(
                &text,
                &serde_json::json!({ "imported": imported, "older": older, "refused": refused }),
            )?;
            match report.refused.len() {
                0 => Ok(()),
                count => Err(Refused(format!("{count} endorsements were refused")).into()),
            }
        }
        Command::Status => status(&endorsements, printer),
    }
}

async fn fetch(files: &[PathBuf], endorsements: &Arc<Endorsements>, printer: &Printer) -> anyhow::Result<()> {
    let known = endorsements.entries().len();
    let mut lacking = Vec::new();
    for file in files {
        let evidence = Document::read(file, None)?.evidence;
        let step = printer.step(&file.display().to_string());
        let shared = Arc::clone(endorsements);
        let complete = move || shared.complete(evidence, now(), Reach::Network);
        let completed = tokio::task::spawn_blocking(complete).await?;
        step.done(if completed.lacking.is_empty() { "complete" } else { "something is missing" });
        lacking.extend(completed.lacking);
    }
    let fetched = endorsements.entries().len() - known;
    let text = format!("{fetched} endorsements fetched");
    printer.result(&text, &serde_json::json!({ "fetched": fetched, "lacking": lacking }))?;
    if lacking.is_empty() { Ok(()) } else { anyhow::bail!("not to be had: {}", lacking.join(", ")) }
}

#[derive(Serialize)]
struct Row {
    name: String,
    number: Option<u64>,
    expires: Option<String>,
    days_left: Option<i64>,
    expired: bool,
}

fn status(endorsements: &Endorsements, printer: &Printer) -> anyhow::Result<()> {
    let at = now();
    let days = |until: manifest::Timestamp| {
        let seconds = |at: manifest::Timestamp| i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
        (seconds(until) - seconds(at)).div_euclid(24 * 3600)
    };
    let row = |(name, entry): (&endorsements::Name, &endorsements::Entry)| Row {
        name: name.to_string(),
        number: entry.validity.map(|validity| validity.number),
        expires: entry.validity.map(|validity| validity.next_update.to_string()),
        days_left: entry.validity.map(|validity| days(validity.next_update)),
        expired: entry.validity.is_some_and(|validity| validity.next_update <= at),
    };
    let rows: Vec<Row> = endorsements.entries().iter().map(row).collect();
    let mut text = String::new();
    if rows.is_empty() {
        text.push_str("The cache is empty. `contrast endorsements fetch EVIDENCE` fills it, `import` too.");
    }
    for Row { name, expires, days_left, expired, .. } in &rows {
        let _ = match (expires, days_left) {
            (Some(expires), _) if *expired => {
                writeln!(text, "{} {name}  expired {expires}", printer.bad("✘"))
            }
            (Some(expires), Some(days)) => {
                writeln!(text, "{} {name}  expires {expires}, in {days} days", printer.good("✔"))
            }
            _ => writeln!(text, "{} {name}  does not expire here", printer.good("✔")),
        };
    }
    printer.result(&text, &rows)?;
    match rows.iter().filter(|row| row.expired).count() {
        0 => Ok(()),
        count => Err(Refused(format!("{count} endorsements have expired")).into()),
    }
}
