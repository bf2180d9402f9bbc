//! Tree heads as C2SP checkpoints: signed notes that anybody's tools can check, and that a witness
//! can cosign (<https://c2sp.org/tlog-checkpoint>, <https://c2sp.org/signed-note>).

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use keys::{LogKey, LogPublicKey};
use sha2::{Digest as _, Sha256};

use crate::{Head, StreamId, merkle::Hash};

/// Largest note that is read, in bytes.
const MAX_NOTE: usize = 1 << 16;
/// Ed25519, in the signature type registry of C2SP signed-note.
const ED25519: u8 = 1;
const DASH: &str = "\u{2014} ";

/// Names a deployment's log by the key that signs it: what an auditor pins. Each of its streams is a
/// log in the sense of C2SP, with an origin of its own. The text form is the verifier key of the
/// control stream, whose checkpoints cover everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(LogPublicKey);

impl LogId {
    /// The log that this key signs.
    pub fn new(key: LogPublicKey) -> Self {
        Self(key)
    }

    /// The key.
    pub fn key(&self) -> LogPublicKey {
        self.0
    }

    /// First line of a stream's checkpoints, and the name of the key in their signatures; unique for
    /// each stream of each deployment.
    pub fn origin(&self, stream: &StreamId) -> String {
        let digest = Sha256::digest(self.0.as_bytes());
        format!("contrast/{}/{stream}", hex::encode(&digest[..16]))
    }

    /// First four bytes of SHA-256 over name, newline, type and key (signed-note).
    fn key_hash(&self, name: &str) -> [u8; 4] {
        let digest = Sha256::new()
            .chain_update(name)
            .chain_update([b'\n', ED25519])
            .chain_update(self.0.as_bytes())
            .finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[ED25519], self.0.as_bytes().as_slice()].concat();
        let name = self.origin(&StreamId::Control);
        write!(f, "{name}+{}+{}", hex::encode(self.key_hash(&name)), BASE64_STANDARD.encode(key))
    }
}

/// Text that is not the verifier key of a log of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a log's verifier key such as contrast/<hex>+<hex>+<base64>, got {0:.100?}")]
pub struct InvalidLogId(String);

impl std::str::FromStr for LogId {
    type Err = InvalidLogId;

    fn from_str(text: &str) -> Result<Self, InvalidLogId> {
        let invalid = || InvalidLogId(text.to_owned());
        let key = text.trim().splitn(3, '+').nth(2).and_then(|key| BASE64_STANDARD.decode(key).ok());
        let key = key.ok_or_else(invalid)?;
        let key: [u8; 32] =
            key.strip_prefix(&[ED25519]).and_then(|key| key.try_into().ok()).ok_or_else(invalid)?;
        let id = Self(LogPublicKey::from_bytes(key));
        if id.to_string() == text.trim() { Ok(id) } else { Err(invalid()) }
    }
}

/// A tree head that the log signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log.
    pub log: LogId,
    /// The stream.
    pub stream: StreamId,
    /// Number of events.
    pub size: u64,
    /// Head of the tree over them.
    pub root: Hash,
}

/// Why text is not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Too long.
    #[error("{0} bytes, at most {MAX_NOTE} are accepted")]
    TooLarge(usize),
    /// Not the format.
    #[error("not a C2SP checkpoint: {0}")]
    Malformed(&'static str),
    /// Of another log, or of no stream.
    #[error("origin {found:?} is not a stream of the log that has {expected}")]
    Origin {
        /// The origin of its control stream.
        expected: String,
        /// What the note says.
        found: String,
    },
    /// No signature of this log, or one over something else.
    #[error("no valid signature by the log {0}")]
    Signature(String),
}

impl Checkpoint {
    /// The signed note.
    pub fn sign(head: &Head, key: &LogKey) -> String {
        let log = LogId::new(key.public());
        let text = Self { log, stream: head.stream, size: head.size, root: head.root }.text();
        let name = log.origin(&head.stream);
        let signature = [log.key_hash(&name).as_slice(), &key.sign(text.as_bytes())].concat();
        format!("{text}\n{DASH}{name} {}\n", BASE64_STANDARD.encode(signature))
    }

    fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.log.origin(&self.stream), self.size, BASE64_STANDARD.encode(self.root))
    }

    /// Checks and reads a note. Other signatures on it, such as a witness's, are left alone.
    pub fn open(note: &str, log: LogId) -> Result<Self, CheckpointError> {
        if note.len() > MAX_NOTE {
            return Err(CheckpointError::TooLarge(note.len()));
        }
        let malformed = CheckpointError::Malformed;
        let (text, signatures) = note.rsplit_once("\n\n").ok_or(malformed("no blank line"))?;
        let text = format!("{text}\n");
        let mut lines = text.lines();
        let origin = lines.next().unwrap_or_default();
        let signed = signatures.lines().any(|line| {
            let signature = line.strip_prefix(DASH).and_then(|line| line.strip_prefix(origin));
            let signature = signature.and_then(|line| BASE64_STANDARD.decode(line.strip_prefix(' ')?).ok());
            let Some(signature) = signature else { return false };
            let signature = signature.strip_prefix(&log.key_hash(origin));
            signature.is_some_and(|signature| log.0.verify(text.as_bytes(), signature).is_ok())
        });
        if !signed {
            return Err(CheckpointError::Signature(log.to_string()));
        }
        let stream = origin.rsplit('/').next().and_then(|stream| stream.parse().ok());
        let stream = stream.filter(|stream| log.origin(stream) == origin).ok_or_else(|| {
            let expected = log.origin(&StreamId::Control);
            CheckpointError::Origin { expected, found: origin.chars().take(100).collect() }
        })?;
        let size = lines.next().and_then(|size| size.parse().ok()).ok_or(malformed("no tree size"))?;
        let root = lines.next().and_then(|root| BASE64_STANDARD.decode(root).ok());
        let root = root.and_then(|root| root.try_into().ok()).ok_or(malformed("no tree head of 32 bytes"))?;
        Ok(Self { log, stream, size, root })
    }
}

#[cfg(test)]
mod tests {
    use manifest::ReplicaId;

    use super::*;

    fn head() -> Head {
        Head { stream: StreamId::Control, size: 7, segments: 3, root: [5; 32] }
    }

    fn key(n: u8) -> LogKey {
        LogKey::from_secret(&[n; 32]).unwrap()
    }

    #[test]
    fn a_checkpoint_is_a_signed_note() {
        let note = Checkpoint::sign(&head(), &key(1));
        let id = LogId::new(key(1).public());
        assert!(note.starts_with(&format!("{}\n7\nBQUF", id.origin(&StreamId::Control))), "{note}");
        let opened = Checkpoint::open(&note, id).unwrap();
        assert_eq!((opened.size, opened.root, opened.stream), (7, [5; 32], StreamId::Control));
        let cosigned = format!("{note}{DASH}witness.example/w1 AAAAAAAA\n");
        assert_eq!(Checkpoint::open(&cosigned, id).unwrap(), opened);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_verifier_key_has_the_three_parts_of_signed_note() {
        let id = LogId::new(key(1).public());
        let text = id.to_string();
        let [name, hash, key] = text.splitn(3, '+').collect::<Vec<_>>().try_into().unwrap();
        assert!(name.starts_with("contrast/") && !name.contains(' '));
        assert_eq!(hash.len(), 8);
        assert_eq!(BASE64_STANDARD.decode(key).unwrap()[0], 1);
    }

    #[test]
    fn anything_else_is_refused() {
        let note = Checkpoint::sign(&head(), &key(1));
        let id = LogId::new(key(1).public());
        let other = LogId::new(key(2).public());
        assert!(matches!(Checkpoint::open(&note, other), Err(CheckpointError::Signature(_))));
        let grown = note.replace("\n7\n", "\n8\n");
        assert!(matches!(Checkpoint::open(&grown, id), Err(CheckpointError::Signature(_))));
        assert!(matches!(Checkpoint::open("x", id), Err(CheckpointError::Malformed(_))));
        let stream = StreamId::Replica(ReplicaId::from_bytes([1; 16]));
        let replica = Checkpoint::sign(&Head { stream, ..head() }, &key(1));
        assert_eq!(Checkpoint::open(&replica, id).unwrap().stream, stream);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text: String) {
            let id = LogId::new(key(1).public());
            proptest::prop_assert!(Checkpoint::open(&text, id).is_err());
            proptest::prop_assert!(text.parse::<LogId>().is_err());
        }
    }
}
