//! Volumes and mounts of a container.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    environment::Wrong,
    image::ContainerImage,
    settings::{MadeVolume, MountGroup, Settings},
    spec::{Container, PodSpec, VolumeMount},
    text::quote,
    workload::Workload,
};

/// What a container may have mounted, by destination, and what backs it. Sources and destinations are as the
/// rules see them: with `$(bundle-id)` and the like for what is made up when the pod is started.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    mounts: BTreeMap<String, Value>,
    /// Other forms that a mount may have, as the node and the shim have it.
    other_mounts: BTreeMap<String, Vec<Value>>,
    pub(crate) storages: BTreeMap<String, Value>,
    pub(crate) other_storages: BTreeMap<String, Vec<Value>>,
    /// Mounts of volumes that the guest makes.
    pub(crate) made: Vec<String>,
    pub(crate) devices: Vec<String>,
    pub(crate) propagation: &'static str,
    /// Field and text.
    pub(crate) warnings: Vec<Wrong>,
}

/// Replaces the placeholders that are known when the policy is made.
fn fill(value: &mut Value, known: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (name, replacement) in known {
                *text = text.replace(name, replacement);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, known)),
        Value::Object(map) => {
            if let Some(Value::String(pattern)) = map.get_mut("pattern") {
                for (name, replacement) in known {
                    *pattern = pattern.replace(name, &pattern_of(replacement));
                }
            } else if let Some(Value::String(text)) = map.get("template") {
                // What is not a pattern may hold placeholders anyway.
                *value = Value::String(text.clone());
                fill(value, known);
            } else {
                map.iter_mut().for_each(|(_, value)| fill(value, known));
            }
        }
        _ => {}
    }
}

