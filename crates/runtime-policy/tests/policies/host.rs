//! What a correct host sends to the agent for a pod: kubelet, containerd and the Kata shim in one.
//!
//! Written after the recordings (`recorded.rs`), for pods that were not recorded: it says the same as they do of the same
//! pod, as [`crate::recorded`] checks. What the Go shim does otherwise was read in its source.

use std::collections::BTreeMap;

use runtime_policy::ContainerImage;
use serde_json::{Value, json};

pub(crate) const SANDBOX: &str = "1111111111111111111111111111111111111111111111111111111111111111";
pub(crate) const SHARED: &str = "/run/kata-containers/shared/containers";

/// A request by the name of its rule.
pub(crate) type Request = (String, Value);

pub(crate) struct Host<'a> {
    /// The pod: `metadata` and `spec` as they are in the template.
    pub(crate) pod: &'a Value,
    /// The name that Kubernetes gave it.
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    /// Images by reference.
    pub(crate) images: &'a BTreeMap<String, ContainerImage>,
    /// Values of `ConfigMaps` and Secrets: name and key.
    pub(crate) values: &'a BTreeMap<(String, String), String>,
    pub(crate) shim: Shim,
}

/// Whose form requests have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shim {
    Rust,
    Go,
}

fn list<'v>(value: &'v Value, field: &str) -> Vec<&'v Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten().collect()
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    list(value, field).iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

pub(crate) fn id(name: &str) -> String {
    let mut id = String::new();
    for byte in name.bytes() {
        id.push_str(&format!("{byte:02x}"));
    }
    format!("{id:a<64}")[..64].to_owned()
}

fn bind(destination: &str, source: String, options: [&str; 3]) -> Value {
    json!({ "destination": destination, "source": source, "type_": "bind", "options": options })
}

fn copied(container: &str, destination: &str) -> String {
    let base = destination.trim_end_matches('/').rsplit('/').next().unwrap();
    let random = destination
        .bytes()
        .fold(0x0123_4567_89ab_cdef_u64, |sum, byte| sum.rotate_left(7).wrapping_mul(3) ^ u64::from(byte));
    format!("{SHARED}/{container}-{random:016x}-{base}")
}

