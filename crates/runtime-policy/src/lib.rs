//! From Kubernetes YAML to the policy (initdata) document of each confidential pod.
//!
//! First form: the document is initdata as in spec policy.md section 1, and its policy pins image,
//! command, arguments and environment of every container, denying every other request. The full
//! policy language replaces [`policy_document`] and nothing else.

mod document;
mod pod;

pub use document::policy_document;
pub use pod::{Container, Pod, PodError, read_pods};
