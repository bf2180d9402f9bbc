//! What changed between two manifests, in the words of the manifest.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

use crate::{ManifestBody, PolicyEntry, PolicyHash};

/// Everything that differs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ManifestDiff {
    /// Workloads by name.
    pub workloads: Vec<WorkloadChange>,
    /// Everything else, by JSON path.
    pub values: Vec<ValueChange>,
}

/// A workload that came, went or changed. It is recognised by its workload secret id, else by its
/// first name, because its policy hash changes with every edit of its YAML.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadChange {
    /// Its name.
    pub name: String,
    /// Its policy before; `None`: it is new.
    pub old_policy: Option<PolicyHash>,
    /// Its policy now; `None`: it is gone.
    pub new_policy: Option<PolicyHash>,
    /// What else changed, by JSON path below its entry.
    pub values: Vec<ValueChange>,
}

/// A value that changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueChange {
    /// JSON path.
    pub path: String,
    /// Before; `None`: it was not there.
    pub old: Option<Value>,
    /// Now; `None`: it is not there.
    pub new: Option<Value>,
}

impl ManifestDiff {
    /// Compares two manifests.
    pub fn between(old: &ManifestBody, new: &ManifestBody) -> Self {
        let mut values = Vec::new();
        let (mut old_rest, mut new_rest) = (to_value(old), to_value(new));
        for rest in [&mut old_rest, &mut new_rest] {
            if let Some(fields) = rest.as_object_mut() {
                fields.remove("Policies");
            }
        }
        compare("", &old_rest, &new_rest, &mut values);
        Self { workloads: workload_changes(old, new), values }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.values.is_empty()
    }
}

impl fmt::Display for ManifestDiff {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |kind: fn(&WorkloadChange) -> bool| {
            let names: Vec<&str> = self
                .workloads
                .iter()
                .filter(|change| kind(change))
                .map(|change| change.name.as_str())
                .collect();
            names
        };
        let mut parts = Vec::new();
        for (what, names) in [
            ("added", names(|change| change.old_policy.is_none())),
            ("removed", names(|change| change.new_policy.is_none())),
            ("changed", names(|change| change.old_policy.is_some() && change.new_policy.is_some())),
        ] {
            match names.as_slice() {
                [] => {}
                [one, two, three, rest @ ..] if !rest.is_empty() => {
                    parts.push(format!("{what} {one}, {two}, {three} and {} more", rest.len()));
                }
                some => parts.push(format!("{what} {}", some.join(", "))),
            }
        }
        let mut fields: Vec<&str> =
            self.values.iter().filter_map(|change| change.path.split(['.', '[']).next()).collect();
        fields.dedup();
        if !fields.is_empty() {
            parts.push(format!("other: {}", fields.join(", ")));
        }
        if parts.is_empty() { f.write_str("nothing but its bytes") } else { f.write_str(&parts.join("; ")) }
    }
}

fn workload_changes(old: &ManifestBody, new: &ManifestBody) -> Vec<WorkloadChange> {
    let (mut before, after) = (by_name(old), by_name(new));
    let mut changes = Vec::new();
    for (name, (policy, entry)) in after {
        let (old_policy, mut values) = (before.remove(&name), Vec::new());
        if let Some((_, old_entry)) = &old_policy {
            compare("", &to_value(*old_entry), &to_value(entry), &mut values);
        }
        let old_policy = old_policy.map(|(policy, _)| policy);
        if old_policy != Some(policy) || !values.is_empty() {
            changes.push(WorkloadChange { name, old_policy, new_policy: Some(policy), values });
        }
    }
    let gone = before.into_iter().map(|(name, (policy, _))| WorkloadChange {
        name,
        old_policy: Some(policy),
        new_policy: None,
        values: Vec::new(),
    });
    changes.extend(gone);
    changes
}

/// Workloads by name; of several with one name the later ones are told apart by their policy.
fn by_name(body: &ManifestBody) -> BTreeMap<String, (PolicyHash, &PolicyEntry)> {
    let mut named = BTreeMap::new();
    for (policy, entry) in &body.policies {
        let mut name = entry.name().to_owned();
        if entry.going_out {
            name = format!("{name}, going out ({policy:.12})");
        } else if named.contains_key(&name) {
            name = format!("{name} ({policy:.12})");
        }
        named.insert(name, (*policy, entry));
    }
    named
}

