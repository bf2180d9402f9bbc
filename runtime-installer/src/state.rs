//! What this program did to the node, and what it is in the middle of doing.
//!
//! One file beside the runtimes, written before and after each step, so that a run that was killed anywhere can be
//! finished or undone by the next one. It goes with the last runtime.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use runtime_bundle::{HandlerName, INSTALL_DIRECTORY};
use serde::{Deserialize, Serialize};

use crate::host::Host;

const MAX_STATE_BYTES: usize = 32 << 20;

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Folders that were not there before, outermost first.
    pub made_folders: Vec<PathBuf>,
    /// Runtimes that are installed, by handler.
    pub runtimes: BTreeMap<String, Installed>,
    /// A change of containerd's configuration that is not settled yet.
    pub pending: Option<Change>,
    /// The last change that was rolled back.
    pub failed: Option<Failure>,
}

/// An installed runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Its platform's name.
    pub platform: String,
    /// Version of this program.
    pub installer: String,
    /// Hash over the whole directory.
    pub tree: String,
    /// The file with its entry; none until containerd runs with it.
    pub config: Option<PathBuf>,
}

/// A change of containerd's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Whose entry.
    pub handler: String,
    /// Whether the entry is to be there afterwards.
    pub present: bool,
    /// The file.
    pub path: PathBuf,
    /// Its text before; `None` if it was not there.
    pub before: Option<String>,
    /// Its text afterwards.
    pub after: Option<String>,
    /// Handlers and their types that must still be there.
    pub others: BTreeMap<String, String>,
    /// How far it is.
    pub phase: Phase,
    /// Restarts ordered so far. A restart may end this program before it has happened, or because it did: so it is
    /// ordered again by the next run, but not for ever.
    pub restarts: u32,
    /// Why it is being rolled back.
    pub reason: String,
}

/// How far a change is. Each is recorded before its step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Write the file and restart.
    Write,
    /// A restart was ordered: wait for containerd with the new file.
    Wait,
    /// Write the old file and restart.
    RollBack,
    /// A restart was ordered: wait for containerd with the old file.
    WaitForOld,
}

/// A change that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose.
    pub handler: String,
    /// Why.
    pub reason: String,
}

/// The state and its file.
#[derive(Debug)]
pub struct StateFile<'a> {
    host: &'a Host,
    /// What is to be saved.
    pub state: State,
}

fn path() -> PathBuf {
    Path::new(INSTALL_DIRECTORY).join(".contrast-runtime-installer.json")
}

/// A run that was killed before its first record may have left an empty folder.
fn half_made(host: &Host) -> io::Result<Vec<PathBuf>> {
    host.tidy(&path())?;
    let entries = std::fs::read_dir(host.resolve(Path::new(INSTALL_DIRECTORY))?);
    let empty = entries.is_ok_and(|mut entries| entries.next().is_none());
    Ok(if empty { vec![INSTALL_DIRECTORY.into()] } else { Vec::new() })
}

impl<'a> StateFile<'a> {
    /// Reads the state; none means a node that was never touched.
    pub fn open(host: &'a Host) -> io::Result<Self> {
        let state = match host.read(&path(), MAX_STATE_BYTES)? {
            None => State { made_folders: half_made(host)?, ..State::default() },
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let what = format!("{}: {error}; it was changed by somebody else", path().display());
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?,
        };
        Ok(Self { host, state })
    }

    /// Makes the state durable.
    pub fn save(&mut self) -> io::Result<()> {
        self.host.tidy(&path())?;
        self.state.made_folders.extend(self.host.missing_folders(Path::new(INSTALL_DIRECTORY))?);
        self.host.make_folder(Path::new(INSTALL_DIRECTORY))?;
        let bytes = serde_json::to_vec_pretty(&self.state)?;
        self.host.replace(&path(), &bytes)
    }

    /// Makes a folder, after recording that it was not there.
    pub fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
        let missing = self.host.missing_folders(folder)?;
        if !missing.is_empty() {
            self.state.made_folders.extend(missing);
            self.save()?;
            self.host.make_folder(folder)?;
        }
        Ok(())
    }

    /// Saves; after the last runtime was removed, takes away the file and the folders that were made.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.state.runtimes.is_empty() || self.state.pending.is_some() {
            return self.save();
        }
        self.host.remove(&path())?;
        while let Some(folder) = self.state.made_folders.pop() {
            let here = self.host.resolve(&folder)?;
            match std::fs::remove_dir(&here) {
                // Somebody else uses it by now, or removed it.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The runtimes that are installed.
    pub fn handlers(&self) -> Vec<HandlerName> {
        self.state.runtimes.keys().filter_map(|name| name.parse().ok()).collect()
    }
}
