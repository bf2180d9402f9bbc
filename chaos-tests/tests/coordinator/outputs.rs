//! Success is exit code 0, and nothing else is: every command, with results that cannot be written.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use chaos_tests::{
    deployment::{Deployment, WEB},
    program,
};

use crate::{done, python, repository, run, stderr};

fn contrast(deployment: &Deployment, folder: &Path, args: &[&str], stdout: Stdio) -> Output {
    let mut contrast = Command::new(program("contrast"));
    contrast.args(args).current_dir(folder).env("NO_COLOR", "1").stdin(Stdio::null()).stdout(stdout);
    contrast.env("CONTRAST_COORDINATOR", deployment.ports.user.to_string());
    contrast.env("XDG_CACHE_HOME", deployment.path("cache")).output().unwrap()
}

/// The commands below a command that do something, as `--help` lists them.
fn leaves(path: &[String]) -> BTreeSet<String> {
    let help = run(Command::new(program("contrast")).args(path).arg("--help"));
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("    "));
    let names: Vec<String> = listed
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    match names.is_empty() {
        true => [path.join(" ")].into(),
        false => names.into_iter().flat_map(|name| leaves(&[path, &[name]].concat())).collect(),
    }
}

/// What prints something here, with arguments by which it succeeds.
fn printing(serial: &str) -> Vec<Vec<&str>> {
    [
        "verify",
        "history list",
        "history show",
        "history show --policies",
        "history diff 1",
        "history at now",
        "history grep Policies",
        "history verify",
        "status",
        "audit export",
        "audit checkpoint",
        "audit verify audit.jsonl",
        "audit check-proof proof.json",
        "audit watch --limit 1",
        "proposals list",
        "sign --latest-transition 0000000000000000000000000000000000000000000000000000000000000000",
        "set",
        "set --dry-run",
        "vouch",
        "inspect pods/web/tls-config/certChain.pem",
        "explain audit.jsonl",
        "endorsements status",
        "endorsements refresh",
        "policy settings",
        "policy explain pod.toml",
        "policy diff pod.toml pod.toml",
        "version",
        "completion bash",
        "coordinator --image x/c@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef --runtime contrast-cc-metal-qemu-snp-0a1b2c3d --storage 10Gi",
    ]
    .iter()
    .map(|line| line.split(' ').collect())
    .chain([vec!["audit", "prove", serial]])
    .collect()
}

/// Not tried with results that cannot be written, and why.
const OTHERS: [(&str, &str); 15] = [
    ("evict", "shuts a workload out for good: chaos-tests/tests/updates"),
    ("dev", "a deployment of its own: chaos-tests/tests/whole_deployment.rs"),
    ("generate", "needs images: cli/tests/generate.rs"),
    ("policy test", "needs a recorded request; prints as explain does"),
    ("recover", "a Coordinator recovers once"),
    ("proposals propose", "changes the deployment; prints as list does"),
    ("proposals show", "needs a proposal; prints as list does"),
    ("proposals approve", "changes the deployment; prints as list does"),
    ("proposals withdraw", "changes the deployment; prints as list does"),
    ("endorsements fetch", "needs the network"),
    ("endorsements export", "prints after the file; the cache here is empty"),
    ("endorsements import", "needs a bundle that a vendor signed"),
    ("runtime measure", "needs a bundle"),
    ("runtime resources", "needs a bundle; prints as coordinator does"),
    ("store migrate", "needs etcd: chaos-tests/tests/replicas.rs"),
];

fn deployment() -> (Deployment, String) {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    assert!(deployment.initializer(WEB, "pods/web").unwrap().status.success());
    let export = ["audit", "export", "--auditor-key", "workload-owner.pem", "--out", "audit.jsonl"];
    assert!(deployment.contrast(&export).unwrap().status.success());
    let export = fs::read_to_string(deployment.path("audit.jsonl")).unwrap();
    let issued = export.lines().find(|line| line.contains("\"kind\":\"CertificateIssued\"")).unwrap();
    let issued: serde_json::Value = serde_json::from_str(issued).unwrap();
    let serial = issued["fact"]["serial"].as_str().unwrap().to_owned();
    let prove = deployment.contrast(&["audit", "prove", &serial, "--out", "proof.json"]).unwrap();
    assert!(prove.status.success(), "{}", stderr(&prove));
    // A policy document for `policy`, of the tests of the crate that makes them.
    let data = "\npolicy_data := {\"sandbox\":{\"name\":{\"pattern\":\"^web$\"},\"namespace\":\"shop\"}}\npolicy_container(0) := {\"name\":\"app\"}\n";
    let document = format!(
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = '''package agent_policy\n{data}'''\n"
    );
    fs::write(deployment.path("pod.toml"), document).unwrap();
    (deployment, serial)
}

