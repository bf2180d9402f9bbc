//! The manifest: policies, reference values, owners' keys.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, str::FromStr};

use anyhow::{Context as _, ensure};
use manifest::{ManifestBody, Measurement, OwnerKey, PolicyEntry, ReferenceValues, Role};
use runtime_policy::{PodPolicy, Workload};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Args, files};
use crate::{client::read, printer::Printer, set::read_key};

/// A platform by the name that users know (spec manifest-and-cli.md section 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    name: String,
    tdx: bool,
}

/// Platforms, newest names first.
const PLATFORMS: [&str; 9] = [
    "Metal-QEMU-SNP",
    "Metal-QEMU-SNP-GPU",
    "Metal-QEMU-TDX",
    "Metal-QEMU-TDX-GPU",
    "K3s-QEMU-SNP",
    "K3s-QEMU-SNP-GPU",
    "K3s-QEMU-TDX",
    "RKE2-QEMU-TDX",
    "AKS-CLH-SNP",
];

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = PLATFORMS.iter().find(|name| name.eq_ignore_ascii_case(text));
        let name = known.ok_or_else(|| format!("expected one of {}", PLATFORMS.join(", ")))?;
        Ok(Self { name: (*name).to_owned(), tdx: name.contains("TDX") })
    }
}

/// A manifest that was written.
pub(super) struct Written {
    /// Places that only the user knows the values of.
    pub(super) to_fill_in: Vec<String>,
}

pub(super) fn update(args: &Args, policies: &[PodPolicy], printer: &Printer) -> anyhow::Result<Written> {
    let existing = match fs::read(&args.manifest) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", args.manifest.display())),
    };
    let (mut body, unknown) = match &existing {
        Some(bytes) => existing_body(&args.manifest, bytes)?,
        None => (
            ManifestBody { reference_values: reference_values(args)?, ..ManifestBody::default() },
            Vec::new(),
        ),
    };
    if existing.is_some() && args.measurements.is_some() {
        body.reference_values = reference_values(args)?;
    }
    let old = std::mem::take(&mut body.policies);
    for policy in policies {
        let hash = policy.document.hash();
        // Names that the user added to an entry outlive a change of the policy.
        let same = |entry: &&PolicyEntry| {
            entry.role == policy.workload.role
                && entry.workload_secret_id == policy.workload.workload_secret_id
                && (entry.role == Role::None || entry.sans.contains(&policy.workload.name))
        };
        let known = old.get(&hash).or_else(|| old.values().find(same));
        let entry = known.cloned().unwrap_or_else(|| entry(&policy.workload));
        body.policies.insert(hash, entry);
    }
    if body.policies.values().all(|entry| entry.role != Role::Coordinator) {
        printer.note("warning: no pod has the annotation contrast.edgeless.systems/pod-role: coordinator; `contrast set` needs one");
    }
    add_keys(args, &mut body, printer)?;
    let bytes = if unknown.is_empty() {
        body.to_json()
    } else {
        let mut value = serde_json::to_value(&body)?;
        for (key, content) in unknown {
            value[key] = content;
        }
        let mut bytes = serde_json::to_vec_pretty(&value)?;
        bytes.push(b'\n');
        bytes
    };
    if existing.as_deref() != Some(bytes.as_slice()) {
        files::replace(&args.manifest, &bytes)?;
    }
    Ok(Written { to_fill_in: to_fill_in(&body) })
}

/// The manifest as it is, and top-level keys of newer versions, which are kept.
fn existing_body(path: &Path, bytes: &[u8]) -> anyhow::Result<(ManifestBody, Vec<(String, Value)>)> {
    let at = || path.display().to_string();
    let value: Value = serde_json::from_slice(bytes).with_context(at)?;
    let body: ManifestBody = serde_json::from_slice(bytes).with_context(at)?;
    let known = [
        "Policies",
        "ReferenceValues",
        "WorkloadOwnerPubKeys",
        "WorkloadOwnerKeyDigests",
        "AuditorPubKeys",
        "SeedshareOwnerPubKeys",
        "SeedshareOwnerKeys",
        "MinimumAPIVersion",
    ];
    let unknown = value.as_object().into_iter().flatten().filter(|(key, _)| !known.contains(&key.as_str()));
    let unknown = unknown.map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok((body, unknown))
}

pub(crate) fn entry(workload: &Workload) -> PolicyEntry {
    PolicyEntry {
        sans: vec![workload.name.clone(), "*".into()],
        workload_secret_id: workload.workload_secret_id.clone(),
        role: workload.role,
    }
}

