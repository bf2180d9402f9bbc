//! The node's label, on a server that answers as the Kubernetes API does.

use std::{fs, path::Path};

use crate::{
    bundle::Bundle,
    node::{Node, Ran},
    server::{Answer, Request, Server},
};

#[test]
fn the_node_is_labelled_when_the_runtime_is_ready_and_unlabelled_before_it_goes() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    let server = Server::tls(|_: &Request| -> Answer { ("200 OK", vec![], b"{}".to_vec()) });
    let account = node.path("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "secret\n").unwrap();
    fs::write(account.join("ca.crt"), &server.certificate).unwrap();
    let (host, port) = server.address.split_once(':').unwrap();
    let run = |arguments: &[&str]| {
        let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), arguments);
        command
            .env("NODE_NAME", "worker-1")
            .env("KUBERNETES_SERVICE_HOST", host)
            .env("KUBERNETES_SERVICE_PORT", port);
        Ran::of(
            command
                .env("SERVICE_ACCOUNT_DIR", &account)
                .env("CONFIG_DIR", bundle.folder.path())
                .output()
                .unwrap(),
        )
    };
    run(&["install", "Metal-QEMU-Insecure"]).done();
    let handler = node.handlers().remove(0);
    run(&["uninstall", &handler]).done();
    let requests = server.requests.lock().unwrap();
    let body = |value: &str| {
        format!(r#"{{"metadata":{{"labels":{{"contrast.edgeless.systems/{handler}":{value}}}}}}}"#)
    };
    let seen: Vec<_> = requests.iter().map(|request| request.body.as_str()).collect();
    assert_eq!(seen, [body("\"ready\""), body("null")]);
    assert_eq!(requests[0].line, "PATCH /api/v1/nodes/worker-1 HTTP/1.1");
    assert_eq!(requests[0].authorization.as_deref(), Some("Bearer secret"));
}

#[test]
fn without_the_right_to_label_the_run_fails_and_says_so() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    let server = Server::tls(|_: &Request| -> Answer { ("403 Forbidden", vec![], b"{}".to_vec()) });
    let account = node.path("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "secret").unwrap();
    fs::write(account.join("ca.crt"), &server.certificate).unwrap();
    let (host, port) = server.address.split_once(':').unwrap();
    let mut command =
        node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &["install", "Metal-QEMU-Insecure"]);
    command
        .env("NODE_NAME", "worker-1")
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port);
    let ran = Ran::of(
        command
            .env("SERVICE_ACCOUNT_DIR", &account)
            .env("CONFIG_DIR", bundle.folder.path())
            .output()
            .unwrap(),
    );
    ran.said(2, "the installer's service account needs the right to patch nodes");
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
}
