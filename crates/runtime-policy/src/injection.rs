//! What `generate` adds to a confidential pod (docs/spec/manifest-and-cli.md, section 3,
//! docs/spec/data-plane.md).

use std::collections::BTreeSet;

use manifest::Role;
use serde_json::{Value, json};
use yaml_edit::{Document, Path, Position};

use crate::{
    Finding, Place, PolicyError, annotations,
    injected::{self, INITIALIZER, SECRETS, SECRETS_GROUP, SECRETS_PATH, SECURE_VOLUME, SERVICE_MESH},
    workload::{ANNOTATION, Workload},
};

/// Volume for the layers of images, and the device under which the agent in the guest looks for it. The agent
/// encrypts it with a key that it makes up (kata-containers, how to pull images in the guest).
const TRUSTED_STORE: &str = "contrast-trusted-store";
const TRUSTED_STORE_DEVICE: &str = "/dev/trusted_store";

/// What is added, and from which images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// Image of the initializer; `None` leaves it out.
    pub initializer: Option<String>,
    /// Image of the service mesh, for pods that ask for it; `None` leaves it out.
    pub service_mesh: Option<String>,
    /// Whether the guest lets nobody in from its start (`service-mesh deny`), so that somebody must lift that in a pod
    /// without a mesh.
    pub lift_default_deny: bool,
    /// Whether initializers stay to renew certificates, where a pod's annotation does not say.
    pub renewal: bool,
    /// Size of the encrypted store of image layers, such as `10Gi`; `None` keeps layers in the VM's memory.
    pub trusted_store: Option<String>,
    /// Runtime class of this installation; `None` leaves the YAML's.
    pub runtime_class: Option<String>,
    /// Images to replace, by the reference in the YAML.
    pub image_replacements: Vec<(String, String)>,
    /// SHA-256 of the workload owners' public keys, hex: pods take only a deployment that they vouch for. Empty: pods
    /// take the first one that answers.
    pub workload_owners: Vec<String>,
    /// How many of them must vouch.
    pub workload_owners_needed: usize,
    /// Where pods find the Coordinator; `None`: the service `coordinator` in the namespace where the YAML has one, which is
    /// the pod's own if it has none.
    pub coordinator_host: Option<String>,
}

struct Change<'a> {
    file: &'a str,
    document: &'a mut Document,
    workload: &'a Workload,
    spec: Path,
}

