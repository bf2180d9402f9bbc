//! The manifest: policies, reference values, owners' keys.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, str::FromStr};

use anyhow::{Context as _, ensure};
use manifest::{
    KeyDigest, ManifestBody, Measurement, OwnerKey, PolicyEntry, PolicyHash, ReferenceValues, Role,
    SnpReferenceValues, SnpTcb, TdxReferenceValues,
};
use runtime_policy::{PodPolicy, Target, Workload};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Args;
use crate::{key_file::read_key, printer::Printer, whole_file::replace};

/// A platform by the name that users know (docs/spec/manifest-and-cli.md, section 2).
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

impl Platform {
    /// Its name in runtime classes, such as `metal-qemu-snp`; earlier names mean the same machines.
    fn class(&self) -> String {
        let current = self.name.parse::<runtime_bundle::Platform>();
        current.map_or_else(|_| self.name.to_lowercase(), |platform| platform.name().to_lowercase())
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = PLATFORMS.iter().find(|name| name.eq_ignore_ascii_case(text));
        let name = known.ok_or_else(|| format!("expected one of {}", PLATFORMS.join(", ")))?;
        Ok(Self { name: (*name).to_owned(), tdx: name.contains("TDX") })
    }
}

/// What is to be told of the manifest that was written.
pub(super) struct Written {
    /// Policies of before, with their workloads' names.
    pub(super) going_out: Vec<(PolicyHash, String)>,
    /// Places that only the user knows the values of.
    pub(super) to_fill_in: Vec<String>,
}

/// The manifest as it will be, but for its policies and keys.
pub(super) struct Draft {
    existing: Option<Vec<u8>>,
    body: ManifestBody,
    /// Top-level keys of newer versions.
    unknown: Vec<(String, Value)>,
}

