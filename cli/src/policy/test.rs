//! `contrast policy test`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::IsTerminal as _,
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use runtime_policy::{Decision, Evaluator, Reason, looks_like};
use serde_json::Value;

use super::named::load_one;
use crate::{
    files::read,
    printer::{Printer, Refused},
};

/// Longest value shown in a line, in characters.
const MAX_VALUE: usize = 300;

/// Decide about an agent's requests as the guest would: allowed, or denied and by which fields.
///
/// A file holds one request, a JSON list of them, or one in each line, in the order in which they were
/// sent: what is allowed depends on what was started before. Each is {"kind": "CreateContainerRequest",
/// "request": {..}}; a bare request needs --kind. Exit code 1 if one is denied.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML after `contrast generate`, or a policy document.
    path: PathBuf,
    /// File with requests. May be repeated; they follow one another.
    #[arg(long, short, required = true, value_name = "FILE")]
    request: Vec<PathBuf>,
    /// Kind of a bare request.
    #[arg(long, value_name = "NAME")]
    kind: Option<String>,
    /// The pod, if the file has several.
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
}

pub(super) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let policy = load_one(&args.path, args.pod.as_deref())?;
    let mut evaluator = Evaluator::new(policy.document.rego())?;
    let runtime = policy.data().map(|data| data["runtime"].clone()).unwrap_or_default();
    let mut decisions = Vec::new();
    let mut others = BTreeMap::new();
    for path in &args.request {
        for (kind, request) in
            requests(path, args.kind.as_deref()).with_context(|| path.display().to_string())?
        {
            for (name, sign) in looks_like(&request).into_iter().filter(|(name, _)| is_other(&runtime, name))
            {
                others.entry(name).or_insert_with(BTreeSet::new).insert(sign);
            }
            decisions.push(evaluator.decide(&kind, &request)?);
        }
    }
    for (name, signs) in others {
        let signs = signs.into_iter().collect::<Vec<_>>().join(", ");
        printer.note(&format!(
            "These look like requests of {name} ({signs}); the policy was made for {}",
            made_for(&runtime)
        ));
    }
    printer.result(&text(&decisions), &decisions)?;
    match decisions.iter().filter(|decision| !decision.allowed).count() {
        0 => Ok(()),
        denied => Err(Refused(format!("{denied} of {} requests are denied", decisions.len())).into()),
    }
}

fn made_for(runtime: &Value) -> String {
    let of = |key: &str| runtime[key].as_str().unwrap_or("any").to_owned();
    format!("shim {}, containerd {}", of("shim"), of("containerd"))
}

/// Whether a policy is for another runtime than the one of that name.
fn is_other(runtime: &Value, name: &str) -> bool {
    let (key, name) = match name.strip_prefix("containerd ") {
        Some(version) => ("containerd", version),
        None => ("shim", name),
    };
    match runtime[key].as_str().unwrap_or("any") {
        "any" => name == "contrast",
        "contrast" => false, // patches of either
        known => known != name,
    }
}

fn requests(path: &std::path::Path, kind: Option<&str>) -> anyhow::Result<Vec<(String, Value)>> {
    let bytes = read(path)?;
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>() {
        match value? {
            Value::Array(items) => found.extend(items),
            other => found.push(other),
        }
    }
    let one = |value: Value| -> anyhow::Result<(String, Value)> {
        let named = value.get("kind").or(value.get("type")).or(value.get("ep")).and_then(Value::as_str);
        match (named, value.get("request").or(value.get("input")), kind) {
            (Some(name), Some(request), _) => Ok((rule(name), request.clone())),
            (_, _, Some(kind)) => Ok((rule(kind), value)),
            _ => bail!("expected {{\"kind\": .., \"request\": ..}}, or --kind for a bare request"),
        }
    };
    found.into_iter().map(one).collect()
}

/// The agent's rules are named after requests; people leave the ending out.
fn rule(name: &str) -> String {
    if name.ends_with("Request") { name.to_owned() } else { format!("{name}Request") }
}

fn text(decisions: &[Decision]) -> String {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let paint =
        |code: &str, word: &str| if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let mut text = String::new();
    for (number, decision) in (1..).zip(decisions) {
        let word = if decision.allowed { paint("32", "allowed") } else { paint("31", "DENIED") };
        let _ = writeln!(text, "{number} {} {word}", decision.request);
        for reason in &decision.reasons {
            explain(&mut text, reason);
        }
    }
    text
}

fn explain(text: &mut String, Reason { field, found, expected }: &Reason) {
    let field = if field.is_empty() { "the request" } else { field };
    let _ = writeln!(text, "    {field}");
    let strings = |value: &Value| -> Option<BTreeSet<String>> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    };
    // Of two long lists only the difference is news.
    if let (Some(found), Some(expected)) = (strings(found), strings(expected))
        && found != expected
        && found.len() + expected.len() > 4
    {
        let list = |set: Vec<&String>| set.into_iter().cloned().collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "      only in the request: {}", list(found.difference(&expected).collect()));
        let _ = writeln!(text, "      only in the policy:  {}", list(expected.difference(&found).collect()));
        return;
    }
    let short = |value: &Value| {
        let whole = value.to_string();
        let cut: String = whole.chars().take(MAX_VALUE).collect();
        if cut.len() < whole.len() { format!("{cut}…") } else { cut }
    };
    let _ = writeln!(text, "      found    {}\n      expected {}", short(found), short(expected));
}