impl Change<'_> {
    fn set(&mut self, path: &Path, value: &Value) -> Result<(), PolicyError> {
        self.document
            .set(path, value)
            .map(drop)
            .map_err(|source| PolicyError::Yaml { file: self.file.to_owned(), source })
    }

    fn insert(&mut self, path: &Path, position: Position, value: &Value) -> Result<(), PolicyError> {
        let outcome = self.document.insert(path, position, value);
        outcome.map_err(|source| PolicyError::Yaml { file: self.file.to_owned(), source })
    }

    fn list(&self, field: &str) -> Vec<Value> {
        let list = self.spec.then(field).find(self.document.value());
        list.and_then(Value::as_array).cloned().unwrap_or_default()
    }

    fn finding(&self, path: &Path, message: impl Into<String>) -> Finding {
        let place = Place { name: self.file, file: 0, document: 0, text: self.document };
        place.finding(&self.workload.kind, &self.workload.name, path, message)
    }

    fn error(&self, path: &Path, message: impl Into<String>) -> PolicyError {
        PolicyError::Resource(self.finding(path, message))
    }

    fn annotation_path(&self, name: &str) -> Path {
        self.workload.path.then("metadata").then("annotations").then(format!("{ANNOTATION}{name}").as_str())
    }

    fn annotation_error(&self, (name, message): (&str, String)) -> PolicyError {
        self.error(&self.annotation_path(name), message)
    }

    /// Takes a container out that is not the first init container, where it belongs, and `others` wherever they are: so
    /// stands in YAML what earlier versions added. Comments in the list go with them.
    fn take_out_of_place(&mut self, first: &str, others: &[&str]) -> Result<(), PolicyError> {
        let list = self.list("initContainers");
        let in_place = |(index, container): &(usize, Value)| {
            let name = container["name"].as_str().unwrap_or_default();
            !others.contains(&name) && (name != first || *index == 0)
        };
        let kept: Vec<Value> =
            list.iter().cloned().enumerate().filter(in_place).map(|(_, container)| container).collect();
        match kept.len() == list.len() {
            true => Ok(()),
            false => self.set(&self.spec.then("initContainers"), &Value::Array(kept)),
        }
    }

    /// Puts a container in a list under its name. What a user wrote there is kept where it fits beside ours: variables,
    /// resources, security context; what does not is replaced, and said. A digest that pins the same image stays.
    fn put_container(
        &mut self,
        mut container: Value,
        position: Position,
        warnings: &mut Vec<Finding>,
    ) -> Result<(), PolicyError> {
        let list = self.spec.then("initContainers");
        let name = container["name"].clone();
        let existing =
            self.list("initContainers").into_iter().enumerate().find(|(_, known)| known["name"] == name);
        let Some((index, known)) = existing else { return self.insert(&list, position, &container) };
        if is_pinned_form(known["image"].as_str(), container["image"].as_str()) {
            container["image"] = known["image"].clone();
        }
        if let (Some(known), Some(mounts)) = (known.get("volumeMounts"), container.get_mut("volumeMounts")) {
            *mounts = known.clone(); // the mount of the secrets is added to every container below
        }
        let at = list.then(index);
        for message in kept(self.workload, &known, &mut container) {
            warnings.push(self.finding(&at, message));
        }
        let store = known.pointer("/volumeDevices").filter(|devices| is_store(devices));
        if let (Some(devices), None) = (store, container.get("volumeDevices")) {
            container["volumeDevices"] = devices.clone();
        }
        self.set(&list.then(index), &container)
    }
}

/// Takes over what a user wrote on a container of ours, and says what is replaced.
fn kept(workload: &Workload, known: &Value, container: &mut Value) -> Vec<String> {
    let mut replaced = Vec::new();
    let name = known["name"].as_str().unwrap_or_default().to_owned();
    // An annotation says what the resources shall be; without one they are whoever's wrote them last.
    let annotation = match name.as_str() {
        INITIALIZER => "initializer-resources",
        SERVICE_MESH => "servicemesh-resources",
        _ => "secure-pv-resources",
    };
    if let Some(resources) = known.get("resources").filter(|_| workload.annotation(annotation).is_none()) {
        container["resources"] = resources.clone();
    }
    let instead = |key: &str| {
        let name = annotations::that_sets(key);
        name.map_or(String::new(), |name| format!(": to set it, use the annotation {ANNOTATION}{name}"))
    };
    let ours = container["env"].as_array().cloned().unwrap_or_default();
    for variable in known["env"].as_array().into_iter().flatten() {
        let key = variable["name"].as_str().unwrap_or_default();
        match ours.iter().find(|own| own["name"] == key) {
            Some(own) if own == variable || key.starts_with("CONTRAST_WORKLOAD_OWNERS") => {}
            Some(own) => replaced.push(format!(
                "{key} was {}, and is {} now{}",
                variable["value"],
                own["value"],
                instead(key)
            )),
            None if annotations::that_sets(key).is_some() => {
                replaced.push(format!("{key}={} is taken out{}", variable["value"], instead(key)));
            }
            None if injected::is_written_here(key) => {} // an earlier version, or another form
            None => match container["env"].as_array_mut() {
                Some(env) => env.push(variable.clone()),
                None => container["env"] = json!([variable]),
            },
        }
    }
    for (key, value) in known["securityContext"].as_object().into_iter().flatten() {
        match container["securityContext"].get(key).cloned() {
            None if key != "privileged" => container["securityContext"][key] = value.clone(),
            Some(own) if own == *value => {}
            own => replaced
                .push(format!("securityContext.{key} was {value}, and is {} now", own.unwrap_or_default())),
        }
    }
    // An earlier run wrote these; everything else is somebody's own.
    const OURS: [&str; 12] = [
        "name",
        "image",
        "env",
        "resources",
        "securityContext",
        "terminationMessagePolicy",
        "volumeMounts",
        "volumeDevices",
        "restartPolicy",
        "lifecycle",
        "startupProbe",
        "args",
    ];
    for key in known.as_object().into_iter().flatten().map(|(key, _)| key) {
        if key == "imagePullPolicy" {
            container[key] = known[key].clone();
        } else if !OURS.contains(&key.as_str()) {
            replaced.push(format!("{key} is taken out: this container is written by `contrast generate`"));
        }
    }
    replaced
}

