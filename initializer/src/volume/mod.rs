//! An encrypted volume on a hostile disk (docs/spec/data-plane.md, section 1).
//!
//! The device's header is copied into memory, authenticated and checked there (`encrypted_volume`), and the
//! volume is opened with the copy. Each step of making a volume is sealed before the next, so that a crash
//! at any point leaves something that the next start recognises and finishes:
//! blank -> formatting -> encrypted -> ready.

mod device;
mod kernel;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail, ensure};
use encrypted_volume::{SEAL_BYTES, SealKey, State, Verdict, judge, seal};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::refused::Refused;
use device::Device;
use tools::Cryptsetup;

/// A block device and where it is mounted: `DEVICE:MOUNT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) device: PathBuf,
    pub(crate) mount_point: PathBuf,
    pub(crate) rules: Rules,
}

/// What is demanded of a volume beyond its seal.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Rules {
    /// Refuse a blank device instead of making a volume on it: for pods whose volume exists, so that a host cannot
    /// take the data away unnoticed.
    #[arg(long = "volume-must-exist", env = "CONTRAST_VOLUME_MUST_EXIST")]
    must_exist: bool,
    /// This pod is one of the StatefulSet of this name, and the volume is its own: that of another of them is refused.
    #[arg(long, env = "CONTRAST_STATEFUL_SET", value_name = "NAME")]
    stateful_set: Option<String>,
    /// Take a volume that was made before volumes were bound to their pods, and bind it to this one.
    #[arg(long = "adopt-volume", env = "CONTRAST_ADOPT_VOLUME")]
    adopt: bool,
}

impl Rules {
    /// Which pod of its StatefulSet this is, by its host name, which the policy binds to the name of the pod.
    fn ordinal(&self, hostname: &str) -> anyhow::Result<Option<u32>> {
        let Some(set) = &self.stateful_set else { return Ok(None) };
        let name = hostname.split('.').next().unwrap_or_default(); // setHostnameAsFQDN
        let ordinal = name.strip_prefix(set.as_str()).and_then(|rest| rest.strip_prefix('-'));
        let ordinal = ordinal.and_then(|digits| digits.parse().ok()).with_context(|| {
            format!(
                "the host name {hostname:?} is not that of a pod of the StatefulSet {set:?}, such as {set}-0"
            )
        })?;
        Ok(Some(ordinal))
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let absolute = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
        text.rsplit_once(':')
            .and_then(|(device, mount)| {
                let (device, mount_point) = (absolute(device)?, absolute(mount)?);
                Some(Self { device, mount_point, rules: Rules::default() })
            })
            .ok_or_else(|| format!("{text:?} is not DEVICE:MOUNT with two absolute paths"))
    }
}

impl Volume {
    /// Name of the mapping: hex of the first 8 bytes of SHA-256 of both paths.
    fn mapping(&self) -> String {
        let paths = [self.device.as_os_str(), self.mount_point.as_os_str()]
            .map(std::os::unix::ffi::OsStrExt::as_bytes);
        let digest = Sha256::digest(paths.concat());
        hex::encode(digest.get(..8).unwrap_or_default())
    }

