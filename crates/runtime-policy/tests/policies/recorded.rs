//! What real hosts sent for real pods, recorded at the agent (`testdata/recorded`): the requests, and the pod as
//! `generate` had left it. They are facts, not a specification.

use std::{collections::BTreeMap, path::Path};

use runtime_policy::{ContainerImage, Deployment, Images, PodPolicy, Settings};
use serde_json::{Value, json};

use crate::host::Request;

/// Recordings, with the name of the pod.
const RECORDINGS: [(&str, &str); 6] = [
    ("containerd-1.7-group", "group"),
    ("containerd-1.7-shared", "shared"),
    ("containerd-1.7-simple", "simple"),
    ("containerd-1.7-user", "user"),
    ("containerd-1.7-volume", "volume"),
    ("containerd-2.1-group", "group"),
];

pub(crate) fn text(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/recorded");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// The images were small ones with a user database and these commands.
pub(crate) fn images(yaml: &str) -> Images {
    let references = yaml.split('"').filter(|text| text.starts_with("registry.example/"));
    let image = |reference: &str| {
        let web = reference.contains("/web:");
        let entrypoint = match web {
            true => vec!["/bin/sh", "-c", "while :; do echo web; sleep 5; done"],
            false => vec!["/bin/sleep", "1"],
        };
        ContainerImage {
            reference: reference.to_owned(),
            entrypoint: entrypoint.into_iter().map(String::from).collect(),
            env: if web { vec!["LANG=C".into()] } else { Vec::new() },
            passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n".into(),
            group: "root:x:0:\napp:x:1001:\ndata:x:1002:app\n".into(),
            ..ContainerImage::default()
        }
    };
    references.map(|reference| (reference.to_owned(), image(reference))).collect()
}

fn rules() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rules.rego")).unwrap()
}

/// A pod's own policy.
pub(crate) fn policy(yaml: &str, settings: &Settings) -> PodPolicy {
    let deployment = Deployment::read([("pod.yml", yaml)]).unwrap();
    let (mut policies, _) = deployment.policies(&images(yaml), settings, &rules()).unwrap();
    policies.pop().unwrap()
}

/// Requests as they were sent.
pub(crate) fn sent(recording: &str) -> Vec<Request> {
    let read = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        (line["kind"].as_str().unwrap().to_owned(), line["request"].take())
    };
    text(&format!("{recording}.jsonl")).lines().map(read).collect()
}

/// Where a node has an image under a tag as well, containerd 1.7 names it so, without a digest. No policy can allow
/// that; these are the requests of a node that has not.
pub(crate) fn with_digests(mut requests: Vec<Request>, yaml: &str) -> Vec<Request> {
    let digests: BTreeMap<String, String> = images(yaml)
        .into_keys()
        .map(|reference| (reference.split('@').next().unwrap().to_owned(), reference))
        .collect();
    for (_, request) in &mut requests {
        let Some(storages) = request.get_mut("storages").and_then(Value::as_array_mut) else { continue };
        for storage in storages {
            if let Some(whole) = storage["source"].as_str().and_then(|source| digests.get(source)) {
                storage["source"] = json!(whole);
            }
        }
    }
    requests
}

/// Runs `test` with each recording: its name, the pod's policy and the requests.
pub(crate) fn each(mut test: impl FnMut(&str, &PodPolicy, &[Request])) {
    for (recording, pod) in RECORDINGS {
        let yaml = text(&format!("{pod}.yml"));
        let policy = policy(&yaml, &Settings::default());
        test(recording, &policy, &with_digests(sent(recording), &yaml));
    }
}

#[test]
fn what_real_hosts_sent_is_allowed() {
    let mut allowed = 0;
    each(|recording, policy, requests| {
        let mut evaluator = runtime_policy::Evaluator::new(policy.document.rego()).unwrap();
        for (number, (name, request)) in (1..).zip(requests) {
            let decision = evaluator.decide(name, request).unwrap();
            assert!(decision.allowed, "{recording}, line {number}, {name}: {:#?}", decision.reasons);
            allowed += 1;
        }
    });
    assert!(allowed > 200, "{allowed}");
}

#[test]
fn an_image_without_a_digest_is_refused_whoever_sends_it() {
    let policy = policy(&text("simple.yml"), &Settings::default());
    let mut evaluator = runtime_policy::Evaluator::new(policy.document.rego()).unwrap();
    for (name, request) in sent("containerd-1.7-simple") {
        let decision = evaluator.decide(&name, &request).unwrap();
        if !decision.allowed {
            let fields: Vec<&str> = decision.reasons.iter().map(|reason| reason.field.as_str()).collect();
            assert_eq!(fields, ["storages.image_guest_pull.source"]);
            assert_eq!(decision.reasons[0].found, "registry.example/contrast/initializer:1");
            return;
        }
    }
    panic!("a tag was allowed");
}
