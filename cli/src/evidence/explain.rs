//! `contrast explain`.

use std::{fmt::Write as _, path::PathBuf};

use attestation::{Check, ReportData, Verdict, appraise};
use endorsements::Reach;
use manifest::{Manifest, PolicyHash, SerialNumber, Timestamp};
use program::now;
use serde::Serialize;

use super::document::{Document, read_all};
use crate::{
    endorsements::Cache,
    files::read_manifest,
    printer::{Printer, Refused, rfc3339},
};

/// Explain what a manifest says of some evidence: every check, with what was expected and found.
///
/// The file may be a raw report or quote, the document of a handshake, a certificate with evidence, the
/// log of a pod that was refused, or an export of `contrast audit export` (see --serial).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  kubectl logs web-0 -c contrast-initializer | contrast explain -\n  \
    contrast explain report.bin -m manifest.json --endorsement vcek.der\n  \
    contrast explain audit.jsonl --serial 4f1c...")]
pub(crate) struct Args {
    /// The evidence; `-` reads standard input.
    evidence: PathBuf,
    /// The manifest to judge by.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Judge as of this time (RFC 3339), instead of now or of the event.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// The 64 bytes that the evidence must be bound to, in hex.
    #[arg(long, value_name = "HEX")]
    report_data: Option<String>,
    /// A file signed by a vendor that the evidence lacks: a VCEK, a revocation list, collateral. Repeatable.
    #[arg(long = "endorsement", value_name = "FILE")]
    endorsement_files: Vec<PathBuf>,
    /// Folder of the policy documents that `contrast generate` wrote.
    #[arg(long, default_value = "policies", value_name = "DIR")]
    policies: PathBuf,
    /// Serial number of the certificate to look at in an export; the last one if none is given.
    #[arg(long, value_name = "HEX")]
    serial: Option<SerialNumber>,
}

#[derive(Serialize)]
struct Explanation {
    accepted: bool,
    origin: String,
    #[serde(serialize_with = "rfc3339")]
    at: Timestamp,
    platform: Option<String>,
    tcb: Option<String>,
    policy: Option<PolicyHash>,
    workload: Option<String>,
    met: Option<String>,
    lacking: Vec<String>,
    checks: Vec<Check>,
}

pub(crate) async fn run(args: Args, cache: &'static Cache, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let bytes = read_all(&args.evidence)?;
    let document = match Document::of(&args.evidence, &bytes, args.serial) {
        Ok(document) => document,
        Err(error) => match refused_policy(&bytes).filter(|policy| !manifest.policies.contains_key(policy)) {
            Some(policy) => return Err(Refused(without_entry(&args, policy, &manifest)).into()),
            None => return Err(error),
        },
    };
    let expected = match args.report_data.as_deref().map(report_data).transpose()? {
        Some(given) => Some(given),
        None => document.expected,
    };
    let at = args.at.or(document.at).unwrap_or_else(now);
    let files = args.endorsement_files.iter().map(|path| Ok((path, read_all(path)?)));
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let endorsements = cache.open()?;
    for (path, content) in files {
        let Some(name) = endorsements.identify(&content) else {
            anyhow::bail!("{} is no endorsement that AMD or Intel signed", path.display());
        };
        endorsements.put(&name, content)?;
    }
    let evidence = document.evidence;
    let completed =
        tokio::task::spawn_blocking(move || endorsements.complete(evidence, at, Reach::Network)).await?;
    let appraisal = appraise(&completed.evidence, expected.as_ref(), &manifest.reference_values, at);
    let mut checks = appraisal.checks;
    let claims = appraisal.claims;
    let policy = appraisal.policy;
    let entry = policy.and_then(|policy| manifest.policies.get(&policy));
    if let Some(policy) = policy {
        let verdict = if entry.is_some() { Verdict::Pass } else { Verdict::Fail };
        let expected = format!("one of the manifest's {}", manifest.policies.len());
        checks.push(Check { check: "policy", verdict, expected, found: policy.to_string() });
    }
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
    let explanation = Explanation {
        accepted: failed == 0,
        origin: document.origin,
        at,
        platform: claims.as_ref().map(|claims| claims.platform().to_string()),
        tcb: claims.as_ref().map(attestation::Claims::tcb),
        policy,
        workload: entry.and_then(|entry| entry.sans.first().cloned()),
        met: claims.as_ref().map(|claims| claims.met_reference().to_owned()),
        lacking: completed.lacking,
        checks,
    };
    printer.result(&text(&explanation, printer), &explanation)?;
    match failed {
        0 => Ok(()),
        _ => Err(Refused(format!("{failed} of {} checks failed", explanation.checks.len())).into()),
    }
}

