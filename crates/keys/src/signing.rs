//! Signing keys, each for one use.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use manifest::TransitionHash;
use p384::{
    NistP384,
    ecdsa::{
        DerSignature, Signature, SigningKey, VerifyingKey,
        signature::hazmat::{PrehashSigner as _, PrehashVerifier as _},
    },
    elliptic_curve::sec1::ToEncodedPoint as _,
    pkcs8::{
        AssociatedOid as _, DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _,
        EncodePublicKey as _,
    },
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{KeyError, SignatureError};

/// Signs the event log: Ed25519.
pub struct LogKey(Ed25519KeyPair);

/// What event log signatures are checked with: an Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogPublicKey(#[serde(with = "serde_bytes")] [u8; 32]);

impl LogKey {
    /// The key whose Ed25519 seed are the first 32 bytes of `secret`.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        let seed = secret.get(..32).unwrap_or(secret);
        let length = KeyError::Length { what: "log key", found: secret.len(), expected: "32 or more" };
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_| length)
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }

    /// The public half.
    pub fn public(&self) -> LogPublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        LogPublicKey(bytes)
    }
}

impl LogPublicKey {
    /// Wraps the 32 bytes of a public key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks a signature of 64 bytes.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).map_err(|_| SignatureError)
    }
}

/// Signs the latest transition: P-384, derived from the seed.
pub struct TransactionKey(SigningKey);

/// What the latest transition's signature is checked with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionPublicKey(VerifyingKey);

impl TransactionKey {
    pub(crate) fn from_secret(secret: p384::SecretKey) -> Self {
        Self(secret.into())
    }

    #[cfg(test)]
    pub(crate) fn expose_scalar(&self) -> Vec<u8> {
        self.0.to_bytes().to_vec()
    }

    /// Signs a transition: the 32 bytes are the digest itself. ASN.1 DER.
    pub fn sign(&self, transition: &TransitionHash) -> Result<Vec<u8>, KeyError> {
        let signature: Signature = self
            .0
            .sign_prehash(&padded(transition))
            .map_err(|_| KeyError::Library("signing a transition"))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    /// The public half.
    pub fn public(&self) -> TransactionPublicKey {
        TransactionPublicKey(*self.0.verifying_key())
    }
}

impl TransactionPublicKey {
    /// SubjectPublicKeyInfo DER.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.to_public_key_der().map(|der| der.as_bytes().to_vec()).unwrap_or_default()
    }

    /// From SubjectPublicKeyInfo DER.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let malformed = KeyError::Malformed { what: "transaction key", expected: "a P-384 public key" };
        VerifyingKey::from_public_key_der(der).map(Self).map_err(|_| malformed)
    }

    /// Checks the ASN.1 DER signature of a transition.
    pub fn verify(&self, transition: &TransitionHash, signature: &[u8]) -> Result<(), SignatureError> {
        let signature = DerSignature::try_from(signature).map_err(|_| SignatureError)?;
        let signature = Signature::try_from(signature).map_err(|_| SignatureError)?;
        self.0.verify_prehash(&padded(transition), &signature).map_err(|_| SignatureError)
    }
}

/// A digest shorter than the curve's order counts as a number: zeros go in front.
fn padded(transition: &TransitionHash) -> [u8; 48] {
    let mut digest = [0; 48];
    digest[16..].copy_from_slice(transition.as_bytes());
    digest
}

/// Key of a certificate authority: P-384.
#[derive(Clone)]
pub struct CaKey(p384::SecretKey);

impl CaKey {
    /// Draws a key.
    pub fn generate() -> Result<Self, KeyError> {
        // 48 random bytes are out of range with a chance of 2^-190.
        let scalar = Zeroizing::new(crate::random::<48>()?);
        p384::SecretKey::from_slice(scalar.as_slice())
            .map(Self)
            .map_err(|_| KeyError::Library("key generation"))
    }

    #[expect(clippy::unnecessary_wraps, reason = "one shape for all derived keys")]
    pub(crate) fn from_secret(secret: p384::SecretKey) -> Result<Self, KeyError> {
        Ok(Self(secret))
    }

