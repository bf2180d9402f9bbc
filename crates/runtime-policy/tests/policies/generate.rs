//! What `generate` writes.

use runtime_policy::{
    Deployment, Injection, POLICY_ANNOTATION, PodSecurityLevel, PolicyDocument, RULES, Settings,
};
use serde_json::{Value, json};

use crate::corpus;

fn generated() -> Deployment {
    let mut deployment = corpus::prepared();
    let (policies, _) = deployment.policies(&corpus::pinned_images(), &Settings::default(), RULES).unwrap();
    deployment.annotate(&policies).unwrap();
    deployment
}

#[test]
fn a_second_run_changes_nothing_and_every_annotation_holds_its_document() {
    let first = generated();
    let texts: Vec<(String, String)> = first.texts().map(|(name, text)| (name.to_owned(), text)).collect();
    let mut second = Deployment::read(texts.clone()).unwrap();
    second.inject(&corpus::injection()).unwrap();
    second.pin(&corpus::pinned_images()).unwrap();
    let (policies, _) = second.policies(&corpus::pinned_images(), &Settings::default(), RULES).unwrap();
    second.annotate(&policies).unwrap();
    for ((name, before), (_, after)) in texts.iter().zip(second.texts()) {
        assert_eq!(*before, after, "{name}");
    }
    for (policy, found) in policies.iter().zip(second.annotated().unwrap()) {
        assert_eq!(policy.document, found.document);
        let rest = &policy.document.mr_config_id()[32..];
        assert!(rest.iter().all(|byte| *byte == 0), "a SHA-256 in MRCONFIGID is padded with zeros");
    }
}

#[test]
fn pods_get_what_they_ask_for_and_the_coordinator_nothing() {
    let texts: String = generated().texts().map(|(_, text)| text).collect();
    let pod = |name: &str| corpus::pod(name).0;
    let names = |pod: &Value, list: &str| -> Vec<String> {
        let items = pod["spec"][list].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&pod("frontend"), "initContainers"), ["contrast-service-mesh"]);
    assert_eq!(
        names(&pod("database"), "initContainers"),
        ["contrast-initializer", "contrast-secure-pv-state", "prepare"]
    );
    let database = pod("database");
    assert_eq!(database["spec"]["containers"][0]["volumeMounts"][0]["mountPropagation"], "HostToContainer");
    assert_eq!(database["spec"]["runtimeClassName"], "contrast-cc-metal-qemu-snp-0a1b2c3d");
    for container in database["spec"]["containers"].as_array().unwrap() {
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["mountPath"] == "/contrast"));
    }
    assert!(
        texts.contains("# A database: block volume")
            && texts.contains("image: \"registry.example/shop/logger:2@sha256:abab")
    );

    // The store of images is on the first container alone; the probe needs no shell.
    let holders = |pod: &Value| -> Vec<String> {
        let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned());
        let all = lists.into_iter().flatten().flatten();
        let has = |container: &Value| {
            let devices = container["volumeDevices"].as_array().cloned().unwrap_or_default();
            devices.iter().any(|device| device["devicePath"] == "/dev/trusted_store")
        };
        all.filter(has).map(|container| container["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(holders(&database), ["contrast-initializer"]);
    let store = database["spec"]["volumes"].as_array().unwrap().iter();
    let store = store.clone().find(|volume| volume["name"] == "contrast-trusted-store").unwrap();
    let claim = &store["ephemeral"]["volumeClaimTemplate"]["spec"];
    assert_eq!(
        (&claim["volumeMode"], &claim["resources"]["requests"]["storage"]),
        (&json!("Block"), &json!("10Gi"))
    );
    let helper = &database["spec"]["initContainers"][1];
    let args = ["cryptsetup", "-d", "/dev/state", "-m", "/data", "--stateful-set", "database"];
    assert_eq!(helper["args"], json!(args), "its pods have a disk each");
    let probe = &database["spec"]["initContainers"][1]["startupProbe"];
    assert_eq!(probe["exec"]["command"], json!(["/initializer", "ready"]));

    let coordinator = "kind: Pod\nmetadata:\n  name: c\n  annotations: {contrast.edgeless.systems/pod-role: coordinator}\nspec:\n  \
                       runtimeClassName: contrast-cc\n  containers: [{name: c, image: i}]\n";
    let mut deployment = Deployment::read([("c.yml", coordinator)]).unwrap();
    deployment.inject(&Injection { runtime_class: None, ..corpus::injection() }).unwrap();
    assert_eq!(deployment.texts().next().unwrap().1, coordinator);
}

/// All containers of a pod, with the list that each is in.
fn containers(pod: &Value) -> Vec<Value> {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned());
    lists.into_iter().flatten().flatten().collect()
}

