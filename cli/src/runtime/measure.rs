//! `contrast runtime measure`.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use launch_digest::{PageOrder, SnpLaunch, kernel_registers, mr_td, snp_launch_digest};
use manifest::{Measurement, SnpProduct};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{client::read, printer::Printer};

/// File in a bundle that says how its guest is started.
const DESCRIPTION: &str = "launch.json";

/// Compute reference values from what a guest starts from, instead of believing them.
///
/// BUNDLE is a folder with launch.json, which names the firmware, kernel, initrd and command line, and
/// the numbers and models of processors. The output is the ReferenceValues of a manifest; give it to
/// `contrast generate --measurements`. Versions that only a machine can tell are left empty.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "launch.json:\n  {\"platform\": \"Metal-QEMU-SNP\", \"firmware\": \"OVMF.fd\", \"kernel\": \"vmlinuz\", \
    \"initrd\": \"initrd.img\",\n   \"command_line\": \"console=ttyS0\", \"vcpus\": [1, 2], \
    \"cpu_models\": {\"Milan\": \"EPYC-Milan\"}}\n\nExample:\n  contrast runtime measure ./bundle --output json > values.json"
)]
pub(crate) struct Args {
    /// Folder of the bundle.
    bundle: PathBuf,
    /// RTMR0 of a TDX guest as 96 hex digits, from a quote of a machine that you trust: it depends on tables
    /// that the VMM makes.
    #[arg(long, value_name = "HEX")]
    rtmr0: Option<Measurement>,
    /// The VMM adds all pages of a section before it measures them (QEMU with kernels before Linux 6.16).
    #[arg(long)]
    section_by_section: bool,
}

/// `launch.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Launch {
    platform: String,
    firmware: PathBuf,
    #[serde(default)]
    kernel: Option<PathBuf>,
    #[serde(default)]
    initrd: Option<PathBuf>,
    #[serde(default)]
    command_line: String,
    /// Numbers of virtual processors; each has its own SNP digest.
    #[serde(default = "one")]
    vcpus: Vec<u32>,
    /// QEMU's model for each product.
    #[serde(default)]
    cpu_models: std::collections::BTreeMap<String, String>,
    /// `SEV_FEATURES`.
    #[serde(default = "snp_active")]
    guest_features: u64,
}

fn one() -> Vec<u32> {
    vec![1]
}

fn snp_active() -> u64 {
    1
}

pub(super) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let description = args.bundle.join(DESCRIPTION);
    let launch: Launch =
        serde_json::from_slice(&read(&description)?).with_context(|| description.display().to_string())?;
    let inside = |path: &Path| -> anyhow::Result<PathBuf> {
        let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        ensure!(plain, "{}: {} is not a path inside the bundle", description.display(), path.display());
        let path = args.bundle.join(path);
        fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(path)
    };
    let firmware = inside(&launch.firmware)?;
    let kernel = launch.kernel.as_deref().map(inside).transpose()?;
    let initrd = launch.initrd.as_deref().map(inside).transpose()?;
    let values = if launch.platform.contains("TDX") {
        tdx(args, &launch, &firmware, kernel.as_deref(), initrd.as_deref())?
    } else {
        snp(&launch, &firmware, kernel.as_deref(), initrd.as_deref())?
    };
    printer.result(&text(&values), &values)
}

fn snp(
    launch: &Launch,
    firmware: &Path,
    kernel: Option<&Path>,
    initrd: Option<&Path>,
) -> anyhow::Result<Value> {
    ensure!(
        !launch.cpu_models.is_empty(),
        "launch.json: cpu_models: name QEMU's model for Milan, Genoa or Turin"
    );
    let mut entries = Vec::new();
    for (product, model) in &launch.cpu_models {
        let _: SnpProduct = serde_json::from_value(json!(product))
            .with_context(|| format!("launch.json: cpu_models.{product}"))?;
        for vcpus in &launch.vcpus {
            let digest = snp_launch_digest(&SnpLaunch {
                firmware,
                kernel,
                initrd,
                command_line: kernel.map(|_| launch.command_line.as_str()),
                vcpus: *vcpus,
                cpu_model: model,
                guest_features: launch.guest_features,
            })?;
            entries.push(json!({
                "Platform": launch.platform, "ProductName": product, "TrustedMeasurement": digest, "CPUs": vcpus,
                "MinimumTCB": { "BootloaderVersion": null, "TEEVersion": null, "SNPVersion": null, "MicrocodeVersion": null },
            }));
        }
    }
    Ok(json!({ "snp": entries }))
}

fn tdx(
    args: &Args,
    launch: &Launch,
    firmware: &Path,
    kernel: Option<&Path>,
    initrd: Option<&Path>,
) -> anyhow::Result<Value> {
    let kernel = kernel.context("launch.json: a TDX guest needs a kernel")?;
    let order = if args.section_by_section { PageOrder::SectionBySection } else { PageOrder::PageByPage };
    let mr_td = mr_td(&read(firmware)?, order)?;
    let initrd = initrd.map(read).transpose()?;
    let registers = kernel_registers(&read(kernel)?, initrd.as_deref(), &launch.command_line)?;
    let rtmr0 = args.rtmr0.unwrap_or(Measurement::from_bytes([0; 48]));
    Ok(json!({ "tdx": [{
        "Platform": launch.platform, "MrTd": mr_td, "MrSeam": null, "Xfam": "e702060000000000",
        "Rtmrs": [rtmr0, registers.rtmr1, registers.rtmr2, registers.rtmr3],
    }] }))
}

fn text(values: &Value) -> String {
    let mut text = String::new();
    for entry in values["snp"].as_array().into_iter().flatten() {
        let field = |name: &str| entry[name].to_string().trim_matches('"').to_owned();
        let _ = writeln!(
            text,
            "{} {} vCPUs {}",
            field("TrustedMeasurement"),
            field("ProductName"),
            field("CPUs")
        );
    }
    for entry in values["tdx"].as_array().into_iter().flatten() {
        let plain = |value: &Value| value.to_string().trim_matches('"').to_owned();
        let _ = writeln!(text, "{} MRTD", plain(&entry["MrTd"]));
        for (number, register) in entry["Rtmrs"].as_array().into_iter().flatten().enumerate() {
            let register = plain(register);
            let unknown = number == 0 && register.bytes().all(|c| c == b'0');
            let note = if unknown { " (not computed: give --rtmr0)" } else { "" };
            let _ = writeln!(text, "{register} RTMR{number}{note}");
        }
    }
    text
}
