//! What owners sign and how it is checked: manifest changes (EC) and recoveries (RSA).

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, EcdsaVerificationAlgorithm, KeyPair as _,
        RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256, UnparsedPublicKey,
    },
};
use manifest::KeyDigest;
use p384::pkcs8::{
    DecodePrivateKey as _, EncodePublicKey as _, SubjectPublicKeyInfoRef,
    der::{Decode as _, SecretDocument},
};

use crate::{KeyError, SignatureError};

const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// Checks a detached signature: ECDSA with SHA-256, ASN.1 DER, under a P-256 or P-384 key in
/// SubjectPublicKeyInfo DER (docs/spec/control-plane.md, section 7.4).
pub fn verify_ecdsa_sha256(spki_der: &[u8], message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    let (algorithm, point) = ec_key(spki_der).ok_or(SignatureError)?;
    UnparsedPublicKey::new(algorithm, point).verify(message, signature).map_err(|_| SignatureError)
}

fn ec_key(spki_der: &[u8]) -> Option<(&'static EcdsaVerificationAlgorithm, &[u8])> {
    let spki = SubjectPublicKeyInfoRef::from_der(spki_der).ok()?;
    let algorithm: &EcdsaVerificationAlgorithm =
        match spki.algorithm.parameters_oid().ok()?.to_string().as_str() {
            P256 => &ECDSA_P256_SHA256_ASN1,
            P384 => &ECDSA_P384_SHA256_ASN1,
            _ => return None,
        };
    Some((algorithm, spki.subject_public_key.as_bytes()?))
}

/// Checks that the holder of a public key (EC P-256 or P-384, or RSA; SubjectPublicKeyInfo DER) signed a message:
/// ECDSA with SHA-256, or RSASSA-PSS with SHA-256.
pub fn verify_possession(spki_der: &[u8], message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    const RSA: &str = "1.2.840.113549.1.1.1";
    let spki = SubjectPublicKeyInfoRef::from_der(spki_der).map_err(|_| SignatureError)?;
    if spki.algorithm.oid.to_string() != RSA {
        return verify_ecdsa_sha256(spki_der, message, signature);
    }
    let public = spki.subject_public_key.as_bytes().ok_or(SignatureError)?;
    verify_rsa_pss(public, message, signature)
}

/// Checks that bytes are a workload owner's or an auditor's key: EC P-256 or P-384, PKIX DER.
pub fn check_workload_owner_key(spki_der: &[u8]) -> Result<(), KeyError> {
    use p384::pkcs8::DecodePublicKey as _;
    let on_curve = match ec_key(spki_der).map(|(_, point)| point.len()) {
        Some(65) => p256::PublicKey::from_public_key_der(spki_der).is_ok(),
        Some(97) => p384::PublicKey::from_public_key_der(spki_der).is_ok(),
        _ => false,
    };
    let expected = "an EC key of P-256 or P-384 in PKIX DER";
    on_curve.then_some(()).ok_or(KeyError::Malformed { what: "workload owner key", expected })
}

/// Which of the keys with these digests made the signature. Older manifests hold digests alone, so
/// the keys that fit the signature are computed from it, and looked for among the digests. ECDSA with
/// SHA-256, P-384 or P-256, ASN.1 DER.
pub fn recover_signer(message: &[u8], signature: &[u8], digests: &[KeyDigest]) -> Option<KeyDigest> {
    let hash = digest(&SHA256, message);
    let mut padded = [0; 48];
    padded[16..].copy_from_slice(hash.as_ref());
    let mut candidates = Vec::new();
    if let Ok(signature) = p384::ecdsa::Signature::from_der(signature) {
        let ids = (0..4).filter_map(ecdsa::RecoveryId::from_byte);
        let keys = ids
            .filter_map(|id| p384::ecdsa::VerifyingKey::recover_from_prehash(&padded, &signature, id).ok());
        candidates.extend(keys.filter_map(|key| key.to_public_key_der().ok()));
    }
    if let Ok(signature) = p256::ecdsa::Signature::from_der(signature) {
        let ids = (0..4).filter_map(ecdsa::RecoveryId::from_byte);
        let keys = ids.filter_map(|id| {
            p256::ecdsa::VerifyingKey::recover_from_prehash(hash.as_ref(), &signature, id).ok()
        });
        candidates.extend(keys.filter_map(|key| key.to_public_key_der().ok()));
    }
    let fits = |spki: &[u8]| verify_ecdsa_sha256(spki, message, signature).is_ok();
    let candidate = candidates
        .iter()
        .find(|key| digests.contains(&KeyDigest::of(key.as_bytes())) && fits(key.as_bytes()));
    candidate.map(|key| KeyDigest::of(key.as_bytes()))
}

