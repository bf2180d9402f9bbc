//! HTTP/1.1 for the HTTP API and the transit engine: bounded in connections, in time and in size.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::Request,
    response::{IntoResponse as _, Response},
};
use hyper::{
    StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tower::ServiceExt as _;

use crate::{
    limits::Limits,
    metrics::{Listener, Metrics, Refusal, Route},
    sources::Sources,
};

/// Longest time for a request's head to arrive, also on a connection that was used before.
const HEAD: Duration = Duration::from_secs(10);
/// Longest time from a request's head to its answer, its body included.
const REQUEST: Duration = Duration::from_secs(30);
/// Largest head, in bytes.
const HEAD_BYTES: usize = 32 << 10;

/// A connection's bytes, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What is served, and how much of it at once.
#[derive(Clone)]
pub(crate) struct Web {
    pub(crate) name: &'static str,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) stop: watch::Receiver<bool>,
    /// The label of a path in metrics: one of a few.
    pub(crate) route: fn(&str) -> &'static str,
}

impl Web {
    /// Serves until stopped. `open` makes a connection ready, for example by a TLS handshake; it has a
    /// deadline of its own.
    pub(crate) async fn serve<F>(
        self,
        socket: TcpListener,
        open: impl Fn(TcpStream, SocketAddr) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Option<(Box<dyn Stream>, Router)>> + Send + 'static,
    {
        let connections = Arc::new(Semaphore::new(self.limits.connections));
        let sources = Sources::new(self.limits.connections_per_source);
        let (mut stop, open) = (self.stop.clone(), Arc::new(open));
        let gauge = self.metrics.connections.get_or_create_owned(&Listener { listener: self.name });
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = stop.wait_for(|stopped| *stopped) => break,
            };
            let Ok((stream, source)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Some(under_way) = sources.begin(source.ip()) else {
                let refusal = Refusal { listener: self.name, reason: "too many from one source" };
                self.metrics.refused.get_or_create(&refusal).inc();
                continue;
            };
            let (web, open, gauge) = (self.clone(), Arc::clone(&open), gauge.clone());
            tokio::spawn(async move {
                gauge.inc();
                let _ = stream.set_nodelay(true); // only a matter of speed
                if let Some((stream, router)) = open(stream, source).await {
                    web.connection(stream, router.layer(Extension(source))).await;
                }
                gauge.dec();
                drop((permit, under_way));
            });
        }
        // Everything under way ends within its deadline, and then all permits are back.
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        let _ = connections.acquire_many(all).await;
    }

    /// Serves without TLS until stopped.
    pub(crate) async fn serve_plain(self, socket: TcpListener, routes: Router) -> anyhow::Result<()> {
        let open = move |stream, _| {
            let routes = routes.clone();
            async move { Some((Box::new(stream) as Box<dyn Stream>, routes)) }
        };
        self.serve(socket, open).await;
        Ok(())
    }

    async fn connection(self, stream: Box<dyn Stream>, router: Router) {
        let mut stop = self.stop.clone();
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            let (router, web) = (router.clone(), self.clone());
            async move {
                let route = (web.route)(request.uri().path());
                let answer = router.oneshot(request.map(Body::new));
                let answer = match tokio::time::timeout(REQUEST, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(never)) => match never {},
                    Err(_) => empty(StatusCode::REQUEST_TIMEOUT),
                };
                let route = Route { listener: web.name, route, code: answer.status().as_u16() };
                web.metrics.requests.get_or_create(&route).inc();
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => return, // how it ended is the client's affair
            _ = stop.wait_for(|stopped| *stopped) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body.into()).into_response()
}

/// A request's body, if it has at most `most` bytes.
pub(crate) async fn body(request: Request, most: usize) -> Result<Vec<u8>, StatusCode> {
    // The caller's deadline covers a body that trickles or breaks off.
    to_bytes(request.into_body(), most).await.map(Into::into).map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)
}
