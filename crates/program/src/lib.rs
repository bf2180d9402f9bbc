//! What every program of ours does the same way: options by flag, environment and file, and logs.

mod log;
mod options;

pub use log::LogOptions;
pub use options::{FileError, parse, with_file};