/// A regular expression for a text with placeholders.
fn pattern_of(text: &str) -> String {
    let mut pattern = quote(text).replace(&quote("$(random)"), "[0-9a-f]{16}");
    for name in ["$(bundle-id)", "$(sandbox-id)"] {
        pattern = pattern.replace(&quote(name), name);
    }
    pattern
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// As the runtime writes it, absolute, no slash at the end; and nothing in it looks like a placeholder.
fn destination(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/".to_owned() } else { trimmed.replace("$(", "$$(") }
}

/// A path without what means nothing in it, to tell whether two are one.
fn plain(path: &str) -> String {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}

fn no_volume(name: &str) -> String {
    format!("the pod has no volume {name:?}")
}

/// The fields of a mount that name a part of its volume; an empty one names none.
fn sub_paths(mount: &VolumeMount) -> impl Iterator<Item = (&'static str, &str)> {
    let fields = [(".subPath", &mount.sub_path), (".subPathExpr", &mount.sub_path_expr)];
    fields
        .into_iter()
        .filter_map(|(field, path)| path.as_deref().filter(|path| !path.is_empty()).map(|path| (field, path)))
}

/// As the API server checks it.
fn sub_path(mount: &VolumeMount) -> Result<(), (&'static str, &'static str)> {
    if sub_paths(mount).count() > 1 {
        return Err((".subPathExpr", "either subPath or subPathExpr"));
    }
    match sub_paths(mount).find(|(_, path)| path.starts_with('/') || path.split('/').any(|part| part == ".."))
    {
        Some((field, _)) => Err((field, "expected a relative path without ..")),
        None => Ok(()),
    }
}

impl Mounts {
    /// What every pause container has.
    pub(crate) fn pause(settings: &Settings) -> Self {
        let mut mounts = Self::default();
        let groups = &settings.mounts;
        for group in [&groups.always, &groups.pause] {
            mounts.add_group(settings, group, "ro");
        }
        mounts
    }

    /// What a container has by default and asks for.
    pub(crate) fn read(
        workload: &Workload,
        container: &Container,
        image: &ContainerImage,
        settings: &Settings,
    ) -> Result<Self, Wrong> {
        let spec = &workload.spec;
        let context = container.security_context.as_ref();
        let flag =
            |read: fn(&crate::spec::SecurityContext) -> Option<bool>| context.and_then(read) == Some(true);
        let access = if flag(|context| context.read_only_root_filesystem) { "ro" } else { "rw" };
        let (mut mounts, groups) = (Self::default(), &settings.mounts);
        for group in [
            &groups.always,
            &groups.container,
            if flag(|context| context.privileged) { &groups.privileged } else { &groups.unprivileged },
        ] {
            mounts.add_group(settings, group, access);
        }
        if spec.automount_service_account_token != Some(false) {
            mounts.add_group(settings, &groups.service_account, access);
        }
        if let Some(path) = &container.termination_message_path
            && let Some(mut mount) = mounts.mounts.remove("/dev/termination-log")
        {
            let path = destination(path);
            mount["source"] = json!(settings.kata.shared_prefix.clone() + base_name(&path));
            mounts.mounts.insert(path, mount);
        }
        let mut taken = BTreeSet::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
            let at = |field: &str| format!("volumeMounts[{index}]{field}");
            if !taken.insert(plain(&mount.mount_path)) {
                let message =
                    format!("{} is mounted twice: the container would see only one", mount.mount_path);
                return Err((at(".mountPath"), message));
            }
            let (kind, source) = match volume {
                Some(volume) => volume.kind(),
                None if workload.claims.contains(&mount.name) => ("persistentVolumeClaim", &Value::Null),
                None => return Err((at(".name"), no_volume(&mount.name))),
            };
            sub_path(mount).map_err(|(field, message)| (at(field), message.to_owned()))?;
            let added = mounts.add_volume(spec, kind, source, mount, settings);
            added.map_err(|(field, message)| (at(&field), message))?;
        }
        for path in &image.volumes {
            if !taken.contains(&plain(path)) {
                return Err(("image".into(), uncovered(&image.reference, path)));
            }
        }
        for (index, device) in container.volume_devices.iter().flatten().enumerate() {
            let at = |field: &str| format!("volumeDevices[{index}].{field}");
            if !taken.insert(plain(&device.device_path)) {
                return Err((at("devicePath"), format!("{} is there twice", device.device_path)));
            }
            let known = spec.volumes.iter().flatten().any(|volume| volume.name == device.name);
            if !known && !workload.claims.contains(&device.name) {
                return Err((at("name"), no_volume(&device.name)));
            }
            mounts.devices.push(device.device_path.clone());
        }
        mounts.devices.sort();
        Ok(mounts)
    }

    fn add_group(&mut self, settings: &Settings, group: &MountGroup, access: &str) {
        for (path, mount) in group {
            let mut mount = json!(mount);
            fill(&mut mount, &[("$(shared)", &settings.kata.shared_prefix), ("$(root-access)", access)]);
            self.mounts.insert(path.clone(), mount);
        }
    }

    fn add_volume(
        &mut self,
        spec: &PodSpec,
        kind: &str,
        source: &Value,
        mount: &VolumeMount,
        settings: &Settings,
    ) -> Result<(), Wrong> {
        let path = destination(&mount.mount_path);
        if !path.starts_with('/') || path == "/" || path.contains("/../") || path.ends_with("/..") {
            return Err((".mountPath".into(), format!("{path:?} is not a path below the root")));
        }
        let propagation = match mount.mount_propagation.as_deref() {
            None | Some("None") => "rprivate",
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            Some(_) => {
                return Err((
                    ".mountPropagation".into(),
                    "expected None, HostToContainer or Bidirectional".into(),
                ));
            }
        };
        self.propagation = match (self.propagation, propagation) {
            ("rshared", _) | (_, "rshared") => "rshared",
            ("rslave", _) | (_, "rslave") => "rslave",
            (other, _) => other,
        };
        let configuration = matches!(kind, "configMap" | "secret" | "projected" | "downwardAPI");
        let access = if configuration || mount.read_only == Some(true) { "ro" } else { "rw" };
        let options = ["rbind", propagation, access];
        match kind {
            "emptyDir" if sub_paths(mount).next().is_none() => {
                let medium = source.get("medium").and_then(Value::as_str).unwrap_or_default();
                if medium.starts_with("HugePages") {
                    let message = "huge pages are the host's to give; use the medium Memory, or none";
                    return Err((".name".into(), message.into()));
                }
                let group = spec.security_context.as_ref().and_then(|context| context.fs_group);
                self.add_made(medium == "Memory", group, &path, &mount.name, settings, options);
            }
            "emptyDir" => {
                return Err((
                    sub_paths(mount).next().map_or(String::new(), |(field, _)| field.to_owned()),
                    "a subPath of an emptyDir would be a folder of the host's; mount the whole volume".into(),
                ));
            }
            "configMap" | "secret" | "projected" | "downwardAPI" => self.add_copied(&path, settings, options),
            "hostPath" => {
                let allowed = &settings.volumes.host_path_destinations;
                if !allowed.contains(&path) {
                    let message = "a hostPath is whatever the host puts there; to allow it, add the destination to \
                                   volumes.host_path_destinations in the settings";
                    return Err((".mountPath".into(), message.into()));
                }
                self.warnings.push((
                    String::new(),
                    format!("{path} is a hostPath: its files come from the host, unprotected"),
                ));
                self.add_copied(&path, settings, options);
            }
            "image" => {
                return Err((
                    ".name".into(),
                    "image volumes are not covered by a policy yet; copy the files into the image".into(),
                ));
            }
            _ => {
                let message = format!(
                    "{path} ({kind}) is a file system of the host: what is in it is neither secret nor protected; \
                     use a claim with volumeMode: Block and the annotation secure-pv"
                );
                self.warnings.push((String::new(), message));
                self.add_copied(&path, settings, options);
            }
        }
        Ok(())
    }

    /// A volume that the guest makes in its memory: a directory, or a file system of its own. Shims see which medium it
    /// is by what the node has mounted, and not every node mounts one; so a volume in memory may be either. The group
    /// they read from the node's directory, which for one in memory is not always set.
    fn add_made(
        &mut self,
        memory: bool,
        group: Option<u32>,
        path: &str,
        volume: &str,
        settings: &Settings,
        options: [&str; 3],
    ) {
        let group = group.map(|group| format!("fsgid={group}"));
        let mut forms = Vec::new();
        let mut add = |made: &MadeVolume, place: &str, group: Option<&String>| {
            let (mut mount, mut storage) = (json!(made.mount), json!(made.storage));
            for value in [&mut mount, &mut storage] {
                fill(value, &[("$(place)", place), ("$(volume)", volume)]);
            }
            if let (Some(group), Some(options)) = (group, storage["options"].as_array_mut()) {
                options.push(json!(group));
            }
            mount["options"] = json!(options);
            mount["destination"] = json!(path);
            forms.push((mount, storage));
        };
        let groups =
            if memory && group.is_some() { vec![group.as_ref(), None] } else { vec![group.as_ref()] };
        for group in groups {
            if memory {
                add(&settings.volumes.memory, "", group);
            }
            for place in settings.shim().places() {
                add(&settings.volumes.empty_dir, place, group);
            }
        }
        let mut forms = forms.into_iter();
        if let Some((mount, storage)) = forms.next() {
            self.mounts.insert(path.to_owned(), mount);
            self.storages.insert(volume.to_owned(), storage);
        }
        let (mut mounts, mut storages): (Vec<Value>, Vec<Value>) = forms.unzip();
        mounts.dedup();
        storages.dedup();
        self.other_mounts.insert(path.to_owned(), mounts);
        self.other_storages.insert(volume.to_owned(), storages);
        self.made.push(path.to_owned());
    }

    /// Files that the host copies in: configuration, tokens.
    fn add_copied(&mut self, path: &str, settings: &Settings, options: [&str; 3]) {
        let mut mount = json!(settings.volumes.copied.mount);
        fill(&mut mount, &[("$(shared)", &settings.kata.shared_prefix), ("$(file-name)", base_name(path))]);
        mount["options"] = json!(options);
        self.mounts.insert(path.to_owned(), mount);
    }

    /// The mounts as a request has them, by destination.
    pub(crate) fn to_policy(&self) -> Value {
        let whole = |(path, mount): (&String, &Value)| {
            let mut mount = mount.clone();
            if let Value::Object(mount) = &mut mount {
                mount.remove("optional");
                mount.insert("destination".into(), json!(path));
            }
            (path.clone(), mount)
        };
        Value::Object(self.mounts.iter().map(whole).collect())
    }

    /// Other forms of a mount, by destination.
    pub(crate) fn other_mounts(&self) -> BTreeMap<String, Vec<Value>> {
        let mut others = self.other_mounts.clone();
        others.retain(|_, forms| !forms.is_empty());
        others
    }

    /// Destinations whose files the host copies, by the name that their sources end with, if it is not theirs alone.
    pub(crate) fn like_named(&self) -> BTreeMap<String, Vec<String>> {
        let mut names = BTreeMap::<String, Vec<String>>::new();
        for (path, mount) in &self.mounts {
            let source = mount["source"].as_str().unwrap_or_default();
            if let Some((_, name)) = source.split_once("$(bundle-id)-$(random)-") {
                names.entry(name.to_owned()).or_default().push(path.clone());
            }
        }
        names.retain(|_, paths| paths.len() > 1);
        names
    }

    /// Those that may be missing.
    pub(crate) fn optional(&self) -> Vec<String> {
        let optional = self.mounts.iter().filter(|(_, mount)| mount.get("optional") == Some(&json!(true)));
        optional.map(|(path, _)| path.clone()).collect()
    }

    /// For each mount that lies in others, those others.
    pub(crate) fn nested(&self) -> BTreeMap<String, Vec<String>> {
        let inside = |path: &String, parent: &String| {
            path.strip_prefix(parent.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        let parents = |path: &String| -> Vec<String> {
            self.mounts.keys().filter(|parent| inside(path, parent)).cloned().collect()
        };
        self.mounts
            .keys()
            .map(|path| (path.clone(), parents(path)))
            .filter(|(_, found)| !found.is_empty())
            .collect()
    }
}

fn uncovered(image: &str, path: &str) -> String {
    format!(
        "the image {image} declares VOLUME {path}, which the runtime would fill from the host, so that the host decides what \
         is in it. Mount something there: an emptyDir is made by the guest and empty, a claim with volumeMode: Block and the \
         annotation secure-pv lasts"
    )
}
