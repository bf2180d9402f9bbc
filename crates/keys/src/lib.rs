//! Keys and signatures: what is derived from the seed, the certificate hierarchy, seed shares.
//!
//! Secrets are types of their own that zeroize on drop and have neither `Debug` nor `Display` of
//! their content; getting at the bytes is spelled `expose`. No I/O, no clock.
//!
//! Source: docs/spec/control-plane.md, sections 4 and 5.

mod ca;
mod continuity;
mod deterministic;
mod engine;
mod owner;
mod replica_secret;
mod seed_share;
mod signing;
mod threshold;
mod transit;

pub use ca::{
    ClaimExtension, DEFAULT_LEAF_LIFETIME, IssuedCert, LeafRequest, MeshCa, PublicCa, key_of_csr,
    serial_number_of, valid_until, workload_secret_id_of,
};
pub use continuity::{
    LeafClaims, eviction, leaf_claim_extensions, leaf_claims, older_head_acceptance, root_voucher,
    secret_commitment,
};
pub use engine::{Salt, Seed, SeedEngine, WorkloadSecret, WorkloadSecretId};
pub use owner::{
    check_workload_owner_key, recover_signer, sign_ecdsa_sha256, sign_rsa_pss, verify_ecdsa_sha256,
    verify_possession, verify_rsa_pss,
};
pub use replica_secret::ReplicaSecret;
pub use seed_share::{
    decrypt_seed_share, encrypt_seed_share, generate_seedshare_owner_key, generate_workload_owner_key,
    seed_shares_digest, seedshare_owner_public_key, workload_owner_public_key,
};
pub use signing::{CaKey, LogKey, LogPublicKey, TransactionKey, TransactionPublicKey};
pub use threshold::{PartialSeed, combine_seed, split_seed};
pub use transit::TransitKey;

/// Why a key operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret of the wrong size.
    #[error("{what} has {found} bytes, expected {expected}")]
    Length {
        /// Which value.
        what: &'static str,
        /// Its size in bytes.
        found: usize,
        /// The rule.
        expected: &'static str,
    },
    /// Bytes that are not a key of the wanted kind.
    #[error("{what} cannot be read as {expected}")]
    Malformed {
        /// Which value.
        what: &'static str,
        /// The wanted form.
        expected: &'static str,
    },
    /// Decryption or authentication failed: another key, other associated data, or changed bytes.
    #[error("{0} does not open with this key")]
    Sealed(&'static str),
    /// A certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(String),
    /// The cryptographic library refused something that it never should.
    #[error("the cryptographic library failed in {0}")]
    Library(&'static str),
}

/// A signature that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature does not verify")]
pub struct SignatureError;

/// SHA-256 over the parts one after another.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// HMAC-SHA-256.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(aws_lc_rs::hmac::sign(&key, message).as_ref());
    bytes
}

/// Whether two secrets are equal, in a time that does not depend on where they differ.
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(left, right).is_ok()
}

/// Random bytes from the operating system's generator.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Library("the random number generator"))?;
    Ok(bytes)
}
