//! Evidence as its users meet it: a pod that is refused and wants to know why, an auditor who judges an
//! event once more, a site without a network.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use attestation::simulated::{SimulatedKind, SimulatedMachine};
use chaos_tests::{
    command::{Running, json, stderr, stdout, text},
    process::free_port,
    program,
};
use manifest::Timestamp;

const REPORT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/attestation/testdata/turin-v5-oak.report.bin");
const VCEK: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/attestation/testdata/turin-v5-oak.vcek.der");

/// Runs `contrast` with a cache of its own, without a network.
fn contrast(cache: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(program("contrast"))
        .args(args)
        .env("CONTRAST_ENDORSEMENT_CACHE", cache)
        .env("CONTRAST_ENDORSEMENTS_OFFLINE", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Fails when the program ends without reading it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn a_tdx_deployment_explains_what_it_accepts_and_what_it_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let (state, cache) = (directory.path().join("state"), directory.path().join("cache"));
    let mesh_port = free_port().unwrap().to_string();
    let run = contrast(
        &cache,
        &[
            "dev",
            "--platform",
            "tdx",
            "--keep",
            "--output",
            "json",
            "--state-dir",
            text(&state),
            "--mesh-port",
            &mesh_port,
        ],
        b"",
    );
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stderr(&run).contains("simulated-tdx (NOT HARDWARE)"), "{}", stderr(&run));
    let report = json(&run);
    let _running = Running(report["running_pid"].as_u64().unwrap());
    let coordinator = report["coordinator"].as_str().unwrap();
    let manifest = state.join("manifest.json");

    // An event, judged once more.
    let export = directory.path().join("audit.jsonl");
    let exported = contrast(
        &cache,
        &[
            "audit",
            "export",
            "-c",
            coordinator,
            "-m",
            text(&manifest),
            "--auditor-key",
            text(&state.join("workload-owner.pem")),
            "--out",
            text(&export),
        ],
        b"",
    );
    assert!(exported.status.success(), "{}", stderr(&exported));
    let explained =
        contrast(&cache, &["explain", text(&export), "-m", text(&manifest), "--output", "json"], b"");
    assert!(explained.status.success(), "{}", stderr(&explained));
    let explanation = json(&explained);
    assert_eq!(
        (&explanation["accepted"], &explanation["met"]),
        (&true.into(), &"ReferenceValues.tdx[0]".into())
    );
    let checks = explanation["checks"].as_array().unwrap();
    let verdict = |name: &str| checks.iter().find(|check| check["check"] == name).unwrap()["verdict"].clone();
    assert_eq!(
        (verdict("report data"), verdict("MRTD"), verdict("policy")),
        ("pass".into(), "pass".into(), "pass".into())
    );
    let wrong = contrast(
        &cache,
        &["explain", text(&export), "-m", text(&manifest), "--report-data", &"00".repeat(64)],
        b"",
    );
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stdout(&wrong).contains("✘ report data"), "{}", stdout(&wrong));

    // A pod of another machine: its own log says which check failed, and is enough to explain it.
    let other = directory.path().join("other");
    SimulatedMachine::create(&other, SimulatedKind::Tdx, Timestamp::from_millis(1_790_000_000_000)).unwrap();
    let refused = Command::new(program("initializer"))
        .args([
            "--once",
            "--coordinator",
            &format!("127.0.0.1:{mesh_port}"),
            "--simulated-machine",
            text(&other),
        ])
        .args(["--policy-hash", &"11".repeat(32), "--directory", text(&directory.path().join("pod"))])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let log = stderr(&refused);
    assert!(log.contains("failed check check=simulated root expected=one of"), "{log}");
    let explained = contrast(&cache, &["explain", "-", "-m", text(&manifest)], &refused.stderr);
    assert_eq!(explained.status.code(), Some(1));
    assert!(stdout(&explained).contains("the log of a refused pod"), "{}", stdout(&explained));
    assert!(stdout(&explained).contains("✘ simulated root"), "{}", stdout(&explained));

    // A certificate of the mesh, in words.
    let chain = fs::read_dir(state.join("pods")).unwrap().next().unwrap().unwrap();
    let chain = chain.path().join("tls-config/certChain.pem");
    let inspected = contrast(&cache, &["inspect", text(&chain)], b"");
    assert!(stdout(&inspected).contains("workload secret id"), "{}", stdout(&inspected));
}

