//! `contrast explain`.

use std::{fmt::Write as _, path::PathBuf};

use attestation::{Check, ReportData, Verdict, appraise};
use endorsements::Reach;
use manifest::{PolicyHash, SerialNumber, Timestamp};
use program::now;
use serde::Serialize;

use super::{
    document::{Document, read_all},
    unlisted::{self, Places},
};
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
    /// Files and folders of the YAML that is deployed, or what `kubectl get pod NAME -o yaml` prints: where the policy of a
    /// refused pod is looked for, besides --policies. Repeatable.
    #[arg(long, value_name = "PATH")]
    deployed: Vec<PathBuf>,
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
        Err(error) => match unlisted::refused_policy(&bytes) {
            Some(policy) => {
                let places =
                    Places { manifest: &args.manifest, policies: &args.policies, deployed: &args.deployed };
                return unlisted::explain(policy, &manifest, &places, printer);
            }
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