#[test]
fn only_who_writes_the_pods_files_may_write_them() {
    for (name, writer) in [("frontend", "contrast-service-mesh"), ("database", "contrast-initializer")] {
        for container in containers(&corpus::pod(name).0) {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mount = mounts.iter().find(|mount| mount["mountPath"] == "/contrast").unwrap();
            let writes = container["name"] == writer;
            assert_eq!(mount["readOnly"] == true, !writes, "{name}: {}", container["name"]);
        }
    }
    // What an earlier version generated is changed, whoever wrote it.
    let mount = "volumeMounts: [{name: contrast-secrets, mountPath: /contrast, readOnly: WORD}]";
    for (word, image) in [("false", "i"), ("true", corpus::INITIALIZER)] {
        let old = POD.replace("image: i", &format!("image: {image}, {}", mount.replace("WORD", word)));
        let old = old.replace(
            "  containers:",
            &format!(
                "  initContainers: [{{name: contrast-initializer, image: i, {}}}]\n  containers:",
                mount.replace("WORD", "true")
            ),
        );
        let (initializer, pod) = first(&old);
        assert_ne!(initializer["volumeMounts"][0]["readOnly"], true, "or it could write nothing");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["readOnly"], true);
    }
}

/// The first container of a pod after `generate`, and the pod.
fn first(pod: &str) -> (Value, Value) {
    let mut deployment = Deployment::read([("a.yml", pod)]).unwrap();
    deployment.inject(&Injection { trusted_store: None, ..corpus::injection() }).unwrap();
    let pod = yaml_edit::read(&deployment.texts().next().unwrap().1).unwrap()[0].value().clone();
    (pod["spec"]["initContainers"][0].clone(), pod)
}

const POD: &str = "kind: Pod\nmetadata:\n  name: a\n  annotations: {ANNOTATIONS}\nspec:\n  runtimeClassName: contrast-cc\n  \
                   containers: [{name: a, image: i}]\n";
const MESHED: &str = "contrast.edgeless.systems/servicemesh-ingress: \"web#8080#false\"";

#[test]
fn what_is_added_asks_for_no_right_that_it_does_not_need() {
    let (initializer, pod) = first(POD);
    let context = &initializer["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(pod["spec"]["securityContext"]["supplementalGroups"], json!([65532]), "to read the files");

    let (mesh, _) = first(&POD.replace("ANNOTATIONS", MESHED));
    assert_eq!(mesh["name"], "contrast-service-mesh");
    let context = &mesh["securityContext"];
    assert_eq!(context["capabilities"], json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] }));
    assert_eq!((&context["privileged"], &context["allowPrivilegeEscalation"]), (&Value::Null, &json!(false)));

    // Only where the guest denies from its start does the initializer touch the packet filter.
    let mut deployment = Deployment::read([("a.yml", POD)]).unwrap();
    deployment.inject(&Injection { lift_default_deny: true, ..corpus::injection() }).unwrap();
    let levels = deployment.pod_security();
    assert_eq!(levels[0].level, PodSecurityLevel::Privileged);
    assert_eq!(levels[0].because, ["Pod a: container contrast-initializer: adds NET_ADMIN"]);
}

