//! The programs that do the work: cryptsetup, mkfs.ext4 and resize2fs.

use std::{
    fs,
    io::{Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use encrypted_volume::{
    CIPHER, DATA_OFFSET, INTEGRITY, KDF_MEMORY_KIB, KEY_BITS, KEYSLOTS_BYTES, SECTOR_BYTES,
};
use tokio::process::Command;

/// A large file system takes its time; longer means that the disk does not answer.
const LIMIT: Duration = Duration::from_mins(10);
/// Size of a block of the file system, in bytes.
const BLOCK: usize = 4096;

pub(super) struct Cryptsetup<'a> {
    pub(super) device: &'a Path,
    pub(super) secret_file: &'a Path,
}

impl Cryptsetup<'_> {
    /// Formats the device; returns the header, which never was on the device.
    pub(super) async fn format(&self) -> anyhow::Result<Vec<u8>> {
        let scratch = Scratch::new()?;
        // cryptsetup counts the offset in sectors of 512 bytes, whatever the sector size.
        let (offset, sector) = ((DATA_OFFSET / 512).to_string(), SECTOR_BYTES.to_string());
        let (memory, bits) = (KDF_MEMORY_KIB.to_string(), KEY_BITS.to_string());
        let keyslots = format!("{}k", KEYSLOTS_BYTES >> 10);
        let mut command = Command::new("cryptsetup");
        command
            .args(["luksFormat", "--batch-mode", "--type", "luks2"])
            .args(["--cipher", CIPHER, "--key-size", &bits, "--hash", "sha256", "--integrity", INTEGRITY])
            // See make_file_system.
            .arg("--integrity-no-wipe")
            .args(["--sector-size", &sector, "--offset", &offset])
            .args(["--luks2-metadata-size", "16k", "--luks2-keyslots-size", &keyslots])
            .args(["--pbkdf", "argon2id", "--pbkdf-memory", &memory, "--pbkdf-parallel", "1"])
            // The passphrase is 512 random bits: it needs no stretching.
            .args(["--pbkdf-force-iterations", "4"])
            .arg("--key-file")
            .arg(self.secret_file)
            .arg("--header")
            .arg(scratch.header())
            .arg(self.device);
        run(command).await?;
        fs::read(scratch.header()).context("cannot read the header that cryptsetup wrote")
    }

    /// Opens the device with this header.
    pub(super) async fn open(&self, header: &[u8], mapping: &str) -> anyhow::Result<()> {
        let scratch = Scratch::new()?;
        fs::write(scratch.header(), header).context("cannot write the header to memory")?;
        let mut command = Command::new("cryptsetup");
        command
            .args(["open", "--batch-mode", "--type", "luks2", "--key-file"])
            .arg(self.secret_file)
            .arg("--header")
            .arg(scratch.header())
            .arg(self.device)
            .arg(mapping);
        run(command).await
    }
}

/// Closes a mapping.
pub(super) async fn close(mapping: &str) -> anyhow::Result<()> {
    let mut command = Command::new("cryptsetup");
    command.args(["close", mapping]);
    run(command).await
}

/// Makes an ext4 file system.
///
/// A sector that was never written cannot be read, since its authentication fails; writing all of a large
/// disk once would take hours. So each block is written before anything reads it: mkfs is told to write its
/// inode tables and its journal now, and what it changes in part (its superblocks, one at the begin of
/// each block group at most, and old signatures at both ends) is blanked before.
pub(super) async fn make_file_system(mapped: &Path) -> anyhow::Result<()> {
    let path = mapped.to_owned();
    let blanked = tokio::task::spawn_blocking(move || blank_what_mkfs_reads(&path)).await?;
    blanked.with_context(|| format!("cannot write to {}", mapped.display()))?;
    let mut command = Command::new("mkfs.ext4");
    command
        .args([
            "-q",
            "-F",
            "-b",
            &BLOCK.to_string(),
            "-E",
            "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
        ])
        .arg(mapped);
    run(command).await
}

/// Grows a mounted file system to the size of its mapping, if that is larger. The kernel does it, and writes what it
/// adds before it reads it, but for the last block: that one it reads to see whether there is room.
pub(super) async fn grow_file_system(mapped: &Path) -> anyhow::Result<()> {
    let path = mapped.to_owned();
    let grown = tokio::task::spawn_blocking(move || blank_last_new_block(&path)).await?;
    if !grown.with_context(|| format!("cannot read {}", mapped.display()))? {
        return Ok(());
    }
    let mut command = Command::new("resize2fs");
    command.arg(mapped);
    run(command).await?;
    tracing::info!("the file system has grown");
    Ok(())
}

/// Whether there are blocks beyond the file system's end; the last of them can be read then.
fn blank_last_new_block(mapped: &Path) -> std::io::Result<bool> {
    /// Blocks of the file system in ext4's superblock, lower and upper half.
    const COUNT: [u64; 2] = [1024 + 0x4, 1024 + 0x150];
    let mut device = fs::File::options().read(true).write(true).open(mapped)?;
    let mut halves = [[0; 4]; 2];
    for (half, place) in halves.iter_mut().zip(COUNT) {
        device.read_exact_at(half, place)?;
    }
    let [low, high] = halves.map(u32::from_le_bytes).map(u64::from);
    let room = device.seek(SeekFrom::End(0))? / BLOCK as u64;
    let grown = room > (high << 32 | low);
    if grown {
        device.write_all_at(&[0; BLOCK], (room - 1) * BLOCK as u64)?;
        device.sync_all()?;
    }
    Ok(grown)
}

fn blank_what_mkfs_reads(mapped: &Path) -> std::io::Result<()> {
    const EDGE: u64 = 1 << 20;
    /// One bit for each block, in one block.
    const BLOCK_GROUP: usize = 8 * BLOCK * BLOCK;
    let mut device = fs::File::options().write(true).open(mapped)?;
    let size = device.seek(SeekFrom::End(0))? / BLOCK as u64 * BLOCK as u64;
    let zeros = vec![0; BLOCK];
    let both_edges = (0..EDGE.min(size)).chain(size.saturating_sub(EDGE)..size).step_by(BLOCK);
    for place in both_edges.chain((0..size).step_by(BLOCK_GROUP)) {
        device.write_all_at(&zeros, place)?;
    }
    device.sync_all()
}

async fn run(mut command: Command) -> anyhow::Result<()> {
    let name = command.as_std().get_program().display().to_string();
    command
        .env("DM_DISABLE_UDEV", "1") // no udev in the container; device nodes are made directly
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .with_context(|| format!("{name} did not finish within {LIMIT:?}"))?
        .with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed ({}): {}", output.status, text.trim());
    if !text.trim().is_empty() {
        tracing::debug!("{name}: {}", text.trim());
    }
    Ok(())
}

/// A private directory for one header, gone when dropped. The pod's own file system is in the VM's memory.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let parent = ["/dev/shm", "/run", "/tmp"].into_iter().find(|path| Path::new(path).is_dir());
        let parent = Path::new(parent.context("no /dev/shm, /run or /tmp for the header")?);
        let path = parent.join(format!("contrast-header-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path); // of an earlier process with this number
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(Self(path))
    }

    fn header(&self) -> PathBuf {
        self.0.join("header")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
