//! `contrast-node-install.json`: what to install (docs/spec/data-plane.md, section 4).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    file::{BundleFile, Digest, Mode, NAME_PLACEHOLDER, Role, RuntimePath, Source},
    handler::{HandlerName, INSTALL_DIRECTORY},
    platform::Platform,
    shim::Shim,
};

/// Guest memory without any container, in MiB: what a RuntimeClass calls overhead.
pub const GUEST_MEMORY_MIB: u32 = 512;
/// Processors of a guest without any container's limit; limits are added, and the sum is rounded up.
pub const GUEST_VCPUS: u32 = 1;
/// Length of an SNP ID block (AMD 56860, `ID_BLOCK`).
const ID_BLOCK_BYTES: usize = 96;

/// Largest configuration that is read, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 1 << 20;
/// Most files in it.
const MAX_FILES: usize = 1024;
/// Largest file when the configuration names no `size`.
const DEFAULT_MAX_BYTES: u64 = 4 << 30;

/// Why a configuration cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Over the limit.
    #[error("{0} bytes, at most {MAX_BUNDLE_BYTES} are read")]
    TooLarge(usize),
    /// Not JSON of this form; the message has line and column.
    #[error("{0}")]
    Json(String),
    /// A value breaks a rule.
    #[error("{path}: {rule}")]
    Value {
        /// JSON path.
        path: String,
        /// The rule, with the value found.
        rule: String,
    },
}

/// A runtime: its files and how its VMs are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Files, sorted by path.
    pub files: Vec<BundleFile>,
    /// The handler's name, if the configuration demands one.
    pub demanded_handler: Option<HandlerName>,
    /// Whether the guest has a debug console.
    pub debug: bool,
    /// Added to the guest's kernel command line.
    pub kernel_parameters: String,
    /// What the firmware checks at the launch of an SNP guest.
    pub snp_id: Option<SnpId>,
    shim: Option<Shim>,
}

/// An SNP ID block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpId {
    /// Base64 of the block.
    pub block: String,
    /// Base64 of its authentication.
    pub auth: String,
    /// The launch digest that it demands.
    pub launch_digest: [u8; 48],
    /// The guest policy that it demands, with which the guest must be started.
    pub guest_policy: u64,
}

impl SnpId {
    fn read(block: String, auth: String) -> Result<Self, String> {
        let bytes = BASE64_STANDARD.decode(block.trim()).map_err(|_| "it is not base64".to_owned())?;
        let bytes: [u8; ID_BLOCK_BYTES] = bytes.try_into().map_err(|bytes: Vec<u8>| {
            format!("it has {} bytes, an ID block has {ID_BLOCK_BYTES}", bytes.len())
        })?;
        let (mut launch_digest, mut policy) = ([0; 48], [0; 8]);
        launch_digest.copy_from_slice(&bytes[..48]);
        policy.copy_from_slice(&bytes[88..]);
        Ok(Self { block, auth, launch_digest, guest_policy: u64::from_le_bytes(policy) })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawBundle {
    files: Vec<RawFile>,
    runtime_handler_name: Option<String>,
    #[serde(default)]
    debug_runtime: bool,
    #[serde(default)]
    qemu_extra_kernel_params: String,
    snp_id_block: Option<String>,
    snp_id_auth: Option<String>,
    shim: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    url: String,
    path: String,
    #[serde(default)]
    integrity: String,
    #[serde(default)]
    executable: bool,
    mode: Option<String>,
    size: Option<u64>,
    #[serde(default)]
    unpack: bool,
    role: Option<Role>,
}

impl Bundle {
    /// Reads a configuration and checks each value.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLarge(bytes.len()));
        }
        let raw: RawBundle =
            serde_json::from_slice(bytes).map_err(|error| BundleError::Json(error.to_string()))?;
        let value = |path: &str, rule: String| BundleError::Value { path: path.to_owned(), rule };
        if raw.files.is_empty() || raw.files.len() > MAX_FILES {
            return Err(value("files", format!("1 to {MAX_FILES} files, found {}", raw.files.len())));
        }
        let mut files = Vec::new();
        for (index, file) in raw.files.into_iter().enumerate() {
            files.push(
                read_file(file).map_err(|(field, rule)| value(&format!("files[{index}].{field}"), rule))?,
            );
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(value("files", format!("two files go to {:?}", pair[0].path.as_str())));
        }
        let demanded_handler = match raw.runtime_handler_name {
            Some(name) => {
                Some(name.parse().map_err(|error| value("runtimeHandlerName", format!("{error}")))?)
            }
            None => None,
        };
        let kernel_parameters = raw.qemu_extra_kernel_params.trim().to_owned();
        if kernel_parameters.chars().any(char::is_control) {
            return Err(value("qemuExtraKernelParams", "no control characters".into()));
        }
        let snp_id = match (raw.snp_id_block, raw.snp_id_auth) {
            (Some(block), Some(auth)) => {
                Some(SnpId::read(block, auth).map_err(|rule| value("snpIdBlock", rule))?)
            }
            (None, None) => None,
            _ => return Err(value("snpIdBlock", "snpIdBlock and snpIdAuth go together".into())),
        };
        let shim = match raw.shim {
            Some(name) => Some(name.parse().map_err(|error| value("shim", format!("{error}")))?),
            None => None,
        };
        let has = |role| files.iter().any(|file| file.role == role);
        if has(Role::Image) && has(Role::Initrd) {
            let rule = "an image and an initrd: Kata boots one of them; take the other out, or give it the role \"other\"";
            return Err(value("files", rule.into()));
        }
        Ok(Self { files, demanded_handler, debug: raw.debug_runtime, kernel_parameters, snp_id, shim })
    }

