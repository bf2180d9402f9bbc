//! One container of a policy.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::{
    entry::{
        CapabilitySets, ContainerEntry, LinuxEntry, OciEntry, ProcessEntry, RootEntry, SysctlEntry, UserEntry,
    },
    environment::{EnvPolicy, Environment, Wrong, hostname},
    image::{ContainerImage, User},
    mounts::Mounts,
    objects::Objects,
    pattern,
    quantity::{is_gpu, milli},
    settings::{Expected, Pause, Settings},
    spec::{Container, PodSpec, SecurityContext},
    workload::Workload,
};

/// A container's entry, and what to warn of.
pub(crate) struct Entry {
    pub(crate) entry: ContainerEntry,
    pub(crate) warnings: Vec<Wrong>,
    /// Names with which more than one source of its mounts ends.
    pub(crate) like_names: Vec<String>,
}

fn annotations(settings: &Settings, kind: [&str; 2]) -> BTreeMap<&'static str, Expected> {
    let text = |text: &str| Expected::Text(text.to_owned());
    BTreeMap::from([
        ("io.kubernetes.cri.container-type", text(kind[0])),
        ("io.katacontainers.pkg.oci.container_type", text(kind[1])),
        ("io.katacontainers.pkg.oci.bundle_path", settings.annotations.bundle_path.clone()),
    ])
}

fn pid_namespace_shared(spec: &PodSpec) -> bool {
    spec.share_process_namespace == Some(true)
}

/// The container that holds the pod together. The guest starts its own copy of it.
pub(crate) fn pause(workload: &Workload, settings: &Settings) -> ContainerEntry {
    let mounts = Mounts::pause(settings);
    let (allowed, required) = sysctls(workload, settings);
    let Pause { image, args, .. } = &settings.sandbox.pause;
    let env = EnvPolicy {
        env: vec![settings.process.default_path.clone()],
        env_names: vec!["PATH".into()],
        env_lines: pattern::lines(&[]),
        ..Default::default()
    };
    let mut annotations = annotations(settings, ["sandbox", "pod_sandbox"]);
    annotations.insert("io.kubernetes.cri.sandbox-log-directory", settings.annotations.log_directory.clone());
    ContainerEntry {
        name: "pause".into(),
        oci: OciEntry {
            root: RootEntry { readonly: true },
            hostname: hostname(workload).to_policy(),
            annotations,
            process: ProcessEntry {
                args: json!(args),
                cwd: "/".into(),
                terminal: false,
                no_new_privileges: true,
                capabilities: capability_sets(&settings.process.default_capabilities),
                capabilities_at_least: None,
                environment: env,
            },
            mounts: mounts.to_policy(),
            linux: LinuxEntry {
                namespaces: settings.kata.namespaces.clone(),
                masked_paths: settings.process.masked_paths.clone(),
                readonly_paths: settings.process.readonly_paths.clone(),
                rootfs_propagation: "",
                sysctl: SysctlEntry { allowed, required },
            },
        },
        users: pause_users(workload, settings),
        image: image.clone(),
        image_digest: None,
        image_optional: Some(true),
        other_mounts: mounts.other_mounts(),
        optional_mounts: mounts.optional(),
        nested_mounts: mounts.nested(),
        made_mounts: mounts.made,
        like_named_mounts: Vec::new(),
        storages: BTreeMap::new(),
        other_storages: BTreeMap::new(),
        devices: Vec::new(),
        gpus: None,
        sandbox_pidns: false,
        exec_commands: json!([]),
        after: Vec::new(),
        before: Vec::new(),
    }
}

/// Users that the sandbox's own container may have: the pod's, if it names one for all its containers, else that of
/// the image that the node has, or root if that names none.
fn pause_users(workload: &Workload, settings: &Settings) -> Vec<UserEntry> {
    let entry = |uid, gid, additional_gids| UserEntry { uid, gid, additional_gids };
    let pod = workload.spec.security_context.clone().unwrap_or_default();
    if let Some(uid) = pod.run_as_user {
        let gid = pod.run_as_group.unwrap_or(0);
        return vec![entry(uid, gid, [gid].into())];
    }
    let Pause { uid, gid, .. } = settings.sandbox.pause;
    let mut groups: BTreeSet<u32> = pod.supplemental_groups.into_iter().flatten().collect();
    groups.extend(pod.fs_group);
    let with_root = groups.iter().copied().chain([0]).collect();
    vec![entry(uid, gid, [gid].into()), entry(0, 0, groups), entry(0, 0, with_root)]
}

