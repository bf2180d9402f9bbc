//! Every field of every request that a real or a correct host sends, changed: refused, or explained here; and what a
//! hostile host would put between them.

use std::collections::BTreeSet;

use runtime_policy::{Evaluator, PodPolicy};
use serde_json::{Value, json};

use crate::{
    corpus,
    host::{Request, Shim},
    recorded,
};

/// Changes that are still allowed, with the reason why that is right: requests (`CreateContainerRequest` of
/// the pause container is `CreatePause`), beginnings of paths, kinds of changes (none: all), reason.
const EXPLAINED: &[Explained] = &[
    (
        &["CreateContainerRequest", "CreatePause", "ExecProcessRequest"],
        &[
            "OCI",
            "OCI.Linux",
            "OCI.Process",
            "OCI.Process.Capabilities",
            "OCI.Process.User",
            "OCI.Root",
            "OCI.Mounts.*",
            "OCI.Linux.Resources",
            "OCI.Linux.Resources.CPU",
            "OCI.Linux.Namespaces.*",
            "OCI.Linux.Devices.*",
            "devices.*",
            "storages.*",
            "process",
            "process.Capabilities",
            "process.User",
        ],
        &["added"],
        "the agent's protocol has no such field; it is dropped before the policy is asked",
    ),
    (
        &["UpdateInterfaceRequest", "UpdateRoutesRequest", "AddARPNeighborsRequest"],
        &[
            "interface",
            "interface.IPAddresses.*",
            "routes",
            "routes.Routes.*",
            "neighbors",
            "neighbors.ARPNeighbors.*",
            "neighbors.ARPNeighbors.*.toIPAddress",
        ],
        &["added"],
        "as above",
    ),
    (
        &["CreateContainerRequest", "CreatePause", "ExecProcessRequest", "CreateSandboxRequest"],
        &[
            "OCI.Domainname",
            "OCI.Hooks",
            "OCI.Linux.GIDMappings",
            "OCI.Linux.IntelRdt",
            "OCI.Linux.MountLabel",
            "OCI.Linux.Resources",
            "OCI.Linux.Seccomp",
            "OCI.Linux.UIDMappings",
            "OCI.Process.ApparmorProfile",
            "OCI.Process.Capabilities.Ambient",
            "OCI.Process.Capabilities.Bounding", // of containers that drop all
            "OCI.Process.Capabilities.Effective",
            "OCI.Process.Capabilities.Inheritable",
            "OCI.Process.Capabilities.Permitted",
            "OCI.Process.Rlimits",
            "OCI.Process.SelinuxLabel",
            "OCI.Process.User.Username",
            "OCI.Solaris",
            "OCI.Windows",
            "shared_mounts",
            "stdin_port",
            "stdout_port",
            "stderr_port",
            "sandbox_pidns",
            "OCI.Linux.Resources.BlockIO",
            "OCI.Linux.Resources.Network",
            "OCI.Linux.Resources.Pids",
            "storages.*.driver_options",
            "storages.*.options",
            "string_user",
            "kernel_modules",
            "process.ApparmorProfile",
            "process.Capabilities.Ambient",
            "process.Capabilities.Inheritable",
            "process.Rlimits",
            "process.SelinuxLabel",
            "process.User.Username",
            "OCI.Linux.Devices",
            "devices",
            "storages.*.fs_group",
            "storages.*.shared",
            "devices.*.options",
            "OCI.Linux.MaskedPaths",
            "OCI.Linux.ReadonlyPaths",
            "OCI.Process.User.AdditionalGids",
        ],
        &["removed"],
        "it was empty, and what is not there means empty",
    ),
    (
        &["CreateContainerRequest", "CreatePause", "ExecProcessRequest"],
        &[
            "OCI.Linux.MaskedPaths",
            "OCI.Linux.ReadonlyPaths",
            "OCI.Linux.Namespaces",
            "OCI.Process.Capabilities.*",
            "OCI.Process.User.AdditionalGids",
            "process.Capabilities.*",
            "process.User.AdditionalGids",
            "OCI.Process.Env",
            "process.Env",
            "storages",
            "devices",
            "OCI.Linux.Devices",
        ],
        &["reordered", "repeated"],
        "a set: neither order nor repetition means anything (an environment with a name twice is refused)",
    ),
    (
        &["CreateContainerRequest", "CreatePause", "ExecProcessRequest"],
        &[
            "OCI.Process.OOMScoreAdj",
            "OCI.Process.ConsoleSize",
            "process.OOMScoreAdj",
            "process.ConsoleSize",
            "OCI.Linux.CgroupsPath",
            "OCI.Linux.Resources.CPU**",
            "OCI.Linux.Resources.Memory",
            "OCI.Linux.Resources.Devices",
        ],
        &["changed", "removed"],
        "how much of the VM a container gets: the host can starve the VM as a whole anyway",
    ),
    (
        &["CreatePause", "CreateContainerRequest"],
        &[
            "OCI.Linux.Sysctl",
            "OCI.Linux.Sysctl.net·ipv4·ip_unprivileged_port_start",
            "OCI.Linux.Sysctl.net·ipv4·ping_group_range",
        ],
        &["removed"],
        "containerd's defaults, which some installations turn off; the kernel's own are stricter",
    ),
    (
        &["CreateContainerRequest", "CreatePause"],
        &["OCI.Linux.MaskedPaths.#"],
        &["changed", "removed"],
        "of more paths than the pod asks for: below /proc and /sys, a path more or less opens nothing",
    ),
    (
        &["CreateContainerRequest", "CreatePause"],
        &["OCI.Version"],
        &["changed"],
        "the agent does nothing with it, and each version of containerd has another",
    ),
    (
        &["CreateContainerRequest", "CreatePause"],
        &["OCI.Mounts./sys.options", "OCI.Mounts./sys/fs/cgroup.options"],
        &["reordered", "repeated"],
        "a set, in which nodes have more than the pod asks for",
    ),
    (
        &["CreateContainerRequest"],
        &[
            "OCI.Process.Capabilities.Bounding.#",
            "OCI.Process.Capabilities.Effective.#",
            "OCI.Process.Capabilities.Permitted.#",
        ],
        &["removed"],
        "a privileged container has what the node's containerd has, and no less than an ordinary one",
    ),
    (
        &["ExecProcessRequest"],
        &["process.Capabilities", "process.NoNewPrivileges", "process.Terminal"],
        &["removed"],
        "null and false, which mean the same",
    ),
    (
        &["CreateContainerRequest", "CreatePause"],
        &[
            "OCI.Linux.Resources.Memory",
            "OCI.Linux.Resources.Memory.**",
            "OCI.Linux.Resources.HugepageLimits",
        ],
        &["changed", "removed", "added"],
        "limits: the host can starve the VM anyway",
    ),
    (&["GuestDetailsRequest"], &["mem_block_size", "mem_hotplug_probe"], &[], "what the host wants to know"),
    (
        &["CreateContainerRequest"],
        &["OCI.Mounts./var/run/secrets/kubernetes·io/serviceaccount"],
        &["removed"],
        "the service account may forbid the token, which the pod's YAML does not show",
    ),
    (
        &["CreateContainerRequest", "ExecProcessRequest"],
        &["OCI.Process.Env.HOSTNAME", "process.Env.HOSTNAME"],
        &["removed"],
        "not every runtime sets it",
    ),
    (&["CreateContainerRequest"], &["OCI.Process.Env.TERM"], &["removed"], "not every runtime sets it"),
    (
        &["CreateContainerRequest", "ExecProcessRequest"],
        &[
            "OCI.Process.Env.KUBERNETES_*",
            "OCI.Process.Env.ORDERS_V2_*",
            "process.Env.KUBERNETES_*",
            "process.Env.ORDERS_V2_*",
        ],
        &["changed", "removed"],
        "addresses of services are the cluster's to give; whom one talks to is decided by certificates",
    ),
    (
        &["CreateContainerRequest", "ExecProcessRequest"],
        &["OCI.Process.Env.NODE", "OCI.Process.Env.MEMORY", "process.Env.NODE", "process.Env.MEMORY"],
        &["changed"],
        "of the form that the field reference has; the host knows no other truth",
    ),
    (
        &["CreatePause"],
        &["storages**"],
        &[],
        "the guest starts its own pause program, whatever image the host names",
    ),
    (
        &["CreateContainerRequest"],
        &["OCI.Linux.Devices", "OCI.Linux.Devices.**", "devices.*.id", "devices.*.vm_path"],
        &["removed", "changed"],
        "which disk of the VM is behind a declared device is the host's to say; what is on it is checked by its encryption",
    ),
    (&["CreateSandboxRequest"], &["dns**"], &[], "name resolution is not trusted"),
    (
        &["CreateSandboxRequest"],
        &["hostname"],
        &["removed", "changed"],
        "an agent always says it; of a pod whose name has only a form, it is fixed here for all its containers",
    ),
    (
        &["ExecProcessRequest", "WaitProcessRequest", "SignalProcessRequest", "RemoveContainerRequest"],
        &["exec_id", "signal", "timeout"],
        &[],
        "the host may stop what it started",
    ),
    (
        &["CopyFileRequest"],
        &[
            "dir_mode",
            "file_mode",
            "file_size",
            "file_type",
            "gid",
            "uid",
            "offset",
            "path",
            "symlink_target",
        ],
        &["changed", "removed"],
        "files that the host copies are the host's: their contents are not pinned (docs/policies.md)",
    ),
    (
        &["UpdateInterfaceRequest"],
        &["interface.**"],
        &[],
        "the network belongs to the host; the loopback device does not",
    ),
    (
        &["UpdateRoutesRequest", "AddARPNeighborsRequest"],
        &["routes.Routes**", "neighbors.ARPNeighbors**"],
        &[],
        "as above",
    ),
];

