//! What both sides of the HTTP API must compute alike (our own extensions of docs/spec/control-plane.md,
//! section 9).

/// HPKE purpose of a recovery: sealed by the owner to the Coordinator.
pub const RECOVER: &[u8] = b"contrast recover v2";
/// HPKE purpose of a mesh certificate: sealed by the Coordinator to the workload.
pub const MESH_CERT: &[u8] = b"contrast mesh-cert v2";

/// What a seedshare owner signs: this recovery, to this Coordinator, in this sealed message, of a history that
/// extends this checkpoint (a signed note; empty: the owner remembers none).
pub fn recovery_message(
    hpke_public_key: &[u8],
    encapsulated_key: &[u8],
    seed: &[u8],
    salt: &[u8; 32],
    checkpoint: &str,
) -> Vec<u8> {
    let parts = [hpke_public_key, encapsulated_key, salt.as_slice(), seed, checkpoint.as_bytes()];
    labelled("contrast recover v2", &parts)
}

/// What the owner of a workload's key signs: a request for a certificate for this key, whose answer is sealed to
/// this HPKE key, upon this challenge.
pub fn mesh_cert_request(spki_der: &[u8], hpke_public_key: &[u8], challenge: &[u8]) -> Vec<u8> {
    labelled("contrast mesh-cert request v2", &[spki_der, hpke_public_key, challenge])
}

/// A label of the purpose, a zero byte, and each part after its length: no other text of ours reads the same.
fn labelled(label: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut message = label.as_bytes().to_vec();
    message.push(0);
    for part in parts {
        message.extend((part.len() as u64).to_be_bytes());
        message.extend(*part);
    }
    message
}
