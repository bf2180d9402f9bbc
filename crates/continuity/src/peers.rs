//! Whose certificates count in the mesh: one signed list, from the Coordinator to every pod.
//!
//! Each manifest has a mesh CA of its own. Were the newest the only one that counts, each update would shut out every
//! pod until it has a new certificate. So the list names the CAs of before as well, and for each policy since which
//! manifest it has been named without a gap: a certificate under an older CA counts only if its policy was there then,
//! and still is. What an owner takes out of the manifest, or evicts, counts under no CA.
//!
//! The mesh CA that the list names as the newest signs it, and the root vouches for that CA. Seedshare owners can derive
//! the root's key, so whoever asks without attesting compares the CA with the one that it knows. No network, no clock.

use std::collections::{BTreeMap, BTreeSet};

use manifest::{KeyDigest, PolicyHash};
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// What the signature is for, and nothing else.
const LABEL: &[u8] = b"contrast mesh peers v1\0";

/// Largest list that is read, in bytes.
pub const MAX_PEERS_BYTES: usize = 4 << 20;

/// Most CAs of before that a list names.
pub const MAX_OLDER: usize = 32;

/// The file's name, in the directory of the pod's certificates.
pub const PEERS_FILE: &str = "mesh-peers.json";

/// Whose certificates count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Grows with each list.
    pub number: u64,
    /// Number of the manifest in force.
    pub generation: u64,
    /// Its mesh CA, self-signed, DER in hex digits.
    #[serde(with = "hex_digits")]
    pub mesh_ca: Vec<u8>,
    /// Mesh CAs of before.
    pub older: Vec<OlderCa>,
    /// Policies that count, and the first manifest of those in a row up to the newest that name them.
    pub policies: BTreeMap<PolicyHash, u64>,
    /// Policies whose certificates count nowhere, not even where everybody under the root is believed.
    pub evicted_policies: BTreeSet<PolicyHash>,
    /// SHA-256 of public keys (SubjectPublicKeyInfo DER) whose certificates do not count.
    pub evicted_keys: BTreeSet<KeyDigest>,
}

/// A mesh CA of before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderCa {
    /// Number of its manifest.
    pub generation: u64,
    /// Self-signed, DER in hex digits.
    #[serde(with = "hex_digits")]
    pub certificate: Vec<u8>,
}

/// A list and its signature, as it travels and lies in a file.
#[derive(Serialize, Deserialize)]
struct Signed {
    /// The root's certificate for the mesh CA's key, DER in hex digits.
    #[serde(with = "hex_digits")]
    intermediate: Vec<u8>,
    /// The list, JSON: exactly these bytes are signed.
    list: String,
    /// ECDSA P-384 with SHA-256, ASN.1 DER in hex digits.
    #[serde(with = "hex_digits")]
    signature: Vec<u8>,
}

/// Why bytes are not the list of this deployment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeersError {
    /// Too many bytes.
    #[error("the list of mesh peers has {0} bytes, at most {MAX_PEERS_BYTES} are read")]
    TooLarge(usize),
    /// Not a list.
    #[error("the list of mesh peers: {0}")]
    Malformed(String),
    /// Somebody else's, or changed on the way.
    #[error("the list of mesh peers is not signed by {0}")]
    NotSigned(&'static str),
    /// A list of before.
    #[error("the list of mesh peers is number {found}, and number {kept} was seen: an old one is repeated")]
    Old {
        /// The newest that was seen.
        kept: u64,
        /// What this one is.
        found: u64,
    },
    /// Evictions are for good.
    #[error(
        "the list of mesh peers, number {found}, lets in again whom an owner has shut out: the Coordinator's log was put \
         back to an earlier moment"
    )]
    Forgets {
        /// Its number.
        found: u64,
    },
}

/// Under which CA a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// One that the list names, of this manifest.
    Listed(u64),
    /// One that the root vouches for and the list does not know yet.
    Unlisted,
}

