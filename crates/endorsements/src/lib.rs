//! Endorsements: the certificates, revocation lists and collateral that AMD and Intel sign about
//! their hardware, and that evidence is judged with.
//!
//! [`Endorsements::complete`] adds to evidence what it lacks, from (in this order) what came with it,
//! memory, a mirror, the vendor's service. Everything that is kept was verified first, and a
//! revocation list or a TCB evaluation number never gives way to an older one. Nothing here decides
//! whether evidence is good: the verifier does, and refuses what is missing or expired.
//!
//! The directory of the cache is as untrusted as the network: what is read from it is verified again.
//! A host that puts an old directory back rolls back the memory of numbers across a restart, not more.
//!
//! Calls that may use the network block, each for a bounded time: run them on a thread for that.
//! Source: docs/spec/attestation.md, section 8, docs/spec/control-plane.md, section 3.4.

mod bundle;
mod fetch;
mod issuer;
mod options;
mod service;
mod store;

pub use bundle::{BundleError, ImportReport};
pub use fetch::{FetchError, Fetcher, Services};
pub use issuer::EndorsedIssuer;
pub use options::EndorsementOptions;
pub use service::{Completed, Endorsements, Reach, Refreshed};
pub use store::{Entry, Name, PutError, Validity};
