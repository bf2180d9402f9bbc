//! What `--help` shows, and what several options mean alike: `-o FILE` is where something is written, `--output FORM` how
//! results look.

mod examples;

use std::path::PathBuf;

use clap::{Arg, Command};

/// Parses the FILE of `-o`. Whoever knows other programs may mean a form by it.
pub(crate) fn out_file(text: &str) -> Result<PathBuf, String> {
    match text {
        "json" | "text" | "yaml" => Err(format!(
            "-o is followed by a file; the form of the results is --output {text} (a file of this name: ./{text})"
        )),
        path => Ok(path.into()),
    }
}

/// Gives every command its examples. The options that every command has are described once, by `contrast --help`;
/// everywhere else one line names them.
pub(crate) fn with_short_help(command: Command) -> Command {
    let global: Vec<Arg> =
        command.get_arguments().filter(|argument| argument.is_global_set()).cloned().collect();
    let names: Vec<String> =
        global.iter().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect();
    let line = format!("Options of every command, described by `contrast --help`: {}", names.join(", "));
    below(command, "", &global, &line)
}

fn below(mut command: Command, path: &str, global: &[Arg], line: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command = command.mut_subcommand(name, |mut sub| {
            let own = sub.get_after_help().map(ToString::to_string);
            let parts = [examples(&path), own, Some(line.to_owned())];
            let text = parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n");
            for argument in global {
                // Some have an option of that name of their own.
                if sub.get_arguments().all(|own| own.get_id() != argument.get_id()) {
                    sub = sub.arg(argument.clone().hide(true));
                }
            }
            below(sub.after_help(text), &path, global, line)
        });
    }
    command
}