/// Whether the devices are the store of images and nothing else.
fn is_store(devices: &Value) -> bool {
    devices.as_array().is_some_and(|devices| devices.len() == 1 && devices[0]["name"] == TRUSTED_STORE)
}

/// Whether `known` is `wanted` with a digest behind it.
fn is_pinned_form(known: Option<&str>, wanted: Option<&str>) -> bool {
    let (Some(known), Some(wanted)) = (known, wanted) else { return false };
    let Some((name, _)) = known.split_once("@sha256:") else { return false };
    let tagged = |text: &str| {
        let text = text.split('@').next().unwrap_or_default();
        let has_tag = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if has_tag { text.to_owned() } else { format!("{text}:latest") }
    };
    let short = |text: &str| {
        let text = text.strip_prefix("docker.io/").unwrap_or(text);
        text.strip_prefix("library/").unwrap_or(text).to_owned()
    };
    short(&tagged(name)) == short(&tagged(wanted)) && !wanted.contains('@')
}

/// Under which name a pod finds the Coordinator. `known` are the namespaces in which the YAML has one.
pub(crate) fn coordinator_host(
    injection: &Injection,
    workload: &Workload,
    known: &BTreeSet<String>,
) -> String {
    if let Some(host) = &injection.coordinator_host {
        return host.clone();
    }
    match known.first() {
        Some(other) if !known.contains(&workload.namespace) => format!("coordinator.{other}"),
        _ => "coordinator".to_owned(),
    }
}

pub(crate) fn inject(
    injection: &Injection,
    coordinator: &str,
    file: &str,
    document: &mut Document,
    workload: &Workload,
    warnings: &mut Vec<Finding>,
) -> Result<(), PolicyError> {
    let spec = workload.spec_path();
    let mut change = Change { file, document, workload, spec };
    if let Some(class) = &injection.runtime_class {
        change.set(&change.spec.then("runtimeClassName"), &json!(class))?;
    }
    replace_images(&mut change, &injection.image_replacements)?;
    warn(&change, warnings);
    check_annotations(&change, warnings)?;
    if workload.role == Role::Coordinator {
        return Ok(());
    }
    let wants_mesh = ["servicemesh-ingress", "servicemesh-egress", "servicemesh-admin-interface-port"]
        .iter()
        .any(|name| workload.annotation(name).is_some());
    let mesh = injection.service_mesh.as_ref().filter(|_| wants_mesh);
    let skip = workload.annotation("skip-initializer") == Some("true");
    if skip && mesh.is_some() {
        let path = change.annotation_path("skip-initializer");
        return Err(
            change.error(&path, "the service mesh needs the certificates that the initializer fetches")
        );
    }
    if let Some(initializer) = injection.initializer.as_ref().filter(|_| !skip) {
        add_secrets_volume(&mut change)?;
        let renews =
            injected::renews(workload, injection.renewal).map_err(|wrong| change.annotation_error(wrong))?;
        let first = match mesh {
            Some(_) if !renews && workload.annotation("renewal").is_some() => {
                let path = change.annotation_path("renewal");
                return Err(
                    change.error(&path, "a pod with a service mesh always renews: remove the annotation")
                );
            }
            Some(mesh) => {
                change.take_out_of_place(SERVICE_MESH, &[INITIALIZER])?;
                injected::service_mesh(workload, mesh, coordinator)
            }
            None => {
                injected::initializer(workload, initializer, coordinator, injection.lift_default_deny, renews)
            }
        };
        let mut first = first.map_err(|wrong| change.annotation_error(wrong))?;
        if let Some(environment) = first["env"].as_array_mut() {
            environment.extend(owners(injection));
        }
        if let Some(text) = workload.annotation("secure-pv") {
            secure_volume(&mut change, text, initializer, warnings)?;
        }
        let writer = first["name"].as_str().unwrap_or_default().to_owned();
        change.put_container(first, Position::First, warnings)?;
        mount_secrets(&mut change, &writer)?;
        join_group(&mut change)?;
    }
    let size = workload.annotation("image-store-size").or(injection.trusted_store.as_deref());
    match size {
        Some("0") | None => Ok(()),
        Some(size) => trusted_store(&mut change, size),
    }
}

