//! What every program of ours does the same way: options by flag, environment and file, logs, its own evidence, the
//! time, memory, the door that connections come in by, and the Kubernetes API with a pod's service account.

mod clock;
mod door;
mod evidence;
mod hygiene;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod log;
pub mod memory;
mod options;
mod sources;

pub use clock::now;
pub use door::{Door, DoorLimits, Doorkeeper, Handshake, Place, WhenFull};
pub use evidence::EvidenceOptions;
pub use hygiene::keep_secrets;
#[cfg(feature = "kubernetes")]
pub use kubernetes::{KubernetesApi, KubernetesError};
pub use log::LogOptions;
pub use options::{FileError, parse, parse_command, with_file_of};
pub use sources::{Sources, UnderWay, network};
