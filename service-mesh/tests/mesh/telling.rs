//! What the mesh tells: protocols to clients, counts to Prometheus, connections to the access log; and that it gives up a
//! peer that vanished.

use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::pods::{Deployment, Network, Pod, eventually, run};

/// What OpenSSL's client is told when it offers these protocols.
fn told(pod: &Pod, address: &str, offered: &str) -> String {
    let output = pod.output("openssl", &["s_client", "-connect", address, "-alpn", offered]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("ALPN")).unwrap_or_default();
    line.trim_start_matches("ALPN protocol: ").to_owned()
}

#[test]
fn a_protocol_of_the_clients_offer_is_chosen() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _nginx = server.nginx(8081);
    let _mesh = server.mesh(&["--ingress", "web#8081#false"]);
    let outsider = network.pod();
    let address = format!("{}:8081", server.v4());
    assert_eq!(told(&outsider, &address, "h2"), "h2", "as gRPC clients demand");
    assert_eq!(told(&outsider, &address, "h2,http/1.1"), "http/1.1");
    assert_eq!(told(&outsider, &address, "postgresql"), "postgresql");
    let output = outsider.output("openssl", &["s_client", "-connect", &address]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("No ALPN negotiated"));
    // A client that speaks both gets answers from a server that speaks HTTP/1.1.
    let (ca, resolve) = (server.tls("mesh-ca.pem"), format!("web:8081:{}", server.v4()));
    let answer = outsider.curl(&["--http2", "--cacert", &ca, "--resolve", &resolve, "https://web:8081/"]);
    assert_eq!(answer, Ok(format!("hello from {}\n", server.v4())));
}

#[test]
fn known_traffic_gives_exact_counts_and_a_line_for_each_connection() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _nginx = server.nginx(8080);
    let log = server.directory().join("access.log");
    let _mesh = server.mesh_with_output(&["--access-log"], &log);
    let client = network.pod();
    deployment.initialise(&client, "frontend");
    let _client_mesh = client.mesh(&["--egress", &format!("web#127.137.0.1:8080#{}:8080", server.v4())]);
    for _ in 0..5 {
        assert!(client.curl(&["http://127.137.0.1:8080/"]).is_ok());
    }
    let outsider = network.pod();
    for _ in 0..3 {
        let (ca, resolve) = (server.tls("mesh-ca.pem"), format!("web:8080:{}", server.v4()));
        let refused = outsider.curl(&["--cacert", &ca, "--resolve", &resolve, "https://web:8080/"]);
        assert!(refused.is_err(), "{refused:?}");
    }
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    eventually("a line for each connection", || lines().len() >= 8);
    let lines = lines();
    assert_eq!(lines.len(), 8, "{lines:?}");
    let closed: Vec<&Value> = lines.iter().filter(|line| line["outcome"] == "closed").collect();
    assert_eq!(closed.len(), 5, "{lines:?}");
    let bytes = |name: &str| closed.iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
    for line in &closed {
        assert_eq!(
            (&line["way"], &line["port"], &line["peer"][0]),
            (&"ingress".into(), &"8080".into(), &"frontend".into())
        );
        assert!(line["source"].as_str().unwrap().starts_with(&client.v4().to_string()), "{line}");
        assert!(line["handshake_seconds"].as_f64().unwrap() > 0.0, "{line}");
    }
    for line in lines.iter().filter(|line| line["outcome"] == "refused") {
        assert_eq!(line["kind"], "no_certificate", "{line}");
        assert!(line["reason"].as_str().unwrap().contains("no certificate"), "{line}");
        assert!(line["source"].as_str().unwrap().starts_with(&outsider.v4().to_string()), "{line}");
    }

    let metrics = server.curl(&["http://127.0.0.1:9901/metrics"]).unwrap();
    let of = "way=\"ingress\",port=\"8080\"";
    for line in [
        format!("contrast_mesh_peer_connections_total{{{of},peer=\"frontend\"}} 5"),
        format!("contrast_mesh_handshake_seconds_count{{{of}}} 5"),
        format!("contrast_mesh_connection_seconds_count{{{of}}} 5"),
        format!("contrast_mesh_port_failures_total{{{of},reason=\"no_certificate\"}} 3"),
        format!(
            "contrast_mesh_peer_bytes_total{{{of},peer=\"frontend\",to=\"peer\"}} {}",
            bytes("bytes_to_peer")
        ),
        format!(
            "contrast_mesh_peer_bytes_total{{{of},peer=\"frontend\",to=\"application\"}} {}",
            bytes("bytes_to_application")
        ),
        "contrast_mesh_access_log_lost_total 0".to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

/// The network takes a peer away without a word, while something is under way to it.
#[test]
fn a_peer_that_vanished_with_data_in_flight_is_given_up() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "sink");
    let sink = server.inside(|| std::net::TcpListener::bind(("0.0.0.0", 8080)));
    let sink = sink.join().unwrap().unwrap();
    let _mesh = server.mesh(&[]);
    let client = network.pod();
    deployment.initialise(&client, "source");
    let _client_mesh = client.mesh(&["--egress", &format!("sink#127.137.0.1:8080#{}:8080", server.v4())]);
    let stream = client.inside(|| std::net::TcpStream::connect("127.137.0.1:8080")).join().unwrap();
    let mut stream = stream.unwrap();
    stream.write_all(b"first").unwrap();
    let (mut taken, _) = sink.accept().unwrap();
    let mut first = [0; 5];
    taken.read_exact(&mut first).unwrap();

    run("ip", &["-n", server.namespace(), "link", "set", "eth0", "down"]);
    stream.write_all(b"second").unwrap();
    let vanished = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    let ended = stream.read(&mut first);
    assert!(ended.is_err(), "a reset, no clean end: {ended:?}");
    // The kernel's own patience is a quarter of an hour.
    assert!(vanished.elapsed() < Duration::from_secs(200), "{:?}", vanished.elapsed());
}
