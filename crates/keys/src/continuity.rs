//! What lets a pod keep to its deployment: claims in its certificate, and the owner's word for a root.

use manifest::{KeyDigest, PolicyHash, TransitionHash};
use p384::pkcs8::der::{Decode, Encode as _, asn1::OctetStringRef};
use x509_parser::{certificate::X509Certificate, oid_registry::Oid, prelude::FromDer as _};

use crate::{ClaimExtension, KeyError, LogPublicKey, WorkloadSecret};

/// Extension with the commitment to the workload secret. Numbers from 1001 on are ours.
const SECRET_OID: [u64; 5] = [1, 3, 9901, 3, 1001];
/// Extension with the number of the manifest in force.
const GENERATION_OID: [u64; 5] = [1, 3, 9901, 3, 1002];

/// Extension with the policy of the workload, by whatever hardware it was attested.
const POLICY_OID: [u64; 5] = [1, 3, 9901, 3, 1003];

/// What a workload's certificate says about the answer that it came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafClaims {
    /// Commitment to the workload secret that was released with it.
    pub secret_commitment: Option<[u8; 32]>,
    /// Number of the manifest that was in force.
    pub generation: Option<u64>,
    /// The workload's policy.
    pub policy: Option<PolicyHash>,
}

/// Identifies a workload secret without giving it away: it has 64 bytes that nobody guesses.
pub fn secret_commitment(secret: &[u8]) -> [u8; 32] {
    crate::sha256(&[b"contrast workload secret commitment v1\0", secret])
}

/// What a workload owner signs to vouch for a deployment: its root's public key (SubjectPublicKeyInfo DER). A text of
/// one line without a line break, so that a signer in hardware can be given it.
pub fn root_voucher(root_key_der: &[u8]) -> String {
    let digest: String = crate::sha256(&[root_key_der]).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("contrast deployment root v1: {digest}")
}

/// What a seedshare owner signs to accept, after a disaster, a log that does not extend the one that he knows: which log,
/// the head that is given up and the head that counts instead, each by its number of events and tree head.
pub fn older_head_acceptance(
    log: &LogPublicKey,
    given_up: (u64, &[u8; 32]),
    accepted: (u64, &[u8; 32]),
) -> String {
    let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "contrast accept older head v1: log {} gives up {} events {} for {} events {}",
        hex(log.as_bytes()),
        given_up.0,
        hex(given_up.1),
        accepted.0,
        hex(accepted.1)
    )
}

/// What workload owners sign to shut policies and certificates' keys out of the mesh, at this point of the history. A
/// text of one line without a line break.
pub fn eviction(transition: &TransitionHash, policies: &[PolicyHash], keys: &[KeyDigest]) -> String {
    let mut text = format!("contrast eviction v1: {transition}");
    policies.iter().for_each(|policy| text.push_str(&format!(" policy {policy}")));
    keys.iter().for_each(|key| text.push_str(&format!(" key {key}")));
    text
}

/// The claims as extensions of a certificate.
pub fn leaf_claim_extensions(
    secret: Option<&WorkloadSecret>,
    generation: u64,
    policy: Option<&PolicyHash>,
) -> Result<Vec<ClaimExtension>, KeyError> {
    let library = |_| KeyError::Library("encoding an extension");
    let octets = |bytes: &[u8]| OctetStringRef::new(bytes).and_then(|octets| octets.to_der());
    let mut claims =
        vec![ClaimExtension { oid: GENERATION_OID.to_vec(), der: generation.to_der().map_err(library)? }];
    if let Some(secret) = secret {
        let der = octets(&secret_commitment(secret.expose())).map_err(library)?;
        claims.push(ClaimExtension { oid: SECRET_OID.to_vec(), der });
    }
    if let Some(policy) = policy {
        let der = octets(policy.as_bytes()).map_err(library)?;
        claims.push(ClaimExtension { oid: POLICY_OID.to_vec(), der });
    }
    Ok(claims)
}

/// Reads the claims of a certificate, whose signature is the caller's to check. One of upstream has none.
pub fn leaf_claims(certificate_der: &[u8]) -> Result<LeafClaims, KeyError> {
    let malformed = || KeyError::Malformed { what: "certificate", expected: "X.509 with claims of ours" };
    let (_, certificate) = X509Certificate::from_der(certificate_der).map_err(|_| malformed())?;
    let value = |oid: &[u64]| {
        let oid = Oid::from(oid).map_err(|_| malformed())?;
        let found = certificate.get_extension_unique(&oid).map_err(|_| malformed())?;
        Ok::<_, KeyError>(found.map(|extension| extension.value))
    };
    let digest = |oid: &[u64]| {
        let Some(der) = value(oid)? else { return Ok(None) };
        let octets = <OctetStringRef as Decode>::from_der(der).map_err(|_| malformed())?;
        <[u8; 32]>::try_from(octets.as_bytes()).map(Some).map_err(|_| malformed())
    };
    let secret_commitment = digest(&SECRET_OID)?;
    let policy = digest(&POLICY_OID)?.map(PolicyHash::from_bytes);
    let generation = match value(&GENERATION_OID)? {
        Some(der) => Some(<u64 as Decode>::from_der(der).map_err(|_| malformed())?),
        None => None,
    };
    Ok(LeafClaims { secret_commitment, generation, policy })
}
