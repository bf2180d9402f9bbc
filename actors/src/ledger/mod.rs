//! `Ledger`: the only writer of manifest history.
//!
//! [`State`] is plain data. `decide_*` reads it and says what a command would cause;
//! [`State::apply`] folds an event in. Neither reads a clock, draws randomness or touches the disk,
//! so replaying a log always rebuilds the state it came from. The actor around it does one thing
//! in order: decide, append, apply, publish.

mod actor;
mod change;
mod checkpoints;
mod follow;
mod introduction;
mod messages;
mod peers;
mod proposals;
mod recovery;
mod replica_key;
mod state;
mod waiting;

pub use actor::Ledger;
pub use checkpoints::{replica_heads, verify_stream, verify_streams};
pub use messages::{
    Acceptance, Adopt, AdoptError, ApproveProposal, Evict, Follow, LedgerError, ProposalReply,
    ProposeManifest, RecordHeads, Recover, RecoverError, RecoverReply, SeedShare, SeedShares, SetManifest,
    SetManifestError, SetManifestReply, Vouch, WithdrawProposal,
};
pub use proposals::{Permit, Proposal};
pub use replica_key::ReplicaKey;
pub use state::{
    Active, CaRecord, Entry, Evicted, MeshAuthority, NotInForce, OlderHead, Phase, SeedShareRecord,
    SignedPeers, Snapshot, State, Voucher,
};

#[cfg(test)]
mod owner_tests;

#[cfg(test)]
mod follow_tests;
