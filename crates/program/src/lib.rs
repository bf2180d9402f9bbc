//! What every program of ours does the same way: options by flag, environment and file, logs, and its
//! own evidence, memory.

mod evidence;
mod hygiene;
mod log;
pub mod memory;
mod options;

pub use evidence::EvidenceOptions;
pub use hygiene::keep_secrets;
pub use log::LogOptions;
pub use options::{FileError, parse, parse_command};
