//! Seed shares: the seed encrypted to each seedshare owner (docs/spec/control-plane.md, section 5.4), and the
//! keys of owners.

use aws_lc_rs::{
    encoding::AsDer as _,
    rsa::{
        KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
        PrivateDecryptingKey, PublicEncryptingKey,
    },
};
use p384::pkcs8::{
    AlgorithmIdentifierRef, LineEnding, ObjectIdentifier, PrivateKeyInfo, SubjectPublicKeyInfoRef,
    der::{
        Decode as _, Encode as _, SecretDocument,
        asn1::{AnyRef, BitStringRef},
    },
};
use zeroize::Zeroizing;

use crate::KeyError;

const LABEL: &[u8] = b"seedshare";
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ALGORITHM: AlgorithmIdentifierRef<'static> =
    AlgorithmIdentifierRef { oid: RSA_ENCRYPTION, parameters: Some(AnyRef::NULL) };

/// Encrypts the seed, or a [`crate::PartialSeed`], to an owner's RSA key (PKCS#1 DER, 2048 to 8192
/// bits): RSA-OAEP with SHA-256 and the label `seedshare`.
pub fn encrypt_seed_share(share: &[u8], owner_pkcs1_der: &[u8]) -> Result<Vec<u8>, KeyError> {
    let malformed =
        || KeyError::Malformed { what: "seedshare owner key", expected: "an RSA key in PKCS#1 DER" };
    let bits = BitStringRef::from_bytes(owner_pkcs1_der).map_err(|_| malformed())?;
    let spki = SubjectPublicKeyInfoRef { algorithm: ALGORITHM, subject_public_key: bits };
    let der = spki.to_der().map_err(|_| malformed())?;
    let key = PublicEncryptingKey::from_der(&der).map_err(|_| malformed())?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| malformed())?;
    let mut ciphertext = vec![0; key.ciphertext_size()];
    let ciphertext = key
        .encrypt(&OAEP_SHA256_MGF1SHA256, share, &mut ciphertext, Some(LABEL))
        .map_err(|_| KeyError::Library("RSA-OAEP"))?;
    Ok(ciphertext.to_vec())
}

/// Opens a seed share with the owner's private key (PKCS#1 PEM, `RSA PRIVATE KEY`): the seed, or one of
/// its parts where several owners are needed.
pub fn decrypt_seed_share(share: &[u8], owner_private_pem: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let malformed =
        || KeyError::Malformed { what: "seedshare owner key", expected: "PEM with label RSA PRIVATE KEY" };
    let (label, pkcs1) = SecretDocument::from_pem(owner_private_pem).map_err(|_| malformed())?;
    if label != "RSA PRIVATE KEY" {
        return Err(malformed());
    }
    let pkcs8 = PrivateKeyInfo::new(ALGORITHM, pkcs1.as_bytes()).to_der().map(Zeroizing::new);
    let key = PrivateDecryptingKey::from_pkcs8(&pkcs8.map_err(|_| malformed())?).map_err(|_| malformed())?;
    let key = OaepPrivateDecryptingKey::new(key).map_err(|_| malformed())?;
    let mut plain = Zeroizing::new(vec![0; key.min_output_size()]);
    let seed = key
        .decrypt(&OAEP_SHA256_MGF1SHA256, share, &mut plain, Some(LABEL))
        .map_err(|_| KeyError::Sealed("seed share"))?;
    Ok(Zeroizing::new(seed.to_vec()))
}

/// Makes a seedshare owner's key, RSA-4096: private as PKCS#1 PEM, public as PKCS#1 DER. Takes
/// about a second.
pub fn generate_seedshare_owner_key() -> Result<(Zeroizing<String>, Vec<u8>), KeyError> {
    let library = |_| KeyError::Library("RSA key generation");
    let key = PrivateDecryptingKey::generate(KeySize::Rsa4096).map_err(library)?;
    let pkcs8 = key.as_der().map_err(library)?;
    let encoding = |_| KeyError::Library("key encoding");
    let private = PrivateKeyInfo::from_der(pkcs8.as_ref()).map_err(encoding)?;
    let document = SecretDocument::try_from(private.private_key).map_err(encoding)?;
    let pem = document.to_pem("RSA PRIVATE KEY", LineEnding::LF).map_err(encoding)?;
    let spki = key.public_key().as_der().map_err(library)?;
    let spki = SubjectPublicKeyInfoRef::from_der(spki.as_ref()).map_err(encoding)?;
    let public = spki.subject_public_key.as_bytes().unwrap_or_default().to_vec();
    Ok((pem, public))
}

