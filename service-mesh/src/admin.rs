//! The admin interface: readiness and metrics over plain HTTP, nothing secret, nothing to change.
//!
//! From outside the pod it is reached like any other port: with mutual TLS, unless the ingress
//! configuration says otherwise.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use program::{Door, DoorLimits, Doorkeeper, Handshake, Place, WhenFull};
use tokio::{net::TcpListener, sync::watch};

use crate::{identity::Current, metrics::Metrics};

/// Longest time for a question and its answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest head of a question, in bytes.
const HEAD_BYTES: usize = 8 << 10;
/// Whoever holds connections here must not take memory and descriptors from the tunnels.
const LIMITS: DoorLimits = DoorLimits {
    handshakes: 64,
    handshakes_per_source: 64,
    connections: 64,
    // More than there are: all come from the pod's own address, and the oldest one is to give way.
    connections_per_source: 128,
    reserved: 0,
};

/// Nothing is counted: whoever reads the metrics would see himself.
#[derive(Clone)]
pub(crate) struct NotCounted;

impl Doorkeeper for NotCounted {
    fn opened(&self) {}

    fn closed(&self) {}

    fn refused(&self, reason: &'static str) {
        tracing::debug!(reason, "connection to the admin interface closed");
    }
}

/// Serves until `stop` says so, or its sender is gone. Behind the mesh all clients have the pod's own address, so they
/// share the places; the oldest gives way, and probes are answered whatever others hold.
pub(crate) async fn serve(
    socket: TcpListener,
    identity: Current,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
) {
    let (limits, when_full) = (LIMITS, WhenFull::EndOldest);
    let door = Door { name: "admin", limits, when_full, keeper: NotCounted, stop };
    let each = move |stream, _, place, handshake| {
        // There is none, so waiting for its end must not keep the next one from coming in.
        drop::<Handshake>(handshake);
        let (identity, metrics) = (identity.clone(), Arc::clone(&metrics));
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let ready = identity.borrow().is_some();
            let (status, text) = match request.uri().path() {
                "/ready" if ready => (StatusCode::OK, "ready\n".to_owned()),
                "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n".to_owned()),
                "/metrics" | "/stats/prometheus" => (StatusCode::OK, metrics.render()),
                _ => (StatusCode::NOT_FOUND, "try /ready or /metrics\n".to_owned()),
            };
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = status;
            async { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), answer);
        async move {
            let _ = tokio::time::timeout(LIMIT, connection).await; // how it ended is the client's affair
            drop::<Place<NotCounted>>(place);
        }
    };
    door.serve(socket, each).await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn whoever_holds_connections_neither_keeps_them_nor_keeps_probes_out() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (_identities, identity) = watch::channel(None);
        let (_running, stop) = watch::channel(false);
        tokio::spawn(serve(socket, identity, Arc::default(), stop));
        let mut held = Vec::new();
        for _ in 0..300 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /ready HTTP/1.1\r\nHost: pod\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no certificate yet\n"), "{answer}");
        let is_open = |stream: &&TcpStream| {
            let read = stream.try_read(&mut [0]);
            read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        let mut still_open = 0;
        for stream in &held {
            // What was closed is known to the kernel; a moment for this side's runtime to hear of it.
            let _ = tokio::time::timeout(Duration::from_millis(10), stream.readable()).await;
            still_open += usize::from(is_open(&stream));
        }
        assert!(still_open <= LIMITS.connections, "{still_open} connections are still open");
    }
}