type Words = &'static [&'static str];
type Explained = (Words, Words, Words, &'static str);

/// A changed request, and where.
pub(crate) struct Mutant {
    pub(crate) path: String,
    kind: &'static str,
    /// With what was there before: the same change of the same thing finds nothing new.
    key: String,
    pub(crate) request: Value,
}

/// Every field changed, removed, repeated; every list and map with one thing more.
pub(crate) fn mutants(request: &Value) -> Vec<Mutant> {
    let mut found = Vec::new();
    walk(request, &mut Vec::new(), &mut |steps, kind, before, changed| {
        let mut mutant = request.clone();
        put(&mut mutant, steps, changed);
        if mutant != *request {
            let path = generalized(request, steps);
            found.push(Mutant { key: format!("{path} {kind} {before}"), path, kind, request: mutant });
        }
    });
    found
}

/// Items of lists by what they are called; a dot inside of a name becomes `·`.
fn generalized(request: &Value, steps: &[String]) -> String {
    let (mut value, mut parts) = (request, Vec::new());
    for step in steps {
        match value {
            Value::Array(items) => {
                value = &items[step.parse::<usize>().unwrap()];
                let name = ["destination", "Type"].iter().find_map(|field| value.get(*field)?.as_str());
                let variable = value.as_str().and_then(|text| text.split_once('=')).map(|(name, _)| name);
                parts.push(name.or(variable).unwrap_or("#").to_owned());
            }
            other => {
                value = &other[step.as_str()];
                parts.push(step.clone());
            }
        }
    }
    parts.iter().map(|part| part.replace('.', "·")).collect::<Vec<_>>().join(".")
}

type Visit<'a> = dyn FnMut(&[String], &'static str, &Value, Option<Value>) + 'a;