#[test]
fn what_is_added_has_requests_and_limits_which_an_annotation_changes() {
    let resources = json!({ "requests": { "cpu": "10m", "memory": "50Mi" }, "limits": { "cpu": "500m", "memory": "50Mi" } });
    assert_eq!(first(POD).0["resources"], resources);
    let larger = format!("{MESHED}, contrast.edgeless.systems/servicemesh-resources: \"cpu=2,memory=1Gi\"");
    let both = json!({ "cpu": "2", "memory": "1Gi" });
    let changed = first(&POD.replace("ANNOTATIONS", &larger)).0;
    assert_eq!(changed["resources"], json!({ "requests": both, "limits": both }));
    let wrong = POD.replace("ANNOTATIONS", "contrast.edgeless.systems/initializer-resources: a lot");
    let refused =
        Deployment::read([("a.yml", wrong)]).unwrap().inject(&corpus::injection()).unwrap_err().to_string();
    assert!(refused.starts_with("a.yml:4: Pod \"a\": metadata.annotations"), "{refused}");
    assert!(refused.contains("cpu=QUANTITY"), "{refused}");
}

#[test]
fn a_pod_that_must_not_restart_is_not_ended_to_show_why_it_waits() {
    let reports = |pod: &str| first(pod).0["env"].to_string().contains("_AFTER_SECONDS");
    let one_shot = POD.replace("ANNOTATIONS", ONE_SHOT);
    assert!(reports(&one_shot));
    let never = |pod: &str| pod.replace("spec:\n", "spec:\n  restartPolicy: Never\n");
    assert!(!reports(&never(&one_shot)), "the pod would have failed");
    assert!(
        reports(&never(POD)) && reports(&never(&POD.replace("ANNOTATIONS", MESHED))),
        "a side-car is restarted"
    );
}

const ONE_SHOT: &str = "contrast.edgeless.systems/renewal: \"false\"";

#[test]
fn the_initializer_stays_to_renew_unless_the_pod_or_the_user_says_otherwise() {
    let stays = |initializer: &Value| {
        let renews = initializer["env"].to_string().contains("CONTRAST_SIDECAR");
        assert_eq!(initializer["restartPolicy"] == "Always", renews);
        // The containers behind it start when there is a certificate: at its end, or when this has returned.
        assert_eq!(
            initializer["lifecycle"]["postStart"]["exec"]["command"] == json!(["/initializer", "wait"]),
            renews
        );
        renews
    };
    assert!(stays(&first(POD).0));
    assert!(!stays(&first(&POD.replace("ANNOTATIONS", ONE_SHOT)).0));
    let with = |pod: &str| {
        let mut deployment = Deployment::read([("a.yml", pod)]).unwrap();
        deployment.inject(&Injection { renewal: false, trusted_store: None, ..corpus::injection() }).unwrap();
        yaml_edit::read(&deployment.texts().next().unwrap().1).unwrap()[0].value()["spec"]["initContainers"]
            [0]
        .clone()
    };
    assert!(!stays(&with(POD)));
    assert!(stays(&with(&POD.replace("ANNOTATIONS", &ONE_SHOT.replace("false", "true")))));
    for (annotations, expected) in [
        (ONE_SHOT.replace("false", "no"), "expected true or false, found \"no\""),
        (format!("{ONE_SHOT}, {MESHED}"), "always renews"),
    ] {
        let mut deployment = Deployment::read([("a.yml", POD.replace("ANNOTATIONS", &annotations))]).unwrap();
        let refused = deployment.inject(&corpus::injection()).unwrap_err().to_string();
        assert!(refused.starts_with("a.yml:4: ") && refused.contains(expected), "{refused}");
    }
}

fn warned(pod: &str) -> (Vec<String>, Value) {
    let mut deployment = Deployment::read([("a.yml", pod)]).unwrap();
    let warnings = deployment.inject(&Injection { trusted_store: None, ..corpus::injection() }).unwrap();
    let pod = yaml_edit::read(&deployment.texts().next().unwrap().1).unwrap()[0].value().clone();
    (warnings.iter().map(ToString::to_string).collect(), pod)
}

