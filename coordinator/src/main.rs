//! The Coordinator: configuration, wiring, the doors (`grpc`, `http`, `transit`, `replicas`, `probes`), and the
//! desk behind them, which says who gets what. Tests with whole programs are in `chaos-tests/tests/coordinator`.

mod budget;
mod checkpoints;
mod clock;
mod config;
mod desk;
mod door;
mod grpc;
mod health;
mod http;
mod limits;
mod metrics;
mod patience;
mod probes;
mod replicas;
mod servers;
mod transit;
mod wiring;

use std::process::ExitCode;

use anyhow::Context as _;
use config::Config;

#[global_allocator]
static ALLOCATOR: program::memory::Wiping = program::memory::Wiping;

fn main() -> ExitCode {
    program::memory::few_arenas();
    let config: Config = program::parse(None);
    config.log.init();
    program::keep_secrets();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In the log's form, so that whoever collects logs has the reason, too.
            tracing::error!("the Coordinator ends: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")?.block_on(wiring::run(config))
}
