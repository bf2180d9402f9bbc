//! What is the same for all pods of a deployment, and what a user may change.

use serde_json::{Map, Value};

use crate::{
    pattern,
    shim::{CONTAINERD, Shim},
};

const DEFAULTS: &str = include_str!("settings.json");
/// Largest settings file, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Facts about the runtime, and the requests that are opened. The text form is `settings.json` in this
/// crate; a user's file is laid over it (RFC 7396: objects are merged, anything else replaced).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings(Value);

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
        // The file is part of the program; a test reads it.
        Self(serde_json::from_str(DEFAULTS).unwrap_or(Value::Null))
    }
}

impl Settings {
    /// The defaults with a user's file laid over them.
    pub fn overlay(text: &[u8]) -> Result<Self, SettingsError> {
        if text.len() > MAX_BYTES {
            return Err(SettingsError::TooLarge { found: text.len() });
        }
        let user: Value =
            serde_json::from_slice(text).map_err(|error| SettingsError::Json(error.to_string()))?;
        let mut settings = Self::default();
        merge(&mut settings.0, &user, "")?;
        settings.check_env()?;
        settings.check_names()?;
        Ok(settings)
    }

    fn check_names(&self) -> Result<(), SettingsError> {
        let unknown = |path, found, expected| Err(SettingsError::Name { path, found, expected });
        let shim = self.text(&["kata", "shim"]);
        if Shim::named(&shim).is_none() {
            return unknown("kata.shim", shim, Shim::names());
        }
        let containerd = self.text(&["kata", "containerd"]);
        match CONTAINERD.contains(&containerd.as_str()) {
            true => Ok(()),
            false => unknown("kata.containerd", containerd, CONTAINERD.join(", ")),
        }
    }

    /// Whose requests policies are for.
    pub(crate) fn shim(&self) -> Shim {
        Shim::named(&self.text(&["kata", "shim"])).unwrap_or(Shim::Any)
    }

    /// The settings for a runtime bundle that names its shim and its containerd. Bundles that differ, or that name another than
    /// the user's settings do, are refused: a pod's policy is for one.
    pub fn with_sender(mut self, sender: [Option<&str>; 2]) -> Result<Self, SettingsError> {
        for ((path, key), name) in
            [("kata.shim", "shim"), ("kata.containerd", "containerd")].into_iter().zip(sender)
        {
            let Some(name) = name else { continue };
            match self.text(&["kata", key]) {
                known if known == "any" || known == name => self.0["kata"][key] = name.into(),
                known => return Err(SettingsError::Name { path, found: name.to_owned(), expected: known }),
            }
        }
        self.check_names()?;
        Ok(self)
    }

    /// What entries of the environment may look like must be lists of regular expressions.
    fn check_env(&self) -> Result<(), SettingsError> {
        for (name, patterns) in self.object(&["env"]) {
            let list = || SettingsError::Type { path: format!("env.{name}"), expected: "a list" };
            for (index, found) in patterns.as_array().ok_or_else(list)?.iter().enumerate() {
                let path = format!("env.{name}[{index}]");
                let text =
                    found.as_str().ok_or(SettingsError::Type { path: path.clone(), expected: "a text" })?;
                let wrong = |message| SettingsError::Pattern { path, message, found: text.to_owned() };
                pattern::check(text).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// The defaults as text, to start from.
    pub fn default_text() -> &'static str {
        DEFAULTS
    }

    /// A setting by its path; null if there is none.
    pub(crate) fn at(&self, path: &[&str]) -> Value {
        path.iter().try_fold(&self.0, |value, key| value.get(*key)).cloned().unwrap_or(Value::Null)
    }

    pub(crate) fn object(&self, path: &[&str]) -> Map<String, Value> {
        match self.at(path) {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    pub(crate) fn text(&self, path: &[&str]) -> String {
        self.at(path).as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn strings(&self, path: &[&str]) -> Vec<String> {
        let value = self.at(path);
        value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
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
        assert_eq!(settings.at(&["requests", "ReadStreamRequest"]), true);
        assert_eq!(settings.strings(&["env", "proxy"]), ["^HTTP_PROXY=x$"]);
        let mut back = settings.clone();
        back.0["requests"]["ReadStreamRequest"] = json!(false);
        back.0["env"].as_object_mut().unwrap().remove("proxy");
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
        assert_eq!(wrong, "env.proxy: expected a list, as in the default settings");
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
    fn the_defaults_are_json() {
        assert!(Settings::default().0.is_object());
    }
}
