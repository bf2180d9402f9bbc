//! Sources that lie, disks that are full, installers that meet: the node stays as it was, and the error says why.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;

use crate::{
    bundle::{Bundle, image, integrity, place},
    node::{Node, Ran},
    server::{Answer, Request, Server},
};

const INSTALL: [&str; 2] = ["install", "Metal-QEMU-Insecure"];

/// Installs a runtime with one more file; demands the refusal and an untouched node.
#[track_caller]
fn refused(node: &Node, file: serde_json::Value, code: i32, words: &str) {
    let before = node.snapshot();
    let bundle = Bundle::new("1").and(file);
    node.installer(bundle.folder.path(), &INSTALL).said(code, words);
    assert_eq!(node.snapshot(), before, "{words}");
}

#[test]
fn a_download_that_is_not_what_was_promised_leaves_no_trace() {
    let node = Node::new();
    let server = Server::plain(|request: &Request| -> Answer {
        match request.line.split(' ').nth(1).unwrap() {
            "/other" => ("200 OK", vec![], b"other".to_vec()),
            "/large" => ("200 OK", vec![], vec![0; 5000]),
            "/endless" => ("200 OK", vec!["Content-Length: 9999999999".into()], vec![0; 5000]),
            "/liar" => ("200 OK", vec!["Content-Length: 10".into()], b"short".to_vec()),
            "/moved" => ("302 Found", vec!["Location: http://127.0.0.1:1/".into()], vec![]),
            _ => ("404 Not Found", vec![], vec![]),
        }
    });
    let address = &server.address;
    let file = |name: &str| json!({ "url": format!("http://{address}/{name}"), "path": place("x"), "integrity": integrity(b"wanted"), "size": 1000 });
    let digests = format!("digest is {}, {} was expected", integrity(b"other"), integrity(b"wanted"));
    refused(&node, file("other"), 1, &digests);
    refused(&node, file("large"), 1, &format!("http://{address}/large: over 1000 bytes"));
    refused(&node, file("endless"), 1, "over 1000 bytes, the size that the configuration allows");
    refused(&node, file("liar"), 2, &format!("http://{address}/liar: "));
    refused(&node, file("missing"), 2, "the server answers 404 Not Found");
    assert_eq!(node.handlers(), ["runc"]);
}

#[test]
fn hostile_archives_leave_no_trace() {
    let node = Node::new();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind) in [("device", tar::EntryType::Block), ("link", tar::EntryType::Symlink)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        header.set_device_major(8).unwrap();
        header.set_device_minor(0).unwrap();
        builder.append_link(&mut header, name, "/etc/shadow").unwrap();
    }
    let archive = builder.into_inner().unwrap();
    let served = archive.clone();
    let server = Server::plain(move |_: &Request| -> Answer { ("200 OK", vec![], served.clone()) });
    let file = json!({ "url": format!("http://{}/x.tar", server.address), "path": place("share/x"),
        "integrity": integrity(&archive), "unpack": true });
    refused(
        &node,
        file,
        1,
        "entry \"device\" is a block device; only files, folders and symlinks are unpacked",
    );
}

#[test]
fn https_verifies_the_server_and_never_falls_back_to_http() {
    let node = Node::new();
    let server = Server::tls(|request: &Request| -> Answer {
        match request.line.contains("/moved") {
            true => ("302 Found", vec!["Location: http://127.0.0.1:1/x".into()], vec![]),
            false => ("200 OK", vec![], b"wanted".to_vec()),
        }
    });
    let file = |name: &str| json!({ "url": format!("https://{}/{name}", server.address), "path": place("x"), "integrity": integrity(b"wanted") });
    refused(&node, file("good"), 2, "certificate");
    let trusted = node.path("ca.pem");
    fs::write(&trusted, &server.certificate).unwrap();
    let with_ca = |name: &str| {
        let bundle = Bundle::new("1").and(file(name));
        node.installer(
            bundle.folder.path(),
            &[INSTALL[0], INSTALL[1], "--ca-file", trusted.to_str().unwrap()],
        )
    };
    with_ca("moved").said(2, "http");
    with_ca("good").done();
}

