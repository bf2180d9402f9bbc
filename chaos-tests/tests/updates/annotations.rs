//! What pods ask for by annotations, from the YAML to the running programs: a table.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    COORDINATOR, Cluster, LIMIT, client_yaml, eventually, network::Namespace, traffic::Connection,
    traffic::Server,
};

/// Who gets an answer from a server on port 8080 with these annotations.
struct Row {
    name: &'static str,
    annotations: &'static str,
    /// A client of the mesh.
    mesh: bool,
    /// Whoever sends a line, without TLS.
    plain: bool,
}

const ROWS: [Row; 8] = [
    Row { name: "empty", annotations: "servicemesh-ingress: \"\"", mesh: true, plain: false },
    Row { name: "disabled", annotations: "servicemesh-ingress: DISABLED", mesh: false, plain: true },
    Row { name: "unprotected", annotations: "servicemesh-ingress: app#8080#True", mesh: false, plain: true },
    Row { name: "other-port", annotations: "servicemesh-ingress: app#8081#true", mesh: true, plain: false },
    Row {
        name: "denied",
        annotations: "servicemesh-ingress: app#8081#mutual|servicemesh-unlisted-ports: deny",
        mesh: false,
        plain: false,
    },
    Row {
        name: "listed",
        annotations: "servicemesh-ingress: app#8080#mutual|servicemesh-unlisted-ports: deny",
        mesh: true,
        plain: false,
    },
    Row {
        name: "others-only",
        annotations: "servicemesh-ingress: \"\"|servicemesh-peers: 8080#somebody",
        mesh: false,
        plain: false,
    },
    Row {
        name: "the-client",
        annotations: "servicemesh-ingress: \"\"|servicemesh-peers: 8080#client|servicemesh-trust: root",
        mesh: true,
        plain: false,
    },
];

fn pod_yaml(name: &str, annotations: &str) -> String {
    let lines = annotations.split('|').filter(|line| !line.is_empty());
    let lines: String = lines.map(|line| format!("        contrast.edgeless.systems/{line}\n")).collect();
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  template:\n    \
         metadata:\n      annotations:\n{lines}        example.org/note: nothing\n    spec:\n      runtimeClassName: contrast-cc\n      \
         containers: [{{name: app, image: \"registry.example/app:1\", env: [{{name: APP, value: {name}}}]}}]\n"
    )
}

/// Whether a line without TLS is answered.
fn plain(from: &Namespace, to: Ipv4Addr) -> bool {
    let asked = from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, 8080)), Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"plain\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        std::io::Result::Ok(line)
    });
    asked.join().unwrap().is_ok_and(|line| line == "answer plain\n")
}

#[test]
fn annotations_do_in_the_running_pod_what_the_table_says() {
    let rows: String = ROWS.iter().map(|row| pod_yaml(row.name, row.annotations)).collect();
    let one_shot = pod_yaml("one-shot", "renewal: \"false\"");
    let yaml = [COORDINATOR, &client_yaml("client"), &rows, &pod_yaml("renews", ""), &one_shot].concat();
    let cluster = Cluster::start(&yaml);
    let outsider = cluster.network.namespace();
    for row in &ROWS {
        let pod = cluster.start_pod(row.name, &cluster.generated(row.name), None);
        pod.wait_until_up();
        let _server = Server::start(&pod.place);
        let client = cluster.start_pod("client", &cluster.generated("client"), Some(&pod.place));
        client.wait_until_up();
        let asked = client.place.inside(|| Connection::open()?.ask(1)).join().unwrap();
        assert_eq!(asked.is_ok(), row.mesh, "{}: {asked:?}\n{}", row.name, pod.log());
        assert_eq!(plain(&outsider, pod.place.address()), row.plain, "{}\n{}", row.name, pod.log());
    }
    // Without a mesh: the initializer stays, or ends when it is done.
    for (name, stays) in [("renews", true), ("one-shot", false)] {
        let mut pod = cluster.start_program("initializer", name, &cluster.generated(name), None);
        eventually("there is a certificate", || pod.directory.join("initialized").is_file());
        if stays {
            assert!(pod.mesh.ended().is_none(), "{}", pod.log());
            pod.mesh.stop(LIMIT).unwrap();
        } else {
            eventually("the initializer has ended", || pod.mesh.ended().is_some());
            assert!(pod.mesh.ended().unwrap().success(), "{}", pod.log());
        }
    }
}
