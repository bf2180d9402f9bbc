//! A policy in words.

use std::fmt::Write as _;

use serde_json::Value;

/// What a policy allows, from its data ([`crate::PolicyDocument::data`]).
pub fn explain(data: &Value) -> String {
    let mut text = String::new();
    let containers = data["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let _ = writeln!(text, "The host may start these containers, each once at a time, in this order:");
    for container in containers {
        explain_container(&mut text, container);
    }
    let _ = writeln!(text, "\nIn these places the host decides what is there:");
    for (container, places) in from_host(data) {
        let _ = writeln!(text, "  {container:<12}{}", places.join(", "));
    }
    let runtime = &data["runtime"];
    if let (Some(shim), Some(containerd)) = (runtime["shim"].as_str(), runtime["containerd"].as_str()) {
        let _ = writeln!(text, "\nMade for requests of: shim {shim}, containerd {containerd}.");
    }
    let _ = writeln!(text, "\nBeside that the host may:");
    for line in openings(data) {
        let _ = writeln!(text, "  - {line}");
    }
    let _ = writeln!(text, "\nEverything else is denied.");
    text
}

/// For each container the paths that the host fills or writes: files that it copies in, and disks.
pub fn from_host(data: &Value) -> Vec<(String, Vec<String>)> {
    let containers = data["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let places = |container: &Value| -> Vec<String> {
        let mounts = container["OCI"]["Mounts"].as_object().into_iter().flatten();
        let copied = mounts.filter(|(_, mount)| is_copied(mount)).map(|(path, _)| path.clone());
        let devices = container["devices"].as_array().into_iter().flatten();
        copied.chain(devices.map(|device| format!("{} (a disk)", words(device)))).collect()
    };
    containers.iter().map(|container| (words(&container["name"]), places(container))).collect()
}

fn is_copied(mount: &Value) -> bool {
    words(&mount["source"]).contains("/shared/containers/$(bundle-id)-")
}

fn words(value: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => match (map.get("template"), map.get("pattern")) {
            (Some(Value::String(text)), _) => text.clone(),
            (_, Some(Value::String(text))) => format!("/{text}/"),
            _ => value.to_string(),
        },
        other => other.to_string(),
    };
    match value {
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(" "),
        other => word(other),
    }
}

fn explain_container(text: &mut String, container: &Value) {
    let oci = &container["OCI"];
    let process = &oci["Process"];
    let user = &container["users"][0];
    let _ = writeln!(text, "\n{}", words(&container["name"]));
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {label:<12}{value}");
        }
    };
    line("image", words(&container["image"]));
    line("runs", words(&process["Args"]));
    line("in", words(&process["Cwd"]));
    line("as", format!("user {}, group {}, groups {}", user["UID"], user["GID"], user["AdditionalGids"]));
    let capabilities = process["Capabilities"]["Bounding"].as_array().map_or(0, Vec::len);
    let access = if oci["Root"]["Readonly"] == true { "read-only root" } else { "writable root" };
    let privileges = if process["NoNewPrivileges"] == true { ", no new privileges" } else { "" };
    line("rights", format!("{capabilities} capabilities, {access}{privileges}"));
    for entry in process["Env"].as_array().into_iter().flatten() {
        line("env", words(entry));
    }
    for entry in process["EnvTemplates"].as_array().into_iter().flatten() {
        line("env", words(entry));
    }
    for (_, entry) in process["EnvForms"].as_object().into_iter().flatten() {
        line("env", words(entry));
    }
    for entry in process["EnvOptional"].as_array().into_iter().flatten() {
        line("env", format!("{} (may be left out)", words(entry)));
    }
    for (destination, mount) in oci["Mounts"].as_object().into_iter().flatten() {
        let storages = container["storages"].as_object().into_iter().flatten();
        let made =
            storages.map(|(_, storage)| &storage["mount_point"]).any(|place| *place == mount["source"]);
        let made = if made { ", made by the guest" } else { "" };
        let from_host = if is_copied(mount) { ", FROM THE HOST" } else { "" };
        line("mount", format!("{destination} ({}){made}{from_host}", words(&mount["options"])));
    }
    line("devices", words(&container["devices"]));
    for command in container["exec_commands"].as_array().into_iter().flatten() {
        line("probe", words(command));
    }
    line("after", words(&container["after"]));
}

fn openings(data: &Value) -> Vec<String> {
    let requests = &data["request_defaults"];
    let mut lines = vec![
        "create and destroy the sandbox; signal, wait for, measure and remove containers that exist"
            .to_owned(),
        "configure network devices, routes and neighbours, none of them on the loopback device".to_owned(),
        format!("copy files to {}", words(&requests["CopyFileRequest"])),
        "read metrics, interfaces, routes, guest details".to_owned(),
    ];
    for (request, meaning) in [
        ("ReadStreamRequest", "READ what containers print (logs)"),
        ("WriteStreamRequest", "WRITE to containers' standard input"),
        ("CloseStdinRequest", "close containers' standard input"),
        ("UpdateEphemeralMountsRequest", "change the size of volumes in memory"),
    ] {
        if requests[request] == true {
            lines.push(meaning.to_owned());
        }
    }
    for command in requests["ExecProcessRequest"]["allowed_commands"].as_array().into_iter().flatten() {
        lines.push(format!("RUN in any container: {}", words(command)));
    }
    for pattern in requests["ExecProcessRequest"]["regex"].as_array().into_iter().flatten() {
        lines.push(format!("RUN in any container what matches /{}/", words(pattern)));
    }
    lines
}
