//! The seed engine: everything that stays the same for the life of a deployment
//! (docs/spec/control-plane.md, sections 5.1 to 5.3).

use aws_lc_rs::hkdf;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{CaKey, KeyError, LogKey, TransactionKey, deterministic, random};

/// The root secret of a deployment: 64 bytes when made here, at least 32 accepted, at most 64.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Seed(Vec<u8>);

impl Seed {
    /// Draws a seed.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(Zeroizing::new(random::<64>()?).to_vec()))
    }

    /// Takes over a seed that somebody sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if !(32..=64).contains(&bytes.len()) {
            return Err(KeyError::Length { what: "seed", found: bytes.len(), expected: "32 to 64" });
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Salt of every derivation, 32 bytes. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt([u8; 32]);

impl Salt {
    /// Draws a salt.
    pub fn generate() -> Result<Self, KeyError> {
        random().map(Self)
    }

    /// Takes over a salt that somebody sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::Length {
            what: "salt",
            found: bytes.len(),
            expected: "32",
        })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Names a workload secret; never empty.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct WorkloadSecretId(String);

impl WorkloadSecretId {
    /// The name, or nothing for an empty one.
    pub fn new(id: &str) -> Option<Self> {
        (!id.is_empty()).then(|| Self(id.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A workload's secret: as long as the seed, so 64 bytes.
#[derive(PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct WorkloadSecret(Vec<u8>);

impl WorkloadSecret {
    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// The seed, and the keys derived from it.
pub struct SeedEngine {
    seed: Seed,
    salt: Salt,
    pod_state: WorkloadSecret,
    root_key: CaKey,
    transaction_key: TransactionKey,
    log_key: LogKey,
    challenge_key: WorkloadSecret,
}

impl SeedEngine {
    /// Derives the keys of a deployment.
    pub fn new(seed: Seed, salt: Salt) -> Result<Self, KeyError> {
        let derive = |label: &str| derive(&seed.0, &salt, label);
        let scalar = |label: &str| deterministic::p384_key(&derive(label)?.0);
        Ok(Self {
            pod_state: derive("POD STATE SECRET")?,
            root_key: CaKey::from_secret(scalar("ROOT CA SEED")?)?,
            transaction_key: TransactionKey::from_secret(scalar("TRANSACTION SIGNING SECRET")?),
            log_key: LogKey::from_secret(&derive("EVENT LOG SIGNING SECRET")?.0)?,
            challenge_key: derive("HTTP CHALLENGE SECRET")?,
            seed,
            salt,
        })
    }

    /// The seed itself, for peers and seed shares.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// The salt.
    pub fn salt(&self) -> &Salt {
        &self.salt
    }

    /// Key of the root CA.
    pub fn root_key(&self) -> &CaKey {
        &self.root_key
    }

    /// Key that signs the latest transition.
    pub fn transaction_key(&self) -> &TransactionKey {
        &self.transaction_key
    }

    /// Key that signs the event log.
    pub fn log_key(&self) -> &LogKey {
        &self.log_key
    }

    /// HMAC-SHA-256 that every replica of the deployment can check, over a nonce for a caller of the HTTP API.
    pub fn challenge_mac(&self, content: &[u8]) -> [u8; 32] {
        crate::hmac_sha256(&self.challenge_key.0, content)
    }

    /// The secret of that name: the same for every manifest, restart and replica.
    pub fn workload_secret(&self, id: &WorkloadSecretId) -> Result<WorkloadSecret, KeyError> {
        derive(&self.pod_state.0, &self.salt, &format!("WORKLOAD SECRET ID: {}", id.as_str()))
    }
}

/// HKDF-SHA-256 with the output as long as the input.
fn derive(secret: &[u8], salt: &Salt, label: &str) -> Result<WorkloadSecret, KeyError> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let library = |_| KeyError::Library("HKDF");
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt.as_bytes()).extract(secret);
    let mut output = WorkloadSecret(vec![0; secret.len()]);
    let info = [label.as_bytes()];
    key.expand(&info, Length(secret.len())).and_then(|okm| okm.fill(&mut output.0)).map_err(library)?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 00..3f, salt 00..1f: the vectors of docs/spec/control-plane.md, section 5.5.
    fn engine() -> SeedEngine {
        let seed: Vec<u8> = (0..64).collect();
        let salt: Vec<u8> = (0..32).collect();
        SeedEngine::new(Seed::from_bytes(&seed).unwrap(), Salt::from_bytes(&salt).unwrap()).unwrap()
    }

    #[test]
    fn derived_secrets_match_the_vectors() {
        let engine = engine();
        let first_16 = |label: &str| {
            hex::encode(&derive(engine.seed.expose(), engine.salt(), label).unwrap().expose()[..16])
        };
        assert_eq!(first_16("POD STATE SECRET"), "2a038420b499a5824b7c95d45037675c");
        assert_eq!(first_16("HISTORY SECRET"), "bb97b3d22f6ce2ea77f320783b36efc6");
        assert_eq!(first_16("TRANSACTION SIGNING SECRET"), "bf463420c8e0bfd43930dbaa1dcffb81");
        assert_eq!(first_16("ROOT CA SEED"), "c7da14adaeb522df442c536a3a6b7406");
    }

    #[test]
    fn workload_secrets_match_the_vectors() {
        let secret = |id| engine().workload_secret(&WorkloadSecretId::new(id).unwrap()).unwrap();
        assert_eq!(hex::encode(&secret("demo").expose()[..16]), "fda1e4115aad7bd8eea1590e0c0e003b");
        assert_eq!(
            hex::encode(&secret("1_demo").expose()[..32]),
            "ee3b7e9eb9fae3d6c83c9343f73b27ee80b5c57680f4ce0a2858f521090eb16b"
        );
    }

    #[test]
    fn derived_keys_match_the_vectors() {
        let qx = |spki: Vec<u8>| hex::encode(&spki[spki.len() - 96..spki.len() - 48]);
        assert_eq!(
            qx(engine().root_key().public_der()),
            "53f0387b654b0ca1b22c8a7f7fd16a0b75dd14d3f2950f30a7fcc1a835330c9ed8909a645e96be4137e31c58699209a3"
        );
        assert_eq!(
            qx(engine().transaction_key().public().to_der()),
            "38459d7333a767873fbee3cdfad388e4e5d2622e46eddb52a8c837101aa0eda7c28255195cddd96a64565e57f3ce04e1"
        );
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(
            Seed::from_bytes(&[0; 31]).err().unwrap().to_string(),
            "seed has 31 bytes, expected 32 to 64"
        );
        assert!(Salt::from_bytes(&[0; 33]).is_err());
        assert!(WorkloadSecretId::new("").is_none());
    }
}
