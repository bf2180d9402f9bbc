//! Recovery: an owner of the seed brings it back.

use actors::{Acceptance, Recover, RecoverReply};
use keys::Salt;
use manifest::KeyDigest;
use storage_schema::EventStore;
use zeroize::Zeroizing;

use super::{failure::Failure, handles::Desk, request::request_id};

/// What an owner brings.
pub(crate) struct Recovery {
    /// The seed, or this owner's part of it.
    pub(crate) seed: Zeroizing<Vec<u8>>,
    pub(crate) salt: Salt,
    /// The owner, by the key of the connection or of the signature.
    pub(crate) caller: Option<KeyDigest>,
    /// The last checkpoint that the owner verified, a signed note; empty: none.
    pub(crate) checkpoint: String,
    /// The owner's word that the history here counts although it does not extend that.
    pub(crate) acceptance: Option<Acceptance>,
    /// What names the message, where somebody on the way may have kept a copy of it.
    pub(crate) message: Option<Vec<u8>>,
}

impl<L: EventStore> Desk<L> {
    pub(crate) async fn recover(&self, recovery: Recovery) -> Result<RecoverReply, Failure> {
        let Recovery { seed, salt, caller, checkpoint, acceptance, message } = recovery;
        if message.as_ref().is_some_and(|message| self.recoveries.contains(message)) {
            let text = "this sealed message was accepted before: seal the seed again";
            return Err(Failure::Denied(text.into()));
        }
        let request = request_id()?;
        let reply =
            self.ledger.ask(Recover { seed, salt, caller, checkpoint, acceptance, request }).await??;
        if let Some(message) = message {
            self.recoveries.add(message);
        }
        Ok(reply)
    }
}
