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

/// A history that was given up after a disaster, as the HTTP API shows it.
pub struct OlderHead<'a> {
    /// The key of the owner who accepted that, PKCS#1 DER.
    pub public_key: &'a [u8],
    /// His signature over both heads.
    pub signature: &'a [u8],
    /// Number of events that are given up, and their tree head.
    pub given_up: (u64, &'a [u8]),
    /// What counts instead.
    pub accepted: (u64, &'a [u8]),
    /// When that was recorded, in milliseconds since 1970.
    pub at: u64,
}

/// What evidence covers of them; empty for none.
pub fn older_heads_text(heads: &[OlderHead<'_>]) -> Vec<u8> {
    let mut text = Vec::new();
    for OlderHead { public_key, signature, given_up, accepted, at } in heads {
        let numbers = [given_up.0, accepted.0, *at].map(u64::to_be_bytes).concat();
        text.extend(labelled(
            "contrast older head v1",
            &[public_key, signature, given_up.1, accepted.1, &numbers],
        ));
    }
    text
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
