//! Files that are there as a whole or not at all: a full disk or an interrupted run leaves the old one.

use std::{
    fs,
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::NamedTempFile;

/// Replaces a file, or makes it. What is no file, such as `/dev/stdout`, is written to as it is.
pub(crate) fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        // A link stays one: the file that it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let metadata = fs::metadata(&path);
        if metadata.as_ref().is_ok_and(|metadata| !metadata.is_file()) {
            return fs::File::options().write(true).open(&path)?.write_all(content);
        }
        let mode = metadata.map_or_else(|_| fs::Permissions::from_mode(0o644), |found| found.permissions());
        let mut file = NamedTempFile::new_in(folder(&path))?;
        file.write_all(content)?;
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        sync_folder(&path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A new file whose place and space are taken before its content is known.
pub(crate) struct Reserved {
    file: NamedTempFile,
    path: PathBuf,
}

impl Reserved {
    /// Takes room for `bytes`, or says why not.
    pub(crate) fn new(path: &Path, bytes: usize) -> io::Result<Self> {
        let mut file = NamedTempFile::new_in(folder(path))?;
        file.write_all(&vec![b' '; bytes])?; // where room is only promised, as in tmpfs, it has to be written to
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the content under the name, which nothing may have yet.
    pub(crate) fn fill(mut self, content: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(content)?;
        self.file.as_file().set_len(content.len() as u64)?;
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(&self.path)?;
        sync_folder(&self.path)
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name is on the disk when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(folder(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_a_link_and_a_device_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        replace(Path::new("/dev/null"), b"gone").unwrap();
        let full = replace(Path::new("/dev/full"), b"too much").unwrap_err();
        assert!(format!("{full:#}").contains("cannot write /dev/full: No space left"), "{full:#}");
    }

    #[test]
    fn a_reserved_file_is_never_put_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        let (first, second) = (Reserved::new(&path, 100).unwrap(), Reserved::new(&path, 100).unwrap());
        first.fill(b"first").unwrap();
        assert_eq!(second.fill(b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
