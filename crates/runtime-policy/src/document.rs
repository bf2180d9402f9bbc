//! The policy document: TOML (initdata) around Rego.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, GzBuilder, read::GzDecoder};
use manifest::PolicyHash;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    PolicyError, container,
    deployment::Deployment,
    environment::hostname,
    error::Finding,
    image::{ContainerImage, Images},
    settings::{Annotations, Kata, Settings},
    workload::{Workload, below_field},
};

/// The rules, which are the same for every pod.
pub const RULES: &str = include_str!("rules.rego");
/// The annotation in which the runtime looks for a pod's document.
pub const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// Largest document, in bytes, after decompression.
const MAX_BYTES: u64 = 16 << 20;
const DATA: &str = "\npolicy_data := ";
/// One container's part. It is a function, so that the agent evaluates only the one that a request is about.
const CONTAINER: &str = "\npolicy_container(";
/// Longest line, in bytes, that every version of the agent's evaluator reads.
pub const MAX_LINE_BYTES: usize = 1024;
/// Begins a string that would make a longer one, in pieces.
const PIECES: &str = "concat(\"\", [";

#[derive(Serialize, Deserialize)]
struct InitData {
    version: String,
    algorithm: String,
    data: Files,
}

#[derive(Serialize, Deserialize)]
struct Files {
    #[serde(rename = "policy.rego")]
    policy: String,
}

/// A policy document: what is measured into HOSTDATA or MRCONFIGID, and by which the manifest names the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyDocument {
    bytes: Vec<u8>,
    rego: String,
}

/// Why bytes are not a policy document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Too large, before or after decompression.
    #[error("a policy document of more than {MAX_BYTES} bytes is not read")]
    TooLarge,
    /// Not base64, or not gzip.
    #[error("the annotation is not gzip in base64: {0}")]
    Encoding(String),
    /// Not initdata.
    #[error("not an initdata document: {0}")]
    Toml(String),
    /// Another version or algorithm.
    #[error("{field}: expected {expected:?}, got {found:?}")]
    Unsupported {
        /// Field of the document.
        field: &'static str,
        /// What is understood.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The Rego does not end with the data that `generate` writes.
    #[error("the policy has no policy_data and policy_container; it was not made by this contrast generate")]
    NoData,
}

impl PolicyDocument {
    /// The document around a policy: the same policy gives the same bytes.
    pub fn new(rego: String) -> Self {
        let data = Files { policy: rego.clone() };
        let document = InitData { version: "0.1.0".into(), algorithm: "sha256".into(), data };
        Self { bytes: toml::to_string(&document).unwrap_or_default().into_bytes(), rego }
    }

    /// Reads a document's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(DocumentError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| DocumentError::Toml(error.to_string()))?;
        let document: InitData =
            toml::from_str(text).map_err(|error| DocumentError::Toml(error.to_string().trim().to_owned()))?;
        let expect = |field, expected, found: &String| match found == expected {
            true => Ok(()),
            false => Err(DocumentError::Unsupported { field, expected, found: found.clone() }),
        };
        expect("version", "0.1.0", &document.version)?;
        // SHA-256 fits both HOSTDATA and, padded with zeros, MRCONFIGID.
        expect("algorithm", "sha256", &document.algorithm)?;
        Ok(Self { bytes: bytes.to_vec(), rego: document.data.policy })
    }

    /// Reads the annotation's text.
    pub fn from_annotation(text: &str) -> Result<Self, DocumentError> {
        let encoding = |error: &dyn std::fmt::Display| DocumentError::Encoding(error.to_string());
        let packed = STANDARD.decode(text.trim()).map_err(|error| encoding(&error))?;
        let mut bytes = Vec::new();
        let mut reader = std::io::Read::take(GzDecoder::new(packed.as_slice()), MAX_BYTES + 1);
        std::io::Read::read_to_end(&mut reader, &mut bytes).map_err(|error| encoding(&error))?;
        Self::parse(&bytes)
    }

    /// The annotation's text: gzip without time or name, so that the same document gives the same text.
    pub fn to_annotation(&self) -> String {
        let mut gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
        let packed = gzip.write_all(&self.bytes).and_then(|()| gzip.finish());
        STANDARD.encode(packed.unwrap_or_default()) // writing to memory does not fail
    }

    /// The document's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The policy.
    pub fn rego(&self) -> &str {
        &self.rego
    }

    /// SHA-256 of the bytes: HOSTDATA, the first 32 bytes of MRCONFIGID, and the key in the manifest.
    pub fn hash(&self) -> PolicyHash {
        PolicyHash::of(&self.bytes)
    }

    /// MRCONFIGID of a TDX guest with this document: the digest and zeros.
    pub fn mr_config_id(&self) -> [u8; 48] {
        let mut id = [0; 48];
        id[..32].copy_from_slice(self.hash().as_bytes());
        id
    }

    /// The rules, without what is this pod's own.
    pub fn rules(&self) -> &str {
        self.rego.rsplit_once(DATA).map_or(&self.rego, |(rules, _)| rules)
    }

    /// The part of the policy that is this pod's own: `containers` and what is common to them.
    pub fn data(&self) -> Result<Value, DocumentError> {
        let (_, data) = self.rego.rsplit_once(DATA).ok_or(DocumentError::NoData)?;
        let mut parts = data.split(CONTAINER);
        let read = |folded: &str| unfold(folded).and_then(|json| serde_json::from_str::<Value>(&json).ok());
        let mut data = parts.next().and_then(read).ok_or(DocumentError::NoData)?;
        let container = |part: &str| part.split_once(") := ").and_then(|(_, folded)| read(folded));
        let containers: Vec<Value> =
            parts.map(container).collect::<Option<_>>().ok_or(DocumentError::NoData)?;
        if containers.is_empty() {
            return Err(DocumentError::NoData); // every pod has the sandbox's own
        }
        data["containers"] = Value::Array(containers);
        Ok(data)
    }

    /// Number of the first line that an older agent would refuse to read, from 1, and its length in bytes.
    pub fn long_line(&self) -> Option<(usize, usize)> {
        let lines = (1..).zip(self.rego.lines());
        lines.map(|(number, line)| (number, line.len())).find(|(_, length)| *length > MAX_LINE_BYTES)
    }
}

