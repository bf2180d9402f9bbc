//! A runtime's directory on the node: complete or not there.
//!
//! Files are gathered in a folder of their own beside it, checked, made durable, and then appear under their name in
//! one step. Another run compares the whole tree with what was recorded, and gathers it anew if a byte differs.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use runtime_bundle::{Bundle, BundleFile, HandlerName, INSTALL_DIRECTORY, Platform};
use rustix::fs::{CWD, RenameFlags};
use sha2::{Digest as _, Sha256};

use crate::{
    fetch::Fetcher,
    host::{Host, sync_folder},
    kata,
};

/// What the directory holds after [`install`].
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    /// Hash over all of it.
    pub hash: String,
    /// Whether it had to be made.
    pub changed: bool,
}

/// Makes the runtime's directory what it must be. `recorded` is its hash as of an earlier run.
pub fn install(
    host: &Host,
    fetcher: &Fetcher,
    bundle: &Bundle,
    platform: Platform,
    handler: &HandlerName,
    recorded: Option<&str>,
) -> anyhow::Result<Tree> {
    let configuration = kata::configuration(bundle, platform, handler)?;
    let directory = host.resolve(Path::new(&handler.directory()))?;
    let name = || format!("{} on the node", handler.directory());
    clean(host, handler)?;
    if directory.exists() {
        let hash = tree_hash(&directory).with_context(name)?;
        let same =
            fs::read_to_string(directory.join(kata::path(platform))).is_ok_and(|text| text == configuration);
        if recorded == Some(&hash) && same {
            return Ok(Tree { hash, changed: false });
        }
        tracing::warn!(directory = %handler.directory(), "not as it was installed: gathering its files anew");
    }
    let staging = beside(host, handler, "staging")?;
    let gathered = gather(&staging, fetcher, bundle, &configuration, kata::path(platform));
    if let Err(error) = gathered {
        let _ = fs::remove_dir_all(&staging);
        return Err(error);
    }
    let hash = tree_hash(&staging).with_context(name)?;
    if directory.exists() {
        rustix::fs::renameat_with(CWD, &staging, CWD, &directory, RenameFlags::EXCHANGE)
            .with_context(name)?;
        fs::remove_dir_all(&staging).with_context(name)?;
    } else {
        fs::rename(&staging, &directory).with_context(name)?;
    }
    sync_folder(directory.parent().unwrap_or(&directory)).with_context(name)?;
    Ok(Tree { hash, changed: true })
}

/// Removes the runtime's directory: first its name, then its files.
pub fn remove(host: &Host, handler: &HandlerName) -> anyhow::Result<()> {
    let name = || format!("cannot remove {} on the node", handler.directory());
    clean(host, handler)?;
    let directory = host.resolve(Path::new(&handler.directory()))?;
    if directory.exists() {
        let removing = beside(host, handler, "removing")?;
        fs::rename(&directory, &removing).with_context(name)?;
        fs::remove_dir_all(&removing).with_context(name)?;
    }
    Ok(())
}

/// Removes what killed runs left.
fn clean(host: &Host, handler: &HandlerName) -> anyhow::Result<()> {
    for purpose in ["staging", "removing"] {
        let path = beside(host, handler, purpose)?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn beside(host: &Host, handler: &HandlerName, purpose: &str) -> io::Result<PathBuf> {
    host.resolve(&Path::new(INSTALL_DIRECTORY).join(format!(".{handler}.{purpose}")))
}

fn gather(
    staging: &Path,
    fetcher: &Fetcher,
    bundle: &Bundle,
    configuration: &str,
    configuration_path: &str,
) -> anyhow::Result<()> {
    let io = || format!("cannot write {}", staging.display());
    make_folder(staging).with_context(io)?;
    for (number, file) in (1..).zip(&bundle.files) {
        tracing::info!(file = file.path.as_str(), number, of = bundle.files.len(), "gathering");
        let target = below(staging, file.path.as_str()).with_context(io)?;
        if target.exists() && !file.unpack {
            anyhow::bail!("files: {:?} is in an archive and in the list as well", file.path.as_str());
        }
        fetcher.fetch(file, &target)?;
        set_mode(file, &target).with_context(io)?;
    }
    let target = below(staging, configuration_path).with_context(io)?;
    fs::write(&target, configuration).with_context(io)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).with_context(io)?;
    sync_all(staging).with_context(io)
}

/// The path below `staging`, its folders made.
fn below(staging: &Path, path: &str) -> io::Result<PathBuf> {
    let mut folder = staging.to_owned();
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        folder.push(part);
        if !fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) {
            make_folder(&folder)?;
        }
    }
    Ok(folder.join(name))
}

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn set_mode(file: &BundleFile, target: &Path) -> io::Result<()> {
    if file.unpack {
        return Ok(());
    }
    fs::set_permissions(target, fs::Permissions::from_mode(file.mode.bits()))
}

fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in sorted(folder)? {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

fn sorted(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

/// Hash over names, kinds, modes and contents of everything below `folder`.
pub fn tree_hash(folder: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    add_tree(folder, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add_tree(folder: &Path, hasher: &mut Sha256) -> io::Result<()> {
    for entry in sorted(folder)? {
        let (path, about) = (entry.path(), entry.metadata()?);
        let name = entry.file_name();
        hasher.update(u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(name.as_bytes());
        hasher.update(about.permissions().mode().to_be_bytes());
        if about.is_dir() {
            add_tree(&path, hasher)?;
            hasher.update([0]);
        } else if about.is_symlink() {
            hasher.update(Sha256::digest(fs::read_link(&path)?.as_os_str().as_bytes()));
        } else if about.is_file() {
            let mut contents = Sha256::new();
            io::copy(&mut fs::File::open(&path)?, &mut contents)?;
            hasher.update(contents.finalize());
        }
    }
    Ok(())
}
