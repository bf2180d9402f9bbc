//! `contrast runtime measure`.

use std::{
    fmt::Write as _,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use launch_digest::{
    EventLog, PageOrder, RootFileSystem, SnpLaunch, configuration_volume, kernel_registers, mr_td,
    snp_launch_digest, verify_root_file_system,
};
use manifest::{Measurement, SnpProduct};
use runtime_bundle::HandlerName;
use serde_json::{Value, json};

use super::bundle::Guest;
use crate::{
    files::read,
    printer::{Printer, Refused},
};

/// Compute reference values from the runtime that is installed, instead of believing them.
///
/// BUNDLE is the folder of the installer's contrast-node-install.json. launch.json beside it says how the runtime
/// starts the VM. Files are compared with their digests, the image with the dm-verity root in the kernel command line,
/// and an SNP ID block with the computed digests. The output is the ReferenceValues of a manifest. Versions that only
/// a machine can tell are left empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "launch.json:\n  {\"platform\": \"Metal-QEMU-SNP\", \"vcpus\": [1, 2], \
    \"cpu_models\": {\"Milan\": \"EPYC-Milan\"},\n   \"command_line\": \"console=hvc0 nr_cpus=$(vcpus) $(kernel_params)\"}\n  \
    $(kernel_params) is what contrast-node-install.json adds; that alone is the default. Without \
    contrast-node-install.json\n  name the files here: firmware, kernel, initrd, image.")]
pub(crate) struct Args {
    /// Folder of the bundle.
    bundle: PathBuf,
    /// Where the bundle's files are, laid out as they are installed, if they are not beside it.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// RTMR0 of a TDX guest as 96 hex digits, from a quote of a machine that you trust: it depends on tables
    /// that the VMM makes.
    #[arg(long, value_name = "HEX")]
    rtmr0: Option<Measurement>,
    /// Event log of such a guest (/sys/firmware/acpi/tables/data/CCEL), for RTMR0 and what it consists of. It must
    /// be of the bundle's firmware, and lead to the other registers as they are computed here.
    #[arg(long, value_name = "FILE", conflicts_with = "rtmr0")]
    event_log: Option<PathBuf>,
    /// The VMM adds all pages of a section before it measures them (QEMU with kernels before Linux 6.16).
    #[arg(long)]
    section_by_section: bool,
}

/// What was computed from a bundle.
pub(crate) struct Measured {
    /// The `ReferenceValues` of a manifest.
    pub(crate) values: Value,
    /// The runtime's name, if all its files were there.
    pub(crate) handler: Option<HandlerName>,
    /// `kata.shim` and `kata.containerd` of the policies' settings, if the bundle names them.
    pub(crate) sender: [Option<String>; 2],
    root: Option<RootFileSystem>,
}

pub(super) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let measured = measure(args, printer)?;
    printer.result(&text(&measured), &measured.values)
}

/// The values of a bundle whose files are all in its folder.
pub(crate) fn measured(bundle: &Path, printer: &Printer) -> anyhow::Result<Measured> {
    let bundle_only = Args {
        bundle: bundle.to_owned(),
        files: None,
        rtmr0: None,
        event_log: None,
        section_by_section: false,
    };
    measure(&bundle_only, printer).with_context(|| format!("runtime bundle {}", bundle.display()))
}

fn measure(args: &Args, printer: &Printer) -> anyhow::Result<Measured> {
    let guest = Guest::read(&args.bundle, args.files.as_deref(), printer)?;
    let root = guest.image.as_deref().map(|image| root_file_system(image, &guest, printer)).transpose()?;
    let values = if guest.platform.contains("TDX") { tdx(args, &guest, printer)? } else { snp(&guest)? };
    Ok(Measured { values, handler: guest.handler, sender: guest.sender, root })
}

fn root_file_system(image: &Path, guest: &Guest, printer: &Printer) -> anyhow::Result<RootFileSystem> {
    let step = printer.step("Root file system");
    let name = || image.display().to_string();
    let file = File::open(image).with_context(name)?;
    let command_line = guest.command_line(guest.vcpus[0]);
    let found = verify_root_file_system(file, &command_line)
        .map_err(|error| Refused(format!("{}: {error}", image.display())))?;
    step.done(&format!("dm-verity root {} as in the command line", found.root));
    Ok(found)
}

fn snp(guest: &Guest) -> anyhow::Result<Value> {
    ensure!(
        !guest.cpu_models.is_empty(),
        "launch.json: cpu_models: name QEMU's model for Milan, Genoa or Turin"
    );
    let (mut entries, mut digests) = (Vec::new(), Vec::new());
    for (product, model) in &guest.cpu_models {
        let _: SnpProduct = serde_json::from_value(json!(product))
            .with_context(|| format!("launch.json: cpu_models.{product}"))?;
        for vcpus in &guest.vcpus {
            let command_line = guest.command_line(*vcpus);
            let digest = snp_launch_digest(&SnpLaunch {
                firmware: &guest.firmware,
                kernel: guest.kernel.as_deref(),
                initrd: guest.initrd.as_deref(),
                command_line: guest.kernel.as_ref().map(|_| command_line.as_str()),
                vcpus: *vcpus,
                cpu_model: model,
                guest_features: guest.guest_features,
            })?;
            digests.push(digest);
            entries.push(json!({
                "Platform": guest.platform, "ProductName": product, "TrustedMeasurement": digest, "CPUs": vcpus,
                "MinimumTCB": { "BootloaderVersion": null, "TEEVersion": null, "SNPVersion": null, "MicrocodeVersion": null },
            }));
        }
    }
    if let Some(demanded) = guest.demanded_digest.filter(|demanded| !digests.contains(demanded)) {
        let refusal = format!(
            "snpIdBlock is for the launch digest {demanded}, which is none of those computed: guests would not start"
        );
        return Err(Refused(refusal).into());
    }
    Ok(json!({ "snp": entries }))
}

