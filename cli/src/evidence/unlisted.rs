//! The usual refusal: the pod's evidence is fine, and its policy is not in the manifest in force, because the YAML was
//! changed and the manifest is of before, or the reverse.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use manifest::{Manifest, PolicyHash};
use runtime_policy::{Deployment, PolicyDocument};
use serde::Serialize;
use serde_json::Value;

use crate::{
    generate,
    policy::diff::{Difference, differences},
    printer::{Printer, Refused},
};

/// Most differences that are shown as text.
const MOST_SHOWN: usize = 12;
/// Largest file that may be a policy document, in bytes.
const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

/// Where documents may be.
pub(super) struct Places<'a> {
    pub(super) manifest: &'a Path,
    /// Folder that `generate` wrote.
    pub(super) policies: &'a Path,
    /// YAML.
    pub(super) deployed: &'a [PathBuf],
}

/// A policy of the manifest and what the refused one has otherwise.
#[derive(Debug, Serialize)]
struct Nearest {
    policy: PolicyHash,
    pod: String,
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Unlisted {
    accepted: bool,
    policy: PolicyHash,
    /// The pod, if its document is known.
    pod: Option<String>,
    /// Whether the manifest that was given names the policy.
    in_given_manifest: bool,
    nearest: Option<Nearest>,
}

/// The policy of a pod that was refused because the manifest lacks it: its log has no evidence, for that was fine.
pub(super) fn refused_policy(log: &[u8]) -> Option<PolicyHash> {
    let text = String::from_utf8_lossy(log);
    let line = text.lines().rfind(|line| line.contains("is not in the current manifest"))?;
    let words = line.split(|c: char| !c.is_ascii_hexdigit());
    words.filter(|word| word.len() == 64).find_map(|word| word.parse().ok())
}

/// Says whose policy it is, how it differs from the nearest one of the manifest, and what to do.
pub(super) fn explain(
    policy: PolicyHash,
    manifest: &Manifest,
    places: &Places<'_>,
    printer: &Printer,
) -> anyhow::Result<()> {
    let documents = documents(places)?;
    let own = documents.iter().find(|document| document.hash() == policy);
    let in_given_manifest = manifest.policies.contains_key(&policy);
    let nearest = own.filter(|_| !in_given_manifest).and_then(|own| nearest(own, &documents, manifest));
    let pod = own.and_then(|own| own.data().ok()).map(|data| pod_of(&data));
    let found = Unlisted { accepted: false, policy, pod, in_given_manifest, nearest };
    printer.result(&text(&found, manifest, places), &found)?;
    Err(Refused("the manifest in force does not list the pod's policy".into()).into())
}

fn text(found: &Unlisted, manifest: &Manifest, places: &Places<'_>) -> String {
    let Unlisted { policy, pod, in_given_manifest, nearest, .. } = found;
    let name = places.manifest.display();
    let whose = pod.as_ref().map_or_else(String::new, |pod| format!(" (of pod {pod})"));
    let mut text =
        format!("The Coordinator accepted the pod's evidence, but not its policy\n  {policy}{whose}\n");
    if *in_given_manifest {
        let _ = write!(
            text,
            "{name} lists it, and the manifest that was in force at the Coordinator does not.\nNext: `contrast set` with \
             {name}; the pod tries again by itself"
        );
        return text;
    }
    let _ = writeln!(text, "It is not among the {} of {name}.", manifest.policies.len());
    if let Some(Nearest { policy, pod, differences }) = nearest {
        let _ = writeln!(text, "Nearest in {name}: {policy} (of pod {pod}), - there, + in the refused pod:");
        for difference in differences.iter().take(MOST_SHOWN) {
            for line in difference.to_string().lines() {
                let _ = writeln!(text, "  {line}");
            }
        }
        if let more @ 1.. = differences.len().saturating_sub(MOST_SHOWN) {
            let _ = writeln!(text, "  and {more} more: --output json has all");
        }
    }
    let _ = match pod {
        Some(_) => write!(
            text,
            "Next: if the change was intended, `contrast generate` and `contrast set` with the YAML that is deployed; else \
             `kubectl apply` the YAML that is set"
        ),
        None => write!(
            text,
            "Its document is not in {}: the YAML that was applied is not what `contrast generate` saw last, or the host \
             changed the policy.\nNext: `contrast explain` with --deployed and that YAML, or with what `kubectl get pod NAME \
             -o yaml` prints, shows the difference; `contrast set` with the YAML that is deployed sets it",
            places.policies.display()
        ),
    };
    text
}

/// Every document that can be had.
fn documents(places: &Places<'_>) -> anyhow::Result<Vec<PolicyDocument>> {
    let mut found = Vec::new();
    // A folder that is not there has none.
    for entry in std::fs::read_dir(places.policies).into_iter().flatten().flatten() {
        let is_small = entry.metadata().is_ok_and(|data| data.is_file() && data.len() <= MAX_DOCUMENT_BYTES);
        let bytes = is_small.then(|| std::fs::read(entry.path()).ok()).flatten();
        found.extend(bytes.and_then(|bytes| PolicyDocument::parse(&bytes).ok()));
    }
    if !places.deployed.is_empty() {
        let files = generate::collect(places.deployed)?;
        let deployment = Deployment::read(files.iter().map(|(name, text)| (name.as_str(), text)))?;
        found.extend(deployment.annotated()?.into_iter().map(|policy| policy.document));
    }
    Ok(found)
}

/// The document of the manifest that differs in the fewest fields.
fn nearest(own: &PolicyDocument, documents: &[PolicyDocument], manifest: &Manifest) -> Option<Nearest> {
    let data = own.data().ok()?;
    let listed = documents.iter().filter(|document| manifest.policies.contains_key(&document.hash()));
    let compared = listed.filter_map(|document| {
        let other = document.data().ok()?;
        let pod = pod_of(&other);
        Some(Nearest { policy: document.hash(), pod, differences: differences(other, data.clone()) })
    });
    compared.min_by_key(|near| near.differences.len())
}

/// Namespace and name of a pod, as its policy has them.
fn pod_of(data: &Value) -> String {
    let sandbox = &data["sandbox"];
    let namespace = sandbox["namespace"].as_str().unwrap_or("?");
    let pattern = sandbox.pointer("/name/pattern").and_then(Value::as_str).unwrap_or("?");
    let name = pattern.trim_start_matches('^').trim_end_matches('$');
    // Behind the name that somebody gave stands what Kubernetes makes up.
    let name = name.split('[').next().unwrap_or_default().trim_end_matches('-').replace('\\', "");
    format!("{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::printer::OutputFormat;

    fn document(name: &str, image: &str) -> PolicyDocument {
        let pattern = format!("^{name}-[a-z0-9]{{6,10}}-[a-z0-9]{{5}}$");
        let data = json!({ "sandbox": { "name": { "pattern": pattern }, "namespace": "shop" } });
        let container = json!({ "name": "app", "image": image });
        let rego =
            format!("package agent_policy\npolicy_data := {data}\npolicy_container(0) := {container}\n");
        PolicyDocument::new(rego)
    }

    #[test]
    fn the_refused_pod_is_named_and_compared_with_the_nearest_policy() {
        let folder = tempfile::tempdir().unwrap();
        let (old, other, new) =
            (document("web", "one"), document("database", "three"), document("web", "two"));
        for document in [&old, &other, &new] {
            fs::write(folder.path().join(format!("{}.toml", document.hash())), document.bytes()).unwrap();
        }
        let manifest = |listed: &[&PolicyDocument]| {
            let policies: serde_json::Map<String, Value> = listed
                .iter()
                .map(|document| {
                    (document.hash().to_string(), json!({ "SANs": ["web"], "WorkloadSecretID": "w" }))
                })
                .collect();
            let body = json!({ "Policies": policies, "ReferenceValues": {} });
            Manifest::read(body.to_string().as_bytes()).unwrap()
        };
        let places = Places { manifest: Path::new("manifest.json"), policies: folder.path(), deployed: &[] };
        let all = documents(&places).unwrap();
        let found = nearest(&new, &all, &manifest(&[&old, &other])).unwrap();
        assert_eq!((found.policy, found.pod.as_str()), (old.hash(), "shop/web"));
        assert_eq!(found.differences.len(), 1, "{:?}", found.differences);
        assert_eq!(found.differences[0].field, "containers.app.image");

        let shown = Unlisted {
            accepted: false,
            policy: new.hash(),
            pod: Some("shop/web".into()),
            in_given_manifest: false,
            nearest: Some(found),
        };
        let said = text(&shown, &manifest(&[&old, &other]), &places);
        assert!(
            said.contains("(of pod shop/web)") && said.contains("- \"one\"") && said.contains("+ \"two\""),
            "{said}"
        );

        // The manifest here has it, the one in force did not: it was not set.
        let printer = Printer::new(OutputFormat::Text);
        let refused = explain(new.hash(), &manifest(&[&new]), &places, &printer).unwrap_err();
        assert!(refused.is::<Refused>());
        let listed = Unlisted { in_given_manifest: true, nearest: None, ..shown };
        assert!(text(&listed, &manifest(&[&new]), &places).contains("Next: `contrast set`"));
    }

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
