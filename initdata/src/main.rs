//! `initdata`: exit codes 0 done, 1 refused, 2 broken. The guest must not go on unless it is 0.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use initdata::{Document, device};
use manifest::PolicyHash;
use program::{EvidenceOptions, LogOptions};

/// The document as it came, among the files.
const WHOLE: &str = "initdata.toml";

/// Takes the policy that the host attached to this guest, if it is the one that the hardware measured at the start.
///
/// Looks for the one disk that begins with "initdata", unpacks its document, compares its SHA-256 with HOSTDATA (SNP) or
/// MRCONFIGID (TDX), and writes the files in it where the agent reads them. The disk's node is removed then: the host
/// can change what is on it, and nothing may read it again.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Folder with the nodes of disks.
    #[arg(long, default_value = "/dev", value_name = "DIR")]
    devices: PathBuf,
    /// Where files go; it must be there, in memory.
    #[arg(long, default_value = "/run/confidential-containers/initdata", value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    evidence: EvidenceOptions,
    #[command(flatten)]
    log: LogOptions,
}

/// The host attached something else than what it started the guest for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn main() -> ExitCode {
    let options = Options::parse();
    options.log.init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "initdata: {error:#}");
            ExitCode::from(if error.is::<Refused>() { 1 } else { 2 })
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let measured = options.evidence.policy()?;
    let (disk, bytes) = device::find(&options.devices).map_err(|error| Refused(error.to_string()))?;
    let found = PolicyHash::of(&bytes);
    if found != measured {
        let text = format!(
            "{}: the document there has SHA-256 {found}, and this guest was started for {measured}: the host attached another",
            disk.display()
        );
        return Err(Refused(text).into());
    }
    let document =
        Document::parse(&bytes).map_err(|error| Refused(format!("{}: {error}", disk.display())))?;
    for (name, text) in &document.files {
        write(&options.directory, name, text.as_bytes())?;
    }
    write(&options.directory, WHOLE, &bytes)?;
    fs::remove_file(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
    let files: Vec<&str> = document.files.keys().map(String::as_str).collect();
    tracing::info!(policy = %found, disk = %disk.display(), files = files.join(", "), "the policy is the measured one");
    Ok(())
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = directory.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
