//! Options from a TOML file, below flags and environment.
//!
//! A file's values become the defaults of the options they name, so precedence, parsing and error
//! texts stay clap's. A top-level key serves every subcommand that has the option; a table narrows
//! it to the subcommand of that name.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Command, Parser, error::ErrorKind};
use toml::{Table, Value};

const VARIABLE: &str = "CONTRAST_CONFIG";

/// Why a file's options cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct FileError(String);

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FileError {}

/// Parses the command line of a program that has the option `--config FILE`. Without it, and
/// without `CONTRAST_CONFIG`, `default_file` is read if it exists. Ends the process with a message
/// and exit code 2 when something is wrong, as [`Parser::parse`] does.
pub fn parse<P: Parser>(default_file: Option<&str>) -> P {
    parse_command(P::command(), default_file)
}

/// [`parse`] with a command that was changed, such as other defaults.
pub fn parse_command<P: Parser>(mut command: Command, default_file: Option<&str>) -> P {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let named = named_file(&arguments).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let file = named.or_else(|| default_file.map(PathBuf::from).filter(|path| path.is_file()));
    if let Some(path) = &file {
        command = with_file(command, path)
            .unwrap_or_else(|error| P::command().error(ErrorKind::ValueValidation, error).exit());
    }
    let matches = command.get_matches_from(arguments);
    P::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn named_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

/// The command, with the file's options as defaults.
pub fn with_file(command: Command, path: &Path) -> Result<Command, FileError> {
    let at = |what: &str| FileError(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| at(&error.to_string()))?;
    let table: Table = toml::from_str(&text).map_err(|error| at(error.to_string().trim()))?;
    with_table(command, &table).map_err(|error| at(&error))
}

fn with_table(mut command: Command, table: &Table) -> Result<Command, String> {
    for (name, value) in table {
        command = match value {
            Value::Table(inner) => {
                let known = command.find_subcommand(name).is_some();
                if !known {
                    return Err(format!("unknown command [{name}]"));
                }
                let mut failed = None;
                command = command.mut_subcommand(name, |sub| {
                    with_table(sub.clone(), inner).unwrap_or_else(|error| {
                        failed = Some(error);
                        sub
                    })
                });
                match failed {
                    Some(error) => return Err(error),
                    None => command,
                }
            }
            value => {
                let values = texts(value).ok_or_else(|| format!("option {name:?} has an unusable value"))?;
                let mut used = false;
                command = with_default(command, name, &values, &mut used);
                if !used {
                    return Err(format!("unknown option {name:?}"));
                }
                command
            }
        };
    }
    Ok(command)
}

fn with_default(mut command: Command, name: &str, values: &[String], used: &mut bool) -> Command {
    let found = command.get_arguments().find(|argument| argument.get_long() == Some(name));
    if let Some(id) = found.map(|argument| argument.get_id().clone()) {
        *used = true;
        command = command.mut_arg(id, |argument| argument.required(false).default_values(values.to_vec()));
    }
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for sub in subcommands {
        command = command.mut_subcommand(sub, |sub| with_default(sub, name, values, used));
    }
    command
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(vec![value.to_string()]),
        Value::Array(values) => {
            values.iter().map(texts).collect::<Option<Vec<_>>>().map(|texts| texts.concat())
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let option = |name: &'static str| Arg::new(name).long(name);
        Command::new("test")
            .arg(option("level").default_value("info"))
            .subcommand(Command::new("set").arg(option("coordinator").required(true)))
            .subcommand(Command::new("verify").arg(option("coordinator").required(true)))
    }

    fn coordinator(file: &str, line: &[&str]) -> Result<String, String> {
        let table: Table = toml::from_str(file).unwrap();
        let command = with_table(command(), &table)?;
        let matches = command.try_get_matches_from(line).map_err(|error| error.to_string())?;
        let (_, matches) = matches.subcommand().ok_or("no subcommand")?;
        matches.get_one::<String>("coordinator").cloned().ok_or_else(|| "none".into())
    }

    #[test]
    fn a_files_option_serves_where_no_flag_does() {
        let file = "coordinator = \"from-file:1313\"\n[set]\ncoordinator = \"for-set:1313\"\n";
        assert_eq!(coordinator(file, &["test", "verify"]).unwrap(), "from-file:1313");
        assert_eq!(coordinator(file, &["test", "set"]).unwrap(), "for-set:1313");
        assert_eq!(coordinator(file, &["test", "set", "--coordinator", "flag"]).unwrap(), "flag");
    }

    #[test]
    fn what_is_not_an_option_is_named() {
        assert_eq!(
            coordinator("cordinator = 1", &["test", "set"]),
            Err("unknown option \"cordinator\"".into())
        );
        assert_eq!(coordinator("[sett]\nx = 1", &["test", "set"]), Err("unknown command [sett]".into()));
        let dated = coordinator("level = 2026-01-01", &["test", "set"]);
        assert_eq!(dated, Err("option \"level\" has an unusable value".into()));
    }
}
