//! Whether the owners of a workload vouch for a deployment.

use std::collections::BTreeSet;

use manifest::KeyDigest;

/// Most vouchers of an answer that are looked at.
const MAX_VOUCHERS: usize = 256;

/// A workload owner's word that a root's key is that of the deployment that he set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The owner's key, SubjectPublicKeyInfo DER.
    pub public_key: Vec<u8>,
    /// Over `keys::root_voucher`, ECDSA with SHA-256, ASN.1 DER.
    pub signature: Vec<u8>,
}

/// Whom a pod believes, as its measured policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// SHA-256 of each owner's key, PKIX DER. Empty: the pod takes the first deployment that it meets.
    pub keys: Vec<KeyDigest>,
    /// How many of them must vouch; at least one.
    pub needed: usize,
}

/// Why a deployment is not the pod's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found} of the {needed} workload owners that this pod's policy demands vouch for this deployment (root key \
     {root}): run `contrast set` or `contrast vouch` with an owner's key; if they did so for theirs, this Coordinator \
     is another one"
)]
pub struct NotVouched {
    /// How many vouch.
    pub found: usize,
    /// How many must.
    pub needed: usize,
    /// SHA-256 of the root's public key, hex.
    pub root: String,
}

impl Owners {
    /// Checks that enough owners vouch for the root's key.
    pub fn check(&self, root_key: &[u8], vouchers: &[Voucher]) -> Result<(), NotVouched> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let message = keys::root_voucher(root_key);
        let vouches = |voucher: &Voucher| {
            let digest = KeyDigest::of(&voucher.public_key);
            let known = self.keys.contains(&digest);
            let is_theirs = || {
                keys::verify_ecdsa_sha256(&voucher.public_key, message.as_bytes(), &voucher.signature).is_ok()
            };
            (known && is_theirs()).then_some(digest)
        };
        let found: BTreeSet<KeyDigest> = vouchers.iter().take(MAX_VOUCHERS).filter_map(vouches).collect();
        let needed = self.needed.max(1);
        if found.len() >= needed {
            return Ok(());
        }
        Err(NotVouched { found: found.len(), needed, root: hex::encode(keys::sha256(&[root_key])) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_owners_own_words_over_this_root_count_and_each_once() {
        let (pem, public) = keys::generate_workload_owner_key().unwrap();
        let (other_pem, other) = keys::generate_workload_owner_key().unwrap();
        let (stranger_pem, stranger) = keys::generate_workload_owner_key().unwrap();
        let vouch = |pem: &str, public: &[u8], text: &str| Voucher {
            public_key: public.to_vec(),
            signature: keys::sign_ecdsa_sha256(pem, text.as_bytes()).unwrap(),
        };
        let text = keys::root_voucher(b"root");
        let ours = vouch(&pem, &public, &text);
        let owners = Owners { keys: vec![KeyDigest::of(&public), KeyDigest::of(&other)], needed: 1 };
        assert_eq!(owners.check(b"root", std::slice::from_ref(&ours)), Ok(()));
        assert!(owners.check(b"another root", std::slice::from_ref(&ours)).is_err());
        assert!(owners.check(b"root", &[vouch(&stranger_pem, &stranger, &text)]).is_err());
        assert!(owners.check(b"root", &[vouch(&stranger_pem, &public, &text)]).is_err());
        assert!(owners.check(b"root", &[vouch(&pem, &public, &hex::encode(b"root"))]).is_err());
        assert!(owners.check(b"root", &[]).is_err());
        let both = Owners { needed: 2, ..owners.clone() };
        assert_eq!(both.check(b"root", &[ours.clone(), ours.clone()]).unwrap_err().found, 1);
        assert_eq!(both.check(b"root", &[ours, vouch(&other_pem, &other, &text)]), Ok(()));
        assert_eq!(Owners::default().check(b"root", &[]), Ok(()), "as upstream's");
    }
}