/// Signs as a workload owner: ECDSA with SHA-256, ASN.1 DER. The key is P-384 or P-256 in PEM, SEC1 or
/// PKCS#8.
pub fn sign_ecdsa_sha256(private_pem: &str, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    use p384::ecdsa::signature::hazmat::PrehashSigner as _;
    let hash = digest(&SHA256, message);
    let library = |_| KeyError::Library("ECDSA");
    if let Ok(key) = p384::SecretKey::from_sec1_pem(private_pem)
        .map_err(|_| ())
        .or_else(|()| p384::SecretKey::from_pkcs8_pem(private_pem).map_err(|_| ()))
    {
        let mut padded = [0; 48];
        padded[16..].copy_from_slice(hash.as_ref());
        let signature: p384::ecdsa::Signature =
            p384::ecdsa::SigningKey::from(key).sign_prehash(&padded).map_err(library)?;
        return Ok(signature.to_der().as_bytes().to_vec());
    }
    let key = p256::SecretKey::from_sec1_pem(private_pem)
        .map_err(|_| ())
        .or_else(|()| p256::SecretKey::from_pkcs8_pem(private_pem).map_err(|_| ()))
        .map_err(|()| KeyError::Malformed {
            what: "workload owner key",
            expected: "P-384 or P-256 in PEM",
        })?;
    let signature: p256::ecdsa::Signature =
        p256::ecdsa::SigningKey::from(key).sign_prehash(hash.as_ref()).map_err(library)?;
    Ok(signature.to_der().as_bytes().to_vec())
}

/// Signs as a seedshare owner: RSASSA-PSS with SHA-256. The key is PKCS#1 PEM. Gives the signature and
/// the public key, PKCS#1 DER.
pub fn sign_rsa_pss(private_pem: &str, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
    let malformed =
        KeyError::Malformed { what: "seedshare owner key", expected: "PEM with label RSA PRIVATE KEY" };
    let (label, pkcs1) = SecretDocument::from_pem(private_pem).map_err(|_| malformed.clone())?;
    if label != "RSA PRIVATE KEY" {
        return Err(malformed);
    }
    let key = RsaKeyPair::from_der(pkcs1.as_bytes()).map_err(|_| malformed)?;
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature)
        .map_err(|_| KeyError::Library("RSA-PSS"))?;
    Ok((signature, key.public_key().as_ref().to_vec()))
}

/// Checks a seedshare owner's signature, made by [`sign_rsa_pss`].
pub fn verify_rsa_pss(
    public_pkcs1_der: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, public_pkcs1_der)
        .verify(message, signature)
        .map_err(|_| SignatureError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signer_is_found_by_its_digest_alone() {
        let (pem, public) = crate::generate_workload_owner_key().unwrap();
        let p256 = rcgen::KeyPair::generate().unwrap();
        let p256_public = rcgen::PublicKeyData::subject_public_key_info(&p256);
        let digests = [KeyDigest::of(b"somebody else"), KeyDigest::of(&public), KeyDigest::of(&p256_public)];
        for (pem, public) in [(pem.as_str(), &public), (p256.serialize_pem().as_str(), &p256_public)] {
            let signature = sign_ecdsa_sha256(pem, b"change").unwrap();
            assert_eq!(verify_ecdsa_sha256(public, b"change", &signature), Ok(()));
            assert_eq!(recover_signer(b"change", &signature, &digests), Some(KeyDigest::of(public)));
            assert_eq!(recover_signer(b"another", &signature, &digests), None);
            assert_eq!(recover_signer(b"change", &signature, &digests[..1]), None);
            assert_eq!(check_workload_owner_key(public), Ok(()));
        }
        assert_eq!(recover_signer(b"change", b"no signature", &digests), None);
        assert!(check_workload_owner_key(&public[..90]).is_err());
    }

    #[test]
    fn recovery_signature_is_by_the_owner_over_the_message() {
        let (pem, public) = crate::generate_seedshare_owner_key().unwrap();
        let (signature, found) = sign_rsa_pss(&pem, b"recover").unwrap();
        assert_eq!(found, public);
        assert_eq!(verify_rsa_pss(&public, b"recover", &signature), Ok(()));
        assert_eq!(verify_rsa_pss(&public, b"other", &signature), Err(SignatureError));
    }
}
