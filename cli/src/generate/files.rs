//! Reading and writing the user's files.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use manifest::PolicyHash;
use runtime_policy::{Deployment, PodPolicy};

use crate::{printer::Printer, whole_file::replace};

/// What standard input is called in messages.
const STDIN: &str = "<stdin>";
/// Most bytes of standard input.
const MAX_STDIN_BYTES: u64 = 8 << 20;

/// A file whose text is another now.
pub(super) struct Change {
    pub(super) name: String,
    pub(super) before: String,
    pub(super) after: String,
}

/// Name and text of every YAML file at or below the paths, each once.
pub(crate) fn collect(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .take(MAX_STDIN_BYTES)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            files.push((STDIN.to_owned(), text));
            continue;
        }
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut found = Vec::new();
        if metadata.is_dir() {
            below(path, &mut found)?;
            ensure!(!found.is_empty(), "{} holds no .yml or .yaml file", path.display());
        } else {
            found.push(path.clone());
        }
        found.sort();
        for file in found {
            let identity = fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
            if seen.insert(identity) {
                let text =
                    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                files.push((file.display().to_string(), text));
            }
        }
    }
    Ok(files)
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        // Links are not followed: a folder could lead back to itself.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            below(&path, found)?;
        } else if kind.is_file()
            && path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml")
        {
            found.push(path);
        }
    }
    Ok(())
}

pub(super) fn changes(originals: &[(String, String)], deployment: &Deployment) -> Vec<Change> {
    let pairs = originals.iter().zip(deployment.texts());
    let changed = pairs.filter(|((_, before), (_, after))| before != after);
    changed
        .map(|((name, before), (_, after))| Change { name: name.clone(), before: before.clone(), after })
        .collect()
}

/// Whether results go to standard output, where then nothing else may go.
pub(super) fn to_stdout(paths: &[PathBuf], combined: Option<&Path>) -> bool {
    combined.is_none() && paths.iter().any(|path| path.as_os_str() == "-")
}

/// Writes what changed in place, or everything to one file.
pub(super) fn write(
    paths: &[PathBuf],
    combined: Option<&Path>,
    deployment: &Deployment,
    changes: &[Change],
    printer: &Printer,
) -> anyhow::Result<()> {
    if let Some(path) = combined {
        let mut text = String::new();
        for (_, more) in deployment.texts() {
            if !text.is_empty() && !more.starts_with("---") {
                text.push_str("---\n");
            }
            text.push_str(&more);
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        return replace(path, text.as_bytes());
    }
    for change in changes.iter().filter(|change| change.name != STDIN) {
        replace(Path::new(&change.name), change.after.as_bytes())?;
    }
    if to_stdout(paths, combined) {
        for (_, text) in deployment.texts().filter(|(name, _)| *name == STDIN) {
            printer.text(&text)?;
        }
    }
    Ok(())
}

/// One file for each document, named by its hash. Documents of earlier runs are removed, unless the manifest still names
/// them.
pub(super) fn write_policies(
    folder: &Path,
    policies: &[PodPolicy],
    going_out: &[(PolicyHash, String)],
) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = |policy: &PodPolicy| format!("{}.toml", policy.document.hash());
    let kept = going_out.iter().map(|(hash, _)| format!("{hash}.toml"));
    let current: BTreeSet<String> = policies.iter().map(name).chain(kept).collect();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let ours = file
            .strip_suffix(".toml")
            .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit()));
        if ours && !current.contains(&file) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    for policy in policies {
        replace(&folder.join(name(policy)), policy.document.bytes())?;
    }
    Ok(())
}