/// Pretty-printed JSON with long strings, such as certificates in variables, in pieces.
fn fold(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for line in json.lines() {
        if line.len() <= MAX_LINE_BYTES || !fold_line(line, &mut text) {
            text.push_str(line);
        }
        text.push('\n');
    }
    text.pop();
    text
}

/// `"key": "string",` or `"string",` in pieces; false if it is something else.
fn fold_line(line: &str, text: &mut String) -> bool {
    let body = line.trim_start();
    let indent = &line[..line.len() - body.len()];
    let (body, comma) = body.strip_suffix(',').map_or((body, ""), |body| (body, ","));
    let mut strings = serde_json::Deserializer::from_str(body).into_iter::<String>();
    let Some(Ok(first)) = strings.next() else { return false };
    let (key, rest) = body.split_at(strings.byte_offset());
    let (key, value) = match rest.strip_prefix(": ") {
        Some(rest) => match serde_json::from_str(rest) {
            Ok(value) => (format!("{key}: "), value),
            Err(_) => return false,
        },
        None => (String::new(), first),
    };
    // A character takes at most 12 bytes (two escapes).
    let characters: Vec<char> = value.chars().collect();
    let pieces: Vec<String> = characters
        .chunks(MAX_LINE_BYTES / 16)
        .map(|piece| json!(piece.iter().collect::<String>()).to_string())
        .collect();
    text.push_str(&format!("{indent}{key}{PIECES}\n{indent}"));
    text.push_str(&pieces.join(&format!(",\n{indent}")));
    text.push_str(&format!("\n{indent}]){comma}"));
    true
}

/// What [`fold`] made of it, as JSON again.
fn unfold(data: &str) -> Option<String> {
    let mut text = String::with_capacity(data.len());
    let mut pieces: Option<String> = None;
    for line in data.lines() {
        match &mut pieces {
            None => match line.strip_suffix(PIECES) {
                Some(before) => {
                    text.push_str(before);
                    pieces = Some(String::new());
                }
                None => text.extend([line, "\n"]),
            },
            Some(value) => match line.trim_start().strip_prefix("])") {
                Some(comma) => {
                    text.extend([json!(value).to_string().as_str(), comma, "\n"]);
                    pieces = None;
                }
                None => {
                    let piece = line.trim().trim_end_matches(',');
                    value.push_str(&serde_json::from_str::<String>(piece).ok()?);
                }
            },
        }
    }
    Some(text)
}

/// A pod and its policy.
#[derive(Debug, Clone)]
pub struct PodPolicy {
    /// The pod.
    pub workload: Workload,
    /// Its document.
    pub document: PolicyDocument,
}

/// Names of `AppArmor` profiles that requests may have: nodes name the one that the pod asks for.
fn apparmor_profiles(workload: &Workload, settings: &Settings) -> Vec<Value> {
    let mut profiles: Vec<Value> = settings.kata.apparmor_profiles.iter().map(|name| json!(name)).collect();
    let spec = &workload.spec;
    let pod = spec.security_context.iter().filter_map(|context| context.app_armor_profile.as_ref());
    let contexts = spec.all_containers().filter_map(|(_, container)| container.security_context.as_ref());
    let containers = contexts.filter_map(|context| context.app_armor_profile.as_ref());
    let named = pod.chain(containers).filter_map(|profile| profile.localhost_profile.as_deref());
    profiles.extend(named.map(Value::from));
    profiles
}

