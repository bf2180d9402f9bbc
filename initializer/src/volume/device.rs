//! The few bytes of a device that we read and write ourselves.

use std::{
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use encrypted_volume::{DATA_OFFSET, HEADER_BYTES, MIN_DEVICE_BYTES, SEAL_BYTES, SEAL_OFFSET};
use rustix::fs::OFlags;

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

    /// Whether dm-integrity now has room for more than the mapping shows.
    ///
    /// The kernel notes in its superblock, when a volume is opened, what the device has room for; cryptsetup read
    /// that note before. The host can change it, and gains that the volume is opened once more.
    pub(super) fn has_outgrown(&self, mapped: &Path) -> anyhow::Result<bool> {
        /// Offset of the sectors (of 512 bytes) that are provided, after magic, version and sizes.
        const PROVIDED: std::ops::Range<usize> = 16..24;
        const ALIGNMENT: usize = 4096;
        let mut buffer = vec![0; 2 * ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let superblock = buffer.get_mut(start..start + ALIGNMENT).unwrap_or_default();
        // Direct, since the kernel wrote it past the page cache.
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        let file = OpenOptions::new().read(true).custom_flags(direct).open(&self.path);
        file.and_then(|file| file.read_exact_at(superblock, DATA_OFFSET))
            .with_context(|| format!("cannot read the integrity superblock of {}", self.path.display()))?;
        let provided =
            superblock.get(PROVIDED).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let shown = File::open(mapped).and_then(|mut mapped| mapped.seek(SeekFrom::End(0)));
        let shown = shown.with_context(|| format!("cannot read {}", mapped.display()))?;
        Ok(provided.is_some_and(|sectors| sectors > shown / 512))
    }

    /// On the device when this returns.
    fn write(&self, bytes: &[u8], at: u64) -> anyhow::Result<()> {
        let written = self.file.write_all_at(bytes, at).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("cannot write to {}", self.path.display()))
    }
}
