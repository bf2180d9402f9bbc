//! `contrast policy diff`.

use std::{fmt::Write as _, path::PathBuf};

use runtime_policy::RULES;
use serde::Serialize;
use serde_json::Value;

use super::named::{Named, load_one};
use crate::printer::Printer;

/// Compare what two policies allow, field by field.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The one: YAML after `contrast generate`, or a policy document.
    before: PathBuf,
    /// The other.
    after: PathBuf,
    /// The pod, if a file has several.
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
}

/// A field in which two policies differ.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    pub(crate) field: String,
    pub(crate) before: Value,
    pub(crate) after: Value,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n  - {}\n  + {}", self.field, self.before, self.after)
    }
}

/// Where the data of two policies differ.
pub(crate) fn differences(before: Value, after: Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&mut found, "", &named(before), &named(after));
    found
}

pub(super) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let before = load_one(&args.before, args.pod.as_deref())?;
    let after = load_one(&args.after, args.pod.as_deref())?;
    let mut differences = differences(before.data()?, after.data()?);
    if before.document.rules() != after.document.rules() {
        let of = |policy: &Named| match policy.document.rules() == RULES {
            true => "this version's".into(),
            false => "others".into(),
        };
        differences.push(Difference { field: "rules".into(), before: of(&before), after: of(&after) });
    }
    let mut text = String::new();
    for difference in &differences {
        let _ = writeln!(text, "{difference}");
    }
    if differences.is_empty() {
        text.push_str("Both allow the same.\n");
    }
    printer.paged(&text, &differences)
}

/// Containers by name instead of by position, so that one more does not change all that follow.
fn named(mut data: Value) -> Value {
    if let Some(containers) = data.get("containers").and_then(Value::as_array) {
        let name = |container: &Value| container["name"].as_str().unwrap_or_default().to_owned();
        let order: Vec<Value> = containers.iter().map(|container| name(container).into()).collect();
        let map = containers.iter().map(|container| (name(container), container.clone())).collect();
        data["order"] = Value::Array(order);
        data["containers"] = Value::Object(map);
    }
    data
}

fn compare(found: &mut Vec<Difference>, field: &str, before: &Value, after: &Value) {
    if before == after {
        return;
    }
    if let (Value::Object(a), Value::Object(b)) = (before, after) {
        let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let below = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
            compare(found, &below, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
        }
        return;
    }
    found.push(Difference { field: field.to_owned(), before: before.clone(), after: after.clone() });
}
