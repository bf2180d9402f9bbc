//! Probes for the cluster and metrics: plain HTTP, nothing secret (docs/spec/control-plane.md,
//! sections 8.3 and 8.4).

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Bytes,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{
    desk::{Desk, Readiness},
    door::{Door, Handshake, Place},
    metrics::{Format, scrape},
};

/// Largest head of a question, in bytes.
const HEAD_BYTES: usize = 8 << 10;
/// Longest time for a question and its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves probes, and metrics if the state directory is given: its disk is among them.
pub(crate) async fn serve(
    door: Door,
    socket: TcpListener,
    desk: Desk,
    metrics: Option<PathBuf>,
) -> anyhow::Result<()> {
    let metrics: Option<Arc<Path>> = metrics.map(Arc::from);
    let each = move |stream, _, place, handshake| {
        let (desk, metrics) = (desk.clone(), metrics.clone());
        // There is none, so waiting for its end must not keep the next one from coming in.
        drop::<Handshake>(handshake);
        async move {
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
                let format = Format::accepted(accept.unwrap_or_default());
                let response = answer(&desk, request.uri().path(), metrics.as_deref(), format);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), answer);
            let _ = tokio::time::timeout(PATIENCE, connection).await; // how it ended is the client's affair
            drop::<Place>(place);
        }
    };
    door.serve(socket, each).await;
    Ok(())
}

fn answer(desk: &Desk, path: &str, state_dir: Option<&Path>, format: Format) -> Response<Full<Bytes>> {
    if let (true, Some(state_dir)) = (path == "/metrics", state_dir) {
        let text = scrape(&desk.metrics, &desk.gauges(), state_dir, format);
        let mut response = Response::new(Full::new(Bytes::from(text)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
        return response;
    }
    let (status, text) = probe(path, desk.readiness());
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
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
