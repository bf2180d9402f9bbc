//! A pod keeps to the deployment that it met first.
//!
//! A host can start a genuine Coordinator of its own, with a manifest of its own, and lead a pod there: evidence
//! alone says *that* it is a Coordinator, not *whose*. So a pod remembers whom it met first, in guest memory, and
//! takes nothing from anybody else until it ends; and whom it meets first can be made to show that the owner of the
//! workload vouches for him ([`Owners`]).
//!
//! Which pods count beside it is one signed list ([`Peers`]).
//!
//! Everything here is decided on the Coordinator's answer and on the file of before. No network.

mod answer;
mod owners;
mod peers;
mod pin;

pub use answer::{Answer, AnswerError};
pub use owners::{NotVouched, Owners, Voucher};
pub use peers::{
    Issuer, MAX_OLDER, MAX_PEERS_BYTES, NotCounted, OlderCa, PEERS_FILE, PeerIdentity, Peers, PeersError,
};
pub use pin::{Changed, Pin, PinError};