#[test]
fn annotations_that_do_nothing_are_warned_of_and_values_that_cannot_be_meant_refused() {
    let with = |annotations: &str| POD.replace("ANNOTATIONS", annotations);
    let (warnings, _) = warned(&with("contrast.edgeless.systems/worload-secret-id: x"));
    assert!(warnings[0].starts_with("a.yml:4: Pod \"a\": metadata.annotations"), "{warnings:?}");
    assert!(warnings[0].contains("is contrast.edgeless.systems/workload-secret-id meant?"), "{warnings:?}");
    assert!(warned(&with("example.org/servicemesh-ingress: x")).0.is_empty());
    let on_resource = "kind: Deployment\nmetadata:\n  name: a\n  annotations: {contrast.edgeless.systems/secure-pv: \"a:b\"}\nspec:\n  \
                       template:\n    spec:\n      runtimeClassName: contrast-cc\n      containers: [{name: a, image: i}]\n";
    let (warnings, _) = warned(on_resource);
    assert!(warnings[0].contains("on the resource and not on its pods"), "{warnings:?}");
    for (annotation, expected) in [
        ("servicemesh-ingress: web#8080#flase", "\"flase\" is neither true nor false"),
        ("servicemesh-egress: web#0.0.0.0:80#web:80", "not a loopback address"),
        ("servicemesh-admin-interface-port: \"99999\"", "servicemesh-admin-interface-port"),
        ("servicemesh-peers: nobody#web", "neither a port nor the name of an egress entry"),
        ("servicemesh-unlisted-ports: closed", "expected mutual-tls or deny"),
        ("servicemesh-plain-udp-ports: \"53,x\"", "\"x\" is not a port"),
        ("image-store-size: 0", "write \"0\", with quotes"),
    ] {
        let pod = with(&format!("contrast.edgeless.systems/{annotation}"));
        let refused = Deployment::read([("a.yml", pod)]).unwrap().inject(&corpus::injection());
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with("a.yml:4: Pod \"a\"") && refused.contains(expected), "{refused}");
    }
}

#[test]
fn a_pod_has_the_store_of_images_that_it_asks_for() {
    let size = |annotations: &str| {
        let mut deployment = Deployment::read([("a.yml", POD.replace("ANNOTATIONS", annotations))]).unwrap();
        deployment.inject(&corpus::injection()).unwrap();
        let pod = yaml_edit::read(&deployment.texts().next().unwrap().1).unwrap()[0].value().clone();
        let volumes = pod["spec"]["volumes"].as_array().unwrap().clone();
        let store = volumes.into_iter().find(|volume| volume["name"] == "contrast-trusted-store")?;
        let claim = &store["ephemeral"]["volumeClaimTemplate"]["spec"];
        claim["resources"]["requests"]["storage"].as_str().map(str::to_owned)
    };
    assert_eq!(size("").as_deref(), Some("10Gi"));
    assert_eq!(size("contrast.edgeless.systems/image-store-size: 250Gi").as_deref(), Some("250Gi"));
    assert_eq!(size("contrast.edgeless.systems/image-store-size: \"0\""), None);
}

#[test]
fn what_a_user_wrote_on_an_added_container_is_kept_or_its_loss_is_said() {
    let own = POD.replace("ANNOTATIONS", "").replace(
        "spec:\n",
        "spec:\n  initContainers:\n  - name: contrast-initializer\n    image: old\n    resources: {limits: {memory: 1Gi}}\n    \
         env: [{name: CONTRAST_LOG_LEVEL, value: debug}, {name: COORDINATOR_HOST, value: elsewhere}]\n    \
         securityContext: {seLinuxOptions: {type: t}, runAsUser: 0}\n    workingDir: /x\n",
    );
    let (warnings, pod) = warned(&own);
    let container = &pod["spec"]["initContainers"][0];
    assert_eq!(container["resources"], json!({ "limits": { "memory": "1Gi" } }));
    assert!(container["env"].to_string().contains("CONTRAST_LOG_LEVEL"), "{container}");
    assert_eq!(container["securityContext"]["seLinuxOptions"]["type"], "t");
    for lost in
        ["COORDINATOR_HOST was \"elsewhere\"", "securityContext.runAsUser was 0", "workingDir is taken out"]
    {
        assert!(warnings.iter().any(|warning| warning.contains(lost)), "{lost}: {warnings:?}");
    }
    // What the first run wrote is no news to the second.
    let mut deployment = Deployment::read([("a.yml", own)]).unwrap();
    deployment.inject(&corpus::injection()).unwrap();
    let text = deployment.texts().next().unwrap().1;
    let mut again = Deployment::read([("a.yml", text.as_str())]).unwrap();
    assert!(again.inject(&corpus::injection()).unwrap().is_empty());
    assert_eq!(again.texts().next().unwrap().1, text);
}

