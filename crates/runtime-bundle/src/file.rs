//! One file of a runtime: where it comes from, where it goes, what it must be.

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::handler::INSTALL_DIRECTORY;

/// Stands for the handler's name in paths.
pub(crate) const NAME_PLACEHOLDER: &str = "@@runtimeName@@";

/// SHA-256 of a file, as subresource integrity text: `sha256-BASE64`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

/// Text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: sha256- and 44 characters of base64")]
pub struct InvalidDigest(String);

impl Digest {
    /// A digest that was computed.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// As 64 hex digits, the form of OCI.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(80).collect());
        let base64 = text.strip_prefix("sha256-").ok_or_else(invalid)?;
        let bytes = BASE64_STANDARD.decode(base64).map_err(|_| invalid())?;
        bytes.try_into().map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256-{}", BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path, relative to the folder of the configuration or absolute in the installer's container.
    Path(String),
    /// `https://` or `http://`.
    Http(String),
    /// `oci://REGISTRY/REPOSITORY@sha256:HEX[#PATH]`: a whole image or artifact, or one file of it.
    Oci {
        /// `host` or `host:port`.
        registry: String,
        /// Repository in the registry.
        repository: String,
        /// SHA-256 of the manifest or index.
        digest: Digest,
        /// The file wanted; all of them if none is named.
        path: Option<String>,
    },
}

/// Text that is no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no source: a path, https://..., http://..., file:///... or oci://REGISTRY/REPOSITORY@sha256:HEX[#PATH]"
)]
pub struct InvalidSource(String);

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        let invalid = || InvalidSource(text.chars().take(200).collect());
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.is_empty() { Err(invalid()) } else { Ok(Self::Path(text.to_owned())) };
        };
        match scheme {
            "https" | "http" if !rest.is_empty() => Ok(Self::Http(text.to_owned())),
            "file" if rest.starts_with('/') => Ok(Self::Path(rest.to_owned())),
            "oci" => oci(rest).ok_or_else(invalid),
            _ => Err(invalid()),
        }
    }
}

fn oci(text: &str) -> Option<Source> {
    let (image, path) = match text.split_once('#') {
        Some((image, path)) => (image, Some(path.trim_start_matches('/').to_owned())),
        None => (text, None),
    };
    let (name, digest) = image.split_once("@sha256:")?;
    let (registry, repository) = name.split_once('/')?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest, &mut bytes).ok()?;
    let legal = |text: &str, extra: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
    };
    if !legal(registry, b".-:[]") || !legal(repository, b"._-/") || repository.contains("..") {
        return None;
    }
    if path.as_deref().is_some_and(str::is_empty) {
        return None;
    }
    let (registry, repository) = (registry.to_owned(), repository.to_owned());
    Some(Source::Oci { registry, repository, digest: Digest(bytes), path })
}

/// Where a file goes, relative to the runtime's directory: plain components only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuntimePath(String);

/// A path that leaves the runtime's directory, or is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {0:?}: plain components below {INSTALL_DIRECTORY}/{NAME_PLACEHOLDER}/ are wanted")]
pub struct InvalidPath(String);

impl RuntimePath {
    /// The path relative to the runtime's directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Accepts a relative path as it is found in an archive.
    pub fn relative(text: &str) -> Result<Self, InvalidPath> {
        let plain =
            |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains('\0');
        if text.len() <= 1024 && text.split('/').all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidPath(text.chars().take(200).collect()))
    }
}

impl FromStr for RuntimePath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let below = text
            .strip_prefix(INSTALL_DIRECTORY)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|rest| rest.strip_prefix(NAME_PLACEHOLDER))
            .and_then(|rest| rest.strip_prefix('/'));
        let invalid = || InvalidPath(text.chars().take(200).collect());
        Self::relative(below.ok_or_else(invalid)?).map_err(|_| invalid())
    }
}

/// Permission bits of an installed file: never writable but by root, never set-id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// Readable by all.
    pub const PLAIN: Self = Self(0o644);
    /// Runnable by all.
    pub const EXECUTABLE: Self = Self(0o755);

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From octal text such as `0755`.
    pub(crate) fn from_octal(text: &str) -> Option<Self> {
        let bits = u32::from_str_radix(text, 8).ok()?;
        (bits & !0o755 == 0 && bits & 0o400 != 0).then_some(Self(bits))
    }
}

/// What a file is to the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// What containerd starts per pod.
    Shim,
    /// QEMU.
    Hypervisor,
    /// QEMU's own data (option ROMs), a directory or an archive of it.
    HypervisorData,
    /// Guest firmware, measured.
    Firmware,
    /// Guest kernel, measured.
    Kernel,
    /// Guest initial RAM disk, measured.
    Initrd,
    /// Guest root file system; the kernel command line has its dm-verity root.
    Image,
    /// Anything else.
    Other,
}

impl Role {
    /// What a file of this name usually is.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "containerd-shim-contrast-cc-v2" => Self::Shim,
            name if name.starts_with("qemu-system-") => Self::Hypervisor,
            name if name.starts_with("OVMF") => Self::Firmware,
            name if name.contains("initrd") => Self::Initrd,
            name if name.ends_with(".img") || name.contains("rootfs") => Self::Image,
            name if name.contains("kernel") || name.starts_with("vmlinu") || name.starts_with("bzImage") => {
                Self::Kernel
            }
            _ => Self::Other,
        }
    }
}

/// One file, or one archive to unpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFile {
    /// Where it comes from.
    pub source: Source,
    /// Where it goes; for an archive the directory it is unpacked into.
    pub path: RuntimePath,
    /// What its bytes must hash to. None for local paths, and for OCI, whose reference has a digest.
    pub integrity: Option<Digest>,
    /// Permissions.
    pub mode: Mode,
    /// Largest size accepted, in bytes; of an archive its unpacked contents.
    pub max_bytes: u64,
    /// Whether it is a tar archive (plain, gzip or zstd) to be unpacked.
    pub unpack: bool,
    /// What it is to the runtime.
    pub role: Role,
}
