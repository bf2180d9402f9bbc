//! Whoever is not let in, and why.

use std::{fs, io::Read as _, net::TcpStream, process::Command, time::Duration};

use crate::{
    client,
    pods::{Deployment, Network, Pod, eventually, now},
};

/// What openssl tells about a connection to the server with these options; its request is sent along.
fn s_client(pod: &Pod, address: &str, options: &[&str]) -> String {
    let script = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 20 openssl s_client -connect {address} -ign_eof {} 2>&1",
        options.join(" ")
    );
    String::from_utf8_lossy(&pod.output("sh", &["-c", &script]).stdout).into_owned()
}

#[test]
fn whoever_has_no_good_certificate_is_refused_with_the_reason() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _nginx = server.nginx(8080);
    let mesh = server.mesh(&[]);
    let outsider = network.pod();
    let address = format!("{}:8080", server.v4());
    let ask = |writer: &Deployment, at| {
        writer.write(outsider.directory(), "frontend", at);
        let (chain, key) = (outsider.tls("certChain.pem"), outsider.tls("key.pem"));
        s_client(&outsider, &address, &["-cert", &chain, "-cert_chain", &chain, "-key", &key])
    };
    // The way in, so that the refusals below refuse for their reason.
    let served = ask(&deployment, now());
    assert!(served.contains("hello from"), "{served}");

    let none = s_client(&outsider, &address, &[]);
    assert!(none.contains("certificate required") && !none.contains("hello"), "{none}");
    let elsewhere = ask(&Deployment::new(), now());
    assert!(elsewhere.contains("unknown ca") && !elsewhere.contains("hello"), "{elsewhere}");
    let expired = ask(&deployment, now().minus(Duration::from_hours(24 * 366)));
    assert!(expired.contains("certificate expired") && !expired.contains("hello"), "{expired}");
    let old_tls = s_client(&outsider, &address, &["-tls1_2"]);
    assert!(old_tls.contains("alert protocol version") && !old_tls.contains("hello"), "{old_tls}");
    let plain = outsider.curl(&[&format!("http://{address}/")]);
    assert!(plain.is_err(), "{plain:?}");

    let metrics = server.curl(&["http://127.0.0.1:9901/metrics"]).unwrap();
    for reason in ["no_certificate", "bad_certificate", "expired"] {
        let line = format!("contrast_mesh_failures_total{{way=\"ingress\",reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{line} not in {metrics}\n{}", mesh.log());
    }
}

#[test]
fn a_server_without_a_good_certificate_is_not_spoken_to() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    let impostor = Deployment::new();
    impostor.initialise(&server, "web");
    let _nginx = server.nginx(8080);
    let _mesh = server.mesh(&["--ingress", "web#8080#false"]); // it would take anybody
    let (client, mesh) = client(&network, &deployment, &server);
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_err());
    mesh.wait_for("invalid peer certificate: UnknownIssuer");
}

#[test]
fn an_allow_list_admits_the_names_on_it_only() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _servers = [server.nginx(8080), server.nginx(8081)];
    let mesh = server.mesh(&["--peers", "8080#admin,frontend##8081#admin"]);
    let client = network.pod();
    deployment.initialise(&client, "frontend");
    let egress = [8080, 8081, 8082].map(|port| {
        let to = if port == 8082 { 8080 } else { port };
        format!("e{port}#127.137.0.1:{port}#{}:{to}", server.v4())
    });
    let client_mesh = client.mesh(&["--egress", &egress.join("##"), "--peers", "e8080#web##e8082#other"]);
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_ok(), "{}", mesh.log());
    assert!(client.curl(&["http://127.137.0.1:8081/"]).is_err());
    mesh.wait_for("the peer is [\"frontend\"], allowed here are [\"admin\"]");
    assert!(client.curl(&["http://127.137.0.1:8082/"]).is_err());
    client_mesh.wait_for("allowed here are [\"other\"]");
}

