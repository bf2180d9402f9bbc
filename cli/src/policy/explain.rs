//! `contrast policy explain`.

use std::path::PathBuf;

use serde_json::json;

use super::named::load;
use crate::printer::Printer;

/// Say in words what policies allow.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML after `contrast generate`, or a policy document from the policies folder.
    path: PathBuf,
}

pub(super) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let mut text = String::new();
    let mut all = Vec::new();
    for policy in load(&args.path)? {
        let data = policy.data()?;
        text.push_str(&format!(
            "{} ({})\n\n{}\n",
            policy.name,
            policy.document.hash(),
            runtime_policy::explain(&data)
        ));
        all.push(json!({ "pod": policy.name, "policy": policy.document.hash(), "data": data }));
    }
    printer.paged(&text, &all)
}
