//! `contrast coordinator`.

use clap::ValueEnum;
use runtime_bundle::HandlerName;
use serde_json::{Value, json};

use super::{Form, Slot, demand_digest, dns_label, print};
use crate::printer::Printer;

pub(crate) const TEMPLATE: &str = include_str!("../../../deploy/resources/coordinator.yaml");

/// Print the Coordinator's Kubernetes resources: StatefulSet, services, rights, disruption budget, network policy.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    contrast coordinator --image ghcr.io/me/coordinator@sha256:... --runtime contrast-cc-metal-qemu-snp-8da615a6 > coordinator.yml\n  \
    contrast coordinator --image ... --runtime ... --replicas 3 --namespace shop --service-type LoadBalancer\n  \
    contrast coordinator --image ... --runtime ... --env CONTRAST_CHECKPOINT_SECONDS=30")]
pub(crate) struct Args {
    /// The Coordinator's image, by digest.
    #[arg(long, short)]
    image: String,
    /// Name of the runtime: the name of its RuntimeClass.
    #[arg(long, short)]
    runtime: HandlerName,
    /// Namespace.
    #[arg(long, short, default_value = "default", value_parser = dns_label)]
    namespace: String,
    /// Replicas.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    replicas: u32,
    /// Memory of each, in MiB.
    #[arg(long, default_value_t = 200, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,
    /// How the services are reached.
    #[arg(long, value_enum, default_value_t)]
    service_type: ServiceType,
    /// An option of the Coordinator as an environment variable, such as the etcd it writes to. May be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    form: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ServiceType {
    /// From inside the cluster.
    #[default]
    #[value(name = "ClusterIP")]
    ClusterIp,
    /// From outside, at a port of every node.
    #[value(name = "NodePort")]
    NodePort,
    /// From outside, at an address of its own.
    #[value(name = "LoadBalancer")]
    LoadBalancer,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let legal = |name: &str| {
        let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let pair = text.split_once('=').filter(|(name, _)| legal(name));
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "NAME=VALUE is wanted".into())
}

pub(crate) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    demand_digest(&args.image)?;
    print(printer, args.form, "coordinator", TEMPLATE, &slots(args))
}

/// The placeholders of the template.
fn slots(args: &Args) -> Vec<Slot> {
    let mut env = vec![
        json!({ "name": "CONTRAST_STATE_DIR", "value": "/var/lib/contrast" }),
        json!({ "name": "CONTRAST_LOG_FORMAT", "value": "json" }),
    ];
    env.extend(args.env.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    let service = args.service_type.to_possible_value().map(|value| value.get_name().to_owned());
    let slot = |name, path, expression, value| Slot { name, path, expression, value };
    vec![
        slot("NAMESPACE", None, ".Release.Namespace | quote", json!(args.namespace)),
        slot("REPLICAS", Some("replicas"), ".Values.coordinator.replicas | int", json!(args.replicas)),
        slot(
            "HANDLER",
            Some("runtime"),
            "required \"coordinator.runtime\" .Values.coordinator.runtime | quote",
            json!(args.runtime.as_str()),
        ),
        slot(
            "IMAGE",
            Some("image"),
            "required \"coordinator.image\" .Values.coordinator.image | quote",
            json!(args.image),
        ),
        slot("ENV", Some("env"), ".Values.coordinator.env | toJson", Value::Array(env)),
        slot(
            "MEMORY",
            Some("memory"),
            ".Values.coordinator.memory | quote",
            json!(format!("{}Mi", args.memory)),
        ),
        slot("SERVICE_TYPE", Some("serviceType"), ".Values.coordinator.serviceType | quote", json!(service)),
    ]
}

#[cfg(test)]
pub(crate) fn example() -> Vec<Slot> {
    let args = Args {
        image: format!("registry.example/coordinator@sha256:{}", "2".repeat(64)),
        runtime: "contrast-cc-metal-qemu-snp-01234567".parse().unwrap_or_else(|_| unreachable!()),
        namespace: "shop".into(),
        replicas: 3,
        memory: 200,
        service_type: ServiceType::LoadBalancer,
        env: vec![("A".into(), "\"}]\n---\n".into())],
        form: Form::Yaml,
    };
    slots(&args)
}
