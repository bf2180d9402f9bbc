//! Fixed-size identifiers: what is named by a SHA-256, and random ids.
//!
//! Each is its own type, so that a policy hash cannot be passed for a manifest hash. They print as
//! lower-case hex, in `Debug` too; as text formats they are hex strings, in CBOR byte strings.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// Text or bytes that are not an identifier of the wanted size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} bytes as {} hex digits, got {got:?}", .expected * 2)]
pub struct InvalidId {
    /// Size wanted, in bytes.
    pub expected: usize,
    /// What was found instead, cut to 80 characters.
    pub got: String,
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Defines a fixed-size identifier with hex text form and CBOR byte form.
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Size in bytes.
            pub const LEN: usize = $len;

            /// Wraps bytes that are this identifier already.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId {
                    expected: $len,
                    got: format!("{} bytes", bytes.len()),
                })
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidId {
                    expected: $len,
                    got: text.chars().take(80).collect(),
                })?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes, or twice as many hex digits", $len)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        $name::try_from(bytes).map_err(E::custom)
                    }
                }
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Visitor)
                } else {
                    deserializer.deserialize_bytes(Visitor)
                }
            }
        }
    };
}

identifier! {
    /// SHA-256 of a manifest's bytes, exactly as received.
    ManifestHash, 32
}
identifier! {
    /// SHA-256 of a policy (initdata) document's bytes: the key under which the manifest lists a
    /// workload, and the HOSTDATA of its SNP report.
    PolicyHash, 32
}
identifier! {
    /// The hash that names a point in manifest history (docs/spec/control-plane.md, section 6.2).
    TransitionHash, 32
}
identifier! {
    /// SHA-256 of raw evidence or collateral bytes.
    EvidenceHash, 32
}
identifier! {
    /// SHA-256 of a DER certificate, or of a public key in the form its context names.
    KeyDigest, 32
}
identifier! {
    /// Serial number of an issued certificate: 16 random bytes with the top bit clear.
    SerialNumber, 16
}
identifier! {
    /// One incarnation of a replica: random, drawn at each start of the process.
    ReplicaId, 16
}
identifier! {
    /// Names one request across log lines and events.
    RequestId, 16
}

identifier! {
    /// A launch digest or measurement register.
    Measurement, 48
}
identifier! {
    /// AMD's name of one processor.
    ChipId, 64
}
identifier! {
    /// Intel's name of one platform.
    PlatformInstanceId, 16
}
identifier! {
    /// TDX extended feature mask, in the byte order of the quote.
    Xfam, 8
}
identifier! {
    /// TD attributes, in the byte order of the quote.
    TdAttributes, 8
}
identifier! {
    /// Address at which application processors begin to run, big endian.
    EntryPoint, 4
}

impl ManifestHash {
    /// Hash of a manifest's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256(&[bytes]))
    }
}

impl PolicyHash {
    /// Hash of a policy document's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256(&[bytes]))
    }
}

impl EvidenceHash {
    /// Hash of raw evidence bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256(&[bytes]))
    }
}

impl KeyDigest {
    /// SHA-256 of the given encoding of a key or certificate.
    pub fn of(der: &[u8]) -> Self {
        Self(sha256(&[der]))
    }
}

impl TransitionHash {
    /// What the first manifest names as its previous transition.
    pub const ZERO: Self = Self([0; 32]);

    /// The transition that `manifest` makes after `previous` (`None`: the first one):
    /// `SHA-256(SHA-256(manifest) || previous)`.
    pub fn chain(previous: Option<Self>, manifest: ManifestHash) -> Self {
        Self(sha256(&[manifest.as_bytes(), previous.unwrap_or(Self::ZERO).as_bytes()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_vectors_of_the_spec() {
        let manifest = ManifestHash::of(b"{}");
        assert_eq!(manifest.to_string(), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        let first = TransitionHash::chain(None, manifest);
        assert_eq!(first.to_string(), "a48bf97e27b31e740c70c45c448a6662348ac17929be75f4575cad36401c8211");
        let second = TransitionHash::chain(Some(first), manifest);
        assert_eq!(second.to_string(), "d64ed2e599f892fe4dab03191df07e1cc9d3fc05ab9f2d1df6cdd1d972c10471");
    }

    #[test]
    fn wrong_text_is_named() {
        let error = "abc".parse::<PolicyHash>().unwrap_err();
        assert_eq!(error.to_string(), "expected 32 bytes as 64 hex digits, got \"abc\"");
    }
}
