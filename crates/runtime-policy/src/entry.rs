//! A container as it stands in a policy: the names that `rules.rego` reads, in one place.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::{environment::EnvPolicy, settings::Expected};

/// One container's entry.
#[derive(Debug, Serialize)]
pub(crate) struct ContainerEntry {
    pub(crate) name: String,
    #[serde(rename = "OCI")]
    pub(crate) oci: OciEntry,
    /// One of these it runs as.
    pub(crate) users: Vec<UserEntry>,
    pub(crate) image: Expected,
    /// What the image's name must end with; null for an image without a digest. The sandbox's own container has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_digest: Option<Value>,
    /// Whether a request may name no image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_optional: Option<bool>,
    /// Other forms of mounts, by destination.
    pub(crate) other_mounts: BTreeMap<String, Vec<Value>>,
    /// Destinations of what the guest makes.
    pub(crate) made_mounts: Vec<String>,
    /// Destinations of what may be missing.
    pub(crate) optional_mounts: Vec<String>,
    /// For each mount that lies in others, those others.
    pub(crate) nested_mounts: BTreeMap<String, Vec<String>>,
    /// Destinations whose sources end with one name.
    pub(crate) like_named_mounts: Vec<Vec<String>>,
    pub(crate) storages: BTreeMap<String, Value>,
    pub(crate) other_storages: BTreeMap<String, Vec<Value>>,
    pub(crate) devices: Vec<String>,
    /// How many whole GPUs; the sandbox's own container has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpus: Option<u64>,
    pub(crate) sandbox_pidns: bool,
    /// Commands of probes and hooks.
    pub(crate) exec_commands: Value,
    /// Those that must have been started before.
    pub(crate) after: Vec<String>,
    /// Those none of which may have been created.
    pub(crate) before: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct OciEntry {
    pub(crate) root: RootEntry,
    pub(crate) hostname: Value,
    pub(crate) annotations: BTreeMap<&'static str, Expected>,
    pub(crate) process: ProcessEntry,
    /// By destination.
    pub(crate) mounts: Value,
    pub(crate) linux: LinuxEntry,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RootEntry {
    pub(crate) readonly: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ProcessEntry {
    pub(crate) args: Value,
    pub(crate) cwd: String,
    pub(crate) terminal: bool,
    pub(crate) no_new_privileges: bool,
    pub(crate) capabilities: CapabilitySets,
    /// What a privileged container has of them whatever the node knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capabilities_at_least: Option<Vec<String>>,
    #[serde(flatten)]
    pub(crate) environment: EnvPolicy,
}

/// Without `CAP_`, as the rules compare them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CapabilitySets {
    pub(crate) ambient: Vec<String>,
    pub(crate) bounding: Vec<String>,
    pub(crate) effective: Vec<String>,
    pub(crate) inheritable: Vec<String>,
    pub(crate) permitted: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct LinuxEntry {
    pub(crate) namespaces: BTreeMap<String, bool>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) rootfs_propagation: &'static str,
    pub(crate) sysctl: SysctlEntry,
}

/// Settings of the kernel that a container may have, and those that it must have.
#[derive(Debug, Serialize)]
pub(crate) struct SysctlEntry {
    pub(crate) allowed: BTreeMap<String, String>,
    pub(crate) required: BTreeSet<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct UserEntry {
    #[serde(rename = "UID")]
    pub(crate) uid: u32,
    #[serde(rename = "GID")]
    pub(crate) gid: u32,
    #[serde(rename = "AdditionalGids")]
    pub(crate) additional_gids: BTreeSet<u32>,
}
