//! The few bytes of a device that we read and write ourselves.

use std::{
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use encrypted_volume::{HEADER_BYTES, MIN_DEVICE_BYTES, SEAL_BYTES, SEAL_OFFSET};

pub(super) struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open the device {}", path.display()))?;
        let size = file.seek(SeekFrom::End(0)).with_context(|| path.display().to_string())?;
        ensure!(
            size >= MIN_DEVICE_BYTES,
            "{} has {size} bytes, an encrypted volume needs {MIN_DEVICE_BYTES}",
            path.display()
        );
        Ok(Self { file, path: path.to_owned() })
    }

    pub(super) fn header(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; HEADER_BYTES];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.with_context(|| format!("cannot read the header of {}", self.path.display()))?;
        Ok(bytes)
    }

    pub(super) fn seal(&self) -> anyhow::Result<[u8; SEAL_BYTES]> {
        let mut bytes = [0; SEAL_BYTES];
        let read = self.file.read_exact_at(&mut bytes, SEAL_OFFSET);
        read.with_context(|| format!("cannot read the seal of {}", self.path.display()))?;
        Ok(bytes)
    }

    pub(super) fn write_header(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.write(bytes, 0)
    }

    pub(super) fn write_seal(&self, bytes: &[u8; SEAL_BYTES]) -> anyhow::Result<()> {
        self.write(bytes, SEAL_OFFSET)
    }

    /// On the device when this returns.
    fn write(&self, bytes: &[u8], at: u64) -> anyhow::Result<()> {
        let written = self.file.write_all_at(bytes, at).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("cannot write to {}", self.path.display()))
    }
}
