//! What a run would change, as a diff.

use std::{fmt::Write as _, io::IsTerminal as _};

use runtime_policy::PodPolicy;
use similar::{ChangeTag, TextDiff};

use super::files::Change;
use crate::printer::Printer;

/// Longest line shown; annotations with documents are longer and say nothing to a reader.
const MAX_LINE: usize = 200;

pub(super) fn show(changes: &[Change], policies: &[PodPolicy], printer: &Printer) -> anyhow::Result<()> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = String::new();
    for change in changes {
        diff(&mut text, change, colour);
    }
    if changes.is_empty() {
        text.push_str("Nothing would change.\n");
    }
    let json: Vec<_> = changes
        .iter()
        .map(|change| serde_json::json!({ "file": change.name, "before": change.before, "after": change.after }))
        .collect();
    let hashes: Vec<_> = policies.iter().map(|policy| policy.document.hash()).collect();
    printer.result(&text, &serde_json::json!({ "files": json, "policies": hashes }))
}

fn diff(text: &mut String, change: &Change, colour: bool) {
    let diff = TextDiff::from_lines(&change.before, &change.after);
    let _ = writeln!(text, "--- {0}\n+++ {0}", change.name);
    for group in diff.grouped_ops(3) {
        let first = group.first().map_or(0, |op| op.old_range().start);
        let _ = writeln!(text, "@@ line {} @@", first + 1);
        for line in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (mark, paint) = match line.tag() {
                ChangeTag::Delete => ('-', "\x1b[31m"),
                ChangeTag::Insert => ('+', "\x1b[32m"),
                ChangeTag::Equal => (' ', ""),
            };
            let content = line.value().trim_end_matches('\n');
            let shown: String = content.chars().take(MAX_LINE).collect();
            let more = if shown.len() < content.len() { "…" } else { "" };
            let _ = match colour && !paint.is_empty() {
                true => writeln!(text, "{paint}{mark}{shown}{more}\x1b[0m"),
                false => writeln!(text, "{mark}{shown}{more}"),
            };
        }
    }
}
