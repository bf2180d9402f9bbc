//! What the node is, and what it lacks: one report.

use std::path::Path;

use runtime_bundle::{INSTALL_DIRECTORY, Platform, Tee};
use serde::Serialize;

use crate::{
    containerd::{
        cri::{Cri, Health},
        patch,
        restart::Restart,
        target::{Hints, Place, Target, read_text},
    },
    host::Host,
    state::StateFile,
};

/// What a runtime and its downloads take, in bytes.
const WANTED_SPACE: u64 = 2 << 30;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// As it must be.
    Good,
    /// Worth knowing; stops nothing.
    Note,
    /// Stops confidential pods.
    Missing,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The platform that was asked for, or found.
    pub platform: String,
    /// Whether nothing is missing.
    pub ready: bool,
    /// Line by line.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { what, standing, found, advice } in &self.findings {
            let mark = match standing {
                Standing::Good => "ok     ",
                Standing::Note => "note   ",
                Standing::Missing => "MISSING",
            };
            text += &format!("{mark} {what:width$}  {found}\n");
            if let Some(advice) = advice {
                text += &format!("        {:width$}  -> {advice}\n", "");
            }
        }
        let missing = self.findings.iter().filter(|finding| finding.standing == Standing::Missing).count();
        text + &match missing {
            0 => format!("\nThis node can run {} runtimes.\n", self.platform),
            1 => format!("\nThis node cannot run {} runtimes: 1 thing is missing.\n", self.platform),
            _ => {
                format!("\nThis node cannot run {} runtimes: {missing} things are missing.\n", self.platform)
            }
        }
    }
}

/// Looks at the node. Without `platform`, at what its processor could do.
pub fn check(
    host: &Host,
    hints: &Hints,
    restart_command: Option<&str>,
    platform: Option<Platform>,
) -> Report {
    let processor = Processor::read(host);
    let platform = platform.unwrap_or_else(|| processor.platform());
    let mut findings = vec![processor.finding(platform)];
    findings.extend(kernel(host, platform));
    findings.extend(devices(host, platform));
    findings.extend(containerd(host, hints, restart_command));
    findings.push(space(host));
    findings.push(installed(host));
    let ready = findings.iter().all(|finding| finding.standing != Standing::Missing);
    Report { platform: platform.name().to_owned(), ready, findings }
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, standing: Standing::Good, found: found.into(), advice: None }
}

fn note(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { standing: Standing::Note, ..good(what, found) }
}

fn missing(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { what, standing: Standing::Missing, found: found.into(), advice: Some(advice.into()) }
}

fn line(host: &Host, path: &str) -> Option<String> {
    let bytes = host.read(Path::new(path), 64 << 10).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// What `/proc/cpuinfo` says.
struct Processor {
    model: String,
    flags: Vec<String>,
}

impl Processor {
    fn read(host: &Host) -> Self {
        let bytes = host.read(Path::new("/proc/cpuinfo"), 16 << 20).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(key, _)| key.trim() == name);
            found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        Self { model: field("model name"), flags: field("flags").split(' ').map(str::to_owned).collect() }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|found| found == flag)
    }

    fn platform(&self) -> Platform {
        if self.has("sev_snp") {
            Platform::MetalQemuSnp
        } else if self.has("tdx_host_platform") {
            Platform::MetalQemuTdx
        } else {
            Platform::MetalQemuInsecure
        }
    }

    fn finding(&self, platform: Platform) -> Finding {
        let what = "processor";
        let virtual_machine =
            if self.has("hypervisor") { " (this node is itself a virtual machine)" } else { "" };
        let model = format!("{}{virtual_machine}", self.model);
        let (flag, name, advice) = match platform.tee() {
            Tee::Snp => (
                "sev_snp",
                "SEV-SNP",
                "an AMD EPYC 7003 or later with SMEE, SEV-ES and SEV-SNP enabled in its BIOS",
            ),
            Tee::Tdx => (
                "tdx_host_platform",
                "TDX",
                "a 5th generation Intel Xeon or later with TME-MT, SGX and TDX enabled in its BIOS",
            ),
            Tee::None if self.has("svm") || self.has("vmx") => {
                return note(what, format!("{model}: virtualisation, no protection"));
            }
            Tee::None => {
                return missing(
                    what,
                    format!("{model}: no virtualisation"),
                    "enable it in the BIOS, or nested virtualisation on the hypervisor",
                );
            }
        };
        if self.has(flag) {
            return good(what, format!("{model}: {name}"));
        }
        missing(what, format!("{model}: no {name}"), format!("needed: {advice}"))
    }
}

fn kernel(host: &Host, platform: Platform) -> Vec<Finding> {
    let release = line(host, "/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (least, parameter, enable) = match platform.tee() {
        Tee::Snp => (
            (6, 11),
            "/sys/module/kvm_amd/parameters/sev_snp",
            "load kvm_amd with sev=1 sev_es=1 sev_snp=1, boot with iommu.passthrough=0",
        ),
        Tee::Tdx => (
            (6, 16),
            "/sys/module/kvm_intel/parameters/tdx",
            "load kvm_intel with tdx=1, boot with nohibernate",
        ),
        Tee::None => return vec![good("kernel", release)],
    };
    let kernel = if version >= least {
        good("kernel", release)
    } else {
        // Distributions carry the patches in older kernels: the module's parameter has the last word.
        note("kernel", format!("{release}: upstream has the host side since {}.{}", least.0, least.1))
    };
    let on = line(host, parameter);
    let support = match on.as_deref() {
        Some("Y" | "1") => good("kernel support", format!("{parameter} is on")),
        Some(value) => missing("kernel support", format!("{parameter} is {value}"), enable),
        None => missing("kernel support", format!("{parameter} is not there"), enable),
    };
    vec![kernel, support]
}