/// Names that nobody knows are warned of: what they should do does not happen. Values that the programs would end at are
/// refused.
fn check_annotations(change: &Change<'_>, warnings: &mut Vec<Finding>) -> Result<(), PolicyError> {
    let workload = change.workload;
    let metadata = workload.path.then("metadata").then("annotations");
    let on_pod =
        metadata.find(change.document.value()).and_then(Value::as_object).cloned().unwrap_or_default();
    for (key, value) in &on_pod {
        let Some(name) = key.strip_prefix(ANNOTATION) else { continue };
        let path = metadata.then(key.as_str());
        let Some(annotation) = annotations::find(name) else {
            let meant = annotations::nearest(name)
                .map_or(String::new(), |near| format!("; is {ANNOTATION}{near} meant?"));
            warnings.push(
                change.finding(&path, format!("nobody knows this annotation, so it does nothing{meant}")),
            );
            continue;
        };
        let Some(text) = value.as_str() else {
            return Err(
                change.error(&path, format!("an annotation is a text: write \"{value}\", with quotes"))
            );
        };
        annotation.check(text).map_err(|message| change.error(&path, message))?;
    }
    // On the resource instead of its pods nobody finds them.
    let resource: Path =
        workload.path.steps().iter().take(workload.path.steps().len().saturating_sub(2)).cloned().collect();
    let outer = resource.then("metadata").then("annotations");
    if outer != metadata {
        let found =
            outer.find(change.document.value()).and_then(Value::as_object).cloned().unwrap_or_default();
        for key in found.keys().filter(|key| key.starts_with(ANNOTATION) && !on_pod.contains_key(*key)) {
            let message = "this annotation is on the resource and not on its pods, so it does nothing: put it into the \
                           template's metadata";
            warnings.push(change.finding(&outer.then(key.as_str()), message));
        }
    }
    let egress = workload.annotation("servicemesh-egress").unwrap_or_default();
    let egress: mesh_config::Egress = egress.parse().unwrap_or_default();
    if let Some(peers) = workload.annotation("servicemesh-peers") {
        let checked = peers.parse::<mesh_config::Peers>().and_then(|peers| peers.check(&egress));
        checked
            .map_err(|error| change.error(&change.annotation_path("servicemesh-peers"), error.to_string()))?;
    }
    if workload.annotation("servicemesh-ingress") == Some(mesh_config::DISABLED) {
        let message = "nothing protects what comes into this pod";
        warnings.push(change.finding(&change.annotation_path("servicemesh-ingress"), message));
    }
    Ok(())
}

/// Whose word the initializer demands. In the policy, and so in the evidence: a host cannot have the pod believe others.
fn owners(injection: &Injection) -> Vec<Value> {
    let mut environment = Vec::new();
    if !injection.workload_owners.is_empty() {
        let owners = injection.workload_owners.join(",");
        environment.push(json!({ "name": "CONTRAST_WORKLOAD_OWNERS", "value": owners }));
    }
    if injection.workload_owners_needed > 1 {
        let needed = injection.workload_owners_needed.to_string();
        environment.push(json!({ "name": "CONTRAST_WORKLOAD_OWNERS_NEEDED", "value": needed }));
    }
    environment
}