#[test]
fn what_earlier_versions_added_is_brought_into_its_place() {
    let earlier = POD.replace("ANNOTATIONS", MESHED).replace(
        "spec:\n",
        "spec:\n  initContainers:\n  - {name: contrast-initializer, image: old}\n  - {name: migrate, image: i} # a comment\n  \
         - {name: contrast-service-mesh, image: old, restartPolicy: Always}\n",
    );
    let names = |pod: &Value| -> Vec<String> {
        let containers = pod["spec"]["initContainers"].as_array().unwrap().iter();
        containers.map(|container| container["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first(&earlier).1), ["contrast-service-mesh", "migrate"]);
}

#[test]
fn what_no_policy_can_hold_is_refused_or_warned_of() {
    let pod = |rest: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: a}}\nspec:\n  runtimeClassName: contrast-cc\n  containers:\n  - name: a\n    image: i\n{rest}"
        )
    };
    let refusal = |rest: &str| {
        let deployment = Deployment::read([("a.yml", pod(rest))]);
        let made = deployment
            .and_then(|deployment| deployment.policies(&corpus::images(), &Settings::default(), RULES));
        made.err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (rest, expected) in [
        (
            "    volumeMounts: [{name: v, mountPath: /v}]\n  volumes: [{name: v, hostPath: {path: /}}]\n",
            "a.yml:8: Pod \"a\": spec.containers[0].volumeMounts[0].mountPath: a hostPath",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, subPath: x}]\n  volumes: [{name: v, emptyDir: {}}]\n",
            "subPath",
        ),
        ("    envFrom: [{configMapRef: {name: c}}]\n", "ConfigMap default/c is not among the input files"),
        ("    env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]\n", "status.phase"),
        ("    securityContext: {procMount: Unmasked}\n", "procMount"),
        ("  hostPID: true\n", "spec.hostPID"),
        ("  - {name: pause, image: i}\n", "a.yml:8: Pod \"a\": spec.containers[1].name: the sandbox's own"),
        ("  ephemeralContainers: [{name: d}]\n", "ephemeralContainers"),
    ] {
        let found = refusal(rest);
        assert!(found.contains(expected), "expected {expected:?}, got {found:?}");
    }
    // A hostPath that the user's settings allow is warned of, and pinned to its place.
    let host_path = pod(
        "    volumeMounts: [{name: v, mountPath: /dev/kmsg}]\n  volumes: [{name: v, hostPath: {path: /dev/kmsg}}]\n",
    );
    let settings = Settings::overlay(br#"{"volumes":{"host_path_destinations":["/dev/kmsg"]}}"#).unwrap();
    let deployment = Deployment::read([("a.yml", host_path)]).unwrap();
    let (policies, warnings) = deployment.policies(&corpus::images(), &settings, RULES).unwrap();
    assert!(warnings[0].to_string().contains("its files come from the host"), "{warnings:?}");
    let mounts = &policies[0].document.data().unwrap()["containers"][1]["OCI"]["Mounts"];
    assert!(mounts["/dev/kmsg"]["source"].as_str().unwrap().ends_with("$(random)-kmsg"), "{mounts}");
    assert!(
        refusal(
            "    volumeMounts: [{name: v, mountPath: /v}]\n  volumes: [{name: v, image: {reference: i}}]\n"
        )
        .contains("image volumes")
    );
    let claim = pod(
        "    volumeMounts: [{name: v, mountPath: /v}]\n  volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]\n",
    );
    let deployment = Deployment::read([("a.yml", claim)]).unwrap();
    let (_, warnings) = deployment.policies(&corpus::images(), &Settings::default(), RULES).unwrap();
    assert!(warnings[0].to_string().contains("neither secret nor protected"), "{warnings:?}");
}