#[test]
fn results_that_cannot_be_written_are_no_success() {
    let (deployment, serial) = deployment();
    let tried = printing(&serial);
    let named = |name: &String| {
        let words: Vec<&str> = name.split(' ').collect();
        tried.iter().any(|args| args.starts_with(&words)) || OTHERS.iter().any(|(other, _)| other == name)
    };
    let forgotten: Vec<String> = leaves(&[]).into_iter().filter(|name| !named(name)).collect();
    assert!(forgotten.is_empty(), "neither tried nor listed: {forgotten:?}");

    let here = deployment.path("");
    for args in &tried {
        let name = args.join(" ");
        let good = contrast(&deployment, &here, args, Stdio::piped());
        assert!(good.status.success(), "{name}: {}", stderr(&good));
        assert!(!good.stdout.is_empty(), "{name} prints nothing");
        for form in ["text", "json"] {
            let args = [args.as_slice(), &["--output", form]].concat();
            let full = fs::File::options().write(true).open("/dev/full").unwrap();
            let failed = contrast(&deployment, &here, &args, full.into());
            assert_eq!(failed.status.code(), Some(2), "{name} > /dev/full: {}", stderr(&failed));
            assert!(stderr(&failed).contains("No space left on device"), "{name}: {}", stderr(&failed));
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let closed = contrast(&deployment, &here, &args, writer.into());
            assert_eq!(closed.status.code(), Some(2), "{name} into a closed pipe: {}", stderr(&closed));
            assert!(!stderr(&closed).contains("panicked"), "{name}: {}", stderr(&closed));
        }
    }
}

/// What has no JSON form of its own.
const OTHER_FORMS: [&str; 6] =
    ["audit export", "audit watch", "audit prove", "audit check-proof", "completion", "coordinator"];

#[test]
fn json_has_the_form_that_the_schema_says() {
    let (deployment, serial) = deployment();
    let schema = repository().join("docs/output.schema.json");
    let text = fs::read_to_string(&schema).unwrap();
    let defined: serde_json::Value = serde_json::from_str(&text).unwrap();
    for args in printing(&serial) {
        let name = args.join(" ");
        if OTHER_FORMS.iter().any(|other| name.starts_with(other)) {
            continue;
        }
        // The longest definition that the command begins with: options may have one of their own.
        let names = defined["$defs"].as_object().unwrap().keys();
        let command = names.filter(|defined| name.starts_with(*defined)).max_by_key(|defined| defined.len());
        let command = command.unwrap_or_else(|| panic!("{name} is not in {}", schema.display()));
        let args = [args.as_slice(), &["--output", "json"]].concat();
        let result = contrast(&deployment, &deployment.path(""), &args, Stdio::piped());
        assert!(result.status.success(), "{name}: {}", stderr(&result));
        let file = deployment.path("result.json");
        fs::write(&file, &result.stdout).unwrap();
        let mut check = python("python");
        check.arg(repository().join("chaos-tests/python/output.py")).arg(&schema).arg(command);
        run(check.stdin(fs::File::open(&file).unwrap()));
    }
}

/// A folder that nobody can write to, whoever he is.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn new(path: &'a Path) -> Self {
        run(Command::new("mount").arg("--bind").arg(path).arg(path));
        let made = Self(path);
        run(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(path));
        made
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn files_that_cannot_be_written_are_no_success_and_are_named() {
    let (deployment, serial) = deployment();
    let folder = deployment.path("read-only");
    fs::create_dir(&folder).unwrap();
    for name in
        ["manifest.json", "workload-owner.pem", "seedshare-owner.pem", "seedshares.json", "audit.jsonl"]
    {
        fs::copy(deployment.path(name), folder.join(name)).unwrap();
    }
    run(Command::new("cp").arg("-r").arg(deployment.path("policies")).arg(&folder));
    let _read_only = ReadOnly::new(&folder);
    let zeros = "0".repeat(64);
    for (args, file) in [
        (vec!["verify"], "checkpoint.note"),
        (vec!["verify", "--checkpoint", "../checkpoint.note"], "verify"),
        (vec!["set"], "checkpoint.note"),
        (vec!["recover"], "checkpoint.note"),
        (vec!["sign", "--latest-transition", &zeros], "signature.der"),
        (vec!["vouch", "--prepare", "root.txt", "--checkpoint", "../checkpoint.note"], "root.txt"),
        (vec!["audit", "export", "--out", "new.jsonl", "--checkpoint", "../checkpoint.note"], "new.jsonl"),
        (
            vec!["audit", "prove", &serial, "--out", "proof.json", "--checkpoint", "../checkpoint.note"],
            "proof.json",
        ),
        (vec!["history", "list"], "checkpoint.note"),
        (vec!["dev", "--state-dir", "new"], "new"),
    ] {
        let name = args.join(" ");
        let failed = contrast(&deployment, &folder, &args, Stdio::piped());
        let said = stderr(&failed);
        assert_eq!(failed.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(file) && said.contains("Read-only file system"), "{name}: {said}");
        assert!(said.contains("next: "), "{name}: {said}");
    }
}

#[test]
fn the_coordinators_last_words_are_in_its_log_and_its_exit_code_is_2() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("FORMAT"), "contrast-event-log 99").unwrap();
    let mut coordinator = Command::new(program("coordinator"));
    coordinator.arg("--state-dir").arg(&state).args(["--log-format", "json", "--insecure-evidence"]);
    coordinator.args(["--policy-hash", &"ab".repeat(32), "--user-listen", "127.0.0.1:0"]);
    coordinator.args(["--mesh-listen", "127.0.0.1:0", "--probe-listen", "127.0.0.1:0"]);
    let ended = coordinator.output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{}", stderr(&ended));
    let said = stderr(&ended);
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR", "{last}");
    assert!(last["fields"]["message"].as_str().unwrap().contains("contrast-event-log 99"), "{last}");
}
