//! The actors of a Coordinator, their messages and the decisions they make.
//!
//! | Actor | Owns |
//! |---|---|
//! | [`Ledger`] | the control stream, manifest history, the published [`Snapshot`] |
//! | [`Journal`] | this incarnation's stream: certificates, refusals, secrets released |
//! | [`Verifiers`] | a pool that judges evidence |
//! | [`Authority`] | issuing certificates and workload secrets |
//! | [`Recovery`] | handing the secrets to peers |
//!
//! Requests go one way (edge, Authority, Journal; edge, Ledger); news is the snapshot on a `watch`
//! channel. Nothing here knows sockets, TLS or protobuf. Why actors: docs/decisions/actix.md.

mod attestation;
mod ca;
mod clock;
mod event_log;
mod mailbox;
mod manifest;
mod peer_recovery;
mod supervision;

pub use self::{
    attestation::{Verified, Verifiers, VerifyError, VerifyEvidence},
    ca::{Authority, IssueError, IssueMeshCert, IssueServiceCert, IssuedIdentity},
    clock::{Clock, FixedClock},
    event_log::{Append, CommitSeen, Journal, JournalError, OnCommit, RecordRefusal},
    mailbox::{AskError, Mailbox, Traced},
    manifest::{
        Acceptance, Active, Adopt, AdoptError, ApproveProposal, CaRecord, Entry, Evict, Evicted, Follow,
        Ledger, LedgerError, MeshAuthority, NotInForce, OlderHead, Permit, Phase, Proposal, ProposalReply,
        ProposeManifest, RecordHeads, Recover, RecoverError, RecoverReply, ReplicaKey, SeedShare,
        SeedShareRecord, SeedShares, SetManifest, SetManifestError, SetManifestReply, SignedPeers, Snapshot,
        State, Vouch, Voucher, WithdrawProposal, replica_heads, verify_stream, verify_streams,
    },
    peer_recovery::{HandOver, HandOverError, HandedOver, Recovery},
};
