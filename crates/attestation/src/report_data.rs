//! What evidence says it is for.
//!
//! A machine makes evidence over 64 bytes, and others choose a part of what goes into them: the nonce of a
//! connection comes from the peer. So evidence that was made for one protocol must never be what another one
//! expects. Two forms are upstream's and stay as they are: attested TLS hashes a public key, whose DER begins
//! with 0x30, and a nonce; the attestation over HTTP ends in 32 zero bytes, as no SHA-512 does. Every form of ours
//! begins with a label, and each part after it with its length.

use std::fmt;

use aws_lc_rs::digest::{self, SHA256, SHA512};

/// The 64 bytes that evidence is made over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReportData([u8; 64]);

/// How a Coordinator stands: what its evidence vouches for beside its key, in every state.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// The caller's, 32 bytes.
    pub nonce: &'a [u8],
    /// Body of `/capabilities`, which holds the HPKE key.
    pub capabilities: &'a [u8],
    /// The state, in words of the API.
    pub state: &'a str,
    /// Signed head of the control stream; empty: it has no event.
    pub signed_head: &'a [u8],
    /// Digest of the seed shares document; empty: there is none, or it is of a version that recorded none.
    pub seed_shares: &'a [u8],
    /// Digest of the histories that were given up after a disaster; empty: there is none, and no part of the text.
    pub older_heads: &'a [u8],
}

impl ReportData {
    /// Attested TLS, upstream's form: `SHA-512(SubjectPublicKeyInfo DER || peer's nonce)`.
    pub fn bind(spki_der: &[u8], nonce: &[u8]) -> Self {
        let mut context = digest::Context::new(&SHA512);
        context.update(spki_der);
        context.update(nonce);
        Self(output(context))
    }

    /// `/attest` and `/v1/attest`, upstream's form: a Coordinator's history and its certificates. Parts have fixed
    /// lengths; the body of `/capabilities` is covered from version 1 on.
    pub fn history(
        nonce: &[u8],
        transition: &[u8; 32],
        root_pem: &[u8],
        mesh_pem: &[u8],
        capabilities: Option<&[u8]>,
    ) -> Self {
        let mut context = digest::Context::new(&SHA256);
        context.update(nonce);
        context.update(transition);
        for part in [Some(root_pem), Some(mesh_pem), capabilities].into_iter().flatten() {
            context.update(digest::digest(&SHA256, part).as_ref());
        }
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }

    /// `/v1/attest-key`, ours: a Coordinator's HPKE key, and how it stands.
    pub fn standing(standing: &Standing<'_>) -> Self {
        let Standing { nonce, capabilities, state, signed_head, seed_shares, older_heads } = *standing;
        let parts = [nonce, capabilities, state.as_bytes(), signed_head, seed_shares, older_heads];
        let count = if older_heads.is_empty() { parts.len() - 1 } else { parts.len() };
        Self::labelled("contrast coordinator standing v1", &parts[..count])
    }

    /// `/v1/mesh-cert`, ours: the key that a certificate shall be for, the key that the answer is sealed to, and
    /// the Coordinator's challenge.
    pub fn mesh_cert(spki_der: &[u8], hpke_public_key: &[u8], challenge: &[u8]) -> Self {
        Self::labelled("contrast mesh-cert v2", &[spki_der, hpke_public_key, challenge])
    }

    /// The log, ours: the key that a replica signs its segments with. `replica` is the name of this start of it.
    pub fn replica_key(replica: &[u8; 16], key: &[u8; 32]) -> Self {
        Self::labelled("contrast replica key v1", &[replica, key])
    }

    /// A machine that looks at its own evidence: nobody else takes it.
    pub fn own() -> Self {
        Self::labelled("contrast own evidence v1", &[])
    }

    /// A label of the purpose, a zero byte, and each part after its length.
    fn labelled(label: &str, parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&SHA512);
        context.update(label.as_bytes());
        context.update(&[0]);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self(output(context))
    }

    /// Bytes that were in a report.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

fn output(context: digest::Context) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

impl fmt::Debug for ReportData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReportData({})", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Form = fn(&[u8], &[u8], &[u8]) -> ReportData;

    /// Every form, over a key and two things that the other side chooses.
    const FORMS: [(&str, Form); 6] = [
        ("attested TLS", |key, nonce, _| ReportData::bind(key, nonce)),
        ("/attest", |key, nonce, other| ReportData::history(nonce, &[1; 32], key, other, None)),
        ("/v1/attest", |key, nonce, other| ReportData::history(nonce, &[1; 32], key, other, Some(key))),
        ("/v1/attest-key", |key, nonce, other| {
            ReportData::standing(&Standing {
                nonce,
                capabilities: key,
                state: "",
                signed_head: other,
                seed_shares: &[],
                older_heads: &[],
            })
        }),
        ("/v1/mesh-cert", |key, nonce, other| ReportData::mesh_cert(key, other, nonce)),
        ("replica key", |key, nonce, _| {
            let (mut replica, mut chosen) = ([0; 16], [0; 32]);
            replica.iter_mut().zip(nonce).for_each(|(to, from)| *to = *from);
            chosen.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
            ReportData::replica_key(&replica, &chosen)
        }),
    ];

    /// An attacker chooses what passes for a nonce: also the hash, or the very text, that another form hashes.
    #[test]
    fn evidence_for_one_protocol_is_none_for_another() {
        let (key, nonce, hpke) = ([0x30; 91].as_slice(), [5; 32].as_slice(), [6; 32].as_slice());
        let sha256 = |parts: &[&[u8]]| digest::digest(&SHA256, &parts.concat()).as_ref().to_vec();
        let chosen: Vec<Vec<u8>> = vec![
            nonce.to_vec(),
            hpke.to_vec(),
            sha256(&[hpke, nonce]), // what the first form for mesh certificates took for a nonce
            sha256(&[nonce, &[1; 32], &sha256(&[key]), &sha256(&[hpke])]),
            [b"contrast mesh-cert v2\0".as_slice(), &91_u64.to_be_bytes(), key].concat(),
        ];
        for (made_for, make) in FORMS {
            for (taken_by, take) in FORMS {
                for theirs in &chosen {
                    let same = make(key, theirs, hpke) == take(key, nonce, hpke);
                    let diagonal = made_for == taken_by && theirs == nonce;
                    assert_eq!(same, diagonal, "made for {made_for}, taken by {taken_by}, over {theirs:?}");
                }
            }
        }
    }

    #[test]
    fn what_moves_from_one_part_to_the_next_is_another_text() {
        assert_ne!(ReportData::mesh_cert(b"ab", b"c", b"d"), ReportData::mesh_cert(b"a", b"bc", b"d"));
        assert_ne!(ReportData::mesh_cert(b"a", b"bc", b""), ReportData::mesh_cert(b"a", b"b", b"c"));
        let standing = |state, signed_head| {
            ReportData::standing(&Standing {
                nonce: &[1; 32],
                capabilities: b"{}",
                state,
                signed_head,
                seed_shares: b"",
                older_heads: b"",
            })
        };
        assert_ne!(standing("ready", b""), standing("", b"ready"));
    }
}
