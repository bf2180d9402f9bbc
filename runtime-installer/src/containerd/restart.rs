//! Restarting containerd on the node.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::thread::LinkNameSpaceType;

use crate::host::Host;

const SYSTEMD_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of a command's complaint an error repeats, in bytes.
const COMPLAINT: u64 = 2000;

/// How containerd is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Not at all: whoever runs the node does it.
    Never,
    /// A systemd unit.
    Unit(String),
    /// A shell command on the node, for other service managers.
    Command(String),
}

/// Why a restart did not work.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// None of the units is there.
    #[error(
        "none of the systemd units {0:?} is on the node; name the right one in systemd-unit-name, or an empty list for no restart"
    )]
    NoUnit(Vec<String>),
    /// The command failed.
    #[error("{command:?} on the node: {reason}")]
    Command {
        /// The command.
        command: String,
        /// What happened.
        reason: String,
    },
}

impl Restart {
    /// The first of `units` that the node has; no restart if none is named.
    pub fn first_unit(host: &Host, units: &[String]) -> Result<Self, RestartError> {
        if units.is_empty() {
            return Ok(Self::Never);
        }
        let there = |unit: &&String| {
            SYSTEMD_FOLDERS.iter().any(|folder| host.exists(&Path::new(folder).join(unit.as_str())))
        };
        let found = units.iter().find(there);
        found.cloned().map(Self::Unit).ok_or_else(|| RestartError::NoUnit(units.to_vec()))
    }

    /// Restarts, waiting at most `patience`.
    pub fn run(&self, host: &Host, patience: Duration) -> Result<(), RestartError> {
        match self {
            Self::Never => Ok(()),
            Self::Unit(unit) => {
                // A unit that failed too often is not started before this.
                let _ = on_node(host, &["systemctl", "reset-failed", unit], patience);
                on_node(host, &["systemctl", "restart", unit], patience)
            }
            Self::Command(command) => on_node(host, &["sh", "-c", command], patience),
        }
    }
}

/// Runs a command in the node's mount namespace: this program's own image has no shell and no systemctl.
fn on_node(host: &Host, words: &[&str], patience: Duration) -> Result<(), RestartError> {
    let failed = |reason: String| RestartError::Command { command: words.join(" "), reason };
    let mut command = if host.root() == Path::new("/") {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    } else {
        let mut command = Command::new("/proc/self/exe");
        command.args(["on-node", &host.process().to_string(), "--"]).args(words);
        command
    };
    command.env_clear().env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let stderr = child.stderr.take();
    let complaint = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let mut stderr = stderr;
            let _ = stderr.by_ref().take(COMPLAINT).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let complaint = complaint.join().unwrap_or_default();
                return Err(failed(format!("{status}: {complaint}")));
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("not done after {patience:?}")));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// Becomes the command `words` in the mount namespace of a process of the node. Returns only if that fails.
pub fn become_on_node(process: u32, words: &[String]) -> std::io::Error {
    let Some((program, arguments)) = words.split_first() else {
        return std::io::Error::other("no command");
    };
    let entered = std::fs::File::open(format!("/proc/{process}/ns/mnt")).and_then(|namespace| {
        use std::os::fd::AsFd as _;
        let kind = Some(LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).map_err(Into::into)
    });
    if let Err(error) = entered {
        let what = "cannot enter the node's mount namespace; the pod needs hostPID and privileged";
        return std::io::Error::new(error.kind(), format!("{what}: {error}"));
    }
    Command::new(program).args(arguments).exec()
}
