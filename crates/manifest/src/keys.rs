//! Public keys of the people a manifest names.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::KeyDigest;

/// Largest accepted public key, in bytes of DER (an RSA-8192 key has about 1050).
const MAX_KEY_BYTES: usize = 2048;

/// An owner's public key in DER: PKIX for workload owners (EC), PKCS#1 for seedshare owners (RSA).
/// As text: lower-case hex. The bytes are checked to be a key by whoever uses them as one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerKey(Vec<u8>);

impl OwnerKey {
    /// Wraps DER bytes.
    pub fn from_der(der: Vec<u8>) -> Self {
        Self(der)
    }

    /// The DER bytes.
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of the DER bytes, which is how a client's key is compared with this one.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(&self.0)
    }
}

impl fmt::Display for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerKey(sha256:{})", self.digest())
    }
}

impl Serialize for OwnerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OwnerKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text.len() > 2 * MAX_KEY_BYTES {
            return Err(D::Error::custom(format!("expected a key of 1 to {MAX_KEY_BYTES} bytes in hex")));
        }
        hex::decode(&text).map(Self).map_err(|_| D::Error::custom("expected a key in hex"))
    }
}