/// Why a good certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCounted {
    /// Its key was evicted.
    #[error("the peer's certificate was evicted")]
    Key,
    /// The manifest does not name its policy any more, or it was evicted.
    #[error("the peer's policy {0} counts no more: it was taken out of the manifest, or evicted")]
    Policy(PolicyHash),
    /// Its policy came back, and this certificate is of before.
    #[error("the peer's certificate is of manifest {certificate}, its policy counts since manifest {since}")]
    BeforeItsPolicy {
        /// Manifest of the certificate.
        certificate: u64,
        /// First manifest of those in a row that name the policy.
        since: u64,
    },
    /// Under an older CA, without saying whose.
    #[error("the peer's certificate is of an earlier manifest and does not say its policy")]
    Nameless,
    /// The CA is neither listed nor newer.
    #[error("the peer's certificate is of a mesh CA that counts no more")]
    OldCa,
}

/// What of a peer's certificate the list is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// SHA-256 of its public key.
    pub key: KeyDigest,
    /// Its policy; none: a Coordinator's own service.
    pub policy: Option<PolicyHash>,
    /// Number of the manifest under which it was issued.
    pub generation: Option<u64>,
}

impl PeerIdentity {
    /// Reads a certificate, whose signature is the caller's to check.
    pub fn of(certificate_der: &[u8]) -> Result<Self, keys::KeyError> {
        let malformed = || keys::KeyError::Malformed { what: "certificate", expected: "X.509" };
        let (_, certificate) = X509Certificate::from_der(certificate_der).map_err(|_| malformed())?;
        let claims = keys::leaf_claims(certificate_der)?;
        let key = KeyDigest::of(certificate.public_key().raw);
        Ok(Self { key, policy: claims.policy, generation: claims.generation })
    }
}

impl NotCounted {
    /// Whether a new certificate would help the peer.
    pub fn is_behind(&self) -> bool {
        matches!(self, Self::OldCa | Self::Nameless | Self::BeforeItsPolicy { .. })
    }
}

impl Peers {
    /// The list as it travels. `sign` is by the mesh CA's key.
    pub fn sign<E>(
        &self,
        intermediate: &[u8],
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let list = serde_json::to_string(self).unwrap_or_default();
        let signature = sign(&[LABEL, list.as_bytes()].concat())?;
        let signed = Signed { intermediate: intermediate.to_vec(), list, signature };
        Ok(serde_json::to_vec(&signed).unwrap_or_default())
    }

    /// Reads a list of the deployment with this root key (SubjectPublicKeyInfo DER), not older than `seen`, and with all
    /// who are shut out in that: a number alone could come again, after a log was rolled back and grew by something else.
    pub fn open(bytes: &[u8], root_key: &[u8], seen: Option<&Self>) -> Result<Self, PeersError> {
        if bytes.len() > MAX_PEERS_BYTES {
            return Err(PeersError::TooLarge(bytes.len()));
        }
        let malformed = |error: &dyn std::fmt::Display| PeersError::Malformed(error.to_string());
        let signed: Signed = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
        let certificate = |der| X509Certificate::from_der(der).map(|(_, found)| found);
        let intermediate = certificate(&signed.intermediate).map_err(|error| malformed(&error))?;
        let (_, root) =
            x509_parser::x509::SubjectPublicKeyInfo::from_der(root_key).map_err(|error| malformed(&error))?;
        let by_root = intermediate.verify_signature(Some(&root));
        by_root.map_err(|_| PeersError::NotSigned("a mesh CA that this deployment's root vouches for"))?;
        let mesh_key = intermediate.public_key().raw;
        let message = [LABEL, signed.list.as_bytes()].concat();
        keys::verify_ecdsa_sha256(mesh_key, &message, &signed.signature)
            .map_err(|_| PeersError::NotSigned("the mesh CA that it came with"))?;
        let list: Self = serde_json::from_str(&signed.list).map_err(|error| malformed(&error))?;
        let newest = certificate(&list.mesh_ca).map_err(|error| malformed(&error))?;
        if newest.public_key().raw != mesh_key {
            return Err(PeersError::NotSigned("the mesh CA that it names as the newest"));
        }
        if list.older.len() > MAX_OLDER {
            return Err(malformed(&format_args!("{} mesh CAs of before", list.older.len())));
        }
        let Some(seen) = seen else { return Ok(list) };
        if list.number < seen.number {
            return Err(PeersError::Old { kept: seen.number, found: list.number });
        }
        if !seen.evicted_keys.is_subset(&list.evicted_keys)
            || !seen.evicted_policies.is_subset(&list.evicted_policies)
        {
            return Err(PeersError::Forgets { found: list.number });
        }
        Ok(list)
    }

