//! Floods of requests and of connections: each takes what strangers may take, and no more.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use atls::{ClientConfig, ConnectionKey};
use chaos_tests::{
    deployment::Deployment,
    http2::{frame, headers},
    now,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{attacks::from, done};

/// What requests may hold together, as the Coordinator says at its start.
const BUDGET: u64 = 170 << 20;

const SET_MANIFEST: &str = "/edgelesssys.contrast.userapi.UserAPI/SetManifest";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A number of the process's status: memory in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Processor time that the process took so far, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A connection to the user port as a stranger, with HTTP/2 begun.
async fn stranger(source: [u8; 4], to: SocketAddr) -> impl AsyncRead + AsyncWrite + Unpin {
    let mut stream = attested(from(source, to).await.unwrap()).await;
    stream
        .write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat())
        .await
        .unwrap();
    stream
}

async fn attested(stream: TcpStream) -> impl AsyncRead + AsyncWrite + Unpin {
    let key = std::sync::Arc::new(ConnectionKey::generate().unwrap());
    let config = ClientConfig { key, issuer: None, handshake_timeout: Duration::from_secs(30) };
    atls::connect(stream, &config, now()).await.unwrap().0
}

/// How long the other side keeps a connection on which nothing more is sent.
async fn kept(mut stream: impl AsyncRead + Unpin) -> Duration {
    let started = Instant::now();
    let mut bytes = vec![0; 64 << 10];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    started.elapsed()
}

fn is_ready(deployment: &Deployment) -> bool {
    deployment.get(deployment.ports.probe, "/probe/readiness").is_ok_and(|answer| answer.contains("ready"))
}

#[test]
fn requests_that_announce_much_and_never_end_take_no_more_than_their_budget() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let (runtime, ports, pid) = (runtime(), deployment.ports, deployment.pid());
    let before = resident(pid);
    runtime.block_on(async {
        let mut held = Vec::new();
        // Over HTTP/1, from four hosts: fifteen of the announced sixteen MiB come.
        let head = "POST /v1/manifest HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\n\
                    Content-Length: 16777216\r\n\r\n";
        for number in 0..40 {
            let mut stream = from([127, 0, 0, 2 + number % 4], ports.http).await.unwrap();
            held.push(tokio::spawn(async move {
                let _ = stream.write_all(head.as_bytes()).await;
                for _ in 0..15 {
                    if stream.write_all(&vec![b' '; 1 << 20]).await.is_err() {
                        return; // refused, as it should be
                    }
                }
                tokio::time::sleep(Duration::from_secs(60)).await;
            }));
        }
        // Over HTTP/2: eight requests on each connection, of whose sixteen MiB as much comes as the windows let.
        for number in 0..8 {
            let mut stream = stranger([127, 0, 0, 2 + number % 4], ports.user).await;
            held.push(tokio::spawn(async move {
                for request in 0..8 {
                    let stream_id = 2 * request + 1;
                    let announced = [&[0], (16_u32 << 20).to_be_bytes().as_slice()].concat();
                    let head =
                        [headers(stream_id, SET_MANIFEST), frame(0, 0, stream_id, &announced)].concat();
                    if stream.write_all(&head).await.is_err() {
                        return;
                    }
                    let _ = stream.write_all(&frame(0, 0, stream_id, &vec![0; 16_000])).await;
                }
                kept(stream).await;
            }));
        }
        tokio::time::sleep(Duration::from_secs(3)).await; // this attack is about what is held
    });
    let under_attack = resident(pid);
    println!("resident: {} MiB before, {} MiB under attack", before >> 20, under_attack >> 20);
    assert!(under_attack < before + BUDGET, "{before} bytes before, {under_attack} under attack");
    assert!(is_ready(&deployment));
    done(&deployment, &["verify"]);
    drop(runtime);
    let refused = deployment.get(deployment.ports.probe, "/metrics").unwrap();
    assert!(refused.contains("route=\"/v1/manifest\",code=\"503\""), "{refused}");
}

#[test]
fn a_connection_without_a_request_is_closed_and_so_is_a_flood_of_frames_that_mean_nothing() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let (runtime, ports) = (runtime(), deployment.ports);
    let limit = Duration::from_secs(25);
    runtime.block_on(async {
        let silent = attested(from([127, 0, 0, 2], ports.user).await.unwrap()).await;
        let preface = stranger([127, 0, 0, 2], ports.user).await;
        let half = async {
            let mut stream = attested(from([127, 0, 0, 2], ports.user).await.unwrap()).await;
            stream.write_all(b"PRI * HT").await.unwrap();
            kept(stream).await
        };
        // Refused on the mesh port, because it has no evidence, and then silent.
        let mesh = async { kept(attested(from([127, 0, 0, 2], ports.mesh).await.unwrap()).await).await };
        let plain = async { kept(from([127, 0, 0, 2], ports.http).await.unwrap()).await };
        let flood = async {
            let mut stream = stranger([127, 0, 0, 3], ports.user).await;
            let priorities = frame(2, 0, 1, &[0, 0, 0, 0, 7]).repeat(5_000);
            let mut sent = 0_usize;
            while sent < 64 << 20 && stream.write_all(&priorities).await.is_ok() {
                sent += priorities.len();
            }
            sent
        };
        let all = async { tokio::join!(kept(silent), kept(preface), half, mesh, plain, flood) };
        let (silent, preface, half, mesh, plain, flood) =
            tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
        for kept in [silent, preface, half, mesh, plain] {
            assert!(kept < limit, "kept: {silent:?} {preface:?} {half:?} {mesh:?} {plain:?}");
        }
        assert!(flood < 32 << 20, "{flood} bytes of frames that mean nothing");
    });
    done(&deployment, &["verify"]);
}

#[test]
fn without_descriptors_and_with_all_its_places_taken_a_coordinator_still_answers_its_probes() {
    let deployment = Deployment::start(&["--max-connections", "100"], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let (runtime, ports, pid) = (runtime(), deployment.ports, deployment.pid());
    let held = runtime.block_on(async {
        let mut held = Vec::new();
        for number in 0..800_usize {
            let source = [127, 0, 0, 2 + u8::try_from(number % 12).unwrap()];
            let to = [ports.user, ports.mesh, ports.http, ports.transit, ports.probe][number % 5];
            if let Ok(stream) = from(source, to).await {
                held.push(stream);
            }
        }
        held
    });
    assert!(held.len() > 600);
    let asked = Instant::now();
    assert!(is_ready(&deployment), "probes are answered");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // Now nothing can be accepted at all, because there are no descriptors left.
    let status =
        Command::new("prlimit").args(["--nofile=32:32", "--pid", &pid.to_string()]).status().unwrap();
    assert!(status.success());
    let more = runtime.block_on(async {
        let mut more = Vec::new();
        for to in [ports.user, ports.mesh, ports.http, ports.transit, ports.probe] {
            more.push(tokio::time::timeout(Duration::from_secs(5), from([127, 0, 0, 20], to)).await);
        }
        more
    });
    let before = ticks(pid);
    std::thread::sleep(Duration::from_secs(2)); // the attack is about what accepting costs while it fails
    let took = ticks(pid) - before;
    assert!(took < 100, "{took} ticks of 10 ms in 2 s");
    drop((held, more));
}
