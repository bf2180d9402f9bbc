//! A pod's life: its certificate, its renewal, its disk.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod deployment;
mod initializer;
mod volume;
