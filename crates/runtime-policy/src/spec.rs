//! The parts of a pod's specification that decide what runs (Kubernetes API, core/v1 `PodSpec`).
//!
//! Only what ends up in a request to the agent is typed. Fields that only the cluster's scheduler or
//! network reads are ignored; what would change the VM and is not understood is refused by
//! [`PodSpec::refuse_unsupported`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A pod's specification.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) runtime_class_name: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) restart_policy: Option<String>,
    pub(crate) subdomain: Option<String>,
    pub(crate) hostname_override: Option<String>,
    #[serde(rename = "setHostnameAsFQDN")]
    pub(crate) set_hostname_as_fqdn: Option<bool>,
    /// For the pod as a whole (Kubernetes 1.34).
    pub(crate) resources: Option<Resources>,
    pub(crate) init_containers: Option<Vec<Container>>,
    pub(crate) containers: Vec<Container>,
    pub(crate) volumes: Option<Vec<Volume>>,
    pub(crate) security_context: Option<PodSecurityContext>,
    pub(crate) automount_service_account_token: Option<bool>,
    pub(crate) enable_service_links: Option<bool>,
    pub(crate) share_process_namespace: Option<bool>,
    #[serde(rename = "hostNetwork")]
    pub(crate) host_network: Option<bool>,
    #[serde(rename = "hostPID")]
    pub(crate) host_pid: Option<bool>,
    #[serde(rename = "hostIPC")]
    pub(crate) host_ipc: Option<bool>,
    #[serde(rename = "hostUsers")]
    pub(crate) host_users: Option<bool>,
    pub(crate) ephemeral_containers: Option<Vec<Value>>,
}