impl Host<'_> {
    fn containers(&self) -> Vec<&Value> {
        let spec = &self.pod["spec"];
        [list(spec, "initContainers"), list(spec, "containers")].concat()
    }

    /// The life of the pod, from its sandbox to the end of it.
    pub(crate) fn life(&self) -> Vec<Request> {
        let mut life = self.start();
        for container in self.containers() {
            let id = id(container["name"].as_str().unwrap());
            life.push((
                "SignalProcessRequest".into(),
                json!({ "container_id": id, "exec_id": "", "signal": 15 }),
            ));
            life.push(("WaitProcessRequest".into(), json!({ "container_id": id, "exec_id": id })));
            life.push(("RemoveContainerRequest".into(), json!({ "container_id": id, "timeout": 0 })));
        }
        life.push(("RemoveContainerRequest".into(), json!({ "container_id": SANDBOX, "timeout": 0 })));
        life.push(("DestroySandboxRequest".into(), json!({})));
        life
    }

    /// Until every container runs.
    pub(crate) fn start(&self) -> Vec<Request> {
        let mut start: Vec<Request> = vec![("CreateSandboxRequest".into(), self.create_sandbox())];
        start.extend(network());
        start.push(("CreateContainerRequest".into(), self.create_pause()));
        start.push(("StartContainerRequest".into(), json!({ "container_id": SANDBOX })));
        for container in self.containers() {
            let id = id(container["name"].as_str().unwrap());
            let create = self.create(container);
            for mount in list(&create["OCI"], "Mounts") {
                if mount["source"].as_str().is_some_and(|source| source.contains(&format!("{SHARED}/{id}-")))
                {
                    start.push(copy(&mount["source"]));
                }
            }
            start.push(("CreateContainerRequest".into(), create));
            start.push(("StartContainerRequest".into(), json!({ "container_id": id })));
            for command in probes(container) {
                start.push(("ExecProcessRequest".into(), self.exec(container, &command)));
            }
        }
        start
    }

    fn create_sandbox(&self) -> Value {
        json!({
            "hostname": self.hostname(),
            "dns": ["nameserver 10.96.0.10"],
            "sandbox_id": SANDBOX,
            "sandbox_pidns": false,
            "guest_hook_path": "",
            "kernel_modules": [],
            "storages": [{
                "driver": "ephemeral", "driver_options": [], "source": "shm", "fstype": "tmpfs",
                "options": ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
                "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": null, "shared": false,
            }],
        })
    }

    fn hostname(&self) -> String {
        if let Some(index) = self.index() {
            let (job, _) = self.name.rsplit_once(&format!("-{index}-")).unwrap();
            return format!("{job}-{index}");
        }
        self.pod["spec"]["hostname"].as_str().unwrap_or(self.name).to_owned()
    }

    /// Number of the pod, if a job numbers its pods.
    fn index(&self) -> Option<&str> {
        let (rest, suffix) = self.name.rsplit_once('-')?;
        (rest.starts_with("batch-") && suffix.len() == 5).then(|| rest.rsplit('-').next().unwrap())
    }

    fn annotations(&self, container: &str, kind: [&str; 2]) -> Value {
        json!({
            "io.katacontainers.pkg.oci.bundle_path":
                format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container}"),
            "io.katacontainers.pkg.oci.container_type": kind[1],
            "io.kubernetes.cri.container-type": kind[0],
            "io.kubernetes.cri.sandbox-id": SANDBOX,
            "io.kubernetes.cri.sandbox-name": self.name,
            "io.kubernetes.cri.sandbox-namespace": self.namespace,
            "io.kubernetes.cri.sandbox-uid": "eb1495ed-331a-44ff-ad6d-fce1a69280cd",
        })
    }

    fn request(&self, id: &str, oci: Value, storages: Value, devices: Value) -> Value {
        let shared = self.pod["spec"]["shareProcessNamespace"] == true && id != SANDBOX;
        json!({
            "container_id": id,
            "exec_id": if self.shim == Shim::Go { id } else { "" },
            "OCI": oci,
            "storages": storages,
            "devices": devices,
            "sandbox_pidns": shared,
            "shared_mounts": [],
            "string_user": null,
            "stdin_port": 0, "stdout_port": 0, "stderr_port": 0,
        })
    }

    /// The user of the sandbox's own container: the pod's, or the image's.
    fn pause_user(&self) -> Value {
        let context = &self.pod["spec"]["securityContext"];
        let (uid, gid) = match context["runAsUser"].as_u64() {
            Some(uid) => (uid, context["runAsGroup"].as_u64().unwrap_or(0)),
            None => (65535, 65535),
        };
        json!({ "UID": uid, "GID": gid, "AdditionalGids": [gid], "Username": "" })
    }

    fn create_pause(&self) -> Value {
        let mut annotations = self.annotations(SANDBOX, ["sandbox", "pod_sandbox"]);
        annotations["io.kubernetes.cri.sandbox-log-directory"] = json!(format!(
            "/var/log/pods/{}_{}_eb1495ed-331a-44ff-ad6d-fce1a69280cd",
            self.namespace, self.name
        ));
        annotations["nerdctl/network-namespace"] = json!("/var/run/netns/cni-c2fb028b");
        annotations["io.kubernetes.cri.sandbox-memory"] = json!("0");
        let mut sysctl = json!({
            "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
        });
        for entry in list(&self.pod["spec"]["securityContext"], "sysctls") {
            sysctl[entry["name"].as_str().unwrap()] = entry["value"].clone();
        }
        let mut mounts = default_mounts();
        mounts.push(json!({ "destination": "/sys", "source": "sysfs", "type_": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }));
        mounts.push(json!({
            "destination": "/etc/resolv.conf", "source": copied(SANDBOX, "/etc/resolv.conf"), "type_": "bind",
            "options": ["rbind", "ro", "nosuid", "nodev", "noexec"],
        }));
        let process = json!({
            "Args": ["/pause"], "Cwd": "/", "Env": [PATH], "Terminal": false, "NoNewPrivileges": true,
            "User": self.pause_user(),
            "Capabilities": self.capabilities(&DEFAULT.map(String::from)),
            "ApparmorProfile": "", "SelinuxLabel": "", "Rlimits": [], "OOMScoreAdj": -998, "ConsoleSize": null,
        });
        let mut linux = self.linux(false, "");
        linux["Sysctl"] = sysctl;
        let storage = guest_pull(SANDBOX, "pause", &annotations);
        self.request(
            SANDBOX,
            self.oci(SANDBOX, annotations, process, mounts, linux, true),
            json!([storage]),
            json!([]),
        )
    }

    fn oci(
        &self,
        id: &str,
        annotations: Value,
        process: Value,
        mounts: Vec<Value>,
        linux: Value,
        readonly: bool,
    ) -> Value {
        json!({
            "Version": "1.2.1",
            "Hostname": if id == SANDBOX { self.hostname() } else { String::new() },
            "Domainname": "",
            "Root": { "Path": format!("/run/kata-containers/{id}/rootfs"), "Readonly": readonly },
            "Annotations": annotations,
            "Process": process,
            "Mounts": mounts,
            "Linux": linux,
            "Hooks": null,
            "Solaris": null,
            "Windows": null,
        })
    }

    pub(crate) fn create(&self, container: &Value) -> Value {
        let name = container["name"].as_str().unwrap();
        let id = id(name);
        let image = container["image"].as_str().unwrap();
        let mut annotations = self.annotations(&id, ["container", "pod_container"]);
        annotations["io.kubernetes.cri.container-name"] = json!(name);
        annotations["io.kubernetes.cri.image-name"] = json!(image);
        let context = &container["securityContext"];
        let privileged = context["privileged"] == true;
        let readonly = context["readOnlyRootFilesystem"] == true;
        let access = if readonly { "ro" } else { "rw" };
        let mut mounts = default_mounts();
        let sys = if privileged { "rw" } else { "ro" };
        mounts.push(json!({ "destination": "/sys", "source": "sysfs", "type_": "sysfs", "options": ["nosuid", "noexec", "nodev", sys] }));
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "source": "cgroup", "type_": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", sys],
        }));
        mounts.push(bind("/etc/hosts", copied(&id, "/etc/hosts"), ["rbind", "rprivate", "rw"]));
        let log = container["terminationMessagePath"].as_str().unwrap_or("/dev/termination-log");
        mounts.push(bind(log, copied(&id, log), ["rbind", "rprivate", "rw"]));
        mounts.push(bind("/etc/hostname", copied(&id, "/etc/hostname"), ["rbind", "rprivate", access]));
        mounts.push(bind("/etc/resolv.conf", copied(&id, "/etc/resolv.conf"), ["rbind", "rprivate", access]));
        let mut storages = Vec::new();
        let mut propagation = "";
        for mount in list(container, "volumeMounts") {
            self.mount(&id, mount, &mut mounts, &mut storages, &mut propagation);
        }
        if self.pod["spec"]["automountServiceAccountToken"] != false {
            let account = "/var/run/secrets/kubernetes.io/serviceaccount";
            mounts.push(bind(account, copied(&id, account), ["rbind", "rprivate", "ro"]));
        }
        storages.push(guest_pull(&id, image, &annotations));
        // The runtime mounts what lies higher first.
        mounts.sort_by_key(|mount| mount["destination"].as_str().unwrap().matches('/').count());
        let devices: Vec<&Value> = list(container, "volumeDevices");
        let mut linux = self.linux(privileged, propagation);
        linux["Devices"] = devices
            .iter()
            .map(|device| json!({ "Path": device["devicePath"], "Type": "b", "Major": 254, "Minor": 0, "FileMode": 384, "UID": 0, "GID": 0 }))
            .collect();
        let devices = devices
            .iter()
            .map(|device| json!({ "container_path": device["devicePath"], "type_": "blk", "id": "02", "vm_path": "/dev/vdb", "options": [] }))
            .collect();
        let oci = self.oci(&id, annotations, self.process(container), mounts, linux, readonly);
        self.request(&id, oci, Value::Array(storages), devices)
    }

    fn mount(
        &self,
        id: &str,
        mount: &Value,
        mounts: &mut Vec<Value>,
        storages: &mut Vec<Value>,
        propagation: &mut &str,
    ) {
        let name = mount["name"].as_str().unwrap();
        let path = mount["mountPath"].as_str().unwrap().trim_end_matches('/');
        let volumes = list(&self.pod["spec"], "volumes");
        let volume = volumes.into_iter().find(|volume| volume["name"] == name);
        let none = json!({ "persistentVolumeClaim": {} });
        let volume = volume.unwrap_or(&none);
        let has = |kind: &str| volume.get(kind).is_some();
        let forced = has("configMap") || has("secret") || has("projected") || has("downwardAPI");
        let access = if forced || mount["readOnly"] == true { "ro" } else { "rw" };
        let mode = match mount["mountPropagation"].as_str() {
            Some("Bidirectional") => "rshared",
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        if mode == "rshared" || (mode == "rslave" && propagation.is_empty()) {
            *propagation = mode;
        }
        let options = ["rbind", mode, access];
        if !has("emptyDir") {
            mounts.push(bind(path, copied(id, path), options));
        } else {
            let group = self.pod["spec"]["securityContext"]["fsGroup"].as_u64();
            let group = group.map(|group| format!("fsgid={group}"));
            let (driver, kind, mode, fs, place) = match (volume["emptyDir"]["medium"] == "Memory", self.shim)
            {
                (true, _) => (
                    "ephemeral",
                    "bind",
                    None,
                    "tmpfs",
                    format!("/run/kata-containers/sandbox/ephemeral/{name}"),
                ),
                (_, Shim::Rust) => (
                    "local",
                    "local",
                    Some("mode=0777"),
                    "local",
                    format!("{SHARED}/passthrough/{SANDBOX}/rootfs/local/{name}"),
                ),
                (_, Shim::Go) => (
                    "local",
                    "local",
                    Some("mode=0777"),
                    "local",
                    format!("{SHARED}/{SANDBOX}/rootfs/local/{name}"),
                ),
            };
            mounts.push(json!({ "destination": path, "source": place, "type_": kind, "options": options }));
            let given: Vec<String> = mode.map(str::to_owned).into_iter().chain(group).collect();
            storages.push(json!({
                "driver": driver, "driver_options": [], "source": fs, "fstype": fs, "options": given,
                "mount_point": place, "fs_group": null, "shared": false,
            }));
        }
    }

    pub(crate) fn process(&self, container: &Value) -> Value {
        let context = &container["securityContext"];
        let pod = &self.pod["spec"]["securityContext"];
        let fallback = ContainerImage::default();
        let image = self.images.get(container["image"].as_str().unwrap()).unwrap_or(&fallback);
        let first = |key: &str| context.get(key).or(pod.get(key)).and_then(Value::as_u64);
        let (uid, gid, mut groups) = match first("runAsUser") {
            Some(uid) => (uid, 0, Vec::new()),
            None => image_user(image),
        };
        if pod["supplementalGroupsPolicy"] == "Strict" {
            groups.clear(); // those of the image do not count
        }
        let gid = first("runAsGroup").unwrap_or(gid);
        groups.insert(0, gid);
        for group in list(pod, "supplementalGroups").into_iter().chain(pod.get("fsGroup")) {
            groups.push(group.as_u64().unwrap());
        }
        // The runtime makes a set of them.
        let mut known = std::collections::BTreeSet::new();
        groups.retain(|group| known.insert(*group));
        let mut set: Vec<String> = DEFAULT.map(String::from).to_vec();
        if context["privileged"] == true {
            set = ALL.split(' ').map(|name| format!("CAP_{name}")).collect();
        } else {
            let drop = texts(&context["capabilities"], "drop");
            if drop.iter().any(|name| name == "ALL") {
                set.clear();
            }
            set.extend(texts(&context["capabilities"], "add").iter().map(|name| format!("CAP_{name}")));
            set.retain(|name| !drop.iter().any(|dropped| *name == format!("CAP_{dropped}")));
        }
        let command = texts(container, "command");
        let args = texts(container, "args");
        let env = self.env(container, image);
        let expand = |list: Vec<String>| -> Vec<String> {
            list.into_iter()
                .map(|text| {
                    env.iter().fold(text, |text, (name, value)| text.replace(&format!("$({name})"), value))
                })
                .map(|text| text.replace("$$", "$"))
                .collect()
        };
        let run = match (command.is_empty(), args.is_empty()) {
            (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
            (true, false) => [image.entrypoint.clone(), expand(args)].concat(),
            (false, _) => [expand(command), expand(args)].concat(),
        };
        let dir = if image.working_dir.is_empty() { "/" } else { &image.working_dir };
        let entries: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        json!({
            "Args": run,
            "Cwd": container["workingDir"].as_str().unwrap_or(dir),
            "Env": entries,
            "Terminal": container["tty"] == true,
            "NoNewPrivileges": context["allowPrivilegeEscalation"] == false,
            "User": { "UID": uid, "GID": gid, "AdditionalGids": groups, "Username": "" },
            "Capabilities": self.capabilities(&set),
            "ApparmorProfile": "", "SelinuxLabel": "", "Rlimits": [], "OOMScoreAdj": 1000, "ConsoleSize": null,
        })
    }

    fn env(&self, container: &Value, image: &ContainerImage) -> BTreeMap<String, String> {
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), PATH[5..].to_owned()),
            ("HOSTNAME".to_owned(), self.hostname()),
        ]);
        if let Some(index) = self.index() {
            env.insert("JOB_COMPLETION_INDEX".into(), index.into());
        }
        for entry in &image.env {
            let (name, value) = entry.split_once('=').unwrap();
            env.insert(name.to_owned(), value.to_owned());
        }
        let services = [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
            ("KUBERNETES_PORT_443_TCP_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
            ("ORDERS_V2_SERVICE_HOST", "10.96.12.7"),
            ("ORDERS_V2_SERVICE_PORT_HTTP_API", "80"),
        ];
        let links = self.pod["spec"]["enableServiceLinks"] != false;
        for (name, value) in services.iter().filter(|(name, _)| links || name.starts_with("KUBERNETES")) {
            env.insert((*name).to_owned(), (*value).to_owned());
        }
        if container["tty"] == true {
            env.insert("TERM".into(), "xterm".into());
        }
        for from in list(container, "envFrom") {
            let reference = from.get("configMapRef").or(from.get("secretRef")).unwrap();
            let prefix = from["prefix"].as_str().unwrap_or_default();
            for ((name, key), value) in self.values {
                if reference["name"] == name.as_str() {
                    env.insert(format!("{prefix}{key}"), value.clone());
                }
            }
        }
        for entry in list(container, "env") {
            let source = &entry["valueFrom"];
            let reference = source.get("configMapKeyRef").or(source.get("secretKeyRef"));
            let value = if let Some(reference) = reference {
                let text = |field: &str| reference[field].as_str().unwrap().to_owned();
                match self.values.get(&(text("name"), text("key"))) {
                    Some(value) => value.clone(),
                    None => continue,
                }
            } else if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
                match path {
                    "metadata.name" => self.name.to_owned(),
                    "metadata.namespace" => self.namespace.to_owned(),
                    "metadata.uid" => "eb1495ed-331a-44ff-ad6d-fce1a69280cd".to_owned(),
                    "status.podIP" | "status.hostIP" => "10.244.0.17".to_owned(),
                    "spec.nodeName" => "node-1.example".to_owned(),
                    "spec.serviceAccountName" => {
                        self.pod["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned()
                    }
                    _ => {
                        let key = path.split('\'').nth(1).unwrap();
                        let kind = if path.starts_with("metadata.labels") { "labels" } else { "annotations" };
                        self.pod["metadata"][kind][key].as_str().unwrap_or("7d9f").to_owned()
                    }
                }
            } else if source.get("resourceFieldRef").is_some() {
                "1073741824".to_owned()
            } else {
                let text = entry["value"].as_str().unwrap_or_default().to_owned();
                env.iter().fold(text, |text, (name, value)| text.replace(&format!("$({name})"), value))
            };
            env.insert(entry["name"].as_str().unwrap().to_owned(), value);
        }
        env
    }

    pub(crate) fn exec(&self, container: &Value, command: &[String]) -> Value {
        let mut process = self.process(container);
        process["Args"] = json!(command);
        process["Capabilities"] = Value::Null;
        process["NoNewPrivileges"] = json!(false);
        process["Terminal"] = json!(false);
        json!({ "container_id": id(container["name"].as_str().unwrap()), "exec_id": "probe", "string_user": null, "process": process })
    }
}