/// Adds owners' public keys, sorted; makes keys that are not there.
fn add_keys(args: &Args, body: &mut ManifestBody, printer: &Printer) -> anyhow::Result<()> {
    if args.disable_updates {
        body.workload_owner_pub_keys.clear();
        body.workload_owner_key_digests.clear();
    } else {
        for path in &args.add_workload_owner_key {
            let public = public_key(
                path,
                keys::workload_owner_public_key,
                keys::generate_workload_owner_key,
                printer,
            )?;
            let key = OwnerKey::from_der(public);
            let digest = key.digest();
            if !body.workload_owner_digests().any(|known| known == digest) {
                body.workload_owner_pub_keys.push(key);
                if !body.workload_owner_key_digests.is_empty() {
                    body.workload_owner_key_digests.push(digest);
                }
            }
        }
    }
    for path in &args.add_seedshare_owner_key {
        let public =
            public_key(path, keys::seedshare_owner_public_key, keys::generate_seedshare_owner_key, printer)?;
        let key = OwnerKey::from_der(public);
        if !body.seedshare_owner_pub_keys.contains(&key) {
            body.seedshare_owner_pub_keys.push(key);
        }
    }
    body.workload_owner_pub_keys.sort();
    body.seedshare_owner_pub_keys.sort();
    Ok(())
}

type Generated = Result<(Zeroizing<String>, Vec<u8>), keys::KeyError>;

fn public_key(
    path: &Path,
    read: fn(&str) -> Result<Vec<u8>, keys::KeyError>,
    generate: fn() -> Generated,
    printer: &Printer,
) -> anyhow::Result<Vec<u8>> {
    if path.exists() {
        let pem = read_key(path)?;
        return read(&pem).with_context(|| path.display().to_string());
    }
    let (pem, public) = generate()?;
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(pem.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    printer.note(&format!("Made the key {}; keep it safe, it is nowhere else", path.display()));
    Ok(public)
}

/// The platforms' values: measured ones where they were given, else empty for the user to fill in.
fn reference_values(args: &Args) -> anyhow::Result<ReferenceValues> {
    if let Some(path) = &args.measurements {
        let values: ReferenceValues =
            serde_json::from_slice(&read(path)?).with_context(|| path.display().to_string())?;
        ensure!(
            !values.snp.is_empty() || !values.tdx.is_empty(),
            "{}: holds neither snp nor tdx values",
            path.display()
        );
        for platform in &args.reference_values {
            let there = if platform.tdx { !values.tdx.is_empty() } else { !values.snp.is_empty() };
            ensure!(there, "{}: holds no values for {}", path.display(), platform.name);
        }
        return Ok(values);
    }
    let (mut snp, mut tdx) = (Vec::new(), Vec::new());
    for platform in &args.reference_values {
        if platform.tdx {
            // XFAM: x87, SSE, AVX, AVX-512, PKRU and AMX, what the TDX module gives a guest by default.
            tdx.push(json!({
                "Platform": platform.name, "MrTd": UNMEASURED, "MrSeam": null, "Rtmrs": ([UNMEASURED; 4]),
                "Xfam": "e702060000000000",
            }));
        } else {
            let tcb = json!({ "BootloaderVersion": null, "TEEVersion": null, "SNPVersion": null, "MicrocodeVersion": null });
            snp.extend(["Milan", "Genoa"].map(|product| json!({
                "Platform": platform.name, "ProductName": product, "TrustedMeasurement": UNMEASURED, "MinimumTCB": tcb,
            })));
        }
    }
    serde_json::from_value(json!({ "snp": snp, "tdx": tdx })).context("reference values")
}

const UNMEASURED: Measurement = Measurement::from_bytes([0; 48]);

fn to_fill_in(body: &ManifestBody) -> Vec<String> {
    let mut fields = Vec::new();
    for (index, entry) in body.reference_values.snp.iter().enumerate() {
        let at = format!("ReferenceValues.snp[{index}]");
        if entry.trusted_measurement == UNMEASURED {
            fields.push(format!("{at}.TrustedMeasurement (from `contrast runtime measure`)"));
        }
        let tcb = &entry.minimum_tcb;
        if [tcb.bootloader_version, tcb.tee_version, tcb.snp_version, tcb.microcode_version].contains(&None) {
            fields.push(format!("{at}.MinimumTCB (of the {:?} machines that you trust)", entry.product_name));
        }
    }
    for (index, entry) in body.reference_values.tdx.iter().enumerate() {
        let at = format!("ReferenceValues.tdx[{index}]");
        if entry.mr_td == UNMEASURED {
            fields.push(format!("{at}.MrTd and Rtmrs (from `contrast runtime measure`)"));
        }
        if entry.mr_seam.is_none() {
            fields.push(format!("{at}.MrSeam (of the TDX module on your machines)"));
        }
    }
    fields
}
