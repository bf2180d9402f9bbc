//! What README and docs say is there: every block of shell commands that can run on one machine runs, and every option,
//! command, variable, metric, annotation and container that they name exists.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use chaos_tests::{deployment::Deployment, program};
use regex::Regex;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// README and everything below docs, with its name.
fn pages() -> Vec<(String, String)> {
    let output = Command::new("git").args(["ls-files", "*.md"]).current_dir(repository()).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    let names = names.lines().filter(|name| *name == "README.md" || name.starts_with("docs/"));
    names.map(|name| (name.to_owned(), fs::read_to_string(repository().join(name)).unwrap())).collect()
}

/// Blocks of shell commands.
fn blocks(page: &str) -> Vec<String> {
    let block = Regex::new(r"(?ms)^```sh\n(.*?)^```").unwrap();
    block.captures_iter(page).map(|found| found[1].to_owned()).collect()
}

/// Everything in code: blocks and what stands in backticks.
fn code(page: &str) -> Vec<String> {
    let span = Regex::new(r"`([^`\n]+)`").unwrap();
    let outside = Regex::new(r"(?ms)^```.*?^```").unwrap().replace_all(page, "");
    span.captures_iter(&outside).map(|found| found[1].to_owned()).chain(blocks(page)).collect()
}

/// `--help` of a program and of all commands below it, by their names.
fn helps(name: &str, path: &[String]) -> Vec<(String, String)> {
    let output = Command::new(program(name)).args(path).arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let listed =
        text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let command = Regex::new(r"^  ([a-z][a-z-]*)").unwrap();
    let below: Vec<String> = listed.filter_map(|line| Some(command.captures(line)?[1].to_owned())).collect();
    let own = [&[name.to_owned()], path].concat().join(" ");
    let mut all = vec![(own, text)];
    for sub in below.into_iter().filter(|sub| sub != "help") {
        all.extend(helps(name, &[path, &[sub]].concat()));
    }
    all
}

fn all_helps() -> Vec<(String, String)> {
    let programs = ["contrast", "coordinator", "initializer", "service-mesh", "runtime-installer"];
    programs.into_iter().flat_map(|name| helps(name, &[])).collect()
}

/// All of our sources, where names that have no `--help` must be.
fn sources() -> String {
    texts(&["*.rs", "*.rego", "*.py", "*.sh", "*.c", "test", "Makefile", "deploy/*", ".ci/*", "*.toml"])
}

/// All files of the repository with these names.
fn texts(patterns: &[&str]) -> String {
    let mut git = Command::new("git");
    let output = git.arg("ls-files").args(patterns).current_dir(repository()).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    let read = |name: &str| fs::read_to_string(repository().join(name)).unwrap_or_default();
    names.lines().map(read).collect()
}

/// Options of programs that are not ours.
const FOREIGN: [&str; 10] = [
    "--auto-compaction-mode",
    "--auto-compaction-retention",
    "--bench",
    "--bins",
    "--from-file",
    "--locked",
    "--post-renderer-args",
    "--release",
    "--remap-path-prefix",
    "--workspace",
];

