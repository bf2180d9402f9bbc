//! Installed, used, taken away again: on every containerd there is.

use std::{fs, path::Path};

use runtime_installer::containerd::cri::proto;

use crate::{
    bundle::Bundle,
    node::{Node, PAUSE, containerd_2, containerds},
};

const PLATFORM: &str = "Metal-QEMU-Insecure";

fn config() -> String {
    format!(
        "version = 2\n# the node's own comment\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{PAUSE}\"\n  restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"native\""
    )
}

fn name(node: &Node, bundle: &Bundle) -> String {
    node.installer(bundle.folder.path(), &["name", PLATFORM]).done().stdout.trim().to_owned()
}

/// Runs a sandbox with that handler; gives back its id.
fn run_sandbox(node: &Node, handler: &str) -> String {
    let metadata = proto::PodSandboxMetadata {
        name: "pod".into(),
        uid: "1".into(),
        namespace: "shop".into(),
        attempt: 0,
    };
    let host = proto::NamespaceMode::Node as i32;
    let options =
        proto::NamespaceOption { network: host, pid: proto::NamespaceMode::Container as i32, ipc: host };
    let security = proto::LinuxSandboxSecurityContext { namespace_options: Some(options) };
    let linux = proto::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    let config =
        proto::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() };
    let request = proto::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
    let ran = node.cri().call(async |mut client| Ok(client.run_pod_sandbox(request).await?.into_inner()));
    ran.unwrap().pod_sandbox_id
}

fn remove_sandbox(node: &Node, id: &str) {
    let (stop, remove) = (
        proto::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() },
        proto::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() },
    );
    let removed = node.cri().call(async |mut client| {
        client.stop_pod_sandbox(stop).await?;
        client.remove_pod_sandbox(remove).await?;
        Ok(())
    });
    removed.unwrap();
}

#[test]
fn a_pod_runs_through_the_handler_and_afterwards_the_node_is_as_before() {
    for binaries in containerds() {
        let node = Node::with(&binaries, &config());
        let bundle = Bundle::new("1");
        let (before, handler) = (node.snapshot(), name(&node, &bundle));
        let installed = node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
        assert!(installed.stdout.starts_with(&format!(
            "{handler} installed: files in /opt/edgeless/{handler}, entry in /etc/containerd/config.toml"
        )));
        assert_eq!(node.handlers(), [handler.as_str(), "runc"], "{}", binaries.display());

        node.import_pause();
        let id = run_sandbox(&node, &handler);
        let bundle_path = format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/options");
        let options = fs::read(node.root().join(bundle_path)).unwrap();
        let kata = format!("/opt/edgeless/{handler}/etc/configuration-qemu.toml");
        assert!(
            String::from_utf8_lossy(&options).contains(&kata),
            "the shim is told where Kata's configuration is"
        );
        node.installer(bundle.folder.path(), &["uninstall", &handler])
            .said(1, &format!("pods run with {handler}: shop/pod."));
        remove_sandbox(&node, &id);

        node.installer(bundle.folder.path(), &["uninstall", &handler]).done();
        assert_eq!(node.handlers(), ["runc"]);
        assert_eq!(node.snapshot(), before);
    }
}

#[test]
fn the_second_time_nothing_changes_and_containerd_keeps_running() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    let (before, starts) = (node.snapshot(), node.starts());
    let again = node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    assert!(again.stdout.contains("is installed already"), "{}", again.stdout);
    assert_eq!((node.snapshot(), node.starts()), (before, starts));
}

#[test]
fn a_damaged_file_is_mended_without_a_restart() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    let (before, starts) = (node.snapshot(), node.starts());
    let kernel = format!("opt/edgeless/{}/share/kata-kernel", name(&node, &bundle));
    fs::write(node.root().join(&kernel), "damaged").unwrap();
    node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    assert_eq!(node.read(&kernel), "kernel 1");
    assert_eq!((node.snapshot(), node.starts()), (before, starts));
}

#[test]
fn versions_live_side_by_side_and_leave_in_any_order() {
    let node = Node::new();
    let before = node.snapshot();
    let (old, new) = (Bundle::new("1"), Bundle::new("2"));
    for bundle in [&old, &new] {
        node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    }
    let mut handlers = vec![name(&node, &old), name(&node, &new)];
    handlers.sort();
    handlers.push("runc".into());
    assert_eq!(node.handlers(), handlers);
    node.installer(old.folder.path(), &["uninstall", &name(&node, &old)]).done();
    assert_eq!(node.handlers(), [name(&node, &new).as_str(), "runc"]);
    node.installer(new.folder.path(), &["uninstall", &name(&node, &new)]).done();
    assert_eq!(node.snapshot(), before);
}

