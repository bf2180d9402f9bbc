//! Runs scenarios from seeds, one after another, until the time is up or one of them fails.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chaos_tests::{run::run, scenario::Scenario};
use clap::Parser;

/// Faults on real replicas and a real etcd cluster, and the proof that nothing was lost.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo run --release -p chaos-tests --bin chaos-tests -- --minutes 60 --seed 1\n  \
    chaos-tests --scenario found-by-hand.txt --keep\n\n\
    Needs Debian's etcd-server and etcd-client, and the workspace's programs built (cargo build --workspace --bins).\n\
    Exit codes: 0 every run proved clean, 1 one did not; its seed and directory are printed."
)]
struct Args {
    /// How long to run on; at least one scenario is run.
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Seed of the first scenario; each next one counts up.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Length of a scenario, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Run this scenario instead: a file with a step a line.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Keep the directory of a failed run: logs, disks, etcd's data.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let until = Instant::now() + Duration::from_secs(args.minutes * 60);
    let mut seed = args.seed;
    loop {
        if let Err(error) = one(&args, seed).await {
            say(&format!("FAILED with --seed {seed} --seconds {}: {error:#}", args.seconds));
            return std::process::ExitCode::FAILURE;
        }
        seed += 1;
        if Instant::now() > until || args.scenario.is_some() {
            return std::process::ExitCode::SUCCESS;
        }
    }
}

async fn one(args: &Args, seed: u64) -> anyhow::Result<()> {
    let scenario = match &args.scenario {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?.parse()?,
        None => Scenario::from_seed(seed, args.seconds, 3, 3),
    };
    let directory = tempfile::Builder::new().prefix("chaos-").tempdir()?;
    let started = Instant::now();
    match run(directory.path(), seed, &scenario, args.seconds).await {
        Ok(report) => {
            say(&format!("seed {seed}: clean in {:.0?}: {report:?}", started.elapsed()));
            Ok(())
        }
        Err(error) => {
            say(&format!("scenario of seed {seed}:\n{scenario}"));
            if args.keep {
                say(&format!("kept: {}", directory.keep().display()));
            }
            Err(error)
        }
    }
}

#[expect(clippy::print_stdout, reason = "the result")]
fn say(text: &str) {
    println!("{text}");
}
