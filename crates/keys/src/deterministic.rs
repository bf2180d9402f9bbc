//! P-384 keys from a secret, by the C2SP scheme for deterministic ECDSA key generation: an
//! HMAC_DRBG (NIST SP 800-90A, SHA-256) seeded with the secret yields the scalar.

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use zeroize::Zeroizing;

use crate::KeyError;

const PERSONALISATION: &[u8] = b"det ECDSA key gen P-384";

/// The key that `secret` determines.
pub(crate) fn p384_key(secret: &[u8]) -> Result<p384::SecretKey, KeyError> {
    let mut k = Zeroizing::new([0_u8; 32]);
    let mut v = Zeroizing::new([1_u8; 32]);
    for round in [0_u8, 1] {
        *k = mac(&k, &[v.as_slice(), &[round], secret, PERSONALISATION]);
        *v = mac(&k, &[v.as_slice()]);
    }
    let mut scalar = Zeroizing::new([0_u8; 64]);
    for block in scalar.chunks_exact_mut(32) {
        *v = mac(&k, &[v.as_slice()]);
        block.copy_from_slice(v.as_slice());
    }
    // Zero and the order itself are out of range; no P-384 scalar of 48 random bytes is ever either.
    p384::SecretKey::from_slice(&scalar[..48]).map_err(|_| KeyError::Library("deterministic key generation"))
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut output = [0; 32];
    output.copy_from_slice(context.sign().as_ref());
    output
}

#[cfg(test)]
mod tests {
    #[test]
    fn scalars_match_the_vectors_of_the_spec() {
        // docs/spec/control-plane.md, section 5.5, through the derivation tested in `engine`.
        let seed: Vec<u8> = (0..64).collect();
        let salt = crate::Salt::from_bytes(&(0..32).collect::<Vec<u8>>()).unwrap();
        let engine = crate::SeedEngine::new(crate::Seed::from_bytes(&seed).unwrap(), salt).unwrap();
        assert_eq!(
            hex::encode(engine.transaction_key().expose_scalar()),
            "c32e7b52e5cf83e31842415a7044adede35ca2c9b934e3877b2fcca14ac225396127ba7ac839a134206d6d2fceaa6f65"
        );
    }
}
