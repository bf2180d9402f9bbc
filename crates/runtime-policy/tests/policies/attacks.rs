//! What a hostile host tries, by name; each beside what a correct host does.

use runtime_policy::{Evaluator, PodPolicy};
use serde_json::{Value, json};

use crate::{
    corpus,
    host::{Host, Request, SANDBOX, SHARED, id},
};

/// Runs `test` with the policy of the shop's front and its host.
fn frontend(test: impl Fn(&PodPolicy, &Host<'_>)) {
    corpus::each(|policy, host| {
        if policy.workload.name == "frontend" {
            test(policy, host);
        }
    });
}

fn allowed(evaluator: &mut Evaluator, request: &Request) -> bool {
    evaluator.decide(&request.0, &request.1).is_ok_and(|decision| decision.allowed)
}

fn is_create(request: &Request, container: &str) -> bool {
    request.0 == "CreateContainerRequest" && request.1["container_id"] == id(container).as_str()
}

/// Everything before the creation of a container, and that request.
fn before(policy: &PodPolicy, host: &Host<'_>, container: &str) -> (Evaluator, Request) {
    let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
    for request in host.start() {
        if is_create(&request, container) {
            return (evaluator, request);
        }
        assert!(allowed(&mut evaluator, &request));
    }
    panic!("{container} is never created");
}

fn reasons(evaluator: &Evaluator, request: &Request) -> String {
    let decision = evaluator.clone().decide(&request.0, &request.1).unwrap();
    assert!(!decision.allowed);
    let fields: Vec<String> =
        decision.reasons.iter().map(|reason| format!("{}: {}", reason.field, reason.expected)).collect();
    fields.join("\n")
}

#[test]
fn the_application_cannot_be_started_without_initializer_and_mesh() {
    corpus::each(|policy, host| {
        let (left_out, application) = match policy.workload.name.as_str() {
            "frontend" => ("contrast-service-mesh", "web"),
            "database" => ("contrast-initializer", "postgres"),
            _ => return,
        };
        // Created is not started.
        for only_created in [false, true] {
            let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
            let mut refused = false;
            for request in host.start() {
                let about_it = request.1["container_id"] == id(left_out).as_str();
                if about_it && !(only_created && request.0 != "StartContainerRequest") {
                    continue;
                }
                if is_create(&request, application) {
                    let reasons = reasons(&evaluator, &request);
                    assert!(reasons.contains(&format!("only after {left_out} was started")), "{reasons}");
                    refused = true;
                }
                allowed(&mut evaluator, &request);
            }
            assert!(refused, "{application} is created at some time");
        }
    });
}

#[test]
fn no_second_instance_until_the_first_is_gone() {
    frontend(|policy, host| {
        let (mut evaluator, request) = before(policy, host, "web");
        assert!(allowed(&mut evaluator, &request));
        let other = "f".repeat(64);
        let text = request.1.to_string().replace(&id("web"), &other);
        let second = (request.0.clone(), serde_json::from_str(&text).unwrap());
        assert!(reasons(&evaluator, &second).contains("no second web"));
        let remove = ("RemoveContainerRequest".to_owned(), json!({ "container_id": id("web") }));
        assert!(allowed(&mut evaluator, &remove));
        assert!(allowed(&mut evaluator, &second), "a crashed container may be started again");
    });
}

#[test]
fn containers_keep_to_one_pod() {
    frontend(|policy, host| {
        let (evaluator, request) = before(policy, host, "web");
        for (from, to) in [(SANDBOX, "2".repeat(64)), (host.name, "frontend-7d9f8b6c5d-aaaaa".to_owned())] {
            let text = request.1.to_string().replace(from, &to);
            let other = (request.0.clone(), serde_json::from_str(&text).unwrap());
            assert!(reasons(&evaluator, &other).contains("OCI.Annotations"), "{to}");
        }
    });
}

#[test]
fn an_application_is_not_given_the_pods_files_to_write() {
    frontend(|policy, host| {
        let (evaluator, mut request) = before(policy, host, "web");
        let mounts = request.1["OCI"]["Mounts"].as_array_mut().unwrap();
        let files = mounts.iter_mut().find(|mount| mount["destination"] == "/contrast").unwrap();
        let access = files["options"].as_array_mut().unwrap().last_mut().unwrap();
        assert_eq!(*access, "ro");
        *access = json!("rw");
        assert!(reasons(&evaluator, &request).contains("Mounts"));
    });
}

#[test]
fn only_declared_commands_run_and_only_where_they_are_declared() {
    frontend(|policy, host| {
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        assert!(host.start().iter().all(|request| allowed(&mut evaluator, request)));
        let containers = host.pod["spec"]["containers"].as_array().unwrap();
        let exec = |container: &Value, command: &[&str]| {
            let command: Vec<String> = command.iter().map(|text| (*text).to_owned()).collect();
            ("ExecProcessRequest".to_owned(), host.exec(container, &command))
        };
        let (web, logger) = (&containers[0], &containers[1]);
        assert!(allowed(&mut evaluator, &exec(web, &["/bin/check", "--live"])));
        assert!(allowed(&mut evaluator, &exec(web, &["/bin/drain"])));
        for (container, command) in [
            (web, vec!["/bin/sh"]),
            (web, vec!["/bin/check"]),
            (web, vec!["/bin/check", "--live", "--more"]),
            (web, vec!["/bin/check --live"]),
            (logger, vec!["/bin/check", "--live"]),
        ] {
            assert!(!allowed(&mut evaluator, &exec(container, &command)), "{command:?}");
        }
    });
}

#[test]
fn copied_files_stay_in_their_place() {
    frontend(|policy, _| {
        let evaluator = Evaluator::new(policy.document.rego()).unwrap();
        let copy = |path: &str, more: Value| {
            let mut request = json!({
                "path": path, "file_type": "Regular", "symlink_target": null, "file_mode": 0o100_644, "dir_mode": 0o755,
                "file_size": 1, "uid": 0, "gid": 0, "offset": 0,
            });
            for (key, value) in more.as_object().unwrap() {
                request[key] = value.clone();
            }
            evaluator.clone().decide("CopyFileRequest", &request).is_ok_and(|decision| decision.allowed)
        };
        let place = format!("{SHARED}/{}-0123456789abcdef-config", id("web"));
        let link = |target: &str| json!({ "file_type": "Symlink", "symlink_target": target, "file_mode": 0o120_777 });
        assert!(copy(&place, json!({})));
        assert!(copy(&format!("{place}/..data"), link("..2026_11_24")));
        assert!(copy(&format!("{place}/key"), link("..data/key")));
        assert!(
            copy(&place, json!({ "file_type": "Directory", "file_mode": 0o042_755 })),
            "a volume with a group"
        );
        for (path, more) in [
            ("/etc/passwd".to_owned(), json!({})),
            (format!("{SHARED}/{}/rootfs/bin/sh", id("web")), json!({})),
            (format!("/run/kata-containers/{}/rootfs/bin/sh", id("web")), json!({})),
            (format!("{place}/../../../../etc/passwd"), json!({})),
            (format!("{place}/.."), json!({})),
            (format!("{place}/key"), link("/etc/shadow")),
            (format!("{place}/key"), link("../other/rootfs")),
            (format!("{place}/key"), link("a/../../b")),
            (place.clone(), json!({ "file_type": "Unknown" })),
            (place.clone(), json!({ "file_mode": 0o104_755 })),
            (place.clone(), json!({ "file_mode": 0o102_755 })),
            (place.clone(), json!({ "file_type": null, "file_mode": 0o060_644 })),
        ] {
            assert!(!copy(&path, more.clone()), "{path} {more}");
        }
    });
}

#[test]
fn a_volume_that_the_guest_makes_cannot_be_replaced_or_hidden() {
    frontend(|policy, host| {
        let (evaluator, request) = before(policy, host, "web");
        let mut stripped = request.clone();
        let storages = stripped.1["storages"].as_array_mut().unwrap();
        storages.retain(|storage| storage["driver"] == "image_guest_pull");
        assert!(reasons(&evaluator, &stripped).contains("storages"));

        let mut bare = request.clone();
        bare.1["storages"] = json!([]);
        assert!(reasons(&evaluator, &bare).contains("image_guest_pull"));

        // What is mounted in a folder comes after the folder, or it is hidden by it.
        let mut turned = request;
        turned.1["OCI"]["Mounts"].as_array_mut().unwrap().reverse();
        assert!(reasons(&evaluator, &turned).contains("after /etc/web"));
    });
}

#[test]
fn links_are_only_below_the_folders_that_mounts_begin_at() {
    frontend(|policy, _| {
        let evaluator = Evaluator::new(policy.document.rego()).unwrap();
        let place = format!("{SHARED}/{}-0123456789abcdef-x", id("web"));
        let link = |path: &str| {
            let target = format!("{SANDBOX}/rootfs/local/contrast-secrets");
            let request = json!({
                "path": path, "file_type": "Symlink", "symlink_target": target, "file_mode": 0o120_000, "dir_mode": 0,
                "file_size": 1, "uid": 0, "gid": 0, "offset": 0,
            });
            ("CopyFileRequest".to_owned(), request)
        };
        assert!(reasons(&evaluator, &link(&place)).contains("path: \"links only below the first folder"));
        assert!(allowed(&mut evaluator.clone(), &link(&format!("{place}/..data"))));
    });
}

#[test]
fn containers_share_the_network_of_the_vm() {
    frontend(|policy, host| {
        let (evaluator, request) = before(policy, host, "web");
        for path in ["", "/run/netns/x", "/proc/1/ns/net"] {
            let mut other = request.clone();
            let namespaces = other.1["OCI"]["Linux"]["Namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({ "Type": "network", "Path": path }));
            assert!(reasons(&evaluator, &other).contains("no network namespace"), "{path}");
        }
        let mut other = request;
        other.1["OCI"]["Annotations"]["nerdctl/network-namespace"] = json!("/var/run/netns/other");
        assert!(reasons(&evaluator, &other).contains("nerdctl/network-namespace"));
    });
}

#[test]
fn what_prepares_the_others_does_not_run_again_beside_them() {
    corpus::each(|policy, host| {
        if policy.workload.name != "database" {
            return;
        }
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        let mut first = None;
        for request in host.start() {
            assert!(allowed(&mut evaluator, &request));
            if is_create(&request, "prepare") {
                first = Some(request);
            }
        }
        let gone = ("RemoveContainerRequest".to_owned(), json!({ "container_id": id("prepare") }));
        assert!(allowed(&mut evaluator, &gone));
        let text = first.unwrap().1.to_string().replace(&id("prepare"), &"e".repeat(64));
        let again = ("CreateContainerRequest".to_owned(), serde_json::from_str(&text).unwrap());
        assert!(reasons(&evaluator, &again).contains("only before postgres was created"));
    });
}

/// A pod with mounts of one base name, and GPUs.
fn like_named(then: impl Fn(Evaluator, Request)) {
    let pod = "kind: Pod\nmetadata: {name: tool, namespace: shop}\nspec:\n  runtimeClassName: contrast-cc\n  containers:\n  \
               - name: tool\n    image: registry.example/shop/tool:3\n    resources: {limits: {nvidia.com/pgpu: 2}}\n    volumeMounts:\n    \
               - {name: a, mountPath: /a/conf}\n    - {name: b, mountPath: /b/conf}\n  volumes:\n  - {name: a, secret: {secretName: a}}\n  \
               - {name: b, secret: {secretName: b}}\n";
    let deployment = runtime_policy::Deployment::read([("tool.yml", pod)]).unwrap();
    let settings = runtime_policy::Settings::default();
    let policies = deployment.policies(&corpus::images(), &settings, runtime_policy::RULES).unwrap().0;
    let resource = yaml_edit::read(pod).unwrap()[0].value().clone();
    let (images, values) = (corpus::images(), corpus::values());
    let host = Host {
        pod: &resource,
        name: "tool",
        namespace: "shop",
        images: &images,
        values: &values,
        shim: crate::host::Shim::Rust,
    };
    let mut evaluator = Evaluator::new(policies[0].document.rego()).unwrap();
    for mut request in host.start() {
        if is_create(&request, "tool") {
            let digest = corpus::images()["registry.example/shop/tool:3"].reference.clone();
            let text = request.1.to_string().replace("registry.example/shop/tool:3", &digest);
            request.1 = serde_json::from_str(&text).unwrap();
            with_gpus(&mut request.1, &["0", "1"]);
            return then(evaluator, request);
        }
        assert!(allowed(&mut evaluator, &request));
    }
}

fn with_gpus(request: &mut Value, gpus: &[&str]) {
    let annotations = request["OCI"]["Annotations"].as_object_mut().unwrap();
    annotations.retain(|key, _| !key.starts_with("cdi.k8s.io/"));
    for gpu in gpus {
        annotations.insert(format!("cdi.k8s.io/vfio1{gpu}"), json!(format!("nvidia.com/gpu={gpu}")));
    }
    let metadata = json!({ "metadata": request["OCI"]["Annotations"] });
    request["storages"][0]["driver_options"] = json!([format!("image_guest_pull={metadata}")]);
    let device = |gpu: &&str| {
        json!({
            "container_path": format!("/dev/vfio/devices/vfio1{gpu}"), "id": format!("vfio1{gpu}"), "type_": "vfio-pci-gk",
            "vm_path": "", "options": [format!("0000:0{gpu}:00.0=02/0{gpu}")],
        })
    };
    request["devices"] = gpus.iter().map(device).collect();
}

#[test]
fn mounts_that_end_alike_are_not_exchanged_and_gpus_are_as_many_as_declared() {
    like_named(|evaluator, request| {
        assert_eq!(evaluator.clone().decide(&request.0, &request.1).unwrap().reasons, []);
        let mut turned = request.clone();
        let mounts = turned.1["OCI"]["Mounts"].as_array_mut().unwrap();
        let at = |path: &str| mounts.iter().position(|mount| mount["destination"] == path).unwrap();
        let (a, b) = (at("/a/conf"), at("/b/conf"));
        let source = mounts[a]["source"].clone();
        mounts[a]["source"] = mounts[b]["source"].clone();
        mounts[b]["source"] = source;
        assert!(reasons(&evaluator, &turned).contains("copied after the source of /a/conf"));
        let mut twice = request.clone();
        let mounts = twice.1["OCI"]["Mounts"].as_array_mut().unwrap();
        mounts[b]["destination"] = json!("/a/conf");
        assert!(reasons(&evaluator, &twice).contains("each destination once"));

        for gpus in [&[][..], &["0"], &["0", "1", "2"]] {
            let mut other = request.clone();
            with_gpus(&mut other.1, gpus);
            assert!(reasons(&evaluator, &other).contains("2 GPUs, each with an annotation"), "{gpus:?}");
        }
        let mut there_from_the_start = request.clone();
        there_from_the_start.1["devices"] = json!([]);
        assert!(allowed(&mut evaluator.clone(), &there_from_the_start));
    });
    frontend(|policy, host| {
        let (evaluator, mut request) = before(policy, host, "web");
        request.1["devices"] =
            json!([{ "container_path": "/dev/vfio/7", "type_": "vfio-pci-gk", "options": [] }]);
        assert!(reasons(&evaluator, &request).contains("0 GPUs"));
    });
}

#[test]
fn what_has_a_form_hides_nothing_and_is_there_once() {
    frontend(|policy, host| {
        let (evaluator, request) = before(policy, host, "web");
        let (twice, alien) = ("each name once", "no such entry");
        for (entry, expected) in [
            ("POD_IP=10.244.0.18", twice),
            ("KUBERNETES_SERVICE_PORT=444", twice),
            ("OTHER_PORT=tcp://10.96.0.1:443\nLD_PRELOAD=/evil.so", alien),
            ("OTHER_PORT=tcp://10.96.0.1:443\nOTHER_SERVICE_HOST=10.96.0.1", alien),
            ("OTHER_PORT=tcp://10.96.0.1:443\n", alien),
            ("OTHER_SERVICE_PORT=443\0OTHER_SERVICE_HOST=10.96.0.1", alien),
            ("OTHER_SERVICE_PORT=443\0LD_PRELOAD=/evil.so", alien),
            ("=x", alien),
            ("x", alien),
            ("", alien),
            ("\n", alien),
        ] {
            let mut more = request.clone();
            more.1["OCI"]["Process"]["Env"].as_array_mut().unwrap().push(json!(entry));
            assert!(reasons(&evaluator, &more).contains(expected), "{entry:?}");
        }
        let mut more = request;
        more.1["OCI"]["Process"]["Env"].as_array_mut().unwrap().push(json!("OTHER_SERVICE_PORT=443"));
        assert!(allowed(&mut evaluator.clone(), &more), "a service has such variables");
    });
}

#[test]
fn names_for_what_is_made_up_mean_nothing_in_a_request() {
    frontend(|policy, host| {
        let (evaluator, request) = before(policy, host, "web");
        let (web, other) = (id("web"), id("contrast-initializer"));
        for name in [
            "$(bundle-id)-$(random)-hosts".to_owned(),
            format!("{web}-$(random)-hosts"),
            "$(bundle-id)-0123456789abcdef-hosts".to_owned(),
            format!("{web}-0123456789abcde-hosts"),
            format!("{web}-0123456789abcdef0-hosts"),
            format!("{web}-0123456789ABCDEF-hosts"),
            format!("{web}-0123456789abcdef-0123456789abcdef-hosts"),
            format!("{web}-0123456789abcdef-resolv.conf"),
            format!("{other}-0123456789abcdef-hosts"),
            format!("{SANDBOX}-0123456789abcdef-hosts"),
        ] {
            let mut changed = request.clone();
            let mounts = changed.1["OCI"]["Mounts"].as_array_mut().unwrap().iter_mut();
            let mut hosts = mounts.filter(|mount| mount["destination"] == "/etc/hosts");
            hosts.next().unwrap()["source"] = json!(format!("{SHARED}/{name}"));
            assert!(reasons(&evaluator, &changed).contains("].source: "), "{name}");
        }
    });
}

#[test]
fn the_loopback_device_is_the_pods_own() {
    frontend(|policy, host| {
        let evaluator = Evaluator::new(policy.document.rego()).unwrap();
        let network = |name: &str| host.start().into_iter().find(|(found, _)| found == name).unwrap().1;
        let decide = |name: &str, pointer: &str, value: Value| {
            let mut request = network(name);
            *request.pointer_mut(pointer).unwrap() = value;
            evaluator.clone().decide(name, &request).is_ok_and(|decision| decision.allowed)
        };
        for (name, pointer, value) in [
            ("UpdateInterfaceRequest", "/interface/name", json!("lo")),
            ("UpdateInterfaceRequest", "/interface/hwAddr", json!("00:00:00:00:00:00")),
            ("UpdateInterfaceRequest", "/interface/raw_flags", json!(64)),
            ("UpdateInterfaceRequest", "/interface/IPAddresses/0/address", json!("127.0.0.2")),
            ("UpdateRoutesRequest", "/routes/Routes/0/device", json!("lo")),
            ("UpdateRoutesRequest", "/routes/Routes/0/dest", json!("127.0.0.0/8")),
            ("UpdateRoutesRequest", "/routes/Routes/0/source", json!("::1")),
            ("UpdateRoutesRequest", "/routes/Routes/0/source", json!("00::001")),
            ("UpdateRoutesRequest", "/routes/Routes/0/gateway", json!("::ffff:127.0.0.1")),
            ("AddARPNeighborsRequest", "/neighbors/ARPNeighbors/0/state", json!(0)),
            ("AddARPNeighborsRequest", "/neighbors/ARPNeighbors/0/flags", json!(5)),
            ("AddARPNeighborsRequest", "/neighbors/ARPNeighbors/0/toIPAddress/address", json!("127.1.2.3")),
        ] {
            assert!(!decide(name, pointer, value.clone()), "{name} {pointer} {value}");
        }
        assert!(decide("UpdateInterfaceRequest", "/interface/raw_flags", json!(128)));
        assert!(decide("AddARPNeighborsRequest", "/neighbors/ARPNeighbors/0/state", json!(2)));
    });
}

#[test]
fn what_is_not_needed_is_denied_and_logs_are_opened_by_the_settings_only() {
    let settings =
        runtime_policy::Settings::overlay(br#"{"requests": {"ReadStreamRequest": true}}"#).unwrap();
    let deployment = corpus::prepared();
    let opened = deployment.policies(&corpus::pinned_images(), &settings, runtime_policy::RULES).unwrap().0;
    corpus::each(|policy, host| {
        let open = opened.iter().find(|open| open.workload.name == policy.workload.name).unwrap();
        let mut closed = Evaluator::new(policy.document.rego()).unwrap();
        let mut open = Evaluator::new(open.document.rego()).unwrap();
        for request in host.start() {
            assert!(allowed(&mut closed, &request) && allowed(&mut open, &request));
        }
        let stream = json!({ "container_id": SANDBOX, "exec_id": SANDBOX, "len": 1 });
        for name in [
            "SetPolicyRequest",
            "UpdateContainerRequest",
            "PauseContainerRequest",
            "ReseedRandomDevRequest",
            "SetGuestDateTimeRequest",
            "AddSwapRequest",
            "AddSwapPathRequest",
            "MemHotplugByProbeRequest",
            "SetIPTablesRequest",
            "GetIPTablesRequest",
            "ResizeVolumeRequest",
            "VolumeStatsRequest",
            "GetDiagnosticDataRequest",
            "UpdateEphemeralMountsRequest",
            "WriteStreamRequest",
            "CloseStdinRequest",
            "ReadStreamRequest",
        ] {
            assert!(!allowed(&mut closed, &(name.to_owned(), stream.clone())), "{name}");
            let decision = allowed(&mut open, &(name.to_owned(), stream.clone()));
            assert_eq!(decision, name == "ReadStreamRequest", "{name}");
        }
        // What no rule names is denied by the agent, too.
        for name in
            ["AllowRequestsFailingPolicy", "PullImageRequest", "StartTracingRequest", "StopTracingRequest"]
        {
            let decision = closed.decide(name, &json!({})).unwrap();
            assert!(
                !decision.allowed && decision.reasons[0].expected.to_string().contains("no rule"),
                "{name}"
            );
        }
    });
}

/// What the rules decide about without looking, and nobody needs to look at.
const HARMLESS: [&str; 7] = [
    "DestroySandboxRequest",
    "GetMetricsRequest",
    "GetOOMEventRequest",
    "GuestDetailsRequest",
    "ListInterfacesRequest",
    "ListRoutesRequest",
    "OnlineCPUMemRequest",
];

#[test]
fn every_request_of_the_agent_is_allowed_somewhere_or_denied_everywhere() {
    let line = |line: &str| {
        let (name, value) = line.strip_prefix("default ")?.split_once(" := ")?;
        name.ends_with("Request").then(|| (name.to_owned(), value.starts_with("true")))
    };
    let rules: std::collections::BTreeMap<String, bool> =
        runtime_policy::RULES.lines().filter_map(line).collect();
    assert!(rules.len() >= 38, "only {} requests have a rule", rules.len());
    let mut lived = std::collections::BTreeSet::new();
    corpus::each(|_, host| lived.extend(host.life().into_iter().map(|(name, _)| name)));
    frontend(|policy, _| {
        for (name, default) in &rules {
            let mut fresh = Evaluator::new(policy.document.rego()).unwrap();
            assert_eq!(*default, HARMLESS.contains(&name.as_str()), "{name}");
            // Without a field, and before anything exists, nothing else is allowed.
            assert_eq!(allowed(&mut fresh, &(name.clone(), json!({}))), *default, "{name}");
        }
        assert!(lived.iter().all(|name| rules.contains_key(name)), "{lived:?}");
    });
}

#[test]
fn older_agents_read_the_rules_too() {
    frontend(|policy, host| {
        let mut engine = regorus::Engine::new();
        engine.set_rego_v0(true);
        engine.add_policy("policy.rego".into(), policy.document.rego().into()).unwrap();
        engine.add_data(regorus::Value::from_json_str(r#"{"pstate": {}}"#).unwrap()).unwrap();
        let (name, request) = &host.start()[0];
        engine.set_input(regorus::Value::from_json_str(&request.to_string()).unwrap());
        let answer = engine.eval_query(format!("data.agent_policy.{name}"), false).unwrap();
        let answer = serde_json::to_value(&answer.result[0].expressions[0].value).unwrap();
        assert_eq!(answer["allowed"], true);
        let longest = policy.document.rego().lines().map(str::len).max().unwrap();
        assert!(longest <= 1024, "a line of {longest} bytes: some agents read 1024");
    });
}