/// A block volume that lives as long as the pod. The first container has it, whose creation makes the agent set it up
/// before any image is pulled.
fn trusted_store(change: &mut Change<'_>, size: &str) -> Result<(), PolicyError> {
    let list = change.spec.then("volumes");
    let known =
        change.list("volumes").into_iter().enumerate().find(|(_, volume)| volume["name"] == TRUSTED_STORE);
    match known {
        // Its size and storage class are the user's.
        Some((_, volume)) if volume.get("ephemeral").is_some() => {}
        Some((index, _)) => {
            return Err(
                change.error(&list.then(index), "this name is for the store of images: rename the volume")
            );
        }
        None => {
            let claim = json!({ "spec": {
                "accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "resources": { "requests": { "storage": size } },
            } });
            let volume = json!({ "name": TRUSTED_STORE, "ephemeral": { "volumeClaimTemplate": claim } });
            change.insert(&list, Position::Last, &volume)?;
        }
    }
    let first = if change.list("initContainers").is_empty() { "containers" } else { "initContainers" };
    for list in ["initContainers", "containers"] {
        for (index, container) in change.list(list).into_iter().enumerate() {
            let path = change.spec.then(list).then(index).then("volumeDevices");
            let devices =
                container.get("volumeDevices").and_then(Value::as_array).cloned().unwrap_or_default();
            let at = devices.iter().position(|device| device["name"] == TRUSTED_STORE);
            match (at, (list, index) == (first, 0)) {
                (Some(at), false) => {
                    return Err(change.error(
                        &path.then(at),
                        "the store is set up with the first container: remove it here",
                    ));
                }
                (None, true) => {
                    let device = json!({ "name": TRUSTED_STORE, "devicePath": TRUSTED_STORE_DEVICE });
                    change.insert(&path, Position::Last, &device)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// A volume without a source is one, too.
fn is_empty_dir(volume: &Value) -> bool {
    let mut sources =
        volume.as_object().into_iter().flatten().filter(|(key, source)| *key != "name" && !source.is_null());
    sources.all(|(key, _)| key == "emptyDir")
}

fn add_secrets_volume(change: &mut Change<'_>) -> Result<(), PolicyError> {
    let list = change.spec.then("volumes");
    let known = change.list("volumes").into_iter().enumerate().find(|(_, volume)| volume["name"] == SECRETS);
    match known {
        Some((_, volume)) if is_empty_dir(&volume) => Ok(()),
        Some((index, _)) => Err(change.error(
            &list.then(index),
            "this name is for the initializer's files: rename the volume, or make it an emptyDir",
        )),
        None => change.insert(&list, Position::Last, &json!({ "name": SECRETS, "emptyDir": {} })),
    }
}

/// Every container gets the mount, unless it has one of that name; all but `writer` to read only, so that nobody who
/// takes over an application makes the pod forget whose deployment it belongs to.
fn mount_secrets(change: &mut Change<'_>, writer: &str) -> Result<(), PolicyError> {
    for list in ["initContainers", "containers"] {
        for (index, container) in change.list(list).into_iter().enumerate() {
            let mounts = container.get("volumeMounts").and_then(Value::as_array).cloned().unwrap_or_default();
            let path = change.spec.then(list).then(index).then("volumeMounts");
            if let Some(at) =
                mounts.iter().position(|mount| mount["mountPath"] == SECRETS_PATH && mount["name"] != SECRETS)
            {
                return Err(change.error(
                    &path.then(at),
                    "/contrast is for the initializer's files: mount this volume elsewhere",
                ));
            }
            let writes = list == "initContainers" && container["name"] == writer;
            for (at, mount) in mounts.iter().enumerate().filter(|(_, mount)| mount["name"] == SECRETS) {
                if mount["readOnly"].as_bool().unwrap_or_default() == writes {
                    change.set(&path.then(at).then("readOnly"), &json!(!writes))?;
                }
            }
            if mounts.iter().all(|mount| mount["name"] != SECRETS) {
                let mount = if writes { injected::secrets_mount() } else { injected::secrets_to_read() };
                change.insert(&path, Position::Last, &mount)?;
            }
        }
    }
    Ok(())
}

/// Containers run as various users, and all may read the pod's key and secret.
fn join_group(change: &mut Change<'_>) -> Result<(), PolicyError> {
    let context = change.spec.then("securityContext");
    let groups = context.then("supplementalGroups");
    let known = groups.find(change.document.value()).and_then(Value::as_array).cloned().unwrap_or_default();
    match known.iter().any(|group| *group == SECRETS_GROUP) {
        true => Ok(()),
        false => change.insert(&groups, Position::Last, &json!(SECRETS_GROUP)),
    }
}

/// `DEVICE:MOUNT`: a helper opens the device with the workload secret and mounts it into the volume,
/// from where it reaches the application.
fn secure_volume(
    change: &mut Change<'_>,
    text: &str,
    image: &str,
    warnings: &mut Vec<Finding>,
) -> Result<(), PolicyError> {
    let path = change.annotation_path("secure-pv");
    let Some((device, mount)) = text
        .split_once(':')
        .filter(|(device, mount)| !device.is_empty() && !mount.is_empty() && !mount.contains(':'))
    else {
        return Err(
            change.error(&path, "expected DEVICE:MOUNT, the names of a block volume and of an emptyDir")
        );
    };
    let volumes = change.list("volumes");
    let find = |name: &str| volumes.iter().find(|volume| volume["name"] == name);
    if find(device).is_none() && !change.workload.claims.iter().any(|claim| claim == device) {
        return Err(change
            .error(&path, format!("the pod has no volume {device:?} and no claim template of that name")));
    }
    match find(mount) {
        Some(volume) if is_empty_dir(volume) => {}
        Some(_) => return Err(change.error(&path, format!("volume {mount:?} must be an emptyDir"))),
        None => {
            let list = change.spec.then("volumes");
            change.insert(&list, Position::Last, &json!({ "name": mount, "emptyDir": {} }))?;
        }
    }
    let per_pod = find(device).is_none(); // a claim template's
    let helper = injected::secure_volume(change.workload, image, device, mount, per_pod);
    let helper = helper.map_err(|wrong| change.annotation_error(wrong))?;
    change.put_container(helper, Position::First, warnings)?;
    // Mounts that were there before the helper's must see what it mounts.
    for (index, container) in change.list("containers").into_iter().enumerate() {
        let mounts = container.get("volumeMounts").and_then(Value::as_array).cloned().unwrap_or_default();
        for (at, found) in mounts.iter().enumerate() {
            if found["name"] == mount {
                let path = change.spec.then("containers").then(index).then("volumeMounts").then(at);
                change.set(&path.then("mountPropagation"), &json!("HostToContainer"))?;
            }
        }
    }
    Ok(())
}

fn replace_images(change: &mut Change<'_>, replacements: &[(String, String)]) -> Result<(), PolicyError> {
    for list in ["initContainers", "containers"] {
        for (index, container) in change.list(list).into_iter().enumerate() {
            let replacement = replacements.iter().find(|(from, _)| container["image"] == from.as_str());
            if let Some((_, to)) = replacement {
                change.set(&change.spec.then(list).then(index).then("image"), &json!(to))?;
            }
        }
    }
    Ok(())
}

/// What will not work, or not be protected, as it stands.
fn warn(change: &Change<'_>, warnings: &mut Vec<Finding>) {
    for list in ["initContainers", "containers"] {
        for (index, container) in change.list(list).into_iter().enumerate() {
            let name = container["name"].as_str().unwrap_or_default();
            if [INITIALIZER, SERVICE_MESH].contains(&name) || name.starts_with(SECURE_VOLUME) {
                continue; // from an earlier run
            }
            let resources = change.spec.then(list).then(index).then("resources");
            for resource in ["memory", "cpu"] {
                let of = |kind: &str| container.pointer(&format!("/resources/{kind}/{resource}")).cloned();
                if let (Some(request), Some(limit)) = (of("requests"), of("limits"))
                    && request != limit
                {
                    let message = format!(
                        "the VM is sized by limits: make the {resource} request ({request}) equal to the limit ({limit})"
                    );
                    warnings.push(change.finding(&resources, message));
                }
            }
        }
    }
}
