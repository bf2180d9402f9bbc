//! The only place that prints.

use std::{
    io::{ErrorKind, IsTerminal as _, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use manifest::Timestamp;
use serde::Serialize;

use crate::advice;

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

/// The reader of the results has gone: nothing more is said, and it is no success.
#[derive(Debug)]
pub(crate) struct ClosedPipe;

impl std::fmt::Display for ClosedPipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for ClosedPipe {}

/// Prints results to stdout and progress to stderr; colour only on a terminal.
pub(crate) struct Printer {
    format: OutputFormat,
    colour: bool,
    /// Whether results, warnings and errors are all that is printed.
    quiet: bool,
}

impl Printer {
    pub(crate) fn new(format: OutputFormat) -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { format, colour, quiet: false }
    }

    /// Without progress and notes.
    pub(crate) fn quiet(self, quiet: bool) -> Self {
        Self { quiet, ..self }
    }

    /// A result: `text` for people, `value` for machines.
    pub(crate) fn result(&self, text: &str, value: &impl Serialize) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Text => self.text(&format!("{}\n", harmless(text.trim_end()))),
            OutputFormat::Json => {
                self.text(&format!("{}\n", harmless_json(&serde_json::to_string_pretty(value)?)))
            }
        }
    }

    /// Text as it is. What cannot be written is a failure, or a full disk would look like success.
    #[expect(clippy::unused_self, reason = "what prints does so through the printer")]
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // Whoever closes the pipe has read enough, and wants to hear no more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
            Err(error) => Err(error).context("cannot write to standard output"),
            Ok(()) => Ok(()),
        }
    }

    /// A result that may be long: through `$PAGER` (or `less -FRX`) on a terminal.
    pub(crate) fn paged(&self, text: &str, value: &impl Serialize) -> anyhow::Result<()> {
        if self.format == OutputFormat::Json || !std::io::stdout().is_terminal() {
            return self.result(text, value);
        }
        let pager = std::env::var("PAGER").unwrap_or_else(|_| "less -FRX".to_owned());
        let mut words = pager.split_whitespace();
        let started = words
            .next()
            .and_then(|program| Command::new(program).args(words).stdin(Stdio::piped()).spawn().ok());
        let Some(mut pager) = started else { return self.result(text, value) };
        if let Some(mut stdin) = pager.stdin.take() {
            let _ = stdin.write_all(harmless(text).as_bytes()); // fails when the reader has seen enough
        }
        pager.wait()?;
        Ok(())
    }

    /// A bar, or a counter where the total is not known; nothing unless stderr is a terminal.
    pub(crate) fn progress(&self, unit: &str, total: Option<u64>) -> ProgressBar {
        let bar = match self.quiet {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(total.unwrap_or_default()),
        };
        let form = match total {
            Some(_) => format!("{{bar:40}} {{human_pos}}/{{human_len}} {unit} {{eta}}"),
            None => format!("{{spinner}} {{human_pos}} {unit}"),
        };
        bar.set_style(ProgressStyle::with_template(&form).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    }

    /// A mark of success; coloured on a terminal.
    pub(crate) fn good(&self, mark: &str) -> String {
        self.coloured(32, mark)
    }

    /// A mark of failure; coloured on a terminal.
    pub(crate) fn bad(&self, mark: &str) -> String {
        self.coloured(31, mark)
    }

    fn coloured(&self, code: u8, mark: &str) -> String {
        let is_terminal = std::io::stdout().is_terminal();
        if self.colour && is_terminal { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() }
    }

    /// A line of progress.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// What somebody should look at.
    pub(crate) fn warning(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    /// A line on standard error, whatever was asked for.
    #[expect(clippy::unused_self, reason = "what prints does so through the printer")]
    pub(crate) fn say(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{}", harmless(text));
    }

    /// Starts a step: a spinner on a terminal, one line when it is done.
    pub(crate) fn step(&self, what: &str) -> Step<'_> {
        let spinner = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        let spinner = spinner.with_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Step { printer: self, what: what.to_owned(), started: Instant::now(), spinner }
    }

    /// An error with its causes, each once.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        if error.is::<ClosedPipe>() {
            return;
        }
        let mark = if self.colour { "\x1b[31merror:\x1b[0m" } else { "error:" };
        self.say(&format!("{mark} {error:#}"));
        if let Some(step) = advice::next_step(error) {
            self.say(&format!("  next: {step}"));
        }
    }
}

/// Widest line of a table, in columns.
const WIDTH: usize = 80;

/// A text behind a beginning, in lines that fit; what has no space stays whole.
pub(crate) fn folded(begin: &str, text: &str) -> String {
    let indent = " ".repeat(begin.chars().count());
    let mut lines = begin.to_owned();
    let mut column = begin.chars().count();
    let mut is_first = true;
    for word in text.split(' ') {
        let width = word.chars().count();
        if !is_first && column + 1 + width > WIDTH {
            lines.push('\n');
            lines.push_str(&indent);
            column = indent.len();
        } else if !is_first {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += width;
        is_first = false;
    }
    lines.push('\n');
    lines
}

/// Colours that this program prints itself. They hide nothing.
const COLOURS: [&str; 3] = ["\x1b[31m", "\x1b[32m", "\x1b[0m"];

/// What a terminal does not only show but obeys: control characters, and those that turn the direction of text.
fn is_obeyed(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\n' && c != '\t') || turns
}

/// Text in which nothing that came from somebody else moves the cursor, hides a line or writes to the clipboard: names
/// in manifests and certificates, reasons, messages of a peer that is not verified yet.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(colour) = COLOURS.iter().find(|colour| rest.starts_with(**colour)) {
            shown.push_str(colour);
            rest = &rest[colour.len()..];
            continue;
        }
        match is_obeyed(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    shown
}

/// JSON escapes control characters below a space itself. The others stand in strings only.
fn harmless_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_obeyed(c) {
            true => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    shown
}

/// Times in results are RFC 3339.
pub(crate) fn rfc3339<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        let evil = "\x1b[2K\r\x1b[1A\x1b[32mVerified\x1b[0m \x1b]52;c;ZXZpbA==\x07 \u{9b}2J \u{202e}txt";
        let shown = harmless(evil);
        assert!(!shown.contains(['\r', '\x07', '\u{9b}', '\u{202e}']), "{shown:?}");
        assert_eq!(shown.matches('\x1b').count(), 2, "only the colours are left: {shown:?}");
        assert!(shown.contains("\\u{1b}]52;c;"), "{shown:?}");
        assert_eq!(harmless("two\n\tlines: ✔ é"), "two\n\tlines: ✔ é");

        let json = serde_json::to_string(&evil).unwrap();
        let shown = harmless_json(&json);
        assert!(!shown.contains(is_obeyed), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), evil, "machines read the same");
    }

    #[test]
    fn long_rows_are_folded_at_80_columns_and_lose_no_word() {
        let words =
            "3 workloads added, 2 removed, the policies of web, database and a-rather-long-name changed";
        let text = folded("  1  2026-11-24T10:30:00.000Z  0123456789ab…   ", words);
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let again: Vec<&str> = text.split_whitespace().skip(3).collect();
        assert_eq!(again.join(" "), words);
    }
}
