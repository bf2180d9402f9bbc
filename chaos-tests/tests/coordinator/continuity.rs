//! A pod does not change sides, and joins none that its owner does not vouch for.

use std::fs;

use chaos_tests::deployment::{Deployment, WEB};
use manifest::{KeyDigest, ManifestBody, OwnerKey, PolicyEntry, PolicyHash};

use crate::{done, refused, stderr};

/// The policy of a pod that names the owner whose word it demands, as `contrast generate` writes it.
fn pinned(owner: KeyDigest) -> Vec<u8> {
    format!("policy of a pod with CONTRAST_WORKLOAD_OWNERS={owner}").into_bytes()
}

fn add_pinned(body: &mut ManifestBody, directory: &std::path::Path, owner: KeyDigest) {
    let policy = pinned(owner);
    fs::write(directory.join("policies/pinned"), &policy).unwrap();
    let entry =
        PolicyEntry { sans: vec!["web".into()], workload_secret_id: "web".into(), ..PolicyEntry::default() };
    body.policies.insert(PolicyHash::of(&policy), entry);
}

/// Runs the pod's initializer with the owner's digest, led to a Coordinator.
fn start_pod(led_to: &Deployment, owner: KeyDigest, pod: &std::path::Path) -> std::process::Output {
    std::process::Command::new(chaos_tests::program("initializer"))
        .args(["--once", "--coordinator", &led_to.ports.mesh.to_string()])
        .args(["--policy-hash", &PolicyHash::of(&pinned(owner)).to_string()])
        .arg("--directory")
        .arg(pod)
        .arg("--simulated-machine")
        .arg(led_to.path("machine"))
        .env("CONTRAST_WORKLOAD_OWNERS", owner.to_string())
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

/// The host runs a genuine Coordinator of its own. Its manifest names the victim's owner and policy, and a pod of the
/// host's under the same secret id; so whatever the victim's pod took there, the host would know.
#[test]
fn a_pod_takes_nothing_from_a_genuine_coordinator_that_its_owner_does_not_vouch_for() {
    let mut owner = None;
    let victim = Deployment::start(&[], |body, directory| {
        let key = body.workload_owner_pub_keys[0].clone();
        add_pinned(body, directory, key.digest());
        owner = Some(key);
    })
    .unwrap();
    let owner: OwnerKey = owner.unwrap();
    let hosts = Deployment::start(&[], |body, directory| {
        body.workload_owner_pub_keys = vec![owner.clone()];
        add_pinned(body, directory, owner.digest());
    })
    .unwrap();
    let led_by_host = hosts.contrast(&["set"]).unwrap();
    assert!(
        stderr(&led_by_host).contains("is not a key whose word the pods demand"),
        "{}",
        stderr(&led_by_host)
    );
    // It is a Coordinator by every check of evidence, and serves pods that demand nothing.
    assert!(hosts.initializer(WEB, "own-pod").unwrap().status.success());

    let pod = victim.path("pod");
    let led = start_pod(&hosts, owner.digest(), &pod);
    assert_eq!(led.status.code(), Some(1), "{}", stderr(&led));
    assert!(stderr(&led).contains("0 of the 1 workload owners"), "{}", stderr(&led));
    assert!(!pod.exists(), "no certificate, and no secret that a volume would be formatted with");
    // Nor can the host vouch.
    let theirs = refused(&hosts, &["vouch"]);
    assert!(theirs.contains("is not a workload owner"), "{theirs}");

    done(&victim, &["set"]);
    let verified = done(&victim, &["verify"]);
    assert_eq!(verified["vouched_by"][0], owner.digest().to_string());
    let started = start_pod(&victim, owner.digest(), &pod);
    assert!(started.status.success(), "{}", stderr(&started));

    // The running pod's initializer is started once more, led to the host's, with nothing in its environment.
    let files = ["tls-config/certChain.pem", "tls-config/mesh-ca.pem", "secrets/workload-secret-seed"];
    let before = files.map(|name| fs::read(pod.join(name)).unwrap());
    let again = std::process::Command::new(chaos_tests::program("initializer"))
        .args(["--once", "--coordinator", &hosts.ports.mesh.to_string()])
        .args(["--policy-hash", &PolicyHash::of(WEB).to_string()])
        .arg("--directory")
        .arg(&pod)
        .arg("--simulated-machine")
        .arg(hosts.path("machine"))
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert!(stderr(&again).contains("a new deployment needs a new pod"), "{}", stderr(&again));
    assert_eq!(files.map(|name| fs::read(pod.join(name)).unwrap()), before);
    // And led to its own, it renews.
    assert!(start_pod(&victim, owner.digest(), &pod).status.success());
    // Another secret id is another secret.
    let mut next = victim.manifest().unwrap().body().clone();
    next.policies.get_mut(&PolicyHash::of(&pinned(owner.digest()))).unwrap().workload_secret_id =
        "other".into();
    fs::write(victim.path("next.json"), next.to_json()).unwrap();
    done(&victim, &["set", "-m", "next.json", "--workload-owner-key", "workload-owner.pem"]);
    let renewed = start_pod(&victim, owner.digest(), &pod);
    assert_eq!(renewed.status.code(), Some(1), "{}", stderr(&renewed));
    assert!(stderr(&renewed).contains("another secret id needs a new pod"), "{}", stderr(&renewed));
}

/// The host set a manifest first, with the owner's key in it, and its pod learnt the secret. The owner's `set` is only
/// the second: it does not vouch for what came before.
#[test]
fn set_does_not_vouch_for_a_history_that_somebody_else_began() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let manifest = deployment.manifest().unwrap();
    let owner = manifest.workload_owner_digests().next().unwrap();
    let mut next = manifest.body().clone();
    add_pinned(&mut next, &deployment.path(""), owner);
    fs::write(deployment.path("next.json"), next.to_json()).unwrap();
    let args = ["set", "-m", "next.json", "--workload-owner-key", "workload-owner.pem"];
    let set = deployment.contrast(&args).unwrap();
    assert!(set.status.success() && stderr(&set).contains("which has 2 manifests"), "{}", stderr(&set));
    let pod = deployment.path("pod");
    assert_eq!(start_pod(&deployment, owner, &pod).status.code(), Some(1));
    assert_eq!(done(&deployment, &["verify", "-m", "next.json"])["vouched_by"], serde_json::json!([]));

    // Who has looked at the history may; over HTTP as well.
    let url = format!("http://{}", deployment.ports.http);
    let vouched = deployment.contrast_at(&url, &["vouch", "-m", "next.json"]).unwrap();
    assert!(vouched.status.success(), "{}", stderr(&vouched));
    let started = start_pod(&deployment, owner, &pod);
    assert!(started.status.success(), "{}", stderr(&started));
    let url_verified = deployment.contrast_at(&url, &["verify", "-m", "next.json"]).unwrap();
    assert!(String::from_utf8_lossy(&url_verified.stdout).contains(&owner.to_string()));
}
