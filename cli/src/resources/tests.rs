use std::path::Path;

use super::*;

fn parts() -> [(&'static str, &'static str, Vec<Slot>); 2] {
    [
        ("runtime", runtime::TEMPLATE, runtime::example(false)),
        ("coordinator", coordinator::TEMPLATE, coordinator::example()),
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
    assert_eq!(pod["initContainers"][0]["args"], serde_json::json!(["install", "Metal-QEMU-SNP"]));
    let coordinator = documents(&yaml(coordinator::TEMPLATE, &coordinator::example()).unwrap());
    assert_eq!(coordinator[3]["spec"]["template"]["spec"]["containers"][0]["env"][2]["value"], "\"}]\n---\n");
    assert_eq!(coordinator[3]["spec"]["replicas"], 3);
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
    assert_eq!(*arguments, serde_json::json!(["uninstall", "contrast-cc-metal-qemu-snp-01234567"]));
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