#[test]
fn every_option_in_the_docs_exists() {
    let option = Regex::new(r"(?:^|[\s`(/])(--[a-z][a-z0-9-]+)").unwrap();
    let named = Regex::new(r"--[a-z][a-z0-9-]+").unwrap();
    let figures = ["load", "replica_figures", "chaos-tests"].into_iter().flat_map(|name| helps(name, &[]));
    let helps: String = all_helps().into_iter().chain(figures).map(|(_, text)| text + "\n").collect();
    let known: BTreeSet<&str> = named.find_iter(&helps).map(|found| found.as_str()).collect();
    assert!(known.len() > 150, "{known:?}");
    let scripts = texts(&["test", "Makefile", "deploy/*", ".ci/*"]);
    let mut wrong = Vec::new();
    for (page, text) in pages().iter().filter(|(page, _)| !page.starts_with("docs/spec/")) {
        for code in code(text) {
            for found in option.captures_iter(&code) {
                let name = &found[1];
                // Scripts of ours have options, too.
                if !known.contains(name) && !FOREIGN.contains(&name) && !scripts.contains(name) {
                    wrong.push(format!("{page}: {name} in {code:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_in_the_docs_exists() {
    let helps = all_helps();
    let known: BTreeSet<&str> = helps.iter().map(|(name, _)| name.as_str()).collect();
    let has_below = |name: &str| known.iter().any(|other| other.starts_with(&format!("{name} ")));
    let call = Regex::new(r"(?m)(?:^|[|(;&]\s*|^\./target/release/)contrast((?: [a-z][a-z-]*)+)").unwrap();
    let purpose = Regex::new(r"^contrast [a-z -]+ v[0-9]|^contrast deployment root").unwrap();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (page, text) in pages() {
        // What a signature or evidence is for is written alike: `contrast mesh-cert v2`.
        for code in code(&text).iter().filter(|code| !purpose.is_match(code)) {
            for found in call.captures_iter(code) {
                let mut name = "contrast".to_owned();
                for word in found[1].split_whitespace() {
                    if !has_below(&name) {
                        break; // an argument
                    }
                    name = format!("{name} {word}");
                }
                seen += 1;
                if !known.contains(name.as_str()) {
                    wrong.push(format!("{page}: `{name}`"));
                }
            }
        }
    }
    assert!(seen > 40, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_variable_metric_annotation_and_container_in_the_docs_exists() {
    let ours = sources();
    let names = |pattern: &str| {
        let pattern = Regex::new(pattern).unwrap();
        let mut found = BTreeSet::new();
        for (page, text) in pages().into_iter().filter(|(page, _)| !page.starts_with("docs/spec/")) {
            found.extend(pattern.captures_iter(&text).map(|name| (page.clone(), name[1].to_owned())));
        }
        found
    };
    let mut wrong = Vec::new();
    let variables = names(r"\b(CONTRAST_[A-Z0-9_]+|COORDINATOR_HOST|CRYPTSETUP_DEVICE)\b");
    assert!(variables.len() > 5, "{variables:?}");
    wrong.extend(variables.iter().filter(|(_, name)| !ours.contains(name.as_str())));
    let annotations = names(r"contrast\.edgeless\.systems/([a-z-]+[a-z])");
    wrong.extend(annotations.iter().filter(|(_, name)| !ours.contains(&format!("\"{name}\""))));
    let containers = names(r"-c (contrast-[a-z-]+)");
    assert!(!containers.is_empty());
    wrong.extend(containers.iter().filter(|(_, name)| !ours.contains(&format!("\"{name}\""))));
    // Metrics are put together of a prefix, a name and a unit.
    let metrics = names(r"`(contrast_[a-z_]+|coordinator_[a-z_]+|[a-z_]+_total)(?:\{[^`]*)?`");
    let suffix = Regex::new("_(total|seconds|bytes|info|bucket|count|sum)$").unwrap();
    wrong.extend(metrics.iter().filter(|(_, name)| {
        let name = name.strip_prefix("contrast_").unwrap_or(name);
        let name = name.strip_prefix("mesh_").unwrap_or(name);
        let bare = suffix.replace(name, "");
        !ours.contains(&format!("\"{bare}")) && !ours.contains(&format!("\"contrast_{bare}"))
    }));
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// What does not run here, by the beginning of a block, and why.
const ELSEWHERE: [(&str, &str); 12] = [
    (
        "cargo build --release && ./target/release/contrast dev",
        "builds everything; `contrast dev` is tried by whole_deployment.rs",
    ),
    ("./test", "runs this test"),
    ("cargo build --release --workspace --bins && ./target/release/load", "a measurement"),
    ("kubectl -n shop create configmap", "needs a cluster"),
    ("contrast runtime resources", "needs a bundle and a cluster: cli/tests/generate.rs"),
    ("kubectl kustomize", "needs images and a cluster: cli/tests/generate.rs"),
    ("# Helm 3 takes a program.", "needs Helm and a cluster: ./test cluster"),
    ("contrast generate --reference-values", "needs a bundle and images: cli/tests/generate.rs"),
    ("contrast policy explain deployment.yml", "needs images: cli/tests/generate.rs"),
    (
        "coordinator --state-dir /var/lib/contrast",
        "needs etcd with certificates: chaos-tests/tests/replicas.rs",
    ),
    ("BINARIES_ONLY=1 deploy/images/build", "builds a guest image: ./test guest"),
    ("git checkout v0.1.0", "builds a release: deploy/images/reproduce"),
];

#[test]
fn every_block_of_commands_that_can_run_here_runs() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    let set = deployment.contrast(&["set"]).unwrap();
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    // A pod that was refused, whose log stands for that of the cluster's.
    let refused = deployment.initializer(b"a policy that nobody allowed", "pods/web-0").unwrap();
    assert!(!refused.status.success());
    fs::write(deployment.path("refused.log"), &refused.stderr).unwrap();
    let programs = program("contrast").parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let (mut ran, mut elsewhere) = (0, BTreeSet::new());
    // The tutorials need a cluster, whose suite runs them whole.
    for (page, text) in pages().into_iter().filter(|(page, _)| !page.starts_with("docs/tutorials/")) {
        for block in blocks(&text) {
            if let Some((begin, _)) = ELSEWHERE.iter().find(|(begin, _)| block.starts_with(begin)) {
                elsewhere.insert(*begin);
                continue;
            }
            let block = block.replace("127.0.0.1:1314", &deployment.ports.http.to_string());
            // `contrast explain` ends with 1, because the pod was refused.
            let explains = block.contains("contrast explain");
            let script = format!("kubectl() {{ cat refused.log; }}\nset -o pipefail\n{block}");
            let mut bash = Command::new("bash");
            bash.args(["-e", "-c", &script]).current_dir(deployment.path("")).env("PATH", &path);
            let output =
                bash.env("CONTRAST_COORDINATOR", deployment.ports.user.to_string()).output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let expected = if explains { Some(1) } else { Some(0) };
            assert_eq!(output.status.code(), expected, "{page}:\n{block}\n{said}");
            assert!(!said.contains("status_code"), "{page}:\n{block}\n{said}");
            if explains {
                assert!(said.contains("not its policy"), "{said}");
            }
            ran += 1;
        }
    }
    assert!(ran >= 2, "{ran} ran");
    let gone: Vec<_> = ELSEWHERE.iter().filter(|(begin, _)| !elsewhere.contains(begin)).collect();
    assert!(gone.is_empty(), "no block begins like this any more: {gone:?}");
}
