//! The Coordinator's APIs, driven by clients that nobody here wrote or that share no code with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod certificates;
mod continuity;
mod corporate;
mod floods;
mod metrics;
mod outputs;
mod owners;
mod proxy;
mod rewriting;
mod siege;
mod storage;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use chaos_tests::deployment::{Deployment, WEB};
use serde_json::Value;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `contrast` and demands success; gives its result as JSON.
fn done(deployment: &Deployment, args: &[&str]) -> Value {
    let output = deployment.contrast(&[args, &["--output", "json"]].concat()).unwrap();
    assert!(output.status.success(), "contrast {}: {}", args.join(" "), stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `contrast` and demands a refusal (exit code 1); gives the reason.
fn refused(deployment: &Deployment, args: &[&str]) -> String {
    let output = deployment.contrast(args).unwrap();
    assert_eq!(output.status.code(), Some(1), "contrast {}: {}", args.join(" "), stderr(&output));
    stderr(&output)
}

/// Runs a program that is not ours and demands success; gives its output.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run ./test, which installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", stderr(&output));
    text
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program of the Python environment that `./test` makes.
fn python(program: &str) -> Command {
    let path = repository().join("target/python/bin").join(program);
    assert!(path.exists(), "{} is missing: run ./test, which installs it", path.display());
    Command::new(path)
}

/// Runs a step of the independent client.
fn drive(deployment: &Deployment, step: &str) {
    let config = deployment.path("config.json");
    let ports = &deployment.ports;
    let content = serde_json::json!({
        "directory": deployment.path(""), "user": ports.user, "mesh": ports.mesh,
        "http": ports.http, "transit": ports.transit, "initializer": chaos_tests::program("initializer"),
    });
    fs::write(&config, content.to_string()).unwrap();
    let script = repository().join("chaos-tests/python/drive.py");
    let output = python("python").arg(script).arg(step).arg(&config).output().unwrap();
    let log = deployment.log();
    let tail: Vec<&str> = log.lines().rev().take(15).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    assert!(output.status.success(), "{step}:\n{}\n{}", stderr(&output), tail.join("\n"));
}

/// Whoever is led to a false Coordinator makes evidence over what that one chooses: among others the hash that once
/// passed for the nonce of a connection at `/v1/mesh-cert`, and gave the host every workload's secret.
#[test]
fn evidence_of_one_door_opens_no_other() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    drive(&deployment, "purposes");
}

#[test]
fn a_client_written_from_the_specification_alone_agrees() {
    let mut deployment = Deployment::start(&[], |_, _| {}).unwrap();
    drive(&deployment, "handshakes");
    drive(&deployment, "first");
    drive(&deployment, "update");
    drive(&deployment, "mesh");
    drive(&deployment, "http");
    assert!(deployment.initializer(WEB, "pods/web").unwrap().status.success());
    drive(&deployment, "transit");
    deployment.kill();
    deployment.launch().unwrap();
    drive(&deployment, "recovery");
    let log = deployment.log();
    assert!(!log.contains("panicked"), "{log}");

    // What the client learned and remembers is nowhere in the log.
    let known: Value = serde_json::from_slice(&fs::read(deployment.path("python.json")).unwrap()).unwrap();
    let seed = known["seed"].as_str().unwrap();
    let workload_secret =
        fs::read_to_string(deployment.path("pods/web/secrets/workload-secret-seed")).unwrap();
    for secret in [&seed[..20], &workload_secret[..20]] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}