#[test]
fn a_containerd_that_does_not_come_up_gets_its_old_file_back() {
    for binaries in containerds() {
        let node = Node::with(&binaries, &config());
        let bundle = Bundle::new("1");
        let config_before = node.read("etc/containerd/config.toml");
        node.sabotage(true);
        let mut command =
            node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &["install", PLATFORM]);
        let ran = crate::node::Ran::of(
            command.env("HEALTH_SECONDS", "12").env("CONFIG_DIR", bundle.folder.path()).output().unwrap(),
        );
        ran.said(
            1,
            "containerd did not come up with /etc/containerd/config.toml: containerd does not answer at ",
        );
        ran.said(1, "The file of before is back and containerd runs with it");
        assert_eq!(node.read("etc/containerd/config.toml"), config_before);
        assert_eq!(node.handlers(), ["runc"]);

        let starts = node.starts();
        node.installer(bundle.folder.path(), &["install", PLATFORM]).said(1, "Run with --retry to try again");
        assert_eq!(node.starts(), starts, "a pod that is started again and again restarts nothing");
        node.sabotage(false);
        node.installer(bundle.folder.path(), &["install", PLATFORM, "--retry"]).done();
        assert_eq!(node.handlers(), [name(&node, &bundle).as_str(), "runc"]);
    }
}

#[test]
fn an_entry_that_an_imported_file_hides_is_noticed_and_taken_back() {
    // containerd 1.x replaces a plugin's whole section by that of an imported file.
    let node = Node::with(Path::new("/usr/bin"), "version = 2\nimports = [\"/etc/containerd/*.toml\"]\n");
    let runtime = |name| {
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]\n  runtime_type = \"io.containerd.runc.v2\"\n"
        )
    };
    let other = format!("version = 2\n{}{}", runtime("runc"), runtime("special"));
    fs::write(node.root().join("etc/containerd/other.toml"), other).unwrap();
    let bundle = Bundle::new("1");
    let config_before = node.read("etc/containerd/config.toml");
    let mut command =
        node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &["install", PLATFORM]);
    let ran = crate::node::Ran::of(
        command.env("HEALTH_SECONDS", "12").env("CONFIG_DIR", bundle.folder.path()).output().unwrap(),
    );
    ran.said(1, "containerd runs without the handler contrast-cc-");
    assert_eq!(node.read("etc/containerd/config.toml"), config_before);
}

#[test]
fn containerd_2_gets_a_file_of_its_own_where_it_imports_a_folder() {
    let Some(binaries) = containerd_2() else { return };
    let config = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    let node = Node::with(&binaries, config);
    let (bundle, before) = (Bundle::new("1"), node.snapshot());
    let handler = name(&node, &bundle);
    node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    assert_eq!(node.handlers(), [handler.as_str(), "runc"]);
    assert_eq!(node.read("etc/containerd/config.toml"), config, "the node's own file is not touched");
    node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
    node.installer(bundle.folder.path(), &["uninstall", &handler]).done();
    assert_eq!(node.snapshot(), before);
}

#[test]
fn files_of_mixed_versions_are_joined_or_named_on_containerd_2() {
    let Some(binaries) = containerd_2() else { return };
    let folder = "imports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    for (config, other) in [
        (format!("version = 2\n{folder}"), "version = 3\n"),
        (folder.to_owned(), "version = 3\n"),
        (format!("version = 3\n{folder}"), "version = 2\n"),
        (format!("version = 2\n{folder}"), "version = 2\n"),
    ] {
        let node = Node::with(&binaries, &config);
        host_file(&node, "etc/containerd/conf.d/50-other.toml", other);
        let (bundle, before) = (Bundle::new("1"), node.snapshot());
        let handler = name(&node, &bundle);
        node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
        assert_eq!(node.handlers(), [handler.as_str(), "runc"], "{config} and {other}");
        let again = node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
        assert!(again.stdout.contains("is installed already"), "{}", again.stdout);
        node.installer(bundle.folder.path(), &["uninstall", &handler]).done();
        assert_eq!(node.snapshot(), before, "{config} and {other}");
    }
    // Not a folder of files: nothing that this program writes would be imported.
    let node = Node::with(&binaries, "version = 2\nimports = [\"/etc/containerd/other*.toml\"]\n");
    host_file(&node, "etc/containerd/other.toml", "version = 3\n");
    let (bundle, starts) = (Bundle::new("1"), node.starts());
    node.installer(bundle.folder.path(), &["install", PLATFORM])
        .said(1, "/etc/containerd/config.toml on the node imports /etc/containerd/other.toml, which is of another version");
    assert_eq!(node.starts(), starts);
}

