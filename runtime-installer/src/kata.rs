//! Kata's configuration: how the shim starts a runtime's VMs (docs/spec/data-plane.md, section 4, step 2).
//!
//! The shim in Go ignores keys that it does not know, the one in Rust refuses some and ignores others, and a few they read
//! and do not use. So each gets only what it acts upon: the table in `docs/runtime-installer.md`, which was made from
//! their sources, and which a test holds this against.

use runtime_bundle::{
    Bundle, BundleFile, GUEST_MEMORY_MIB, GUEST_VCPUS, HandlerName, Platform, Role, Shim, Tee,
};
use serde::Serialize;

/// Longest start of a VM, in seconds: encrypted memory has to be accepted page by page.
const START_SECONDS: u32 = 60;
/// Longest image pull inside the guest, in seconds.
const CREATE_CONTAINER_SECONDS: u32 = 600;

/// Pause between two tries to reach the agent of a VM that starts, in milliseconds.
const DIAL_PAUSE_MS: u32 = 100;

/// Why a runtime cannot be configured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// A file that the runtime cannot do without.
    #[error("the configuration lists no {0:?} file for {1}; give one of its files that \"role\"")]
    MissingRole(Role, Platform),
    /// The shim would start guests without it.
    #[error(
        "snpIdBlock: {0} reads it and does not give it to QEMU, so guests would start without: take snpIdBlock and \
         snpIdAuth out, or use kata-go"
    )]
    IdBlockUnused(Shim),
    /// A value has no form in TOML.
    #[error("{0}")]
    Toml(String),
}

/// Path of the configuration, relative to the runtime's directory.
pub const fn path(platform: Platform) -> &'static str {
    match platform.tee() {
        Tee::Snp => "etc/configuration-qemu-snp.toml",
        Tee::Tdx => "etc/configuration-qemu-tdx.toml",
        Tee::None => "etc/configuration-qemu.toml",
    }
}

#[derive(Serialize)]
struct Configuration {
    hypervisor: Hypervisors,
    agent: Agents,
    runtime: Runtime,
}

#[derive(Serialize)]
struct Hypervisors {
    qemu: Qemu,
}

#[derive(Serialize)]
struct Qemu {
    path: String,
    valid_hypervisor_paths: Vec<String>,
    kernel: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_rootfs_driver: Option<&'static str>,
    rootfs_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<String>,
    machine_type: &'static str,
    machine_accelerators: &'static str,
    kernel_params: String,
    confidential_guest: bool,
    sev_snp_guest: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    snp_id_block: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snp_id_auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snp_guest_policy: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tdx_quote_generation_service_socket_port: Option<u32>,
    cpu_features: &'static str,
    default_vcpus: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead_vcpus: Option<u32>,
    default_maxvcpus: u32,
    default_memory: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead_memory: Option<u32>,
    memory_slots: u32,
    default_bridges: u32,
    shared_fs: &'static str,
    block_device_driver: &'static str,
    disable_block_device_use: bool,
    enable_iothreads: bool,
    enable_annotations: &'static [&'static str],
    disable_selinux: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_image_nvdimm: Option<bool>,
    enable_debug: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hot_plug_vfio: Option<&'static str>,
    cold_plug_vfio: &'static str,
    pcie_root_port: u32,
    guest_hook_path: &'static str,
}

#[derive(Serialize)]
struct Agents {
    kata: Agent,
}

#[derive(Serialize)]
struct Agent {
    enable_debug: bool,
    debug_console_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dial_timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dial_timeout_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect_timeout_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_container_timeout: Option<u32>,
}

#[derive(Serialize)]
struct Runtime {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hypervisor_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_name: Option<&'static str>,
    internetworking_model: &'static str,
    disable_guest_seccomp: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_guest_empty_dir: Option<bool>,
    sandbox_cgroup_only: bool,
    static_sandbox_resource_mgmt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    experimental_force_guest_pull: Option<bool>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    experimental: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    create_container_timeout: Option<u32>,
    vfio_mode: &'static str,
    enable_debug: bool,
}