impl PolicyEntry {
    /// What people call the workload: its secret id, else its first name in the certificate.
    pub fn name(&self) -> &str {
        let first = self.sans.first().map_or("(no name)", String::as_str);
        if self.workload_secret_id.is_empty() { first } else { &self.workload_secret_id }
    }
}

fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<ValueChange>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                compare(
                    &below(key),
                    old.get(key).unwrap_or(&Value::Null),
                    new.get(key).unwrap_or(&Value::Null),
                    changes,
                );
            }
        }
        (Value::Array(old), Value::Array(new)) if old.iter().chain(new).all(Value::is_string) => {
            // Lists of names and keys are sets: what matters is who came and who went.
            let mut push = |old: Option<&Value>, new: Option<&Value>| {
                changes.push(ValueChange { path: path.to_owned(), old: old.cloned(), new: new.cloned() });
            };
            old.iter().filter(|value| !new.contains(value)).for_each(|gone| push(Some(gone), None));
            new.iter().filter(|value| !old.contains(value)).for_each(|come| push(None, Some(come)));
        }
        (Value::Array(old), Value::Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let item = |list: &[Value]| list.get(index).cloned().unwrap_or_default();
                compare(&format!("{path}[{index}]"), &item(old), &item(new), changes);
            }
        }
        (Value::Null, Value::Array(_)) => compare(path, &Value::Array(Vec::new()), new, changes),
        (Value::Array(_), Value::Null) => compare(path, old, &Value::Array(Vec::new()), changes),
        (old, new) if old != new => {
            let some = |value: &Value| Some(value).filter(|value| !value.is_null()).cloned();
            changes.push(ValueChange { path: path.to_owned(), old: some(old), new: some(new) });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(policies: Value, owners: &[&str], microcode: u8) -> ManifestBody {
        serde_json::from_value(json!({
            "Policies": policies,
            "ReferenceValues": { "snp": [{
                "ProductName": "Milan",
                "TrustedMeasurement": "22".repeat(48),
                "MinimumTCB": {
                    "BootloaderVersion": 3, "TEEVersion": 0, "SNPVersion": 8, "MicrocodeVersion": microcode
                },
            }] },
            "WorkloadOwnerPubKeys": owners,
        }))
        .unwrap()
    }

    #[test]
    fn changes_are_named_as_people_name_them() {
        let hash = |n: u8| PolicyHash::from_bytes([n; 32]);
        let old = body(
            json!({
                hash(1).to_string(): { "SANs": ["web"], "WorkloadSecretID": "shop/web" },
                hash(2).to_string(): { "SANs": ["gone"] },
                hash(3).to_string(): { "SANs": ["same"] },
            }),
            &["0a", "0b"],
            115,
        );
        let new = body(
            json!({
                hash(4).to_string(): { "SANs": ["web", "web.example"], "WorkloadSecretID": "shop/web" },
                hash(3).to_string(): { "SANs": ["same"] },
                hash(5).to_string(): { "SANs": ["new"] },
            }),
            &["0b", "0c"],
            211,
        );
        let diff = ManifestDiff::between(&old, &new);
        let names: Vec<&str> = diff.workloads.iter().map(|change| change.name.as_str()).collect();
        assert_eq!(names, ["new", "shop/web", "gone"]);
        let web = &diff.workloads[1];
        assert_eq!((web.old_policy, web.new_policy), (Some(hash(1)), Some(hash(4))));
        assert_eq!(web.values[0].new, Some(json!("web.example")));
        let paths: Vec<&str> = diff.values.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "ReferenceValues.snp[0].MinimumTCB.MicrocodeVersion",
                "WorkloadOwnerPubKeys",
                "WorkloadOwnerPubKeys"
            ]
        );
        assert_eq!(
            diff.to_string(),
            "added new; removed gone; changed shop/web; other: ReferenceValues, WorkloadOwnerPubKeys"
        );
        assert!(ManifestDiff::between(&old, &old).is_empty());
    }
}