    /// Whether owners shut the peer out.
    pub fn not_evicted(&self, peer: &PeerIdentity) -> Result<(), NotCounted> {
        if self.evicted_keys.contains(&peer.key) {
            return Err(NotCounted::Key);
        }
        match peer.policy.filter(|policy| self.evicted_policies.contains(policy)) {
            Some(policy) => Err(NotCounted::Policy(policy)),
            None => Ok(()),
        }
    }

    /// Whether a certificate counts that is good under this CA.
    pub fn counts(&self, peer: &PeerIdentity, issuer: Issuer) -> Result<(), NotCounted> {
        self.not_evicted(peer)?;
        match issuer {
            // Issued under a manifest that is newer than this list: what that one names is not known here yet.
            Issuer::Unlisted if peer.generation.is_some_and(|found| found > self.generation) => Ok(()),
            Issuer::Unlisted => Err(NotCounted::OldCa),
            Issuer::Listed(generation) => match peer.policy {
                None if generation == self.generation => Ok(()),
                None => Err(NotCounted::Nameless),
                Some(policy) => match self.policies.get(&policy) {
                    None => Err(NotCounted::Policy(policy)),
                    Some(since) if *since > generation => {
                        Err(NotCounted::BeforeItsPolicy { certificate: generation, since: *since })
                    }
                    Some(_) => Ok(()),
                },
            },
        }
    }

