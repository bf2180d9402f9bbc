//! Updates of a deployment under traffic: what `contrast generate` writes into the YAML is the environment of the real
//! initializer and service mesh, in network namespaces as pods. Needs root and `ip`.
//! `UPDATES=10 cargo test --test updates` makes more of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod annotations;
mod network;
mod traffic;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use attestation::simulated::{SimulatedKind, SimulatedMachine};
use chaos_tests::{
    command::{json, stderr},
    now,
    process::Process,
    program,
};
use manifest::ManifestBody;
use network::{Namespace, Network};
use serde_json::{Value, json};
use traffic::{Clients, Connection, Server};

const LIMIT: Duration = Duration::from_secs(120);

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The Coordinator of each deployment here.
const COORDINATOR: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: coordinator, namespace: shop}
spec:
  template:
    metadata: {annotations: {contrast.edgeless.systems/pod-role: coordinator}}
    spec:
      runtimeClassName: contrast-cc
      containers: [{name: coordinator, image: "registry.example/app:1"}]
"#;

/// A server with a variable to change.
const YAML: &str = r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {annotations: {contrast.edgeless.systems/servicemesh-admin-interface-port: "9901"}}
    spec:
      runtimeClassName: contrast-cc
      containers:
      - name: web
        image: registry.example/app:1
        env: [{name: VERSION, value: "0"}]
"#;

fn client_yaml(name: &str) -> String {
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  template:
    metadata:
      annotations: {{contrast.edgeless.systems/servicemesh-egress: "web#127.137.0.1:8080#web:8080"}}
    spec:
      runtimeClassName: contrast-cc
      containers:
      - name: {name}
        image: registry.example/app:1
        env: [{{name: VERSION_OF_{name}, value: "0"}}]
"#
    )
}

/// A workspace with the deployment's YAML, a machine, and a Coordinator in a namespace of its own.
struct Cluster {
    folder: tempfile::TempDir,
    network: Network,
    coordinator: Namespace,
    process: Option<Process>,
}

/// A pod as generated: the environment of its first container, and its policy.
#[derive(Clone, Debug)]
struct Generated {
    environment: BTreeMap<String, String>,
    policy: String,
}

struct Pod {
    place: Namespace,
    mesh: Process,
    directory: PathBuf,
}

