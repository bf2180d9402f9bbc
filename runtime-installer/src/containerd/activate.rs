//! Changing containerd's configuration and living with the result, or going back.
//!
//! Write, restart, wait until containerd answers with what was wanted; otherwise write the old text, restart, wait.
//! Each step is recorded before it begins (`state.rs`): the restart may end this very process, and the next one goes
//! on from the record. A change that had to be rolled back is not tried again by itself, so a node never restarts
//! containerd in a loop.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    cri::{Cri, CriError, Health},
    restart::{Restart, RestartError},
    target::{TargetError, read_text},
};
use crate::{
    host::Host,
    state::{Change, Failure, Phase, StateFile},
};

const POLL: Duration = Duration::from_millis(200);
/// Restarts with a new file, over all runs.
const NEW_RESTARTS: u32 = 2;
/// Restarts with either file, over all runs.
const ALL_RESTARTS: u32 = 4;

/// How a change is carried out.
#[derive(Debug)]
pub struct Activation<'a> {
    /// The node.
    pub host: &'a Host,
    /// Asks containerd.
    pub cri: &'a Cri,
    /// Restarts it.
    pub restart: &'a Restart,
    /// How long containerd may take to come up, and the restart to end.
    pub patience: Duration,
}

/// Why a change is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// It was not well before anything was changed.
    #[error("{0}; nothing was changed")]
    NotWell(#[source] CriError),
    /// The node is as before.
    #[error(
        "containerd did not come up with {path}: {reason}. The file of before is back and containerd runs with it. \
         This runtime is not tried again until the installer is run with --retry"
    )]
    RolledBack {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The old file is back, but containerd does not come up with it either.
    #[error(
        "containerd did not come up with {path}: {reason}. The file of before is back, but containerd does not come up \
         with that one either: {still}. Look at its log on the node"
    )]
    Down {
        /// The file.
        path: PathBuf,
        /// What was wrong with the new one.
        reason: String,
        /// What is wrong now.
        still: String,
    },
    /// The file.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Writing.
    #[error("cannot write {path} on the node: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The record of what is being done.
    #[error("cannot record what is being done: {0}")]
    State(#[from] std::io::Error),
}