/// The first container of the policy that a pod gets, and the pod's own part.
fn made(metadata: &str, spec: &str) -> Result<(Value, Value), String> {
    let (kind, rest) = metadata.split_once(' ').unwrap();
    let pod = format!("{{runtimeClassName: contrast-cc, {spec}}}");
    let text = match kind {
        "Pod" => format!("kind: Pod\nmetadata: {rest}\nspec: {pod}\n"),
        _ => format!(
            "kind: {kind}\nmetadata: {{name: j, namespace: shop}}\nspec: {{{rest}, template: {{spec: {pod}}}}}\n"
        ),
    };
    let deployment = Deployment::read([("a.yml", text)]).map_err(|error| error.to_string())?;
    let images = corpus::images();
    let made =
        deployment.policies(&images, &Settings::default(), RULES).map_err(|error| error.to_string())?;
    let data = made.0[0].document.data().unwrap();
    Ok((data["containers"][1].clone(), data))
}

#[test]
fn pods_mean_what_kubernetes_takes_them_for() {
    let pod = "Pod {name: a, namespace: shop}";
    let image = "image: registry.example/shop/tool:3";
    let container = |rest: &str| format!("containers: [{{name: a, {image}, {rest}}}]");
    let of = |spec: &str| made(pod, spec).unwrap().0;

    let (first, data) = made("Job completionMode: Indexed", &container("tty: y")).unwrap();
    assert_eq!(first["OCI"]["Process"]["Terminal"], true);
    assert_eq!(
        first["OCI"]["Process"]["EnvForms"]["JOB_COMPLETION_INDEX"]["pattern"],
        "^JOB_COMPLETION_INDEX=([0-9]+)$"
    );
    assert_eq!(data["sandbox"]["hostname"]["pattern"], "^j-([0-9]+)$");

    let args =
        of(&container("args: [\"$(KUBERNETES_SERVICE_HOST)\", \"$(DB_PORT_5432_TCP_ADDR)\", \"$(OTHER)\"]"));
    let args = args["OCI"]["Process"]["Args"].as_array().unwrap();
    assert_eq!(args[1]["pattern"], "^([0-9a-f.:]+)$");
    assert_eq!(args[2]["pattern"], "^([0-9a-f.:]+|\\$\\(DB_PORT_5432_TCP_ADDR\\))$");
    assert_eq!(args[3], "$(OTHER)");

    let spec = format!(
        "securityContext: {{runAsUser: 1_000, sysctls: [{{name: net/ipv4/conf/eth0.1/x, value: \"1\"}}]}}, {}",
        container("tty: n")
    );
    let (first, data) = made(pod, &spec).unwrap();
    assert_eq!(first["users"], json!([{ "UID": 1000, "GID": 1001, "AdditionalGids": [1001, 1002] }]));
    let pause = &data["containers"][0];
    assert_eq!(pause["users"], json!([{ "UID": 1000, "GID": 0, "AdditionalGids": [0] }]));
    assert_eq!(pause["OCI"]["Linux"]["Sysctl"]["required"], json!(["net.ipv4.conf.eth0/1.x"]));

    let account = "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]";
    let first = of(&format!("serviceAccount: builder, {}", container(account)));
    assert!(first["OCI"]["Process"]["Env"].to_string().contains("A=builder"));

    let spec = format!("setHostnameAsFQDN: true, subdomain: web, {}", container("tty: n"));
    assert_eq!(
        made(pod, &spec).unwrap().1["sandbox"]["hostname"]["pattern"],
        "^(a)\\.web\\.shop\\.svc\\.([A-Za-z0-9.-]+)$"
    );
    let long = format!("Pod {{name: {}, namespace: shop}}", "a".repeat(62) + "-b.c");
    assert_eq!(
        made(&long, &container("tty: n")).unwrap().1["sandbox"]["hostname"]["pattern"],
        format!("^{}$", "a".repeat(62))
    );

    let mount = "volumeMounts: [{name: v, mountPath: /v}]";
    for volume in ["{name: v}", "{name: v, emptyDir: null}", "{name: v, emptyDir: {}}"] {
        assert_eq!(
            of(&format!("volumes: [{volume}], {}", container(mount)))["made_mounts"],
            json!(["/v"]),
            "{volume}"
        );
    }
}