fn copy(path: &Value) -> Request {
    let file = json!({
        "path": path, "file_type": "Regular", "file_size": 100, "file_mode": 0o100_644, "dir_mode": 0o750,
        "uid": 0, "gid": 0, "offset": 0, "symlink_target": null,
    });
    ("CopyFileRequest".into(), file)
}

fn probes(container: &Value) -> Vec<Vec<String>> {
    let places = [
        &container["startupProbe"],
        &container["readinessProbe"],
        &container["livenessProbe"],
        &container["lifecycle"]["postStart"],
        &container["lifecycle"]["preStop"],
    ];
    places
        .iter()
        .map(|place| texts(&place["exec"], "command"))
        .filter(|command| !command.is_empty())
        .collect()
}

fn image_user(image: &ContainerImage) -> (u64, u64, Vec<u64>) {
    // The corpus has a database with one user, "app", in groups "app" and "data".
    match image.user.as_str() {
        "app" => (1000, 1001, vec![1002]),
        "" => (0, 0, Vec::new()),
        other => {
            // Of USER u:g the kubelet passes on u alone.
            (other.split(':').next().unwrap().parse().unwrap(), 0, Vec::new())
        }
    }
}

fn guest_pull(id: &str, image: &str, annotations: &Value) -> Value {
    let option = format!("image_guest_pull={}", json!({ "metadata": annotations }));
    json!({
        "driver": "image_guest_pull", "driver_options": [option], "source": image, "fstype": "overlay", "options": [],
        "mount_point": format!("/run/kata-containers/{id}/rootfs"), "fs_group": null, "shared": false,
    })
}

