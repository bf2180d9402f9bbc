//! The real programs, as a user runs them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use chaos_tests::{
    command::{Running, json, stderr, text},
    program,
};

fn contrast(args: &[&str]) -> Output {
    Command::new(program("contrast")).args(args).env_remove("CONTRAST_OUTPUT").output().unwrap()
}

#[test]
fn a_deployment_comes_to_life_and_can_be_used_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let outcome = contrast(&["dev", "--keep", "--output", "json", "--state-dir", text(&state)]);
    let progress = stderr(&outcome);
    assert!(outcome.status.success(), "{progress}");
    let report = json(&outcome);
    let _running = Running(report["running_pid"].as_u64().unwrap());

    assert_eq!(report["workloads"].as_array().unwrap().len(), 4);
    let events = &report["events"];
    assert_eq!(events["ManifestSet"], 2);
    assert_eq!(events["RecoveredByUser"], 1);
    assert_eq!(events["AttestationRefused"], 1);
    assert!(events["CertificateIssued"].as_u64().unwrap() >= 4);
    for step in ["Mutual TLS", "not in the manifest", "from elsewhere", "SIGKILL", "as before"] {
        assert!(progress.contains(step), "no step {step:?} in:\n{progress}");
    }

    let coordinator = report["coordinator"].as_str().unwrap();
    let manifest = state.join("manifest.json");
    let verify = |manifest: &Path| {
        let files = directory.path().join("verify");
        contrast(&["verify", "-c", coordinator, "-m", text(manifest), "--directory", text(&files)])
    };
    let verified = verify(&manifest);
    assert!(verified.status.success(), "{}", stderr(&verified));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("NOT HARDWARE"));
    assert!(directory.path().join("verify/manifest.1.json").is_file());

    // Another manifest, byte for byte: refused, exit code 1.
    let other = directory.path().join("other.json");
    let mut bytes = fs::read(&manifest).unwrap();
    bytes.push(b'\n');
    fs::write(&other, bytes).unwrap();
    let refused = verify(&other);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("not the given"), "{}", stderr(&refused));

    let history =
        contrast(&["history", "list", "--output", "json", "-c", coordinator, "-m", text(&manifest)]);
    assert_eq!(json(&history).as_array().unwrap().len(), 2);
    let seedshare_key = state.join("seedshare-owner.pem");

    // A Coordinator that has its seed takes no other.
    let shares = state.join("seedshares.json");
    let recover = ["recover", "-c", coordinator, "-m", text(&manifest), "--seed-shares", text(&shares)];
    let again = contrast(&[recover.as_slice(), &["--seedshare-owner-key", text(&seedshare_key)]].concat());
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("coordinator is already recovered"), "{}", stderr(&again));
}

#[test]
fn what_is_wrong_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken.yml");
    fs::write(&broken, "kind: Pod\nmetadata: [\n").unwrap();
    let outcome = contrast(&["dev", text(&broken)]);
    assert_eq!(outcome.status.code(), Some(2));
    assert!(
        stderr(&outcome).contains("broken.yml") && stderr(&outcome).contains("line"),
        "{}",
        stderr(&outcome)
    );

    let used = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = used.local_addr().unwrap().port().to_string();
    let outcome = contrast(&["dev", "--user-port", &port]);
    assert!(
        stderr(&outcome).contains(&format!("--user-port {port}: the port is in use")),
        "{}",
        stderr(&outcome)
    );

    let outcome = contrast(&["dev", "--state-dir", text(directory.path())]);
    assert!(stderr(&outcome).contains("is not empty"), "{}", stderr(&outcome));

    let outcome = contrast(&["verify", "-c", "127.0.0.1:1", "-m", text(&broken)]);
    assert!(stderr(&outcome).contains("broken.yml: manifest is not valid"), "{}", stderr(&outcome));
}

#[test]
fn a_state_directory_of_another_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let outcome = contrast(&["dev", "--state-dir", text(&state)]);
    assert!(outcome.status.success(), "{}", stderr(&outcome));
    fs::write(state.join("event-log/FORMAT"), "contrast-event-log 99\n").unwrap();
    let outcome = Command::new(program("coordinator"))
        .args(["--state-dir", text(&state.join("event-log"))])
        .args(["--simulated-machine", text(&state.join("machine"))])
        .args(["--policy-hash", &"00".repeat(32)])
        .args([
            "--user-listen",
            "127.0.0.1:0",
            "--mesh-listen",
            "127.0.0.1:0",
            "--probe-listen",
            "127.0.0.1:0",
        ])
        .output()
        .unwrap();
    assert!(!outcome.status.success());
    assert!(stderr(&outcome).contains("contrast-event-log 99"), "{}", stderr(&outcome));
}

#[test]
fn options_come_from_a_file_unless_a_flag_gives_them() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("coordinator.toml");
    let run = |content: &str, extra: &[&str]| {
        fs::write(&config, content).unwrap();
        Command::new(program("coordinator")).args(["--config", text(&config)]).args(extra).output().unwrap()
    };
    let policy = "00".repeat(32);
    let content =
        format!("state-dir = \"nowhere\"\npolicy-hash = \"{policy}\"\nsimulated-machine = \"from-file\"\n");
    assert!(stderr(&run(&content, &[])).contains("from-file/vcek.der"));
    assert!(stderr(&run(&content, &["--simulated-machine", "from-flag"])).contains("from-flag/vcek.der"));
    assert!(stderr(&run("stat-dir = 1\n", &[])).contains("unknown option \"stat-dir\""));

    let options = "manifest = \"from-workspace.json\"\n[verify]\ncoordinator = \"127.0.0.1:1\"\n";
    fs::write(directory.path().join("contrast.toml"), options).unwrap();
    let workspace = Command::new(program("contrast")).arg("verify").current_dir(&directory).output().unwrap();
    assert!(stderr(&workspace).contains("cannot read from-workspace.json"), "{}", stderr(&workspace));
}

#[test]
fn an_interrupt_leaves_no_process_and_no_directory_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut run = Command::new(program("contrast"))
        .arg("dev")
        .env("TMPDIR", temporary.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(run.stderr.take().unwrap()));
    let started = lines.by_ref().map_while(Result::ok).any(|line| line.contains("Coordinator on loopback"));
    assert!(started);
    let coordinators: Vec<u32> = fs::read_dir(format!("/proc/{}/task", run.id()))
        .unwrap()
        .flat_map(|task| {
            let path = task.unwrap().path().join("children");
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
        })
        .collect();
    assert!(!coordinators.is_empty(), "a Coordinator runs");
    Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(run.wait().unwrap().code(), Some(2));
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the temporary directory is gone");
    for pid in coordinators {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z"), "process {pid} lives on: {state}");
    }
}