#[test]
fn volumes_and_resources_that_kubernetes_refuses_are_refused_where_they_stand() {
    let pod = |spec: &str| {
        let image = "image: registry.example/shop/tool:3";
        let spec =
            spec.replace("container: {", &format!("containers: [{{name: a, {image}, ")).replace("};", "}],");
        made("Pod {name: a, namespace: shop}", &spec)
    };
    let mount = |rest: &str, volumes: &str| {
        pod(&format!("container: {{volumeMounts: [{{name: v, mountPath: /v{rest}}}]}}; volumes: [{volumes}]"))
    };
    for fine in
        [mount(", subPath: \"\"", "{name: v}"), mount(", subPath: a/b", "{name: v, configMap: {name: c}}")]
    {
        assert!(fine.is_ok(), "{fine:?}");
    }
    for (made, expected) in [
        (
            mount("}, {name: w, mountPath: //v/./", "{name: v}, {name: w}"),
            "containers[0].volumeMounts[1].mountPath: //v/./ is mounted twice",
        ),
        (mount("", "{name: w}"), "containers[0].volumeMounts[0].name: the pod has no volume \"v\""),
        (mount("", "{name: v}, {name: v}"), "spec.volumes[1].name: the name is taken by another volume"),
        (
            mount("", "{name: v, emptyDir: {}, configMap: {name: c}}"),
            "spec.volumes[0]: a volume has one source",
        ),
        (
            mount("", "{name: v, image: {reference: i}}"),
            "containers[0].volumeMounts[0].name: image volumes are not covered",
        ),
        (
            mount(", subPathExpr: $(POD)", "{name: v}"),
            "containers[0].volumeMounts[0].subPathExpr: a subPath of an emptyDir",
        ),
        (
            mount(", subPath: a/../../b", "{name: v, configMap: {name: c}}"),
            "containers[0].volumeMounts[0].subPath: expected a relative path without ..",
        ),
        (
            mount(", subPath: a, subPathExpr: b", "{name: v, configMap: {name: c}}"),
            "subPathExpr: either subPath or subPathExpr",
        ),
        (
            pod("container: {volumeDevices: [{name: w, devicePath: /dev/w}]}; volumes: [{name: v}]"),
            "containers[0].volumeDevices[0].name: the pod has no volume \"w\"",
        ),
        (
            pod(
                "container: {volumeMounts: [{name: v, mountPath: /v}], volumeDevices: [{name: v, devicePath: /v}]}; \
                 volumes: [{name: v}]",
            ),
            "containers[0].volumeDevices[0].devicePath: /v is there twice",
        ),
        (
            pod("container: {tty: false}; resources: {limits: {cpu: 1, nvidia.com/pgpu: 1}}"),
            "spec.resources.limits: a pod as a whole has cpu, memory and huge pages",
        ),
    ] {
        let refused = made.unwrap_err();
        assert!(refused.starts_with("a.yml:3: Pod \"a\": spec."), "{refused}");
        assert!(refused.contains(expected), "expected {expected:?}, got {refused:?}");
    }
    // A StatefulSet's claim templates are volumes.
    let claims = "StatefulSet volumeClaimTemplates: [{metadata: {name: v}}]";
    let container = "containers: [{name: a, image: registry.example/shop/tool:3, volumeMounts: [{name: v, mountPath: /v}]}]";
    assert!(made(claims, container).is_ok());
    assert!(made("Deployment replicas: 1", container).unwrap_err().contains("the pod has no volume \"v\""));
}

