//! Probes for the cluster and metrics: plain HTTP, nothing secret (docs/spec/control-plane.md,
//! sections 8.3 and 8.4).

use std::convert::Infallible;

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    desk::{Desk, Readiness},
    metrics::scrape,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(crate) async fn serve(
    socket: TcpListener,
    desk: Desk,
    with_metrics: bool,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        };
        let Ok((stream, _)) = accepted else { continue };
        let desk = desk.clone();
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let response = match request.uri().path() {
                "/metrics" if with_metrics => {
                    let text = scrape(&desk.metrics, &desk.gauges());
                    let mut response = Response::new(Full::new(Bytes::from(text)));
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
                    response
                }
                path => {
                    let (status, text) = probe(path, desk.readiness());
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

fn probe(path: &str, readiness: Readiness) -> (StatusCode, &'static str) {
    let state = match readiness {
        Readiness::NoManifest => "no manifest configured\n",
        Readiness::NeedsRecovery => "coordinator is in recovery mode\n",
        Readiness::Stale => "not known whether the manifest is still in force\n",
        Readiness::NoWrites => "the event store takes no writes\n",
        Readiness::Ready => "ready\n",
    };
    match (path, readiness) {
        ("/probe/startup" | "/probe/liveness", _) | ("/probe/readiness", Readiness::Ready) => {
            (StatusCode::OK, state)
        }
        ("/probe/readiness", _) => (StatusCode::SERVICE_UNAVAILABLE, state),
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    }
}
