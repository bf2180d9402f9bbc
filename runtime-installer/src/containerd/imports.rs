//! Which version containerd 2 takes a configuration for that imports files of another.
//!
//! It merges files in the order in which they are imported, and then reads the result as the version of the last one that
//! has one: what files of another version say of runtimes is lost (containerd 2.1.9, `cmd/containerd/server/config`).
//! Later releases bring each file to the newest version first; there every entry counts.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use super::{
    patch::{self, Format, Version},
    target::{Place, Target, TargetError, read_text},
};
use crate::host::Host;

/// Most files that are looked at.
const MAX_FILES: usize = 256;

/// The file whose version counts for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Deciding {
    path: PathBuf,
    version: Version,
}

/// Moves the entry where containerd 2 looks at it, if the configuration imports files of another version than its own.
pub fn settle(target: &mut Target, host: &Host) -> Result<(), TargetError> {
    let root = match &target.place {
        Place::Block(path, Format::Toml) => path.clone(),
        Place::DropIn(..) => target.config.clone(),
        Place::Block(..) => return Ok(()),
    };
    let Some(deciding) = deciding(host, &root)? else { return Ok(()) };
    let text = read_text(host, &root)?.unwrap_or_default();
    let bad = |source| TargetError::Config { path: root.display().to_string(), source };
    match patch::imported_folder(&patch::parse(&text).map_err(bad)?) {
        Some(folder) => {
            target.place = Place::DropIn(folder.into(), deciding.version);
            Ok(())
        }
        None => Err(TargetError::Mixed {
            config: root.display().to_string(),
            other: deciding.path.display().to_string(),
        }),
    }
}

/// The imported file that decides, if the configuration's own version does not count.
fn deciding(host: &Host, root: &Path) -> Result<Option<Deciding>, TargetError> {
    let (mut pending, mut seen) = (VecDeque::from([root.to_owned()]), BTreeSet::new());
    let (mut own, mut last) = (Version::V1, None);
    while let Some(path) = pending.pop_front() {
        if seen.len() >= MAX_FILES || !seen.insert(path.clone()) {
            continue;
        }
        let Some(text) = read_text(host, &path)? else { continue };
        let bad = |source| TargetError::Config { path: path.display().to_string(), source };
        let config = patch::parse(&text).map_err(bad)?;
        let version = Version::of(&config).map_err(bad)?;
        if path == root {
            own = version;
        } else if version > Version::V1 {
            last = Some(Deciding { path: path.clone(), version });
        }
        let imports = config.get("imports").and_then(|imports| imports.as_array());
        for import in imports.into_iter().flatten().filter_map(|import| import.as_str()) {
            pending.extend(matches(host, path.parent().unwrap_or(Path::new("/")), import));
        }
    }
    Ok(last.filter(|last| last.version != own))
}

/// Files that an import names; a `*` in the last component stands for any text.
fn matches(host: &Host, folder: &Path, import: &str) -> Vec<PathBuf> {
    let path = folder.join(import);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some((begin, end)) = name.split_once('*') else { return vec![path] };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let entries = host.resolve(folder).and_then(fs::read_dir).into_iter().flatten().flatten();
    let fits =
        |name: &str| name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| fits(name));
    let mut found: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_with_a_version_decides() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), 1);
        let put = |path: &str, text: &str| {
            host.make_folder(Path::new(path).parent().unwrap()).unwrap();
            host.replace(Path::new(path), text.as_bytes()).unwrap();
        };
        let config = Path::new("/etc/containerd/config.toml");
        let found = || {
            let found = deciding(&host, config).unwrap();
            found.map(|found| (found.path.display().to_string(), found.version))
        };
        put(
            "/etc/containerd/config.toml",
            "version = 2\nimports = [\"conf.d/*.toml\", \"/etc/more.toml\"]\n",
        );
        assert_eq!(found(), None);
        put("/etc/containerd/conf.d/10-a.toml", "version = 3\nimports = [\"/etc/containerd/config.toml\"]\n");
        put("/etc/containerd/conf.d/20-b.toml", "oom_score = 1\n");
        put("/etc/containerd/conf.d/readme.md", "version = 9\n");
        assert_eq!(found(), Some(("/etc/containerd/conf.d/10-a.toml".into(), Version::V3)));
        put("/etc/more.toml", "version = 2\n");
        assert_eq!(found(), None, "the last one is of the configuration's own version");
        put("/etc/more.toml", "version = [\n");
        assert!(deciding(&host, config).unwrap_err().to_string().starts_with("/etc/more.toml on the node: "));
    }
}