fn host_file(node: &Node, path: &str, text: &str) {
    let path = node.root().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn what_containerd_2_would_ignore_is_refused_before_anything_changes() {
    let Some(binaries) = containerd_2() else { return };
    let node = Node::with(&binaries, "[plugins.cri.containerd]\n  snapshotter = \"native\"\n");
    let (bundle, starts) = (Bundle::new("1"), node.starts());
    node.installer(bundle.folder.path(), &["install", PLATFORM]).said(1, "containerd config migrate");
    assert_eq!(node.starts(), starts);
}

#[test]
fn a_node_without_a_configuration_gets_one_and_loses_it_again() {
    for binaries in containerds() {
        let node = Node::with(&binaries, "");
        fs::remove_file(node.root().join("etc/containerd/config.toml")).unwrap();
        let (bundle, before) = (Bundle::new("1"), node.snapshot());
        node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
        let handler = name(&node, &bundle);
        assert_eq!(node.handlers(), [handler.as_str(), "runc"]);
        // containerd with `--config` wants the file: as a unit would, it falls back to its defaults without.
        fs::write(node.path("defaults"), "").unwrap();
        node.installer(bundle.folder.path(), &["uninstall", &handler]).done();
        assert_eq!(node.snapshot(), before);
    }
}

#[test]
fn configurations_of_every_version_work_on_every_containerd() {
    for binaries in containerds() {
        for config in [
            "",
            "# comment without an end",
            "oom_score = -500\n",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  stream_server_port = \"0\"\n",
        ] {
            let node = Node::with(&binaries, config);
            let (bundle, before) = (Bundle::new("1"), node.snapshot());
            node.installer(bundle.folder.path(), &["install", PLATFORM]).done();
            let handler = name(&node, &bundle);
            assert_eq!(node.handlers(), [handler.as_str(), "runc"], "{config:?} on {}", binaries.display());
            node.installer(bundle.folder.path(), &["uninstall", &handler]).done();
            assert_eq!(node.snapshot(), before, "{config:?}");
        }
    }
}

#[test]
fn without_a_restart_the_entry_is_written_and_containerd_left_alone() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    let starts = node.starts();
    let mut command =
        node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &["install", PLATFORM]);
    command
        .env_remove("RESTART_COMMAND")
        .env("SYSTEMD_UNIT_NAME", "")
        .env("CONFIG_DIR", bundle.folder.path());
    crate::node::Ran::of(command.output().unwrap()).done();
    assert!(node.read("etc/containerd/config.toml").contains("contrast-cc-"));
    assert_eq!((node.starts(), node.handlers()), (starts, vec!["runc".to_owned()]));
}

#[test]
fn a_missing_unit_is_named_and_nothing_changes() {
    let node = Node::new();
    let (bundle, before) = (Bundle::new("1"), node.snapshot());
    let mut command =
        node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &["install", PLATFORM]);
    command.env_remove("RESTART_COMMAND").env("CONFIG_DIR", bundle.folder.path());
    let ran = crate::node::Ran::of(command.output().unwrap());
    ran.said(2, "none of the systemd units [\"containerd.service\"] is on the node");
    assert_eq!(node.snapshot(), before);
}

#[test]
fn where_the_configuration_is_made_from_a_template_the_template_gets_the_entry() {
    let base =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/containerd/kubeadm.toml"))
            .unwrap();
    let own = "# the operator's\n{{ template \"base\" . }}\n# more\n";
    for template in [None, Some(own)] {
        let node = Node::with(Path::new("/usr/bin"), &base);
        fs::write(node.path("base"), &base).unwrap();
        if let Some(text) = template {
            fs::write(node.root().join("etc/containerd/config.toml.tmpl"), text).unwrap();
        }
        let (bundle, before) = (Bundle::new("1"), node.snapshot());
        let run = |arguments: &[&str]| {
            let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), arguments);
            command.env("CONTAINERD_CONFIG_PATH", "etc/containerd/config.toml.tmpl");
            crate::node::Ran::of(command.env("CONFIG_DIR", bundle.folder.path()).output().unwrap()).done()
        };
        run(&["install", PLATFORM]);
        let handler = name(&node, &bundle);
        assert_eq!(node.handlers(), [handler.as_str(), "runc"]);
        let again = run(&["install", PLATFORM]);
        assert!(again.stdout.contains("is installed already"), "{}", again.stdout);
        run(&["uninstall", &handler]);
        assert_eq!(node.handlers(), ["runc"]);
        let mut after = node.snapshot();
        // Made anew at each start.
        let rendered = node.root().join("etc/containerd/config.toml");
        let mut before = before;
        before.remove(&rendered);
        after.remove(&rendered);
        assert_eq!(after, before);
    }
}
