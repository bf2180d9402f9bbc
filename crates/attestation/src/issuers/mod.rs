//! Evidence of the machine that this runs on.
//!
//! Linux 6.7 and newer hand it out through configfs, for both vendors in the same way; older kernels
//! have a device for SEV-SNP. Every answer comes from a hypervisor that may be hostile or slow: it is
//! bounded in size and in time, and judged by nobody here.

mod certificate_table;
mod configfs;
mod sev_guest;
mod tdx_guest;

use std::{
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

pub use certificate_table::{CertificateTable, TableError};
pub use configfs::ConfigfsTsm;
pub use sev_guest::SevGuest;
pub use tdx_guest::TdxGuest;

use crate::{IssueError, Issuer};

/// How long a platform may take to answer; firmware that is asked too often makes its guests wait
/// for seconds.
pub const ANSWER_TIME: Duration = Duration::from_secs(20);
/// Most questions that a platform may leave unanswered before it is not asked any more. Each holds
/// a thread in the kernel.
const MOST_UNANSWERED: usize = 64;

static UNANSWERED: AtomicUsize = AtomicUsize::new(0);

/// Finds the issuer for this machine. `configfs` is [`ConfigfsTsm::ROOT`] but in tests.
pub fn detect(configfs: &Path) -> Result<Box<dyn Issuer>, IssueError> {
    let tsm = ConfigfsTsm::new(configfs, ANSWER_TIME);
    if configfs.is_dir() {
        tsm.provider()?;
        return Ok(Box::new(tsm));
    }
    if SevGuest::is_present() {
        return Ok(Box::new(SevGuest));
    }
    let mut looked_for = format!("{} and {}", configfs.display(), sev_guest::DEVICE);
    if Path::new("/dev/tdx_guest").exists() {
        looked_for += "; /dev/tdx_guest is there, but quotes need Linux 6.7 or newer, with configfs mounted";
    }
    Err(IssueError::NoPlatform { looked_for })
}

/// Runs `question` on a thread of its own and waits for its answer no longer than `limit`.
fn within<T: Send + 'static>(
    limit: Duration,
    question: impl FnOnce() -> Result<T, IssueError> + Send + 'static,
) -> Result<T, IssueError> {
    let slow = || IssueError::NoAnswer { after: limit };
    if UNANSWERED.fetch_add(1, Ordering::Relaxed) >= MOST_UNANSWERED {
        UNANSWERED.fetch_sub(1, Ordering::Relaxed);
        return Err(slow());
    }
    let (answered, answer) = mpsc::sync_channel(1);
    let asking = move || {
        // Fails only when nobody waits any more.
        let _ = answered.send(question());
        UNANSWERED.fetch_sub(1, Ordering::Relaxed);
    };
    let thread = std::thread::Builder::new().name("evidence".into()).spawn(asking);
    if let Err(source) = thread {
        UNANSWERED.fetch_sub(1, Ordering::Relaxed);
        return Err(IssueError::Io { path: "a thread".into(), source });
    }
    answer.recv_timeout(limit).map_err(|_| slow())?
}