/// The configuration's text for a runtime installed as `handler`.
pub fn configuration(
    bundle: &Bundle,
    platform: Platform,
    handler: &HandlerName,
) -> Result<String, ConfigurationError> {
    let place = |file: &BundleFile| format!("{}/{}", handler.directory(), file.path.as_str());
    let optional = |role| bundle.file(role).map(place);
    let needed = |role| optional(role).ok_or(ConfigurationError::MissingRole(role, platform));
    let (tee, shim) = (platform.tee(), bundle.shim());
    // A bundle has one of them: Kata refuses both.
    let (image, initrd) = (optional(Role::Image), optional(Role::Initrd));
    if image.is_none() && initrd.is_none() {
        return Err(ConfigurationError::MissingRole(Role::Image, platform));
    }
    needed(Role::Shim)?;
    let hypervisor = needed(Role::Hypervisor)?;
    let firmware = if tee == Tee::None { optional(Role::Firmware) } else { Some(needed(Role::Firmware)?) };
    let snp_id = bundle.snp_id.as_ref().filter(|_| tee == Tee::Snp);
    if snp_id.is_some() && shim == Shim::Rust {
        return Err(ConfigurationError::IdBlockUnused(shim));
    }
    let (go, rust) = (shim == Shim::Go, shim == Shim::Rust);
    let configuration = Configuration {
        hypervisor: Hypervisors {
            qemu: Qemu {
                path: hypervisor.clone(),
                // Nothing that a pod says may name another hypervisor.
                valid_hypervisor_paths: vec![hypervisor],
                kernel: needed(Role::Kernel)?,
                initrd,
                image,
                // Of the image; the shim in Go has it from disable_image_nvdimm.
                vm_rootfs_driver: rust.then_some("virtio-blk-pci"),
                rootfs_type: "erofs",
                firmware,
                machine_type: "q35",
                machine_accelerators: if tee == Tee::Tdx { "kernel_irqchip=split" } else { "" },
                kernel_params: bundle.guest_kernel_parameters(),
                confidential_guest: tee != Tee::None,
                sev_snp_guest: tee == Tee::Snp,
                snp_id_block: snp_id.map(|id| id.block.clone()),
                snp_id_auth: snp_id.map(|id| id.auth.clone()),
                // The firmware refuses a guest that is started with another than its ID block demands.
                snp_guest_policy: snp_id.map(|id| id.guest_policy),
                tdx_quote_generation_service_socket_port: (tee == Tee::Tdx).then_some(4050),
                cpu_features: "pmu=off",
                // The shim in Go adds the pod's limits to these; the one in Rust takes them for pods without limits,
                // and adds limits to the overhead. So the same pod has the same VM.
                default_vcpus: GUEST_VCPUS,
                overhead_vcpus: rust.then_some(GUEST_VCPUS),
                default_maxvcpus: 220,
                default_memory: GUEST_MEMORY_MIB,
                overhead_memory: rust.then_some(GUEST_MEMORY_MIB),
                memory_slots: 10,
                default_bridges: 1,
                // Nothing of the host's file systems reaches the guest.
                shared_fs: "none",
                block_device_driver: "virtio-scsi",
                disable_block_device_use: false,
                enable_iothreads: false,
                // The initdata document, whose hash the hardware measures, and what sizes the VM.
                enable_annotations: &["cc_init_data", "default_vcpus", "default_memory"],
                disable_selinux: true,
                disable_image_nvdimm: go.then_some(true),
                enable_debug: bundle.debug,
                hot_plug_vfio: go.then_some("no-port"),
                cold_plug_vfio: if platform.gpu() { "root-port" } else { "no-port" },
                pcie_root_port: if platform.gpu() { 8 } else { 0 },
                guest_hook_path: if platform.gpu() { "/usr/share/oci/hooks" } else { "" },
            },
        },
        agent: Agents {
            kata: Agent {
                enable_debug: bundle.debug,
                debug_console_enabled: bundle.debug,
                dial_timeout: go.then_some(START_SECONDS),
                dial_timeout_ms: rust.then_some(DIAL_PAUSE_MS),
                reconnect_timeout_ms: rust.then_some(START_SECONDS * 1000),
                create_container_timeout: rust.then_some(CREATE_CONTAINER_SECONDS),
            },
        },
        runtime: Runtime {
            name: rust.then_some("virt_container"),
            hypervisor_name: rust.then_some("qemu"),
            agent_name: rust.then_some("kata"),
            internetworking_model: "tcfilter",
            disable_guest_seccomp: true,
            disable_guest_empty_dir: go.then_some(false),
            sandbox_cgroup_only: true,
            // Memory of an encrypted VM cannot be added later.
            static_sandbox_resource_mgmt: true,
            experimental_force_guest_pull: go.then_some(true),
            experimental: if rust { &["force_guest_pull"] } else { &[] },
            create_container_timeout: go.then_some(CREATE_CONTAINER_SECONDS),
            vfio_mode: if platform.gpu() { "guest-kernel" } else { "vfio" },
            enable_debug: bundle.debug,
        },
    };
    let head = format!(
        "# Kata's configuration for {handler} ({platform}, {shim}), made by runtime-installer. Not to be edited.\n\n"
    );
    let text =
        toml::to_string(&configuration).map_err(|error| ConfigurationError::Toml(error.to_string()))?;
    Ok(head + &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the shims do with each key, as `docs/runtime-installer.md` has it: kind, and what is done with it.
    fn facts(shim: Shim) -> std::collections::BTreeMap<(String, String), (String, String)> {
        let mut facts = std::collections::BTreeMap::new();
        for line in include_str!("../../docs/runtime-installer.md").lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let ["", table, keys, kind, go, rust, ""] = cells.as_slice() else { continue };
            for key in keys.split(", ").filter_map(|key| key.strip_prefix('`')?.strip_suffix('`')) {
                let done = if shim == Shim::Go { go } else { rust };
                let known = facts.insert(
                    (table.trim_matches('`').to_owned(), key.to_owned()),
                    ((*kind).to_owned(), (*done).to_owned()),
                );
                assert_eq!(known, None, "{key} is there twice");
            }
        }
        facts
    }

    #[test]
    fn what_is_written_is_used_by_the_shim_that_reads_it() {
        let handler = "contrast-cc-x-1".parse().unwrap();
        let id = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [1; 96]);
        for (shim, more) in [
            (
                Shim::Go,
                format!(r#","shim":"kata-go","snpIdBlock":"{id}","snpIdAuth":"x","debugRuntime":true"#),
            ),
            (Shim::Rust, r#","shim":"kata-rs""#.to_owned()),
        ] {
            let facts = facts(shim);
            assert!(facts.len() > 50, "{}", facts.len());
            let mut written = std::collections::BTreeSet::new();
            for (platform, root) in Platform::ALL
                .into_iter()
                .flat_map(|platform| ["share/kata.img", "share/kata-initrd.zst"].map(|root| (platform, root)))
            {
                let text = configuration(&bundle_with(root, &more), platform, &handler).unwrap();
                let table: toml::Table = text.parse().unwrap();
                let tables = ["hypervisor.qemu", "agent.kata", "runtime"].map(|path| {
                    let mut steps = path.split('.');
                    let first = &table[steps.next().unwrap()];
                    (path, steps.fold(first, |table, step| &table[step]).as_table().unwrap())
                });
                for (path, key, value) in tables
                    .iter()
                    .flat_map(|(path, table)| table.iter().map(move |(key, value)| (path, key, value)))
                {
                    let place = ((*path).to_owned(), key.clone());
                    let (kind, done) =
                        facts.get(&place).unwrap_or_else(|| panic!("[{path}] {key} is not known"));
                    let found = match value {
                        toml::Value::String(_) => "text",
                        toml::Value::Integer(_) | toml::Value::Float(_) => "number",
                        toml::Value::Boolean(_) => "flag",
                        toml::Value::Array(_) => "list",
                        _ => "another",
                    };
                    assert_eq!((done.as_str(), found), ("used", kind.as_str()), "{shim}: [{path}] {key}");
                    written.insert(place);
                }
            }
            // What a shim acts upon is written where it matters, but for the ID block, which one of them cannot use.
            let left_out: Vec<_> = facts
                .iter()
                .filter(|(place, (_, done))| done == "used" && !written.contains(place))
                .map(|((_, key), _)| key.as_str())
                .collect();
            let expected: &[&str] = if shim == Shim::Go { &[] } else { &["snp_guest_policy"] };
            assert_eq!(left_out, expected, "{shim}");
        }
    }

    #[test]
    fn a_vm_has_the_same_size_whichever_shim_starts_it() {
        let handler = "contrast-cc-x-1".parse().unwrap();
        let read = |shim: &str| -> toml::Value {
            let bundle = bundle_with("share/kata.img", &format!(r#","shim":"{shim}""#));
            let text = configuration(&bundle, Platform::MetalQemuSnp, &handler).unwrap();
            text.parse::<toml::Table>().unwrap()["hypervisor"]["qemu"].clone()
        };
        let (go, rust) = (read("kata-go"), read("kata-rs"));
        let number = |qemu: &toml::Value, key: &str| qemu[key].as_integer().unwrap();
        for (base, overhead) in [("default_vcpus", "overhead_vcpus"), ("default_memory", "overhead_memory")] {
            assert_eq!(number(&rust, base), number(&go, base));
            assert_eq!(number(&rust, overhead), number(&go, base), "limits are added to it");
        }
        assert_eq!(number(&go, "default_memory"), i64::from(GUEST_MEMORY_MIB));
        assert_eq!(number(&go, "default_vcpus"), i64::from(GUEST_VCPUS));
    }

    #[test]
    fn an_id_block_reaches_qemu_with_its_policy_or_is_refused() {
        let handler = "contrast-cc-x-1".parse().unwrap();
        let mut block = [0; 96];
        block[88..].copy_from_slice(&0x0003_0000_u64.to_le_bytes());
        let id = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, block);
        let made = |shim: &str, platform| {
            let more = format!(r#","shim":"{shim}","snpIdBlock":"{id}","snpIdAuth":"x""#);
            configuration(&bundle_with("share/kata.img", &more), platform, &handler)
        };
        let go = made("kata-go", Platform::MetalQemuSnp).unwrap();
        assert!(
            go.contains(&format!("snp_id_block = \"{id}\"")) && go.contains("snp_guest_policy = 196608\n"),
            "{go}"
        );
        let refused = made("kata-rs", Platform::MetalQemuSnp).unwrap_err();
        assert_eq!(refused, ConfigurationError::IdBlockUnused(Shim::Rust));
        assert!(!made("kata-rs", Platform::MetalQemuTdx).unwrap().contains("snp_id"));
    }

    fn bundle(more: &str) -> Bundle {
        bundle_with(more, "")
    }

    fn bundle_with(root: &str, more: &str) -> Bundle {
        let names = [
            "bin/containerd-shim-contrast-cc-v2",
            "bin/qemu-system-x86_64",
            "share/OVMF.fd",
            "share/kata-kernel",
        ];
        let files: Vec<String> = (names.iter().chain(Some(&root)))
            .map(|name| format!(r#"{{"url":"{name}","path":"/opt/edgeless/@@runtimeName@@/{name}"}}"#))
            .collect();
        Bundle::parse(
            format!(r#"{{"files":[{}],"qemuExtraKernelParams":"a=b"{more}}}"#, files.join(",")).as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn what_is_missing_is_named() {
        let handler = "contrast-cc-x-1".parse().unwrap();
        let refused = configuration(&bundle("share/other"), Platform::MetalQemuSnp, &handler).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the configuration lists no Image file for Metal-QEMU-SNP; give one of its files that \"role\""
        );
    }

    #[test]
    fn each_platform_is_told_apart() {
        let handler: HandlerName = "contrast-cc-x-1".parse().unwrap();
        let read = |platform| -> toml::Table {
            configuration(&bundle("share/kata-initrd.zst"), platform, &handler).unwrap().parse().unwrap()
        };
        let qemu = |platform| read(platform)["hypervisor"]["qemu"].clone();
        let snp = qemu(Platform::MetalQemuSnp);
        assert_eq!(snp["sev_snp_guest"], true.into());
        assert_eq!(snp["kernel_params"], "a=b".into());
        assert_eq!(snp["firmware"], "/opt/edgeless/contrast-cc-x-1/share/OVMF.fd".into());
        assert_eq!(snp["shared_fs"], "none".into());
        let tdx = qemu(Platform::MetalQemuTdxGpu);
        assert_eq!(
            (tdx["sev_snp_guest"].as_bool(), tdx["confidential_guest"].as_bool()),
            (Some(false), Some(true))
        );
        assert_eq!(tdx["cold_plug_vfio"], "root-port".into());
        assert_eq!(qemu(Platform::MetalQemuInsecure)["confidential_guest"], false.into());
    }
}
