//! The installer on nodes that a test makes: a root folder, and a real containerd in namespaces of its own for which
//! that folder's `/etc/containerd`, `/opt`, `/run/containerd` and `/var/lib/containerd` are the machine's.
//!
//! Needs root, and `containerd`, `runc` and `strace` from Debian, which `./test` installs, with newer containerds in
//! `target/containerds`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod bundle;
mod check;
mod containerd;
mod hostile;
mod interrupted;
mod label;
mod node;
mod server;
