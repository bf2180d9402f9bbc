//! Digests, and readers that check them.

use std::{fmt, io, io::Read, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::ImageError;

/// SHA-256 of content; prints as `sha256:` and hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// As it stands in a path.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The bytes, if they have this digest.
    pub(crate) fn check(&self, what: &str, bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        let found = Self::of(&bytes);
        if found == *self {
            return Ok(bytes);
        }
        Err(ImageError::Digest {
            what: what.to_owned(),
            expected: self.to_string(),
            found: found.to_string(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl FromStr for Digest {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let mut bytes = [0; 32];
        let decoded = text.strip_prefix("sha256:").map(|hex| hex::decode_to_slice(hex, &mut bytes));
        match decoded {
            Some(Ok(())) if !text.bytes().any(|c| c.is_ascii_uppercase()) => Ok(Self(bytes)),
            _ => Err(ImageError::malformed(
                "digest",
                format!("expected sha256: and 64 hex digits, got {text:?}"),
            )),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes what passes through.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    /// Bytes that passed.
    pub(crate) count: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Reads what is left, and tells the digest of all.
    pub(crate) fn finish(mut self) -> io::Result<(R, Digest)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.inner, Digest(self.hasher.finalize().into())))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}