    /// Whose configuration the installer writes.
    pub fn shim(&self) -> Shim {
        self.shim.unwrap_or(Shim::Go)
    }

    /// The shim, if the configuration names it.
    pub fn named_shim(&self) -> Option<Shim> {
        self.shim
    }

    /// The handler's name: the platform, and a hash over everything that makes the runtime what it is.
    /// `local` hashes a file that is here and whose digest the configuration does not name.
    pub fn handler<E>(
        &self,
        platform: Platform,
        mut local: impl FnMut(&str) -> Result<Digest, E>,
    ) -> Result<HandlerName, E> {
        let mut hasher = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(bytes);
        };
        field(b"contrast runtime 1");
        field(platform.name().as_bytes());
        field(&[u8::from(self.debug)]);
        field(self.kernel_parameters.as_bytes());
        if let Some(SnpId { block, auth, .. }) = &self.snp_id {
            field(block.as_bytes());
            field(auth.as_bytes());
        }
        // Runtimes had one shim before there were two: their names stay.
        if self.shim() != Shim::Go {
            field(self.shim().name().as_bytes());
        }
        for file in &self.files {
            let digest = match (&file.integrity, &file.source) {
                (Some(digest), _) => *digest,
                (None, Source::Path(path)) => local(path)?,
                (None, Source::Oci { digest, path, .. }) => {
                    field(path.as_deref().unwrap_or_default().as_bytes());
                    *digest
                }
                (None, Source::Http(_)) => continue, // `parse` demands a digest
            };
            field(file.path.as_str().as_bytes());
            field(&file.mode.bits().to_be_bytes());
            field(&[u8::from(file.unpack)]);
            field(digest.as_bytes());
        }
        let hash = hex::encode(hasher.finalize());
        let name = format!("contrast-cc-{}-{}", platform.name().to_ascii_lowercase(), &hash[..8]);
        Ok(HandlerName::known(name))
    }

    /// What the installer has the runtime add to the guest's kernel command line.
    pub fn guest_kernel_parameters(&self) -> String {
        let debug = if self.debug {
            " agent.log=debug agent.debug_console agent.debug_console_vport=1026"
        } else {
            ""
        };
        format!("{}{debug}", self.kernel_parameters).trim().to_owned()
    }

    /// The file with that role.
    pub fn file(&self, role: Role) -> Option<&BundleFile> {
        self.files.iter().find(|file| file.role == role)
    }
}

fn read_file(raw: RawFile) -> Result<BundleFile, (&'static str, String)> {
    fn text<E: std::fmt::Display>(field: &'static str) -> impl Fn(E) -> (&'static str, String) {
        move |error| (field, error.to_string())
    }
    let source: Source = raw.url.parse().map_err(text("url"))?;
    let path: RuntimePath = raw.path.parse().map_err(text("path"))?;
    let integrity = match raw.integrity.as_str() {
        "" => None,
        digest => Some(digest.parse().map_err(text("integrity"))?),
    };
    match (&source, integrity) {
        (Source::Http(_), None) => {
            return Err(("integrity", format!("{:?} comes over the network: a digest is needed", raw.url)));
        }
        (Source::Oci { path: None, .. }, _) if !raw.unpack => {
            return Err((
                "url",
                "a whole image goes into a directory: name one file with #PATH, or set unpack".into(),
            ));
        }
        (Source::Oci { path: None, .. }, Some(_)) => {
            return Err(("integrity", "the digest of a whole image is in its reference".into()));
        }
        _ => {}
    }
    let mode = match (raw.mode.as_deref(), raw.executable) {
        (None, false) => Mode::PLAIN,
        (None, true) => Mode::EXECUTABLE,
        (Some(octal), false) => Mode::from_octal(octal).ok_or_else(|| {
            ("mode", format!("{octal:?}: octal, readable by the owner, without bits outside 0755"))
        })?,
        (Some(_), true) => return Err(("mode", "either mode or executable".into())),
    };
    let max_bytes = raw.size.unwrap_or(DEFAULT_MAX_BYTES);
    let role = raw.role.unwrap_or_else(|| if raw.unpack { Role::Other } else { Role::of(path.file_name()) });
    Ok(BundleFile { source, path, integrity, mode, max_bytes, unpack: raw.unpack, role })
}