#[test]
fn under_the_root_earlier_manifests_count_and_other_deployments_do_not() {
    let (network, earlier) = (Network::new(), Deployment::new());
    let servers = [network.pod(), network.pod()];
    let client = network.pod();
    earlier.initialise(&client, "frontend");
    let newer = earlier.changed();
    let _serving = servers.each_ref().map(|server| {
        newer.initialise(server, "web");
        server.nginx(8080)
    });
    let [by_root, by_mesh_ca] = &servers;
    let [root_mesh, strict_mesh] = [by_root.mesh(&["--trust", "root"]), by_mesh_ca.mesh(&[])];
    let egress = servers
        .each_ref()
        .map(|server| format!("{0}#127.137.0.1:808{1}#{0}:8080", server.v4(), server.number()));
    let egress = egress.join("##");
    let url = |server: &Pod| format!("http://127.137.0.1:808{}/", server.number());
    let client_mesh = client.mesh(&["--egress", &egress, "--trust", "root"]);
    assert!(client.curl(&[&url(by_root)]).is_ok(), "{}{}", client_mesh.log(), root_mesh.log());
    // The client would speak to the other one, too; that one sees an earlier manifest's certificate.
    assert!(client.curl(&[&url(by_mesh_ca)]).is_err());
    strict_mesh.wait_for("UnknownIssuer");
    drop(client_mesh);

    // Seen from the client: by the mesh CA of its own manifest, the server's is not known.
    let client_mesh = client.start_mesh(&["--egress", &egress]);
    client_mesh.wait_for_times("the mesh is up", 2);
    assert!(client.curl(&[&url(by_root)]).is_err());
    client_mesh.wait_for("UnknownIssuer");
    drop(client_mesh);

    // Another deployment has another root, on either side.
    let stranger = network.pod();
    Deployment::new().initialise(&stranger, "frontend");
    let stranger_mesh = stranger.mesh(&["--egress", &egress, "--trust", "root"]);
    assert!(stranger.curl(&[&url(by_root)]).is_err());
    stranger_mesh.wait_for("UnknownIssuer");
    let address = format!("{}:8080", by_root.v4());
    let (chain, key) = (stranger.tls("certChain.pem"), stranger.tls("key.pem"));
    let refused = s_client(&stranger, &address, &["-cert", &chain, "-cert_chain", &chain, "-key", &key]);
    assert!(refused.contains("unknown ca") && !refused.contains("hello"), "{refused}");
}

#[test]
fn a_flood_from_one_source_does_not_keep_others_out() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _nginx = server.nginx(8080);
    let limits = ["--max-connections", "40", "--max-connections-per-source", "20", "--max-handshakes", "8"];
    let _mesh = server
        .mesh(&[&limits[..], &["--max-handshakes-per-source", "4", "--handshake-seconds", "600"]].concat());
    let flooder = network.pod();
    let address = (server.v4(), 8080);
    // None of them says a word.
    let flood = flooder.inside(move || (0..100).map(|_| TcpStream::connect(address)).collect::<Vec<_>>());
    let flood: Vec<_> = flood.join().unwrap();
    // The mesh may be faster than the thread that connects.
    let mut resets = flood.iter().filter(|outcome| outcome.is_err()).count();
    let flood: Vec<TcpStream> = flood.into_iter().flatten().collect();
    let reset = |stream: &TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        (&*stream).read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    };
    eventually("all but its share are turned away", || {
        resets += flood.iter().filter(|stream| reset(stream)).count();
        resets == 80
    });
    let (client, client_mesh) = client(&network, &deployment, &server);
    for _ in 0..10 {
        let answer = client.curl(&["http://127.137.0.1:8080/"]);
        assert!(answer.is_ok(), "{answer:?} {}", client_mesh.log());
    }
    let metrics = server.curl(&["http://127.0.0.1:9901/metrics"]).unwrap();
    assert!(metrics.contains("failures_total{way=\"ingress\",reason=\"too_many\"} 80"), "{metrics}");
    // Of its own share it has nothing left, not even for a good certificate.
    deployment.initialise(&flooder, "frontend");
    let (chain, key) = (flooder.tls("certChain.pem"), flooder.tls("key.pem"));
    let options = ["-cert", &chain, "-cert_chain", &chain, "-key", &key];
    let at = format!("{}:8080", server.v4());
    assert!(!s_client(&flooder, &at, &options).contains("hello"));
    drop(flood);
    eventually("it is let in again", || s_client(&flooder, &at, &options).contains("hello"));
}

