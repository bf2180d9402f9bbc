//! Pods of public applications' shapes, with their images.

use std::{collections::BTreeMap, path::Path};

use runtime_policy::{ContainerImage, Deployment, Images, Injection, PodPolicy, RULES, Settings};
use serde_json::Value;

use crate::host::{Host, Shim};

pub(crate) const INITIALIZER: &str = "registry.example/contrast/initializer:1";
pub(crate) const MESH: &str = "registry.example/contrast/service-mesh:1";

pub(crate) fn injection() -> Injection {
    Injection {
        initializer: Some(INITIALIZER.into()),
        service_mesh: Some(MESH.into()),
        lift_default_deny: false,
        renewal: true,
        trusted_store: Some("10Gi".into()),
        runtime_class: Some("contrast-cc-metal-qemu-snp-0a1b2c3d".into()),
        image_replacements: Vec::new(),
        workload_owners: Vec::new(),
        workload_owners_needed: 1,
        coordinator_host: None,
    }
}

fn image(reference: &str, change: impl FnOnce(&mut ContainerImage)) -> (String, ContainerImage) {
    let mut image = ContainerImage {
        reference: format!("{reference}@sha256:{}", "ab".repeat(32)),
        passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n".into(),
        group: "root:x:0:\napp:x:1001:\ndata:x:1002:app\n".into(),
        entrypoint: vec!["/bin/main".into()],
        ..ContainerImage::default()
    };
    change(&mut image);
    (reference.to_owned(), image)
}

pub(crate) fn images() -> Images {
    Images::from([
        image("registry.example/shop/web:1.4", |image| image.env = vec!["LANG=C".into(), "PATH=/bin".into()]),
        image("registry.example/shop/logger:2", |image| {
            image.user = "app".into();
            image.cmd = vec!["--follow".into()];
            image.working_dir = "/srv".into();
        }),
        image("registry.example/shop/tool:3", |image| {
            image.user = "2000:3000".into();
            image.working_dir = "/opt/tool".into();
        }),
        image(INITIALIZER, |_| {}),
        image(MESH, |_| {}),
    ])
}

pub(crate) fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pods");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// The corpus after everything that `generate` does but the annotations.
pub(crate) fn prepared() -> Deployment {
    let mut deployment = Deployment::read(files()).unwrap();
    deployment.inject(&injection()).unwrap();
    deployment.pin(&images()).unwrap();
    deployment
}

/// Images under the references that are in the YAML now.
pub(crate) fn pinned_images() -> Images {
    images().into_values().map(|image| (image.reference.clone(), image)).collect()
}

pub(crate) fn policies() -> Vec<PodPolicy> {
    prepared().policies(&pinned_images(), &Settings::default(), RULES).unwrap().0
}

pub(crate) fn values() -> BTreeMap<(String, String), String> {
    let value = |name: &str, key: &str, value: &str| ((name.to_owned(), key.to_owned()), value.to_owned());
    BTreeMap::from([
        value("settings", "level", "info"),
        value("settings", "colour", "blue"),
        value("credentials", "token", "s3cr3t"),
    ])
}

/// The pod of a workload as it stands in the prepared YAML, and the name of one of its pods.
pub(crate) fn pod(name: &str) -> (Value, String) {
    for (_, text) in prepared().texts() {
        for document in yaml_edit::read(&text).unwrap() {
            let items = document.value()["items"].as_array().cloned();
            for resource in items.unwrap_or_else(|| vec![document.value().clone()]) {
                let kind = resource["kind"].as_str().unwrap();
                if resource["metadata"]["name"] != name || ["Service", "ConfigMap", "Secret"].contains(&kind)
                {
                    continue;
                }
                let (pod, suffix) = match kind {
                    "Pod" => (&resource, ""),
                    "PodTemplate" => (&resource["template"], ""),
                    "CronJob" => (&resource["spec"]["jobTemplate"]["spec"]["template"], "-28812345-x7k2p"),
                    "Deployment" => (&resource["spec"]["template"], "-7d9f8b6c5d-x7k2p"),
                    "StatefulSet" => (&resource["spec"]["template"], "-0"),
                    "Job" if resource["spec"]["completionMode"] == "Indexed" => {
                        (&resource["spec"]["template"], "-2-x7k2p")
                    }
                    _ => (&resource["spec"]["template"], "-x7k2p"),
                };
                let (mut pod, name) = (pod.clone(), format!("{name}{suffix}"));
                if kind == "StatefulSet" {
                    pod["spec"]["hostname"] = name.as_str().into(); // as the controller does, whatever was there
                }
                return (pod, name);
            }
        }
    }
    panic!("{name} is not in the corpus");
}

/// Runs `test` with the policy and a host for each pod of the corpus.
pub(crate) fn each(mut test: impl FnMut(&PodPolicy, &Host<'_>)) {
    let (images, values) = (pinned_images(), values());
    for policy in policies() {
        let (pod, name) = pod(&policy.workload.name);
        for shim in [Shim::Rust, Shim::Go] {
            let host =
                Host { pod: &pod, name: &name, namespace: "shop", images: &images, values: &values, shim };
            test(&policy, &host);
        }
    }
}
