//! Turns a node into one that runs pods in confidential VMs, and back (docs/spec/data-plane.md, section 4).
//!
//! [`install`] has the order of things. What it promises: a runtime appears under `/opt/edgeless` whole or not at all;
//! containerd's configuration gets an entry and nothing else changes in it; containerd is restarted only for a change
//! and gets its old file back if it does not come up; after `uninstall` the node is as it was before.

pub mod check;
pub mod containerd;
pub mod fetch;
pub mod files;
pub mod host;
pub mod install;
pub mod kata;
pub mod node_label;
pub mod state;
