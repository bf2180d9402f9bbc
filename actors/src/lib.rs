//! The actors of a Coordinator, their messages and the decisions they make.
//!
//! | Actor | Owns |
//! |---|---|
//! | [`Ledger`] | the control stream, manifest history, the published [`Snapshot`] |
//! | [`Journal`] | this incarnation's stream: certificates, refusals, secrets released |
//! | [`Verifiers`] | a pool that judges evidence |
//! | [`Authority`] | issuing certificates and workload secrets |
//! | [`Handover`] | handing the secrets to peers |
//!
//! Requests go one way (edge, Authority, Journal; edge, Ledger); news is the snapshot on a `watch`
//! channel. Nothing here knows sockets, TLS or protobuf. Why actors: docs/decisions/actix.md.

mod authority;
mod clock;
mod handover;
mod journal;
mod ledger;
mod mailbox;
mod supervision;
mod verifiers;

pub use self::{
    authority::{Authority, IssueError, IssueMeshCert, IssueServiceCert, IssuedIdentity},
    clock::{Clock, FixedClock},
    handover::{HandOver, HandOverError, HandedOver, Handover},
    journal::{Append, CommitSeen, Journal, JournalError, OnCommit, RecordRefusal},
    ledger::{
        Acceptance, Active, Adopt, AdoptError, ApproveProposal, CaRecord, Entry, Evict, Evicted, Follow,
        Ledger, LedgerError, MeshAuthority, NotInForce, OlderHead, Permit, Phase, Proposal, ProposalReply,
        ProposeManifest, RecordHeads, Recover, RecoverError, RecoverReply, ReplicaKey, SeedShare,
        SeedShareRecord, SeedShares, SetManifest, SetManifestError, SetManifestReply, SignedPeers, Snapshot,
        State, Vouch, Voucher, WithdrawProposal, replica_heads, verify_stream, verify_streams,
    },
    mailbox::{AskError, Mailbox, Traced},
    verifiers::{Verified, Verifiers, VerifyError, VerifyEvidence},
};
