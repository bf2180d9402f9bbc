//! The admin interface: readiness and metrics over plain HTTP, nothing secret, nothing to change.
//!
//! From outside the pod it is reached like any other port: with mutual TLS, unless the ingress
//! configuration says otherwise.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{identity::Current, metrics::Metrics};

const LIMIT: Duration = Duration::from_secs(5);

pub(crate) async fn serve(socket: TcpListener, identity: Current, metrics: Arc<Metrics>) {
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
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
            .serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(tokio::time::timeout(LIMIT, connection));
    }
}
