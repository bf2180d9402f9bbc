//! The only place that prints.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::Serialize;

/// Form of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Marks an error as a refusal by the other side: exit code 1.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Prints results to stdout and progress to stderr; colour only on a terminal.
pub(crate) struct Printer {
    format: OutputFormat,
    colour: bool,
}

impl Printer {
    pub(crate) fn new(format: OutputFormat) -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { format, colour }
    }

    /// A result: `text` for people, `value` for machines. A closed pipe is not an error.
    pub(crate) fn result(&self, text: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        let _ = match self.format {
            OutputFormat::Text => writeln!(stdout, "{}", text.trim_end()),
            OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(value)?),
        };
        Ok(())
    }

    /// A line of progress.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Starts a step: a spinner on a terminal, one line when it is done.
    pub(crate) fn step(&self, what: &str) -> Step<'_> {
        let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Step { printer: self, what: what.to_owned(), started: Instant::now(), spinner }
    }

    /// An error with its causes, each once.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let mark = if self.colour { "\x1b[31merror:\x1b[0m" } else { "error:" };
        self.note(&format!("{mark} {error:#}"));
    }
}

/// A step under way.
pub(crate) struct Step<'a> {
    printer: &'a Printer,
    what: String,
    started: Instant,
    spinner: ProgressBar,
}

impl Step<'_> {
    /// Ends the step; `found` says what was checked.
    pub(crate) fn done(self, found: &str) {
        self.spinner.finish_and_clear();
        let mark = if self.printer.colour { "\x1b[32m✔\x1b[0m" } else { "✔" };
        let seconds = self.started.elapsed().as_secs_f64();
        self.printer.note(&format!("{mark} {} ({seconds:.1} s): {found}", self.what));
    }
}