fn tdx(args: &Args, guest: &Guest, printer: &Printer) -> anyhow::Result<Value> {
    let kernel = guest.kernel.as_deref().context("launch.json: a TDX guest needs a kernel")?;
    let order = if args.section_by_section { PageOrder::SectionBySection } else { PageOrder::PageByPage };
    let firmware = read(&guest.firmware)?;
    let mr_td = mr_td(&firmware, order)?;
    let (kernel, initrd) = (read(kernel)?, guest.initrd.as_deref().map(read).transpose()?);
    let log = args.event_log.as_deref().map(|path| event_log(path, &firmware, printer)).transpose()?;
    let logged = log.as_ref().map(|log| log.register(0));
    let rtmr0 = args.rtmr0.or(logged).unwrap_or(Measurement::from_bytes([0; 48]));
    let (mut entries, mut registers) = (Vec::new(), Vec::new());
    for vcpus in if guest.names_vcpus() { guest.vcpus.as_slice() } else { &guest.vcpus[..1] } {
        let found = kernel_registers(&kernel, initrd.as_deref(), &guest.command_line(*vcpus))?;
        registers.push((found.rtmr1, found.rtmr2));
        let mut entry = json!({
            "Platform": guest.platform, "MrTd": mr_td, "MrSeam": null, "Xfam": "e702060000000000",
            "Rtmrs": [rtmr0, found.rtmr1, found.rtmr2, found.rtmr3],
        });
        if guest.names_vcpus() {
            entry["CPUs"] = (*vcpus).into();
        }
        entries.push(entry);
    }
    let logged = log.map(|log| (log.register(1), log.register(2)));
    if let Some((rtmr1, rtmr2)) = logged.filter(|logged| !registers.contains(logged)) {
        let refusal = format!(
            "the event log leads to RTMR1 {rtmr1} and RTMR2 {rtmr2}, which do not follow from this kernel, command line \
             and initrd"
        );
        return Err(Refused(refusal).into());
    }
    Ok(json!({ "tdx": entries }))
}

/// A log that begins from this firmware; says what RTMR0 consists of.
fn event_log(path: &Path, firmware: &[u8], printer: &Printer) -> anyhow::Result<EventLog> {
    let log = EventLog::parse(&read(path)?).with_context(|| path.display().to_string())?;
    let volume = configuration_volume(firmware)?;
    let mut from_firmware = false;
    printer.note("RTMR0 consists of:");
    for event in log.events(0) {
        let ours = volume == Some(event.digest);
        from_firmware |= ours;
        let source = match (ours, event.shows_its_data()) {
            (true, _) => "computed from the firmware",
            (false, true) => "as the log shows it",
            (false, false) => "the machine's, not computed",
        };
        printer.note(&format!("  {} ({source})", event.describe()));
    }
    if volume.is_some() && !from_firmware {
        let refusal =
            format!("{}: no event is the configuration volume of the bundle's firmware", path.display());
        return Err(Refused(refusal).into());
    }
    Ok(log)
}

