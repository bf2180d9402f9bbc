//! The secret that Coordinators share among themselves and seedshare owners never see
//! (docs/spec/control-plane.md, section 5.7; why: docs/replicas.md). It wraps mesh CA keys, so that every
//! replica follows a manifest change from the log alone.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};
use manifest::TransitionHash;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{CaKey, KeyError, random};

/// 32 random bytes, replaced at every manifest change.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ReplicaSecret([u8; 32]);

impl ReplicaSecret {
    /// Draws a secret.
    pub fn generate() -> Result<Self, KeyError> {
        random().map(Self)
    }

    /// Takes over a peer's secret.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Encrypts a mesh CA key for the other replicas: nonce, AES-256-GCM ciphertext, tag. The
    /// transition it belongs to is authenticated with it.
    pub fn wrap(&self, key: &CaKey, transition: &TransitionHash) -> Result<Vec<u8>, KeyError> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = key.to_pkcs8()?.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(transition.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| KeyError::Library("AES-GCM"))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what [`Self::wrap`] made for the same transition.
    pub fn unwrap_key(&self, wrapped: &[u8], transition: &TransitionHash) -> Result<CaKey, KeyError> {
        let sealed = KeyError::Sealed("wrapped mesh CA key");
        let (nonce, ciphertext) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(sealed.clone())?;
        let mut plain = Zeroizing::new(ciphertext.to_vec());
        let der = self
            .cipher()?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(transition.as_bytes()),
                plain.as_mut_slice(),
            )
            .map_err(|_| sealed)?;
        CaKey::from_pkcs8(der)
    }

    /// The secret after `transition`; the old one cannot be computed from it and is erased.
    pub fn ratchet(self, transition: &TransitionHash) -> Result<Self, KeyError> {
        let mut next = Self([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, transition.as_bytes())
            .extract(&self.0)
            .expand(&[b"REPLICA SECRET RATCHET"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut next.0))
            .map_err(|_| KeyError::Library("HKDF"))?;
        Ok(next)
    }

    fn cipher(&self) -> Result<LessSafeKey, KeyError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| KeyError::Library("AES-GCM"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_key_opens_for_its_transition_only() {
        let (secret, key) = (ReplicaSecret::generate().unwrap(), CaKey::generate().unwrap());
        let transition = TransitionHash::from_bytes([5; 32]);
        let wrapped = secret.wrap(&key, &transition).unwrap();
        let opened = secret.unwrap_key(&wrapped, &transition).unwrap();
        assert_eq!(opened.public_der(), key.public_der());
        let refused = Some(KeyError::Sealed("wrapped mesh CA key"));
        assert_eq!(secret.unwrap_key(&wrapped, &TransitionHash::ZERO).err(), refused);
        assert_eq!(secret.unwrap_key(&wrapped[..11], &transition).err(), refused);
        let next = secret.ratchet(&transition).unwrap();
        assert_eq!(next.unwrap_key(&wrapped, &transition).err(), refused);
    }
}
