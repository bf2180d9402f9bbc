//! `contrast set --dry-run`: what a manifest would change, and whose signatures that takes.

use std::collections::BTreeSet;

use manifest::{KeyDigest, Manifest, ManifestDiff, TransitionHash};
use serde::Serialize;

use crate::{history::changes, printer::Printer, transition::transition_after};

/// What would happen.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Preview {
    /// Always: nothing was set.
    dry_run: bool,
    /// The manifest that would be in force.
    manifest: String,
    /// Number of manifests until now; 0: it would be the first.
    generation: usize,
    /// The transition that has to be signed.
    transition: TransitionHash,
    summary: String,
    diff: Option<ManifestDiff>,
    needed: usize,
    owners: Vec<Owner>,
    /// How many signatures this command would bring.
    signatures: usize,
}

/// Somebody who may sign.
#[derive(Debug, PartialEq, Serialize)]
struct Owner {
    key: KeyDigest,
    /// Whether it is the key that this command would use.
    yours: bool,
}

impl Preview {
    /// `history` are the manifests so far, the last one in force. `own` is the key that would be used.
    pub(super) fn new(
        manifest: &Manifest,
        history: &[Vec<u8>],
        latest: TransitionHash,
        own: Option<KeyDigest>,
        signatures: usize,
    ) -> anyhow::Result<Self> {
        let in_force = history.last().map(|bytes| Manifest::read(bytes)).transpose()?;
        let is_same = in_force.as_ref().is_some_and(|in_force| in_force.bytes() == manifest.bytes());
        let owner = |key: KeyDigest| Owner { key, yours: own == Some(key) };
        let owners: BTreeSet<KeyDigest> =
            in_force.iter().flat_map(|in_force| in_force.workload_owner_digests()).collect();
        let diff = in_force.as_ref().map(|in_force| ManifestDiff::between(in_force.body(), manifest.body()));
        let summary = match &diff {
            None => format!("the first manifest, with {} policies", manifest.policies.len()),
            Some(_) if is_same => "nothing: this manifest is in force".to_owned(),
            Some(diff) => diff.to_string(),
        };
        Ok(Self {
            dry_run: true,
            manifest: manifest.hash().to_string(),
            generation: history.len(),
            transition: transition_after(latest, manifest),
            summary,
            diff,
            needed: in_force.as_ref().map_or(0, |in_force| in_force.workload_owners_needed().max(1)),
            owners: owners.into_iter().map(owner).collect(),
            signatures,
        })
    }

    pub(super) fn print(
        &self,
        manifest: &Manifest,
        about_key: &str,
        printer: &Printer,
    ) -> anyhow::Result<()> {
        printer.result(&self.text(manifest, about_key), self)
    }

    fn text(&self, manifest: &Manifest, about_key: &str) -> String {
        let mut text = format!("Nothing was set. Would change: {}\n", self.summary);
        if let Some(diff) = &self.diff {
            text.push_str(&changes(diff));
        }
        let Some(_) = &self.diff else {
            let owners = manifest.seedshare_owner_pub_keys.len();
            let needed = manifest.seedshare_owners_needed().max(1);
            text.push_str(&format!(
                "The Coordinator has no manifest yet: it would make its seed, and write seed shares for {owners} owners, of whom \
                 {needed} can recover together. Nobody has to sign, unless it demands a bootstrap key."
            ));
            return text;
        };
        if self.owners.is_empty() {
            text.push_str("\nThe manifest in force names no workload owner: nobody can change it.");
            return text;
        }
        text.push_str(&format!("\nWho must sign: {} of\n", self.needed));
        for Owner { key, yours } in &self.owners {
            text.push_str(&format!("  {key}{}\n", if *yours { "  (your key)" } else { "" }));
        }
        let has_own = self.owners.iter().any(|owner| owner.yours);
        let brought = usize::from(has_own) + self.signatures;
        text.push_str(&match (brought, self.needed) {
            (0, _) => format!("Without --dry-run it would be refused: {about_key}."),
            (brought, needed) if brought < needed => format!(
                "{brought} of {needed} signatures would come: `contrast proposals propose` collects the others'.\n  transition: {}",
                self.transition
            ),
            _ => "Without --dry-run it would be sent with that.".to_owned(),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest(version: &str, owners: usize, threshold: usize) -> (Manifest, Vec<KeyDigest>) {
        let keys: Vec<Vec<u8>> =
            (0..owners).map(|_| keys::generate_workload_owner_key().unwrap().1).collect();
        let digests = keys.iter().map(|key| KeyDigest::of(key)).collect();
        let body = json!({
            "Policies": {}, "ReferenceValues": {}, "MinimumAPIVersion": version,
            "WorkloadOwnerPubKeys": keys.iter().map(hex::encode).collect::<Vec<_>>(),
            "WorkloadOwnerThreshold": threshold,
        });
        (Manifest::read(body.to_string().as_bytes()).unwrap(), digests)
    }

    fn said(new: &Manifest, history: &[&Manifest], own: Option<KeyDigest>) -> String {
        let history: Vec<Vec<u8>> = history.iter().map(|manifest| manifest.bytes().to_vec()).collect();
        let preview = Preview::new(new, &history, TransitionHash::ZERO, own, 0).unwrap();
        preview.text(new, "no key was given")
    }

    #[test]
    fn a_change_is_shown_with_whoever_must_sign_it() {
        let (old, owners) = manifest("", 3, 2);
        let (new, _) = manifest("v1", 1, 1);
        assert!(said(&old, &[], None).contains("no manifest yet"));
        assert!(said(&old, &[&old], Some(owners[0])).contains("nothing: this manifest is in force"));
        let text = said(&new, &[&old], Some(owners[0]));
        assert!(text.contains("MinimumAPIVersion") && text.contains("Who must sign: 2 of"), "{text}");
        assert!(text.contains(&format!("{}  (your key)", owners[0])), "{text}");
        assert!(
            text.contains("1 of 2 signatures would come") && text.contains("proposals propose"),
            "{text}"
        );
        assert!(said(&new, &[&old], None).contains("it would be refused: no key was given"));
        let (alone, owner) = manifest("", 1, 1);
        assert!(said(&new, &[&alone], Some(owner[0])).contains("would be sent with that"));
        let (closed, _) = manifest("", 0, 0);
        assert!(said(&new, &[&closed], None).contains("nobody can change it"));
    }
}
