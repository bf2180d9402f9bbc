//! `contrast policy`: what a policy allows, and why a request was denied.

pub(crate) mod diff;
mod explain;
mod named;
mod test;

use clap::Subcommand;
use runtime_policy::Settings;

use crate::printer::Printer;

/// Look into the policies that `contrast generate` makes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Test(test::Args),
    Explain(explain::Args),
    Diff(diff::Args),
    /// Print the built-in settings, which `generate --settings FILE` is laid over.
    Settings,
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Test(args) => test::run(&args, printer),
        Command::Explain(args) => explain::run(&args, printer),
        Command::Diff(args) => diff::run(&args, printer),
        Command::Settings => {
            let text = Settings::default_text();
            let value: serde_json::Value = serde_json::from_str(text)?;
            printer.result(text, &value)
        }
    }
}