fn walk(value: &Value, steps: &mut Vec<String>, visit: &mut Visit<'_>) {
    if !steps.is_empty() {
        visit(steps, "removed", value, None);
        for (kind, other) in others(value) {
            visit(steps, kind, value, Some(other));
        }
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                steps.push(key.clone());
                walk(value, steps, visit);
                steps.pop();
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                steps.push(index.to_string());
                walk(item, steps, visit);
                steps.pop();
            }
        }
        _ => {}
    }
}

fn others(value: &Value) -> Vec<(&'static str, Value)> {
    match value {
        Value::Null => vec![("changed", json!({ "x": ["/bin/evil"] })), ("changed", json!("evil"))],
        Value::Bool(flag) => vec![("changed", json!(!flag))],
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            vec![("changed", json!(number + 1)), ("changed", json!(number + 2048))]
        }
        Value::String(text) => {
            let changes = [format!("{text}x"), format!("/evil{text}"), "../evil".to_owned()];
            changes.into_iter().map(|text| ("changed", json!(text))).collect()
        }
        Value::Array(items) => {
            let with = |item: &Value| Value::Array([items.as_slice(), std::slice::from_ref(item)].concat());
            let mut all = vec![("added", with(&json!("evil")))];
            if let Some(first) = items.first() {
                all.push(("repeated", with(first)));
                all.push(("reordered", items.iter().rev().cloned().collect()));
            }
            all
        }
        Value::Object(map) => {
            let mut more = map.clone();
            more.insert("evil".into(), json!("evil"));
            vec![("added", Value::Object(more))]
        }
    }
}

