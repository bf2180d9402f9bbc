//! `--workspace-dir`: the folder in which files have their default names (docs/spec/manifest-and-cli.md,
//! section 2).

use std::path::Path;

use clap::Command;

/// Default names that are files of a workspace.
const NAMES: [&str; 6] =
    ["manifest.json", "policies", "workload-owner.pem", "seedshare-owner.pem", "seedshares.json", "verify"];

/// The command and its subcommands with these defaults in `folder`. What a user names stays where it is.
pub(crate) fn inside(mut command: Command, folder: &Path) -> Command {
    let defaults = command.get_arguments().filter_map(|argument| {
        let [name] = argument.get_default_values() else { return None };
        let name = NAMES.iter().find(|known| name == **known)?;
        Some((argument.get_id().clone(), folder.join(name).into_os_string()))
    });
    for (id, path) in defaults.collect::<Vec<_>>() {
        command = command.mut_arg(id, |argument| argument.default_value(path));
    }
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in subcommands {
        command = command.mut_subcommand(name, |sub| inside(sub, folder));
    }
    command
}
