//! HTTP/1.1 for the HTTP API and the transit engine: bounded in connections, in time and in size.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::Request,
    response::{IntoResponse as _, Response},
};
use http_body_util::BodyExt as _;
use hyper::{
    StatusCode,
    body::{Body as _, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt as _;

use crate::{
    budget::{Budget, Reserved, Right},
    desk::Failure,
    door::{Door, Handshake, Place},
    metrics::Route,
    patience::{Activity, Patient, Pieces, UnderWay},
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
    pub(crate) door: Door,
    pub(crate) budget: Budget,
    /// By what right its clients take from the budget.
    pub(crate) right: fn(IpAddr) -> Right,
    /// The label of a path in metrics, one of a few, and the largest request there in bytes.
    pub(crate) route: fn(&str) -> (&'static str, usize),
    /// How a request is refused that does not reach its handler.
    pub(crate) refuse: fn(Failure) -> Response,
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
        let (web, open) = (self.clone(), Arc::new(open));
        let each = move |stream, source: SocketAddr, place, handshake| {
            let (web, open) = (web.clone(), Arc::clone(&open));
            async move {
                let opened = open(stream, source).await;
                drop::<Handshake>(handshake);
                if let Some((stream, router)) = opened {
                    web.connection(stream, source, router.layer(Extension(source))).await;
                }
                drop::<Place>(place);
            }
        };
        self.door.serve(socket, each).await;
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

    async fn connection(self, stream: Box<dyn Stream>, source: SocketAddr, router: Router) {
        let (mut stop, activity) = (self.door.stop.clone(), Activity::new());
        let stream = Patient::new(stream, Arc::clone(&activity));
        let right = (self.right)(source.ip());
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            let (router, web, under_way) = (router.clone(), self.clone(), activity.begin());
            async move {
                let (route, most) = (web.route)(request.uri().path());
                let answer =
                    tokio::time::timeout(REQUEST, web.answer(request, most, right, router, &under_way));
                let (answer, held) = match answer.await {
                    Ok(Ok((answer, held))) => (answer, Some(held)),
                    Ok(Err(failure)) => ((web.refuse)(failure), None),
                    Err(_) => (empty(StatusCode::REQUEST_TIMEOUT), None),
                };
                let route = Route { listener: web.door.name, route, code: answer.status().as_u16() };
                web.door.keeper.metrics.requests.get_or_create(&route).inc();
                let (mut parts, body) = answer.into_parts();
                let held = (held, parts.extensions.remove::<Arc<Reserved>>());
                let body = Pieces::new(body, under_way, held);
                Ok::<_, std::convert::Infallible>(hyper::Response::from_parts(parts, body))
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

    /// Takes a request in as a whole, then has it answered. What it holds of the budget comes with the answer.
    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        most: usize,
        right: Right,
        router: Router,
        under_way: &UnderWay,
    ) -> Result<(Response, Reserved), Failure> {
        let (parts, mut body) = request.into_parts();
        let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        // Without an announcement it may become as large as it may be.
        let size = announced.unwrap_or(most);
        if size > most {
            return Err(Failure::TooLarge { most });
        }
        let reserved = self.budget.reserve(right, size)?;
        let mut taken = Vec::with_capacity(announced.unwrap_or_default());
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Failure::Malformed(format!("the body was broken off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            under_way.progress();
            if taken.len() + data.len() > most {
                return Err(Failure::TooLarge { most });
            }
            taken.extend_from_slice(&data);
        }
        let request = Request::from_parts(parts, Body::from(taken));
        match router.oneshot(request).await {
            Ok(answer) => Ok((answer, reserved)),
            Err(never) => match never {},
        }
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
