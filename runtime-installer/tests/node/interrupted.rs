//! Killed at any step: the next run finishes the job, and after uninstalling nothing is left.
//!
//! strace kills the installer at the n-th call of each system call that changes something, for every n until the
//! installer gets through.

use std::path::Path;

use crate::{
    bundle::Bundle,
    node::{Node, Ran, Snapshot},
};

/// Most of the files that are opened are only read: every so-many-th is enough.
const OPENED: usize = 15;

/// Runs the installer and kills it at that call; false if it got through.
fn killed(node: &Node, bundle: &Bundle, call: &str, count: usize, arguments: &[&str]) -> bool {
    let inject = format!("inject={call}:signal=SIGKILL:when={count}");
    let trace = format!("trace={call}");
    let mut command =
        node.command(Path::new("strace"), &["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
    command
        .arg(env!("CARGO_BIN_EXE_runtime-installer"))
        .args(arguments)
        .env("CONFIG_DIR", bundle.folder.path());
    let status = command.output().unwrap().status;
    !status.success()
}

fn restored(node: &Node, bundle: &Bundle, handler: &str, before: &Snapshot, what: &str) {
    node.installer(bundle.folder.path(), &["uninstall", handler]).done();
    assert_eq!(node.handlers(), ["runc"], "{what}");
    let (after, before) = (node.snapshot(), before);
    let left: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(left.is_empty(), "{what}: left over {left:?}");
    assert_eq!(after, *before, "{what}");
}

/// Kills an installation at every `stride`-th call; returns how often that was.
fn kill_installations(calls: &[&str], stride: usize) -> usize {
    let node = Node::new();
    let bundle = Bundle::small();
    let before = node.snapshot();
    let name = node.installer(bundle.folder.path(), &["name", "Metal-QEMU-Insecure"]).done().stdout;
    let install = ["install", "Metal-QEMU-Insecure"];
    let mut kills = 0;
    for call in calls {
        for count in (1..).step_by(stride) {
            let killed = killed(&node, &bundle, call, count, &install);
            kills += usize::from(killed);
            let what = format!("killed at {call} {count}");
            // A pod that runs already must be able to be replaced: containerd answers, whatever happened.
            node.until(&what, || node.health().is_some_and(|health| health.ready));
            Ran::done(node.installer(bundle.folder.path(), &install));
            assert_eq!(node.handlers(), [name.trim(), "runc"], "{what}");
            restored(&node, &bundle, name.trim(), &before, &what);
            if !killed {
                break;
            }
        }
    }
    kills
}

#[test]
fn an_installation_killed_while_it_names_things_is_finished_by_the_next_run() {
    assert!(kill_installations(&["mkdir", "rename", "unlink", "execve"], 1) > 10);
}

#[test]
fn an_installation_killed_while_it_writes_is_finished_by_the_next_run() {
    assert!(kill_installations(&["fsync"], 2) + kill_installations(&["openat"], OPENED) > 10);
}

#[test]
fn an_uninstallation_killed_anywhere_is_finished_by_the_next_run() {
    let node = Node::new();
    let bundle = Bundle::small();
    let before = node.snapshot();
    let name = node.installer(bundle.folder.path(), &["name", "Metal-QEMU-Insecure"]).done().stdout;
    for call in ["rename", "unlink", "unlinkat", "rmdir", "execve"] {
        for count in 1.. {
            node.installer(bundle.folder.path(), &["install", "Metal-QEMU-Insecure"]).done();
            let killed = killed(&node, &bundle, call, count, &["uninstall", name.trim()]);
            restored(&node, &bundle, name.trim(), &before, &format!("killed at {call} {count}"));
            if !killed {
                break;
            }
        }
    }
}
