//! Finding what carries a pod template.

use manifest::Role;
use serde_json::Value;
use yaml_edit::{Path, Step};

use crate::{Place, PolicyError, spec::PodSpec, text::quote};

/// Runtime classes that begin with this are confidential.
pub(crate) const RUNTIME_CLASS: &str = "contrast-cc";
/// Prefix of the annotations by which a pod asks for something.
pub(crate) const ANNOTATION: &str = "contrast.edgeless.systems/";

/// A confidential pod, or the template of one, and where it stands.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Kind of the resource that holds it.
    pub kind: String,
    /// Its namespace, `default` if none is given.
    pub namespace: String,
    /// Whether that was given, or is only what is usual.
    pub(crate) namespace_given: bool,
    /// Its name, which is its DNS name as well.
    pub name: String,
    /// Extra rights.
    pub role: Role,
    /// Name of its workload secret.
    pub workload_secret_id: String,
    /// Position of the file.
    pub(crate) file: usize,
    /// Position of the document in the file.
    pub(crate) document: usize,
    /// The pod (with `metadata` and `spec`) in the document.
    pub(crate) path: Path,
    /// The pod.
    pub(crate) pod: Value,
    pub(crate) spec: PodSpec,
    /// What pods made from it are called, as a regular expression.
    pub(crate) pod_name: String,
    /// Whether its pods are numbered by a job.
    pub(crate) indexed: bool,
    /// Names of a StatefulSet's claim templates, which are volumes of its pods.
    pub(crate) claims: Vec<String>,
}

/// Where the pod is, by kind of the resource.
fn template(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&[]),
        "PodTemplate" => Some(&["template"]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some(&["spec", "template"])
        }
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Every resource in a document with its place: lists hold several.
pub(crate) fn resources(document: &Value) -> Vec<(Path, &Value)> {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    match document.get("items").and_then(Value::as_array) {
        Some(items) if kind.ends_with("List") => {
            let items = items.iter().enumerate();
            let place = |index| [Step::from("items"), Step::from(index)].into_iter().collect();
            items.map(|(index, item)| (place(index), item)).collect()
        }
        _ => vec![(Path::default(), document)],
    }
}

