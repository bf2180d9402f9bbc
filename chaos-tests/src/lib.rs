//! What the tests and the load generator share: where the real programs are.

pub mod byzantine;
pub mod check;
pub mod client;
pub mod command;
pub mod deployment;
pub mod etcd;
pub mod filler;
pub mod fleet;
pub mod host;
pub mod http2;
pub mod linearizable;
pub mod model;
pub mod plan;
pub mod process;
pub mod proxy;
pub mod run;
pub mod scenario;

use std::path::PathBuf;

pub use program::now;

/// A program of this workspace, built beside the running test or tool.
///
/// Cargo builds a package's own programs only, so `./test` builds the workspace first.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let beside = this.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(name))
}
