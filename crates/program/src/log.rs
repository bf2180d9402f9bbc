//! Logs go to stderr, as text or JSON.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Options about logs; `#[command(flatten)]` them.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// What to log: a level, or tracing directives such as `info,actors=debug`.
    #[arg(long, global = true, env = "CONTRAST_LOG_LEVEL", default_value = "info", value_parser = filter)]
    log_level: String,
    /// How to log.
    #[arg(long, global = true, env = "CONTRAST_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Checks a filter. A word alone would be a target, all of whose levels are logged, and nothing else: nobody who
/// misspells a level means that.
fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_clear = |directive: &&str| {
        directive.contains(['=', '[']) || levels.iter().any(|level| level.eq_ignore_ascii_case(directive))
    };
    match text.split(',').map(str::trim).find(|directive| !is_clear(directive)) {
        None => Ok(text.to_owned()),
        Some(word) => Err(format!("{word:?} is no level: one of {}, or TARGET=LEVEL", levels.join(", "))),
    }
}

impl LogOptions {
    /// Starts logging. To be called once.
    pub fn init(&self) {
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(&self.log_level))
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => log.init(),
            Format::Json => log.json().init(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in ["info", "WARN", "info,actors=debug", "off"] {
            assert_eq!(filter(good).unwrap(), good);
        }
        assert!(filter("foo").unwrap_err().contains("\"foo\" is no level: one of off, error"));
        assert!(filter("info,actors").is_err() && filter("info,actors=loud").is_err());
    }
}
