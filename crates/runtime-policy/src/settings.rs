//! What is the same for all pods of a deployment, and what a user may change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    pattern,
    shim::{CONTAINERD, Shim},
};

const DEFAULTS: &str = include_str!("settings.json");
/// Largest settings file, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Facts about the runtime, and the requests that are opened. The text form is `settings.json` in this
/// crate; a user's file is laid over it (RFC 7396: objects are merged, anything else replaced), and what comes of that
/// must be of these types: a name that no setting has is refused, whoever wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub(crate) kata: Kata,
    pub(crate) sandbox: Sandbox,
    pub(crate) annotations: Annotations,
    pub(crate) process: Process,
    /// Regular expressions of entries of the environment, by a name for people.
    pub(crate) env: BTreeMap<String, Vec<String>>,
    pub(crate) mounts: MountGroups,
    pub(crate) volumes: Volumes,
    pub(crate) images: ImageSettings,
    pub(crate) requests: Requests,
}

/// A text that a request must have, or what it must look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Expected {
    Text(String),
    Pattern { pattern: String },
    Template { template: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kata {
    pub(crate) shim: String,
    pub(crate) containerd: String,
    pub(crate) oci_version: String,
    pub(crate) root_path: Expected,
    pub(crate) shared_prefix: String,
    pub(crate) cgroups_path_characters: String,
    pub(crate) namespaces: BTreeMap<String, bool>,
    /// `None`: a request that names none.
    pub(crate) apparmor_profiles: Vec<Option<String>>,
    pub(crate) device_types: Vec<String>,
    pub(crate) device_vm_path: String,
    pub(crate) gpu_types: Vec<String>,
    pub(crate) gpu_device: String,
    pub(crate) single_instance: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sandbox {
    pub(crate) pause: Pause,
    pub(crate) storages: Vec<StorageSetting>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pause {
    pub(crate) image: Expected,
    pub(crate) args: Vec<String>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A storage of the guest's. Its `fs_group` is the agent's own structure, or null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StorageSetting {
    pub(crate) driver: String,
    pub(crate) driver_options: Vec<String>,
    /// None for an image, whose source is the image's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    pub(crate) fstype: String,
    pub(crate) options: Vec<String>,
    pub(crate) mount_point: String,
    pub(crate) fs_group: Option<Value>,
    pub(crate) shared: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Annotations {
    pub(crate) bundle_path: Expected,
    pub(crate) log_directory: Expected,
    pub(crate) ignored: Vec<String>,
    pub(crate) ignored_of_sandbox: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) default_path: String,
    pub(crate) default_capabilities: Vec<String>,
    pub(crate) all_capabilities: Vec<String>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sandbox_sysctls: BTreeMap<String, String>,
}

/// Mounts by destination.
pub(crate) type MountGroup = BTreeMap<String, MountSetting>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountGroups {
    pub(crate) more_options: BTreeMap<String, Vec<String>>,
    pub(crate) always: MountGroup,
    pub(crate) pause: MountGroup,
    pub(crate) container: MountGroup,
    pub(crate) unprivileged: MountGroup,
    pub(crate) privileged: MountGroup,
    pub(crate) service_account: MountGroup,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountSetting {
    pub(crate) type_: String,
    pub(crate) source: String,
    /// A volume's follow from the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) options: Option<Vec<String>>,
    /// A request may lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) optional: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volumes {
    pub(crate) empty_dir: MadeVolume,
    pub(crate) memory: MadeVolume,
    pub(crate) copied: CopiedVolume,
    pub(crate) host_path_destinations: Vec<String>,
}

/// A volume that the guest makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MadeVolume {
    pub(crate) mount: MountSetting,
    pub(crate) storage: StorageSetting,
}

/// A volume whose files the host copies in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CopiedVolume {
    pub(crate) mount: MountSetting,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageSettings {
    pub(crate) storage: StorageSetting,
}

/// What requests may be, and may contain; `rules.rego` reads it as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct Requests {
    #[serde(rename = "AddARPNeighborsRequest")]
    pub(crate) add_arp_neighbors_request: NeighborLimits,
    pub(crate) close_stdin_request: bool,
    pub(crate) copy_file_request: Vec<String>,
    pub(crate) exec_process_request: ExecLimits,
    pub(crate) read_stream_request: bool,
    pub(crate) update_ephemeral_mounts_request: bool,
    pub(crate) update_interface_request: InterfaceLimits,
    pub(crate) update_routes_request: RouteLimits,
    pub(crate) write_stream_request: bool,
    #[serde(rename = "loopback_regex")]
    pub(crate) loopback_regex: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NeighborLimits {
    pub(crate) forbidden_device_names: Vec<String>,
    pub(crate) allowed_states: Vec<u32>,
    pub(crate) allowed_flags: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecLimits {
    /// Each is a program with its arguments.
    pub(crate) allowed_commands: Vec<Vec<String>>,
    pub(crate) regex: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InterfaceLimits {
    pub(crate) allowed_raw_flags: Vec<u32>,
    pub(crate) forbidden_names: Vec<String>,
    pub(crate) forbidden_hw_addrs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteLimits {
    pub(crate) forbidden_device_names: Vec<String>,
}

/// Why settings were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Too large.
    #[error("{found} bytes, at most {MAX_BYTES} are read")]
    TooLarge {
        /// Size found.
        found: usize,
    },
    /// Not JSON; the message has line and column.
    #[error("{0}")]
    Json(String),
    /// A key that no setting has, which would silently do nothing.
    #[error("{path}: there is no such setting")]
    Unknown {
        /// JSON path.
        path: String,
    },
    /// A regular expression that is none.
    #[error("{path}: {message} in the regular expression {found:?}")]
    Pattern {
        /// JSON path.
        path: String,
        /// What is wrong.
        message: String,
        /// The text.
        found: String,
    },
    /// A name that nothing has.
    #[error("{path}: {found:?} is not one of {expected}")]
    Name {
        /// JSON path.
        path: &'static str,
        /// The name.
        found: String,
        /// Those that exist.
        expected: String,
    },
    /// A value that nothing can be done with.
    #[error("{path}: {message}")]
    Value {
        /// JSON path.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A value of another type than the default's.
    #[error("{path}: expected {expected}, as in the default settings")]
    Type {
        /// JSON path.
        path: String,
        /// Type of the default.
        expected: &'static str,
    },
}

impl Default for Settings {
    fn default() -> Self {
        match serde_json::from_str(DEFAULTS) {
            Ok(settings) => settings,
            Err(error) => unreachable!("a part of the program, which a test reads: {error}"),
        }
    }
}

impl Settings {
    /// The defaults with a user's file laid over them.
    pub fn overlay(text: &[u8]) -> Result<Self, SettingsError> {
        if text.len() > MAX_BYTES {
            return Err(SettingsError::TooLarge { found: text.len() });
        }
        let json = |error: serde_json::Error| SettingsError::Json(error.to_string());
        let user: Value = serde_json::from_slice(text).map_err(json)?;
        let mut merged: Value = serde_json::from_str(DEFAULTS).map_err(json)?;
        merge(&mut merged, &user, "")?;
        let settings: Self = serde_path_to_error::deserialize(merged).map_err(|error| {
            SettingsError::Value { path: error.path().to_string(), message: error.inner().to_string() }
        })?;
        settings.check_env()?;
        settings.check_names()?;
        Ok(settings)
    }

    fn check_names(&self) -> Result<(), SettingsError> {
        let unknown = |path, found: &String, expected| {
            Err(SettingsError::Name { path, found: found.clone(), expected })
        };
        let Kata { shim, containerd, .. } = &self.kata;
        if Shim::named(shim).is_none() {
            return unknown("kata.shim", shim, Shim::names());
        }
        match CONTAINERD.contains(&containerd.as_str()) {
            true => Ok(()),
            false => unknown("kata.containerd", containerd, CONTAINERD.join(", ")),
        }
    }

    /// Whose requests policies are for.
    pub(crate) fn shim(&self) -> Shim {
        Shim::named(&self.kata.shim).unwrap_or(Shim::Any)
    }

    /// The settings for a runtime bundle that names its shim and its containerd. Bundles that differ, or that name another than
    /// the user's settings do, are refused: a pod's policy is for one.
    pub fn with_sender(mut self, sender: [Option<&str>; 2]) -> Result<Self, SettingsError> {
        let known = [("kata.shim", &mut self.kata.shim), ("kata.containerd", &mut self.kata.containerd)];
        for ((path, known), name) in known.into_iter().zip(sender) {
            let Some(name) = name else { continue };
            if known != "any" && known != name {
                return Err(SettingsError::Name { path, found: name.to_owned(), expected: known.clone() });
            }
            name.clone_into(known);
        }
        self.check_names()?;
        Ok(self)
    }

    /// What entries of the environment may look like must be regular expressions.
    fn check_env(&self) -> Result<(), SettingsError> {
        for (name, patterns) in &self.env {
            for (index, text) in patterns.iter().enumerate() {
                let wrong = |message| SettingsError::Pattern {
                    path: format!("env.{name}[{index}]"),
                    message,
                    found: text.clone(),
                };
                pattern::check(text).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// The defaults as text, to start from.
    pub fn default_text() -> &'static str {
        DEFAULTS
    }
}

/// Objects whose keys are the user's to choose.
const OPEN: [&str; 10] = [
    "mounts.more_options",
    "kata.namespaces",
    "process.sandbox_sysctls",
    "env",
    "mounts.always",
    "mounts.pause",
    "mounts.container",
    "mounts.unprivileged",
    "mounts.privileged",
    "mounts.service_account",
];

fn merge(base: &mut Value, user: &Value, path: &str) -> Result<(), SettingsError> {
    let (Value::Object(base), Value::Object(user)) = (&mut *base, user) else {
        *base = user.clone();
        return Ok(());
    };
    for (key, value) in user {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match base.get_mut(key) {
            Some(known) => {
                let text = |value: &Value| {
                    value.is_string() || value.get("pattern").is_some() || value.get("template").is_some()
                };
                let same = std::mem::discriminant(known) == std::mem::discriminant(value)
                    || (text(known) && text(value))
                    || known.is_null();
                match value {
                    Value::Null if OPEN.contains(&path) => {
                        base.remove(key);
                    }
                    _ if !same => return Err(SettingsError::Type { path: below, expected: kind(known) }),
                    _ if text(value) => *known = value.clone(),
                    _ => merge(known, value, &below)?,
                }
            }
            None if OPEN.contains(&path) => {
                base.insert(key.clone(), value.clone());
            }
            None => return Err(SettingsError::Unknown { path: below }),
        }
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_users_file_changes_what_it_names_and_nothing_else() {
        let user =
            json!({ "requests": { "ReadStreamRequest": true }, "env": { "proxy": ["^HTTP_PROXY=x$"] } });
        let settings = Settings::overlay(user.to_string().as_bytes()).unwrap();
        assert!(settings.requests.read_stream_request);
        assert_eq!(settings.env["proxy"], ["^HTTP_PROXY=x$"]);
        let mut back = settings.clone();
        back.requests.read_stream_request = false;
        back.env.remove("proxy");
        assert_eq!(back, Settings::default());
    }

    #[test]
    fn what_would_do_nothing_or_means_something_else_is_refused_with_its_path() {
        let refusal = |user: Value| Settings::overlay(user.to_string().as_bytes()).unwrap_err().to_string();
        assert_eq!(
            refusal(json!({ "requests": { "ReadStream": true } })),
            "requests.ReadStream: there is no such setting"
        );
        let wrong = refusal(json!({ "requests": { "ReadStreamRequest": "yes" } }));
        assert_eq!(wrong, "requests.ReadStreamRequest: expected true or false, as in the default settings");
        let wrong = refusal(json!({ "env": { "proxy": ["^NO_PROXY=", "^(HTTP"] } }));
        assert_eq!(wrong, "env.proxy[1]: unclosed group in the regular expression \"^(HTTP\"");
        let wrong = refusal(json!({ "env": { "proxy": "^NO_PROXY=" } }));
        assert_eq!(wrong, "env.proxy: invalid type: string \"^NO_PROXY=\", expected a sequence");
        let wrong = refusal(
            json!({ "mounts": { "always": { "/x": { "type_": "proc", "source": "proc", "option": [] } } } }),
        );
        assert!(wrong.starts_with("mounts.always./x.option: unknown field `option`"), "{wrong}");
        let wrong = refusal(json!({ "requests": { "ExecProcessRequest": { "allowed_commands": ["ls"] } } }));
        assert!(
            wrong.starts_with("requests.ExecProcessRequest.allowed_commands[0]: invalid type"),
            "{wrong}"
        );
        assert!(Settings::overlay(b"{").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn a_bundle_names_its_shim_once() {
        let with = |settings: Settings, shim| settings.with_sender([Some(shim), None]);
        let settings = with(Settings::default(), "kata-go").unwrap();
        assert_eq!(settings.shim(), Shim::Go);
        let wrong = with(settings, "kata-rs").unwrap_err().to_string();
        assert_eq!(wrong, "kata.shim: \"kata-rs\" is not one of kata-go");
        let wrong = with(Settings::default(), "kata-ocaml").unwrap_err().to_string();
        assert_eq!(wrong, "kata.shim: \"kata-ocaml\" is not one of any, kata-go, kata-rs, contrast");
    }

    #[test]
    fn the_defaults_are_settings_and_lose_nothing() {
        let text: Value = serde_json::from_str(DEFAULTS).unwrap();
        assert_eq!(serde_json::to_value(Settings::default()).unwrap(), text);
    }
}
