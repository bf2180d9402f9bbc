//! Options from a TOML file, below flags and environment.
//!
//! A file's values become the defaults of the options they name, so parsing and error texts stay clap's. A top-level
//! key serves every subcommand that has the option; a table narrows it to the subcommand of that name.
//!
//! Flags go before environment before file also where options exclude each other: whoever gives `--export` does not
//! mean the Coordinator that the file or the environment names.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command, Parser, builder::Resettable, error::ErrorKind, parser::ValueSource};
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
    let given = given(&command, &arguments);
    let in_environment =
        |argument: &Arg| argument.get_env().is_some_and(|name| std::env::var_os(name).is_some());
    command = without_overruled_environment(command, given.as_ref());
    if let Some(path) = &file {
        let read = read_table(path).and_then(|table| {
            let weight = Weight { given: given.as_ref(), in_environment: &in_environment };
            let command = with_table(command, &table, weight);
            command.map_err(|error| FileError(format!("{}: {error}", path.display())))
        });
        command = read.unwrap_or_else(|error| P::command().error(ErrorKind::ValueValidation, error).exit());
    }
    let matches = command.get_matches_from(arguments);
    P::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command as a line and the text of a file of options leave it, without the environment: for tests of a program's own
/// options.
pub fn with_file_of(command: Command, file: &str, line: &[&str]) -> Result<Command, String> {
    let table: Table = toml::from_str(file).map_err(|error| error.to_string())?;
    let arguments: Vec<OsString> = line.iter().map(OsString::from).collect();
    let given = given(&command, &arguments);
    with_table(command, &table, Weight { given: given.as_ref(), in_environment: &|_| false })
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

fn read_table(path: &Path) -> Result<Table, FileError> {
    let at = |what: &str| FileError(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| at(&error.to_string()))?;
    toml::from_str(&text).map_err(|error| at(error.to_string().trim()))
}

/// What stands on the command line, as far as it can be read: whatever is wrong with it is said later.
fn given(command: &Command, arguments: &[OsString]) -> Option<ArgMatches> {
    command.clone().ignore_errors(true).try_get_matches_from(arguments).ok()
}

fn is_given(given: Option<&ArgMatches>, argument: &Arg) -> bool {
    let id = argument.get_id().as_str();
    given.is_some_and(|given| {
        matches!(given.try_contains_id(id), Ok(true))
            && given.value_source(id) == Some(ValueSource::CommandLine)
    })
}

/// Whether two options of a command exclude each other, whichever of them says so.
fn conflict(command: &Command, one: &Arg, other: &Arg) -> bool {
    let says = |one: &Arg, other: &Arg| {
        command.get_arg_conflicts_with(one).iter().any(|argument| argument.get_id() == other.get_id())
    };
    one.get_id() != other.get_id() && (says(one, other) || says(other, one))
}

/// Options lose their variable where a flag excludes them.
fn without_overruled_environment(mut command: Command, given: Option<&ArgMatches>) -> Command {
    let overruled = |argument: &&Arg| {
        argument.get_env().is_some()
            && command.get_arguments().any(|flag| is_given(given, flag) && conflict(&command, argument, flag))
    };
    let overruled: Vec<_> =
        command.get_arguments().filter(overruled).map(|found| found.get_id().clone()).collect();
    for id in overruled {
        command = command.mut_arg(id, |argument| argument.env(Resettable::Reset));
    }
    let Some((name, given)) = given.and_then(ArgMatches::subcommand) else { return command };
    match command.find_subcommand(name) {
        Some(_) => command.mut_subcommand(name, |sub| without_overruled_environment(sub, Some(given))),
        None => command,
    }
}

/// What goes before the file.
#[derive(Clone, Copy)]
struct Weight<'a> {
    given: Option<&'a ArgMatches>,
    in_environment: &'a dyn Fn(&Arg) -> bool,
}

impl<'a> Weight<'a> {
    fn below(self, subcommand: &str) -> Self {
        Self { given: self.given.and_then(|given| given.subcommand_matches(subcommand)), ..self }
    }

    /// Whether flags or environment have another option that excludes this one.
    fn overrules(self, command: &Command, argument: &Arg) -> bool {
        command.get_arguments().any(|other| {
            (is_given(self.given, other) || (self.in_environment)(other))
                && conflict(command, argument, other)
        })
    }
}

