//! Histories that were given up after a disaster: a seedshare owner accepted one that does not extend what he had
//! verified. The Coordinator records that, and everybody who verifies it is shown it from then on.

use coordinator_client::OlderHead;
use keys::LogPublicKey;
use manifest::{KeyDigest, Timestamp};
use serde::Serialize;
use storage_schema::{Checkpoint, Head};
use zeroize::Zeroizing;

use crate::printer::Refused;

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
