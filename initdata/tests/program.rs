//! The program, with files for disks and a command line for hardware.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use flate2::{Compression, write::GzEncoder};
use manifest::PolicyHash;
use tempfile::TempDir;

const DOCUMENT: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n\"aa.toml\" = \"a = 1\"\n";

struct Guest {
    folder: TempDir,
}

impl Guest {
    fn new() -> Self {
        let guest = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["dev", "run"] {
            fs::create_dir(guest.path(name)).unwrap();
        }
        fs::write(guest.path("dev/vda"), [0; 4096]).unwrap();
        fs::write(guest.path("dev/null-like"), b"initdata").unwrap();
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn attach(&self, name: &str, document: &str) {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(document.as_bytes()).unwrap();
        let packed = gzip.finish().unwrap();
        let disk = [&b"initdata"[..], &(packed.len() as u64).to_le_bytes(), &packed, &[0; 100]].concat();
        fs::write(self.path("dev").join(name), disk).unwrap();
    }

    fn run(&self, evidence: &[&str]) -> Output {
        let folder = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_initdata")));
        command.args(["--devices", &folder("dev"), "--directory", &folder("run")]).args(evidence);
        command.output().unwrap()
    }

    /// Runs on simulated hardware that was started for that document.
    fn started_for(&self, document: &str) -> Output {
        let hash = PolicyHash::of(document.as_bytes()).to_string();
        self.run(&["--insecure-evidence", "--policy-hash", &hash])
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn refused(guest: &Guest, output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(expected), "expected {expected:?}, got {said}");
    assert_eq!(guest.files(), Vec::<String>::new(), "nothing is handed on");
}

#[test]
fn the_measured_document_is_handed_on_and_its_disk_is_gone() {
    let guest = Guest::new();
    guest.attach("sdb", DOCUMENT);
    let output = guest.started_for(DOCUMENT);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(guest.files(), ["aa.toml", "initdata.toml", "policy.rego"]);
    assert_eq!(fs::read_to_string(guest.path("run/policy.rego")).unwrap(), "package agent_policy");
    assert_eq!(fs::read_to_string(guest.path("run/initdata.toml")).unwrap(), DOCUMENT);
    assert!(!guest.path("dev/sdb").exists() && guest.path("dev/vda").exists());
}

#[test]
fn whatever_else_the_host_attaches_is_refused() {
    let guest = Guest::new();
    refused(&guest, &guest.started_for(DOCUMENT), "no disk in");
    let more = DOCUMENT.replace("agent_policy", "agent_policy # all");
    guest.attach("vdb", &more);
    let measured = PolicyHash::of(DOCUMENT.as_bytes()).to_string();
    let expected =
        format!("has SHA-256 {}, and this guest was started for {measured}", PolicyHash::of(more.as_bytes()));
    refused(&guest, &guest.started_for(DOCUMENT), &expected);
    guest.attach("vdb", DOCUMENT);
    guest.attach("sdc", DOCUMENT);
    refused(&guest, &guest.started_for(DOCUMENT), "both begin with \"initdata\"");
    fs::remove_file(guest.path("dev/sdc")).unwrap();
    let cut = fs::read(guest.path("dev/vdb")).unwrap()[..30].to_vec();
    fs::write(guest.path("dev/vdb"), cut).unwrap();
    refused(&guest, &guest.started_for(DOCUMENT), "vdb: it announces");
    // Measured, and no policy.
    let without = DOCUMENT.replace("policy.rego", "policy.txt");
    guest.attach("vdb", &without);
    refused(&guest, &guest.started_for(&without), "there is no policy.rego");
}

#[test]
fn without_hardware_nothing_is_believed() {
    let guest = Guest::new();
    guest.attach("vdb", DOCUMENT);
    let output = guest.run(&["--tsm-directory", "/nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("makes no evidence"));
    assert!(guest.files().is_empty());
}
