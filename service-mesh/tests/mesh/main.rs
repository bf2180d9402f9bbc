//! The real mesh between network namespaces, with programs that nobody here wrote at both ends.
//! Needs root and Debian's curl, nginx, openssl and PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bytes;
mod pods;
mod refusals;
mod telling;

use pods::{Deployment, Network, Pod, eventually};

/// More connections than this machine's limit of descriptors would make it, all from one source.
const MANY: &[&str] = &["--max-connections", "50000"];

/// A pod whose mesh leads `127.137.0.1:8080` to port 8080 of the other.
fn client(network: &Network, deployment: &Deployment, server: &Pod) -> (Pod, pods::Mesh) {
    let pod = network.pod();
    deployment.initialise(&pod, "frontend");
    let v4 = format!("web#127.137.0.1:8080#{}:8080", server.v4());
    let v6 = format!("web6#[::1]:8080#[{}]:8080", server.v6());
    let mesh = pod.mesh(&[MANY, &["--egress", &format!("{v4}##{v6}")]].concat());
    (pod, mesh)
}

#[test]
fn http_goes_through_both_meshes_over_both_families() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _nginx = server.nginx(8080);
    let _mesh = server.mesh(&[]);
    let (client, mesh) = client(&network, &deployment, &server);

    // nginx says which of its addresses was asked: the one that the client's mesh connected to.
    let expected = |address| Ok(format!("hello from {address}\n"));
    assert_eq!(client.curl(&["http://127.137.0.1:8080/"]), expected(server.v4().to_string()));
    assert_eq!(client.curl(&["http://[::1]:8080/"]), expected(server.v6().to_string()));

    let metrics = client.curl(&["http://127.0.0.1:9901/metrics"]).unwrap();
    assert!(metrics.contains("contrast_mesh_connections_total{way=\"egress\"} 2"), "{metrics}");
    assert_eq!(client.curl(&["http://127.0.0.1:9901/ready"]), Ok("ready\n".into()), "{}", mesh.log());
}

#[test]
fn a_database_speaks_its_start_tls_protocol_through_the_mesh() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "database");
    let _postgres = bytes::postgres(&server);
    let _mesh = server.mesh(&[]);
    let client = network.pod();
    deployment.initialise(&client, "backend");
    let egress = format!("database#127.137.0.2:5432#{}:5432", server.v4());
    let _client_mesh = client.mesh(&["--egress", &egress]);
    for mode in ["disable", "require"] {
        let uri = format!("postgresql://postgres@127.137.0.2/postgres?sslmode={mode}");
        let query = "select sum(n), (select ssl from pg_stat_ssl where pid = pg_backend_pid()) \
                     from generate_series(1, 100000) n";
        let output = client.output("psql", &[uri.as_str(), "-XAtc", query]);
        let ssl = if mode == "require" { "t" } else { "f" };
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(answer.trim(), format!("5000050000|{ssl}"), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn ports_are_served_as_the_configuration_says() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "web");
    let _servers = [server.nginx(8080), server.nginx(8081), server.nginx(8082)];
    let _mesh = server.mesh(&["--ingress", "web#8081#false##open#8082#true"]);
    let outsider = network.pod();
    let ca = server.tls("mesh-ca.pem");
    for ip in [server.v4(), server.v6()] {
        let address = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let resolve = format!("web:8081:{address}");
        let tls = outsider.curl(&["--cacert", &ca, "--resolve", &resolve, "https://web:8081/"]);
        assert_eq!(tls, Ok(format!("hello from {ip}\n")), "TLS without a client certificate");
        let plain = outsider.curl(&[&format!("http://{address}:8082/")]);
        assert_eq!(plain, Ok(format!("hello from {ip}\n")), "neither");
        let plain = outsider.curl(&[&format!("http://{address}:8081/")]);
        assert!(plain.is_err(), "plain HTTP where TLS is wanted: {plain:?}");
        let resolve = format!("web:8080:{address}");
        let refused = outsider.curl(&["--cacert", &ca, "--resolve", &resolve, "https://web:8080/"]);
        assert!(refused.clone().unwrap_err().contains("certificate required"), "{refused:?}");
    }
}

#[test]
fn udp_is_dropped_unless_it_is_let_in() {
    let (network, deployment) = (Network::new(), Deployment::new());
    let server = network.pod();
    deployment.initialise(&server, "dns");
    let _mesh = server.mesh(&["--plain-udp-ports", "5354"]);
    let outsider = network.pod();
    let address = server.v4();
    let sockets =
        server.inside(|| [5353_u16, 5354].map(|port| std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap()));
    let [dropped, let_in] = sockets.join().unwrap();
    let send = outsider.inside(move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in [5353, 5354] {
            socket.send_to(b"question", (address, port)).unwrap();
        }
    });
    send.join().unwrap();
    let mut buffer = [0; 16];
    let_in.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    assert_eq!(let_in.recv(&mut buffer).unwrap(), 8);
    // Sent before the one that has arrived.
    dropped.set_nonblocking(true).unwrap();
    assert_eq!(dropped.recv(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // The pod's own questions get their answers.
    let asker = server.inside(move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        socket
    });
    let (asker, resolver) = (asker.join().unwrap(), outsider.v4());
    let resolver =
        outsider.inside(move || std::net::UdpSocket::bind((resolver, 53)).unwrap()).join().unwrap();
    asker.send_to(b"name?", resolver.local_addr().unwrap()).unwrap();
    let (_, from) = resolver.recv_from(&mut buffer).unwrap();
    resolver.send_to(b"address", from).unwrap();
    assert_eq!(asker.recv(&mut buffer).unwrap(), 7);
}

#[test]
fn certificates_are_exchanged_while_connections_go_on() {
    let (network, first) = (Network::new(), Deployment::new());
    let server = network.pod();
    first.initialise(&server, "web");
    let _nginx = server.nginx(8080);
    let server_mesh = server.mesh(&[]);
    let (client, client_mesh) = client(&network, &first, &server);
    let held = client.inside(|| bytes::KeptAlive::open("127.137.0.1:8080")).join().unwrap();
    let mut held = held.unwrap();
    held.ask();

    // A new manifest: a new mesh CA. The server has heard of it first.
    let second = first.changed();
    second.initialise(&server, "web");
    server_mesh.wait_for_times("certificate and CA loaded", 2);
    held.ask();
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_err(), "the old CA is no longer trusted");
    eventually("the one who is behind asks for a renewal", || client.directory().join("renew").exists());

    second.initialise(&client, "frontend");
    client_mesh.wait_for_times("certificate and CA loaded", 2);
    assert!(client.curl(&["http://127.137.0.1:8080/"]).is_ok());
    held.ask(); // and the first connection has lived through it all
}