#[test]
fn without_hardware_a_program_says_what_it_looked_for() {
    let outcome = Command::new(program("initializer"))
        .args(["--once", "--coordinator", "127.0.0.1:1", "--tsm-directory", "/nonexistent/tsm"])
        .output()
        .unwrap();
    assert!(!outcome.status.success());
    let error = stderr(&outcome);
    assert!(error.contains("/nonexistent/tsm and /dev/sev-guest"), "{error}");
}

#[test]
fn endorsements_are_carried_to_where_no_network_is() {
    let directory = tempfile::tempdir().unwrap();
    let (connected, apart) = (directory.path().join("connected"), directory.path().join("apart"));
    let empty = contrast(&apart, &["endorsements", "status"], b"");
    assert!(stdout(&empty).contains("The cache is empty"), "{}", stdout(&empty));

    let manifest = directory.path().join("manifest.json");
    let measurement = hex::encode(&fs::read(REPORT).unwrap()[0x90..0xc0]);
    let body = serde_json::json!({
        "Policies": { "11".repeat(32): { "SANs": ["coordinator"], "Role": "coordinator" } },
        "ReferenceValues": { "revocation": "when-present", "snp": [{
            "ProductName": "Turin", "TrustedMeasurement": measurement,
            "MinimumTCB": {
                "FMCVersion": 0, "BootloaderVersion": 1, "TEEVersion": 0, "SNPVersion": 2, "MicrocodeVersion": 72,
            },
        }] },
    });
    fs::write(&manifest, body.to_string()).unwrap();
    let explain = |cache: &Path, more: &[&str]| {
        contrast(cache, &[&["explain", REPORT, "-m", text(&manifest)], more].concat(), b"")
    };
    let without = explain(&apart, &[]);
    assert!(stdout(&without).contains("missing: the certificate of chip Turin-"), "{}", stdout(&without));

    // With the certificate every check is made; microcode 71 fails twice, and the policy is not listed.
    let with = explain(&connected, &["--endorsement", VCEK]);
    assert_eq!(with.status.code(), Some(1));
    let failed = stdout(&with).lines().filter(|line| line.starts_with('✘')).count();
    assert_eq!(failed, 3, "two TCBs and the policy: {}", stdout(&with));
    assert!(stdout(&with).contains("✔ report signature"), "{}", stdout(&with));

    let bundle = directory.path().join("bundle.json");
    assert!(contrast(&connected, &["endorsements", "export", text(&bundle)], b"").status.success());
    let imported = contrast(&apart, &["endorsements", "import", text(&bundle)], b"");
    assert!(imported.status.success(), "{}", stderr(&imported));
    let now_known = explain(&apart, &[]);
    assert!(stdout(&now_known).contains("✔ report signature"), "{}", stdout(&now_known));
    let status = contrast(&apart, &["endorsements", "status", "--output", "json"], b"");
    assert_eq!(json(&status)[0]["expired"], false);

    // A bundle that says something else is refused, with exit code 1; one that is none, with 2.
    let text_of = fs::read_to_string(&bundle).unwrap();
    fs::write(&bundle, text_of.replace("vcek-Turin", "vcek-Genoa")).unwrap();
    let refused = contrast(&apart, &["endorsements", "import", text(&bundle)], b"");
    assert_eq!(refused.status.code(), Some(1), "{}", stdout(&refused));
    fs::write(&bundle, "{").unwrap();
    let broken = contrast(&apart, &["endorsements", "import", text(&bundle)], b"");
    assert_eq!(broken.status.code(), Some(2));
    assert!(stderr(&broken).contains("bundle.json: not an endorsement bundle"), "{}", stderr(&broken));
}
