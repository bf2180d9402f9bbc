//! Histories that were given up after a disaster: a seedshare owner accepted one that does not extend what he had
//! verified. The Coordinator records that, and everybody who verifies it is shown it from then on.

use anyhow::Context as _;
use keys::LogPublicKey;
use manifest::{KeyDigest, Timestamp};
use serde::Serialize;
use storage_schema::{Checkpoint, Head, merkle::Hash};
use zeroize::Zeroizing;

use crate::printer::Refused;

/// One of them, as a Coordinator shows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OlderHead {
    /// The owner's key, PKCS#1 DER.
    pub(crate) public_key: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    /// Number of events, and tree head.
    pub(crate) given_up: (u64, Hash),
    pub(crate) accepted: (u64, Hash),
    /// Milliseconds since 1970.
    pub(crate) at: u64,
}

/// One of them, as it is shown here.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Shown {
    pub(crate) owner: KeyDigest,
    pub(crate) given_up_events: u64,
    pub(crate) given_up: String,
    pub(crate) accepted_events: u64,
    pub(crate) accepted: String,
    pub(crate) at: String,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { owner, given_up_events, given_up, accepted_events, accepted, at } = self;
        write!(
            f,
            "at {at} seedshare owner {owner} gave up {given_up_events} events (tree head {given_up}) and accepted \
             {accepted_events} (tree head {accepted}) instead"
        )
    }
}

/// What evidence covers of them.
pub(crate) fn covered(heads: &[OlderHead]) -> Vec<u8> {
    let covered: Vec<wire::http::OlderHead<'_>> = (heads.iter())
        .map(|head| wire::http::OlderHead {
            public_key: &head.public_key,
            signature: &head.signature,
            given_up: (head.given_up.0, &head.given_up.1),
            accepted: (head.accepted.0, &head.accepted.1),
            at: head.at,
        })
        .collect();
    wire::http::older_heads_text(&covered)
}

/// Checks each owner's signature, and says what was given up.
pub(crate) fn show(log: LogPublicKey, heads: &[OlderHead]) -> anyhow::Result<Vec<Shown>> {
    let show = |head: &OlderHead| {
        let OlderHead { public_key, signature, given_up, accepted, at } = head;
        let text = keys::older_head_acceptance(&log, (given_up.0, &given_up.1), (accepted.0, &accepted.1));
        keys::verify_rsa_pss(public_key, text.as_bytes(), signature).map_err(|_| {
            Refused(
                "the Coordinator shows that an older history was accepted, without an owner's signature"
                    .into(),
            )
        })?;
        Ok(Shown {
            owner: KeyDigest::of(public_key),
            given_up_events: given_up.0,
            given_up: hex::encode(given_up.1),
            accepted_events: accepted.0,
            accepted: hex::encode(accepted.1),
            at: Timestamp::from_millis(*at).to_string(),
        })
    };
    heads.iter().map(show).collect()
}

/// From gRPC.
pub(crate) fn read(heads: Vec<wire::user::OlderHead>) -> anyhow::Result<Vec<OlderHead>> {
    let read = |head: wire::user::OlderHead| {
        let root = |root: Vec<u8>| Hash::try_from(root).ok().context("an older head without a tree head");
        let acceptance = head.acceptance.unwrap_or_default();
        Ok(OlderHead {
            public_key: acceptance.public_key,
            signature: acceptance.signature,
            given_up: (head.given_up_size, root(head.given_up_root)?),
            accepted: (head.accepted_size, root(head.accepted_root)?),
            at: head.at,
        })
    };
    heads.into_iter().map(read).collect()
}

/// The owner's signature: he gives up what he remembers for what is shown. Gives the signature and his public key.
pub(crate) fn accept(
    remembered: &Checkpoint,
    shown: &Head,
    owner_key: &Zeroizing<String>,
) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let given_up = (remembered.size, &remembered.root);
    let text = keys::older_head_acceptance(&remembered.log.key(), given_up, (shown.size, &shown.root));
    Ok(keys::sign_rsa_pss(owner_key, text.as_bytes())?)
}