/// The policy of a pod that was refused because the manifest lacks it: its log has no evidence, for that was fine.
fn refused_policy(log: &[u8]) -> Option<PolicyHash> {
    let text = String::from_utf8_lossy(log);
    let line = text.lines().rfind(|line| line.contains("is not in the current manifest"))?;
    let words = line.split(|c: char| !c.is_ascii_hexdigit());
    words.filter(|word| word.len() == 64).find_map(|word| word.parse().ok())
}

/// The usual refusal: the YAML was changed, and the manifest in force is of before.
fn without_entry(args: &Args, policy: PolicyHash, manifest: &Manifest) -> String {
    let name = args.manifest.display();
    let mut text = format!(
        "the Coordinator accepted the pod's evidence, but its policy {policy} is not among the {} of {name}",
        manifest.policies.len()
    );
    let document = args.policies.join(format!("{policy}.toml"));
    let folder = args.policies.display();
    text.push_str(&match document.exists() {
        true => format!(
            "\n  {} is its document, so `contrast generate` made it: the manifest is of another run\n  \
             next: `contrast generate` and `contrast set` with the same YAML",
            document.display()
        ),
        false => format!(
            "\n  {folder} does not hold its document: the YAML that was applied is not the one that `contrast generate` \
             saw last, or the host changed the policy\n  next: `contrast set` with the YAML that is deployed, or `kubectl \
             apply` the YAML that is set; `contrast policy diff OLD NEW` compares two documents"
        ),
    });
    text
}

fn report_data(hex: &str) -> anyhow::Result<ReportData> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(hex, &mut bytes)
        .map_err(|error| anyhow::anyhow!("--report-data: {error}; expected 128 hex digits"))?;
    Ok(ReportData::from_bytes(bytes))
}

fn text(explanation: &Explanation, printer: &Printer) -> String {
    let mut text = format!("{}, judged as of {}\n", explanation.origin, explanation.at);
    let width = explanation.checks.iter().map(|check| check.check.len()).max().unwrap_or_default();
    for Check { check, verdict, expected, found } in &explanation.checks {
        let (mark, comparison) = match verdict {
            Verdict::Pass if expected == found => (printer.good("✔"), found.clone()),
            Verdict::Pass => (printer.good("✔"), format!("{found} (expected: {expected})")),
            Verdict::Fail => (printer.bad("✘"), format!("expected {expected}, found {found}")),
            Verdict::NotChecked => ("-".to_owned(), format!("not checked: {found}")),
        };
        let _ = writeln!(text, "{mark} {check:width$}  {comparison}");
    }
    for what in &explanation.lacking {
        let _ = writeln!(text, "missing: {what}");
    }
    match (&explanation.workload, &explanation.platform, &explanation.met) {
        (Some(workload), Some(platform), Some(met)) if explanation.accepted => {
            let _ = write!(text, "Accepted as {workload} on {platform}, by {met}");
        }
        _ => text.push_str("Refused"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_the_usual_refusal_names_the_policy() {
        let hash = "ab".repeat(32);
        let log = format!(
            "2026 INFO initializer: asking\n2026 ERROR initializer: the Coordinator refused this pod: policy {hash} is not in \
             the current manifest (generation 1, 5 policies)\n"
        );
        assert_eq!(refused_policy(log.as_bytes()).unwrap().to_string(), hash);
        assert!(refused_policy(b"policy abab is not in the current manifest").is_none());
        assert!(refused_policy(&[0xff; 4096]).is_none());
    }
}
