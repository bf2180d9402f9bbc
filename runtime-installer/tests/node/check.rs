//! The report about a node.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::node::{Node, Ran};

/// Makes a root look like a machine: its processor's flags, its modules' parameters, its devices.
fn machine(root: &Path, flags: &str, kernel: &str, parameters: &[&str], devices: &[&str]) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proc/cpuinfo", &format!("model name\t: A Processor\nflags\t\t: fpu {flags}\n"));
    write("proc/sys/kernel/osrelease", kernel);
    for parameter in parameters {
        write(&format!("sys/module/{parameter}"), "Y\n");
    }
    for device in devices {
        write(&format!("dev/{device}"), "");
    }
}

fn report(root: &Path, platform: &str) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtime-installer"));
    command.args(["check", platform, "--output", "json", "--host-mount"]).arg(root);
    let ran = Ran::of(command.output().unwrap());
    (ran.code, serde_json::from_str(&ran.stdout).expect("a report"))
}

/// What is missing: names and what was found.
fn missing(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let missing = findings.filter(|finding| finding["standing"] == "missing");
    missing
        .map(|finding| {
            format!("{}: {}", finding["what"].as_str().unwrap(), finding["found"].as_str().unwrap())
        })
        .collect()
}

#[test]
fn a_node_that_has_everything_is_ready() {
    let node = Node::new();
    let snp = ["kvm_amd/parameters/sev_snp"];
    machine(
        &node.root(),
        "svm sev sev_es sev_snp",
        "6.12.0",
        &snp,
        &["kvm", "vhost-vsock", "vhost-net", "sev"],
    );
    let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &["check"]);
    let ran = Ran::of(command.output().unwrap()).done();
    assert!(ran.stdout.contains("This node can run Metal-QEMU-SNP runtimes."), "{}", ran.stdout);
    assert!(ran.stdout.contains("A Processor: SEV-SNP"), "{}", ran.stdout);
}

#[test]
fn a_node_that_is_not_mounted_is_an_error_and_no_endless_search() {
    let root = tempfile::tempdir().unwrap();
    for command in [&["check"][..], &["uninstall", "contrast-cc-metal-qemu-snp-00000000"]] {
        let mut installer = Command::new(env!("CARGO_BIN_EXE_runtime-installer"));
        installer.args(command).arg("--host-mount").arg(root.path().join("nosuch"));
        let ran = Ran::of(installer.output().unwrap());
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("nosuch is no directory: in a pod the node's root"), "{}", ran.stderr);
    }
}

#[test]
fn each_thing_that_is_missing_is_named() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc/containerd")).unwrap();
    fs::write(root.path().join("etc/containerd/config.toml"), "disabled_plugins = [\"cri\"]\n").unwrap();
    machine(root.path(), "vmx hypervisor", "5.15.0", &[], &["kvm"]);
    let (code, report) = report(root.path(), "Metal-QEMU-TDX");
    assert_eq!((code, &report["ready"]), (1, &Value::Bool(false)));
    let socket = root.path().join("run/containerd/containerd.sock");
    assert_eq!(
        missing(&report),
        [
            "processor: A Processor (this node is itself a virtual machine): no TDX".to_owned(),
            "kernel support: /sys/module/kvm_intel/parameters/tdx is not there".to_owned(),
            "device: /dev/vhost-vsock is not there".to_owned(),
            "device: /dev/vhost-net is not there".to_owned(),
            "containerd's configuration: disabled_plugins has \"cri\"".to_owned(),
            "restart: none of the systemd units [\"containerd.service\"] is on the node; name the right one in \
             systemd-unit-name, or an empty list for no restart"
                .to_owned(),
            format!("containerd: containerd does not answer at {}: No such file or directory (os error 2)", socket.display()),
        ]
    );
}