impl Activation<'_> {
    /// How containerd is now; `None` if it is not to be restarted, and so not to be asked.
    pub fn health(&self) -> Result<Option<Health>, ActivationError> {
        match self.restart {
            Restart::Never => Ok(None),
            _ => self.cri.health().map(Some).map_err(ActivationError::NotWell),
        }
    }

    /// Carries out `change`.
    pub fn change(&self, file: &mut StateFile<'_>, change: Change) -> Result<(), ActivationError> {
        file.state.pending = Some(change);
        file.save()?;
        self.settle(file)
    }

    /// Finishes what is pending: a new change, or one during which an earlier run ended.
    pub fn settle(&self, file: &mut StateFile<'_>) -> Result<(), ActivationError> {
        self.resume(file)?;
        while let Some(change) = file.state.pending.clone() {
            match change.phase {
                Phase::Write => self.write_new(file, &change)?,
                Phase::Wait => self.wait_for_new(file, &change)?,
                Phase::RollBack => self.write_old(file, &change)?,
                Phase::WaitForOld => return self.wait_for_old(file, &change),
            }
        }
        Ok(())
    }

    /// Where an earlier run ended while it waited: nobody knows whether its restart has happened.
    fn resume(&self, file: &mut StateFile<'_>) -> Result<(), ActivationError> {
        let Some(change) = file.state.pending.clone() else { return Ok(()) };
        let (again, most, wanted) = match change.phase {
            Phase::Wait => (Phase::Write, NEW_RESTARTS, change.clone()),
            Phase::WaitForOld => (Phase::RollBack, ALL_RESTARTS, opposite(&change)),
            Phase::Write | Phase::RollBack => return Ok(()),
        };
        let deadline = Instant::now() + self.patience;
        while self.well(&wanted).is_err() {
            let up = self.cri.health().is_ok_and(|health| health.ready);
            if up || Instant::now() >= deadline {
                if change.restarts < most {
                    go_on(file, again, &change.reason)?;
                }
                break;
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn write_new(&self, file: &mut StateFile<'_>, change: &Change) -> Result<(), ActivationError> {
        let now = read_text(self.host, &change.path)?;
        if now != change.before && now != change.after {
            // Somebody else wrote the file since: the caller starts again from what is there.
            return Ok(done(file)?);
        }
        self.write(change, change.after.as_deref())?;
        if *self.restart == Restart::Never || self.well(change).is_ok() {
            return Ok(done(file)?);
        }
        go_on(file, Phase::Wait, "")?;
        tracing::info!(how = ?self.restart, "restarting containerd");
        self.restart
            .run(self.host, self.patience)
            .or_else(|error| go_on(file, Phase::RollBack, &error.to_string()))?;
        Ok(())
    }

    fn wait_for_new(&self, file: &mut StateFile<'_>, change: &Change) -> Result<(), ActivationError> {
        match self.until_well(change) {
            Ok(()) => Ok(done(file)?),
            Err(reason) => Ok(go_on(file, Phase::RollBack, &reason)?),
        }
    }

    fn write_old(&self, file: &mut StateFile<'_>, change: &Change) -> Result<(), ActivationError> {
        tracing::warn!(reason = change.reason, "rolling containerd's configuration back");
        let now = read_text(self.host, &change.path)?;
        if now == change.after {
            self.write(change, change.before.as_deref())?;
        }
        go_on(file, Phase::WaitForOld, &change.reason)?;
        if let Err(RestartError::Command { reason, .. }) = self.restart.run(self.host, self.patience) {
            tracing::error!(reason, "the restart with the old configuration failed");
        }
        Ok(())
    }

    fn wait_for_old(&self, file: &mut StateFile<'_>, change: &Change) -> Result<(), ActivationError> {
        let well = self.until_well(&opposite(change));
        let (path, reason) = (change.path.clone(), change.reason.clone());
        file.state.failed = Some(Failure { handler: change.handler.clone(), reason: reason.clone() });
        done(file)?;
        match well {
            Ok(()) => Err(ActivationError::RolledBack { path, reason }),
            Err(still) => Err(ActivationError::Down { path, reason, still }),
        }
    }

    fn write(&self, change: &Change, text: Option<&str>) -> Result<(), ActivationError> {
        if read_text(self.host, &change.path)?.as_deref() == text {
            return Ok(());
        }
        let written = match text {
            Some(text) => self.host.replace(&change.path, text.as_bytes()),
            None => self.host.remove(&change.path),
        };
        written.map_err(|source| ActivationError::Write { path: change.path.clone(), source })
    }

    fn until_well(&self, change: &Change) -> Result<(), String> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.well(change) {
                Ok(()) => return Ok(()),
                Err(reason) if Instant::now() >= deadline => return Err(reason),
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// Whether containerd runs as the change wants it, and lost nothing else.
    fn well(&self, change: &Change) -> Result<(), String> {
        let health = self.cri.health().map_err(|error| error.to_string())?;
        if !health.ready {
            return Err("containerd answers, but says that it cannot run containers".into());
        }
        match (health.handlers.contains_key(&change.handler), change.present) {
            (true, true) | (false, false) => {}
            (false, true) => return Err(format!("containerd runs without the handler {}", change.handler)),
            (true, false) => return Err(format!("containerd still has the handler {}", change.handler)),
        }
        let lost = change.others.iter().find(|(name, kind)| health.handlers.get(*name) != Some(*kind));
        match lost {
            Some((name, kind)) => Err(format!("containerd lost the handler {name} of type {kind}")),
            None => Ok(()),
        }
    }
}

/// What is wanted when a change is taken back.
fn opposite(change: &Change) -> Change {
    Change { present: !change.present, ..change.clone() }
}

fn go_on(file: &mut StateFile<'_>, phase: Phase, reason: &str) -> std::io::Result<()> {
    if let Some(change) = &mut file.state.pending {
        change.phase = phase;
        change.restarts += u32::from(matches!(phase, Phase::Wait | Phase::WaitForOld));
        reason.clone_into(&mut change.reason);
    }
    file.save()
}

fn done(file: &mut StateFile<'_>) -> std::io::Result<()> {
    file.state.pending = None;
    file.save()
}

/// Handlers other than `name`.
pub fn others(health: Option<&Health>, name: &str) -> std::collections::BTreeMap<String, String> {
    let handlers = health.map(|health| health.handlers.clone()).unwrap_or_default();
    handlers.into_iter().filter(|(other, _)| other != name).collect()
}

/// Folder of a path on the node.
pub fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
