//! The Coordinator: configuration, listeners, wiring. Decides nothing; the actors do.

mod config;
mod grpc;
mod listener;
mod probes;
mod wiring;

use anyhow::Context as _;
use clap::Parser as _;
use config::{Config, LogFormat};

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level).context("--log-level")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    // Listeners run on all threads; the actors live on this one, their pools on threads of their own.
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime().context("cannot start the asynchronous runtime")?;
    let handle = runtime.handle().clone();
    let runtime: &'static tokio::runtime::Runtime = Box::leak(Box::new(runtime));
    let system = actix::System::with_tokio_rt(|| {
        #[expect(clippy::expect_used, reason = "actix takes no fallible constructor; nothing runs yet")]
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for the actors")
    });
    let _guard = runtime.enter();
    system.block_on(wiring::run(config, handle))
}