#[test]
fn files_come_out_of_images_and_a_registry_that_lies_is_found_out() {
    let node = Node::new();
    let image = image(&[("share/kernel-modules.img", 0o644, b"modules"), ("bin/tool", 0o755, b"tool")], "");
    let digest = image.digest().to_owned();
    let server = Server::plain(move |request: &Request| -> Answer {
        let path = request.line.split(' ').nth(1).unwrap().to_owned();
        if path.starts_with("/token") {
            return ("200 OK", vec![], br#"{"token":"secret-token"}"#.to_vec());
        }
        if request.authorization.as_deref() != Some("Bearer secret-token") {
            let host = "http://127.0.0.1"; // the port is filled in by the test below
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"{host}:PORT/token\",service=\"s\",scope=\"pull\"");
            return ("401 Unauthorized", vec![challenge], vec![]);
        }
        let blob = image.blobs.iter().find(|(digest, _)| path.ends_with(digest));
        blob.map_or(("404 Not Found", vec![], vec![]), |(_, bytes)| ("200 OK", vec![], bytes.clone()))
    });
    // A proxy that knows the address: the registry's challenge must name it.
    let inner = server.address.clone();
    let port = inner.rsplit(':').next().unwrap().to_owned();
    let front = Server::plain(move |request: &Request| -> Answer { forward(&inner, &port, request) });
    let reference = format!("oci://{}/runtime@sha256:{digest}", front.address);
    let bundle = Bundle::new("1")
        .and(json!({ "url": format!("{reference}#bin/tool"), "path": place("bin/tool"), "executable": true }))
        .and(json!({ "url": reference, "path": place("whole"), "unpack": true }));
    node.installer(bundle.folder.path(), &INSTALL).done();
    let handler = node.handlers().remove(0);
    let installed = |path: &str| node.read(&format!("opt/edgeless/{handler}/{path}"));
    assert_eq!(
        (installed("bin/tool").as_str(), installed("whole/share/kernel-modules.img").as_str()),
        ("tool", "modules")
    );

    // One file alone, for a guest that is built around it.
    let to = bundle.folder.path().join("agent");
    let fetch = |from: &str| node.installer(bundle.folder.path(), &["fetch", from, to.to_str().unwrap()]);
    fetch(&format!("{reference}#bin/tool")).done();
    assert_eq!(fs::read_to_string(&to).unwrap(), "tool");
    fetch(&reference).said(1, "#FILE names one file by its digest");
    fetch(to.to_str().unwrap()).said(1, "only oci://");

    let wrong = format!("oci://{}/runtime@sha256:{}", front.address, "0".repeat(64));
    refused(&node, json!({ "url": wrong, "path": place("w"), "unpack": true }), 2, "the server answers 404");
    let liar = Server::plain(|_: &Request| -> Answer { ("200 OK", vec![], b"{}".to_vec()) });
    let lied = format!("oci://{}/runtime@sha256:{digest}", liar.address);
    refused(&node, json!({ "url": lied, "path": place("w"), "unpack": true }), 1, "was expected");
}

/// Asks the registry, and puts its port into what it answers.
fn forward(address: &str, port: &str, request: &Request) -> Answer {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let authorization =
        request.authorization.as_ref().map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    write!(stream, "{}\r\n{authorization}\r\n", request.line).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).replace("PORT", port);
    let challenge =
        head.lines().filter(|line| line.starts_with("WWW-Authenticate")).map(str::to_owned).collect();
    let status = match head.split(' ').nth(1).unwrap() {
        "200" => "200 OK",
        "401" => "401 Unauthorized",
        _ => "404 Not Found",
    };
    (status, challenge, answer[end + 4..].to_vec())
}

#[test]
fn a_full_disk_is_said_so_and_a_run_with_room_succeeds() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    let before = node.snapshot();
    // The installer sees a small file system where runtimes go; containerd's node does not.
    let script = format!(
        "mount -t tmpfs -o size=1m none {0}/opt && {1} install Metal-QEMU-Insecure; code=$?; ls -A {0}/opt/edgeless {0}/opt 2>&1; exit $code",
        node.root().display(),
        env!("CARGO_BIN_EXE_runtime-installer")
    );
    let mut command = node.command(Path::new("unshare"), &["--mount", "sh", "-c", &script]);
    let ran = Ran::of(command.env("CONFIG_DIR", bundle.folder.path()).output().unwrap());
    ran.said(2, "bytes are needed and ");
    ran.said(2, "make room, then run again");
    assert!(!ran.stdout.contains("contrast"), "nothing is left: {}", ran.stdout);
    assert_eq!(node.snapshot(), before);
    node.installer(bundle.folder.path(), &INSTALL).done();
}

#[test]
fn a_write_that_fails_half_way_leaves_the_configuration_alone() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    let config = node.read("etc/containerd/config.toml");
    let target = node.root().join("etc/containerd/.contrast-runtime-installer.tmp");
    let arguments =
        ["-f", "-qq", "-o", "/dev/null", "-P", target.to_str().unwrap(), "-e", "inject=write:error=ENOSPC"];
    let mut command = node.command(Path::new("strace"), &arguments);
    command
        .arg(env!("CARGO_BIN_EXE_runtime-installer"))
        .args(INSTALL)
        .env("CONFIG_DIR", bundle.folder.path());
    let ran = Ran::of(command.output().unwrap());
    ran.said(2, "cannot write /etc/containerd/config.toml on the node: No space left on device");
    assert_eq!(node.read("etc/containerd/config.toml"), config);
    assert_eq!(node.handlers(), ["runc"]);
    node.installer(bundle.folder.path(), &INSTALL).done();
}

#[test]
fn installers_that_meet_take_turns() {
    let node = Node::new();
    let before = node.snapshot();
    let bundles = [Bundle::new("1"), Bundle::new("2"), Bundle::new("1")];
    let children: Vec<_> = bundles
        .iter()
        .map(|bundle| {
            let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &INSTALL);
            command.env("CONFIG_DIR", bundle.folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in children {
        Ran::of(child.wait_with_output().unwrap()).done();
    }
    assert_eq!(node.handlers().len(), 3, "two runtimes and runc");
    for handler in &node.handlers()[..2] {
        node.installer(bundles[0].folder.path(), &["uninstall", handler]).done();
    }
    assert_eq!(node.snapshot(), before);
}

#[test]
fn an_installer_that_waited_too_long_says_for_whom() {
    let node = Node::new();
    let bundle = Bundle::new("1");
    let mut holder = Command::new("flock");
    holder.arg(node.root()).args(["sh", "-c", "echo held; read x"]);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), &INSTALL);
    let ran =
        Ran::of(command.env("LOCK_SECONDS", "0").env("CONFIG_DIR", bundle.folder.path()).output().unwrap());
    ran.said(2, "another installer has been at work on this node");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    node.installer(bundle.folder.path(), &INSTALL).done();
}
