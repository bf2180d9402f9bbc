//! A container's environment, arguments and commands.
//!
//! Order of precedence as the kubelet and the runtime have it: image, `envFrom`, `env`; a later entry of
//! a name replaces an earlier one.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    image::ContainerImage,
    objects::{CONFIG_MAP, Objects, SECRET},
    pattern,
    settings::Settings,
    spec::{Container, EnvSource, Exec},
    text::{Piece, Text, expand},
    workload::Workload,
};

/// What is wrong in a container, relative to it.
pub(crate) type Wrong = (String, String);

const UUID: &str = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}";
const ADDRESS: &str = "[0-9a-f.:]+";
const ADDRESSES: &str = "[0-9a-f.:]+(,[0-9a-f.:]+)*";
const DNS_NAME: &str = "[A-Za-z0-9.-]+";
const LABEL: &str = "[A-Za-z0-9._-]*";
/// Variable that every container of an indexed job has, and the annotation that it comes from.
const COMPLETION_INDEX: &str = "JOB_COMPLETION_INDEX";
const COMPLETION_INDEX_ANNOTATION: &str = "batch.kubernetes.io/job-completion-index";
/// Longest host name that the kubelet gives a pod.
const MAX_HOSTNAME: usize = 63;

/// Values by name.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    values: BTreeMap<String, Text>,
    /// Those that Kubernetes sets, so that arguments may use them.
    kubernetes: BTreeMap<String, Text>,
    /// Whether services of the namespace have variables.
    service_links: bool,
}

/// What a policy says of an environment.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct EnvPolicy {
    /// Entries that are known now.
    pub(crate) env: Vec<String>,
    /// Those that are known when the pod runs.
    pub(crate) env_templates: Vec<String>,
    /// Known then, too, but not every runtime sets them.
    pub(crate) env_optional: Vec<String>,
    /// Names of all of these.
    pub(crate) env_names: Vec<String>,
    /// What has a form only, by name.
    pub(crate) env_forms: Map<String, Value>,
    /// A regular expression for entries that have a form, one in each line.
    pub(crate) env_lines: String,
}