    /// PEM `EC PRIVATE KEY`, SEC1: the form in which a peer receives it.
    pub fn to_sec1_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        // SecretKey::to_sec1_pem leaves the curve out, and then OpenSSL and Go do not read the key.
        let scalar = Zeroizing::new(self.0.to_bytes());
        let point = self.0.public_key().to_encoded_point(false);
        let key = sec1::EcPrivateKey {
            private_key: &scalar,
            parameters: Some(sec1::EcParameters::NamedCurve(NistP384::OID)),
            public_key: Some(point.as_bytes()),
        };
        let encoding = |_| KeyError::Library("key encoding");
        let der = sec1::der::SecretDocument::encode_msg(&key).map_err(encoding)?;
        der.to_pem("EC PRIVATE KEY", p384::pkcs8::LineEnding::LF).map_err(encoding)
    }

    /// Reads the form of [`Self::to_sec1_pem`].
    pub fn from_sec1_pem(pem: &str) -> Result<Self, KeyError> {
        let malformed = KeyError::Malformed { what: "CA key", expected: "a P-384 key in SEC1 PEM" };
        p384::SecretKey::from_sec1_pem(pem).map(Self).map_err(|_| malformed)
    }

    /// Signs a message: ECDSA with SHA-256, ASN.1 DER. Messages begin with a label of their purpose, and no certificate
    /// does: so neither is ever taken for the other.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut digest = [0; 48];
        digest[16..].copy_from_slice(&crate::sha256(&[message]));
        let signature: Signature = SigningKey::from(&self.0)
            .sign_prehash(&digest)
            .map_err(|_| KeyError::Library("signing with the mesh CA key"))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    /// PKCS#8 DER.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let der = self.0.to_pkcs8_der().map_err(|_| KeyError::Library("key encoding"))?;
        Ok(Zeroizing::new(der.as_bytes().to_vec()))
    }

    /// Reads the form of [`Self::to_pkcs8`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let malformed = KeyError::Malformed { what: "CA key", expected: "a P-384 key in PKCS#8" };
        p384::SecretKey::from_pkcs8_der(der).map(Self).map_err(|_| malformed)
    }

    /// The public half, SubjectPublicKeyInfo DER.
    pub fn public_der(&self) -> Vec<u8> {
        self.0.public_key().to_public_key_der().map(|der| der.as_bytes().to_vec()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_signature_verifies_for_that_transition_only() {
        let key = TransactionKey::from_secret(crate::deterministic::p384_key(&[7; 64]).unwrap());
        let transition = TransitionHash::from_bytes([0xab; 32]);
        let signature = key.sign(&transition).unwrap();
        assert_eq!(key.public().verify(&transition, &signature), Ok(()));
        assert_eq!(key.public().verify(&TransitionHash::ZERO, &signature), Err(SignatureError));
        let public = TransactionPublicKey::from_der(&key.public().to_der()).unwrap();
        assert_eq!(public, key.public());
    }

    #[test]
    fn log_signature_is_over_the_message() {
        let key = LogKey::from_secret(&[9; 64]).unwrap();
        let signature = key.sign(b"head");
        assert_eq!(key.public().verify(b"head", &signature), Ok(()));
        assert_eq!(key.public().verify(b"tail", &signature), Err(SignatureError));
        assert!(LogKey::from_secret(&[9; 31]).is_err());
    }

    #[test]
    fn ca_key_survives_both_encodings() {
        let key = CaKey::generate().unwrap();
        let pem = key.to_sec1_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN EC PRIVATE KEY-----"));
        let (_, der) = sec1::der::SecretDocument::from_pem(&pem).unwrap();
        let names_p384 = der.as_bytes().windows(7).any(|part| part == [6, 5, 0x2b, 0x81, 4, 0, 0x22]);
        assert!(names_p384, "others read a key only if it names its curve");
        assert_eq!(CaKey::from_sec1_pem(&pem).unwrap().public_der(), key.public_der());
        assert_eq!(CaKey::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap().public_der(), key.public_der());
    }
}
