//! Probes for the cluster and metrics: plain HTTP, nothing secret (spec control-plane.md 8.3, 8.4).

use std::convert::Infallible;

use actors::Phase;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};

use crate::{metrics::scrape, wiring::Actors};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(crate) async fn serve(
    socket: TcpListener,
    actors: Actors,
    with_metrics: bool,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        };
        let Ok((stream, _)) = accepted else { continue };
        let actors = actors.clone();
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let response = match request.uri().path() {
                "/metrics" if with_metrics => {
                    let text = scrape(&actors.metrics, &actors);
                    let mut response = Response::new(Full::new(Bytes::from(text)));
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
                    response
                }
                path => {
                    let is_current = actors.standing.is_current();
                    let (status, text) = probe(path, &actors.snapshot.borrow().phase, is_current);
                    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
                    *response.status_mut() = status;
                    response
                }
            };
            async { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(tokio::time::timeout(std::time::Duration::from_secs(5), connection));
    }
}

fn probe(path: &str, phase: &Phase, is_current: bool) -> (StatusCode, &'static str) {
    let state = match phase {
        Phase::Uninitialised => "no manifest configured\n",
        Phase::NeedsRecovery => "coordinator is in recovery mode\n",
        Phase::Active(_) if !is_current => "not known whether the manifest is still in force\n",
        Phase::Active(_) => "ready\n",
    };
    match (path, phase) {
        ("/probe/startup" | "/probe/liveness", _) => (StatusCode::OK, state),
        ("/probe/readiness", Phase::Active(_)) if is_current => (StatusCode::OK, state),
        ("/probe/readiness", _) => (StatusCode::SERVICE_UNAVAILABLE, state),
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    }
}