fn default_mounts() -> Vec<Value> {
    vec![
        json!({ "destination": "/proc", "source": "proc", "type_": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "source": "tmpfs", "type_": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "source": "devpts", "type_": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "source": "mqueue", "type_": "mqueue", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev/shm", "source": "/run/kata-containers/sandbox/shm", "type_": "bind", "options": ["rbind"] }),
    ]
}

impl Host<'_> {
    fn linux(&self, privileged: bool, propagation: &str) -> Value {
        let masked = json!([
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
            "/proc/scsi"
        ]);
        let read_only = json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
        json!({
            "CgroupsPath": "/kubepods/burstable/podeb1495ed-331a-44ff-ad6d-fce1a69280cd/4878266238663ca7",
            "Devices": [], "GIDMappings": [], "UIDMappings": [], "IntelRdt": null, "MountLabel": "", "Seccomp": null,
            "MaskedPaths": if privileged { json!([]) } else { masked },
            "ReadonlyPaths": if privileged { json!([]) } else { read_only },
            "RootfsPropagation": propagation,
            "Namespaces": [
                { "Type": "ipc", "Path": "" }, { "Type": "uts", "Path": "" },
                { "Type": if self.shim == Shim::Go { "mount" } else { "mnt" }, "Path": "" },
            ],
            "Resources": { "Devices": [], "CPU": { "Shares": 2 }, "Memory": null },
            "Sysctl": {},
        })
    }

    fn capabilities(&self, set: &[String]) -> Value {
        let name = |name: &String| match self.shim {
            Shim::Go => name.clone(),
            Shim::Rust => name.trim_start_matches("CAP_").to_owned(),
        };
        let set: Vec<String> = set.iter().map(name).collect();
        json!({ "Ambient": [], "Bounding": set, "Effective": set, "Inheritable": [], "Permitted": set })
    }
}

fn network() -> Vec<Request> {
    vec![
        (
            "UpdateInterfaceRequest".into(),
            json!({ "interface": {
                "device": "eth0", "name": "eth0", "hwAddr": "66:74:9f:6a:96:01", "mtu": 1500, "raw_flags": 0, "type_": "", "pciPath": "",
                "IPAddresses": [{ "address": "10.244.0.17", "family": 0, "mask": "24" }, { "address": "fe80::6474:9fff:fe6a:9601", "family": 1, "mask": "64" }],
            } }),
        ),
        (
            "UpdateRoutesRequest".into(),
            json!({ "routes": { "Routes": [
                { "dest": "", "device": "eth0", "family": 0, "gateway": "10.244.0.1", "scope": 0, "source": "" },
            ] } }),
        ),
        (
            "AddARPNeighborsRequest".into(),
            json!({ "neighbors": { "ARPNeighbors": [
                { "device": "eth0", "flags": 0, "lladdr": "00:00:5e:00:53:01", "state": 128, "toIPAddress": { "address": "10.0.0.1", "family": 0, "mask": "" } },
            ] } }),
        ),
    ]
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const ALL: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
    SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
    SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";
