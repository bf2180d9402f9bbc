//! How history looks.

use anyhow::Context as _;
use manifest::{ManifestDiff, PolicyHash, Timestamp, ValueChange, WorkloadChange};
use serde::Serialize;
use serde_json::{Value, json};
use similar::TextDiff;

use super::timeline::{Generation, Timeline};
use crate::printer::{Printer, Refused, folded};

pub(super) fn list(timeline: &Timeline, printer: &Printer) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Row<'a> {
        #[serde(flatten)]
        generation: &'a Generation,
        changes: String,
    }
    let row = |generation| Ok(Row { generation, changes: timeline.summary(generation)? });
    let rows: Vec<Row<'_>> = timeline.generations.iter().map(row).collect::<anyhow::Result<_>>()?;
    let mut text = String::from("GEN  TIME                      MANIFEST        CHANGES\n");
    for Row { generation, changes } in &rows {
        let Generation { generation, at, manifest, set_by, .. } = generation;
        let row = format!("{generation:>3}  {at:<24}  {:<14}  ", format!("{manifest:.12}…"));
        text += &folded(&row, changes);
        text += &folded("     set by ", set_by);
    }
    printer.paged(&text, &rows)
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

pub(super) fn show(
    timeline: &Timeline,
    which: &str,
    policies: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let generation = timeline.find(which)?;
    if policies {
        let documents: Vec<(PolicyHash, Option<String>)> =
            generation.policies.iter().map(|hash| (*hash, timeline.policy(hash))).collect();
        let mut text = String::new();
        for (hash, document) in &documents {
            text += &format!("# policy {hash}\n{}\n", document.as_deref().unwrap_or("(not in the history)"));
        }
        let value: serde_json::Map<String, Value> =
            documents.into_iter().map(|(hash, document)| (hash.to_string(), json!(document))).collect();
        return printer.paged(&text, &value);
    }
    let bytes = timeline.manifest_bytes(generation)?;
    let value = json!({
        "generation": generation,
        "changes": timeline.summary(generation)?,
        "manifest": serde_json::from_slice::<Value>(bytes)?,
    });
    printer.note(&format!(
        "generation {} of {}, {}, set by {}\nmanifest {}, transition {}",
        generation.generation,
        timeline.generations.len(),
        generation.at,
        generation.set_by,
        generation.manifest,
        generation.transition
    ));
    printer.paged(&String::from_utf8_lossy(bytes), &value)
}

pub(super) fn at(timeline: &Timeline, at: Timestamp, printer: &Printer) -> anyhow::Result<()> {
    let Some(generation) = timeline.at(at) else {
        let first = timeline.generations.first().map_or("never".to_owned(), |first| first.at.to_string());
        let text = format!("no manifest was in force at {at}; the first was set {first}");
        return Err(Refused(text).into());
    };
    printer.note(&format!("at {at}:"));
    show(timeline, &generation.generation.to_string(), false, printer)
}

pub(super) fn diff(timeline: &Timeline, old: &str, new: &str, printer: &Printer) -> anyhow::Result<()> {
    let (old, new) = (timeline.find(old)?, timeline.find(new)?);
    let diff = timeline.diff(old, new)?;
    let mut text =
        format!("generation {} ({}) to {} ({}): {diff}\n", old.generation, old.at, new.generation, new.at);
    let mut policies = serde_json::Map::new();
    for change in &diff.workloads {
        text += &workload(change);
        let documents = change.old_policy.zip(change.new_policy).filter(|(old, new)| old != new);
        if let Some((old, new)) = documents {
            let lines = policy_diff(timeline, &old, &new);
            text += &lines;
            policies.insert(change.name.clone(), lines.into());
        }
    }
    text += &values("", &diff.values);
    let ManifestDiff { workloads, values } = &diff;
    let value = json!({
        "from": old, "to": new, "summary": diff.to_string(),
        "workloads": workloads, "values": values, "policies": policies,
    });
    printer.paged(&text, &value)
}

/// What a change of manifests changes, policies aside.
pub(crate) fn changes(diff: &ManifestDiff) -> String {
    diff.workloads.iter().map(workload).collect::<String>() + &values("", &diff.values)
}

fn workload(change: &WorkloadChange) -> String {
    let head = match (&change.old_policy, &change.new_policy) {
        (None, Some(policy)) => format!("\n+ workload {} (policy {policy:.12}…)\n", change.name),
        (Some(policy), None) => format!("\n- workload {} (policy {policy:.12}…)\n", change.name),
        _ => format!("\n~ workload {}\n", change.name),
    };
    head + &values("    ", &change.values)
}

fn values(indent: &str, changes: &[ValueChange]) -> String {
    let mut text = String::new();
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for ValueChange { path, old, new } in changes {
        text += &match (old, new) {
            (Some(old), Some(new)) => format!("{indent}~ {path}: {} → {}\n", plain(old), plain(new)),
            (None, Some(new)) => format!("{indent}+ {path}: {}\n", plain(new)),
            (Some(old), None) => format!("{indent}- {path}: {}\n", plain(old)),
            (None, None) => String::new(),
        };
    }
    text
}

fn policy_diff(timeline: &Timeline, old: &PolicyHash, new: &PolicyHash) -> String {
    let text = |hash: &PolicyHash| timeline.policy(hash).unwrap_or_default();
    let (before, after) = (text(old), text(new));
    let diff = TextDiff::from_lines(&before, &after);
    let unified =
        diff.unified_diff().header(&format!("policy {old:.12}"), &format!("policy {new:.12}")).to_string();
    unified.lines().map(|line| format!("    {line}\n")).collect()
}

pub(super) fn grep(timeline: &Timeline, pattern: &str, printer: &Printer) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Hit {
        generation: u64,
        #[serde(serialize_with = "crate::printer::rfc3339")]
        at: Timestamp,
        document: String,
        line: usize,
        text: String,
    }
    let pattern = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build().context("PATTERN")?;
    let mut hits = Vec::new();
    for generation in &timeline.generations {
        let manifest = String::from_utf8_lossy(timeline.manifest_bytes(generation)?).into_owned();
        let mut documents = vec![("manifest".to_owned(), manifest)];
        for hash in &generation.policies {
            documents.extend(timeline.policy(hash).map(|policy| (format!("policy {hash:.12}"), policy)));
        }
        for (document, content) in documents {
            let found = (1..).zip(content.lines()).filter(|(_, text)| pattern.is_match(text));
            hits.extend(found.map(|(line, text)| Hit {
                generation: generation.generation,
                at: generation.at,
                document: document.clone(),
                line,
                text: text.trim().to_owned(),
            }));
        }
    }
    if hits.is_empty() {
        return Err(Refused(format!(
            "nothing in {} manifests and their policies",
            timeline.generations.len()
        ))
        .into());
    }
    let mut text = String::new();
    for Hit { generation, document, line, text: found, .. } in &hits {
        text += &format!("{generation}: {document}:{line}: {}\n", shortened(found, 160));
    }
    printer.paged(&text, &hits)
}