impl Cluster {
    fn start(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::new();
        let coordinator = network.namespace();
        let mut cluster = Self { folder, network, coordinator, process: None };
        let machine = SimulatedMachine::create(&cluster.path("machine"), SimulatedKind::Snp, now()).unwrap();
        fs::create_dir(cluster.path("yaml")).unwrap();
        fs::write(cluster.path("yaml/shop.yml"), yaml).unwrap();
        cluster.image(&[
            "registry.example/app:1",
            "registry.example/initializer:1",
            "registry.example/mesh:1",
        ]);
        // The first run makes the keys; the hardware is the simulated machine.
        cluster.generate(&[]);
        let mut body: ManifestBody =
            serde_json::from_slice(&fs::read(cluster.path("manifest.json")).unwrap()).unwrap();
        body.reference_values = machine.reference_values();
        fs::write(cluster.path("manifest.json"), body.to_json()).unwrap();

        let policy = cluster.generated("coordinator").policy;
        let mut command = cluster.coordinator.command(&program("coordinator"));
        command
            .arg("--state-dir")
            .arg(cluster.path("event-log"))
            .arg("--simulated-machine")
            .arg(cluster.path("machine"))
            .args(["--policy-hash", &policy])
            .env("NO_COLOR", "1");
        cluster.process = Some(Process::start(&mut command, &cluster.path("coordinator.log")).unwrap());
        cluster.set();
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An OCI layout with one image under several names.
    fn image(&self, names: &[&str]) {
        let blobs = self.path("images/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = hex::encode(keys::sha256(&[bytes]));
            fs::write(blobs.join(&digest), bytes).unwrap();
            json!({ "digest": format!("sha256:{digest}"), "size": bytes.len(), "mediaType": "" })
        };
        let layer = vec![0; 1024]; // an empty tar
        let layer_digest = format!("sha256:{}", hex::encode(keys::sha256(&[&layer])));
        let config = json!({ "config": { "Entrypoint": ["/app"], "User": "65532" }, "rootfs": { "diff_ids": [layer_digest] } });
        let manifest = json!({ "config": put(config.to_string().as_bytes()), "layers": [put(&layer)] });
        let descriptor = put(manifest.to_string().as_bytes());
        let entry = |name: &&str| {
            let mut entry = descriptor.clone();
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
            entry
        };
        let index = json!({ "manifests": names.iter().map(entry).collect::<Vec<_>>() });
        fs::write(self.path("images/index.json"), index.to_string()).unwrap();
    }

    fn contrast(&self, args: &[&str]) -> Output {
        let mut command = self.coordinator.command(&program("contrast"));
        command.args(args).args(["--output", "json"]).current_dir(self.folder.path());
        command.env("CONTRAST_COORDINATOR", "127.0.0.1:1313").env("XDG_CACHE_HOME", self.path("cache"));
        command.output().unwrap()
    }

    fn done(&self, args: &[&str]) -> Value {
        let output = self.contrast(args);
        assert!(output.status.success(), "contrast {args:?}: {}", stderr(&output));
        json(&output)
    }

    fn generate(&self, more: &[&str]) -> Value {
        let fixed = [
            "generate",
            "--offline",
            "--images",
            "images",
            "--reference-values",
            "metal-qemu-snp",
            "--initializer-image",
            "registry.example/initializer:1",
            "--service-mesh-image",
            "registry.example/mesh:1",
            "yaml",
        ];
        let report = self.done(&[fixed.as_slice(), more].concat());
        fs::write(self.path("report.json"), report.to_string()).unwrap();
        report
    }

    fn set(&self) -> Value {
        self.done(&["set", "yaml"])
    }

    /// Changes a variable of a pod.
    fn change(&self, from: &str, to: &str) {
        let yaml = fs::read_to_string(self.path("yaml/shop.yml")).unwrap();
        assert_eq!(yaml.matches(from).count(), 1, "{from:?} in {yaml}");
        fs::write(self.path("yaml/shop.yml"), yaml.replace(from, to)).unwrap();
    }

    /// What the YAML says now of a workload's first container, in the order in which Kubernetes starts them.
    fn generated(&self, name: &str) -> Generated {
        let report: Value = serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap();
        let pods = report["pods"].as_array().unwrap();
        let policy =
            pods.iter().find(|pod| pod["name"] == name).unwrap()["policy"].as_str().unwrap().to_owned();
        let text = fs::read_to_string(self.path("yaml/shop.yml")).unwrap();
        let documents = yaml_edit::read(&text).unwrap();
        let values = documents.iter().map(yaml_edit::Document::value);
        let resource =
            values.into_iter().find(|resource| resource["metadata"]["name"] == name).unwrap().clone();
        let first = &resource["spec"]["template"]["spec"]["initContainers"][0];
        let environment = first["env"].as_array().cloned().unwrap_or_default().into_iter().map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap().to_owned();
            (text("name"), text("value"))
        });
        Generated { environment: environment.collect(), policy }
    }

    /// Starts a pod's first container: the mesh, which starts the initializer.
    fn start_pod(&self, name: &str, generated: &Generated, web: Option<&Namespace>) -> Pod {
        self.start_program("service-mesh", name, generated, web)
    }

    /// The same where the first container is another one.
    fn start_program(&self, image: &str, name: &str, generated: &Generated, web: Option<&Namespace>) -> Pod {
        let place = self.network.namespace();
        self.resolve(&place, web);
        let directory = self.path(&format!("pod-{}", place.address()));
        fs::create_dir(&directory).unwrap();
        let mut command = place.command(&program(image));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (key, value) in &generated.environment {
            // The pod's own root file system.
            let here = |path: &Path| path.display().to_string();
            let value = match value.as_str() {
                "/initializer" => here(&program("initializer")),
                value => value.replace("/contrast/", &format!("{}/", here(&directory))),
            };
            command.env(key, value);
        }
        // What the image and the guest say.
        command.env("CONTRAST_DIRECTORY", &directory).env("NO_COLOR", "1");
        command.env("CONTRAST_TERMINATION_LOG", directory.join("termination"));
        command.env("CONTRAST_SIMULATED_MACHINE", self.path("machine"));
        command.env("CONTRAST_POLICY_HASH", &generated.policy);
        let mesh =
            Process::start(&mut command, &self.path(&format!("{name}-{}.log", place.address()))).unwrap();
        Pod { place, mesh, directory }
    }

    fn resolve(&self, place: &Namespace, web: Option<&Namespace>) {
        let web = web.map(|web| ("web", web.address()));
        place.resolve(&[[("coordinator", self.coordinator.address())].as_slice(), web.as_slice()].concat());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("coordinator.log")).unwrap_or_default()
    }
}

impl Pod {
    fn log(&self) -> String {
        fs::read_to_string(&self.mesh.log).unwrap_or_default()
    }

    fn wait_until_up(&self) {
        eventually("the mesh is up", || self.log().contains("the mesh is up"));
    }

    /// The number of the manifest that its certificate is of.
    fn generation(&self) -> u64 {
        let pem = fs::read(self.directory.join("tls-config/certChain.pem")).unwrap_or_default();
        let Some(Ok(leaf)) = rustls::pki_types::pem::PemObject::pem_slice_iter(&pem).next() else { return 0 };
        let leaf: rustls::pki_types::CertificateDer<'_> = leaf;
        keys::leaf_claims(&leaf).unwrap().generation.unwrap_or_default()
    }
}