fn with_table(mut command: Command, table: &Table, weight: Weight<'_>) -> Result<Command, String> {
    for (name, value) in table {
        command = match value {
            Value::Table(inner) => {
                if command.find_subcommand(name).is_none() {
                    return Err(format!("unknown command [{name}]"));
                }
                let mut failed = None;
                command = command.mut_subcommand(name, |sub| {
                    with_table(sub.clone(), inner, weight.below(name)).unwrap_or_else(|error| {
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
                command = with_default(command, name, &values, weight, &mut used);
                if !used {
                    return Err(format!("unknown option {name:?}"));
                }
                command
            }
        };
    }
    Ok(command)
}

fn with_default(
    mut command: Command,
    name: &str,
    values: &[String],
    weight: Weight<'_>,
    used: &mut bool,
) -> Command {
    let found = command.get_arguments().find(|argument| argument.get_long() == Some(name));
    let found = found.map(|argument| (argument.get_id().clone(), weight.overrules(&command, argument)));
    if let Some((id, is_overruled)) = found {
        *used = true;
        if !is_overruled {
            command =
                command.mut_arg(id, |argument| argument.required(false).default_values(values.to_vec()));
        }
    }
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for sub in subcommands {
        let weight = weight.below(&sub);
        command = command.mut_subcommand(sub, |sub| with_default(sub, name, values, weight, used));
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
        let arguments: Vec<OsString> = line.iter().map(OsString::from).collect();
        let given = given(&command(), &arguments);
        let weight = Weight { given: given.as_ref(), in_environment: &|_| false };
        let command = with_table(command(), &table, weight)?;
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

    /// Two options that exclude each other, each named nowhere or in one of the three places: the strongest place wins.
    #[test]
    fn flags_go_before_environment_before_the_file_where_options_exclude_each_other() {
        let places = ["", "file", "environment", "flag"];
        let arg = |name: &'static str, other: &'static str| Arg::new(name).long(name).conflicts_with(other);
        for (live, strength_of_live) in places.iter().zip(0..) {
            for (export, strength_of_export) in places.iter().zip(0..) {
                if strength_of_live == strength_of_export {
                    continue;
                }
                // An option says so once; which of the two does must not matter.
                for says in ["live", "export"] {
                    let plain = |name: &'static str| Arg::new(name).long(name);
                    let [one, other] = match says {
                        "live" => [arg("live", "export"), plain("export")],
                        _ => [plain("live"), arg("export", "live")],
                    };
                    let command = Command::new("test").subcommand(Command::new("list").args([one, other]));
                    let at = |place: &str| {
                        let both = [("live", *live), ("export", *export)];
                        both.into_iter()
                            .filter(|(_, found)| *found == place)
                            .map(|(name, _)| name)
                            .collect::<Vec<_>>()
                    };
                    let flags: Vec<String> = at("flag").iter().map(|name| format!("--{name}=x")).collect();
                    let line: Vec<OsString> = ["test", "list"]
                        .iter()
                        .map(OsString::from)
                        .chain(flags.iter().map(OsString::from))
                        .collect();
                    let table =
                        at("file").iter().map(|name| ((*name).to_owned(), Value::from("x"))).collect();
                    let given = given(&command, &line);
                    let variables = at("environment");
                    let in_environment = |argument: &Arg| variables.contains(&argument.get_id().as_str());
                    let weight = Weight { given: given.as_ref(), in_environment: &in_environment };
                    let command = with_table(command, &table, weight).unwrap();
                    let matches = command.try_get_matches_from(line).unwrap();
                    let (_, matches) = matches.subcommand().unwrap();
                    let (name, strongest) = match strength_of_live > strength_of_export {
                        true => (["live", "export"], live),
                        false => (["export", "live"], export),
                    };
                    // A variable is clap's to read; the file's value is what must not be there beside it.
                    assert!(
                        *strongest == "environment" || matches.contains_id(name[0]),
                        "{live}/{export}: {name:?}"
                    );
                    assert!(!matches.contains_id(name[1]), "{live}/{export}: {name:?}");
                }
            }
        }
    }
}