/// The examples of a command, and of one that only leads to others the first of each.
fn examples(path: &str) -> Option<String> {
    let own =
        examples::EXAMPLES.iter().find(|(name, _)| *name == path).map(|(_, examples)| examples.to_vec());
    let chosen = own.unwrap_or_else(|| {
        let of_others = examples::EXAMPLES
            .iter()
            .filter(|(name, _)| name.strip_prefix(path).is_some_and(|rest| rest.starts_with(' ')));
        of_others.filter_map(|(_, examples)| examples.first().copied()).collect()
    });
    let lines: Vec<String> = chosen.into_iter().flat_map(examples::lines).collect();
    (!lines.is_empty()).then(|| format!("Examples:\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;
    use crate::Cli;

    /// Every command with its name, from `contrast` on.
    fn commands(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        found.push((name.to_owned(), command.clone()));
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            commands(sub, &format!("{name} {}", sub.get_name()), found);
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        commands(&with_short_help(Cli::command()), "contrast", &mut found);
        found
    }

    /// The lines below "Examples:".
    fn shown(command: &Command) -> Vec<String> {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = text.lines().skip_while(|line| !line.starts_with("Example")).skip(1);
        lines.take_while(|line| line.starts_with(' ')).map(str::to_owned).collect()
    }

    /// Those that go on put together.
    fn examples(command: &Command) -> Vec<String> {
        let mut whole: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in shown(command) {
            let line = line.trim();
            let (part, more) = line.strip_suffix('\\').map_or((line, false), |part| (part, true));
            match whole.last_mut().filter(|_| goes_on) {
                Some(last) => *last = format!("{} {}", last.trim_end(), part.trim()),
                None => whole.push(part.trim().to_owned()),
            }
            goes_on = more;
        }
        whole
    }

    /// Words as a shell makes them, of text with single and double quotes.
    fn words(line: &str) -> Vec<String> {
        let (mut all, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
        for c in line.chars() {
            match quote {
                Some(end) if c == end => quote = None,
                None if c == '\'' || c == '"' => (quote, begun) = (Some(c), true),
                None if c == ' ' => {
                    if begun {
                        all.push(std::mem::take(&mut word));
                    }
                    begun = false;
                }
                _ => {
                    word.push(c);
                    begun = true;
                }
            }
        }
        if begun {
            all.push(word);
        }
        all
    }

    #[test]
    fn every_command_that_does_something_has_examples_and_they_are_understood() {
        for (name, command) in all() {
            let examples = examples(&command);
            let is_leaf = command.get_subcommands().next().is_none();
            let trivial = ["contrast version", "contrast completion", "contrast endorsements refresh"];
            assert!(
                !is_leaf || !examples.is_empty() || trivial.contains(&name.as_str()),
                "{name} has no example"
            );
            for example in examples {
                for part in example.split(" | ") {
                    let Some(at) = part.find("contrast ").filter(|at| *at == 0) else { continue };
                    let line = part[at..].split(" > ").next().unwrap();
                    // What a reader fills in has three dots.
                    let line = line
                        .replace("4fb2...", "4fb20000000000000000000000000000")
                        .replace("4f1c...", "4f1c0000000000000000000000000000");
                    let parsed = with_short_help(Cli::command()).try_get_matches_from(words(&line));
                    let kind = parsed.err().map(|error| (error.kind(), error.to_string()));
                    assert!(
                        kind.is_none() || matches!(kind, Some((ErrorKind::DisplayHelp, _))),
                        "{name}: {line}: {kind:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn examples_paste_from_a_terminal_of_80_columns() {
        for (name, command) in all() {
            for line in shown(&command) {
                assert!(line.chars().count() <= 80, "{name}: {line:?}");
            }
        }
    }

    #[test]
    fn options_of_every_command_are_described_once() {
        for (name, mut command) in all() {
            let text = command.render_long_help().to_string();
            let described = text.contains("--log-format <");
            assert_eq!(described, name == "contrast", "{name}:\n{text}");
            assert!(text.contains("--log-format"), "{name} names them");
        }
        // And they work before and behind the command.
        for line in [["contrast", "--quiet", "version"], ["contrast", "version", "--quiet"]] {
            let matches = with_short_help(Cli::command()).try_get_matches_from(line).unwrap();
            assert!(matches.get_flag("quiet"), "{line:?}");
        }
        let matches =
            with_short_help(Cli::command()).try_get_matches_from(["contrast", "version", "--output", "json"]);
        let form = *matches.unwrap().get_one::<crate::printer::OutputFormat>("output").unwrap();
        assert_eq!(form, crate::printer::OutputFormat::Json);
    }

    /// A value that an option takes; flags take none.
    fn value_for(command: &Command, argument: &Arg) -> Option<String> {
        if !argument.get_action().takes_values() {
            return Some("true".into());
        }
        let tried = [
            "x",
            "1",
            "json",
            "2026-01-01T00:00:00Z",
            "10Gi",
            "http://127.0.0.1:1",
            "contrast-cc-metal-qemu-snp-0a1b2c3d",
        ];
        let hex = [16, 32, 48].map(|bytes| "00".repeat(bytes));
        let mut tried = tried.into_iter().map(str::to_owned).chain(hex);
        tried.find(|value| {
            let line = ["test".to_owned(), format!("--{}={value}", argument.get_long().unwrap())];
            let parsed = command.clone().try_get_matches_from(line);
            !matches!(
                parsed.map_err(|error| error.kind()),
                Err(ErrorKind::ValueValidation | ErrorKind::InvalidValue)
            )
        })
    }

    /// Whoever gives one of two options that exclude each other as a flag does not mean the other one in the file.
    #[test]
    fn a_flag_wins_over_the_file_for_all_options_that_exclude_each_other() {
        let mut tried = Vec::new();
        for (name, command) in all() {
            let options: Vec<&Arg> =
                command.get_arguments().filter(|argument| argument.get_long().is_some()).collect();
            for (one, other) in options.iter().flat_map(|one| options.iter().map(move |other| (*one, *other)))
            {
                let says = |a: &Arg, b: &Arg| {
                    command.get_arg_conflicts_with(a).iter().any(|found| found.get_id() == b.get_id())
                };
                if one.get_id() == other.get_id() || !(says(one, other) || says(other, one)) {
                    continue;
                }
                let values = value_for(&command, one).zip(value_for(&command, other));
                let Some((flag, in_file)) = values else {
                    panic!("{name}: no value fits {} or {}", one.get_id(), other.get_id());
                };
                let (flag_name, file_name) = (one.get_long().unwrap(), other.get_long().unwrap());
                let takes_values = one.get_action().takes_values();
                let flag =
                    if takes_values { format!("--{flag_name}={flag}") } else { format!("--{flag_name}") };
                let plain = command.clone().name("test").env_free();
                let file = format!("{file_name} = {in_file:?}");
                let line = ["test", &flag];
                let command = program::with_file_of(plain, &file, &line).unwrap();
                let kind =
                    command.try_get_matches_from(line).err().map(|error| (error.kind(), error.to_string()));
                assert!(
                    !matches!(kind, Some((ErrorKind::ArgumentConflict, _))),
                    "{name}: {flag} on the line, {file} in the file: {kind:?}"
                );
                tried.push(format!("{name}: --{flag_name}, --{file_name}"));
            }
        }
        assert!(tried.len() > 20, "{tried:#?}");
    }

    trait EnvFree {
        /// Without variables, which those of this test's own environment must not be.
        fn env_free(self) -> Self;
    }

    impl EnvFree for Command {
        fn env_free(self) -> Self {
            self.mut_args(|argument| argument.env(clap::builder::Resettable::Reset))
        }
    }

    #[test]
    fn o_is_a_file_and_output_a_form() {
        assert_eq!(out_file("audit.jsonl").unwrap(), PathBuf::from("audit.jsonl"));
        assert_eq!(out_file("./json").unwrap(), PathBuf::from("./json"));
        assert!(out_file("json").unwrap_err().contains("--output json"));
        for (name, command) in all() {
            for argument in command.get_arguments() {
                let is_file = argument.get_value_names().is_some_and(|names| names[0] == "FILE");
                assert!(argument.get_short() != Some('o') || is_file, "{name} -o");
                let is_form = argument.get_id() == "output";
                assert!(argument.get_long() != Some("output") || is_form, "{name} --output");
            }
        }
    }
}
