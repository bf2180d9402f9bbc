//! The programs that do the work: cryptsetup and mkfs.ext4.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use encrypted_volume::{CIPHER, DATA_OFFSET, INTEGRITY, KDF_MEMORY_KIB, KEY_BITS, KEYSLOTS_BYTES, SECTOR_BYTES};
use tokio::process::Command;

/// A large file system takes its time; longer means that the disk does not answer.
const LIMIT: Duration = Duration::from_mins(10);

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
            // Nothing is read that was not written: mkfs is told to write all it will read.
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

/// Makes an ext4 file system that has written each block that it will ever read before data is there.
pub(super) async fn make_file_system(mapped: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
        .arg(mapped);
    run(command).await
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
