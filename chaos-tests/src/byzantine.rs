//! A member of etcd that lies, or rather a proxy before an honest one that speaks its protocol.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http2::SendRequest,
    http::response::Parts,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// What the member does with questions and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing but pass them on.
    None,
    /// Flips a byte in what was read.
    Rewrite,
    /// Gives the answer that the same question got first.
    Replay,
    /// Acknowledges writes and forgets them.
    Forget,
    /// Passes on questions in another order than they came.
    Reorder,
}

type Body = BoxBody<Bytes, hyper::Error>;

/// The answer to a unary call.
#[derive(Clone)]
struct Answer {
    parts: Parts,
    body: Bytes,
    trailers: HeaderMap,
}

/// A lying member.
pub struct Byzantine {
    /// Where it listens.
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    target: SocketAddr,
    lie: Mutex<Lie>,
    /// First answers since the lie began, by path and question; the last acknowledged write under its path.
    answers: Mutex<HashMap<(String, Bytes), Answer>>,
    /// Questions so far: where a byte is flipped, how long a question waits.
    count: AtomicU64,
}

impl Byzantine {
    /// Listens on a free port, before the member at `target`.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("byzantine proxy")?;
        let address = listener.local_addr()?;
        let inner =
            Inner { target, lie: Mutex::new(Lie::None), answers: Mutex::default(), count: AtomicU64::new(0) };
        let inner = Arc::new(inner);
        let serving = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, Arc::clone(&serving)));
            }
        });
        Ok(Self { address, inner })
    }

    /// Lies from now on, or not any more.
    pub fn set(&self, lie: Lie) {
        *self.inner.lie.lock().unwrap_or_else(PoisonError::into_inner) = lie;
        if lie == Lie::None {
            self.inner.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

async fn connection(client: TcpStream, inner: Arc<Inner>) {
    let Ok(server) = TcpStream::connect(inner.target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true)); // only a matter of speed
    let Ok((sender, to_member)) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server)).await
    else {
        return;
    };
    let service = service_fn(move |request| {
        let (sender, inner) = (sender.clone(), Arc::clone(&inner));
        async move { Ok::<_, Infallible>(inner.answer(request, sender).await.unwrap_or_else(|_| gone())) }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::select! {
        _ = serving.serve_connection(TokioIo::new(client), service) => {}
        _ = to_member => {}
    }
}

/// What gRPC takes for a member that went away.
fn gone() -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed());
    *response.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
    response
}

impl Inner {
    async fn answer(
        &self,
        request: Request<Incoming>,
        mut sender: SendRequest<Body>,
    ) -> Result<Response<Body>, hyper::Error> {
        let path = request.uri().path().to_owned();
        if !path.starts_with("/etcdserverpb.KV/") {
            let answer = sender.send_request(request.map(BodyExt::boxed)).await?;
            return Ok(answer.map(BodyExt::boxed));
        }
        let (head, body) = request.into_parts();
        let question = body.collect().await?.to_bytes();
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let lie = *self.lie.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_read, is_write) = (path.ends_with("/Range"), path.ends_with("/Txn"));
        let known = match lie {
            Lie::Replay if is_read => self.known(&path, &question),
            Lie::Forget if is_write => self.known(&path, &Bytes::new()),
            _ => None,
        };
        if let Some(answer) = known {
            return Ok(answer.into_response());
        }
        if lie == Lie::Reorder {
            tokio::time::sleep(Duration::from_millis(count.wrapping_mul(37) % 150)).await;
        }
        let body = Full::new(question.clone()).map_err(|never| match never {}).boxed();
        let (parts, body) = sender.send_request(Request::from_parts(head, body)).await?.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let mut answer = Answer { parts, body: collected.to_bytes(), trailers };
        if lie == Lie::Rewrite && is_read && answer.body.len() > 100 {
            let mut bytes = answer.body.to_vec();
            // Behind the frame's own five bytes, where etcd's answer begins.
            let place = 5 + usize::try_from(count).unwrap_or(0).wrapping_mul(7919) % (bytes.len() - 5);
            bytes[place] ^= 0x40;
            answer.body = bytes.into();
        }
        let key = if is_write { Bytes::new() } else { question };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if lie == Lie::Replay || (is_write && answer.acknowledges()) {
            answers.entry((path, key)).or_insert_with(|| answer.clone());
        }
        Ok(answer.into_response())
    }

    fn known(&self, path: &str, question: &Bytes) -> Option<Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(&(path.to_owned(), question.clone())).cloned()
    }
}

impl Answer {
    /// Whether a transaction succeeded: etcd's field 2 is there only then.
    fn acknowledges(&self) -> bool {
        let header = self.body.get(6).map(|length| usize::from(*length)).unwrap_or_default();
        self.body.get(7 + header..9 + header) == Some(&[0x10, 1])
    }

    fn into_response(self) -> Response<Body> {
        let trailers = std::future::ready(Some(Ok(self.trailers)));
        let body = Full::new(self.body).with_trailers(trailers).map_err(|never: Infallible| match never {});
        Response::from_parts(self.parts, body.boxed())
    }
}
