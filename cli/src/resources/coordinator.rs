//! `contrast coordinator`.

use clap::ValueEnum;
use runtime_bundle::HandlerName;
use serde_json::{Value, json};

use super::{Form, Slot, demand_digest, dns_label, print};
use crate::printer::{Printer, Refused};

pub(crate) const TEMPLATE: &str = include_str!("../../../deploy/resources/coordinator.yaml");

/// Print the Coordinator's Kubernetes resources: StatefulSet, services, rights, disruption budget, network policy.
#[derive(Debug, clap::Args)]
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
    /// Do not print the namespace itself: something else makes it, perhaps with labels.
    #[arg(long)]
    no_namespace: bool,
    /// Replicas.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    replicas: u32,
    /// Memory of each, in MiB.
    // The sum in docs/limits.md: what requests (168 MiB), connections (96) and readers of the log (60) can hold, and what
    // was measured besides (docs/performance.md: 78 MiB with 300 connections and 18 600 certificates in the log, as one of
    // three replicas on etcd). 130 bytes come for each further certificate, which a restart does not give back, so the
    // remaining 94 MiB last for 720 000 certificates, of this and all earlier starts. A log without `--storage` is not
    // in this sum.
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,
    /// Processor time that each may use at most, in thousandths of a processor; the VM gets as many processors more,
    /// rounded up.
    #[arg(long, default_value_t = 1000, value_name = "MILLI", value_parser = clap::value_parser!(u32).range(100..))]
    cpu: u32,
    /// How several replicas find each other.
    #[arg(long, value_enum, default_value_t)]
    discovery: Discovery,
    /// How the services are reached.
    #[arg(long, value_enum, default_value_t)]
    service_type: ServiceType,
    /// The etcd cluster that all replicas write to; several replicas need one.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// Secret (kubernetes.io/tls) with etcd's authority and the client certificate: ca.crt, tls.crt, tls.key.
    #[arg(long, value_name = "SECRET", requires = "etcd_endpoints", value_parser = dns_label)]
    etcd_tls_secret: Option<String>,
    /// Secret (kubernetes.io/basic-auth) with etcd's user: username, password.
    #[arg(long, value_name = "SECRET", requires = "etcd_endpoints", value_parser = dns_label)]
    etcd_user_secret: Option<String>,
    /// Size of a persistent volume claim for each replica's log, such as 10Gi, 64Mi at least. Replicas that share an etcd
    /// do without: it keeps the log.
    #[arg(long, value_name = "SIZE", value_parser = quantity)]
    storage: Option<String>,
    /// Keep the log in the pod's memory. When the pod goes, the deployment is gone for ever: its history, its keys, and
    /// with them every encrypted volume; seed shares do not bring it back.
    #[arg(long, conflicts_with_all = ["storage", "etcd_endpoints"])]
    ephemeral: bool,
    /// Storage class of these claims; the cluster's default if not given.
    #[arg(long, value_name = "CLASS", requires = "storage", value_parser = dns_label)]
    storage_class: Option<String>,
    /// An option of the Coordinator as an environment variable. May be given several times; goes before what the options
    /// above make of it.
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Discovery {
    /// By the cluster's DNS: the name of a headless service.
    #[default]
    Dns,
    /// By asking the API server for that service's endpoints, for which the pods get a service account's token.
    Endpoints,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let legal = |name: &str| {
        let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let pair = text.split_once('=').filter(|(name, _)| legal(name));
    let (name, value) = pair.ok_or("NAME=VALUE is wanted")?;
    if name.starts_with("CONTRAST_") && VARIABLES.lines().all(|known| known != name) {
        let near = VARIABLES.lines().max_by_key(|known| {
            let same = known.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
            let same_end = known.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
            (same + same_end, std::cmp::Reverse(known.len()))
        });
        return Err(format!("the Coordinator has no option {name}; is {} meant?", near.unwrap_or_default()));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The environment variables that the Coordinator reads as options; a test of the Coordinator keeps the list.
const VARIABLES: &str = include_str!("../../../deploy/resources/coordinator-variables.txt");

/// The least that a log is worth a volume for, in bytes: some thousand certificates.
const LEAST_STORAGE: u64 = 64 << 20;

/// A Kubernetes quantity in bytes: a whole number, maybe with a unit.
fn quantity(text: &str) -> Result<String, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: Option<u64> = match unit {
        "" => Some(1),
        "k" => Some(1000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        "T" => Some(1_000_000_000_000),
        "P" => Some(1_000_000_000_000_000),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        "Ti" => Some(1 << 40),
        "Pi" => Some(1 << 50),
        _ => None,
    };
    let bytes = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    match bytes.ok_or("a size such as 10Gi is wanted")? {
        LEAST_STORAGE.. => Ok(text.to_owned()),
        bytes => Err(format!("{bytes} bytes hold no log: 64Mi at least; did you mean {number}Gi?")),
    }
}

pub(crate) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    demand_digest(&args.image)?;
    let names_etcd = |(name, _): &(String, String)| name == "CONTRAST_ETCD_ENDPOINTS";
    if args.replicas > 1 && args.etcd_endpoints.is_empty() && !args.env.iter().any(names_etcd) {
        return Err(Refused(format!(
            "{} replicas need a store that they share: give --etcd-endpoints",
            args.replicas
        ))
        .into());
    }
    let keeps = args.storage.is_some() || args.ephemeral || !args.etcd_endpoints.is_empty();
    if !keeps && !args.env.iter().any(names_etcd) {
        return Err(Refused(
            "where is the event log to be kept? Give --storage 10Gi for a persistent volume, or --etcd-endpoints; or \
             --ephemeral for a trial: then the deployment is gone for ever when the pod is, and seed shares do not bring \
             it back"
                .into(),
        )
        .into());
    }
    if args.ephemeral && args.replicas == 1 {
        printer.warning(
            "the event log is in the pod's memory; when the pod goes (an eviction, a node's restart), this \
             deployment is gone for ever",
        );
    }
    print(
        printer,
        args.form,
        "coordinator",
        TEMPLATE,
        &slots(args),
        (!args.no_namespace).then_some(args.namespace.as_str()),
    )
}

/// The placeholders of the template.
fn slots(args: &Args) -> Vec<Slot> {
    let mut env = vec![
        json!({ "name": "CONTRAST_STATE_DIR", "value": "/var/lib/contrast" }),
        json!({ "name": "CONTRAST_LOG_FORMAT", "value": "json" }),
    ];
    let given = |name: &str| args.env.iter().any(|(given, _)| given == name);
    env.extend(
        from_options(args).into_iter().filter(|variable| !variable["name"].as_str().is_some_and(given)),
    );
    env.extend(args.env.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    let (mounts, volumes, claims) = volumes(args);
    let service = args.service_type.to_possible_value().map(|value| value.get_name().to_owned());
    let slot = |name, path, expression, value| Slot { name, path, expression, value };
    let asks_api = args.replicas > 1 && args.discovery == Discovery::Endpoints;
    let list =
        json!({ "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"] });
    let rules = if asks_api { vec![list] } else { vec![] };
    vec![
        slot("RULES", Some("rules"), ".Values.coordinator.rules | toJson", json!(rules)),
        slot(
            "TOKEN",
            Some("automountServiceAccountToken"),
            ".Values.coordinator.automountServiceAccountToken",
            json!(asks_api),
        ),
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
        slot("VOLUME_MOUNTS", Some("volumeMounts"), ".Values.coordinator.volumeMounts | toJson", mounts),
        slot("VOLUMES", Some("volumes"), ".Values.coordinator.volumes | toJson", volumes),
        slot(
            "CLAIMS",
            Some("volumeClaimTemplates"),
            ".Values.coordinator.volumeClaimTemplates | toJson",
            claims,
        ),
        slot(
            "MEMORY",
            Some("memory"),
            ".Values.coordinator.memory | quote",
            json!(format!("{}Mi", args.memory)),
        ),
        slot("CPU", Some("cpu"), ".Values.coordinator.cpu | quote", json!(format!("{}m", args.cpu))),
        slot("SERVICE_TYPE", Some("serviceType"), ".Values.coordinator.serviceType | quote", json!(service)),
    ]
}

/// Where the keys for etcd are mounted. Files only: variables would show in `kubectl describe`.
const ETCD_TLS: &str = "/etc/contrast/etcd-tls";
const ETCD_USER: &str = "/etc/contrast/etcd-user";

/// The headless service.
const PEERS: &str = "coordinator-peers";

/// Several replicas find each other by the headless service, and all write to etcd.
fn from_options(args: &Args) -> Vec<Value> {
    let mut env = Vec::new();
    let mut variable = |name: &str, value: String| env.push(json!({ "name": name, "value": value }));
    if args.replicas > 1 {
        match args.discovery {
            Discovery::Dns => variable("CONTRAST_PEERS", format!("{PEERS}:7777")),
            Discovery::Endpoints => variable("CONTRAST_PEERS_SERVICE", PEERS.into()),
        }
    }
    if !args.etcd_endpoints.is_empty() {
        variable("CONTRAST_ETCD_ENDPOINTS", args.etcd_endpoints.join(","));
        if args.storage.is_none() {
            // The replicas' copies go with their pods, so etcd has to keep everything.
            variable("CONTRAST_ETCD_TRIM_ABOVE", "never".into());
        }
    }
    if args.etcd_tls_secret.is_some() {
        variable("CONTRAST_ETCD_CA", format!("{ETCD_TLS}/ca.crt"));
        variable("CONTRAST_ETCD_CERT", format!("{ETCD_TLS}/tls.crt"));
        variable("CONTRAST_ETCD_KEY", format!("{ETCD_TLS}/tls.key"));
    }
    if let Some(secret) = &args.etcd_user_secret {
        variable("CONTRAST_ETCD_PASSWORD_FILE", format!("{ETCD_USER}/password"));
        let key = json!({ "secretKeyRef": { "name": secret, "key": "username" } });
        env.push(json!({ "name": "CONTRAST_ETCD_USER", "valueFrom": key }));
    }
    env
}

/// Mounts, volumes, and claims.
fn volumes(args: &Args) -> (Value, Value, Value) {
    let mut mounts = vec![json!({ "name": "state", "mountPath": "/var/lib/contrast" })];
    let (mut volumes, mut claims) = (Vec::new(), Vec::new());
    match &args.storage {
        None => volumes.push(json!({ "name": "state", "emptyDir": {} })),
        Some(size) => {
            let mut spec = json!({
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": size } },
            });
            if let Some(class) = &args.storage_class {
                spec["storageClassName"] = json!(class);
            }
            claims.push(json!({ "metadata": { "name": "state" }, "spec": spec }));
        }
    }
    let secrets =
        [("etcd-tls", ETCD_TLS, &args.etcd_tls_secret), ("etcd-user", ETCD_USER, &args.etcd_user_secret)];
    for (name, path, secret) in secrets {
        if let Some(secret) = secret {
            mounts.push(json!({ "name": name, "mountPath": path, "readOnly": true }));
            volumes.push(json!({ "name": name, "secret": { "secretName": secret, "defaultMode": 0o440 } }));
        }
    }
    (json!(mounts), json!(volumes), json!(claims))
}

#[cfg(test)]
pub(crate) fn example(storage: Option<&str>, asks_api: bool) -> Vec<Slot> {
    let discovery = if asks_api { Discovery::Endpoints } else { Discovery::Dns };
    let args = Args {
        image: format!("registry.example/coordinator@sha256:{}", "2".repeat(64)),
        runtime: "contrast-cc-metal-qemu-snp-01234567".parse().unwrap_or_else(|_| unreachable!()),
        namespace: "shop".into(),
        no_namespace: false,
        replicas: 3,
        memory: 512,
        cpu: 1000,
        discovery,
        service_type: ServiceType::LoadBalancer,
        etcd_endpoints: vec!["https://etcd-0:2379".into(), "https://etcd-1:2379".into()],
        etcd_tls_secret: Some("etcd-tls".into()),
        etcd_user_secret: Some("etcd-user".into()),
        storage: storage.map(str::to_owned),
        ephemeral: storage.is_none(),
        storage_class: None,
        env: vec![("A".into(), "\"}]\n---\n".into())],
        form: Form::Yaml,
    };
    slots(&args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_one_that_holds_a_log() {
        for good in ["64Mi", "10Gi", "67108864", "1T"] {
            assert_eq!(quantity(good).unwrap(), good);
        }
        assert_eq!(quantity("10").unwrap_err(), "10 bytes hold no log: 64Mi at least; did you mean 10Gi?");
        for bad in ["", "Gi", "1.5Gi", "-1Gi", "10GiB", "99999999999P", "0"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }
}
