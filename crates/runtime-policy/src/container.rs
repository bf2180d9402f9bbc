//! One container of a policy.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    environment::{EnvPolicy, Environment, Wrong, hostname},
    image::{ContainerImage, User},
    mounts::Mounts,
    objects::Objects,
    pattern,
    settings::Settings,
    spec::{Container, PodSpec, SecurityContext},
    workload::Workload,
};

/// A container's entry, and what to warn of.
pub(crate) struct Entry {
    pub(crate) value: Value,
    pub(crate) warnings: Vec<Wrong>,
}

fn annotations(settings: &Settings, kind: [&str; 2]) -> Value {
    let mut annotations = json!({
        "io.kubernetes.cri.container-type": kind[0],
        "io.katacontainers.pkg.oci.container_type": kind[1],
        "io.katacontainers.pkg.oci.bundle_path": settings.at(&["annotations", "bundle_path"]),
    });
    if kind[0] == "sandbox" {
        annotations["io.kubernetes.cri.sandbox-log-directory"] =
            settings.at(&["annotations", "log_directory"]);
    }
    annotations
}

fn pid_namespace_shared(spec: &PodSpec) -> bool {
    spec.share_process_namespace == Some(true)
}

/// The container that holds the pod together. The guest starts its own copy of it.
pub(crate) fn pause(workload: &Workload, settings: &Settings) -> Value {
    let mounts = Mounts::pause(settings);
    let mut allowed = settings.object(&["process", "sandbox_sysctls"]);
    let mut required = Vec::new();
    for sysctl in workload.spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()) {
        allowed.insert(sysctl.name.clone(), json!(sysctl.value));
        required.push(sysctl.name.clone());
    }
    required.sort();
    let pause = |key: &str| settings.at(&["sandbox", "pause", key]);
    let mut storage = settings.at(&["images", "storage"]);
    storage["source"] = pause("image");
    let env = EnvPolicy {
        env: vec![settings.text(&["process", "default_path"])],
        env_names: vec!["PATH".into()],
        env_lines: pattern::lines(&[]),
        ..Default::default()
    };
    let mut value = json!({
        "name": "pause",
        "OCI": {
            "Version": settings.text(&["kata", "oci_version"]),
            "Root": { "Readonly": true },
            "Hostname": hostname(workload).to_policy(),
            "Annotations": annotations(settings, ["sandbox", "pod_sandbox"]),
            "Process": {
                "Args": pause("args"),
                "Cwd": "/",
                "Terminal": false,
                "NoNewPrivileges": true,
                "User": { "UID": pause("uid"), "GID": pause("gid"), "AdditionalGids": pause("additional_gids") },
                "Capabilities": capability_sets(&settings.strings(&["process", "default_capabilities"])),
            },
            "Mounts": mounts.to_policy(),
            "Linux": {
                "Namespaces": settings.at(&["kata", "namespaces"]),
                "MaskedPaths": settings.at(&["process", "masked_paths"]),
                "ReadonlyPaths": settings.at(&["process", "readonly_paths"]),
                "RootfsPropagation": "",
                "Sysctl": { "allowed": allowed, "required": required },
            },
        },
        "optional_mounts": mounts.optional(),
        "nested_mounts": mounts.nested(),
        "storages": { "image": storage },
        "optional_storages": ["image"],
        "devices": [],
        "sandbox_pidns": pid_namespace_shared(&workload.spec),
        "exec_commands": [],
        "after": [],
    });
    add(&mut value["OCI"]["Process"], &env);
    value
}

fn add(process: &mut Value, env: &EnvPolicy) {
    if let (Value::Object(process), Ok(Value::Object(env))) = (process, serde_json::to_value(env)) {
        process.extend(env);
    }
}