/// Where a resource of a kind that is not understood names a confidential runtime class.
pub(crate) fn left_out(resource: &Value) -> Option<Path> {
    fn search(value: &Value, at: &Path) -> Option<Path> {
        match value {
            Value::Object(map) => map.iter().find_map(|(key, value)| {
                let below = at.then(key.as_str());
                let class = value.as_str().filter(|_| key == "runtimeClassName");
                match class.is_some_and(|class| class.starts_with(RUNTIME_CLASS)) {
                    true => Some(below),
                    false => search(value, &below),
                }
            }),
            Value::Array(items) => {
                items.iter().enumerate().find_map(|(index, item)| search(item, &at.then(index)))
            }
            _ => None,
        }
    }
    let kind = text(resource, "/kind").unwrap_or_default();
    if template(kind).is_some() { None } else { search(resource, &Path::default()) }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

impl Workload {
    /// The confidential pod of a resource, if it is one.
    pub(crate) fn read(place: &Place<'_>, at: &Path, resource: &Value) -> Result<Option<Self>, PolicyError> {
        let kind = text(resource, "/kind").unwrap_or_default();
        let Some(template) = template(kind) else { return Ok(None) };
        let below: Path = template.iter().copied().collect();
        let Some(pod) = below.find(resource) else { return Ok(None) };
        let class = text(pod, "/spec/runtimeClassName").unwrap_or_default();
        if !class.starts_with(RUNTIME_CLASS) {
            return Ok(None);
        }
        let path = at.join(&below);
        let generated = text(resource, "/metadata/generateName");
        let name = text(resource, "/metadata/name").or(generated.map(|name| name.trim_end_matches('-')));
        let Some(name) = name else {
            return Err(place.error(kind, "", &at.then("metadata"), "a name is needed"));
        };
        let spec_path = path.then("spec");
        let spec: PodSpec = PodSpec::deserialize_at(&spec_path, pod.get("spec").unwrap_or(&Value::Null))
            .map_err(|(path, message)| place.error(kind, name, &path, message))?;
        spec.refuse_unsupported()
            .map_err(|(field, rule)| place.error(kind, name, &below_field(&spec_path, &field), rule))?;
        let given = text(resource, "/metadata/namespace");
        let namespace = given.unwrap_or("default").to_owned();
        let role_path =
            path.then("metadata").then("annotations").then(format!("{ANNOTATION}pod-role").as_str());
        let role = match annotation(pod, "pod-role") {
            Some("coordinator") => Role::Coordinator,
            Some(_) => return Err(place.error(kind, name, &role_path, "only \"coordinator\" is a role")),
            None => Role::None,
        };
        let qualified = format!("{namespace}/{}/{name}", kind.to_lowercase());
        let workload_secret_id = match role {
            Role::Coordinator => String::new(),
            Role::None => annotation(pod, "workload-secret-id").map_or(qualified, str::to_owned),
        };
        let pod_name = pod_name(kind, name, text(resource, "/metadata/name").is_none(), resource);
        let claims = resource.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array);
        let claims = claims.filter(|_| kind == "StatefulSet").into_iter().flatten();
        let claims = claims.filter_map(|claim| text(claim, "/metadata/name")).map(str::to_owned).collect();
        Ok(Some(Self {
            kind: kind.to_owned(),
            namespace,
            namespace_given: given.is_some(),
            name: name.to_owned(),
            role,
            workload_secret_id,
            file: place.file,
            document: place.document,
            path,
            pod: pod.clone(),
            spec,
            pod_name,
            indexed: kind == "Job" && text(resource, "/spec/completionMode") == Some("Indexed")
                || kind == "CronJob"
                    && text(resource, "/spec/jobTemplate/spec/completionMode") == Some("Indexed"),
            claims,
        }))
    }

    /// An annotation of the pod, by the part of its name behind the prefix.
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        annotation(&self.pod, name)
    }

    /// Where its specification is in the document.
    pub(crate) fn spec_path(&self) -> Path {
        self.path.then("spec")
    }
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let annotations = pod.pointer("/metadata/annotations")?;
    annotations.get(format!("{ANNOTATION}{name}")).and_then(Value::as_str)
}

/// `containers[0].image` below a path.
pub(crate) fn below_field(path: &Path, field: &str) -> Path {
    let mut path = path.clone();
    for part in field.split('.').filter(|part| !part.is_empty()) {
        let (key, index) = part.split_once('[').map_or((part, None), |(key, index)| (key, Some(index)));
        if !key.is_empty() {
            path = path.then(key);
        }
        if let Some(index) = index.and_then(|index| index.trim_end_matches(']').parse::<usize>().ok()) {
            path = path.then(index);
        }
    }
    path
}

/// What Kubernetes calls the pods of a resource. Suffixes are of the alphabet of its name generator.
fn pod_name(kind: &str, name: &str, generated: bool, resource: &Value) -> String {
    const SUFFIX: &str = "[a-z0-9]{5}";
    // Generated names are cut to 58 characters before the suffix; a hash may be cut with them.
    let long = name.len() > 46;
    let base = quote(if long { name.get(..46).unwrap_or(name) } else { name });
    let middle = if long { "[a-z0-9.-]{0,12}" } else { "" };
    match kind {
        "Pod" if generated => {
            format!("{}{SUFFIX}", quote(text(resource, "/metadata/generateName").unwrap_or(name)))
        }
        "Pod" => quote(name),
        "StatefulSet" => format!("{}-[0-9]+", quote(name)),
        _ if long => format!("{base}{middle}{SUFFIX}"),
        "Deployment" => format!("{base}-[a-z0-9]{{6,10}}-{SUFFIX}"),
        "CronJob" => format!("{base}-[0-9]{{8,10}}(-[0-9]+)?-{SUFFIX}"),
        "Job" if text(resource, "/spec/completionMode") == Some("Indexed") => {
            format!("{base}-[0-9]+-{SUFFIX}")
        }
        "PodTemplate" => "[a-z0-9]([a-z0-9.-]*[a-z0-9])?".to_owned(),
        _ => format!("{base}-{SUFFIX}"),
    }
}
