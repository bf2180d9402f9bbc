//! Counts gRPC calls under the names of the usual Prometheus middleware.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tonic::{Code, Status, codegen::http};
use tower::{Layer, Service};

use super::seconds;

type Body = tonic::body::Body;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Handled {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
    grpc_code: &'static str,
}

/// Every method there is. Others are counted as unknown, so that callers cannot make up labels.
const METHODS: [(&str, &str, &str); 14] = [
    ("edgelesssys.contrast.userapi.UserAPI", "SetManifest", "unary"),
    ("edgelesssys.contrast.userapi.UserAPI", "GetManifests", "unary"),
    ("edgelesssys.contrast.userapi.UserAPI", "Recover", "unary"),
    ("meshapi.MeshAPI", "NewMeshCert", "unary"),
    ("meshapi.MeshAPI", "Recover", "unary"),
    ("contrast.history.v1.History", "Streams", "unary"),
    ("contrast.history.v1.History", "Head", "unary"),
    ("contrast.history.v1.History", "Segments", "server_stream"),
    ("contrast.history.v1.History", "Blobs", "server_stream"),
    ("contrast.history.v1.History", "Prove", "unary"),
    ("contrast.proposals.v1.Proposals", "Propose", "unary"),
    ("contrast.proposals.v1.Proposals", "List", "unary"),
    ("contrast.proposals.v1.Proposals", "Approve", "unary"),
    ("contrast.proposals.v1.Proposals", "Withdraw", "unary"),
];

fn method(path: &str) -> Method {
    let known = path.strip_prefix('/').and_then(|path| path.split_once('/')).and_then(|(service, method)| {
        METHODS.iter().find(|(known, name, _)| (*known, *name) == (service, method))
    });
    let (grpc_service, grpc_method, grpc_type) = known.copied().unwrap_or(("unknown", "unknown", "unary"));
    Method { grpc_type, grpc_service, grpc_method }
}

/// Counters of calls.
#[derive(Clone)]
pub(crate) struct GrpcMetrics {
    started: Family<Method, Counter>,
    handled: Family<Handled, Counter>,
    received: Family<Method, Counter>,
    sent: Family<Method, Counter>,
    handling: Family<Method, Histogram>,
}

impl Default for GrpcMetrics {
    fn default() -> Self {
        Self {
            started: Family::default(),
            handled: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            handling: Family::new_with_constructor(seconds),
        }
    }
}

impl GrpcMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("grpc_server_started", "Calls started", self.started.clone());
        registry.register("grpc_server_handled", "Calls completed, by status code", self.handled.clone());
        registry.register("grpc_server_msg_received", "Messages received", self.received.clone());
        registry.register("grpc_server_msg_sent", "Messages sent", self.sent.clone());
        let help = "Time from a call's start to the end of its answer";
        registry.register_with_unit("grpc_server_handling", help, Unit::Seconds, self.handling.clone());
    }

    fn handled(&self, call: &Call, code: Code) {
        let Method { grpc_type, grpc_service, grpc_method } = call.method;
        let handled = Handled { grpc_type, grpc_service, grpc_method, grpc_code: name(code) };
        self.handled.get_or_create(&handled).inc();
        self.handling.get_or_create(&call.method).observe(call.started.elapsed().as_secs_f64());
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// A layer that counts.
#[derive(Clone)]
pub(crate) struct CountCalls(pub(crate) GrpcMetrics);

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: self.0.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    metrics: GrpcMetrics,
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = Call { method: method(request.uri().path()), started: Instant::now() };
        let metrics = self.metrics.clone();
        metrics.started.get_or_create(&call.method).inc();
        metrics.received.get_or_create(&call.method).inc(); // one each: nothing here streams requests
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match Status::from_header_map(answer.headers()) {
                Some(status) => {
                    metrics.handled(&call, status.code());
                    answer
                }
                None => answer.map(|inner| Body::new(Answer { inner, call, metrics, done: false })),
            })
        })
    }
}

struct Call {
    method: Method,
    started: Instant,
}

/// An answer whose status comes at its end.
struct Answer {
    inner: Body,
    call: Call,
    metrics: GrpcMetrics,
    done: bool,
}

impl Answer {
    fn done(&mut self, code: Code) {
        if !std::mem::replace(&mut self.done, true) {
            self.metrics.handled(&self.call, code);
        }
    }
}

/// Number of messages in bytes that hold whole ones: a flag, a length of four bytes, the message.
fn messages(mut bytes: &[u8]) -> u64 {
    let mut count = 0;
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        bytes = usize::try_from(length).ok().and_then(|length| rest.get(length..)).unwrap_or_default();
        count += 1;
    }
    count
}

impl HttpBody for Answer {
    type Data = hyper::body::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.metrics.sent.get_or_create(&self.call.method).inc_by(messages(data));
                }
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    self.done(status.code());
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let code = status.code();
                self.done(code);
            }
            Poll::Ready(None) => self.done(Code::Ok),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.done(Code::Cancelled); // the caller went away before the end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_and_foreign_methods_make_no_labels() {
        assert_eq!(messages(b""), 0);
        assert_eq!(messages(b"\0\0\0\0\x02ab\0\0\0\0\0"), 2);
        assert_eq!(method("/meshapi.MeshAPI/NewMeshCert").grpc_method, "NewMeshCert");
        assert_eq!(method("/made.Up/Method").grpc_service, "unknown");
        assert_eq!(method("nonsense").grpc_method, "unknown");
    }
}
