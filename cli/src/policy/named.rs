//! The policies in the files that a command is given.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use runtime_policy::{Deployment, PolicyDocument};

use crate::{files::read, generate};

/// A policy and whose it is.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) document: PolicyDocument,
}

impl Named {
    pub(super) fn data(&self) -> anyhow::Result<serde_json::Value> {
        self.document.data().with_context(|| self.name.clone())
    }
}

/// The policies of a YAML file or folder after `generate`, or one policy document (TOML).
pub(super) fn load(path: &Path) -> anyhow::Result<Vec<Named>> {
    if path.extension().is_some_and(|extension| extension == "toml") {
        let bytes = read(path)?;
        let document = PolicyDocument::parse(&bytes).with_context(|| path.display().to_string())?;
        return Ok(vec![Named { name: path.display().to_string(), document }]);
    }
    let files = generate::collect(&[path.to_owned()])?;
    let deployment = Deployment::read(files.iter().map(|(name, text)| (name.as_str(), text)))?;
    let policies = deployment.annotated()?;
    ensure!(
        !policies.is_empty(),
        "{}: no pod has a policy; run `contrast generate` on it first",
        path.display()
    );
    let name = |policy: &runtime_policy::PodPolicy| {
        format!("{}/{}", policy.workload.namespace, policy.workload.name)
    };
    Ok(policies.into_iter().map(|policy| Named { name: name(&policy), document: policy.document }).collect())
}

/// The one policy that is meant.
pub(super) fn load_one(path: &Path, pod: Option<&str>) -> anyhow::Result<Named> {
    let mut policies = load(path)?;
    if let Some(pod) = pod {
        policies.retain(|policy| policy.name == pod || policy.name.rsplit('/').next() == Some(pod));
        ensure!(!policies.is_empty(), "{} has no pod {pod:?} with a policy", path.display());
    }
    let names = || policies.iter().map(|policy| policy.name.clone()).collect::<Vec<_>>().join(", ");
    if policies.len() > 1 {
        bail!("{} has several policies: choose one with --pod: {}", path.display(), names());
    }
    policies.pop().context("no policy")
}