/// Settings of the kernel that a pod may have, and those that it must have.
fn sysctls(workload: &Workload, settings: &Settings) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let mut allowed = settings.process.sandbox_sysctls.clone();
    let mut required = BTreeSet::new();
    for sysctl in workload.spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()) {
        let name = dotted(&sysctl.name);
        allowed.insert(name.clone(), sysctl.value.clone());
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
    // "services" are all of the namespace's and Kubernetes' own; without them its own remain.
    let services = spec.enable_service_links != Some(false) && settings.env.contains_key("services");
    let unused = if services { "kubernetes" } else { "services" };
    let groups = settings.env.iter().filter(|(group, _)| *group != unused);
    let patterns: Vec<String> = groups.flat_map(|(_, patterns)| patterns).cloned().collect();
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
    annotations.insert("io.kubernetes.cri.container-name", Expected::Text(container.name.clone()));
    let digest = image.reference.find("@sha256:").map(|at| &image.reference[at..]);
    let working_dir = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let image_dir = if image.working_dir.is_empty() { "/" } else { &image.working_dir };
    let hidden = |paths: &Vec<String>| if privileged { Vec::new() } else { paths.clone() };
    let full = if privileged { settings.process.default_capabilities.as_slice() } else { &[] };
    let entry = ContainerEntry {
        name: container.name.clone(),
        oci: OciEntry {
            root: RootEntry { readonly: context.read_only_root_filesystem == Some(true) },
            hostname: json!(""),
            annotations,
            process: ProcessEntry {
                args,
                cwd: working_dir.unwrap_or(image_dir).to_owned(),
                terminal: container.tty == Some(true),
                no_new_privileges: context.allow_privilege_escalation == Some(false),
                capabilities: capability_sets(&capabilities(context, settings)),
                capabilities_at_least: Some(bare(full)),
                environment: env,
            },
            mounts: mounts.to_policy(),
            linux: LinuxEntry {
                namespaces: settings.kata.namespaces.clone(),
                masked_paths: hidden(&settings.process.masked_paths),
                readonly_paths: hidden(&settings.process.readonly_paths),
                rootfs_propagation: mounts.propagation,
                sysctl: SysctlEntry { allowed: sysctls(workload, settings).0, required: BTreeSet::new() },
            },
        },
        users: vec![UserEntry { uid: user.uid, gid: user.gid, additional_gids: additional }],
        image: Expected::Text(image.reference.clone()),
        image_digest: Some(json!(digest)),
        image_optional: None,
        other_mounts: mounts.other_mounts(),
        optional_mounts: mounts.optional(),
        nested_mounts: mounts.nested(),
        like_named_mounts: mounts.like_named().into_values().collect(),
        made_mounts: mounts.made.clone(),
        storages: mounts.storages.clone(),
        other_storages: mounts.other_storages.clone(),
        devices: mounts.devices.clone(),
        gpus: Some(gpus(container)),
        sandbox_pidns: pid_namespace_shared(spec),
        exec_commands: environment.exec_commands(container),
        after: order.after.clone(),
        before: order.before.clone(),
    };
    let like_names = mounts.like_named().into_keys().collect();
    Ok(Entry { entry, warnings: mounts.warnings, like_names })
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
    let all = settings.process.all_capabilities.clone();
    if context.privileged == Some(true) {
        return all;
    }
    let mut set: BTreeSet<String> = settings.process.default_capabilities.iter().cloned().collect();
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

fn capability_sets(capabilities: &[String]) -> CapabilitySets {
    let set = bare(capabilities);
    CapabilitySets {
        ambient: Vec::new(),
        bounding: set.clone(),
        effective: set.clone(),
        inheritable: Vec::new(),
        permitted: set,
    }
}

/// As the rules compare them.
fn bare(capabilities: &[String]) -> Vec<String> {
    capabilities.iter().map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned()).collect()
}
