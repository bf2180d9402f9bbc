//! `contrast policy`: what a policy allows, and why a request was denied.

mod diff;
mod explain;
mod test;

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use runtime_policy::{Deployment, PolicyDocument, Settings};

use crate::{generate, printer::Printer};

/// Look into the policies that `contrast generate` makes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  contrast policy explain ./deployment\n  \
    contrast policy test web.yml --request denied.json\n  contrast policy diff policies/OLD.toml web.yml\n  \
    contrast policy settings > settings.json")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Test(test::Args),
    Explain(explain::Args),
    Diff(diff::Args),
    /// Print the built-in settings, which `generate --settings FILE` is laid over.
    Settings,
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Test(args) => test::run(&args, printer),
        Command::Explain(args) => explain::run(&args, printer),
        Command::Diff(args) => diff::run(&args, printer),
        Command::Settings => {
            let text = Settings::default_text();
            let value: serde_json::Value = serde_json::from_str(text)?;
            printer.result(text, &value)
        }
    }
}

/// A policy and whose it is.
struct Named {
    name: String,
    document: PolicyDocument,
}

impl Named {
    fn data(&self) -> anyhow::Result<serde_json::Value> {
        self.document.data().with_context(|| self.name.clone())
    }
}

/// The policies of a YAML file or folder after `generate`, or one policy document (TOML).
fn load(path: &Path) -> anyhow::Result<Vec<Named>> {
    if path.extension().is_some_and(|extension| extension == "toml") {
        let bytes = crate::client::read(path)?;
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
fn load_one(path: &Path, pod: Option<&str>) -> anyhow::Result<Named> {
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
