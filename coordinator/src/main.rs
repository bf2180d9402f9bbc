//! The Coordinator: configuration, listeners, wiring. Decides nothing; the actors do.

mod config;
mod grpc;
mod listener;
mod probes;
mod wiring;

use anyhow::Context as _;
use config::{Config, LogFormat};

fn main() -> anyhow::Result<()> {
    let config = Config::load()?;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level).context("--log-level")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")?.block_on(wiring::run(config))
}
