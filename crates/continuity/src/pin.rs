//! Whom a pod met first, as a file in guest memory.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use serde::{Deserialize, Serialize};

use crate::Answer;

/// The file's name, in the directory of the pod's certificates.
const FILE: &str = "deployment.json";

/// What does not change while a pod lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// SHA-256 of the root's public key, hex.
    root_key: String,
    /// Commitment to the workload secret, hex; none was released yet.
    secret: Option<String>,
    /// Number of the newest manifest that was seen.
    generation: u64,
}

/// Why an answer is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Changed {
    /// Another deployment.
    #[error(
        "this pod belongs to the deployment with the root key {kept} and takes nothing from the one with {found}: a new \
         deployment needs a new pod"
    )]
    Root {
        /// Whose it is.
        kept: String,
        /// Who answered.
        found: String,
    },
    /// Another workload secret.
    #[error(
        "the Coordinator released another workload secret than before: another secret id needs a new pod"
    )]
    Secret,
    /// Released beside the certificate, not with it.
    #[error("the certificate vouches for another workload secret than the one in the answer")]
    ForeignSecret,
    /// An older manifest.
    #[error(
        "the Coordinator issued under manifest {found}, but this pod has seen manifest {kept}: its storage was rolled \
         back, or an answer of before was repeated"
    )]
    Generation {
        /// Newest that was seen.
        kept: u64,
        /// What the certificate says.
        found: u64,
    },
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Reading or writing.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not what was written.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Pin {
    /// Reads the file; `None`: the pod has met nobody yet.
    pub fn load(directory: &Path) -> Result<Option<Self>, PinError> {
        let path = directory.join(FILE);
        let named = path.display().to_string();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| PinError::Malformed { path: named, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PinError::Io { path: named, source }),
        }
    }

    /// Writes the file, beside its place first. Before anything else of an answer: files that are there without it would
    /// be anybody's to replace.
    pub fn store(&self, directory: &Path) -> Result<(), PinError> {
        let (path, beside) = (directory.join(FILE), directory.join("deployment.new"));
        let write = || {
            fs::create_dir_all(directory)?;
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o444).open(&beside)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| PinError::Io { path: path.display().to_string(), source })
    }

    /// What is kept after this answer with this secret (empty: none came), or why it is refused.
    pub fn after(kept: Option<&Self>, answer: &Answer, secret: &[u8]) -> Result<Self, Changed> {
        let root_key = hex::encode(keys::sha256(&[&answer.root_key]));
        let secret = (!secret.is_empty()).then(|| keys::secret_commitment(secret));
        if secret.is_some() && answer.secret.is_some() && secret != answer.secret {
            return Err(Changed::ForeignSecret);
        }
        let secret = secret.map(hex::encode);
        let generation = answer.generation.unwrap_or_default();
        let Some(kept) = kept else { return Ok(Self { root_key, secret, generation }) };
        if kept.root_key != root_key {
            return Err(Changed::Root { kept: kept.root_key.clone(), found: root_key });
        }
        if let (Some(kept), Some(found)) = (&kept.secret, &secret)
            && kept != found
        {
            return Err(Changed::Secret);
        }
        if generation < kept.generation {
            return Err(Changed::Generation { kept: kept.generation, found: generation });
        }
        Ok(Self { root_key, secret: secret.or_else(|| kept.secret.clone()), generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(root: &[u8], generation: u64, secret: &[u8]) -> Answer {
        Answer {
            root_key: root.to_vec(),
            leaf_key: vec![1],
            secret: Some(keys::secret_commitment(secret)),
            generation: Some(generation),
        }
    }

    #[test]
    fn root_secret_and_generation_stay() {
        let first = Pin::after(None, &answer(b"root", 2, b"secret"), b"secret").unwrap();
        let after = |root: &[u8], generation, secret: &[u8]| {
            Pin::after(Some(&first), &answer(root, generation, secret), secret)
        };
        let newer = after(b"root", 3, b"secret").unwrap();
        assert_eq!(newer.generation, 3);
        assert!(matches!(after(b"another", 2, b"secret"), Err(Changed::Root { .. })));
        assert_eq!(after(b"root", 2, b"other secret"), Err(Changed::Secret));
        assert_eq!(after(b"root", 1, b"secret"), Err(Changed::Generation { kept: 2, found: 1 }));
        // An answer without a secret takes nothing away.
        let none = Answer { secret: None, ..answer(b"root", 2, b"") };
        assert_eq!(Pin::after(Some(&first), &none, b""), Ok(first.clone()));
        // The chain is genuine, and the secret beside it is somebody else's.
        let mixed = Pin::after(None, &answer(b"root", 2, b"secret"), b"the host's");
        assert_eq!(mixed, Err(Changed::ForeignSecret));
    }

    #[test]
    fn it_is_read_as_it_was_written_and_damage_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Pin::load(directory.path()).unwrap().is_none());
        let pin = Pin::after(None, &answer(b"root", 1, b"secret"), b"secret").unwrap();
        pin.store(directory.path()).unwrap();
        assert_eq!(Pin::load(directory.path()).unwrap(), Some(pin));
        fs::remove_file(directory.path().join(FILE)).unwrap();
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(Pin::load(directory.path()).is_err());
    }
}