    /// Whether a connection may go on whose peer counted when it was made.
    pub fn still_counts(&self, peer: &PeerIdentity) -> Result<(), NotCounted> {
        self.not_evicted(peer)?;
        match peer.policy {
            Some(policy)
                if !self.policies.contains_key(&policy)
                    && peer.generation.is_some_and(|found| found <= self.generation) =>
            {
                Err(NotCounted::Policy(policy))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes as hex digits.
mod hex_digits {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use keys::{CaKey, MeshCa, Salt, Seed, SeedEngine};
    use manifest::Timestamp;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn ca(byte: u8) -> (Vec<u8>, MeshCa) {
        let (seed, salt) = (Seed::from_bytes(&[byte; 64]).unwrap(), Salt::from_bytes(&[1; 32]).unwrap());
        let engine = SeedEngine::new(seed, salt).unwrap();
        let ca = MeshCa::new(&engine, CaKey::generate().unwrap(), NOW).unwrap();
        (engine.root_key().public_der(), ca)
    }

    fn policy(byte: u8) -> PolicyHash {
        PolicyHash::from_bytes([byte; 32])
    }

    fn list(ca: &MeshCa) -> Peers {
        Peers {
            number: 5,
            generation: 4,
            mesh_ca: ca.mesh_der().to_vec(),
            policies: [(policy(1), 2), (policy(2), 4)].into(),
            evicted_keys: [KeyDigest::from_bytes([9; 32])].into(),
            ..Peers::default()
        }
    }

    fn signed(list: &Peers, ca: &MeshCa) -> Vec<u8> {
        list.sign(ca.intermediate_der(), |message| ca.mesh_key().sign(message)).unwrap()
    }

    #[test]
    fn only_this_deployments_newest_mesh_ca_can_sign_a_list() {
        let ((root, ours), (foreign_root, theirs)) = (ca(1), ca(2));
        let bytes = signed(&list(&ours), &ours);
        assert_eq!(Peers::open(&bytes, &root, Some(&list(&ours))), Ok(list(&ours)));
        assert!(matches!(Peers::open(&bytes, &foreign_root, None), Err(PeersError::NotSigned(_))));
        assert!(matches!(
            Peers::open(&signed(&list(&theirs), &theirs), &root, None),
            Err(PeersError::NotSigned(_))
        ));
        // Another mesh CA of the same root signs a list that names ours as the newest.
        let (_, older) = ca(1);
        assert!(matches!(
            Peers::open(&signed(&list(&ours), &older), &root, None),
            Err(PeersError::NotSigned(_))
        ));
        let seen = Peers { number: 6, ..list(&ours) };
        assert_eq!(Peers::open(&bytes, &root, Some(&seen)), Err(PeersError::Old { kept: 6, found: 5 }));
        let mut more = list(&ours);
        more.evicted_keys.insert(KeyDigest::from_bytes([8; 32]));
        assert_eq!(Peers::open(&bytes, &root, Some(&more)), Err(PeersError::Forgets { found: 5 }));
        let mut more = list(&ours);
        more.evicted_policies.insert(policy(7));
        assert_eq!(Peers::open(&bytes, &root, Some(&more)), Err(PeersError::Forgets { found: 5 }));
        let text = String::from_utf8(bytes).unwrap();
        let changed = text.replace("generation\\\":4", "generation\\\":3");
        assert_ne!(changed, text);
        assert!(matches!(Peers::open(changed.as_bytes(), &root, None), Err(PeersError::NotSigned(_))));
        assert!(Peers::open(b"{}", &root, None).is_err());
        assert_eq!(
            Peers::open(&vec![b' '; MAX_PEERS_BYTES + 1], &root, None),
            Err(PeersError::TooLarge(MAX_PEERS_BYTES + 1))
        );
        // A certificate's signature is none over a list: its bytes do not begin with the label.
        let of_certificate = Signed {
            intermediate: ours.intermediate_der().to_vec(),
            list: String::new(),
            signature: Vec::new(),
        };
        assert!(Peers::open(&serde_json::to_vec(&of_certificate).unwrap(), &root, None).is_err());
    }

    #[test]
    fn an_older_certificate_counts_only_while_its_policy_was_named_without_a_gap() {
        let (_, ours) = ca(1);
        let list = list(&ours);
        let peer = |policy: Option<PolicyHash>, generation| PeerIdentity {
            key: KeyDigest::from_bytes([8; 32]),
            policy,
            generation: Some(generation),
        };
        let counts = |policy, generation| list.counts(&peer(policy, generation), Issuer::Listed(generation));
        assert_eq!(counts(Some(policy(1)), 4), Ok(()));
        assert_eq!(counts(Some(policy(1)), 2), Ok(()));
        let before = NotCounted::BeforeItsPolicy { certificate: 3, since: 4 };
        assert_eq!(counts(Some(policy(2)), 3), Err(before), "it was taken out and came back");
        assert_eq!(counts(Some(policy(3)), 4), Err(NotCounted::Policy(policy(3))));
        assert_eq!((counts(None, 4), counts(None, 3)), (Ok(()), Err(NotCounted::Nameless)));
        let unlisted = |generation| list.counts(&peer(Some(policy(7)), generation), Issuer::Unlisted);
        assert_eq!((unlisted(5), unlisted(4)), (Ok(()), Err(NotCounted::OldCa)));
        let evicted = PeerIdentity { key: KeyDigest::from_bytes([9; 32]), ..peer(Some(policy(1)), 4) };
        assert_eq!(list.counts(&evicted, Issuer::Listed(4)), Err(NotCounted::Key));
        assert_eq!(list.still_counts(&evicted), Err(NotCounted::Key));
        assert_eq!(list.still_counts(&peer(Some(policy(1)), 1)), Ok(()), "its CA does not matter any more");
        assert_eq!(list.still_counts(&peer(Some(policy(3)), 3)), Err(NotCounted::Policy(policy(3))));
        assert_eq!(list.still_counts(&peer(Some(policy(7)), 5)), Ok(()), "newer than this list");
    }
}