#[test]
fn an_update_loses_no_request_and_shuts_out_whom_the_owner_takes_out() {
    let updates: u64 = std::env::var("UPDATES").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let yaml = [
        COORDINATOR.to_owned(),
        YAML.to_owned(),
        client_yaml("steady"),
        client_yaml("straggler"),
        client_yaml("evicted"),
    ]
    .concat();
    let cluster = Cluster::start(&yaml);
    let mut web = cluster.start_pod("web", &cluster.generated("web"), None);
    let mut server = Server::start(&web.place);
    let [steady, straggler, evicted] = ["steady", "straggler", "evicted"]
        .map(|name| cluster.start_pod(name, &cluster.generated(name), Some(&web.place)));
    let old_straggler = cluster.generated("straggler");
    for pod in [&web, &steady, &straggler, &evicted] {
        pod.wait_until_up();
    }
    // The pod that stays behind and the one that is to be evicted have connections that they keep.
    let ask_once = |pod: &Pod| pod.place.inside(|| Connection::open()?.ask(1)).join().unwrap();
    let hold = |pod: &Pod| {
        pod.place.inside(|| {
            let mut connection = Connection::open().unwrap();
            connection.ask(1).unwrap();
            connection
        })
    };
    let clients = Clients::start(&steady.place, 6);

    for update in 1..=updates {
        let (from, to) = (update - 1, update);
        cluster.change(
            &format!("{{name: VERSION, value: \"{from}\"}}"),
            &format!("{{name: VERSION, value: \"{to}\"}}"),
        );
        if update == 1 {
            cluster.change("VERSION_OF_straggler, value: \"0\"", "VERSION_OF_straggler, value: \"1\"");
        }
        let report = cluster.generate(&[]);
        assert!(report["going_out"].to_string().contains("shop/deployment/web"), "{report}");
        let set = cluster.set();
        assert!(!set["going_out"].as_array().unwrap().is_empty(), "{set}");
        // A rollout, as Kubernetes makes it: the new pod is ready, names lead to it, the old one ends.
        let next = cluster.start_pod("web", &cluster.generated("web"), None);
        next.wait_until_up();
        let next_server = Server::start(&next.place);
        for pod in [&steady, &straggler, &evicted] {
            cluster.resolve(&pod.place, Some(&next.place));
        }
        // The mesh believes a name for 5 s.
        std::thread::sleep(Duration::from_secs(7));
        server.end();
        web.mesh.stop(LIMIT).unwrap();
        (web, server) = (next, next_server);
        // Renewal follows by itself, and nobody waits for it.
        let generation = update + 1;
        eventually("the client has a certificate of the new manifest", || steady.generation() >= generation);
    }
    let mut kept = hold(&straggler).join().unwrap();
    let mut cut = hold(&evicted).join().unwrap();

    cluster.generate(&["--finish"]);
    let finished = cluster.set();
    assert_eq!(finished["going_out"], json!([]));
    eventually("the old pod's connection is ended", || kept.ask(2).is_err());
    assert!(ask_once(&straggler).is_err(), "an old pod makes no connection any more");
    let again = cluster.start_pod("straggler", &old_straggler, Some(&web.place));
    eventually("an old pod gets no certificate", || again.log().contains("is not in the current manifest"));
    cut.ask(2).unwrap();

    cluster.done(&["evict", "--workload", "evicted"]);
    eventually("the evicted pod's connection is ended", || cut.ask(3).is_err());
    assert!(ask_once(&evicted).is_err(), "an evicted pod makes no connection any more");
    eventually("the mesh says why", || web.log().contains("counts no more"));
    let exported = cluster.done(&[
        "audit",
        "export",
        "--auditor-key",
        "workload-owner.pem",
        "--kind",
        "PeersEvicted",
        "--out",
        "evicted.jsonl",
    ]);
    let line = fs::read_to_string(cluster.path("evicted.jsonl")).unwrap();
    assert!(
        line.contains("PeersEvicted") && line.contains(&cluster.generated("evicted").policy),
        "{exported} {line}"
    );
    let returning = cluster.start_pod("evicted", &cluster.generated("evicted"), Some(&web.place));
    eventually("an evicted pod gets no certificate", || {
        returning.log().contains("was evicted by workload owners")
    });

    let counted = clients.finish();
    assert_eq!(counted.lost, Vec::<String>::new(), "of {}\n{}\n{}", counted.asked, steady.log(), web.log());
    assert!(counted.asked > 100 * updates, "{counted:?}");
    eprintln!(
        "{} requests over {} connections, {updates} updates, none lost",
        counted.asked, counted.connections
    );
    assert!(!cluster.log().contains("panicked"), "{}", cluster.log());
}
