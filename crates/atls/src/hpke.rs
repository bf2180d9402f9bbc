//! The form of attested communication for paths that end TLS on the way (RFC 9180): what must stay
//! secret is sealed to a key that evidence vouches for. DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! AES-256-GCM, base mode.

use std::sync::Arc;

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey, HpkeSealer},
};
use zeroize::Zeroizing;

/// Length of a public key and of an encapsulated key, in bytes.
const KEY_BYTES: usize = 32;

/// A key pair that lives as long as the process.
#[derive(Clone)]
pub struct HpkeKey {
    public: Vec<u8>,
    private: Arc<HpkePrivateKey>,
}

/// Something sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The sender's one-time public key, 32 bytes.
    pub encapsulated_key: Vec<u8>,
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// Why something cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpkeError {
    /// Not a public key of X25519.
    #[error("an HPKE public key has {0} bytes, expected {KEY_BYTES}")]
    Key(usize),
    /// Another key, another purpose, other associated data, or changed bytes.
    #[error("the sealed message does not open: it was sealed to another key or for another purpose")]
    Sealed,
    /// The cryptographic library refused something that it never should.
    #[error("the cryptographic library failed in HPKE")]
    Library,
}

impl HpkeKey {
    /// Draws a key.
    pub fn generate() -> Result<Self, HpkeError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| HpkeError::Library)?;
        Ok(Self { public: public.0, private: Arc::new(private) })
    }

    /// The public half, 32 bytes.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Opens what [`seal`] made for this key, the same purpose and the same associated data.
    pub fn open(&self, sealed: &Sealed, purpose: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, HpkeError> {
        if sealed.encapsulated_key.len() != KEY_BYTES {
            return Err(HpkeError::Key(sealed.encapsulated_key.len()));
        }
        let encapsulated = EncapsulatedSecret(sealed.encapsulated_key.clone());
        SUITE
            .open(&encapsulated, purpose, aad, &sealed.ciphertext, &self.private)
            .map(Zeroizing::new)
            .map_err(|_| HpkeError::Sealed)
    }
}

/// Seals one message, whose sender wants to know the encapsulated key first.
pub struct Sealer {
    encapsulated_key: Vec<u8>,
    sealer: Box<dyn HpkeSealer>,
}

impl Sealer {
    /// Prepares a message to a public key; without associated data.
    pub fn new(public_key: &[u8], purpose: &[u8]) -> Result<Self, HpkeError> {
        if public_key.len() != KEY_BYTES {
            return Err(HpkeError::Key(public_key.len()));
        }
        let key = HpkePublicKey(public_key.to_vec());
        let (encapsulated, sealer) = SUITE.setup_sealer(purpose, &key).map_err(|_| HpkeError::Library)?;
        Ok(Self { encapsulated_key: encapsulated.0, sealer })
    }

    /// The sender's one-time public key.
    pub fn encapsulated_key(&self) -> &[u8] {
        &self.encapsulated_key
    }

    /// Seals the message.
    pub fn seal(mut self, plaintext: &[u8]) -> Result<Sealed, HpkeError> {
        let ciphertext = self.sealer.seal(&[], plaintext).map_err(|_| HpkeError::Library)?;
        Ok(Sealed { encapsulated_key: self.encapsulated_key, ciphertext })
    }
}

/// Seals to a public key. `purpose` is HPKE's `info`: it separates protocols.
pub fn seal(public_key: &[u8], purpose: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Sealed, HpkeError> {
    if public_key.len() != KEY_BYTES {
        return Err(HpkeError::Key(public_key.len()));
    }
    let (encapsulated, ciphertext) = SUITE
        .seal(purpose, aad, plaintext, &HpkePublicKey(public_key.to_vec()))
        .map_err(|_| HpkeError::Library)?;
    Ok(Sealed { encapsulated_key: encapsulated.0, ciphertext })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_key_purpose_and_data_only() {
        let (key, other) = (HpkeKey::generate().unwrap(), HpkeKey::generate().unwrap());
        let sealed = seal(key.public(), b"purpose", b"data", b"secret").unwrap();
        assert_eq!(key.open(&sealed, b"purpose", b"data").unwrap().as_slice(), b"secret");
        for (key, purpose, data) in
            [(&other, "purpose", "data"), (&key, "else", "data"), (&key, "purpose", "")]
        {
            assert_eq!(key.open(&sealed, purpose.as_bytes(), data.as_bytes()).err(), Some(HpkeError::Sealed));
        }
        let sealer = Sealer::new(key.public(), b"purpose").unwrap();
        let sealed_later = sealer.seal(b"secret").unwrap();
        assert_eq!(key.open(&sealed_later, b"purpose", b"").unwrap().as_slice(), b"secret");
        let short = Sealed { encapsulated_key: vec![1; 31], ..sealed };
        assert_eq!(key.open(&short, b"purpose", b"data").err(), Some(HpkeError::Key(31)));
        assert_eq!(seal(&[0; 33], b"", b"", b"").err(), Some(HpkeError::Key(33)));
    }
}
