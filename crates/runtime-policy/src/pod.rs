//! Finding confidential pods in YAML.

use manifest::Role;
use serde::{Deserialize as _, Serialize};
use serde_yaml_ng::Value;

/// Runtime classes that begin with this are confidential.
const RUNTIME_CLASS: &str = "contrast-cc";
const ROLE_ANNOTATION: &str = "contrast.edgeless.systems/pod-role";
const SECRET_ID_ANNOTATION: &str = "contrast.edgeless.systems/workload-secret-id";
/// Largest YAML file, in bytes.
const MAX_YAML_BYTES: usize = 8 << 20;

/// A confidential pod, or the template of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// Kind of the resource that holds it.
    pub kind: String,
    /// Its namespace, `default` if none is given.
    pub namespace: String,
    /// Its name, which is its DNS name as well.
    pub name: String,
    /// Init containers and containers, in the order in which they start.
    pub containers: Vec<Container>,
    /// Extra rights.
    #[serde(skip)]
    pub role: Role,
    /// Name of its workload secret.
    #[serde(skip)]
    pub workload_secret_id: String,
}

/// What runs in a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Overrides the image's entry point.
    pub command: Vec<String>,
    /// Overrides the image's arguments.
    pub args: Vec<String>,
    /// Environment: name and value.
    pub env: Vec<(String, String)>,
}

/// Why YAML was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// Over the limit.
    #[error("{file}: {found} bytes, at most {MAX_YAML_BYTES} are read")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        found: usize,
    },
    /// Not YAML; the message has line and column.
    #[error("{file}: {message}")]
    Yaml {
        /// The file.
        file: String,
        /// What the reader says.
        message: String,
    },
    /// A resource without something it needs.
    #[error("{file}: {kind} {name:?}: {path}: {rule}")]
    Resource {
        /// The file.
        file: String,
        /// Kind of the resource.
        kind: String,
        /// Its name.
        name: String,
        /// Where in it.
        path: String,
        /// What is missing.
        rule: &'static str,
    },
}

/// Every confidential pod of a YAML file, which may hold several documents.
pub fn read_pods(file: &str, text: &str) -> Result<Vec<Pod>, PodError> {
    if text.len() > MAX_YAML_BYTES {
        return Err(PodError::TooLarge { file: file.to_owned(), found: text.len() });
    }
    let mut pods = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let resource = Value::deserialize(document)
            .map_err(|error| PodError::Yaml { file: file.to_owned(), message: error.to_string() })?;
        pods.extend(read_pod(file, &resource)?);
    }
    Ok(pods)
}

/// Where the pod's metadata and spec are, by kind.
fn template(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&[]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some(&["spec", "template"])
        }
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

fn text(value: &Value, path: &[&str]) -> Option<String> {
    let found = path.iter().try_fold(value, |value, key| value.get(*key))?;
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn read_pod(file: &str, resource: &Value) -> Result<Option<Pod>, PodError> {
    let kind = text(resource, &["kind"]).unwrap_or_default();
    let Some(path) = template(&kind) else { return Ok(None) };
    let Some(pod) = path.iter().try_fold(resource, |value, key| value.get(*key)) else { return Ok(None) };
    let class = text(pod, &["spec", "runtimeClassName"]).unwrap_or_default();
    if !class.starts_with(RUNTIME_CLASS) {
        return Ok(None);
    }
    let name = text(resource, &["metadata", "name"]).unwrap_or_default();
    let missing = |path: String, rule| PodError::Resource {
        file: file.to_owned(),
        kind: kind.clone(),
        name: name.clone(),
        path,
        rule,
    };
    if name.is_empty() {
        return Err(missing("metadata.name".into(), "a name is needed"));
    }
    let mut containers = Vec::new();
    for list in ["initContainers", "containers"] {
        let items = pod.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_sequence);
        for (index, item) in items.into_iter().flatten().enumerate() {
            let at = |field: &str| format!("spec.{list}[{index}].{field}");
            containers.push(Container {
                name: text(item, &["name"]).ok_or_else(|| missing(at("name"), "a name is needed"))?,
                image: text(item, &["image"]).ok_or_else(|| missing(at("image"), "an image is needed"))?,
                command: strings(item.get("command")),
                args: strings(item.get("args")),
                env: environment(item),
            });
        }
    }
    if containers.is_empty() {
        return Err(missing("spec.containers".into(), "at least one container is needed"));
    }
    let namespace = text(resource, &["metadata", "namespace"]).unwrap_or_else(|| "default".into());
    let annotation = |key: &str| text(pod, &["metadata", "annotations", key]);
    let role = match annotation(ROLE_ANNOTATION).as_deref() {
        Some("coordinator") => Role::Coordinator,
        Some(_) => return Err(missing(ROLE_ANNOTATION.into(), "only \"coordinator\" is a role")),
        None => Role::None,
    };
    let qualified = format!("{namespace}/{}/{name}", kind.to_lowercase());
    let workload_secret_id = match role {
        Role::Coordinator => String::new(),
        Role::None => annotation(SECRET_ID_ANNOTATION).unwrap_or(qualified),
    };
    Ok(Some(Pod { kind, namespace, name, containers, role, workload_secret_id }))
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_sequence).into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn environment(container: &Value) -> Vec<(String, String)> {
    let items = container.get("env").and_then(Value::as_sequence).into_iter().flatten();
    items.filter_map(|item| Some((text(item, &["name"])?, text(item, &["value"])?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOYMENT: &str = "kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    spec:
      runtimeClassName: contrast-cc-snp
      containers:
      - {name: web, image: 'registry.example/web@sha256:00', env: [{name: PORT, value: '80'}]}
---
kind: Service
metadata: {name: web}
";

    #[test]
    fn confidential_templates_are_found_and_other_resources_left_alone() {
        let pods = read_pods("web.yml", DEPLOYMENT).unwrap();
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].workload_secret_id, "shop/deployment/web");
        assert_eq!(pods[0].containers[0].env, [("PORT".to_owned(), "80".to_owned())]);
        let ordinary = DEPLOYMENT.replace("contrast-cc-snp", "runc");
        assert_eq!(read_pods("web.yml", &ordinary), Ok(vec![]));
    }

    #[test]
    fn errors_name_file_and_place() {
        let broken = read_pods("web.yml", "kind: [Pod\nmetadata:").unwrap_err().to_string();
        assert!(broken.starts_with("web.yml: ") && broken.contains("line"), "{broken}");
        let nameless =
            DEPLOYMENT.replace("name: web, image: 'registry.example/web@sha256:00', ", "name: web, ");
        assert_eq!(
            read_pods("web.yml", &nameless).unwrap_err().to_string(),
            "web.yml: Deployment \"web\": spec.containers[0].image: an image is needed"
        );
    }
}