/// An init container or a container. `after` names those that must have been started before it.
pub(crate) fn container(
    workload: &Workload,
    container: &Container,
    image: &ContainerImage,
    objects: &Objects,
    settings: &Settings,
    after: &[String],
) -> Result<Entry, Wrong> {
    let spec = &workload.spec;
    let default_context = SecurityContext::default();
    let context = container.security_context.as_ref().unwrap_or(&default_context);
    let privileged = context.privileged == Some(true);
    let environment = Environment::read(workload, container, image, objects)?;
    let args = environment.args(container, image);
    if args.as_array().is_none_or(Vec::is_empty) && !image.passwd.is_empty() {
        return Err((
            "command".into(),
            format!("neither the pod nor the image {} says what to run", image.reference),
        ));
    }
    let mut groups: Vec<String> = settings.object(&["env"]).into_iter().map(|(name, _)| name).collect();
    // "services" are all of the namespace's and Kubernetes' own; without them its own remain.
    let services = spec.enable_service_links != Some(false) && groups.iter().any(|group| group == "services");
    let unused = if services { "kubernetes" } else { "services" };
    groups.retain(|group| group != unused);
    let patterns: Vec<String> = groups.iter().flat_map(|group| settings.strings(&["env", group])).collect();
    let env = environment.to_policy(workload, container, settings, &patterns);
    let user = user(spec, context, image)?;
    let mut additional: BTreeSet<u32> = [user.gid].into();
    if let Some(pod) = &spec.security_context {
        additional.extend(pod.supplemental_groups.iter().flatten());
        additional.extend(pod.fs_group);
    }
    let strict = spec.security_context.as_ref().and_then(|pod| pod.supplemental_groups_policy.as_deref())
        == Some("Strict");
    if !strict {
        additional.extend(&user.groups);
    }
    let mounts = Mounts::read(spec, container, image, settings)?;
    let mut annotations = annotations(settings, ["container", "pod_container"]);
    annotations["io.kubernetes.cri.container-name"] = json!(container.name);
    annotations["io.kubernetes.cri.image-name"] = json!(image.reference);
    let mut storages = serde_json::Map::from_iter(mounts.storages.clone());
    let mut image_storage = settings.at(&["images", "storage"]);
    image_storage["source"] = json!(image.reference);
    storages.insert("image".into(), image_storage);
    let working_dir = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let image_dir = if image.working_dir.is_empty() { "/" } else { &image.working_dir };
    let hidden = |key: &str| if privileged { json!([]) } else { settings.at(&["process", key]) };
    let mut allowed = settings.object(&["process", "sandbox_sysctls"]);
    for sysctl in spec.security_context.iter().flat_map(|pod| pod.sysctls.iter().flatten()) {
        allowed.insert(sysctl.name.clone(), json!(sysctl.value));
    }
    let mut value = json!({
        "name": container.name,
        "OCI": {
            "Version": settings.text(&["kata", "oci_version"]),
            "Root": { "Readonly": context.read_only_root_filesystem == Some(true) },
            "Hostname": hostname(workload).to_policy(),
            "Annotations": annotations,
            "Process": {
                "Args": args,
                "Cwd": working_dir.unwrap_or(image_dir),
                "Terminal": container.tty == Some(true),
                "NoNewPrivileges": context.allow_privilege_escalation == Some(false),
                "User": { "UID": user.uid, "GID": user.gid, "AdditionalGids": additional },
                "Capabilities": capability_sets(&capabilities(context, settings)),
            },
            "Mounts": mounts.to_policy(),
            "Linux": {
                "Namespaces": settings.at(&["kata", "namespaces"]),
                "MaskedPaths": hidden("masked_paths"),
                "ReadonlyPaths": hidden("readonly_paths"),
                "RootfsPropagation": mounts.propagation,
                "Sysctl": { "allowed": allowed, "required": [] },
            },
        },
        "optional_mounts": mounts.optional(),
        "nested_mounts": mounts.nested(),
        "storages": storages,
        "optional_storages": [],
        "devices": mounts.devices,
        "sandbox_pidns": pid_namespace_shared(spec),
        "exec_commands": environment.exec_commands(container),
        "after": after,
    });
    add(&mut value["OCI"]["Process"], &env);
    Ok(Entry { value, warnings: mounts.warnings })
}

fn user(spec: &PodSpec, context: &SecurityContext, image: &ContainerImage) -> Result<User, Wrong> {
    let pod = spec.security_context.as_ref();
    let uid = context.run_as_user.or(pod.and_then(|pod| pod.run_as_user));
    let gid = context.run_as_group.or(pod.and_then(|pod| pod.run_as_group));
    let mut user = match uid {
        Some(uid) => image.with_uid(uid),
        None => image.user().map_err(|error| ("image".to_owned(), error.to_string()))?,
    };
    user.gid = gid.unwrap_or(user.gid);
    Ok(user)
}

/// The capabilities that `add` and `drop` leave of the default set.
fn capabilities(context: &SecurityContext, settings: &Settings) -> Vec<String> {
    let all = settings.strings(&["process", "all_capabilities"]);
    if context.privileged == Some(true) {
        return all;
    }
    let mut set: BTreeSet<String> =
        settings.strings(&["process", "default_capabilities"]).into_iter().collect();
    let change = context.capabilities.clone().unwrap_or_default();
    let full = |name: &String| {
        let name = name.to_uppercase();
        if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let (add, drop): (Vec<_>, Vec<_>) =
        (change.add.iter().flatten().map(full).collect(), change.drop.iter().flatten().map(full).collect());
    // Order as in the runtime: "ALL" first, then single ones.
    if add.iter().any(|name| name == "CAP_ALL") {
        set.extend(all);
    }
    if drop.iter().any(|name| name == "CAP_ALL") {
        set.clear();
    }
    set.extend(add.into_iter().filter(|name| name != "CAP_ALL"));
    for name in &drop {
        set.remove(name);
    }
    set.into_iter().collect()
}

fn capability_sets(capabilities: &[String]) -> Value {
    json!({
        "Ambient": [],
        "Bounding": capabilities,
        "Effective": capabilities,
        "Inheritable": [],
        "Permitted": capabilities,
    })
}