impl Environment {
    pub(crate) fn read(
        workload: &Workload,
        container: &Container,
        image: &ContainerImage,
        objects: &Objects,
    ) -> Result<Self, Wrong> {
        let service_links = workload.spec.enable_service_links != Some(false);
        let mut environment = Self { service_links, ..Self::default() };
        for (index, from) in container.env_from.iter().flatten().enumerate() {
            let at = |field: &str| format!("envFrom[{index}].{field}");
            let (kind, reference, field) = match (&from.config_map_ref, &from.secret_ref) {
                (Some(reference), _) => (CONFIG_MAP, reference, "configMapRef"),
                (None, Some(reference)) => (SECRET, reference, "secretRef"),
                (None, None) => return Err((at(""), "a configMapRef or secretRef is needed".into())),
            };
            match objects.get(kind, &workload.namespace, &reference.name) {
                Some(values) => {
                    let prefix = from.prefix.as_deref().unwrap_or_default();
                    for (key, value) in values {
                        environment.kubernetes.insert(format!("{prefix}{key}"), Text::literal(value));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err((at(field), missing(kind, &workload.namespace, &reference.name))),
            }
        }
        for (index, entry) in container.env.iter().flatten().enumerate() {
            let value = match (&entry.value, &entry.value_from) {
                (_, Some(source)) => match source_value(workload, source, objects) {
                    Ok(Some(value)) => value,
                    Ok(None) => continue,
                    Err((field, message)) => {
                        return Err((format!("env[{index}].valueFrom.{field}"), message));
                    }
                },
                (Some(value), None) => environment.expand(value),
                (None, None) => Text::literal(""),
            };
            environment.kubernetes.insert(entry.name.clone(), value);
        }
        for entry in &image.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            environment.values.insert(name.to_owned(), Text::literal(value));
        }
        if workload.indexed {
            let index = || Text::piece(Piece::form("[0-9]+"));
            environment.kubernetes.entry(COMPLETION_INDEX.into()).or_insert_with(index);
        }
        environment.values.extend(environment.kubernetes.clone());
        Ok(environment)
    }

    /// `$(NAME)` stands for what Kubernetes sets, not for what the image does.
    fn expand(&self, text: &str) -> Text {
        expand(text, |name| self.kubernetes.get(name).cloned().or_else(|| self.service_value(name)))
    }

    /// What a variable of a service has as its value. Of Kubernetes' own there always is one; another service may be
    /// there when the pod starts, or not, after which the text stays as it is.
    fn service_value(&self, name: &str) -> Option<Text> {
        let own = name.starts_with("KUBERNETES_");
        let form = service_form(name).filter(|_| own || self.service_links)?;
        Some(Text::piece(match own {
            true => Piece::form(form),
            false => Piece::form(format!("{form}|\\$\\({name}\\)")),
        }))
    }

    /// What the policy says of the environment. `patterns` are the forms that entries of any name may have.
    pub(crate) fn to_policy(
        &self,
        container: &Container,
        settings: &Settings,
        patterns: &[String],
    ) -> EnvPolicy {
        let mut policy = EnvPolicy::default();
        let mut lines = patterns.to_vec();
        for (name, value) in &self.values {
            let text = Text::literal(format!("{name}=")).then(value.clone());
            match (text.known(), text.template(), text.pattern()) {
                (Some(known), ..) => policy.env.push(known),
                (_, Some(template), _) => policy.env_templates.push(template),
                (.., pattern) => {
                    // What may have several lines is checked by its name.
                    if !pattern.contains('\n') {
                        lines.push(pattern.clone());
                    }
                    policy.env_forms.insert(name.clone(), json!({ "pattern": pattern }));
                    continue;
                }
            }
            policy.env_names.push(name.clone());
        }
        if !self.values.contains_key("PATH") {
            policy.env.push(settings.process.default_path.clone());
            policy.env_names.push("PATH".into());
        }
        let mut optional = |name: &str, value: Text| {
            if !self.values.contains_key(name)
                && let Some(template) = Text::literal(format!("{name}=")).then(value).template()
            {
                policy.env_optional.push(template);
                policy.env_names.push(name.into());
            }
        };
        optional("HOSTNAME", Text::piece(Piece::Placeholder("$(hostname)")));
        if container.tty == Some(true) {
            optional("TERM", Text::literal("xterm"));
        }
        policy.env.sort();
        policy.env_lines = pattern::lines(&lines);
        policy
    }

    /// `Args` of the policy: `command` and `args` over the image's entry point and arguments.
    pub(crate) fn args(&self, container: &Container, image: &ContainerImage) -> Value {
        let expanded = |list: &[String]| list.iter().map(|text| self.expand(text)).collect::<Vec<_>>();
        let plain = |list: &[String]| list.iter().map(Text::literal).collect::<Vec<_>>();
        let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
        let (command, args) = (given(&container.command), given(&container.args));
        let (first, second) = match (&command, &args) {
            (Some(command), Some(args)) => (expanded(command), expanded(args)),
            (Some(command), None) => (expanded(command), Vec::new()),
            (None, Some(args)) => (plain(&image.entrypoint), expanded(args)),
            (None, None) => (plain(&image.entrypoint), plain(&image.cmd)),
        };
        Value::Array(first.iter().chain(&second).map(Text::to_policy).collect())
    }

    /// Commands that probes and hooks run in the container.
    pub(crate) fn exec_commands(&self, container: &Container) -> Value {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        let probes = probes.into_iter().flatten().filter_map(|probe| probe.exec.as_ref());
        let hooks =
            container.lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
        let hooks = hooks.flatten().filter_map(|hook| hook.exec.as_ref());
        let command =
            |exec: &Exec| exec.command.iter().map(|text| self.expand(text).to_policy()).collect::<Vec<_>>();
        let plain = |exec: &Exec| exec.command.iter().map(|text| json!(text)).collect::<Vec<_>>();
        let mut commands: Vec<Vec<Value>> = Vec::new();
        // The kubelet expands variables in probes' commands, and not in hooks'.
        for found in probes.map(command).chain(hooks.map(plain)) {
            if !found.is_empty() && !commands.contains(&found) {
                commands.push(found);
            }
        }
        json!(commands)
    }
}

/// What the pod is called inside, as the kubelet has it.
pub(crate) fn hostname(workload: &Workload) -> Text {
    let spec = &workload.spec;
    if let Some(name) = &spec.hostname_override {
        return Text::literal(name);
    }
    let given = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let name = match given {
        // Pods of an indexed job are told apart by it.
        _ if workload.indexed => {
            Text::literal(format!("{}-", workload.name)).then(Text::piece(Piece::form("[0-9]+")))
        }
        // The controller puts the pod's name in its place.
        _ if workload.kind == "StatefulSet" => Text::piece(Piece::Placeholder("$(sandbox-name)")),
        Some(name) => Text::literal(name),
        None if workload.kind == "Pod" && workload.name.len() > MAX_HOSTNAME => {
            let cut = workload.name.get(..MAX_HOSTNAME).unwrap_or(&workload.name);
            Text::literal(cut.trim_end_matches(['-', '.']))
        }
        None => Text::piece(Piece::Placeholder("$(sandbox-name)")),
    };
    match &spec.subdomain {
        Some(subdomain) if spec.set_hostname_as_fqdn == Some(true) && !subdomain.is_empty() => {
            let domain = Text::literal(format!(".{subdomain}.{}.svc.", workload.namespace));
            name.then(domain).then(Text::piece(Piece::form(DNS_NAME)))
        }
        _ => name,
    }
}

/// Form of the value that a variable of a service has, by its name.
fn service_form(name: &str) -> Option<&'static str> {
    const URL: &str = r"(tcp|udp|sctp)://[0-9a-f.:\[\]]+:[0-9]{1,5}";
    const NUMBER: &str = "[0-9]{1,5}";
    let is_name = |text: &str| {
        let known = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
        text.starts_with(|c: char| c.is_ascii_uppercase()) && text.bytes().all(known)
    };
    if !is_name(name) {
        return None;
    }
    if name.ends_with("_SERVICE_HOST") {
        return Some(ADDRESS);
    }
    if name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return Some(NUMBER);
    }
    let (_, rest) = name.split_once("_PORT")?;
    let mut parts = rest.strip_prefix('_').unwrap_or(rest).split('_');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(""), None, ..) => Some(URL),
        (Some(port), Some("TCP" | "UDP" | "SCTP"), what, None) if port.parse::<u16>().is_ok() => match what {
            None => Some(URL),
            Some("PROTO") => Some("tcp|udp|sctp"),
            Some("PORT") => Some(NUMBER),
            Some("ADDR") => Some(ADDRESS),
            Some(_) => None,
        },
        _ => None,
    }
}