impl Draft {
    /// Reads the manifest that is there, or begins one, with what was measured.
    pub(super) fn read(args: &Args, measured: Option<ReferenceValues>) -> anyhow::Result<Self> {
        let measured = measured.map(|values| covering(args, values)).transpose()?;
        let existing = match fs::read(&args.manifest) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", args.manifest.display()));
            }
        };
        let (mut body, unknown) = match &existing {
            Some(bytes) => existing_body(&args.manifest, bytes)?,
            None => {
                (ManifestBody { reference_values: unmeasured(args)?, ..ManifestBody::default() }, Vec::new())
            }
        };
        if let Some(mut measured) = measured {
            keep_known(&mut measured, &body.reference_values);
            body.reference_values = measured;
        }
        Ok(Self { existing, body, unknown })
    }

    /// The workload owners whose word pods demand, and how many of them. Makes keys that are not there, as they have to
    /// be in the pods before the manifest is written.
    pub(super) fn owners(
        &mut self,
        args: &Args,
        printer: &Printer,
    ) -> anyhow::Result<(Vec<KeyDigest>, usize)> {
        add_keys(args, &mut self.body, printer)?;
        let mut digests: Vec<KeyDigest> = self.body.workload_owner_digests().collect();
        digests.sort();
        digests.dedup();
        Ok((digests, self.body.workload_owners_needed()))
    }

    /// What pods should fit.
    pub(super) fn target(&self, args: &Args) -> Target {
        let values = &self.body.reference_values;
        let snp = values.snp.iter().map(|entry| entry.cpus.filter(|_| entry.ap_eip.is_none()));
        let vcpus: Option<Vec<u64>> = snp.chain(values.tdx.iter().map(|entry| entry.cpus)).collect();
        Target {
            platforms: args.reference_values.iter().map(Platform::class).collect(),
            vcpus: vcpus.unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// A warning if there are measurements that no guest has.
    pub(super) fn unmeasured(&self, args: &Args) -> Option<String> {
        let values = &self.body.reference_values;
        let zero = values.snp.iter().any(|entry| entry.trusted_measurement == UNMEASURED)
            || values.tdx.iter().any(|entry| entry.mr_td == UNMEASURED);
        zero.then(|| {
            format!(
                "{} holds measurements that are zero, which no guest ever has: give the runtime with --runtime-bundle",
                args.manifest.display()
            )
        })
    }

    /// Puts in policies and keys, and writes it. Policies that the manifest named before stay in it, marked: pods with
    /// them run until the new ones have taken over, and no clock tells when that is.
    pub(super) fn write(
        mut self,
        args: &Args,
        policies: &[PodPolicy],
        printer: &Printer,
    ) -> anyhow::Result<Written> {
        let body = &mut self.body;
        let old = std::mem::take(&mut body.policies);
        for policy in policies {
            let hash = policy.document.hash();
            // Names that the user added to an entry outlive a change of the policy.
            let same = |entry: &&PolicyEntry| {
                entry.role == policy.workload.role
                    && entry.workload_secret_id == policy.workload.workload_secret_id
                    && (entry.role == Role::None || entry.sans.contains(&policy.workload.name))
            };
            let newest_first = || old.values().filter(|entry| !entry.going_out).chain(old.values());
            let known = old.get(&hash).or_else(|| newest_first().find(same));
            let mut entry = known.cloned().unwrap_or_else(|| entry(&policy.workload));
            entry.going_out = false;
            // Earlier versions wrote it, and some clients take it for any name of one label.
            if entry.sans.iter().any(|san| san != "*") {
                entry.sans.retain(|san| san != "*");
            }
            body.policies.insert(hash, entry);
        }
        for (hash, old) in old {
            let kept = match old.role {
                Role::Coordinator => args.keep_coordinators,
                Role::None => !(args.revoke || args.finish && old.going_out),
            };
            if kept {
                let going_out = old.role == Role::None;
                body.policies.entry(hash).or_insert(PolicyEntry { going_out, ..old });
            }
        }
        if body.policies.values().all(|entry| entry.role != Role::Coordinator) {
            printer.warning("no pod has the annotation contrast.edgeless.systems/pod-role: coordinator; `contrast set` needs one");
        }
        let bytes = if self.unknown.is_empty() {
            body.to_json()
        } else {
            let mut value = serde_json::to_value(&*body)?;
            for (key, content) in self.unknown {
                value[key] = content;
            }
            let mut bytes = serde_json::to_vec_pretty(&value)?;
            bytes.push(b'\n');
            bytes
        };
        if self.existing.as_deref() != Some(bytes.as_slice()) {
            replace(&args.manifest, &bytes)?;
        }
        let going_out = self.body.going_out().map(|(hash, entry)| (*hash, entry.name().to_owned()));
        Ok(Written { going_out: going_out.collect(), to_fill_in: to_fill_in(&self.body) })
    }
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
        sans: vec![workload.name.clone()],
        workload_secret_id: workload.workload_secret_id.clone(),
        role: workload.role,
        going_out: false,
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
                args,
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
        let public = public_key(
            args,
            path,
            keys::seedshare_owner_public_key,
            keys::generate_seedshare_owner_key,
            printer,
        )?;
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
    args: &Args,
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
    if args.dry_run {
        printer.note(&format!("{} would be made: what pods say of it is an example", path.display()));
        return Ok(public);
    }
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(pem.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    printer.note(&format!("Made the key {}; keep it safe, it is nowhere else", path.display()));
    Ok(public)
}

/// The measured values, which must be there for every platform that was named.
fn covering(args: &Args, values: ReferenceValues) -> anyhow::Result<ReferenceValues> {
    for platform in &args.reference_values {
        let there = if platform.tdx { !values.tdx.is_empty() } else { !values.snp.is_empty() };
        ensure!(there, "the measured reference values hold none for {}", platform.name);
    }
    Ok(values)
}

/// What only the user knows, and no file: it outlives a new measurement of the same kind of machine.
fn keep_known(measured: &mut ReferenceValues, known: &ReferenceValues) {
    for entry in &mut measured.snp {
        let same = |old: &&SnpReferenceValues| {
            old.product_name == entry.product_name && old.platform == entry.platform
        };
        let blank = entry.minimum_tcb == SnpTcb::default();
        if let Some(old) = known.snp.iter().find(same).filter(|_| blank) {
            let (measurement, cpus) = (entry.trusted_measurement, entry.cpus);
            *entry = SnpReferenceValues { trusted_measurement: measurement, cpus, ..old.clone() };
        }
    }
    for entry in &mut measured.tdx {
        let blank = entry.mr_seam.is_none();
        if let Some(old) = known.tdx.iter().find(|old| old.platform == entry.platform).filter(|_| blank) {
            let rtmr0 = if entry.rtmrs[0] == UNMEASURED { old.rtmrs[0] } else { entry.rtmrs[0] };
            let (mr_td, cpus) = (entry.mr_td, entry.cpus);
            let rtmrs = [rtmr0, entry.rtmrs[1], entry.rtmrs[2], entry.rtmrs[3]];
            *entry = TdxReferenceValues { mr_td, rtmrs, cpus, ..old.clone() };
        }
    }
    let (snp, tdx) = (std::mem::take(&mut measured.snp), std::mem::take(&mut measured.tdx));
    *measured = ReferenceValues { snp, tdx, ..known.clone() };
}

/// The platforms' values, for the user to fill in.
fn unmeasured(args: &Args) -> anyhow::Result<ReferenceValues> {
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
        } else if entry.rtmrs[0] == UNMEASURED {
            fields.push(format!("{at}.Rtmrs[0] (from a machine that you trust)"));
        }
        if entry.mr_seam.is_none() {
            fields.push(format!("{at}.MrSeam (of the TDX module on your machines)"));
        }
    }
    fields
}
