//! The Coordinator: configuration, listeners, wiring. Decides nothing; the actors do.

mod checkpoints;
mod config;
mod grpc;
mod http;
mod listener;
mod metrics;
mod probes;
mod replicas;
mod servers;
mod sources;
mod transit;
mod web;
mod wiring;

use anyhow::Context as _;
use config::Config;

fn main() -> anyhow::Result<()> {
    let config: Config = program::parse(None);
    config.log.init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")?.block_on(wiring::run(config))
}