fn missing(kind: &str, namespace: &str, name: &str) -> String {
    let way_out = match kind {
        // Its values would be published with the policy.
        SECRET => {
            "derive the value from the workload secret instead, or mark the reference optional if the pod can do without it"
        }
        _ => "give its YAML too, or mark the reference optional if it will not exist",
    };
    format!(
        "{kind} {namespace}/{name} is not among the input files, so its values cannot be pinned; {way_out}"
    )
}

fn source_value(workload: &Workload, source: &EnvSource, objects: &Objects) -> Result<Option<Text>, Wrong> {
    if let Some(field) = &source.field_ref {
        return field_value(workload, &field.field_path)
            .map(Some)
            .map_err(|message| ("fieldRef.fieldPath".into(), message));
    }
    if let Some(resource) = &source.resource_field_ref {
        let known = ["limits.", "requests."].iter().any(|prefix| resource.resource.starts_with(prefix));
        return match known {
            true => Ok(Some(Text::piece(Piece::form("[0-9]+")))),
            false => Err(("resourceFieldRef.resource".into(), "expected limits.* or requests.*".into())),
        };
    }
    let (kind, reference, field) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(reference), _) => (CONFIG_MAP, reference, "configMapKeyRef"),
        (None, Some(reference)) => (SECRET, reference, "secretKeyRef"),
        (None, None) => return Err((String::new(), "this source of a value is not understood".into())),
    };
    let optional = reference.optional == Some(true);
    match objects.get(kind, &workload.namespace, &reference.name) {
        Some(values) => match values.get(&reference.key) {
            Some(value) => Ok(Some(Text::literal(value))),
            None if optional => Ok(None),
            None => Err((
                format!("{field}.key"),
                format!("{kind} {} has no text under {:?}", reference.name, reference.key),
            )),
        },
        None if optional => Ok(None),
        None => Err((field.into(), missing(kind, &workload.namespace, &reference.name))),
    }
}

fn field_value(workload: &Workload, path: &str) -> Result<Text, String> {
    let form = |form: &'static str| Ok(Text::piece(Piece::form(form)));
    let template = |kind: &str, key: &str| {
        let map = workload.pod.pointer(&format!("/metadata/{kind}"));
        map.and_then(|map| map.get(key)).and_then(Value::as_str).map(Text::literal)
    };
    let keyed = |kind: &str| {
        path.strip_prefix(&format!("metadata.{kind}['")).and_then(|rest| rest.strip_suffix("']"))
    };
    match path {
        "metadata.name" => Ok(Text::piece(Piece::Placeholder("$(sandbox-name)"))),
        "metadata.namespace" => Ok(Text::literal(&workload.namespace)),
        "metadata.uid" => form(UUID),
        "status.podIP" | "status.hostIP" => form(ADDRESS),
        "status.podIPs" | "status.hostIPs" => form(ADDRESSES),
        "spec.nodeName" => form(DNS_NAME),
        "spec.serviceAccountName" => {
            // The second is its older name.
            let fields = ["/spec/serviceAccountName", "/spec/serviceAccount"];
            let mut names = fields.iter().filter_map(|field| workload.pod.pointer(field)?.as_str());
            Ok(Text::literal(names.find(|name| !name.is_empty()).unwrap_or("default")))
        }
        _ => {
            if let Some(label) = keyed("labels") {
                return template("labels", label).map_or_else(|| form(LABEL), Ok);
            }
            if let Some(annotation) = keyed("annotations") {
                if annotation == COMPLETION_INDEX_ANNOTATION && workload.indexed {
                    return form("[0-9]+");
                }
                let found = template("annotations", annotation);
                return found.ok_or_else(|| {
                    format!("the pod has no annotation {annotation:?}, so its value cannot be pinned")
                });
            }
            Err(format!("the field {path:?} is not one that a pod can ask for"))
        }
    }
}
