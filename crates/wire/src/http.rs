//! What both sides of the HTTP API must compute alike (our own extensions of spec control-plane.md 9).

/// HPKE purpose of a recovery: sealed by the owner to the Coordinator.
pub const RECOVER: &[u8] = b"contrast recover v1";
/// HPKE purpose of a mesh certificate: sealed by the Coordinator to the workload.
pub const MESH_CERT: &[u8] = b"contrast mesh-cert v1";
/// What the report data of `/v1/attest-key` begins with, under the hash.
pub const ATTEST_KEY: &[u8] = b"contrast hpke key v1";

/// What a seedshare owner signs: this recovery, to this Coordinator, in this sealed message.
pub fn recovery_message(
    hpke_public_key: &[u8],
    encapsulated_key: &[u8],
    seed: &[u8],
    salt: &[u8; 32],
) -> Vec<u8> {
    let mut message = RECOVER.to_vec();
    for part in [hpke_public_key, encapsulated_key, salt.as_slice(), seed] {
        message.extend(part);
    }
    message
}
