//! The event log as its users meet it: history, audit, rollback, with the real programs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use chaos_tests::{
    command::{stderr, stdout},
    process::free_port,
    program,
};
use serde_json::Value;

/// The program that auditors copy.
#[path = "../../storage-schema/examples/auditor.rs"]
#[expect(dead_code, reason = "its main")]
mod auditor;

/// A deployment that `contrast dev` left behind, and a Coordinator over its state directory.
struct Deployment {
    directory: tempfile::TempDir,
    address: String,
    probe: String,
    mesh: String,
    policy: String,
    coordinator: Option<Child>,
}

impl Deployment {
    /// Runs `contrast dev`, which sets two manifests and recovers once, then starts and recovers a
    /// Coordinator again.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let outcome = Command::new(program("contrast"))
            .args(["dev", "--output", "json", "--state-dir", state.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(outcome.status.success(), "{}", stderr(&outcome));
        let free = || format!("127.0.0.1:{}", free_port().unwrap());
        let (address, probe, mesh) = (free(), free(), free());
        let manifest: Value =
            serde_json::from_slice(&fs::read(state.join("manifest.json")).unwrap()).unwrap();
        let policies = manifest["Policies"].as_object().unwrap();
        let (policy, _) = policies.iter().find(|(_, entry)| entry["Role"] == "coordinator").unwrap();
        let policy = policy.clone();
        Self { directory, address, probe, mesh, policy, coordinator: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("state").join(name)
    }

    fn start(&mut self) {
        self.start_on("event-log");
    }

    fn start_on(&mut self, directory: &str) {
        let log = fs::File::options().create(true).append(true).open(self.path("second.log")).unwrap();
        let child = Command::new(program("coordinator"))
            .arg("--state-dir")
            .arg(self.path(directory))
            .arg("--simulated-machine")
            .arg(self.path("machine"))
            .args(["--policy-hash", &self.policy, "--checkpoint-seconds", "1"])
            .args([
                "--user-listen",
                &self.address,
                "--mesh-listen",
                &self.mesh,
                "--probe-listen",
                &self.probe,
            ])
            .stderr(log)
            .spawn()
            .unwrap();
        self.coordinator = Some(child);
        let started = Instant::now();
        while std::net::TcpStream::connect(&self.probe).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "no start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("second.log")).unwrap_or_default()
    }

    fn recover(&self) -> Output {
        self.live(&[
            "recover",
            "--seed-shares",
            "seedshares.json",
            "--seedshare-owner-key",
            "seedshare-owner.pem",
        ])
    }

    /// SIGTERM, and waits for the end.
    fn stop(&mut self) {
        let mut child = self.coordinator.take().unwrap();
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    fn contrast(&self, arguments: &[&str]) -> Output {
        Command::new(program("contrast"))
            .args(arguments)
            .current_dir(self.directory.path().join("state"))
            .env_remove("CONTRAST_OUTPUT")
            .output()
            .unwrap()
    }

    /// Against the running Coordinator.
    fn live(&self, arguments: &[&str]) -> Output {
        self.contrast(&[arguments, &["-c", &self.address]].concat())
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.contrast(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn good_live(&self, arguments: &[&str]) -> String {
        self.good(&[arguments, &["-c", &self.address]].concat())
    }

    fn audit(&self, arguments: &[&str]) -> String {
        self.good_live(&[arguments, &["--auditor-key", "workload-owner.pem"]].concat())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if let Some(mut child) = self.coordinator.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn refused(output: &Output, because: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
    assert!(stderr(output).contains(because), "{}", stderr(output));
}

#[test]
fn history_and_audit_answer_live_and_offline() {
    let mut deployment = Deployment::new();
    deployment.start();
    let recovered = deployment.recover();
    assert!(recovered.status.success(), "{}", stderr(&recovered));

    // What was the manifest, when, by whom.
    let list: Value =
        serde_json::from_str(&deployment.good_live(&["history", "list", "--output", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["set_by"], "anyone (first manifest)");
    let changes = list[1]["changes"].as_str().unwrap();
    assert!(changes.starts_with("changed shop/deployment/frontend, "), "{changes}");
    let latest = deployment.good_live(&["history", "show"]);
    assert_eq!(
        latest.trim_end().as_bytes(),
        fs::read(deployment.path("manifest.json")).unwrap().trim_ascii_end()
    );
    let by_hash = &list[0]["manifest"].as_str().unwrap()[..12];
    let first = deployment.good_live(&["history", "show", by_hash]);
    assert!(!first.contains("svc.cluster.local") && latest.contains("svc.cluster.local"));
    let between = list[0]["at"].as_str().unwrap();
    assert_eq!(deployment.good_live(&["history", "at", between]), first);
    assert_eq!(deployment.good_live(&["history", "at", "now"]), latest);
    refused(&deployment.live(&["history", "at", "2020-01-01"]), "no manifest was in force");
    let diff = deployment.good_live(&["history", "diff", "1"]);
    assert!(
        diff.contains("~ workload shop/deployment/frontend") && diff.contains("+ SANs: frontend.shop.svc"),
        "{diff}"
    );
    let policies = deployment.good_live(&["history", "show", "--policies"]);
    assert!(policies.contains("# policy "), "{policies}");
    let hits = deployment.good_live(&["history", "grep", r"orders\.shop\.svc"]);
    assert!(hits.starts_with("2: manifest:"), "{hits}");
    refused(&deployment.live(&["history", "grep", "no such text"]), "nothing in 2 manifests");
    // Where no key lies beside the manifest, there is none.
    fs::create_dir(deployment.path("public")).unwrap();
    fs::copy(deployment.path("manifest.json"), deployment.path("public/manifest.json")).unwrap();
    let public = deployment.live(&["history", "verify", "-m", "public/manifest.json"]);
    assert!(stderr(&public).contains("more streams need the key of an auditor"), "{}", stderr(&public));
    let other = ["history", "verify", "--auditor-key", "seedshare-owner.pem"];
    refused(&deployment.live(&other), "not of an auditor");

    // Certificates are for auditors.
    let without = deployment.live(&["audit", "prove", &"00".repeat(16), "-m", "public/manifest.json"]);
    refused(&without, "shown to auditors and workload owners");
    let verified = deployment.audit(&["history", "verify"]);
    assert!(verified.matches("replica-").count() >= 2, "{verified}");

    // Of an export that holds nothing but refusals, the manifests are shown all the same; the rest is not there.
    let only = ["audit", "export", "--kind", "AttestationRefused", "--out", "refusals.jsonl"];
    deployment.audit(&only);
    let filtered = deployment.good(&["history", "list", "--export", "refusals.jsonl", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&filtered).unwrap(), list);
    assert_eq!(deployment.good(&["history", "at", "now", "--export", "refusals.jsonl"]), latest);
    let whole = deployment.contrast(&["history", "verify", "--export", "refusals.jsonl"]);
    assert!(stderr(&whole).contains("was made with a filter"), "{}", stderr(&whole));
    let lines = fs::read_to_string(deployment.path("refusals.jsonl")).unwrap();
    let without_first: String = lines
        .lines()
        .filter(|line| !(line.contains("\"kind\":\"ManifestSet\"") && line.contains("\"generation\":1,")))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(without_first.len() < lines.len(), "a manifest was taken out");
    fs::write(deployment.path("without.jsonl"), without_first).unwrap();
    let tampered = deployment.contrast(&["history", "list", "--export", "without.jsonl"]);
    assert!(!tampered.status.success() && stderr(&tampered).contains("missing"), "{}", stderr(&tampered));

    // An export verifies without any Coordinator, and a changed one does not.
    deployment.audit(&["audit", "export", "--out", "audit.jsonl"]);
    let log_key = fs::read_to_string(deployment.path("checkpoint.note")).unwrap();
    let log_key = log_key.lines().next().unwrap().to_owned();
    let pinned = deployment.good(&["audit", "verify", "audit.jsonl", "--log-key", &log_key]);
    assert!(pinned.contains("certificates: evidence verified once more"), "{pinned}");
    let export = fs::read_to_string(deployment.path("audit.jsonl")).unwrap();
    let lines: Vec<&str> = export.lines().collect();
    let place =
        |kind: &str| lines.iter().position(|line| line.contains(&format!("\"kind\":\"{kind}\""))).unwrap();
    let issued: Value = serde_json::from_str(lines[place("CertificateIssued")]).unwrap();
    let tampered = |name: &str, lines: &[String], because: &str| {
        fs::write(deployment.path(name), lines.join("\n") + "\n").unwrap();
        refused(&deployment.contrast(&["audit", "verify", name, "--log-key", &log_key]), because);
    };
    let own_tool = |name: &str| auditor::audit(&deployment.path(name), log_key.parse().unwrap());
    let counted = own_tool("audit.jsonl").unwrap();
    assert!(counted.contains(issued["fact"]["policy"].as_str().unwrap()), "{counted}");
    let with = |at: usize, line: String| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        lines[at] = line;
        lines
    };
    let at = place("AttestationRefused");
    tampered("t1", &with(at, lines[at].replace("127.0.0.1", "127.0.0.2")), "is not what was signed");
    let at = place("ManifestSet");
    let raw = serde_json::from_str::<Value>(lines[at]).unwrap()["raw"].as_str().unwrap().to_owned();
    let other =
        serde_json::from_str::<Value>(lines[at + 1]).unwrap()["raw"].as_str().unwrap_or("AAAA").to_owned();
    tampered("t2", &with(at, lines[at].replace(&raw, &other)), "the export does not verify");
    let mut without = with(0, lines[0].to_owned());
    without.remove(place("CertificateIssued"));
    tampered("t3", &without, "the header says");
    assert!(own_tool("t3").is_err());
    let blob = lines.iter().rposition(|line| line.contains("\"type\":\"blob\"")).unwrap();
    tampered("t4", &with(blob, lines[blob].replace("\"hash\":\"", "\"hash\":\"00")), "has the hash");
    tampered(
        "t5",
        &lines[..lines.len() - 1].iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(),
        "cut off",
    );

    // Filtered: what is there is proven, too. A manifest always comes along, to judge by.
    let serial = issued["fact"]["serial"].as_str().unwrap();
    deployment.audit(&["audit", "export", "--serial", serial, "--out", "one.jsonl"]);
    let one = deployment.good(&["audit", "verify", "one.jsonl", "--log-key", &log_key, "--output", "json"]);
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!((&one["certificates_verified_again"], &one["filtered"]), (&1.into(), &true.into()));
    let kinds = deployment.audit(&["audit", "export", "--kind", "AttestationRefused", "--format", "ocsf"]);
    let refusal: Value = serde_json::from_str(kinds.lines().next().unwrap()).unwrap();
    assert_eq!((&refusal["class_uid"], &refusal["status_id"]), (&3002.into(), &2.into()));
    assert_eq!(kinds.lines().count(), 1);
    let recent = deployment.audit(&["audit", "export", "--since", "1h ago", "--format", "cloudevents"]);
    assert!(recent.lines().all(|line| line.contains("\"specversion\":\"1.0\"")));

    // A proof for a third party.
    deployment.audit(&["audit", "prove", serial, "--out", "proof.json"]);
    let proven = deployment.good(&["audit", "check-proof", "proof.json", "--log-key", &log_key]);
    assert!(proven.contains("Proven: CertificateIssued"), "{proven}");
    let proof = fs::read_to_string(deployment.path("proof.json")).unwrap();
    fs::write(deployment.path("forged.json"), proof.replace("\"sequence\": ", "\"sequence\": 1")).unwrap();
    refused(
        &deployment.contrast(&["audit", "check-proof", "forged.json"]),
        "not in the log, or not at this place",
    );
    let note = deployment.good_live(&["audit", "checkpoint"]);
    assert!(note.contains("/control\n") && note.contains("\u{2014} contrast/"), "{note}");

    // Resuming adds what came since, and the whole still verifies.
    let before = fs::read_to_string(deployment.path("audit.jsonl")).unwrap();
    fs::write(deployment.path("audit.jsonl"), format!("{before}{{\"type\":\"event\", half a li")).unwrap();
    deployment.stop();
    deployment.start();
    assert!(deployment.recover().status.success());
    deployment.audit(&["audit", "export", "--out", "audit.jsonl", "--resume"]);
    let after = fs::read_to_string(deployment.path("audit.jsonl")).unwrap();
    assert!(after.starts_with(&before) && after.len() > before.len());
    assert!(after.contains("ReplicaStopped") && after.contains("\"kind\":\"Checkpoint\""));
    deployment.good(&["audit", "verify", "audit.jsonl", "--log-key", &log_key]);
    let again = deployment.contrast(&["audit", "export", "-c", &deployment.address, "--out", "audit.jsonl"]);
    assert!(stderr(&again).contains("--resume"), "{}", stderr(&again));

    // Watching: everything from the start, then from the noted position.
    let watched = deployment.audit(&["audit", "watch", "--limit", "5", "--position", "siem.position"]);
    assert!(watched.lines().count() >= 5);
    let more = deployment.audit(&["audit", "watch", "--limit", "1", "--position", "siem.position"]);
    assert!(more.lines().all(|line| !watched.contains(line)), "nothing twice");

    // Offline: a copy of the state directory, and the export.
    copy(&deployment.path("event-log"), &deployment.path("copy"));
    let in_use = deployment.contrast(&["history", "list", "--state-dir", "event-log"]);
    assert!(stderr(&in_use).contains("in use by another process"), "{}", stderr(&in_use));
    let list = deployment.good_live(&["history", "list"]);
    assert_eq!(deployment.good(&["history", "list", "--state-dir", "copy"]), list);
    assert_eq!(deployment.good(&["history", "list", "--export", "audit.jsonl"]), list);
    deployment.good(&["history", "verify", "--state-dir", "copy"]);
    refused(&deployment.contrast(&["history", "list", "--export", "t2"]), "does not verify");
}

#[test]
fn an_auditor_reads_everything_and_changes_nothing() {
    let mut deployment = Deployment::new();
    deployment.start();
    assert!(deployment.recover().status.success());
    let (pem, public) = keys::generate_workload_owner_key().unwrap();
    fs::write(deployment.path("auditor.pem"), pem.as_bytes()).unwrap();
    let with_key =
        |arguments: &[&str]| deployment.live(&[arguments, &["--auditor-key", "auditor.pem"]].concat());
    refused(&with_key(&["audit", "export"]), "not of an auditor");

    let mut manifest: Value =
        serde_json::from_slice(&fs::read(deployment.path("manifest.json")).unwrap()).unwrap();
    manifest["AuditorPubKeys"] = vec![hex::encode(public)].into();
    fs::write(deployment.path("manifest.json"), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    deployment.good_live(&["set", "--workload-owner-key", "workload-owner.pem"]);
    let exported = with_key(&["audit", "export", "--kind", "CertificateIssued"]);
    assert!(stdout(&exported).contains("CertificateIssued"), "{}", stderr(&exported));
    fs::write(deployment.path("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    // The next manifest changes a policy; the diff shows the line.
    let policies = manifest["Policies"].as_object().unwrap();
    let (frontend, _) = policies.iter().find(|(_, entry)| entry["SANs"][0] == "frontend").unwrap();
    let frontend = deployment.path(&format!("policies/{frontend}.toml"));
    let document = fs::read(&frontend).unwrap();
    let changed = [document.as_slice(), b"# one more rule\n"].concat();
    let (old, new) = (manifest::PolicyHash::of(&document), manifest::PolicyHash::of(&changed));
    fs::write(&frontend, changed).unwrap();
    let text = serde_json::to_string(&manifest).unwrap().replace(&old.to_string(), &new.to_string());
    fs::write(deployment.path("manifest.json"), text).unwrap();
    let set = deployment.live(&["set", "--workload-owner-key", "auditor.pem"]);
    assert_eq!(set.status.code(), Some(1), "{}", stderr(&set));
    deployment.good_live(&["set", "--workload-owner-key", "workload-owner.pem"]);
    let diff = deployment.good_live(&["history", "diff", "3", "4"]);
    assert!(diff.contains("~ workload shop/deployment/frontend"), "{diff}");
    assert!(diff.contains("    +# one more rule"), "{diff}");
    let auditors = deployment.good_live(&["history", "diff", "2", "3"]);
    assert!(auditors.contains("+ AuditorPubKeys: "), "{auditors}");
}

#[test]
fn a_rolled_back_or_foreign_history_is_refused() {
    let mut deployment = Deployment::new();
    copy(&deployment.path("event-log"), &deployment.path("older"));
    deployment.start();
    assert!(deployment.recover().status.success());
    let newer = fs::read_to_string(deployment.path("checkpoint.note")).unwrap();
    deployment.stop();

    // The whole directory of before: only who remembers can tell.
    fs::rename(deployment.path("event-log"), deployment.path("newer")).unwrap();
    fs::rename(deployment.path("older"), deployment.path("event-log")).unwrap();
    deployment.start();
    let recovered = deployment.recover();
    refused(&recovered, "shows a past");
    assert!(stderr(&recovered).contains("remembered: "), "{}", stderr(&recovered));
    assert_eq!(fs::read_to_string(deployment.path("checkpoint.note")).unwrap(), newer, "not overwritten");
    let history = deployment.live(&["history", "list"]);
    refused(&history, "shows a past");

    // Without the memory it looks fine, and then goes another way: a fork.
    let elsewhere = ["--checkpoint", "elsewhere.note"];
    let recover =
        ["recover", "--seed-shares", "seedshares.json", "--seedshare-owner-key", "seedshare-owner.pem"];
    deployment.good_live(&[recover.as_slice(), &elsewhere].concat());
    refused(&deployment.live(&["verify"]), "the Coordinator shows");
    deployment.good_live(&[["verify"].as_slice(), &elsewhere].concat());
    deployment.stop();

    // Another deployment under the same name.
    let mut other = Deployment::new();
    other.start();
    assert!(other.recover().status.success());
    fs::copy(deployment.path("checkpoint.note"), other.path("checkpoint.note")).unwrap();
    refused(&other.live(&["verify"]), "the history of another deployment");
}

/// A small file system, gone when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success(), "cannot mount a tmpfs; the tests run as root");
        Self(path)
    }

    /// Until nothing more goes in.
    fn fill(&self) {
        use std::io::Write as _;
        let mut ballast = fs::File::create(self.0.join("ballast")).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_changes_and_nothing_else() {
    let mut deployment = Deployment::new();
    let disk = SmallDisk::mount(deployment.path("small"), 32 << 20);
    copy(&deployment.path("event-log"), &disk.0.join("log"));
    deployment.start_on("small/log");
    assert!(deployment.recover().status.success());
    let mut manifest = fs::read(deployment.path("manifest.json")).unwrap();
    manifest.push(b'\n');
    fs::write(deployment.path("manifest.json"), &manifest).unwrap();
    // Policies as large as a request may be, so that the change does not fit into what is left.
    fs::write(deployment.path("policies/filler.toml"), vec![b'#'; 2 << 20]).unwrap();
    let set = ["set", "--workload-owner-key", "workload-owner.pem"];

    disk.fill();
    let full = deployment.live(&set);
    assert_eq!(full.status.code(), Some(2), "{}", stderr(&full));
    assert!(stderr(&full).contains("No space left on device"), "{}", stderr(&full));
    let pid = deployment.coordinator.as_ref().unwrap().id();
    assert!(deployment.coordinator.as_mut().unwrap().try_wait().unwrap().is_none(), "process {pid} ended");

    disk.make_room();
    let again = deployment.live(&set);
    assert!(again.status.success(), "{}", stderr(&again));
    let list: Value =
        serde_json::from_str(&deployment.good_live(&["history", "list", "--output", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3, "{list}");
    deployment.audit(&["history", "verify"]);
    deployment.stop();
}

#[test]
fn damaged_files_are_named_at_the_start() {
    let deployment = Deployment::new();
    let run = |directory: &str| {
        let mut child = Command::new(program("coordinator"))
            .arg("--state-dir")
            .arg(deployment.path(directory))
            .arg("--simulated-machine")
            .arg(deployment.path("machine"))
            .args(["--policy-hash", &deployment.policy])
            .args([
                "--user-listen",
                "127.0.0.1:0",
                "--mesh-listen",
                "127.0.0.1:0",
                "--probe-listen",
                "127.0.0.1:0",
            ])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.wait_with_output().unwrap()
    };
    // The log of another moment under the heads of this one.
    copy(&deployment.path("event-log"), &deployment.path("cut"));
    fs::File::create(deployment.path("cut/content")).unwrap();
    let outcome = run("cut");
    assert!(!outcome.status.success());
    assert!(stderr(&outcome).contains("the store lost data"), "{}", stderr(&outcome));

    copy(&deployment.path("event-log"), &deployment.path("flipped"));
    let file = deployment.path("flipped/content");
    let mut bytes = fs::read(&file).unwrap();
    // In every record: what is before a snapshot is not read at the start.
    for byte in bytes.iter_mut().step_by(50) {
        *byte ^= 0x55;
    }
    fs::write(&file, bytes).unwrap();
    let outcome = run("flipped");
    assert!(!outcome.status.success(), "damaged files were accepted");
    let text = stderr(&outcome);
    assert!(
        text.contains("flipped/content, byte ") && text.contains(", segment "),
        "file and place are named: {text}"
    );
}
