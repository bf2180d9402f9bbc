//! `ConfigMaps` and Secrets of the input: their values are pinned where a pod's environment uses them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

/// Values by kind, namespace, name and key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects(BTreeMap<(&'static str, String, String), BTreeMap<String, String>>);

pub(crate) const CONFIG_MAP: &str = "ConfigMap";
pub(crate) const SECRET: &str = "Secret";

impl Objects {
    /// Takes in a resource if it is one of these kinds. A value that is not text is left out.
    pub(crate) fn add(&mut self, resource: &Value) {
        let kind = match resource.get("kind").and_then(Value::as_str) {
            Some("ConfigMap") => CONFIG_MAP,
            Some("Secret") => SECRET,
            _ => return,
        };
        let metadata = |key: &str| resource.pointer(&format!("/metadata/{key}")).and_then(Value::as_str);
        let Some(name) = metadata("name") else { return };
        let namespace = metadata("namespace").unwrap_or("default");
        let entries = |field: &str| resource.get(field).and_then(Value::as_object).into_iter().flatten();
        let decode = |value: &Value| {
            let bytes = STANDARD.decode(value.as_str()?.replace(['\n', ' '], "")).ok()?;
            String::from_utf8(bytes).ok()
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut values = BTreeMap::new();
        for (key, value) in entries("data") {
            let value = if kind == SECRET { decode(value) } else { text(value) };
            values.extend(value.map(|value| (key.clone(), value)));
        }
        // A ConfigMap's binaryData is for files: Kubernetes sets no variable from it.
        for (key, value) in entries("stringData").filter(|_| kind == SECRET) {
            values.extend(text(value).map(|value| (key.clone(), value)));
        }
        self.0.insert((kind, namespace.to_owned(), name.to_owned()), values);
    }

    pub(crate) fn get(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> Option<&BTreeMap<String, String>> {
        self.0.get(&(kind, namespace.to_owned(), name.to_owned()))
    }
}
