//! The files that a guest starts from: what the runtime installer installs, and how the VMM starts it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use manifest::Measurement;
use runtime_bundle::{Bundle, BundleFile, Digest, HandlerName, Platform, Role, Shim, Source};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    files::read,
    printer::{Printer, Refused},
};

/// What the installer reads.
const INSTALLED: &str = "contrast-node-install.json";
/// What the installer's file does not hold: how the VMM starts the guest.
const DESCRIPTION: &str = "launch.json";
/// Stands for what the installer adds to the kernel command line.
const KERNEL_PARAMETERS: &str = "$(kernel_params)";
/// Stands for the number of virtual processors.
const VCPUS: &str = "$(vcpus)";

/// `launch.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Launch {
    platform: String,
    firmware: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    image: Option<PathBuf>,
    /// With placeholders.
    command_line: Option<String>,
    /// Numbers of virtual processors; each has its own SNP digest.
    #[serde(default = "one")]
    vcpus: Vec<u32>,
    /// QEMU's model for each product.
    #[serde(default)]
    cpu_models: BTreeMap<String, String>,
    /// `SEV_FEATURES`.
    #[serde(default = "snp_active")]
    guest_features: u64,
    /// Whose requests the pods' policies are for, as `kata.shim` and `kata.containerd` of the settings name them.
    shim: Option<String>,
    containerd: Option<String>,
}

fn one() -> Vec<u32> {
    vec![1]
}

fn snp_active() -> u64 {
    1
}

/// A guest as it is started.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) platform: String,
    pub(super) firmware: PathBuf,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    /// Its dm-verity root must be in the command line.
    pub(super) image: Option<PathBuf>,
    command_line: String,
    pub(super) vcpus: Vec<u32>,
    pub(super) cpu_models: BTreeMap<String, String>,
    pub(super) guest_features: u64,
    /// `kata.shim` and `kata.containerd` of the policies' settings.
    pub(super) sender: [Option<String>; 2],
    /// The launch digest that the bundle's SNP ID block demands of the firmware.
    pub(super) demanded_digest: Option<Measurement>,
    /// The runtime's name, which follows from its contents.
    pub(super) handler: Option<HandlerName>,
}

impl Guest {
    /// Reads a bundle. `files` is where its files are if they are not beside it: an installed runtime's folder.
    pub(super) fn read(bundle: &Path, files: Option<&Path>, printer: &Printer) -> anyhow::Result<Self> {
        let description = bundle.join(DESCRIPTION);
        let bytes = read(&description).context(
            "a bundle needs launch.json, which says how its guest is started: `contrast runtime measure --help` shows one",
        )?;
        let launch: Launch =
            serde_json::from_slice(&bytes).with_context(|| description.display().to_string())?;
        ensure!(!launch.vcpus.is_empty(), "{}: vcpus: name at least one number", description.display());
        let installed = bundle.join(INSTALLED);
        if installed.exists() {
            let place = Place { bundle, files };
            return Self::installed(launch, &installed, &place, printer);
        }
        let inside = |path: &Path| -> anyhow::Result<PathBuf> {
            let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            ensure!(plain, "{}: {} is not a path inside the bundle", description.display(), path.display());
            readable(bundle.join(path))
        };
        let firmware = launch.firmware.as_deref().with_context(|| {
            format!("{}: firmware: name it, or put {INSTALLED} beside it", description.display())
        })?;
        let optional = |path: &Option<PathBuf>| path.as_deref().map(inside).transpose();
        Ok(Self {
            firmware: inside(firmware)?,
            kernel: optional(&launch.kernel)?,
            initrd: optional(&launch.initrd)?,
            image: optional(&launch.image)?,
            command_line: launch.command_line.unwrap_or_default(),
            platform: launch.platform,
            vcpus: launch.vcpus,
            cpu_models: launch.cpu_models,
            guest_features: launch.guest_features,
            sender: [launch.shim, launch.containerd],
            demanded_digest: None,
            handler: None,
        })
    }

