//! `contrast runtime resources`.

use std::path::PathBuf;

use anyhow::Context as _;
use runtime_bundle::{Bundle, Digest, GUEST_MEMORY_MIB, HandlerName, MAX_BUNDLE_BYTES, Platform, node_label};
use serde_json::json;

use super::{Form, Slot, demand_digest, dns_label, print};
use crate::printer::{Printer, Refused};

pub(crate) const TEMPLATE: &str = include_str!("../../../deploy/resources/runtime.yaml");

/// Print the Kubernetes resources of a runtime: RuntimeClass, installer DaemonSet, its rights and configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The nodes' platform, such as Metal-QEMU-SNP.
    platform: Platform,
    /// What is installed: contrast-node-install.json, every file of it with a digest.
    #[arg(long, short, value_name = "FILE")]
    bundle: PathBuf,
    /// The installer's image, by digest.
    #[arg(long, short)]
    image: String,
    /// Namespace of the installer; it must allow privileged pods.
    #[arg(long, short, default_value = "kube-system", value_parser = dns_label)]
    namespace: String,
    /// Do not print the namespace itself: something else makes it, perhaps with labels.
    #[arg(long)]
    no_namespace: bool,
    /// Only on nodes with this label, as key=value. May be given several times.
    #[arg(long = "node-selector", value_name = "KEY=VALUE", value_parser = pair)]
    node_selector: Vec<(String, String)>,
    /// Take the runtime away from the nodes. Delete the resources when the pods are ready.
    #[arg(long)]
    uninstall: bool,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    form: Form,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "KEY=VALUE is wanted".into())
}

pub(crate) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    demand_digest(&args.image)?;
    let name = args.bundle.display();
    let config = read(&args.bundle)?;
    let bundle = Bundle::parse(config.as_bytes()).map_err(|error| Refused(format!("{name}: {error}")))?;
    let handler = bundle.handler(args.platform, |path| -> anyhow::Result<Digest> {
        Err(Refused(format!(
            "{name}: {path:?} has no digest: with \"integrity\" the name follows from the contents"
        ))
        .into())
    })?;
    if let Some(demanded) = bundle.demanded_handler.as_ref().filter(|demanded| **demanded != handler) {
        return Err(Refused(format!("{name} is for {demanded}, but its contents are {handler}")).into());
    }
    // What the installer would say on every node is said here.
    runtime_installer::kata::configuration(&bundle, args.platform, &handler)
        .map_err(|error| Refused(format!("{name}: {error}")))?;
    print(
        printer,
        args.form,
        "runtime",
        TEMPLATE,
        &slots(args, &handler, &config),
        (!args.no_namespace).then_some(args.namespace.as_str()),
    )
}

fn read(path: &std::path::Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let name = || format!("cannot read {}", path.display());
    let limit = u64::try_from(MAX_BUNDLE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = String::new();
    std::fs::File::open(path).with_context(name)?.take(limit).read_to_string(&mut text).with_context(name)?;
    Ok(text)
}

/// The placeholders of the template.
fn slots(args: &Args, handler: &HandlerName, config: &str) -> Vec<Slot> {
    let selector: std::collections::BTreeMap<_, _> = args.node_selector.iter().cloned().collect();
    let (action, subject) = match args.uninstall {
        false => ("install", args.platform.name()),
        true => ("uninstall", handler.as_str()),
    };
    let slot = |name, path, expression, value| Slot { name, path, expression, value };
    vec![
        slot(
            "HANDLER",
            Some("handler"),
            "required \"runtime.handler\" .Values.runtime.handler | quote",
            json!(handler.as_str()),
        ),
        slot(
            "NODE_LABEL",
            None,
            "printf \"contrast.edgeless.systems/%s\" .Values.runtime.handler | quote",
            json!(node_label(handler)),
        ),
        slot(
            "OVERHEAD",
            Some("overhead"),
            ".Values.runtime.overhead | quote",
            json!(format!("{GUEST_MEMORY_MIB}Mi")),
        ),
        slot("NAMESPACE", None, ".Release.Namespace | quote", json!(args.namespace)),
        slot(
            "CONFIG",
            Some("config"),
            "required \"runtime.config\" .Values.runtime.config | toJson",
            json!(config),
        ),
        slot("NODE_SELECTOR", Some("nodeSelector"), ".Values.runtime.nodeSelector | toJson", json!(selector)),
        slot(
            "IMAGE",
            Some("image"),
            "required \"runtime.image\" .Values.runtime.image | quote",
            json!(args.image),
        ),
        slot("ACTION", Some("action"), ".Values.runtime.action | quote", json!(action)),
        slot(
            "SUBJECT",
            Some("subject"),
            "required \"runtime.subject\" .Values.runtime.subject | quote",
            json!(subject),
        ),
    ]
}

#[cfg(test)]
pub(crate) fn example(uninstall: bool) -> Vec<Slot> {
    let args = Args {
        platform: Platform::MetalQemuSnp,
        bundle: PathBuf::new(),
        image: format!("registry.example/installer@sha256:{}", "1".repeat(64)),
        namespace: "kube-system".into(),
        no_namespace: false,
        node_selector: vec![("pool".into(), "\"odd\": {}\n".into())],
        uninstall,
        form: Form::Yaml,
    };
    let handler = "contrast-cc-metal-qemu-snp-01234567".parse();
    handler.map(|handler| slots(&args, &handler, "{\"files\": [\"${HANDLER}\n---\n\"]}")).unwrap_or_default()
}
