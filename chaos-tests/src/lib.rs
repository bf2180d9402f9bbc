//! What the tests and the load generator share: where the real programs are.

pub mod etcd;
pub mod process;

use std::path::PathBuf;

/// A program of this workspace, built beside the running test or tool.
///
/// Cargo builds a package's own programs only, so `./test` builds the workspace first.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let beside = this.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(name))
}
