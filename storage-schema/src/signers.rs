//! Whose signature a segment needs beside the log's.
//!
//! A replica stream is one process's, so one key signs all of it, or none: streams of before had none. In the control
//! stream every replica writes. Each introduces its key by an event ([`Fact::ReplicaVouched`]) in the first segment that it
//! signs; from the first of these on, segments without a replica's signature are refused. Whether the evidence that the
//! event names is any good is for whoever has the manifest: replicas judge it while they follow, auditors once more.

use std::collections::BTreeSet;

use keys::LogPublicKey;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{Event, Fact, StreamId};

/// Keys of replicas that signed a stream so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signers(BTreeSet<ByteArray<32>>);

impl Signers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key, where one replica alone signs.
    pub(crate) fn only(&self) -> Option<LogPublicKey> {
        self.0.first().filter(|_| self.0.len() == 1).map(|key| LogPublicKey::from_bytes(**key))
    }

    /// Takes note of who signed a segment.
    pub(crate) fn wrote(&mut self, key: Option<LogPublicKey>) {
        self.0.extend(key.map(|key| ByteArray::new(*key.as_bytes())));
    }

    /// Whether a segment may be signed by this replica, or by none; else what was expected and found instead.
    pub(crate) fn check(
        &self,
        stream: StreamId,
        found: Option<LogPublicKey>,
        is_first: bool,
        events: &[&[u8]],
    ) -> Result<(), (String, String)> {
        let shown = |key: &[u8; 32]| format!("the replica key {}", hex::encode(key));
        let of_stream = || self.0.first().map_or("none, as before".into(), |known| shown(known));
        let Some(found) = found else {
            return match (self.0.is_empty(), stream) {
                (true, _) => Ok(()),
                (false, StreamId::Replica(_)) => Err((of_stream(), "none".into())),
                (false, StreamId::Control) => Err(("one that an event introduced".into(), "none".into())),
            };
        };
        let is_introduced = || match stream {
            StreamId::Replica(_) => is_first,
            StreamId::Control => events.iter().any(|event| introduces(event, found.as_bytes())),
        };
        if self.0.contains(&ByteArray::new(*found.as_bytes())) || is_introduced() {
            return Ok(());
        }
        let expected = match stream {
            StreamId::Replica(_) => of_stream(),
            StreamId::Control => "one that an event introduced".into(),
        };
        Err((expected, shown(found.as_bytes())))
    }
}

/// Whether an event, which is authentic by now, says that this key is a replica's.
fn introduces(event: &[u8], key: &[u8; 32]) -> bool {
    let event = Event::from_cbor(event);
    event.is_ok_and(
        |event| matches!(event.fact, Fact::ReplicaVouched { key: introduced, .. } if introduced == *key),
    )
}