#[test]
fn nothing_passes_before_the_mesh_is_up_nor_after_it_died() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    let _nginx = server.nginx(8080);
    let outsider = network.pod();
    let url = format!("http://{}:8080/", server.v4());
    let url6 = format!("http://[{}]:8080/", server.v6());
    let dropped = |when: &str| {
        for url in [&url, &url6] {
            let outcome = outsider.curl(&["--max-time", "1", url]);
            assert!(outcome.clone().is_err_and(|error| error.contains("timed out")), "{when}: {outcome:?}");
        }
    };
    assert!(outsider.curl(&[&url]).is_ok(), "without any rule the way is open");
    let deny = server.output(env!("CARGO_BIN_EXE_service-mesh"), &["deny"]);
    assert!(deny.status.success(), "{}", String::from_utf8_lossy(&deny.stderr));
    dropped("denied from the start");

    let mut mesh = server.start_mesh(&[]);
    mesh.wait_for("waiting for the initializer's certificate");
    dropped("no certificate yet");
    deployment.initialise(&server, "web");
    mesh.wait_for("the mesh is up");
    let (client, mut client_mesh) = client(&network, &deployment, &server);
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_ok());

    mesh.process.kill();
    dropped("mesh killed");
    assert!(client.curl(&["--max-time", "1", "http://127.137.0.1:8080/"]).is_err());
    let mut mesh = server.start_mesh(&[]);
    mesh.wait_for_times("the mesh is up", 2);
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_ok(), "back again");

    client_mesh.process.kill();
    let refused = client.curl(&["http://127.137.0.1:8080/"]);
    assert!(refused.unwrap_err().contains("connect"), "what the application sends goes nowhere");

    // A stop in order is no less closed.
    Command::new("kill").arg(mesh.process.0.id().to_string()).status().unwrap();
    assert!(mesh.process.0.wait().unwrap().success());
    dropped("mesh stopped");
}

#[test]
fn unlisted_ports_can_be_denied() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _servers = [server.nginx(8080), server.nginx(8081)];
    let _mesh = server.mesh(&["--unlisted-ports", "deny", "--ingress", "web#8080#mutual"]);
    let (client, _client_mesh) = client(&network, &deployment, &server);
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_ok());
    let outcome = client.curl(&["--max-time", "1", &format!("https://{}:8081/", server.v4())]);
    assert!(outcome.unwrap_err().contains("timed out"));
}

/// A program in the initializer's place.
fn initializer(pod: &Pod, script: &str) -> String {
    let path = pod.directory().join("initializer");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn the_initializer_runs_behind_the_packet_filter_and_says_how_the_container_ends() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let (pod, outsider) = (network.pod(), network.pod());
    let directory = pod.directory().display().to_string();
    // What listens while it runs is not reached from outside.
    let _nginx = pod.nginx(8080);
    let url = format!("http://{}:8080/", pod.v4());
    assert!(outsider.curl(&[&url]).is_ok());
    let program = initializer(&pod, "sleep 3; exit 3");
    let waiting = pod.start_mesh(&["--initializer", &program]);
    waiting.wait_for("waiting for the initializer's certificate");
    assert!(outsider.curl(&["--max-time", "1", &url]).unwrap_err().contains("timed out"));
    waiting.wait_for("the initializer ended without a certificate (exit status: 3)");
    drop(waiting);
    let program = initializer(&pod, "exit 3");
    let ended = pod
        .output(env!("CARGO_BIN_EXE_service-mesh"), &["--directory", &directory, "--initializer", &program]);
    assert_eq!(ended.status.code(), Some(3));

    // With a certificate the mesh goes on whatever becomes of it.
    deployment.write(&pod.directory().join("made"), "web", now());
    let program =
        initializer(&pod, &format!("cp -rp {directory}/made/tls-config {directory}; sleep 2; exit 1"));
    let mesh = pod.mesh(&["--initializer", &program]);
    mesh.wait_for("starting it again in 5s");
    assert_eq!(pod.curl(&["http://127.0.0.1:9901/ready"]), Ok("ready\n".into()), "{}", mesh.log());
}

#[test]
fn mistakes_end_the_program_with_their_name_and_leave_it_closed() {
    let network = Network::new();
    let pod = network.pod();
    let mesh = |args: &[&str]| {
        let output = pod.output(env!("CARGO_BIN_EXE_service-mesh"), args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = mesh(&["--ingress", "web#80"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("expected NAME#PORT#DISABLE_TLS"), "{text}");
    let (_, text) = mesh(&["--peers", "nobody#frontend"]);
    assert!(text.contains("\"nobody\" is neither a port nor the name of an egress entry"), "{text}");

    // Without the capability: an error, and nothing runs.
    let (user, directory) = ("65534", pod.directory().display().to_string());
    fs::set_permissions(pod.directory(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = pod.output(
        "setpriv",
        &["--reuid", user, "--clear-groups", env!("CARGO_BIN_EXE_service-mesh"), "--directory", &directory],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
}
