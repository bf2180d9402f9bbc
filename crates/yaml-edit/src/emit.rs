//! Writing new values.

use serde_json::{Map, Value};

use crate::scalar;

/// Keys that people expect first.
const FIRST: [&str; 6] = ["apiVersion", "kind", "metadata", "name", "image", "valueFrom"];

fn ordered(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let rank = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| (rank(key), key.as_str()));
    entries
}

/// A value that continues a line of which `indent` columns are taken: its first line has no
/// indentation of its own.
pub(crate) fn block(value: &Value, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let lines: Vec<String> = match value {
        Value::Object(map) if !map.is_empty() => {
            ordered(map).into_iter().map(|(key, value)| entry(key, value, indent)).collect()
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().map(|item| format!("- {}", block(item, indent + 2))).collect()
        }
        _ => vec![flow(value)],
    };
    lines.join(&format!("\n{pad}"))
}

/// `key: value` in a block mapping whose keys stand at column `indent`.
pub(crate) fn entry(key: &str, value: &Value, indent: usize) -> String {
    let key = string(key);
    match value {
        Value::Object(map) if !map.is_empty() => {
            format!("{key}:\n{}{}", " ".repeat(indent + 2), block(value, indent + 2))
        }
        Value::Array(items) if !items.is_empty() => {
            format!("{key}:\n{}{}", " ".repeat(indent), block(value, indent))
        }
        _ => format!("{key}: {}", flow(value)),
    }
}

/// A value inside `{}` or `[]`.
pub(crate) fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| format!("{}: {}", string(key), flow(value));
            format!("{{{}}}", ordered(map).into_iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Plain where nothing else could be meant, else as JSON, which every YAML reader takes.
fn string(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '@' | '+' | '=');
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(plain)
        && matches!(scalar::resolve(text), Value::String(_));
    if is_plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}