/// Makes a workload owner's key, P-384: private as SEC1 PEM, public as PKIX DER.
pub fn generate_workload_owner_key() -> Result<(Zeroizing<String>, Vec<u8>), KeyError> {
    let key = crate::CaKey::generate()?;
    Ok((key.to_sec1_pem()?, key.public_der()))
}

/// The public half (PKIX DER) of a workload owner's key, from either half: `EC PRIVATE KEY` (P-384) or
/// `PUBLIC KEY`.
pub fn workload_owner_public_key(pem: &str) -> Result<Vec<u8>, KeyError> {
    let malformed = || KeyError::Malformed {
        what: "workload owner key",
        expected: "PEM with label EC PRIVATE KEY (P-384) or PUBLIC KEY",
    };
    let (label, der) = SecretDocument::from_pem(pem).map_err(|_| malformed())?;
    match label {
        "EC PRIVATE KEY" => Ok(crate::CaKey::from_sec1_pem(pem).map_err(|_| malformed())?.public_der()),
        "PUBLIC KEY" => {
            SubjectPublicKeyInfoRef::from_der(der.as_bytes()).map_err(|_| malformed())?;
            Ok(der.as_bytes().to_vec())
        }
        _ => Err(malformed()),
    }
}

/// The public half (PKCS#1 DER) of a seedshare owner's key, from either half: `RSA PRIVATE KEY` or
/// `RSA PUBLIC KEY`.
pub fn seedshare_owner_public_key(pem: &str) -> Result<Vec<u8>, KeyError> {
    let malformed = || KeyError::Malformed {
        what: "seedshare owner key",
        expected: "PEM with label RSA PRIVATE KEY or RSA PUBLIC KEY",
    };
    let (label, der) = SecretDocument::from_pem(pem).map_err(|_| malformed())?;
    match label {
        "RSA PUBLIC KEY" => Ok(der.as_bytes().to_vec()),
        "RSA PRIVATE KEY" => {
            let pkcs8 = PrivateKeyInfo::new(ALGORITHM, der.as_bytes()).to_der().map(Zeroizing::new);
            let key = PrivateDecryptingKey::from_pkcs8(&pkcs8.map_err(|_| malformed())?);
            let spki = key.map_err(|_| malformed())?.public_key().as_der().map_err(|_| malformed())?;
            let spki = SubjectPublicKeyInfoRef::from_der(spki.as_ref()).map_err(|_| malformed())?;
            Ok(spki.subject_public_key.as_bytes().unwrap_or_default().to_vec())
        }
        _ => Err(malformed()),
    }
}

/// Identifies a seed shares document: the salt, and each owner's key (PKCS#1 DER) with what was encrypted to it. A
/// Coordinator's evidence covers it, so that nobody on the way puts shares of another seed in its place.
pub fn seed_shares_digest<'a>(
    salt: &[u8],
    shares: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> [u8; 32] {
    let length = |part: &[u8]| (part.len() as u64).to_be_bytes();
    let mut text = b"contrast seed shares v1\0".to_vec();
    text.extend(length(salt));
    text.extend(salt);
    for (owner, ciphertext) in shares {
        for part in [owner, ciphertext] {
            text.extend(length(part));
            text.extend(part);
        }
    }
    crate::sha256(&[&text])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    #[test]
    fn share_opens_with_its_owner_key_only() {
        let (pem, public) = generate_seedshare_owner_key().unwrap();
        let seed = Seed::generate().unwrap();
        let share = encrypt_seed_share(seed.expose(), &public).unwrap();
        assert_eq!(decrypt_seed_share(&share, &pem).unwrap().as_slice(), seed.expose());

        let (other, _) = generate_seedshare_owner_key().unwrap();
        let refused = decrypt_seed_share(&share, &other).err();
        assert_eq!(refused, Some(KeyError::Sealed("seed share")));
        assert_eq!(seedshare_owner_public_key(&pem), Ok(public.clone()));
        let (owner, owner_public) = generate_workload_owner_key().unwrap();
        assert_eq!(workload_owner_public_key(&owner), Ok(owner_public));
        assert!(workload_owner_public_key(&pem).is_err() && seedshare_owner_public_key(&owner).is_err());
        assert!(decrypt_seed_share(&share, "no pem").is_err());
        assert!(encrypt_seed_share(seed.expose(), b"no key").is_err());
    }
}
