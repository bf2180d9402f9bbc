//! Whoever attacks is refused, and the others are served meanwhile.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attestation::{Issuer, simulated::SimulatedMachine};
use chaos_tests::deployment::{Deployment, WEB};
use manifest::PolicyHash;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::done;

/// Connects from an address of loopback: to the server each is another host.
pub(crate) async fn from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::from(source), 0))?;
    socket.connect(to).await
}

/// One certificate for an honest workload.
pub(crate) async fn certificate(mesh: SocketAddr, issuer: Arc<dyn Issuer>) -> Result<(), String> {
    let issued = chaos_tests::client::certificate(mesh.port(), &issuer).await;
    issued.map(drop).map_err(|error| format!("{error:#}"))
}

/// Opens connections, sends `bytes` on each and holds them, again and again until told to stop.
async fn hold(source: [u8; 4], to: SocketAddr, bytes: Vec<u8>, trickle: bool, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let mut held = Vec::new();
        for _ in 0..100 {
            let Ok(mut stream) = from(source, to).await else { break };
            let _ = stream.write_all(&bytes).await;
            held.push(stream);
        }
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await; // this attack is about time
            if trickle {
                for stream in &mut held {
                    let _ = stream.write_all(b"a").await;
                }
            }
        }
    }
}

/// A hello of attested TLS as far as the server reads before it makes evidence, then nothing.
async fn flood(source: [u8; 4], to: SocketAddr, stop: Arc<AtomicBool>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = rustls::RootCertStore::empty();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let nonce = [b"atls:v1:nonce:".as_slice(), "00".repeat(32).as_bytes()].concat();
    config.alpn_protocols = vec![nonce, b"h2".to_vec()];
    let config = Arc::new(config);
    while !stop.load(Ordering::SeqCst) {
        let name = rustls::pki_types::ServerName::try_from("coordinator").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        if let Ok(mut stream) = from(source, to).await {
            let _ = stream.write_all(&hello).await;
            let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0; 64])).await;
        }
    }
}

/// A host sets `core_pattern`, and the disk of a node is read by others.
#[test]
fn a_coordinator_leaves_no_core_and_its_directory_is_its_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", deployment.id().unwrap())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    let mode = std::fs::metadata(deployment.path("event-log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// How often these bytes are in the memory of a process.
fn copies_in_memory(pid: u32, wanted: &[u8]) -> usize {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let finder = |part: &[u8]| {
        let starts = part.iter().enumerate().filter(|(_, byte)| **byte == wanted[0]);
        starts.filter(|(at, _)| part[*at..].starts_with(wanted)).count()
    };
    let mut found = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // What is mapped and gone since, or a device's, is passed over.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            found += finder(&bytes);
        }
    }
    found
}

/// A secret passes through buffers of TLS, HTTP/2 and the encoder, which no type of ours owns.
#[test]
fn what_left_the_coordinator_stays_nowhere_in_its_memory() {
    let mut deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let shares: serde_json::Value =
        serde_json::from_slice(&std::fs::read(deployment.path("seedshares.json")).unwrap()).unwrap();
    let share = hex::decode(shares["SeedShares"][0]["EncryptedSeed"].as_str().unwrap()).unwrap();
    let key = std::fs::read_to_string(deployment.path("seedshare-owner.pem")).unwrap();
    let seed = keys::decrypt_seed_share(&share, &key).unwrap();
    for address in [deployment.ports.user.to_string(), format!("http://{}", deployment.ports.http)] {
        deployment.kill();
        deployment.launch().unwrap();
        let recovered = deployment.contrast_at(&address, &["recover"]).unwrap();
        assert!(recovered.status.success());
        for pod in ["one", "two", "three"] {
            assert!(deployment.initializer(WEB, pod).unwrap().status.success());
        }
        let text = std::fs::read_to_string(deployment.path("one/secrets/workload-secret-seed")).unwrap();
        let secret = hex::decode(&text).unwrap();
        let copies = |wanted: &[u8]| copies_in_memory(deployment.id().unwrap(), wanted);
        // Not the first bytes: a freed block begins with links of the allocator.
        assert_eq!(copies(&seed[20..52]), 1, "the seed, in the key engine alone, after {address}");
        assert_eq!(copies(&secret[20..52]), 0, "a workload secret that was handed out");
    }
}

#[test]
fn honest_workloads_are_served_while_others_attack() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let machine = SimulatedMachine::open(&deployment.path("machine")).unwrap();
    let issuer: Arc<dyn Issuer> = Arc::new(machine.guest(PolicyHash::of(WEB)));
    let ports = deployment.ports;

    // How long honest ones take, four at a time.
    let measure = |count: usize| {
        runtime.block_on(async {
            let mut took = Vec::new();
            for _ in 0..count / 4 {
                let started = Instant::now();
                let four = (0..4).map(|_| tokio::spawn(certificate(ports.mesh, Arc::clone(&issuer))));
                for one in four.collect::<Vec<_>>() {
                    one.await.unwrap().unwrap();
                    took.push(started.elapsed());
                }
            }
            took.sort();
            (took[took.len() / 2], took[took.len() * 99 / 100])
        })
    };
    let calm = measure(100);

    let stop = Arc::new(AtomicBool::new(false));
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], [7_u8; 32].as_slice()].concat();
    for to in [ports.mesh, ports.user, ports.http, ports.transit] {
        // Half-open, slow, oversized and senseless.
        runtime.spawn(hold([127, 0, 0, 2], to, Vec::new(), false, Arc::clone(&stop)));
        runtime.spawn(hold([127, 0, 0, 3], to, hello.clone(), true, Arc::clone(&stop)));
        runtime.spawn(hold(
            [127, 0, 0, 3],
            to,
            b"POST /v1/manifest HTTP/1.1\r\nHost: ".to_vec(),
            true,
            Arc::clone(&stop),
        ));
        runtime.spawn(hold([127, 0, 0, 2], to, vec![0x16; 70_000], false, Arc::clone(&stop)));
    }
    for to in [ports.mesh, ports.user] {
        runtime.spawn(flood([127, 0, 0, 3], to, Arc::clone(&stop)));
    }
    let attacked = measure(200);
    let status = deployment.get(ports.http, "/v1/status").unwrap();
    stop.store(true, Ordering::SeqCst);
    println!("certificates, p50 and p99: calm {calm:?}, under attack {attacked:?}");
    assert!(status.contains("\"ready\""), "{status}");
    // Wide, because the attackers take their share of these two cores: speed is measured elsewhere.
    let bearable = Duration::from_secs(30).max(calm.1 * 20);
    assert!(attacked.1 < bearable, "honest workloads wait {:?}", attacked.1);

    let text = deployment.get(ports.probe, "/metrics").unwrap();
    let refused = |reason: &str| {
        let line = text.lines().find(|line| line.contains("listener=\"mesh\"") && line.contains(reason));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    assert!(refused("too many from one source") > 0, "{text}");
    assert!(refused("reason=\"handshake\"") > 0, "{text}");
    assert!(!deployment.log().contains("panicked"));
    done(&deployment, &["verify"]);
}
