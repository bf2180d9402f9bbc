//! `contrast generate`, `contrast policy` and `contrast runtime measure` as a user runs them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const YAML: &str = "# Two pods; the first is the Coordinator.
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: coordinator, namespace: shop}
spec:
  template:
    metadata:
      annotations: {contrast.edgeless.systems/pod-role: coordinator}
    spec:
      runtimeClassName: contrast-cc
      containers:
      - {name: coordinator, image: \"registry.example/web:1\"} # stays in one line
---
apiVersion: v1
kind: Pod
metadata:
  name: web   # the shop's front
  namespace: shop
spec:
  runtimeClassName: contrast-cc
  containers:
  - name: web
    image: registry.example/web:1
    env:
    - {name: MODE, value: \"on\"}
---
kind: Service
metadata: {name: web, namespace: shop} # passes through
";

struct Workspace {
    folder: tempfile::TempDir,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Workspace {
    fn new(yaml: &str) -> Self {
        let workspace = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(workspace.path("yaml")).unwrap();
        fs::write(workspace.path("yaml/shop.yml"), yaml).unwrap();
        workspace.image(&["registry.example/web:1", "registry.example/initializer:1"]);
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An OCI layout with one image under several names.
    fn image(&self, names: &[&str]) {
        let blobs = self.path("images/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            fs::write(blobs.join(hex(bytes)), bytes).unwrap();
            json!({ "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len(), "mediaType": "" })
        };
        let layer = vec![0; 1024]; // an empty tar
        let config = json!({ "config": { "Entrypoint": ["/bin/web"], "User": "65532" }, "rootfs": { "diff_ids": [format!("sha256:{}", hex(&layer))] } });
        let manifest = json!({ "config": put(config.to_string().as_bytes()), "layers": [put(&layer)] });
        let descriptor = put(manifest.to_string().as_bytes());
        let entry = |name: &&str| {
            let mut entry = descriptor.clone();
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
            entry
        };
        let index = json!({ "manifests": names.iter().map(entry).collect::<Vec<_>>() });
        fs::write(self.path("images/index.json"), index.to_string()).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_contrast"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_remove("CONTRAST_OUTPUT")
            .env("XDG_CACHE_HOME", self.path("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn contrast(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn generate(&self, more: &[&str]) -> Output {
        let fixed = [
            "generate",
            "--offline",
            "--images",
            "images",
            "--reference-values",
            "metal-qemu-snp",
            "--initializer-image",
            "registry.example/initializer:1",
        ];
        self.contrast(&[fixed.as_slice(), more].concat(), YAML)
    }

    fn yaml(&self) -> String {
        fs::read_to_string(self.path("yaml/shop.yml")).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn succeeded(output: Output) -> Output {
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn yaml_becomes_ready_to_apply_and_a_second_run_changes_nothing() {
    let workspace = Workspace::new(YAML);
    let first = succeeded(workspace.generate(&["yaml", "--output", "json"]));
    let report: Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(report["changed_files"], json!(["yaml/shop.yml"]));
    assert!(report["to_fill_in"].to_string().contains("ReferenceValues.snp[0].MinimumTCB"), "{report}");
    let yaml = workspace.yaml();
    for kept in [
        "# Two pods",
        "# stays in one line",
        "name: web   # the shop's front",
        "{name: web, namespace: shop} # passes through",
    ] {
        assert!(yaml.contains(kept), "{kept:?} is gone:\n{yaml}");
    }
    for added in [
        "contrast-initializer",
        "mountPath: /contrast",
        "CONTRAST_WORKLOAD_OWNERS",
        "image: \"registry.example/web:1@sha256:",
        "cc_init_data",
    ] {
        assert!(yaml.contains(added), "{added:?} is missing:\n{yaml}");
    }
    // The documents are what the manifest names, and what the annotations hold.
    let manifest: Value =
        serde_json::from_slice(&fs::read(workspace.path("manifest.json")).unwrap()).unwrap();
    let policies = manifest["Policies"].as_object().unwrap();
    assert_eq!(policies.len(), 2);
    for (hash, entry) in policies {
        let document = fs::read(workspace.path("policies").join(format!("{hash}.toml"))).unwrap();
        assert_eq!(*hash, hex(&document));
        let coordinator = entry["Role"] == "coordinator";
        assert_eq!(entry["WorkloadSecretID"], if coordinator { Value::Null } else { json!("shop/pod/web") });
    }
    for key in ["workload-owner.pem", "seedshare-owner.pem"] {
        assert_eq!(fs::metadata(workspace.path(key)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    let before = fs::read(workspace.path("manifest.json")).unwrap();
    let second = succeeded(workspace.generate(&["yaml"]));
    assert!(stdout(&second).contains("No file changed"), "{}", stdout(&second));
    assert_eq!(workspace.yaml(), yaml);
    assert_eq!(fs::read(workspace.path("manifest.json")).unwrap(), before);

    // A change of the pod makes another policy; what the user wrote into the manifest stays.
    let text =
        String::from_utf8(before).unwrap().replace("\"web\"\n", "\"web\",\n        \"shop.example\"\n");
    fs::write(workspace.path("manifest.json"), text).unwrap();
    fs::write(workspace.path("yaml/shop.yml"), yaml.replace("value: \"on\"", "value: \"off\"")).unwrap();
    succeeded(workspace.generate(&["yaml"]));
    let manifest = fs::read_to_string(workspace.path("manifest.json")).unwrap();
    assert!(manifest.contains("shop.example"), "{manifest}");
}

#[test]
fn policies_of_before_go_out_until_the_owner_ends_that() {
    let workspace = Workspace::new(YAML);
    // Current and going out, of the pod `web`.
    let policies = || {
        let manifest: Value =
            serde_json::from_slice(&fs::read(workspace.path("manifest.json")).unwrap()).unwrap();
        let policies = manifest["Policies"].as_object().unwrap().clone();
        let documents = fs::read_dir(workspace.path("policies")).unwrap().count();
        assert_eq!(documents, policies.len(), "a document for each, and no other");
        let web = policies.into_iter().filter(|(_, entry)| entry["Role"] != "coordinator");
        let (out, current): (Vec<_>, Vec<_>) = web.partition(|(_, entry)| entry["GoingOut"] == true);
        let hashes =
            |list: Vec<(String, Value)>| list.into_iter().map(|(hash, _)| hash).collect::<BTreeSet<_>>();
        (hashes(current), hashes(out))
    };
    let set_mode = |from: &str, to: &str| {
        let (from, to) = (format!("name: MODE, value: \"{from}\""), format!("name: MODE, value: \"{to}\""));
        let yaml = workspace.yaml();
        assert!(yaml.contains(&from), "{yaml}");
        fs::write(workspace.path("yaml/shop.yml"), yaml.replace(&from, &to)).unwrap();
    };
    succeeded(workspace.generate(&["yaml"]));
    let (first, none) = policies();
    assert!(first.len() == 1 && none.is_empty());
    set_mode("on", "off");
    for _ in 0..2 {
        let said = stdout(&succeeded(workspace.generate(&["yaml"])));
        assert!(
            said.contains("shop/pod/web, going out") && said.contains("contrast generate --finish"),
            "{said}"
        );
        assert_eq!(policies().1, first, "the policy that pods run with is named still");
    }
    let second = policies().0;
    // Back again: what went out is what is wanted, and the other way round.
    set_mode("off", "on");
    succeeded(workspace.generate(&["yaml"]));
    assert_eq!(policies(), (first.clone(), second.clone()));
    // What is new with this run goes out, what went out before is over.
    set_mode("on", "third");
    succeeded(workspace.generate(&["yaml", "--finish"]));
    assert_eq!(policies().1, first);
    let third = policies().0;
    set_mode("third", "fourth");
    succeeded(workspace.generate(&["yaml", "--revoke"]));
    let (fourth, none) = policies();
    assert!(none.is_empty() && fourth.is_disjoint(&third));
}

#[test]
fn a_coordinators_next_version_is_named_beside_the_one_that_runs_until_it_is_not_wanted() {
    let workspace = Workspace::new(YAML);
    let coordinators = || {
        let manifest: Value =
            serde_json::from_slice(&fs::read(workspace.path("manifest.json")).unwrap()).unwrap();
        let policies = manifest["Policies"].as_object().unwrap().clone();
        let coordinators = policies.into_iter().filter(|(_, entry)| entry["Role"] == "coordinator");
        coordinators.map(|(hash, _)| hash).collect::<BTreeSet<String>>()
    };
    succeeded(workspace.generate(&["yaml"]));
    let old = coordinators();
    // As a new image would, another command makes another policy.
    let yaml =
        workspace.yaml().replacen("name: coordinator, image", "name: coordinator, args: [next], image", 1);
    fs::write(workspace.path("yaml/shop.yml"), yaml).unwrap();
    for _ in 0..2 {
        succeeded(workspace.generate(&["yaml", "--keep-coordinators"]));
        let both = coordinators();
        assert!(both.is_superset(&old) && both.len() == 2, "{both:?}");
    }
    succeeded(workspace.generate(&["yaml"]));
    assert!(coordinators().is_disjoint(&old) && coordinators().len() == 1);
}

#[test]
fn a_dry_run_shows_the_changes_and_makes_none() {
    let workspace = Workspace::new(YAML);
    let shown = stdout(&succeeded(workspace.generate(&["yaml", "--dry-run"])));
    assert!(
        shown.contains("+  - name: contrast-initializer")
            && shown.contains("-    image: registry.example/web:1"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "colour is for terminals");
    assert_eq!(workspace.yaml(), YAML);
    assert!(!workspace.path("manifest.json").exists() && !workspace.path("workload-owner.pem").exists());
}

#[test]
fn standard_input_goes_to_standard_output_and_a_combined_file_leaves_files_alone() {
    let workspace = Workspace::new(YAML);
    let output = stdout(&succeeded(workspace.generate(&["-"])));
    assert!(output.starts_with("# Two pods") && output.contains("contrast-initializer"), "{output}");
    succeeded(workspace.generate(&["yaml", "-o", "ready.yml"]));
    assert_eq!(fs::read_to_string(workspace.path("ready.yml")).unwrap(), output);
    assert_eq!(workspace.yaml(), YAML);
}

#[test]
fn a_namespace_comes_before_what_is_in_it_whatever_files_are_called() {
    let coordinator = YAML.split_once("---\n").unwrap();
    let workspace = Workspace::new(coordinator.1); // shop.yml: pod and service
    let labelled = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {team: a}\n";
    let bare = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n---\n";
    fs::write(workspace.path("yaml/zz-namespace.yml"), labelled).unwrap();
    fs::write(workspace.path("yaml/tt-coordinator.yml"), format!("{bare}{}", coordinator.0)).unwrap();

    let done = succeeded(workspace.generate(&["yaml"]));
    assert!(
        stderr(&done).contains("Namespace shop moved from yaml/zz-namespace.yml to yaml/shop.yml"),
        "{}",
        stderr(&done)
    );
    let first = workspace.yaml();
    assert!(first.starts_with(labelled) && first[labelled.len()..].starts_with("---\n"), "{first}");
    let others = ["zz-namespace", "tt-coordinator"]
        .map(|name| fs::read_to_string(workspace.path(&format!("yaml/{name}.yml"))).unwrap());
    assert!(others.iter().all(|text| !text.contains("kind: Namespace")), "{others:?}");
    let again = stdout(&succeeded(workspace.generate(&["yaml"])));
    assert!(again.contains("No file changed"), "{again}");
}

#[test]
fn as_a_post_renderer_it_keeps_everything_but_the_yaml_in_the_workspace() {
    let workspace = Workspace::new(YAML);
    let output = stdout(&succeeded(workspace.generate(&["--post-renderer", "--workspace-dir", "release"])));
    assert!(output.contains("contrast-initializer") && output.contains("cc_init_data"), "{output}");
    assert!(workspace.path("release/manifest.json").exists());
    assert!(workspace.path("release/workload-owner.pem").exists());
    assert_eq!(workspace.yaml(), YAML);
    let both = workspace.generate(&["--post-renderer", "yaml"]);
    assert!(stderr(&both).contains("cannot be used with"), "{}", stderr(&both));
}

#[test]
fn values_of_secrets_are_not_published_unless_somebody_says_so() {
    let env = "env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: pg, key: word}}}]\n    \
               envFrom: [{prefix: AWS_, secretRef: {name: pg}}]";
    let yaml = YAML.replace("env:\n    - {name: MODE, value: \"on\"}", env);
    let secret = "kind: Secret\nmetadata: {name: pg, namespace: shop}\nstringData: {word: hunter2}\n";
    let workspace = Workspace::new(&format!("{yaml}---\n{secret}"));
    let refused = workspace.generate(&["yaml"]);
    assert_eq!(refused.status.code(), Some(1));
    for said in [
        "2 values of Kubernetes Secrets would be published",
        "yaml/shop.yml:24: Pod \"web\": spec.containers[0].env[0].valueFrom.secretKeyRef: PASSWORD would tell everybody \
         \"word\" of the Secret shop/pg",
        "AWS_word would tell everybody",
        "--publish-secrets",
    ] {
        assert!(stderr(&refused).contains(said), "{said}: {}", stderr(&refused));
    }
    assert!(!stderr(&refused).contains("hunter2") && !workspace.path("manifest.json").exists());
    succeeded(workspace.generate(&["yaml", "--publish-secrets"]));
}

#[test]
fn flags_go_before_environment_before_the_file_where_they_exclude_each_other() {
    let workspace = Workspace::new(YAML);
    fs::write(workspace.path("manifest.json"), "{}").unwrap();
    let list = |file: &str, variable: Option<&str>, flags: &[&str]| {
        fs::write(workspace.path("contrast.toml"), file).unwrap();
        let mut command = workspace.command(&[&["history", "list"], flags].concat());
        command.env_remove("CONTRAST_COORDINATOR");
        if let Some(address) = variable {
            command.env("CONTRAST_COORDINATOR", address);
        }
        let output = command.output().unwrap();
        assert!(!output.status.success(), "there is nothing to read");
        stderr(&output)
    };
    let (live, copy) = ("coordinator = \"127.0.0.1:1\"\n", "export = \"from-file.jsonl\"\n");
    let is_copy = |said: &str| assert!(said.contains(".jsonl"), "{said}");
    let is_live =
        |said: &str| assert!(!said.contains(".jsonl") && !said.contains("cannot be used"), "{said}");
    is_copy(&list(live, None, &["--export", "flag.jsonl"]));
    is_copy(&list("", Some("127.0.0.1:1"), &["--export", "flag.jsonl"]));
    is_copy(&list(copy, Some("127.0.0.1:1"), &["--export", "flag.jsonl"]));
    is_copy(&list(copy, None, &[]));
    is_live(&list(copy, None, &["--coordinator", "127.0.0.1:1"]));
    is_live(&list(copy, Some("127.0.0.1:1"), &[]));
    is_live(&list(live, None, &[]));
    assert!(list("", None, &[]).contains("Give --coordinator, --state-dir or --export"));
    let both = list(&format!("{live}{copy}"), None, &[]);
    assert!(both.contains("names the Coordinator 127.0.0.1:1 and a copy of its log"), "{both}");
}

#[test]
fn resources_say_where_the_log_is_kept_and_refuse_what_the_installer_would() {
    let workspace = Workspace::new(YAML);
    let image = format!("registry.example/x@sha256:{}", "1".repeat(64));
    let run = |line: &[&str]| workspace.contrast(&[line, &["--image", &image]].concat(), "");
    let coordinator = |more: &[&str]| {
        run(&[&["coordinator", "--runtime", "contrast-cc-metal-qemu-snp-01234567"], more].concat())
    };
    let silent = coordinator(&[]);
    assert_eq!(silent.status.code(), Some(1));
    assert!(stderr(&silent).contains("Give --storage 10Gi for a persistent volume"), "{}", stderr(&silent));
    let tiny = stderr(&coordinator(&["--storage", "10"]));
    assert!(tiny.contains("did you mean 10Gi?"), "{tiny}");
    let misspelt = stderr(&coordinator(&["--ephemeral", "--env", "CONTRAST_METRIC=1"]));
    assert!(misspelt.contains("no option CONTRAST_METRIC; is CONTRAST_METRICS meant?"), "{misspelt}");
    let own = stdout(&succeeded(coordinator(&["--ephemeral", "--namespace", "shop", "--no-namespace"])));
    assert!(!own.contains("kind: Namespace"), "{own}");
    let trial = succeeded(coordinator(&["--ephemeral"]));
    assert!(stderr(&trial).contains("gone for ever"), "{}", stderr(&trial));
    assert!(!stdout(&trial).contains("kind: Namespace"), "default is there");
    let stored = stdout(&succeeded(coordinator(&["--storage", "10Gi", "--namespace", "shop"])));
    assert!(
        stored.starts_with("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: \"shop\"\n---\n"),
        "{stored}"
    );
    let recovery = stored.split("---").find(|text| text.contains("name: coordinator-recovery")).unwrap();
    assert!(recovery.contains("port: 1314"), "{recovery}");

    let file = |path: &str| json!({ "url": "https://releases.example/x", "integrity": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "path": path });
    let folder = "/opt/edgeless/@@runtimeName@@";
    let mut files: Vec<Value> = [
        "bin/containerd-shim-contrast-cc-v2",
        "bin/qemu-system-x86_64",
        "share/kata-kernel",
        "share/rootfs.img",
    ]
    .map(|name| file(&format!("{folder}/{name}")))
    .into();
    let resources = |files: &[Value]| {
        fs::write(workspace.path("bundle.json"), json!({ "files": files }).to_string()).unwrap();
        run(&["runtime", "resources", "Metal-QEMU-SNP", "--bundle", "bundle.json"])
    };
    let lacking = resources(&files);
    assert_eq!(lacking.status.code(), Some(1), "{}", stdout(&lacking));
    let said = stderr(&lacking);
    assert!(
        said.contains("bundle.json: the configuration lists no Firmware file for Metal-QEMU-SNP"),
        "{said}"
    );
    files.push(file(&format!("{folder}/share/OVMF.fd")));
    succeeded(resources(&files));
}

#[test]
fn errors_name_file_line_and_path_and_change_nothing() {
    for (from, to, expected) in [
        (
            "image: registry.example/web:1\n    env",
            "image: registry.example/none:1\n    env",
            "yaml/shop.yml:23: spec.containers[0].image: image registry.example/none:1 was not found",
        ),
        (
            "{name: MODE, value: \"on\"}",
            "{name: MODE, value: on}",
            "yaml/shop.yml:25: Pod \"web\": spec.containers[0].env[0].value: invalid type: boolean",
        ),
        (
            "- {name: MODE, value: \"on\"}",
            "- {name: M, valueFrom: {secretKeyRef: {name: s, key: k}}}",
            "spec.containers[0].env[0].valueFrom.secretKeyRef: Secret shop/s is not among the input files",
        ),
        (
            "  containers:\n  - name: web",
            "  hostNetwork: true\n  containers:\n  - name: web",
            "spec.hostNetwork: a confidential VM shares nothing",
        ),
        (
            "  - name: web\n",
            "  - name: web\n    name: web\n",
            "yaml/shop.yml: line 23: the key \"name\" is there twice",
        ),
        ("contrast-cc", "runc", "no pod with a runtimeClassName that begins with contrast-cc"),
    ] {
        let yaml = YAML.replace(from, to);
        assert_ne!(yaml, YAML, "{from}");
        let workspace = Workspace::new(&yaml);
        let output = workspace.generate(&["yaml"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(expected), "expected {expected:?} in {}", stderr(&output));
        assert_eq!(workspace.yaml(), yaml);
    }
    let workspace = Workspace::new(YAML);
    let platform = workspace.contrast(&["generate", "yaml", "--reference-values", "Metal"], "");
    assert!(stderr(&platform).contains("Metal-QEMU-TDX"), "{}", stderr(&platform));
}

#[test]
fn a_denied_request_is_explained_by_its_fields() {
    let workspace = Workspace::new(YAML);
    succeeded(workspace.generate(&["yaml"]));
    let mut sandbox = json!({
        "sandbox_id": "1".repeat(64), "guest_hook_path": "", "kernel_modules": [], "sandbox_pidns": false,
        "storages": [{
            "driver": "ephemeral", "driver_options": [], "source": "shm", "fstype": "tmpfs",
            "options": ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
            "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": null,
        }],
    });
    let test = |request: &Value, more: &[&str]| {
        fs::write(workspace.path("request.json"), request.to_string()).unwrap();
        let fixed = ["policy", "test", "yaml", "--pod", "web", "--request", "request.json"];
        workspace.contrast(&[fixed.as_slice(), more].concat(), "")
    };
    let allowed = succeeded(test(&sandbox, &["--kind", "CreateSandbox"]));
    assert_eq!(stdout(&allowed), "1 CreateSandboxRequest allowed\n");
    // The state counts: a second sandbox is one too many.
    let twice = json!([{ "kind": "CreateSandboxRequest", "request": sandbox }, { "kind": "CreateSandboxRequest", "request": sandbox }]);
    let denied = test(&twice, &[]);
    assert_eq!(denied.status.code(), Some(1));
    assert!(stdout(&denied).contains("2 CreateSandboxRequest DENIED\n    sandbox_id"), "{}", stdout(&denied));
    sandbox["guest_hook_path"] = json!("/evil");
    let denied = stdout(&test(&sandbox, &["--kind", "CreateSandbox"]));
    assert!(denied.contains("guest_hook_path\n      found    \"/evil\"\n      expected \"\""), "{denied}");

    let several = workspace.contrast(&["policy", "test", "yaml", "--request", "request.json"], "");
    assert!(stderr(&several).contains("--pod: shop/coordinator, shop/web"), "{}", stderr(&several));
}

#[test]
fn policies_are_put_into_words_and_compared() {
    let workspace = Workspace::new(YAML);
    succeeded(workspace.generate(&["yaml"]));
    let words = stdout(&succeeded(workspace.contrast(&["policy", "explain", "yaml"], "")));
    for expected in [
        "shop/web (",
        "runs        /bin/web",
        "as          user 65532",
        "env         MODE=on",
        "after       pause contrast-initializer",
        "Everything else is denied.",
    ] {
        assert!(words.contains(expected), "{expected:?} in {words}");
    }
    fs::copy(workspace.path("yaml/shop.yml"), workspace.path("before.yml")).unwrap();
    let changed = workspace.yaml().replace("value: \"on\"", "value: \"off\"");
    fs::write(workspace.path("yaml/shop.yml"), changed).unwrap();
    fs::write(workspace.path("settings.json"), r#"{"requests":{"ReadStreamRequest":true}}"#).unwrap();
    succeeded(workspace.generate(&["yaml", "--settings", "settings.json"]));
    let diff =
        stdout(&succeeded(workspace.contrast(&["policy", "diff", "before.yml", "yaml", "--pod", "web"], "")));
    assert!(diff.contains("containers.web.OCI.Process.Env") && diff.contains("MODE=off"), "{diff}");
    assert!(diff.contains("request_defaults.ReadStreamRequest\n  - false\n  + true"), "{diff}");
}

#[test]
fn reference_values_are_computed_from_a_bundle_and_used() {
    let workspace = Workspace::new(YAML);
    let bundle = workspace.path("bundle");
    fs::create_dir(&bundle).unwrap();
    let firmware =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/launch-digest/testdata/ovmf_AmdSev_suffix.bin");
    fs::copy(firmware, bundle.join("OVMF.fd")).unwrap();
    fs::write(bundle.join("empty"), "").unwrap();
    let launch = json!({
        "platform": "Metal-QEMU-SNP", "firmware": "OVMF.fd", "kernel": "empty", "initrd": "empty",
        "command_line": "console=ttyS0 loglevel=7", "cpu_models": { "Genoa": "EPYC-v4" },
    });
    fs::write(bundle.join("launch.json"), launch.to_string()).unwrap();
    let values = succeeded(workspace.contrast(&["runtime", "measure", "bundle", "--output", "json"], ""));
    let published =
        "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa";
    assert!(stdout(&values).contains(published), "{}", stdout(&values));
    fs::write(workspace.path("values.json"), &values.stdout).unwrap();
    succeeded(workspace.generate(&["yaml", "--measurements", "values.json"]));
    assert!(fs::read_to_string(workspace.path("manifest.json")).unwrap().contains(published));
    let again = succeeded(workspace.generate(&["yaml"]));
    assert!(!stderr(&again).contains("zero"), "{}", stderr(&again));
    let outside = json!({ "platform": "Metal-QEMU-SNP", "firmware": "../OVMF.fd", "cpu_models": { "Genoa": "EPYC-v4" } });
    fs::write(bundle.join("launch.json"), outside.to_string()).unwrap();
    let refused = workspace.contrast(&["runtime", "measure", "bundle"], "");
    assert!(stderr(&refused).contains("not a path inside the bundle"), "{}", stderr(&refused));
}

/// The installer's bundle: OVMF, an empty kernel, and an image whose dm-verity root is in the kernel parameters.
struct Bundle {
    folder: PathBuf,
    root: String,
}

const LAUNCH: &str = r#"{"platform": "Metal-QEMU-SNP", "vcpus": [1, 2], "cpu_models": {"Genoa": "EPYC-v4"},
    "command_line": "nr_cpus=$(vcpus) $(kernel_params)"}"#;

impl Bundle {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(folder.join("share")).unwrap();
        let firmware = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates/launch-digest/testdata/ovmf_AmdSev_suffix.bin");
        fs::copy(firmware, folder.join("share/OVMF.fd")).unwrap();
        fs::write(folder.join("share/kata-kernel"), "").unwrap();
        fs::write(folder.join("shim"), "shim").unwrap();
        let image = folder.join("share/kata.img");
        fs::write(&image, [7; 3 * 4096]).unwrap();
        let image = image.to_str().unwrap();
        let made =
            Command::new("veritysetup").args(["format", image, image, "--hash-offset", "12288"]).output();
        let made = String::from_utf8(made.unwrap().stdout).unwrap();
        let root = made.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().to_owned();
        let bundle = Self { folder, root };
        fs::write(bundle.path("launch.json"), LAUNCH).unwrap();
        bundle.configure(|_| {});
        bundle
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let at = |name: &str| format!("/opt/edgeless/@@runtimeName@@/{name}");
        let digest = Sha256::digest(fs::read(self.path("share/OVMF.fd")).unwrap());
        let integrity =
            format!("sha256-{}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, digest));
        let local = |name: &str| json!({ "url": name, "path": at(name) });
        let mut config = json!({ "qemuExtraKernelParams": format!("roothash={}", self.root), "files": [
            { "url": "share/OVMF.fd", "path": at("share/OVMF.fd"), "integrity": integrity },
            local("share/kata-kernel"), local("share/kata.img"), local("shim"),
        ] });
        change(&mut config);
        fs::write(self.path("contrast-node-install.json"), config.to_string()).unwrap();
    }
}

#[test]
fn the_installers_bundle_is_measured_as_it_is_installed() {
    let workspace = Workspace::new(YAML);
    let bundle = Bundle::new(workspace.path("bundle"));
    let measure = |more: &[&str]| workspace.contrast(&[&["runtime", "measure", "bundle"], more].concat(), "");
    let text = stdout(&succeeded(measure(&[])));
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(words[0][1..], ["Genoa", "vCPUs", "1"]);
    assert_eq!(words[2][..5], [bundle.root.as_str(), "dm-verity", "root", "of", "the"]);
    assert!(words[3][0].starts_with("contrast-cc-metal-qemu-snp-"), "{text}");
    // The same guest, every word of its command line spelled out.
    let spelled = json!({
        "platform": "Metal-QEMU-SNP", "firmware": "share/OVMF.fd", "kernel": "share/kata-kernel", "vcpus": [2],
        "cpu_models": { "Genoa": "EPYC-v4" }, "command_line": format!("nr_cpus=2 roothash={}", bundle.root),
    });
    fs::remove_file(bundle.path("contrast-node-install.json")).unwrap();
    fs::write(bundle.path("launch.json"), spelled.to_string()).unwrap();
    assert!(stdout(&succeeded(measure(&[]))).starts_with(words[1][0]));
    bundle.configure(|_| {});
    assert!(stderr(&measure(&[])).contains("take them out"));
    fs::write(bundle.path("launch.json"), LAUNCH).unwrap();

    // The manifest and the runtime class come from it; what the user filled in stays.
    let without = succeeded(workspace.generate(&["yaml"]));
    assert!(stderr(&without).contains("holds measurements that are zero"), "{}", stderr(&without));
    let manifest = || fs::read_to_string(workspace.path("manifest.json")).unwrap();
    succeeded(workspace.generate(&["yaml", "--runtime-bundle", "bundle"]));
    assert!(manifest().contains(words[0][0]) && manifest().contains(words[1][0]), "{}", manifest());
    assert!(workspace.yaml().contains(&format!("runtimeClassName: {}", words[3][0])), "{}", workspace.yaml());
    let filled = manifest().replace("\"BootloaderVersion\": null", "\"BootloaderVersion\": 9");
    fs::write(workspace.path("manifest.json"), filled).unwrap();
    succeeded(workspace.generate(&["yaml", "--runtime-bundle", "bundle"]));
    assert!(manifest().contains("\"BootloaderVersion\": 9"), "{}", manifest());
    let tdx = ["yaml", "--reference-values", "Metal-QEMU-TDX", "--runtime-bundle", "bundle"];
    let refused = stderr(&workspace.generate(&tdx));
    assert!(refused.contains("none for Metal-QEMU-TDX"), "{refused}");
}

#[test]
fn a_bundle_that_is_not_what_it_says_is_refused() {
    let workspace = Workspace::new(YAML);
    let bundle = Bundle::new(workspace.path("bundle"));
    let measure = |more: &[&str]| workspace.contrast(&[&["runtime", "measure", "bundle"], more].concat(), "");
    let refused = |expected: &str| {
        let output = measure(&[]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "expected {expected:?} in {}", stderr(&output));
    };
    let change = |name: &str, at: usize| {
        let mut bytes = fs::read(bundle.path(name)).unwrap();
        bytes[at] ^= 1;
        fs::write(bundle.path(name), bytes).unwrap();
    };
    change("share/kata.img", 5000);
    refused("its dm-verity root is not the command line's");
    change("share/kata.img", 5000);
    change("share/OVMF.fd", 0);
    refused("contrast-node-install.json says sha256-");
    change("share/OVMF.fd", 0);
    bundle.configure(|config| config["qemuExtraKernelParams"] = json!("quiet"));
    refused("names no dm-verity root of the image");
    let block = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [1; 96]);
    bundle.configure(|config| {
        config["snpIdBlock"] = json!(block);
        config["snpIdAuth"] = json!("");
    });
    refused("snpIdBlock is for the launch digest 0101");
    bundle.configure(|config| config["runtimeHandlerName"] = json!("contrast-cc-metal-qemu-snp-00000000"));
    refused("but its contents are contrast-cc-metal-qemu-snp-");

    // A command line without what the installer adds would be measured, and not be the guest's.
    bundle.configure(|_| {});
    fs::write(bundle.path("launch.json"), LAUNCH.replace("$(kernel_params)", "quiet")).unwrap();
    assert!(stderr(&measure(&[])).contains("which the installer adds"));
    fs::write(bundle.path("launch.json"), LAUNCH).unwrap();

    // Files from elsewhere are found where they were installed.
    bundle.configure(|config| config["files"][0]["url"] = json!("https://example.com/OVMF.fd"));
    assert!(stderr(&measure(&[])).contains("share/OVMF.fd is not beside"), "{}", stderr(&measure(&[])));
    fs::rename(bundle.path("share"), workspace.path("share")).unwrap();
    succeeded(measure(&["--files", "."]));
}

#[test]
fn a_bundle_says_whose_requests_policies_are_for() {
    let workspace = Workspace::new(YAML);
    let bundle = Bundle::new(workspace.path("bundle"));
    let generate =
        |more: &[&str]| workspace.generate(&[&["yaml", "--runtime-bundle", "bundle"], more].concat());
    let describe = |shim: &str, containerd: &str| {
        let more = format!(r#""shim": "{shim}", "containerd": "{containerd}", "platform""#);
        fs::write(bundle.path("launch.json"), LAUNCH.replace("\"platform\"", &more)).unwrap();
    };
    let notes = || {
        let request = json!({ "container_id": "x", "exec_id": "x", "OCI": { "Version": "1.2.1" } });
        fs::write(workspace.path("request.json"), request.to_string()).unwrap();
        let test = [
            "policy",
            "test",
            "yaml",
            "--pod",
            "web",
            "--request",
            "request.json",
            "--kind",
            "CreateContainer",
        ];
        let output = workspace.contrast(&test, "");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    // A bundle that names nobody is for either of Kata's own.
    succeeded(generate(&[]));
    assert!(!notes().contains("look like requests"), "{}", notes());

    // The shim whose configuration the installer writes.
    bundle.configure(|config| config["shim"] = json!("kata-rs"));
    succeeded(generate(&[]));
    let expected = "These look like requests of kata-go (exec_id is the container's id); the policy was made for shim kata-rs, \
                    containerd any";
    assert!(notes().contains(expected), "{}", notes());
    fs::write(workspace.path("settings.json"), r#"{"kata":{"shim":"kata-go"}}"#).unwrap();
    let refused = stderr(&generate(&["--settings", "settings.json"]));
    assert!(refused.contains("kata.shim: \"kata-rs\" is not one of kata-go"), "{refused}");
    fs::remove_file(workspace.path("settings.json")).unwrap();

    // What launch.json says, which must be the same shim.
    describe("kata-rs", "1.7");
    succeeded(generate(&[]));
    let expected = "These look like requests of containerd 2 (an OCI version from 1.2.1); the policy was made for shim kata-rs, \
                    containerd 1.7";
    assert!(notes().contains(expected), "{}", notes());
    describe("kata-go", "2");
    let output = generate(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let refused = stderr(&output);
    assert!(
        refused.contains("launch.json: shim: kata-go, but the installer writes the configuration of kata-rs"),
        "{refused}"
    );
    describe("contrast", "2");
    succeeded(generate(&[]));
    assert!(!notes().contains("look like requests"), "{}", notes());
    describe("kata", "2");
    let refused = stderr(&generate(&[]));
    assert!(
        refused.contains("kata.shim: \"kata\" is not one of any, kata-go, kata-rs, contrast"),
        "{refused}"
    );
}

#[test]
fn warnings_name_what_does_not_fit_the_platform() {
    let yaml = YAML.replace(
        "    image: registry.example/web:1\n    env",
        "    image: registry.example/web:1\n    resources: {limits: {cpu: 2500m}}\n    env",
    );
    let workspace = Workspace::new(&yaml);
    Bundle::new(workspace.path("bundle"));
    let warnings =
        |more: &[&str]| stderr(&succeeded(workspace.generate(&[&["yaml", "--dry-run"], more].concat())));
    let found = warnings(&[]);
    assert!(
        found.contains("yaml/shop.yml:20: Pod \"web\": spec.runtimeClassName: contrast-cc is a placeholder"),
        "{found}"
    );
    let found = warnings(&["--runtime-class", "contrast-cc-metal-qemu-tdx-0a1b2c3d"]);
    assert!(found.contains("is for metal-qemu-tdx, the reference values are for metal-qemu-snp"), "{found}");
    let found = warnings(&["--runtime-bundle", "bundle"]);
    assert!(
        found.contains("its VM has 4 processors (1 and the limits), and reference values are for 1, 2"),
        "{found}"
    );
    assert!(!found.contains("placeholder") && !found.contains("zero"), "{found}");
    // Rules of the user's own with a line that older agents do not read.
    let rules = workspace.contrast(&["policy", "rules"], "");
    let text = if rules.status.success() { stdout(&rules) } else { "package agent_policy\n".into() };
    fs::write(workspace.path("rules.rego"), format!("{text}\n# {}\n", "x".repeat(2000))).unwrap();
    let found = warnings(&["--policy", "rules.rego"]);
    assert!(found.contains("has 2002 bytes, and older agents deny everything"), "{found}");
}

#[test]
fn a_workspace_holds_the_files_with_default_names() {
    let workspace = Workspace::new(YAML);
    succeeded(workspace.generate(&["yaml", "--workspace-dir", "shop"]));
    let mut names: Vec<_> =
        fs::read_dir(workspace.path("shop")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["manifest.json", "policies", "seedshare-owner.pem", "workload-owner.pem"]);
    // What is named is not moved; the other commands look there too, wherever the option stands.
    succeeded(workspace.generate(&["yaml", "--workspace-dir", "shop", "--manifest", "other.json"]));
    let ready = workspace.yaml();
    assert!(workspace.path("other.json").exists());
    let set = |line: &[&str]| stderr(&workspace.contrast(line, ""));
    for line in [
        ["--workspace-dir", "nowhere", "set", "--coordinator", "127.0.0.1:1"],
        ["set", "--workspace-dir", "nowhere", "--coordinator", "127.0.0.1:1"],
    ] {
        assert!(set(&line).contains("nowhere/manifest.json"), "{}", set(&line));
    }
    // Rules and settings of the workspace are used without being named, and that is said.
    fs::write(workspace.path("shop/settings.json"), r#"{"requests": {"ReadStream": true}}"#).unwrap();
    let wrong = stderr(&workspace.generate(&["yaml", "--workspace-dir", "shop"]));
    assert!(wrong.contains("With shop/settings.json"), "{wrong}");
    assert!(wrong.contains("shop/settings.json: requests.ReadStream: there is no such setting"), "{wrong}");
    fs::remove_file(workspace.path("shop/settings.json")).unwrap();
    fs::write(workspace.path("shop/rules.rego"), "package agent_policy # the user's own\n").unwrap();
    let own = succeeded(workspace.generate(&["yaml", "--workspace-dir", "shop"]));
    assert!(stderr(&own).contains("With shop/rules.rego"), "{}", stderr(&own));
    assert!(workspace.yaml() != ready, "other rules are another policy");

    fs::write(workspace.path("contrast.toml"), "workspace-dir = \"filed\"\n").unwrap();
    let filed = set(&["set", "--coordinator", "127.0.0.1:1"]);
    assert!(filed.contains("filed/manifest.json"), "{filed}");
}

#[test]
fn what_is_set_is_what_is_deployed() {
    let workspace = Workspace::new(YAML);
    let plain = workspace.yaml();
    succeeded(workspace.generate(&["yaml"]));
    let set = |more: &[&str]| {
        let fixed = ["set", "--coordinator", "127.0.0.1:1", "--wait", "0"];
        let output = workspace.contrast(&[fixed.as_slice(), more].concat(), "");
        (output.status.code(), stderr(&output))
    };
    let (_, unfilled) = set(&["yaml"]);
    assert!(
        unfilled.contains("ReferenceValues.snp[0].TrustedMeasurement: expected the measurement"),
        "{unfilled}"
    );
    let path = workspace.path("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for entry in manifest["ReferenceValues"]["snp"].as_array_mut().unwrap() {
        entry["TrustedMeasurement"] = json!("22".repeat(48));
        let tcb =
            json!({ "BootloaderVersion": 3, "TEEVersion": 0, "SNPVersion": 8, "MicrocodeVersion": 115 });
        entry["MinimumTCB"] = tcb;
    }
    let write = |manifest: &Value| fs::write(&path, manifest.to_string()).unwrap();
    write(&manifest);
    // All that was said about files was right: only the Coordinator is not there.
    let (code, refused) = set(&["yaml"]);
    assert!(code == Some(2) && refused.contains("cannot reach the Coordinator at 127.0.0.1:1"), "{refused}");

    // One that is late is waited for; what answers there has to prove itself as ever.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut child = workspace.command(&["set", "--coordinator", &free.to_string(), "yaml"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("Waiting up to 60 s")));
    drop(TcpListener::bind(free).unwrap().accept().unwrap());
    assert!(lines.any(|line| line.contains("no attested connection")));
    assert!(!child.wait().unwrap().success());

    let mut more = manifest.clone();
    more["Policies"]["ab".repeat(32)] = json!({ "SANs": ["ghost"], "Role": "" });
    write(&more);
    let (code, ghost) = set(&["yaml"]);
    assert!(code == Some(1) && ghost.contains("abababab") && ghost.contains("(ghost)"), "{ghost}");

    let mut less = manifest.clone();
    let policies = less["Policies"].as_object_mut().unwrap();
    let web = policies.iter().find(|(_, entry)| entry["SANs"][0] == "web").unwrap().0.clone();
    policies.remove(&web);
    write(&less);
    let (code, lacks) = set(&["yaml"]);
    assert!(code == Some(1) && lacks.contains(&web) && lacks.contains("web has policy"), "{lacks}");

    write(&manifest);
    fs::write(workspace.path("yaml/shop.yml"), plain).unwrap();
    let (code, bare) = set(&["yaml"]);
    assert!(code == Some(1) && bare.contains("has no policy: run `contrast generate` first"), "{bare}");
}