    /// What the installer would install.
    fn installed(launch: Launch, path: &Path, place: &Place<'_>, printer: &Printer) -> anyhow::Result<Self> {
        let name = path.display();
        let own = [&launch.firmware, &launch.kernel, &launch.initrd, &launch.image];
        ensure!(
            own.iter().all(|file| file.is_none()),
            "{DESCRIPTION}: firmware, kernel, initrd and image are those of {INSTALLED} beside it: take them out"
        );
        let bundle = Bundle::parse(&read(path)?).map_err(|error| Refused(format!("{name}: {error}")))?;
        let platform: Platform =
            launch.platform.parse().with_context(|| format!("{DESCRIPTION}: platform"))?;
        let shim = shim(launch.shim, &bundle)?;
        let role = |role: Role| bundle.file(role).map(|file| place.verified(file)).transpose();
        let needed = |wanted: Role| role(wanted)?.with_context(|| format!("{name}: no {wanted:?} file"));
        let image = role(Role::Image)?;
        // As the installer configures it: beside an image no initrd is booted.
        let initrd = if image.is_some() { None } else { Some(needed(Role::Initrd)?) };
        let added = bundle.guest_kernel_parameters();
        let command_line = launch.command_line.unwrap_or_else(|| KERNEL_PARAMETERS.to_owned());
        ensure!(
            command_line.contains(KERNEL_PARAMETERS) || command_line.contains(&added),
            "{DESCRIPTION}: command_line lacks {added:?}, which the installer adds: write {KERNEL_PARAMETERS} where the \
             runtime puts it"
        );
        let handler = bundle.handler(platform, |source| place.local_digest(&bundle, source));
        let handler =
            handler.map_err(|error| printer.note(&format!("The runtime's name is not known: {error:#}")));
        if let (Some(demanded), Ok(handler)) = (&bundle.demanded_handler, &handler)
            && demanded != handler
        {
            return Err(Refused(format!("{name} is for {demanded}, but its contents are {handler}")).into());
        }
        Ok(Self {
            firmware: needed(Role::Firmware)?,
            kernel: Some(needed(Role::Kernel)?),
            initrd,
            image,
            command_line: command_line.replace(KERNEL_PARAMETERS, &added),
            platform: platform.name().to_owned(),
            vcpus: launch.vcpus,
            cpu_models: launch.cpu_models,
            guest_features: launch.guest_features,
            sender: [shim, launch.containerd],
            demanded_digest: bundle.snp_id.as_ref().map(|id| Measurement::from_bytes(id.launch_digest)),
            handler: handler.ok(),
        })
    }

    /// The command line of a VM with that many processors.
    pub(super) fn command_line(&self, vcpus: u32) -> String {
        self.command_line.replace(VCPUS, &vcpus.to_string())
    }

    /// Whether the command line differs with the number of processors.
    pub(super) fn names_vcpus(&self) -> bool {
        self.command_line.contains(VCPUS)
    }
}

/// Whose requests the pods' policies are for: the shim whose configuration the installer writes.
fn shim(described: Option<String>, bundle: &Bundle) -> anyhow::Result<Option<String>> {
    let another = described.as_deref().and_then(|name| name.parse::<Shim>().ok());
    if let Some(another) = another.filter(|another| *another != bundle.shim()) {
        let text = format!(
            "{DESCRIPTION}: shim: {another}, but the installer writes the configuration of {}: put \"shim\": \"{another}\" \
             into {INSTALLED}",
            bundle.shim()
        );
        return Err(Refused(text).into());
    }
    Ok(described.or_else(|| bundle.named_shim().map(|shim| shim.name().to_owned())))
}

/// Where a bundle's files are.
struct Place<'a> {
    bundle: &'a Path,
    files: Option<&'a Path>,
}

impl Place<'_> {
    fn of(&self, file: &BundleFile) -> anyhow::Result<PathBuf> {
        match (self.files, &file.source) {
            (Some(folder), _) => readable(folder.join(file.path.as_str())),
            (None, Source::Path(path)) if !Path::new(path).is_absolute() => readable(self.bundle.join(path)),
            (None, _) => anyhow::bail!(
                "{} is not beside {INSTALLED}: give --files, the folder of an installed runtime (/opt/edgeless/HANDLER) \
                 or one with downloads laid out like it",
                file.path.as_str()
            ),
        }
    }

    /// A file whose digest was compared, where the bundle names one.
    fn verified(&self, file: &BundleFile) -> anyhow::Result<PathBuf> {
        let path = self.of(file)?;
        match (&file.integrity, &file.source) {
            (Some(expected), _) => {
                let found = digest(&path)?;
                if found != *expected {
                    return Err(Refused(format!(
                        "{}: {found}, but {INSTALLED} says {expected}",
                        path.display()
                    ))
                    .into());
                }
            }
            (None, Source::Path(_)) => {}
            (None, _) => anyhow::bail!(
                "{INSTALLED}: {} needs an integrity: without one nobody knows that {} is that file",
                file.path.as_str(),
                path.display()
            ),
        }
        Ok(path)
    }

    fn local_digest(&self, bundle: &Bundle, source: &str) -> anyhow::Result<Digest> {
        let same = |file: &&BundleFile| matches!(&file.source, Source::Path(path) if path == source);
        let file = bundle.files.iter().find(same).context("no such file in the bundle")?;
        digest(&self.of(file)?)
    }
}

fn readable(path: PathBuf) -> anyhow::Result<PathBuf> {
    fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(path)
}

fn digest(path: &Path) -> anyhow::Result<Digest> {
    let mut hasher = Sha256::new();
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut hasher));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}
