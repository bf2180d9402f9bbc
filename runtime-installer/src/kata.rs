//! Kata's configuration: how the shim starts a runtime's VMs (docs/spec/data-plane.md, section 4, step 2).
//!
//! No parser of Kata's own has read what this writes; its runtime is in Go. Every key was compared with its published
//! sources by name, table and kind of value: the templates `configuration-qemu-snp.toml.in` (commit 0264aa50) and
//! `configuration-qemu-tdx.toml.in` (commit 02300738), and the structures that the runtime reads them into
//! (`katautils/config.go`), which alone name `hot_plug_vfio` and `cold_plug_vfio`.

use runtime_bundle::{Bundle, BundleFile, GUEST_MEMORY_MIB, HandlerName, Platform, Role, Tee};
use serde::Serialize;

/// Longest start of a VM, in seconds: encrypted memory has to be accepted page by page.
const START_SECONDS: u32 = 60;
/// Longest image pull inside the guest, in seconds.
const CREATE_CONTAINER_SECONDS: u32 = 600;

/// A file that the runtime cannot do without.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration lists no {0:?} file for {1}; give one of its files that \"role\"")]
pub struct MissingRole(Role, Platform);

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
    tdx_quote_generation_service_socket_port: Option<u32>,
    cpu_features: &'static str,
    default_vcpus: u32,
    default_maxvcpus: u32,
    default_memory: u32,
    memory_slots: u32,
    default_bridges: u32,
    shared_fs: &'static str,
    block_device_driver: &'static str,
    disable_block_device_use: bool,
    enable_iothreads: bool,
    enable_annotations: &'static [&'static str],
    disable_selinux: bool,
    disable_image_nvdimm: bool,
    enable_debug: bool,
    hot_plug_vfio: &'static str,
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
    dial_timeout: u32,
}

#[derive(Serialize)]
struct Runtime {
    internetworking_model: &'static str,
    disable_guest_seccomp: bool,
    disable_guest_empty_dir: bool,
    sandbox_cgroup_only: bool,
    static_sandbox_resource_mgmt: bool,
    experimental_force_guest_pull: bool,
    create_container_timeout: u32,
    vfio_mode: &'static str,
    enable_debug: bool,
}

/// The configuration's text for a runtime installed as `handler`.
pub fn configuration(
    bundle: &Bundle,
    platform: Platform,
    handler: &HandlerName,
) -> Result<String, MissingRole> {
    let place = |file: &BundleFile| format!("{}/{}", handler.directory(), file.path.as_str());
    let optional = |role| bundle.file(role).map(place);
    let needed = |role| optional(role).ok_or(MissingRole(role, platform));
    let tee = platform.tee();
    let (image, initrd) = match (optional(Role::Image), optional(Role::Initrd)) {
        // The kernel command line names the image's dm-verity root; an initrd beside it would be booted instead.
        (Some(image), _) => (Some(image), None),
        (None, Some(initrd)) => (None, Some(initrd)),
        (None, None) => return Err(MissingRole(Role::Image, platform)),
    };
    needed(Role::Shim)?;
    let hypervisor = needed(Role::Hypervisor)?;
    let firmware = if tee == Tee::None { optional(Role::Firmware) } else { Some(needed(Role::Firmware)?) };
    let (snp_id_block, snp_id_auth) = bundle.snp_id.clone().filter(|_| tee == Tee::Snp).unzip();
    let configuration = Configuration {
        hypervisor: Hypervisors {
            qemu: Qemu {
                path: hypervisor.clone(),
                // Nothing that a pod says may name another hypervisor.
                valid_hypervisor_paths: vec![hypervisor],
                kernel: needed(Role::Kernel)?,
                initrd,
                image,
                rootfs_type: "erofs",
                firmware,
                machine_type: "q35",
                machine_accelerators: if tee == Tee::Tdx { "kernel_irqchip=split" } else { "" },
                kernel_params: bundle.guest_kernel_parameters(),
                confidential_guest: tee != Tee::None,
                sev_snp_guest: tee == Tee::Snp,
                snp_id_block,
                snp_id_auth,
                tdx_quote_generation_service_socket_port: (tee == Tee::Tdx).then_some(4050),
                cpu_features: "pmu=off",
                default_vcpus: 1,
                default_maxvcpus: 220,
                default_memory: GUEST_MEMORY_MIB,
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
                disable_image_nvdimm: true,
                enable_debug: bundle.debug,
                hot_plug_vfio: "no-port",
                cold_plug_vfio: if platform.gpu() { "root-port" } else { "no-port" },
                pcie_root_port: if platform.gpu() { 8 } else { 0 },
                guest_hook_path: if platform.gpu() { "/usr/share/oci/hooks" } else { "" },
            },
        },
        agent: Agents {
            kata: Agent {
                enable_debug: bundle.debug,
                debug_console_enabled: bundle.debug,
                dial_timeout: START_SECONDS,
            },
        },
        runtime: Runtime {
            internetworking_model: "tcfilter",
            disable_guest_seccomp: true,
            disable_guest_empty_dir: false,
            sandbox_cgroup_only: true,
            // Memory of an encrypted VM cannot be added later.
            static_sandbox_resource_mgmt: true,
            experimental_force_guest_pull: true,
            create_container_timeout: CREATE_CONTAINER_SECONDS,
            vfio_mode: if platform.gpu() { "guest-kernel" } else { "vfio" },
            enable_debug: bundle.debug,
        },
    };
    let head = format!(
        "# Kata's configuration for {handler} ({platform}), made by runtime-installer. Not to be edited.\n\n"
    );
    Ok(head + &toml::to_string(&configuration).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(more: &str) -> Bundle {
        let names = [
            "bin/containerd-shim-contrast-cc-v2",
            "bin/qemu-system-x86_64",
            "share/OVMF.fd",
            "share/kata-kernel",
        ];
        let files: Vec<String> = (names.iter().chain(Some(&more)))
            .map(|name| format!(r#"{{"url":"{name}","path":"/opt/edgeless/@@runtimeName@@/{name}"}}"#))
            .collect();
        Bundle::parse(
            format!(r#"{{"files":[{}],"qemuExtraKernelParams":"a=b"}}"#, files.join(",")).as_bytes(),
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