/// The placeholder form of a path in a runtime's directory, as configurations have it.
impl std::fmt::Display for RuntimePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{INSTALL_DIRECTORY}/{NAME_PLACEHOLDER}/{}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(file: &str) -> Result<Bundle, BundleError> {
        Bundle::parse(format!(r#"{{"files":[{file}]}}"#).as_bytes())
    }

    fn refusal(file: &str) -> String {
        bundle(file).unwrap_err().to_string()
    }

    const KERNEL: &str = r#"{"url":"https://x.example/k","path":"/opt/edgeless/@@runtimeName@@/share/kata-kernel",
        "integrity":"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}"#;

    #[test]
    fn each_value_that_breaks_a_rule_is_named_with_its_place() {
        assert_eq!(bundle(KERNEL).unwrap().files[0].role, Role::Kernel);
        let without = KERNEL.replace("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "");
        assert_eq!(
            refusal(&without),
            "files[0].integrity: \"https://x.example/k\" comes over the network: a digest is needed"
        );
        for path in ["/etc/passwd", "/opt/edgeless/@@runtimeName@@/../x", "/opt/edgeless/@@runtimeName@@//x"]
        {
            let moved = KERNEL.replace("/opt/edgeless/@@runtimeName@@/share/kata-kernel", path);
            assert_eq!(
                refusal(&moved),
                format!(
                    "files[0].path: path {path:?}: plain components below /opt/edgeless/@@runtimeName@@/ are wanted"
                )
            );
        }
        let setuid = KERNEL.replace("\"url\"", "\"mode\":\"4755\",\"url\"");
        assert!(refusal(&setuid).starts_with("files[0].mode: \"4755\""), "{}", refusal(&setuid));
        let misspelt = KERNEL.replace("integrity", "integritty");
        assert!(refusal(&misspelt).contains("unknown field `integritty`"), "{}", refusal(&misspelt));
        assert_eq!(refusal(&format!("{KERNEL},{KERNEL}")), "files: two files go to \"share/kata-kernel\"");
    }

    #[test]
    fn the_name_follows_from_the_contents() {
        let platform = Platform::MetalQemuSnp;
        let plain = bundle(KERNEL).unwrap();
        let debug = Bundle { debug: true, ..plain.clone() };
        let mut changed = plain.clone();
        changed.files[0].integrity = Some(Digest::from_bytes([2; 32]));
        let handler = |bundle: &Bundle, platform| bundle.handler::<()>(platform, |_| Err(())).unwrap();
        let name = handler(&plain, platform);
        assert_eq!(name.as_str(), "contrast-cc-metal-qemu-snp-8da615a6");
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        let rust = Bundle { shim: Some(Shim::Rust), ..plain.clone() };
        let others = [
            handler(&changed, platform),
            handler(&debug, platform),
            handler(&plain, Platform::MetalQemuTdx),
            handler(&rust, platform),
        ];
        assert!(!others.contains(&name), "{others:?}");
        assert_eq!(handler(&Bundle { shim: Some(Shim::Go), ..plain }, platform), name);
    }

    #[test]
    fn what_kata_would_refuse_is_refused_here() {
        let with = |more: &str| Bundle::parse(format!(r#"{{"files":[{KERNEL}],{more}}}"#).as_bytes());
        let refusal = |more: &str| with(more).unwrap_err().to_string();
        assert_eq!(with(r#""shim":"kata-rs""#).unwrap().shim(), Shim::Rust);
        assert_eq!(refusal(r#""shim":"kata""#), "shim: unknown shim \"kata\": kata-go or kata-rs");
        let block = BASE64_STANDARD.encode([3; 95]);
        assert_eq!(
            refusal(&format!(r#""snpIdBlock":"{block}","snpIdAuth":"""#)),
            "snpIdBlock: it has 95 bytes, an ID block has 96"
        );
        let both =
            ["share/kata.img", "share/kata-initrd.zst"].map(|path| KERNEL.replace("share/kata-kernel", path));
        assert!(
            self::refusal(&both.join(","))
                .starts_with("files: an image and an initrd: Kata boots one of them")
        );
        let other = both[1].replace("\"url\"", "\"role\":\"other\",\"url\"");
        assert!(bundle(&format!("{},{other}", both[0])).is_ok());
    }

    #[test]
    fn sources() {
        let hex = "ab".repeat(32);
        let image = format!("oci://registry.example:5000/a/b@sha256:{hex}#share/kernel");
        assert_eq!(
            image.parse(),
            Ok(Source::Oci {
                registry: "registry.example:5000".into(),
                repository: "a/b".into(),
                digest: Digest::from_bytes([0xab; 32]),
                path: Some("share/kernel".into()),
            })
        );
        assert_eq!("file:///bin/x".parse(), Ok(Source::Path("/bin/x".into())));
        for wrong in ["", "ftp://x/y", "oci://x/y:tag", "oci://x/../y@sha256:00", "file://relative"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}
