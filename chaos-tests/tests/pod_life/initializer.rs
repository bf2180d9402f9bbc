//! The initializer as init container and as sidecar.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use chaos_tests::program;
use manifest::PolicyHash;

use crate::deployment::Deployment;

const LIMIT: Duration = Duration::from_secs(60);

fn initializer(deployment: &Deployment, policy: PolicyHash, directory: &Path) -> Command {
    let mut command = Command::new(program("initializer"));
    command
        .args(["--coordinator", &format!("127.0.0.1:{}", deployment.port)])
        .args(["--policy-hash", &policy.to_string()])
        .arg("--simulated-machine")
        .arg(deployment.file("machine"))
        .arg("--directory")
        .arg(directory)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_coordinator_is_verified_where_a_manifest_is_given() {
    let deployment = Deployment::start();
    let directory = deployment.path("pod");
    let with_manifest = |manifest: &Path| {
        let mut command = initializer(&deployment, deployment.policy(), &directory);
        command.arg("--once").arg("--verify-coordinator").arg(manifest).output().unwrap()
    };
    // A manifest whose Coordinator has another policy: the genuine one is refused, nothing is written.
    let text = fs::read_to_string(deployment.file("manifest.json")).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    let policies = other["Policies"].as_object_mut().unwrap();
    let is_coordinator = |entry: &serde_json::Value| entry["Role"] == "coordinator";
    let hash = policies.iter().find(|(_, entry)| is_coordinator(entry)).unwrap().0.clone();
    let entry = policies.remove(&hash).unwrap();
    policies.insert(PolicyHash::of(b"another").to_string(), entry);
    let path = deployment.path("other.json");
    fs::write(&path, serde_json::to_vec_pretty(&other).unwrap()).unwrap();
    let refused = with_manifest(&path);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains(&format!("its policy {hash} is not a Coordinator's")),
        "{}",
        stderr(&refused)
    );
    assert!(!directory.exists());

    let accepted = with_manifest(&deployment.file("manifest.json"));
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    assert!(directory.join("done").is_file());
}

#[test]
fn exit_codes_tell_refused_from_broken() {
    let deployment = Deployment::start();
    let directory = deployment.path("pod");
    let stranger =
        initializer(&deployment, PolicyHash::of(b"stranger"), &directory).arg("--once").output().unwrap();
    assert_eq!(stranger.status.code(), Some(1));
    assert!(stderr(&stranger).contains("is not in the current manifest"), "{}", stderr(&stranger));
    let mut nowhere = Command::new(program("initializer"));
    nowhere.args([
        "--once",
        "--coordinator",
        "127.0.0.1:1",
        "--policy-hash",
        &"00".repeat(32),
        "--simulated-machine",
    ]);
    let nowhere = nowhere.arg(deployment.file("machine")).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(stderr(&nowhere).contains("cannot reach the Coordinator at 127.0.0.1:1"), "{}", stderr(&nowhere));
}

#[test]
fn a_sidecar_renews_when_the_mesh_asks_and_keeps_its_key() {
    let deployment = Deployment::start();
    let (directory, ready) = (deployment.path("pod"), deployment.path("ready"));
    let mut command = initializer(&deployment, deployment.policy(), &directory);
    let sidecar = command.arg("--sidecar").arg("--ready-file").arg(&ready).spawn().unwrap();
    let mut sidecar = Running(sidecar);
    eventually("ready", || ready.is_file());
    let read = |name: &str| fs::read(directory.join("tls-config").join(name)).unwrap();
    let (chain, key) = (read("certChain.pem"), read("key.pem"));
    fs::write(directory.join("renew"), b"").unwrap();
    eventually("a new certificate", || read("certChain.pem") != chain);
    assert_eq!(read("key.pem"), key);
    Command::new("kill").arg(sidecar.0.id().to_string()).status().unwrap();
    assert!(sidecar.0.wait().unwrap().success(), "a stop in order");
}
