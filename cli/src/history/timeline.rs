//! The control stream as people ask about it: generations of manifests.

use std::collections::HashMap;

use anyhow::Context as _;
use keys::LogPublicKey;
use manifest::{
    Manifest, ManifestBody, ManifestDiff, ManifestHash, PolicyHash, ReplicaId, RequestId, Timestamp,
    TransitionHash,
};
use serde::Serialize;
use storage_schema::{Authorisation, BlobHash, Fact, StreamId};

use crate::{
    printer::Refused,
    source::{Recorded, Source},
};

/// One manifest of the history.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Generation {
    pub(crate) generation: u64,
    #[serde(serialize_with = "crate::printer::rfc3339")]
    pub(crate) at: Timestamp,
    pub(crate) manifest: ManifestHash,
    pub(crate) transition: TransitionHash,
    pub(crate) set_by: String,
    pub(crate) replica: ReplicaId,
    pub(crate) request: RequestId,
    pub(crate) policies: Vec<PolicyHash>,
}

/// The history of manifests, with their contents.
pub(crate) struct Timeline {
    pub(crate) generations: Vec<Generation>,
    contents: HashMap<BlobHash, Vec<u8>>,
}

impl Timeline {
    /// Reads and verifies the control stream, and fetches what it names.
    pub(crate) async fn read(source: &Source, key: LogPublicKey) -> anyhow::Result<Self> {
        let events = source.events(StreamId::Control, key).await?;
        let generations: Vec<Generation> = events.iter().filter_map(generation).collect();
        if source.is_filtered()? {
            check_that_none_is_missing(&generations)?;
        }
        let mut hashes = Vec::new();
        for generation in &generations {
            hashes.push(BlobHash::from_bytes(*generation.manifest.as_bytes()));
            hashes.extend(generation.policies.iter().map(|hash| BlobHash::from_bytes(*hash.as_bytes())));
        }
        hashes.sort_by_key(|hash| *hash.as_bytes());
        hashes.dedup();
        let contents = source.blobs(&hashes).await?;
        Ok(Self { generations, contents: hashes.into_iter().zip(contents).collect() })
    }

    /// The one that is meant by `latest`, a number, or the beginning of a manifest's or
    /// transition's hash.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<&Generation> {
        let by_number = |number: u64| self.generations.iter().find(|entry| entry.generation == number);
        let found = match (name, name.parse::<u64>()) {
            ("latest", _) => self.generations.last(),
            (_, Ok(number)) if name.len() < 6 => by_number(number),
            _ => {
                let is_meant = |entry: &&Generation| {
                    entry.manifest.to_string().starts_with(name)
                        || entry.transition.to_string().starts_with(name)
                };
                let mut meant = self.generations.iter().filter(is_meant);
                let first = meant.next();
                if name.len() < 6
                    || meant.any(|other| Some(other.manifest) != first.map(|entry| entry.manifest))
                {
                    anyhow::bail!("{name:?} is not the beginning of one hash: give more digits");
                }
                first
            }
        };
        found.with_context(|| {
            format!(
                "no manifest {name:?}: give latest, a number from 1 to {}, or a hash",
                self.generations.len()
            )
        })
    }

    /// What was in force at that time; nothing before the first manifest.
    pub(crate) fn at(&self, at: Timestamp) -> Option<&Generation> {
        self.generations.iter().rev().find(|entry| entry.at <= at)
    }

    /// The one before.
    pub(crate) fn before(&self, generation: &Generation) -> Option<&Generation> {
        self.generations.iter().rev().find(|entry| entry.generation < generation.generation)
    }

    pub(crate) fn manifest_bytes(&self, generation: &Generation) -> anyhow::Result<&[u8]> {
        self.content(*generation.manifest.as_bytes())
    }

    pub(crate) fn manifest(&self, generation: &Generation) -> anyhow::Result<Manifest> {
        let place = || format!("manifest of generation {}", generation.generation);
        Manifest::read(self.manifest_bytes(generation)?).with_context(place)
    }

    /// A policy document, if the history holds it.
    pub(crate) fn policy(&self, hash: &PolicyHash) -> Option<String> {
        let content = self.content(*hash.as_bytes()).ok()?;
        Some(String::from_utf8_lossy(content).into_owned())
    }

    fn content(&self, hash: [u8; 32]) -> anyhow::Result<&[u8]> {
        let hash = BlobHash::from_bytes(hash);
        self.contents.get(&hash).map(Vec::as_slice).with_context(|| format!("no content of {hash}"))
    }

    /// What a generation changed, in one line.
    pub(crate) fn summary(&self, generation: &Generation) -> anyhow::Result<String> {
        let new = self.manifest(generation)?;
        match self.before(generation) {
            Some(old) => Ok(self.diff(old, generation)?.to_string()),
            None => {
                let diff = ManifestDiff::between(&ManifestBody::default(), new.body());
                Ok(format!("first manifest, {} workloads", diff.workloads.len()))
            }
        }
    }

    pub(crate) fn diff(&self, old: &Generation, new: &Generation) -> anyhow::Result<ManifestDiff> {
        Ok(ManifestDiff::between(self.manifest(old)?.body(), self.manifest(new)?.body()))
    }
}

/// What is left out of a filtered export must be no manifest: each names the whole history before it.
fn check_that_none_is_missing(generations: &[Generation]) -> anyhow::Result<()> {
    let mut latest = None;
    for (number, found) in (1..).zip(generations) {
        let expected = TransitionHash::chain(latest, found.manifest);
        if (found.generation, found.transition) != (number, expected) {
            let text = format!("the export lacks the manifest of generation {number}: it was tampered with");
            return Err(Refused(text).into());
        }
        latest = Some(expected);
    }
    Ok(())
}

fn generation(recorded: &Recorded) -> Option<Generation> {
    let Fact::ManifestSet { generation, manifest, policies, transition, authorised_by, .. } =
        &recorded.event.fact
    else {
        return None;
    };
    let set_by = match authorised_by {
        Authorisation::First => "anyone (first manifest)".to_owned(),
        Authorisation::OwnerKey(key) => format!("key {key}"),
        Authorisation::Signature(key) => format!("signature by {key}"),
        Authorisation::Bootstrap(key) => format!("bootstrap key {key}"),
        Authorisation::Owners(keys) => {
            let keys: Vec<String> = keys.iter().map(|key| format!("{key:.16}…")).collect();
            format!("signatures by {}", keys.join(", "))
        }
    };
    Some(Generation {
        generation: *generation,
        at: recorded.event.at,
        manifest: *manifest,
        transition: *transition,
        set_by,
        replica: recorded.event.replica,
        request: recorded.event.request,
        policies: policies.clone(),
    })
}