#[test]
fn volumes_of_images_are_covered_or_refused_and_binary_data_sets_nothing() {
    let mut images = corpus::images();
    for image in images.values_mut() {
        image.volumes = vec!["/var/www/html/".into()];
    }
    let with = |mounts: &str| {
        let pod = format!(
            "kind: ConfigMap\nmetadata: {{name: c}}\ndata: {{A: text}}\nbinaryData: {{B: AAAA}}\n---\nkind: Pod\nmetadata: {{name: a}}\n\
             spec: {{runtimeClassName: contrast-cc, containers: [{{name: a, image: \"registry.example/shop/tool:3\", \
             envFrom: [{{configMapRef: {{name: c}}}}], volumeMounts: [{mounts}]}}], volumes: [{{name: v}}]}}\n"
        );
        Deployment::read([("a.yml", pod)]).unwrap().policies(&images, &Settings::default(), RULES)
    };
    let refused = with("").unwrap_err().to_string();
    assert!(
        refused.contains("spec.containers[0].image: the image")
            && refused.contains("declares VOLUME /var/www/html"),
        "{refused}"
    );
    let (policies, _) = with("{name: v, mountPath: /var/www/html}").unwrap();
    let data = policies[0].document.data().unwrap();
    let env = data["containers"][1]["OCI"]["Process"]["Env"].to_string();
    assert!(env.contains("A=text") && !env.contains("B="), "{env}");
}

#[test]
fn same_input_same_bytes_and_a_changed_annotation_is_refused() {
    let hashes = || corpus::policies().iter().map(|policy| policy.document.hash()).collect::<Vec<_>>();
    assert_eq!(hashes(), hashes());
    assert!(PolicyDocument::from_annotation("AAAA").is_err());
    let text = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = \"\"\n";
    let refused = PolicyDocument::parse(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(refused, "algorithm: expected \"sha256\", got \"sha384\"");
    assert_eq!(POLICY_ANNOTATION, "io.katacontainers.config.hypervisor.cc_init_data");
}

#[test]
fn without_an_initializer_the_first_container_has_the_store_and_a_users_volume_is_kept() {
    let pod = "kind: Pod\nmetadata: {name: a}\nspec:\n  runtimeClassName: contrast-cc\n  containers: [{name: a, image: i}, {name: b, image: i}]\n";
    let injection = Injection { initializer: None, runtime_class: None, ..corpus::injection() };
    let mut deployment = Deployment::read([("a.yml", pod)]).unwrap();
    deployment.inject(&injection).unwrap();
    let text = deployment.texts().next().unwrap().1;
    let found = &yaml_edit::read(&text).unwrap()[0].value()["spec"].clone();
    assert_eq!(found["containers"][0]["volumeDevices"][0]["devicePath"], "/dev/trusted_store");
    assert_eq!(found["containers"][1].get("volumeDevices"), None);
    let larger = text.replace("10Gi", "50Gi");
    let mut deployment = Deployment::read([("a.yml", larger.as_str())]).unwrap();
    deployment.inject(&injection).unwrap();
    assert_eq!(deployment.texts().next().unwrap().1, larger);
    // An initializer that comes first later would make it two.
    let mut deployment = Deployment::read([("a.yml", larger.as_str())]).unwrap();
    let refused = deployment.inject(&corpus::injection()).unwrap_err().to_string();
    assert!(
        refused.contains("spec.containers[0].volumeDevices[0]: the store is set up with the first"),
        "{refused}"
    );
}

#[test]
fn a_long_value_is_read_by_every_agent_and_pinned() {
    let certificate = format!("-----BEGIN CERTIFICATE-----\\n{}", "MIIBszCCAVmgAwIBAgIU\\n".repeat(100));
    let pod = format!(
        "kind: Pod\nmetadata: {{name: a}}\nspec:\n  runtimeClassName: contrast-cc\n  containers: [{{name: a, image: i, env: [{{name: CA, value: \"{certificate}\"}}]}}]\n"
    );
    let deployment = Deployment::read([("a.yml", pod)]).unwrap();
    let (policies, _) = deployment.policies(&corpus::images(), &Settings::default(), RULES).unwrap();
    let document = &policies[0].document;
    assert_eq!(document.long_line(), None);
    assert!(document.data().unwrap().to_string().contains("MIIBszCCAVmgAwIBAgIU"));
    assert!(document.rego().contains("concat("));
    let again = PolicyDocument::from_annotation(&document.to_annotation()).unwrap();
    assert_eq!(again.data(), document.data());
}
