use std::path::Path;

use serde_json::json;

use super::*;

fn parts() -> [(&'static str, &'static str, Vec<Slot>); 2] {
    [
        ("runtime", runtime::TEMPLATE, runtime::example(false)),
        ("coordinator", coordinator::TEMPLATE, coordinator::example(Some("10Gi"), false)),
    ]
}

fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect()
}

#[test]
fn values_stay_in_their_places_whatever_they_contain() {
    let runtime = documents(&yaml(runtime::TEMPLATE, &runtime::example(false)).unwrap());
    assert_eq!(runtime.len(), 6);
    assert_eq!(runtime[4]["data"]["contrast-node-install.json"], "{\"files\": [\"${HANDLER}\n---\n\"]}");
    let pod = &runtime[5]["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"]["pool"], "\"odd\": {}\n");
    assert_eq!(pod["initContainers"][0]["args"], json!(["install", "Metal-QEMU-SNP"]));
    let coordinator =
        documents(&yaml(coordinator::TEMPLATE, &coordinator::example(Some("10Gi"), false)).unwrap());
    let env = coordinator[3]["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert_eq!(env.last().unwrap()["value"], "\"}]\n---\n");
    assert_eq!(coordinator[3]["spec"]["replicas"], 3);
}

#[test]
fn replicas_are_told_of_each_other_and_of_etcd() {
    let coordinator =
        documents(&yaml(coordinator::TEMPLATE, &coordinator::example(Some("10Gi"), false)).unwrap());
    let (set, pod) = (&coordinator[3]["spec"], &coordinator[3]["spec"]["template"]["spec"]);
    let env = pod["containers"][0]["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|variable| variable["name"] == name).unwrap()["value"].as_str();
    // The headless service that the StatefulSet names and the resources bring along.
    assert_eq!(value("CONTRAST_PEERS").unwrap(), format!("{}:7777", set["serviceName"].as_str().unwrap()));
    assert!(
        coordinator
            .iter()
            .any(|item| item["kind"] == "Service" && item["metadata"]["name"] == set["serviceName"])
    );
    assert_eq!(value("CONTRAST_ETCD_ENDPOINTS"), Some("https://etcd-0:2379,https://etcd-1:2379"));
    // Every file that is named is below a mount of a volume that is there.
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    for file in ["CONTRAST_ETCD_CA", "CONTRAST_ETCD_KEY", "CONTRAST_ETCD_PASSWORD_FILE"] {
        let file = value(file).unwrap();
        let mount =
            mounts.iter().find(|mount| file.starts_with(mount["mountPath"].as_str().unwrap())).unwrap();
        assert!(
            pod["volumes"].as_array().unwrap().iter().any(|volume| volume["name"] == mount["name"]),
            "{file}"
        );
    }
    assert_eq!(set["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"], "10Gi");
    assert!(!env.iter().any(|variable| variable["name"] == "CONTRAST_ETCD_TRIM_ABOVE"));

    // DNS needs no rights; the API server does, and then the pod has a token to ask with.
    assert_eq!((&coordinator[1]["rules"], &pod["automountServiceAccountToken"]), (&json!([]), &json!(false)));
    let asking = documents(&yaml(coordinator::TEMPLATE, &coordinator::example(None, true)).unwrap());
    let pod = &asking[3]["spec"]["template"]["spec"];
    let list =
        json!({ "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"] });
    assert_eq!((&asking[1]["rules"], &pod["automountServiceAccountToken"]), (&json!([list]), &json!(true)));
    let env = pod["containers"][0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({ "name": "CONTRAST_PEERS_SERVICE", "value": set["serviceName"] })));
    assert!(!env.iter().any(|variable| variable["name"] == "CONTRAST_PEERS"));

    // Where the copies go with the pods, etcd keeps everything.
    let passing = documents(&yaml(coordinator::TEMPLATE, &coordinator::example(None, false)).unwrap());
    let env = passing[3]["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({ "name": "CONTRAST_ETCD_TRIM_ABOVE", "value": "never" })));
}

#[test]
fn a_runtimes_names_all_carry_its_hash_and_pods_wait_for_the_label() {
    let name = "contrast-cc-metal-qemu-snp-01234567";
    let runtime = documents(&yaml(runtime::TEMPLATE, &runtime::example(false)).unwrap());
    for resource in &runtime {
        assert_eq!(resource["metadata"]["name"], name);
    }
    assert_eq!(
        runtime[0]["scheduling"]["nodeSelector"][format!("contrast.edgeless.systems/{name}")],
        "ready"
    );
}

#[test]
fn uninstalling_names_the_handler() {
    let runtime = documents(&yaml(runtime::TEMPLATE, &runtime::example(true)).unwrap());
    let arguments = &runtime[5]["spec"]["template"]["spec"]["initContainers"][0]["args"];
    assert_eq!(*arguments, json!(["uninstall", "contrast-cc-metal-qemu-snp-01234567"]));
}

/// With `UPDATE_CHART` set the chart is written instead.
#[test]
fn the_chart_is_made_from_the_resources() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/templates");
    for (part, template, slots) in parts() {
        let text = helm(part, template, &slots).unwrap();
        let path = chart.join(format!("{part}.yaml"));
        if std::env::var_os("UPDATE_CHART").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap();
        assert!(
            found == text,
            "{} is not made from deploy/resources: run this test with UPDATE_CHART=1",
            path.display()
        );
    }
}

#[test]
fn images_without_a_digest_are_refused() {
    let refused = demand_digest("coordinator:latest").unwrap_err();
    assert!(refused.downcast_ref::<Refused>().is_some());
    demand_digest(&format!("a/b@sha256:{}", "0".repeat(64))).unwrap();
}