    /// Opens the volume, makes it first if the device is blank, and mounts it.
    ///
    /// `secret_file` holds the workload secret as hex text.
    pub(crate) async fn open(&self, secret_file: &Path) -> anyhow::Result<()> {
        let mapping = self.mapping();
        if is_mounted(&self.mount_point)? {
            tracing::info!(mount = %self.mount_point.display(), "already mounted");
            return Ok(());
        }
        let mapped = Path::new("/dev/mapper").join(&mapping);
        let mut is_mapped = kernel::mapped(&mapping)?.is_some();
        if is_mapped && self.verdict(secret_file)? != Verdict::Open {
            // The start that mapped it was killed before it was done, so nothing is on it yet.
            tracing::info!(device = %self.device.display(), "finishing what a start before this one began");
            tools::close(&mapping).await?;
            is_mapped = false;
        }
        if !is_mapped {
            self.map(&mapping, &mapped, secret_file).await?;
        }
        fs::create_dir_all(&self.mount_point)
            .with_context(|| format!("cannot create {}", self.mount_point.display()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(&mapped, &self.mount_point, c"ext4", flags, None).with_context(|| {
            format!("cannot mount {} at {}", mapped.display(), self.mount_point.display())
        })?;
        // The application's mount follows this one.
        mount_change(&self.mount_point, MountPropagationFlags::SHARED)
            .with_context(|| format!("cannot share the mount {}", self.mount_point.display()))?;
        // Each time: what an earlier start did not finish is finished now.
        if let Err(error) = tools::grow_file_system(&mapped).await {
            tracing::warn!(mount = %self.mount_point.display(), "the file system keeps its size: {error:#}");
        }
        tracing::info!(device = %self.device.display(), mount = %self.mount_point.display(), "volume open");
        Ok(())
    }

    fn verdict(&self, secret_file: &Path) -> anyhow::Result<Verdict> {
        let device = Device::open(&self.device)?;
        self.judge(&self.seal_key(secret_file)?, &device.header()?, &device.seal()?)
    }

    fn judge(&self, key: &SealKey, header: &[u8], block: &[u8; SEAL_BYTES]) -> anyhow::Result<Verdict> {
        let verdict = judge(key, header, block);
        verdict.map_err(|refused| Refused(format!("{}: {refused}", self.device.display())).into())
    }

    async fn map(&self, mapping: &str, mapped: &Path, secret_file: &Path) -> anyhow::Result<()> {
        let key = self.seal_key(secret_file)?;
        let device = Device::open(&self.device)?;
        let cryptsetup = Cryptsetup { device: &self.device, secret_file };
        let (mut header, block) = (device.header()?, device.seal()?);
        let mut verdict = match judge(&key, &header, &block) {
            Err(encrypted_volume::Refused::OfNoPod) if self.rules.adopt => {
                self.adopt(&device, &key, &header, &block)?
            }
            _ => self.judge(&key, &header, &block)?,
        };
        // An unfinished one is no volume either: its seal may be one that the host kept from the first start.
        if verdict != Verdict::Open && self.rules.must_exist {
            let device = self.device.display();
            return Err(Refused(format!(
                "{device} holds no volume, and --volume-must-exist is set: the device was exchanged, blanked or put back \
                 to its first minutes, or this is the volume's first start"
            ))
            .into());
        }
        if verdict == Verdict::Format {
            tracing::info!(device = %self.device.display(), "formatting");
            device.write_seal(&seal(&key, State::Formatting, None))?;
            header = cryptsetup.format().await?;
            // What is in memory counts; the device gets a copy for the next start.
            encrypted_volume::check_header(&header)
                .context("cryptsetup wrote another header than it was told to")?;
            device.write_header(&header)?;
            device.write_seal(&seal(&key, State::Encrypted, Some(&header)))?;
            verdict = Verdict::MakeFileSystem;
        }
        cryptsetup.open(&header, mapping).await?;
        if device.has_outgrown(mapped)? {
            tracing::info!(device = %self.device.display(), "the device has grown, and the volume with it");
            tools::close(mapping).await?;
            cryptsetup.open(&header, mapping).await?;
        }
        if verdict == Verdict::MakeFileSystem {
            tools::make_file_system(mapped).await?;
            device.write_seal(&seal(&key, State::Ready, Some(&header)))?;
        }
        Ok(())
    }

    fn seal_key(&self, secret_file: &Path) -> anyhow::Result<SealKey> {
        let text = fs::read(secret_file).with_context(|| {
            format!(
                "cannot read the workload secret {} (the pod's policy needs a WorkloadSecretID in the manifest)",
                secret_file.display()
            )
        })?;
        let text = Zeroizing::new(text);
        let mut secret = Zeroizing::new([0; 64]);
        hex::decode_to_slice(text.as_slice(), secret.as_mut_slice())
            .with_context(|| format!("{} is not hex text of 64 bytes", secret_file.display()))?;
        let mount_point = self.mount_point.to_str().context("the mount point is not UTF-8")?;
        let key =
            SealKey::derive(secret.as_slice(), mount_point).context("the cryptographic library failed")?;
        let hostname =
            fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
        Ok(match self.rules.ordinal(hostname.trim())? {
            Some(ordinal) => key.of_pod(ordinal),
            None => key,
        })
    }

    /// Binds a volume that belongs to no pod yet to this one, if it is in use.
    fn adopt(
        &self,
        device: &Device,
        key: &SealKey,
        header: &[u8],
        block: &[u8; SEAL_BYTES],
    ) -> anyhow::Result<Verdict> {
        let verdict = self.judge(&key.of_any_pod(), header, block)?;
        if verdict == Verdict::Open {
            device.write_seal(&seal(key, State::Ready, Some(header)))?;
            tracing::info!(device = %self.device.display(), "the volume belongs to this pod from now on");
        }
        Ok(verdict)
    }

    /// Unmounts and closes, so that nothing waits to be written.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        unmount(&self.mount_point, UnmountFlags::empty())
            .with_context(|| format!("cannot unmount {}", self.mount_point.display()))?;
        tools::close(&self.mapping()).await?;
        tracing::info!(mount = %self.mount_point.display(), "volume closed");
        Ok(())
    }
}

fn is_mounted(mount_point: &Path) -> anyhow::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let ours = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut at_the_place = ours.filter(|fields| fields.get(4).is_some_and(|at| Path::new(at) == mount_point));
    // An emptyDir is mounted there before us; ours is the mapping's.
    Ok(at_the_place.any(|fields| fields.iter().any(|field| field.starts_with("/dev/mapper/"))))
}

/// Fails early and in words when the programs that this needs are not there.
pub(crate) fn check_tools() -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in ["cryptsetup", "mkfs.ext4", "resize2fs"] {
        let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
        ensure!(found, "{program} is not in PATH; encrypted volumes need it");
    }
    // Not whether /dev has its node: cryptsetup makes that where it lacks.
    if !kernel::has_device_mapper() {
        bail!("the kernel has no device mapper (/proc/misc): it needs that, dm-crypt and dm-integrity");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_two_absolute_paths() {
        let volume: Volume = "/dev/csi0:/state".parse().unwrap();
        assert_eq!(volume.mount_point, Path::new("/state"));
        assert_eq!(volume.mapping(), hex::encode(&Sha256::digest(b"/dev/csi0/state")[..8]));
        for wrong in ["/dev/csi0", "csi0:/state", "/dev/csi0:state", ":"] {
            assert!(wrong.parse::<Volume>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pods_ordinal_is_the_end_of_its_host_name() {
        let rules = Rules { stateful_set: Some("shop-db".into()), ..Rules::default() };
        for (name, ordinal) in [("shop-db-12", 12), ("shop-db-0.shop.svc.cluster.local", 0)] {
            assert_eq!(rules.ordinal(name).unwrap(), Some(ordinal));
        }
        for wrong in ["shop-db", "shop-db-", "shop-db-x", "other-0", "shop-db--1", ""] {
            let error = rules.ordinal(wrong).unwrap_err().to_string();
            assert!(error.contains("such as shop-db-0"), "{error}");
        }
        assert_eq!(Rules::default().ordinal("anything").unwrap(), None);
    }
}
