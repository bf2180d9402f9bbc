//! Policies made from YAML, and what a host may do under them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod attacks;
mod corpus;
mod generate;
mod host;
mod life;
mod mutation;
mod recorded;
