//! The node's file system, seen through a mount of its root.
//!
//! Paths are absolute on the node. Symlinks are followed as the node would follow them, never out of the mount.
//! Files are replaced by renaming, and durable when a call returns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, XattrFlags};

/// Name of the file that becomes another one by renaming.
const TEMPORARY: &str = ".contrast-runtime-installer.tmp";
const MAX_SYMLINKS: usize = 40;

/// The mount of the node's root.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    process: u32,
}

/// Held while this installer changes the node; the next one waits.
#[derive(Debug)]
pub struct Lock {
    _root: OwnedFd,
}

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("another installer has been at work on this node for {0:?}; try again when it is done")]
    Busy(Duration),
    /// The root cannot be locked.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The root.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl Host {
    /// The node whose root is mounted at `root`. `process` is one that lives in its mount namespace.
    pub fn new(root: impl Into<PathBuf>, process: u32) -> Self {
        Self { root: root.into(), process }
    }

    /// Id of a process in the node's mount namespace.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Where the root is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits at most `patience` for the lock on the node. It lies on the root directory, so it needs no file.
    pub fn lock(&self, patience: Duration) -> Result<Lock, LockError> {
        let io = |source: io::Error| LockError::Io { path: self.root.display().to_string(), source };
        let root: OwnedFd = File::open(&self.root).map_err(io)?.into();
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _root: root }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::Busy(patience)),
                Err(error) => return Err(io(error.into())),
            }
        }
    }

    /// Where `path` of the node is found here, symlinks followed. What does not exist resolves to itself.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut found = self.root.clone();
        let mut todo: Vec<PathBuf> = vec![path.to_owned()];
        let mut links = 0;
        while let Some(part) = todo.pop() {
            let mut components = part.components();
            let Some(first) = components.next() else { continue };
            todo.push(components.as_path().to_owned());
            match first {
                Component::RootDir | Component::Prefix(_) => found.clone_from(&self.root),
                Component::CurDir => {}
                Component::ParentDir if found != self.root => drop(found.pop()),
                Component::ParentDir => {}
                Component::Normal(name) => {
                    found.push(name);
                    if let Ok(target) = fs::read_link(&found) {
                        links += 1;
                        if links > MAX_SYMLINKS {
                            return Err(rustix::io::Errno::LOOP.into());
                        }
                        found.pop();
                        todo.push(target);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Whether something is at `path`.
    pub fn exists(&self, path: &Path) -> bool {
        self.resolve(path).is_ok_and(|found| found.exists())
    }

    /// Contents of a file of at most `max` bytes; `None` if it is not there.
    pub fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.resolve(path)?) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() > max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("over {max} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Replaces a file, or makes it with mode 0644. Owner, mode and extended attributes of the old one stay.
    pub fn replace(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let target = self.resolve(path)?;
        let folder = parent(&target)?;
        let temporary = folder.join(TEMPORARY);
        discard(&temporary)?;
        let written =
            write_like(&temporary, contents, &target).and_then(|()| fs::rename(&temporary, &target));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        sync_folder(folder)
    }

    /// Removes a file, which may be gone already.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let target = self.resolve(path)?;
        let folder = parent(&target)?;
        if !folder.exists() {
            return Ok(());
        }
        discard(&target)?;
        sync_folder(folder)
    }

    /// Removes what a killed run may have left beside `path`.
    pub fn tidy(&self, path: &Path) -> io::Result<()> {
        let target = self.resolve(path)?;
        target.parent().map_or(Ok(()), |folder| discard(&folder.join(TEMPORARY)))
    }

    /// The folders that have to be made so that `path` is one, outermost first.
    pub fn missing_folders(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut missing = Vec::new();
        for folder in path.ancestors() {
            if self.resolve(folder)?.is_dir() {
                break;
            }
            missing.push(folder.to_owned());
        }
        missing.reverse();
        Ok(missing)
    }

    /// Makes a directory and those above it.
    pub fn make_folder(&self, path: &Path) -> io::Result<()> {
        for folder in self.missing_folders(path)? {
            let here = self.resolve(&folder)?;
            fs::create_dir(&here)?;
            fs::set_permissions(&here, fs::Permissions::from_mode(0o755))?;
            sync_folder(parent(&here)?)?;
        }
        Ok(())
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other(format!("{} has no folder", path.display())))
}

fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write_like(temporary: &Path, contents: &[u8], model: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(contents)?;
    let mode = match fs::metadata(model) {
        Ok(old) => {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
            copy_attributes(model, &file)?;
            old.mode() & 0o7777
        }
        Err(_) => 0o644,
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Extended attributes such as SELinux labels. A file system without them has none to copy.
fn copy_attributes(from: &Path, to: &File) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::listxattr(from, &mut names) else { return Ok(()) };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::getxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Makes a directory's entries durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_as_the_node_would_and_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), 1);
        host.make_folder(Path::new("/data/etc")).unwrap();
        std::os::unix::fs::symlink("/data/etc", root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("../../../../../outside", root.path().join("data/etc/escape")).unwrap();
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        assert_eq!(host.resolve(Path::new("/etc/x")).unwrap(), root.path().join("data/etc/x"));
        assert_eq!(host.resolve(Path::new("/etc/escape")).unwrap(), root.path().join("outside"));
        assert!(host.resolve(Path::new("/loop/x")).is_err());
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_its_link() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), 1);
        fs::write(root.path().join("real"), "old").unwrap();
        fs::set_permissions(root.path().join("real"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("link")).unwrap();
        host.replace(Path::new("/link"), b"new").unwrap();
        assert_eq!(fs::read(root.path().join("real")).unwrap(), b"new");
        assert_eq!(fs::metadata(root.path().join("real")).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(root.path().join("link")).unwrap().is_symlink());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_second_installer_waits_and_then_says_why_not() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), 1);
        let held = host.lock(Duration::ZERO).unwrap();
        assert!(matches!(host.lock(Duration::from_millis(10)), Err(LockError::Busy(_))));
        drop(held);
        host.lock(Duration::ZERO).unwrap();
    }
}
