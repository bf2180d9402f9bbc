//! Keys of the transit engine: they encrypt for a workload and never leave the Coordinator
//! (docs/spec/control-plane.md, section 10).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{KeyError, SeedEngine, WorkloadSecretId, random};

/// A key of the transit engine: AES-256-GCM with random nonces, so for at most 2^32 messages.
pub struct TransitKey(LessSafeKey);

impl SeedEngine {
    /// The key of that name and version.
    pub fn transit_key(&self, name: &WorkloadSecretId, version: u32) -> Result<TransitKey, KeyError> {
        let malformed = KeyError::Malformed { what: "key name", expected: "a text that is not empty" };
        let id = WorkloadSecretId::new(&format!("{version}_{}", name.as_str())).ok_or(malformed)?;
        let secret = self.workload_secret(&id)?;
        let key = secret.expose().get(..32).ok_or(KeyError::Library("HKDF"))?;
        UnboundKey::new(&AES_256_GCM, key)
            .map(|key| TransitKey(LessSafeKey::new(key)))
            .map_err(|_| KeyError::Library("AES-GCM"))
    }
}

impl TransitKey {
    /// Encrypts: nonce, ciphertext, tag.
    pub fn seal(&self, plaintext: &[u8], associated_data: &[u8]) -> Result<Vec<u8>, KeyError> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = plaintext.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated_data),
                &mut sealed,
            )
            .map_err(|_| KeyError::Library("AES-GCM"))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what [`Self::seal`] made with the same associated data.
    pub fn open(&self, sealed: &[u8], associated_data: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let refused = KeyError::Sealed("ciphertext");
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(refused.clone())?;
        let mut plain = Zeroizing::new(ciphertext.to_vec());
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(associated_data), &mut plain)
            .map_err(|_| refused)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Salt, Seed};

    #[test]
    fn what_was_sealed_opens_with_the_same_name_version_and_associated_data_only() {
        let engine = SeedEngine::new(Seed::generate().unwrap(), Salt::generate().unwrap()).unwrap();
        let key = |name, version| engine.transit_key(&WorkloadSecretId::new(name).unwrap(), version).unwrap();
        let sealed = key("web", 1).seal(b"text", b"context").unwrap();
        assert_eq!(key("web", 1).open(&sealed, b"context").unwrap().as_slice(), b"text");
        let refused = Some(KeyError::Sealed("ciphertext"));
        assert_eq!(key("web", 1).open(&sealed, b"").err(), refused);
        assert_eq!(key("web", 2).open(&sealed, b"context").err(), refused);
        assert_eq!(key("db", 1).open(&sealed, b"context").err(), refused);
        assert_eq!(key("web", 1).open(&sealed[..11], b"context").err(), refused);
    }
}