fn devices(host: &Host, platform: Platform) -> Vec<Finding> {
    let mut wanted = vec![
        ("/dev/kvm", "load the KVM module, and enable virtualisation in the BIOS"),
        ("/dev/vhost-vsock", "modprobe vhost_vsock: the shim speaks to the guest over it"),
        ("/dev/vhost-net", "modprobe vhost_net: the guest's network"),
    ];
    if platform.tee() == Tee::Snp {
        wanted.push(("/dev/sev", "load the ccp module; its firmware answers there"));
    }
    let mut findings: Vec<Finding> = wanted
        .into_iter()
        .map(|(path, advice)| match host.exists(Path::new(path)) {
            true => good("device", path),
            false => missing("device", format!("{path} is not there"), advice),
        })
        .collect();
    if platform.gpu() {
        let groups = host.resolve(Path::new("/sys/kernel/iommu_groups")).and_then(std::fs::read_dir);
        let count = groups.map_or(0, Iterator::count);
        findings.push(match count {
            0 => missing("IOMMU", "no groups", "enable the IOMMU in the BIOS, and bind the GPUs to vfio-pci"),
            _ => good("IOMMU", format!("{count} groups")),
        });
    }
    findings
}

fn containerd(host: &Host, hints: &Hints, restart_command: Option<&str>) -> Vec<Finding> {
    let target = match Target::find(host, hints) {
        Ok(target) => target,
        Err(error) => {
            return vec![missing(
                "containerd",
                error.to_string(),
                "name the right file in containerd-config-path",
            )];
        }
    };
    let mut findings = vec![configuration(host, &target)];
    findings.push(
        match restart_command
            .map(|_| Restart::Never)
            .map_or_else(|| Restart::first_unit(host, &target.units), Ok)
        {
            Ok(Restart::Unit(unit)) => good("restart", format!("systemd unit {unit}")),
            Ok(_) => note("restart", "by a command, or not at all"),
            Err(error) => missing("restart", error.to_string(), "name the unit in systemd-unit-name"),
        },
    );
    let health = target.socket_here(host).map_err(Into::into).and_then(|socket| Cri::new(&socket)?.health());
    findings.push(match health {
        Ok(Health { version, ready: true, handlers }) => {
            let names: Vec<String> = handlers.into_keys().collect();
            good("containerd", format!("{version} answers; handlers: {}", names.join(", ")))
        }
        Ok(Health { version, .. }) => {
            missing("containerd", format!("{version} cannot run containers"), "look at its log")
        }
        Err(error) => {
            missing("containerd", error.to_string(), "start it, or name its socket with --containerd-socket")
        }
    });
    findings
}

fn configuration(host: &Host, target: &Target) -> Finding {
    let what = "containerd's configuration";
    let text = read_text(host, &target.config).ok().flatten();
    let config = text.as_deref().map(patch::parse);
    let place = match &target.place {
        Place::Block(path, _) => format!("entries go into {}", path.display()),
        Place::DropIn(folder, _) => format!("entries go into files of their own in {}", folder.display()),
    };
    match config {
        Some(Ok(config)) => match patch::disabled_cri(&config) {
            Some(name) => {
                missing(what, format!("disabled_plugins has {name:?}"), "take it out: Kubernetes needs it")
            }
            None => good(what, format!("{} ({}); {place}", target.config.display(), target.distribution)),
        },
        Some(Err(error)) => missing(what, format!("{}: {error}", target.config.display()), "mend the file"),
        None => note(
            what,
            format!("{} is not there: containerd runs with its defaults; {place}", target.config.display()),
        ),
    }
}

fn space(host: &Host) -> Finding {
    let what = "space";
    let there = Path::new(INSTALL_DIRECTORY).ancestors().find(|folder| host.exists(folder));
    let folder = there.unwrap_or(Path::new("/"));
    let statistics = host.resolve(folder).and_then(|folder| Ok(rustix::fs::statvfs(folder)?));
    let Ok(statistics) = statistics else { return note(what, format!("unknown at {}", folder.display())) };
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    let found = format!("{} MiB free at {}", free >> 20, folder.display());
    if free >= WANTED_SPACE {
        return good(what, found);
    }
    missing(what, found, format!("make room: a runtime takes up to {} MiB", WANTED_SPACE >> 20))
}

fn installed(host: &Host) -> Finding {
    let what = "installed";
    match StateFile::open(host) {
        Ok(file) if file.state.pending.is_some() => {
            note(what, "an installation was interrupted: run it again")
        }
        Ok(file) => {
            let names: Vec<String> = file.handlers().iter().map(ToString::to_string).collect();
            good(what, if names.is_empty() { "no runtime".into() } else { names.join(", ") })
        }
        Err(error) => missing(what, error.to_string(), "remove the file if you know what was installed"),
    }
}