fn text(measured: &Measured) -> String {
    let mut text = String::new();
    let plain = |value: &Value| value.to_string().trim_matches('"').to_owned();
    for entry in measured.values["snp"].as_array().into_iter().flatten() {
        let field = |name: &str| plain(&entry[name]);
        let _ = writeln!(
            text,
            "{} {} vCPUs {}",
            field("TrustedMeasurement"),
            field("ProductName"),
            field("CPUs")
        );
    }
    for entry in measured.values["tdx"].as_array().into_iter().flatten() {
        let vcpus = entry.get("CPUs").map(|number| format!(" vCPUs {number}")).unwrap_or_default();
        let _ = writeln!(text, "{} MRTD{vcpus}", plain(&entry["MrTd"]));
        for (number, register) in entry["Rtmrs"].as_array().into_iter().flatten().enumerate() {
            let register = plain(register);
            let unknown = number == 0 && register.bytes().all(|c| c == b'0');
            let note = if unknown { " (not computed: give --event-log or --rtmr0)" } else { "" };
            let _ = writeln!(text, "{register} RTMR{number}{vcpus}{note}");
        }
    }
    if let Some(root) = &measured.root {
        let _ = writeln!(text, "{} dm-verity root of the image, {} bytes", root.root, root.bytes);
    }
    if let Some(handler) = &measured.handler {
        let _ = writeln!(text, "{handler} runtime class");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sha2::{Digest as _, Sha384};

    use super::*;
    use crate::printer::OutputFormat;

    /// OVMF in little: TDX metadata with one section, a configuration volume of one page.
    fn firmware() -> Vec<u8> {
        let mut bytes = vec![0x5a; 3 * 4096];
        let mut put = |at: usize, content: &[u8]| bytes[at..at + content.len()].copy_from_slice(content);
        put(4096, b"TDVF");
        put(4096 + 12, &1u32.to_le_bytes());
        put(4096 + 16, &[0; 32]);
        put(4096 + 16 + 4, &4096u32.to_le_bytes());
        put(4096 + 16 + 8, &0xffff_0000u64.to_le_bytes());
        put(4096 + 16 + 16, &4096u64.to_le_bytes());
        put(4096 + 16 + 24, &[1, 0, 0, 0, 1, 0, 0, 0]);
        let end = 3 * 4096 - 32;
        put(end - 40, &(2u32 * 4096).to_le_bytes());
        put(end - 36, &[22, 0]);
        put(end - 34, &hex::decode("35657ae44a989847865e4685a7bf8ec2").unwrap());
        put(end - 18, &[40, 0]);
        put(end - 16, &hex::decode("de82b596b21ff745baeaa366c55a082d").unwrap());
        bytes
    }

    /// An EFI application without code.
    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0u8; 1024];
        let mut put = |at: usize, content: &[u8]| kernel[at..at + content.len()].copy_from_slice(content);
        put(0, b"MZ");
        put(0x3c, &[0x80]);
        put(0x80, b"PE\0\0");
        put(0x86, &[1]);
        put(0x94, &[0xf0]);
        put(0x98, &[0x0b, 0x02]);
        put(0x98 + 60, &512u32.to_le_bytes());
        put(0x98 + 0xf0 + 16, &512u32.to_le_bytes());
        put(0x98 + 0xf0 + 20, &512u32.to_le_bytes());
        kernel
    }

    /// What a machine would have logged: register in the protocol's numbers, and what was measured.
    fn log(first: &[u8], line: &str) -> Vec<u8> {
        let kernel = kernel();
        let signed = [&kernel[..0xd8], &kernel[0xdc..0x128], &kernel[0x130..]].concat();
        let units: Vec<u8> = line.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let events: [(u32, &[u8]); 8] = [
            (1, first),
            (1, b"tables of the VMM"),
            (2, &signed),
            (2, b"Calling EFI Application from Boot Option"),
            (2, &[0; 4]),
            (2, b"Exit Boot Services Invocation"),
            (2, b"Exit Boot Services Returned with Success"),
            (3, &units),
        ];
        let mut bytes = [vec![0, 0, 0, 0, 3], vec![0; 23], vec![33, 0, 0, 0]].concat();
        bytes.extend(b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0c\0\x30\0\0");
        for (register, measured) in events {
            bytes.extend(register.to_le_bytes());
            bytes.extend([0x0a, 0, 0, 0, 1, 0, 0, 0, 0x0c, 0]);
            bytes.extend(Sha384::digest(measured));
            bytes.extend([0; 4]);
        }
        bytes
    }

    #[test]
    fn rtmr0_comes_from_a_log_that_is_of_this_firmware_kernel_and_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("OVMF.fd"), firmware()).unwrap();
        fs::write(path("vmlinuz"), kernel()).unwrap();
        let launch = r#"{"platform": "Metal-QEMU-TDX", "firmware": "OVMF.fd", "kernel": "vmlinuz", "command_line": "quiet"}"#;
        fs::write(path("launch.json"), launch).unwrap();
        let with = |log: Option<&[u8]>| {
            log.iter().for_each(|log| fs::write(path("CCEL"), log).unwrap());
            let args = Args {
                bundle: folder.path().to_owned(),
                files: None,
                rtmr0: None,
                event_log: log.map(|_| path("CCEL")),
                section_by_section: false,
            };
            measure(&args, &Printer::new(OutputFormat::Text))
        };
        let without = with(None).unwrap();
        assert!(
            text(&without).contains(&format!("{} RTMR0 (not computed", "0".repeat(96))),
            "{}",
            text(&without)
        );
        let volume = &firmware()[..4096];
        let found = with(Some(&log(volume, "quiet"))).unwrap();
        let step =
            |register: &[u8], measured: &[u8]| Sha384::digest([register, &Sha384::digest(measured)].concat());
        let expected = step(&step(&[0; 48], volume), b"tables of the VMM");
        assert_eq!(found.values["tdx"][0]["Rtmrs"][0], hex::encode(expected));
        for (changed, expected) in [
            (log(b"another", "quiet"), "no event is the configuration volume of the bundle's firmware"),
            (log(volume, "quiet init=/bin/sh"), "do not follow from this kernel, command line and initrd"),
        ] {
            let refused = with(Some(&changed)).err().unwrap();
            assert!(refused.is::<Refused>() && refused.to_string().contains(expected), "{refused:#}");
        }
        assert!(with(Some(b"no log")).is_err());
    }
}
