//! One container of a policy.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    environment::{EnvPolicy, Environment, Wrong, hostname},
    image::{ContainerImage, User},
    mounts::Mounts,
    objects::Objects,
    pattern,
    quantity::{is_gpu, milli},
    settings::Settings,
    spec::{Container, PodSpec, SecurityContext},
    workload::Workload,
};

/// A container's entry, and what to warn of.
pub(crate) struct Entry {
    pub(crate) value: Value,
    pub(crate) warnings: Vec<Wrong>,
    /// Names with which more than one source of its mounts ends.
    pub(crate) like_names: Vec<String>,
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
    let (allowed, required) = sysctls(workload, settings);
    let pause = |key: &str| settings.at(&["sandbox", "pause", key]);
    let env = EnvPolicy {
        env: vec![settings.text(&["process", "default_path"])],
        env_names: vec!["PATH".into()],
        env_lines: pattern::lines(&[]),
        ..Default::default()
    };
    let mut value = json!({
        "name": "pause",
        "OCI": {
            "Root": { "Readonly": true },
            "Hostname": hostname(workload).to_policy(),
            "Annotations": annotations(settings, ["sandbox", "pod_sandbox"]),
            "Process": {
                "Args": pause("args"),
                "Cwd": "/",
                "Terminal": false,
                "NoNewPrivileges": true,
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
        "users": pause_users(workload, settings),
        "image": pause("image"),
        "image_optional": true,
        "other_mounts": mounts.other_mounts(),
        "made_mounts": mounts.made,
        "optional_mounts": mounts.optional(),
        "nested_mounts": mounts.nested(),
        "like_named_mounts": [],
        "storages": {},
        "other_storages": {},
        "devices": [],
        "sandbox_pidns": false,
        "exec_commands": [],
        "after": [],
        "before": [],
    });
    add(&mut value["OCI"]["Process"], &env);
    value
}

/// Users that the sandbox's own container may have: the pod's, if it names one for all its containers, else that of
/// the image that the node has, or root if that names none.
fn pause_users(workload: &Workload, settings: &Settings) -> Value {
    let pod = workload.spec.security_context.clone().unwrap_or_default();
    if let Some(uid) = pod.run_as_user {
        let gid = pod.run_as_group.unwrap_or(0);
        return json!([{ "UID": uid, "GID": gid, "AdditionalGids": [gid] }]);
    }
    let id = |key: &str| settings.at(&["sandbox", "pause", key]);
    let mut groups: BTreeSet<u32> = pod.supplemental_groups.into_iter().flatten().collect();
    groups.extend(pod.fs_group);
    let with_root: BTreeSet<u32> = groups.iter().copied().chain([0]).collect();
    json!([
        { "UID": id("uid"), "GID": id("gid"), "AdditionalGids": [id("gid")] },
        { "UID": 0, "GID": 0, "AdditionalGids": groups },
        { "UID": 0, "GID": 0, "AdditionalGids": with_root },
    ])
}

/// Settings of the kernel that a pod may have, and those that it must have.
fn sysctls(workload: &Workload, settings: &Settings) -> (Map<String, Value>, BTreeSet<String>) {
    let mut allowed = settings.object(&["process", "sandbox_sysctls"]);
    let mut required = BTreeSet::new();
    for sysctl in workload.spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()) {
        let name = dotted(&sysctl.name);
        allowed.insert(name.clone(), json!(sysctl.value));
        required.insert(name);
    }
    (allowed, required)
}

/// `net/core/somaxconn` is another form of `net.core.somaxconn`; in it a dot is part of a name.
fn dotted(name: &str) -> String {
    let swapped = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    }
}

fn add(process: &mut Value, env: &EnvPolicy) {
    if let (Value::Object(process), Ok(Value::Object(env))) = (process, serde_json::to_value(env)) {
        process.extend(env);
    }
}

/// What comes first and last in a pod.
pub(crate) struct Order {
    /// Those that must have been started before.
    pub(crate) after: Vec<String>,
    /// Those none of which may have been created, because the container prepares them and does not run again.
    pub(crate) before: Vec<String>,
}

/// An init container or a container.
pub(crate) fn container(
    workload: &Workload,
    container: &Container,
    image: &ContainerImage,
    objects: &Objects,
    settings: &Settings,
    order: &Order,
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
    let env = environment.to_policy(container, settings, &patterns);
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
    let mounts = Mounts::read(workload, container, image, settings)?;
    let mut annotations = annotations(settings, ["container", "pod_container"]);
    annotations["io.kubernetes.cri.container-name"] = json!(container.name);
    let digest = image.reference.find("@sha256:").map(|at| &image.reference[at..]);
    let working_dir = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let image_dir = if image.working_dir.is_empty() { "/" } else { &image.working_dir };
    let hidden = |key: &str| if privileged { json!([]) } else { settings.at(&["process", key]) };
    let (allowed, _) = sysctls(workload, settings);
    let full = if privileged { settings.strings(&["process", "default_capabilities"]) } else { Vec::new() };
    let mut value = json!({
        "name": container.name,
        "OCI": {
            "Root": { "Readonly": context.read_only_root_filesystem == Some(true) },
            "Hostname": "",
            "Annotations": annotations,
            "Process": {
                "Args": args,
                "Cwd": working_dir.unwrap_or(image_dir),
                "Terminal": container.tty == Some(true),
                "NoNewPrivileges": context.allow_privilege_escalation == Some(false),
                "Capabilities": capability_sets(&capabilities(context, settings)),
                "CapabilitiesAtLeast": bare(&full),
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
        "users": [{ "UID": user.uid, "GID": user.gid, "AdditionalGids": additional }],
        "image": image.reference,
        "image_digest": digest,
        "other_mounts": mounts.other_mounts(),
        "made_mounts": mounts.made,
        "optional_mounts": mounts.optional(),
        "nested_mounts": mounts.nested(),
        "like_named_mounts": mounts.like_named().into_values().collect::<Vec<_>>(),
        "storages": mounts.storages,
        "other_storages": mounts.other_storages,
        "devices": mounts.devices,
        "gpus": gpus(container),
        "sandbox_pidns": pid_namespace_shared(spec),
        "exec_commands": environment.exec_commands(container),
        "after": order.after,
        "before": order.before,
    });
    add(&mut value["OCI"]["Process"], &env);
    let like_names = mounts.like_named().into_keys().collect();
    Ok(Entry { value, warnings: mounts.warnings, like_names })
}

/// Whole GPUs that the container asks for.
fn gpus(container: &Container) -> u64 {
    let limits = container.resources.iter().filter_map(|resources| resources.limits.as_ref()).flatten();
    let counts = limits.filter(|(name, _)| is_gpu(name)).filter_map(|(_, count)| milli(count));
    counts.fold(0, |sum, count| sum.saturating_add(count / 1000))
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
    let set = bare(capabilities);
    json!({ "Ambient": [], "Bounding": set, "Effective": set, "Inheritable": [], "Permitted": set })
}

/// As the rules compare them.
fn bare(capabilities: &[String]) -> Vec<&str> {
    capabilities.iter().map(|name| name.strip_prefix("CAP_").unwrap_or(name)).collect()
}
