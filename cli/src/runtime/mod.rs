//! `contrast runtime`: the runtime on the nodes, and what its guests measure.

mod bundle;
mod measure;

use clap::Subcommand;

use crate::{printer::Printer, resources};

pub(crate) use self::measure::measured;

/// The runtime on the nodes, and what its guests measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(visible_alias = "print")]
    Resources(resources::runtime::Args),
    Measure(measure::Args),
}

pub(crate) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    match &args.command {
        Command::Resources(args) => resources::runtime::run(args, printer),
        Command::Measure(args) => measure::run(args, printer),
    }
}
