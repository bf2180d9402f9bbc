//! The initializer as a child of the mesh, in the same container.
//!
//! The kubelet starts one container after the other and looks once a second whether it may: a container less is a
//! second less for every pod. The packet filter stands before the child starts. The child stays, and renews the
//! certificate before it expires and when the mesh asks.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::Context as _;
use tokio::process::{Child, Command};

/// Before an initializer that ended is started again.
const PAUSE: Duration = Duration::from_secs(5);

/// It ended before there was a certificate.
#[derive(Debug, thiserror::Error)]
#[error("the initializer ended without a certificate ({0}); its own messages say why")]
pub(crate) struct Ended(ExitStatus);

impl Ended {
    /// What the container's exit code tells: the initializer's own.
    pub(crate) fn exit_code(&self) -> u8 {
        self.0.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(2)
    }
}

/// A running initializer; it ends with this.
pub(crate) struct Initializer {
    program: PathBuf,
    child: Child,
}

impl Initializer {
    /// Its options come by the environment, which it shares with the mesh.
    pub(crate) fn start(program: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        let child = command.arg("--sidecar").kill_on_drop(true).spawn();
        let child = child.with_context(|| format!("cannot start the initializer {}", program.display()))?;
        Ok(Self { program: program.to_owned(), child })
    }

    /// Returns when it has ended.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => Ended(status).into(),
            Err(error) => anyhow::Error::from(error).context("cannot wait for the initializer"),
        }
    }

    /// Starts it again whenever it ends, for ever: the mesh goes on with the certificate that it has.
    pub(crate) async fn keep(mut self) {
        loop {
            let error = self.ended().await;
            tracing::error!("{error:#}; starting it again in {PAUSE:?}");
            tokio::time::sleep(PAUSE).await;
            match Self::start(&self.program) {
                Ok(next) => self = next,
                Err(error) => tracing::error!("{error:#}"), // what ended has ended still
            }
        }
    }
}