/// The policy of one pod. `rules` are usually [`RULES`].
pub(crate) fn policy(
    deployment: &Deployment,
    workload: &Workload,
    images: &Images,
    settings: &Settings,
    rules: &str,
    warnings: &mut Vec<Finding>,
) -> Result<PolicyDocument, PolicyError> {
    let place = deployment.place(workload);
    let spec_path = workload.spec_path();
    let mut containers = vec![container::pause(workload, settings)];
    let mut after = vec!["pause".to_owned()];
    let mut like_names = BTreeSet::new();
    let names: Vec<&String> = workload.spec.all_containers().map(|(_, spec)| &spec.name).collect();
    for (index, (field, spec)) in workload.spec.all_containers().enumerate() {
        if spec.name == "pause" {
            let message = "the sandbox's own container is called so; give this one another name";
            let path = below_field(&spec_path, &format!("{field}.name"));
            return Err(place.error(&workload.kind, &workload.name, &path, message));
        }
        let reference = spec.image.as_deref().unwrap_or_default();
        let unread = ContainerImage::unread(reference);
        let image = images.get(reference).unwrap_or(&unread);
        let once = field.starts_with("init") && spec.restart_policy.as_deref() != Some("Always");
        let later =
            if once { names[index + 1..].iter().map(|&name| name.clone()).collect() } else { Vec::new() };
        let order = container::Order { after: after.clone(), before: later };
        let entry = container::container(workload, spec, image, &deployment.objects, settings, &order);
        let at = |below: &str| below_field(&spec_path, &format!("{field}.{below}"));
        let entry = entry
            .map_err(|(below, message)| place.error(&workload.kind, &workload.name, &at(&below), message))?;
        for (below, text) in &entry.warnings {
            warnings.push(place.finding(&workload.kind, &workload.name, &at(below), text.clone()));
        }
        like_names.extend(entry.like_names);
        containers.push(entry.entry);
        if field.starts_with("init") {
            after.push(spec.name.clone());
        }
    }
    let Annotations { ignored, ignored_of_sandbox, .. } = &settings.annotations;
    let lists = [(ignored, "all"), (ignored_of_sandbox, "pause")];
    let ignored: BTreeMap<&String, &str> =
        lists.into_iter().flat_map(|(keys, of)| keys.iter().map(move |key| (key, of))).collect();
    let Kata {
        shim,
        containerd,
        oci_version,
        root_path,
        cgroups_path_characters,
        device_types,
        device_vm_path,
        gpu_types,
        gpu_device,
        single_instance,
        ..
    } = &settings.kata;
    let data = json!({
        "containers": containers.iter().map(|container| &container.name).collect::<Vec<_>>(),
        "runtime": { "shim": shim, "containerd": containerd },
        "sandbox": {
            "name": { "pattern": format!("^{}$", workload.pod_name) },
            "namespace": workload.namespace,
            "hostname": { "pattern": hostname(workload).pattern_with("$(sandbox-name)", &workload.pod_name) },
            "storages": settings.sandbox.storages,
        },
        "common": {
            "oci_version": oci_version,
            "root_path": root_path,
            "cgroups_path_characters": cgroups_path_characters,
            "apparmor_profiles": apparmor_profiles(workload, settings),
            "device_types": device_types,
            "device_vm_path": device_vm_path,
            "gpu_types": gpu_types,
            "gpu_device": gpu_device,
            "single_instance": single_instance,
            "ignored_annotations": ignored,
            "image_storage": settings.images.storage,
            "image_without_metadata": settings.shim().leaves_metadata_out(),
            "mount_options": settings.mounts.more_options,
            "like_names": like_names,
        },
        "request_defaults": settings.requests,
    });
    let text = |value: &Value| fold(&serde_json::to_string_pretty(value).unwrap_or_default());
    let mut rego = format!("{rules}{DATA}{}\n", text(&data));
    for container in &containers {
        // By way of a value, whose keys are in order.
        let container = json!(container);
        rego.push_str(&format!("{CONTAINER}{}) := {}\n", container["name"], text(&container)));
    }
    Ok(PolicyDocument::new(rego))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_strings_are_folded_and_read_back() {
        let long = "-----BEGIN CERTIFICATE-----\n\"quoted\", \u{1f600}\\ ]),\t".repeat(60);
        let data = json!({ "a": long, "b": [long, "short", { "c": long }], "d": {}, "e": "concat(\"\", [" });
        let folded = fold(&serde_json::to_string_pretty(&data).unwrap());
        assert!(folded.lines().all(|line| line.len() <= MAX_LINE_BYTES));
        let read: Value = serde_json::from_str(&unfold(&folded).unwrap()).unwrap();
        assert_eq!(read, data);
        // A piece that is damaged is no policy, not another one.
        let container = format!("{CONTAINER}\"a\") := {{}}\n");
        let with = |folded: &str| {
            PolicyDocument::new(format!("package agent_policy\n{DATA}{folded}\n{container}")).data()
        };
        assert!(with(&folded).is_ok());
        assert!(with(&folded.replace("quoted", "quo\"ted")).is_err());
    }
}