/// A container of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: Option<String>,
    pub(crate) command: Option<Vec<String>>,
    pub(crate) args: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) env: Option<Vec<EnvVar>>,
    pub(crate) env_from: Option<Vec<EnvFrom>>,
    pub(crate) volume_mounts: Option<Vec<VolumeMount>>,
    pub(crate) volume_devices: Option<Vec<VolumeDevice>>,
    pub(crate) security_context: Option<SecurityContext>,
    pub(crate) liveness_probe: Option<Probe>,
    pub(crate) readiness_probe: Option<Probe>,
    pub(crate) startup_probe: Option<Probe>,
    pub(crate) lifecycle: Option<Lifecycle>,
    pub(crate) restart_policy: Option<String>,
    pub(crate) tty: Option<bool>,
    pub(crate) resources: Option<Resources>,
    pub(crate) termination_message_path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Resources {
    pub(crate) limits: Option<BTreeMap<String, Value>>,
    pub(crate) requests: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) value_from: Option<EnvSource>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnvSource {
    pub(crate) field_ref: Option<FieldRef>,
    pub(crate) resource_field_ref: Option<ResourceFieldRef>,
    pub(crate) config_map_key_ref: Option<KeyRef>,
    pub(crate) secret_key_ref: Option<KeyRef>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FieldRef {
    pub(crate) field_path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ResourceFieldRef {
    pub(crate) resource: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct KeyRef {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) optional: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnvFrom {
    pub(crate) prefix: Option<String>,
    pub(crate) config_map_ref: Option<ObjectRef>,
    pub(crate) secret_ref: Option<ObjectRef>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ObjectRef {
    pub(crate) name: String,
    pub(crate) optional: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
    pub(crate) sub_path: Option<String>,
    pub(crate) sub_path_expr: Option<String>,
    pub(crate) read_only: Option<bool>,
    pub(crate) mount_propagation: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeDevice {
    pub(crate) name: String,
    pub(crate) device_path: String,
}

/// A volume: its name, and its source under the key that names its kind.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Volume {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) source: BTreeMap<String, Value>,
}

impl Volume {
    /// Its kind and source. One without a source is an `emptyDir`, as the API server fills it in.
    pub(crate) fn kind(&self) -> (&str, &Value) {
        let mut sources = self.source.iter().filter(|(_, source)| !source.is_null());
        sources.next().map_or(("emptyDir", &Value::Null), |(kind, source)| (kind.as_str(), source))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSecurityContext {
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) supplemental_groups: Option<Vec<u32>>,
    pub(crate) fs_group: Option<u32>,
    pub(crate) sysctls: Option<Vec<Sysctl>>,
    pub(crate) supplemental_groups_policy: Option<String>,
    pub(crate) app_armor_profile: Option<AppArmorProfile>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sysctl {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SecurityContext {
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) privileged: Option<bool>,
    pub(crate) read_only_root_filesystem: Option<bool>,
    pub(crate) allow_privilege_escalation: Option<bool>,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) proc_mount: Option<String>,
    pub(crate) app_armor_profile: Option<AppArmorProfile>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AppArmorProfile {
    pub(crate) localhost_profile: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    pub(crate) add: Option<Vec<String>>,
    pub(crate) drop: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Probe {
    pub(crate) exec: Option<Exec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Lifecycle {
    pub(crate) post_start: Option<Probe>,
    pub(crate) pre_stop: Option<Probe>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Exec {
    pub(crate) command: Vec<String>,
}

/// Why a specification cannot become a policy: where, relative to the specification, and the rule.
pub(crate) type Unsupported = (String, &'static str);

impl PodSpec {
    /// Refuses what would run outside the VM, or what no policy could hold.
    pub(crate) fn refuse_unsupported(&self) -> Result<(), Unsupported> {
        let host =
            [(self.host_network, "hostNetwork"), (self.host_pid, "hostPID"), (self.host_ipc, "hostIPC")];
        if let Some((_, field)) = host.iter().find(|(flag, _)| *flag == Some(true)) {
            return Err(((*field).to_owned(), "a confidential VM shares nothing with its host; remove it"));
        }
        if self.host_users == Some(false) {
            return Err(("hostUsers".into(), "user namespaces are the host's to map; remove it"));
        }
        if self.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(("ephemeralContainers".into(), "debug containers are not covered by a policy"));
        }
        if self.containers.is_empty() {
            return Err(("containers".into(), "at least one container is needed"));
        }
        self.refuse_resources()?;
        self.refuse_volumes()?;
        let mut names = std::collections::BTreeSet::new();
        for (path, container) in self.all_containers() {
            if container.name.is_empty() {
                return Err((format!("{path}.name"), "a name is needed"));
            }
            if !names.insert(&container.name) {
                return Err((format!("{path}.name"), "the name is taken by another container"));
            }
            if container.image.as_deref().unwrap_or_default().is_empty() {
                return Err((format!("{path}.image"), "an image is needed"));
            }
            let context = container.security_context.as_ref();
            if context
                .and_then(|context| context.proc_mount.as_deref())
                .is_some_and(|mount| mount != "Default")
            {
                return Err((format!("{path}.securityContext.procMount"), "only \"Default\" can be held"));
            }
        }
        Ok(())
    }

    /// Limits for the pod as a whole are for what its containers can share.
    fn refuse_resources(&self) -> Result<(), Unsupported> {
        let resources = self.resources.iter();
        let fields = resources.flat_map(|both| [("limits", &both.limits), ("requests", &both.requests)]);
        for (field, amounts) in fields {
            let shared =
                |name: &String| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-");
            if !amounts.iter().flatten().all(|(name, _)| shared(name)) {
                let rule =
                    "a pod as a whole has cpu, memory and huge pages; name other resources in a container";
                return Err((format!("resources.{field}"), rule));
            }
        }
        Ok(())
    }

    /// As the API server would.
    fn refuse_volumes(&self) -> Result<(), Unsupported> {
        let mut names = std::collections::BTreeSet::new();
        for (index, volume) in self.volumes.iter().flatten().enumerate() {
            if !names.insert(&volume.name) {
                return Err((format!("volumes[{index}].name"), "the name is taken by another volume"));
            }
            if volume.source.values().filter(|source| !source.is_null()).count() > 1 {
                return Err((format!("volumes[{index}]"), "a volume has one source: remove the others"));
            }
        }
        Ok(())
    }

    /// Init containers, then containers, with their place in the specification.
    pub(crate) fn all_containers(&self) -> impl Iterator<Item = (String, &Container)> {
        let init = self.init_containers.iter().flatten().enumerate();
        let init = init.map(|(index, container)| (format!("initContainers[{index}]"), container));
        let main = self.containers.iter().enumerate();
        init.chain(main.map(|(index, container)| (format!("containers[{index}]"), container)))
    }
}

impl PodSpec {
    /// Reads a specification; an error has the field's place and what was expected.
    pub(crate) fn deserialize_at(
        path: &yaml_edit::Path,
        value: &Value,
    ) -> Result<Self, (yaml_edit::Path, String)> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let mut at = path.clone();
            for segment in error.path() {
                at = match segment {
                    serde_path_to_error::Segment::Seq { index } => at.then(*index),
                    serde_path_to_error::Segment::Map { key } => at.then(key.as_str()),
                    _ => at,
                };
            }
            (at, error.inner().to_string())
        })
    }
}
