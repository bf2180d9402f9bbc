//! A correct host is let through, from the sandbox to its end.

use std::collections::{BTreeMap, BTreeSet};

use runtime_policy::Evaluator;
use serde_json::Value;

use crate::corpus;

#[test]
fn a_correct_host_may_run_every_pod_of_the_corpus() {
    corpus::each(|policy, host| {
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        for (name, request) in host.life() {
            let decision = evaluator.decide(&name, &request).unwrap();
            assert!(
                decision.allowed,
                "{} {name} {}: {:#?}",
                policy.workload.name, request["container_id"], decision.reasons
            );
        }
    });
}

#[test]
fn the_corpus_has_every_shape_that_policies_are_for() {
    let mut kinds = BTreeMap::<String, BTreeSet<String>>::new();
    let mut add =
        |what: &str, name: &str| _ = kinds.entry(what.to_owned()).or_default().insert(name.to_owned());
    for (_, text) in corpus::files() {
        for document in yaml_edit::read(&text).unwrap() {
            let items = document.value()["items"].as_array().cloned();
            for resource in items.unwrap_or_else(|| vec![document.value().clone()]) {
                add("kinds", resource["kind"].as_str().unwrap());
            }
            shapes(document.value(), &mut add);
        }
    }
    let expect = |what: &str, names: &[&str]| {
        let missing: Vec<_> = names.iter().filter(|name| !kinds[what].contains(**name)).collect();
        assert!(missing.is_empty(), "the corpus has no {what} {missing:?}");
    };
    expect(
        "kinds",
        &["Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"],
    );
    expect("kinds", &["CronJob", "PodTemplate", "ConfigMap", "Secret"]);
    expect(
        "volumes",
        &[
            "emptyDir",
            "configMap",
            "secret",
            "projected",
            "downwardAPI",
            "persistentVolumeClaim",
            "ephemeral",
            "nfs",
        ],
    );
    expect(
        "fields",
        &["livenessProbe", "readinessProbe", "startupProbe", "postStart", "preStop", "initContainers"],
    );
    expect("fields", &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "envFrom", "tty"]);
    expect(
        "fields",
        &["runAsUser", "fsGroup", "supplementalGroups", "capabilities", "privileged", "sysctls"],
    );
    expect(
        "fields",
        &["readOnlyRootFilesystem", "allowPrivilegeEscalation", "volumeDevices", "restartPolicy"],
    );
}

fn shapes(value: &Value, add: &mut impl FnMut(&str, &str)) {
    for volume in value["volumes"].as_array().into_iter().flatten() {
        volume.as_object().unwrap().keys().for_each(|kind| add("volumes", kind));
    }
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            add("fields", key);
            shapes(value, add);
        }),
        Value::Array(items) => items.iter().for_each(|item| shapes(item, add)),
        _ => {}
    }
}