fn put(target: &mut Value, steps: &[String], value: Option<Value>) {
    let (last, above) = steps.split_last().unwrap();
    let parent = above.iter().fold(target, |value, step| match value {
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        other => &mut other[step.as_str()],
    });
    match (parent, value) {
        (Value::Object(map), Some(value)) => drop(map.insert(last.clone(), value)),
        (Value::Object(map), None) => drop(map.remove(last)),
        (Value::Array(items), Some(value)) => items[last.parse::<usize>().unwrap()] = value,
        (Value::Array(items), None) => drop(items.remove(last.parse().unwrap())),
        _ => panic!("no parent of {steps:?}"),
    }
}

/// `*` stands for one step of a path or the end of one, `**` for all that follows.
fn covers(pattern: &str, path: &str) -> bool {
    if let Some(before) = pattern.strip_suffix("**") {
        return path.starts_with(before);
    }
    let Some((before, after)) = pattern.split_once('*') else { return pattern == path };
    let step = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    step.is_some_and(|step| !step.is_empty() && !step.contains('.'))
}

fn explanation(request: &str, mutant: &Mutant) -> Option<usize> {
    EXPLAINED.iter().position(|(requests, paths, kinds, _)| {
        requests.contains(&request)
            && (kinds.is_empty() || kinds.contains(&mutant.kind))
            && paths.iter().any(|path| covers(path, &mutant.path))
    })
}

/// Runs `test` with what real hosts sent, and then with what a host would send for pods that were not recorded.
fn each(mut test: impl FnMut(&PodPolicy, &[Request])) {
    recorded::each(|_, policy, requests| test(policy, requests));
    corpus::each(|policy, host| {
        if host.shim == Shim::Rust {
            test(policy, &host.life());
        }
    });
}

/// What is made up anew for each pod does not make a change another one.
fn without_ids(key: &str) -> String {
    let ids = regex::Regex::new("[0-9a-f]{16,64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").unwrap();
    ids.replace_all(key, "ID").into_owned()
}

