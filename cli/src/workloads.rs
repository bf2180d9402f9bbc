//! Which workloads a manifest trusts, in words.

use manifest::{Manifest, PolicyEntry, Role};

/// The workloads that the manifest trusts, those of before by their policies.
pub(crate) fn trusted_workloads(manifest: &Manifest) -> String {
    let is_current = |entry: &&PolicyEntry| !entry.going_out && entry.role != Role::Coordinator;
    let current: Vec<&str> = manifest.policies.values().filter(is_current).map(PolicyEntry::name).collect();
    let mut text = format!("\n  workloads: {}", current.join(", "));
    for (hash, entry) in manifest.going_out() {
        text.push_str(&format!("\n  going out: {} (policy {hash:.16}…)", entry.name()));
    }
    if manifest.going_out().next().is_some() {
        text.push_str("\n  What goes out is trusted until `contrast generate --finish` and `contrast set`");
    }
    text
}
