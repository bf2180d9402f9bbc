//! Kubernetes resources, printed: YAML with its comments, or values for the Helm chart.
//!
//! `deploy/resources` is the one source. Here `${NAME}` becomes a value, written as JSON, which is YAML and cannot
//! break out of its place; in `deploy/chart` it became a Helm expression, and a test holds the two together.

pub(crate) mod coordinator;
pub(crate) mod runtime;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::printer::{Printer, Refused};

/// What is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Resources, for `kubectl apply -f -`.
    #[default]
    Yaml,
    /// Values of the Helm chart in `deploy/chart`.
    HelmValues,
    /// The template in that chart.
    HelmTemplate,
}

/// A placeholder: its name, the Helm expression that stands for it, its value.
pub(crate) struct Slot {
    name: &'static str,
    /// Path in the chart's values; none for what follows from another one.
    path: Option<&'static str>,
    /// As the chart has it.
    expression: &'static str,
    value: Value,
}

/// Puts values in their places.
fn fill(template: &str, replacement: impl Fn(&str) -> Option<String>) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').context("a placeholder without an end")?;
        text += before;
        text += &replacement(name).with_context(|| format!("no value for ${{{name}}}"))?;
        rest = after;
    }
    Ok(text + rest)
}

/// The template with values.
pub(crate) fn yaml(template: &str, slots: &[Slot]) -> anyhow::Result<String> {
    fill(template, |name| slots.iter().find(|slot| slot.name == name).map(|slot| slot.value.to_string()))
}

/// The template as Helm wants it.
pub(crate) fn helm(part: &str, template: &str, slots: &[Slot]) -> anyhow::Result<String> {
    let text = fill(template, |name| {
        slots.iter().find(|slot| slot.name == name).map(|slot| format!("{{{{ {} }}}}", slot.expression))
    })?;
    Ok(format!("{{{{- if .Values.{part}.enabled }}}}\n{text}{{{{- end }}}}\n"))
}

/// The values of a part of the chart.
pub(crate) fn values(part: &str, slots: &[Slot]) -> Value {
    let mut inner = Map::new();
    inner.insert("enabled".into(), true.into());
    for slot in slots {
        if let Some(path) = slot.path {
            inner.insert(path.to_owned(), slot.value.clone());
        }
    }
    Value::Object(Map::from_iter([(part.to_owned(), Value::Object(inner))]))
}

/// Prints in the wanted form; `--output json` gives a List.
pub(crate) fn print(
    printer: &Printer,
    form: Form,
    part: &str,
    template: &str,
    slots: &[Slot],
    namespace: Option<&str>,
) -> anyhow::Result<()> {
    match form {
        Form::HelmValues => {
            let values = values(part, slots);
            printer.result(&serde_yaml_ng::to_string(&values)?, &values)
        }
        Form::HelmTemplate => {
            let text = helm(part, template, slots)?;
            printer.result(&text, &serde_json::json!({ "template": text }))
        }
        Form::Yaml => {
            let text = namespace.map(own_namespace).unwrap_or_default() + &yaml(template, slots)?;
            let mut items = Vec::new();
            for document in serde_yaml_ng::Deserializer::from_str(&text) {
                let item: Value = serde::Deserialize::deserialize(document)?;
                items.push(item);
            }
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
            printer.result(&text, &list)
        }
    }
}

/// Namespaces that every cluster has.
const PRESENT: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The namespace, so that what is printed can be applied to an empty cluster. It says nothing but its name: several files
/// may bring the same one, in any order. (Helm makes its release's namespace itself.)
fn own_namespace(name: &str) -> String {
    if PRESENT.contains(&name) {
        return String::new();
    }
    let name = Value::from(name);
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n---\n")
}

/// An image must be named by its digest: the host pulls it, and the host is not trusted.
pub(crate) fn demand_digest(image: &str) -> anyhow::Result<()> {
    let digest = image.split_once("@sha256:").map(|(_, digest)| digest);
    let hex = |digest: &str| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digest.is_some_and(hex) {
        return Ok(());
    }
    Err(Refused(format!("image {image:?} is not named by its digest: NAME@sha256:64 hex digits")).into())
}

/// A namespace's name, or another DNS label.
pub(crate) fn dns_label(text: &str) -> Result<String, String> {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let good = !text.is_empty() && text.len() <= 63 && text.bytes().all(legal);
    if good && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(text.to_owned());
    }
    Err("at most 63 of a-z, 0-9 and -, not at the ends".into())
}

#[cfg(test)]
mod tests;
