//! `contrast`: results on stdout, progress on stderr. Exit codes: 0 done, 1 refused, 2 broken.

mod advice;
mod audit;
mod client;
mod dev;
mod endorsements;
mod evict;
mod evidence;
mod files;
mod generate;
mod history;
mod key_file;
mod older_head;
mod policy;
mod printer;
mod proposals;
mod recover;
mod remembered;
mod resources;
mod runtime;
mod seed_shares;
mod set;
mod sign;
mod source;
mod status;
mod store;
mod transition;
mod usage;
mod verify;
mod vouch;
mod whole_file;
mod workloads;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use printer::{OutputFormat, Printer, Refused};

#[global_allocator]
static ALLOCATOR: program::memory::Wiping = program::memory::Wiping;

/// Deploy, verify and recover confidential containers.
#[derive(Debug, Parser)]
#[command(name = "contrast", version = env!("CONTRAST_VERSION"), propagate_version = true)]
struct Cli {
    /// Form of the results on stdout.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, env = "CONTRAST_OUTPUT")]
    output: OutputFormat,
    /// Print results, warnings and errors, and no progress.
    #[arg(long, short, global = true, env = "CONTRAST_QUIET")]
    quiet: bool,
    /// TOML file with options; a table such as `[set]` is for one command. `contrast.toml` if it is there.
    #[arg(long, global = true, env = "CONTRAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the files that have default names: manifest.json, policies, owners' keys, verify.
    #[arg(long, global = true, env = "CONTRAST_WORKSPACE_DIR", value_name = "DIR")]
    workspace_dir: Option<PathBuf>,
    #[command(flatten)]
    endorsements: ::endorsements::EndorsementOptions,
    #[command(flatten)]
    log: program::LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Args),
    Generate(Box<generate::Args>),
    Policy(policy::Args),
    Set(set::Args),
    Verify(verify::Args),
    Vouch(vouch::Args),
    Evict(evict::Args),
    Recover(recover::Args),
    Sign(sign::Args),
    Proposals(proposals::Args),
    History(history::Args),
    Audit(audit::Args),
    Explain(evidence::explain::Args),
    Inspect(evidence::inspect::Args),
    Endorsements(endorsements::Args),
    Runtime(runtime::Args),
    Coordinator(resources::coordinator::Args),
    Status(status::Args),
    Store(store::Args),
    /// Print version and commit of this program.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = || usage::with_short_help(Cli::command());
    let mut cli: Cli = program::parse_command(command(), Some("contrast.toml"));
    if let Some(folder) = &cli.workspace_dir {
        cli = program::parse_command(workspace::inside(command(), folder), Some("contrast.toml"));
    }
    cli.log.init();
    program::keep_secrets();
    let printer = Printer::new(cli.output).quiet(cli.quiet);
    let cache = endorsements::Cache::with(cli.endorsements);
    let outcome = match cli.command {
        Command::Dev(args) => dev::run(args, &printer).await,
        Command::Generate(args) => generate::run(*args, cli.workspace_dir.as_deref(), &printer).await,
        Command::Policy(args) => policy::run(args, &printer),
        Command::Set(args) => set::run(args, &printer).await,
        Command::Verify(args) => verify::run(args, &printer).await,
        Command::Vouch(args) => vouch::run(args, &printer).await,
        Command::Evict(args) => evict::run(args, &printer).await,
        Command::Recover(args) => recover::run(args, &printer).await,
        Command::Sign(args) => sign::run(args, &printer),
        Command::Proposals(args) => proposals::run(args, &printer).await,
        Command::History(args) => history::run(args, &printer).await,
        Command::Audit(args) => audit::run(args, &printer).await,
        Command::Explain(args) => evidence::explain::run(args, cache, &printer).await,
        Command::Inspect(args) => evidence::inspect::run(&args, &printer),
        Command::Endorsements(args) => endorsements::run(args, cache, &printer).await,
        Command::Runtime(args) => runtime::run(&args, &printer),
        Command::Coordinator(args) => resources::coordinator::run(&args, &printer),
        Command::Status(args) => status::run(args, &printer).await,
        Command::Store(args) => store::run(args, &printer).await,
        Command::Version => {
            let version = env!("CONTRAST_VERSION");
            let (number, commit) = version.split_once(" (commit ").unwrap_or((version, ""));
            let commit = Some(commit.trim_end_matches(')')).filter(|commit| !commit.is_empty());
            let value = serde_json::json!({ "version": number, "commit": commit });
            printer.result(&format!("contrast {version}"), &value)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "contrast", &mut script);
            printer.text(&String::from_utf8_lossy(&script))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(if error.downcast_ref::<Refused>().is_some() { 1 } else { 2 })
        }
    }
}