fn is_pause(request: &Value) -> bool {
    request["OCI"]["Annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
}

#[test]
fn every_changed_field_is_refused_or_explained() {
    let mut survivors = BTreeSet::new();
    let (mut tried, mut used) = (0, BTreeSet::new());
    let mut seen = BTreeSet::new();
    each(|policy, requests| {
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        for (name, request) in requests {
            let label = if is_pause(request) { "CreatePause" } else { name.as_str() };
            let before = evaluator.clone();
            for mutant in mutants(request) {
                if !seen.insert((label.to_owned(), without_ids(&mutant.key))) {
                    continue;
                }
                tried += 1;
                // An evaluation that fails is a denial, in the agent too.
                let decision = evaluator.decide(name, &mutant.request);
                if decision.is_ok_and(|decision| decision.allowed) {
                    evaluator = before.clone(); // it remembers what it allowed
                    match explanation(label, &mutant) {
                        Some(entry) => drop(used.insert(entry)),
                        None => drop(survivors.insert(format!("{label} {} {}", mutant.path, mutant.kind))),
                    }
                }
            }
            assert!(evaluator.decide(name, request).unwrap().allowed, "{name} of {}", policy.workload.name);
        }
    });
    let list: Vec<String> = survivors.into_iter().collect();
    assert!(list.is_empty(), "{tried} changes tried; allowed, and nobody says why:\n{}", list.join("\n"));
    let unused: Vec<_> =
        (0..EXPLAINED.len()).filter(|entry| !used.contains(entry)).map(|entry| EXPLAINED[entry].1).collect();
    assert!(unused.is_empty(), "explained, but refused: {unused:?}");
    assert!(tried > 2000, "only {tried} changes were tried");
}

/// A request that a host may put between others, and whether it may.
struct Inserted {
    what: String,
    request: Request,
    allowed: bool,
}

/// What a hostile host would put after the requests `sent` so far.
fn inserted(policy: &PodPolicy, sent: &[Request]) -> Vec<Inserted> {
    let data = policy.document.data().unwrap();
    let mut found = Vec::new();
    let mut add = |what: String, name: &str, request: Value, allowed: bool| {
        found.push(Inserted { what, request: (name.to_owned(), request), allowed });
    };
    let shared = "/run/kata-containers/shared/containers";
    let fresh = "e".repeat(64);
    let file = |path: String, kind: &str, target: Value| {
        let mode = match kind {
            "Symlink" => 0o120_000,
            _ => 0o100_644,
        };
        json!({
            "path": path, "file_type": kind, "symlink_target": target, "file_mode": mode, "dir_mode": 0o755,
            "file_size": 1, "uid": 0, "gid": 0, "offset": 0,
        })
    };
    let link = format!("{shared}/{fresh}-0123456789abcdef-x");
    add("a link at the top".into(), "CopyFileRequest", file(link, "Symlink", json!("target")), false);
    let sandbox = sent.iter().find_map(|(_, request)| request["sandbox_id"].as_str()).unwrap_or("none");
    for place in ["passthrough/", ""] {
        let path = format!("{shared}/{place}{sandbox}/rootfs/local/contrast-secrets/mesh-ca.pem");
        add(format!("a file in {path}"), "CopyFileRequest", file(path, "Regular", Value::Null), false);
    }
    add(
        "an unknown container's end".into(),
        "RemoveContainerRequest",
        json!({ "container_id": fresh }),
        false,
    );
    add("a second sandbox".into(), "CreateSandboxRequest", json!({ "sandbox_id": fresh }), false);
    let mut created: Vec<(String, &Value)> = Vec::new();
    let mut alive: Vec<&str> = Vec::new();
    for (name, request) in sent {
        let id = request["container_id"].as_str().unwrap_or_default();
        match name.as_str() {
            "CreateContainerRequest" => {
                let key = "io.kubernetes.cri.container-name";
                let container = request["OCI"]["Annotations"][key].as_str().unwrap_or("pause");
                created.push((container.to_owned(), request));
                alive.push(id);
            }
            "RemoveContainerRequest" => alive.retain(|known| *known != id),
            _ => {}
        }
    }
    for (container, request) in &created {
        let id = request["container_id"].as_str().unwrap();
        let text = request.to_string().replace(id, &fresh);
        let mut again: Value = serde_json::from_str(&text).unwrap();
        if is_pause(request) {
            continue; // its id is the sandbox's
        }
        again["OCI"]["Annotations"]["io.kubernetes.cri.sandbox-id"] = json!(sandbox);
        let entry =
            data["containers"].as_array().unwrap().iter().find(|entry| entry["name"] == container.as_str());
        let later = entry.unwrap()["before"].as_array().unwrap();
        let over = created.iter().any(|(other, _)| later.iter().any(|name| name == other.as_str()));
        let exists = alive.contains(&id);
        add(format!("{container} again"), "CreateContainerRequest", again, !over && !exists);
    }
    for id in alive {
        let container = json!({ "container_id": id });
        add("other limits".into(), "UpdateContainerRequest", container, false);
        let process =
            json!({ "Args": ["/bin/sh"], "Cwd": "/", "User": { "UID": 0, "GID": 0, "AdditionalGids": [0] } });
        let exec = json!({ "container_id": id, "exec_id": "x", "process": process });
        add("a shell".into(), "ExecProcessRequest", exec, false);
    }
    found
}

#[test]
fn what_is_put_between_requests_is_refused() {
    let mut tried = 0;
    recorded::each(|recording, policy, requests| {
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        for (position, (name, request)) in requests.iter().enumerate() {
            // What an agent remembers changes with these only.
            let changes = [
                "CreateSandboxRequest",
                "CreateContainerRequest",
                "StartContainerRequest",
                "RemoveContainerRequest",
            ];
            evaluator.decide(name, request).unwrap();
            if !changes.contains(&name.as_str()) {
                continue;
            }
            for Inserted { what, request, allowed } in inserted(policy, &requests[..=position]) {
                let decision = evaluator.clone().decide(&request.0, &request.1);
                let found = decision.is_ok_and(|decision| decision.allowed);
                assert_eq!(found, allowed, "{recording}: {what} after request {position}, {name}");
                tried += 1;
            }
        }
    });
    assert!(tried > 200, "{tried}");
}
