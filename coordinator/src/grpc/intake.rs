//! Takes each request in as a whole, before its service decodes it: the announced bytes are reserved first, then
//! read, and their fields counted. So a request costs what it may, or is refused when it has cost nothing yet.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use manifest::KeyDigest;
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

use super::peer::{Peer, key_of};
use crate::{
    budget::{Budget, MOST_BYTES, MOST_SMALL_BYTES, Reserved, Right},
    desk::{Desk, Failure},
    patience::{Activity, Pieces, UnderWay},
};

/// Flag and length in front of a message.
const HEAD: usize = 5;
/// Most fields of a message: the policies of the largest manifest, and room. An empty field takes two bytes on the
/// wire and a dozen times as much when it is decoded.
const MOST_FIELDS: usize = 10_100;
/// Methods whose requests carry manifests with their policies.
const LARGE: [&str; 2] =
    ["/edgelesssys.contrast.userapi.UserAPI/SetManifest", "/contrast.proposals.v1.Proposals/Propose"];

/// What is known of a connection when a request comes in on it.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(super) peer: Peer,
    pub(super) source: IpAddr,
    pub(super) activity: Arc<Activity>,
}

impl Seat {
    fn right(&self, desk: &Desk) -> Right {
        match &self.peer {
            Peer::Workload(_) => Right::Workload(self.source),
            Peer::User(Some(certificate)) if is_owner(desk, key_of(certificate)) => Right::Owner(self.source),
            Peer::User(_) | Peer::Turned(_) => Right::Stranger(self.source),
        }
    }
}

/// Whether a key belongs to somebody whom the manifest names.
pub(super) fn is_owner(desk: &Desk, key: Option<KeyDigest>) -> bool {
    key.is_some_and(|key| desk.is_owner(key))
}

/// A layer that takes requests in.
#[derive(Clone)]
pub(crate) struct Intake {
    pub(crate) desk: Desk,
    pub(crate) budget: Budget,
}

impl<S> Layer<S> for Intake {
    type Service = TakenIn<S>;

    fn layer(&self, inner: S) -> TakenIn<S> {
        TakenIn { inner, intake: self.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct TakenIn<S> {
    inner: S,
    intake: Intake,
}

type Answer = http::Response<Body>;

impl<S> Service<http::Request<Body>> for TakenIn<S>
where
    S: Service<http::Request<Body>, Response = Answer> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Some(seat) = request.extensions_mut().remove::<Seat>() else {
            let nobody = Failure::Fault("a connection that nobody accepted".into());
            return Box::pin(async { Ok(Status::from(nobody).into_http()) });
        };
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let Intake { desk, budget } = self.intake.clone();
        let under_way = seat.activity.begin();
        if let Peer::Turned(_) = &seat.peer {
            seat.activity.no_more();
        }
        let right = seat.right(&desk);
        request.extensions_mut().insert(seat.peer);
        request.extensions_mut().insert(right);
        Box::pin(async move {
            let most = if LARGE.contains(&request.uri().path()) { MOST_BYTES } else { MOST_SMALL_BYTES };
            let (parts, body) = request.into_parts();
            let (message, reserved) = match take(body, most, right, &budget, &under_way).await {
                Ok(taken) => taken,
                Err(status) => return Ok(status.into_http()),
            };
            let request = http::Request::from_parts(parts, Body::new(Full::new(message)));
            let answer = inner.call(request).await?;
            // Both until the client has fetched the answer.
            let (mut parts, body) = answer.into_parts();
            let held = (reserved, parts.extensions.remove::<Arc<Reserved>>());
            Ok(http::Response::from_parts(parts, Body::new(Pieces::new(body, under_way, held))))
        })
    }
}

/// The one message of a request, and what it holds of the budget.
async fn take(
    mut body: Body,
    most: usize,
    right: Right,
    budget: &Budget,
    under_way: &UnderWay,
) -> Result<(Bytes, Reserved), Status> {
    let mut taken = Vec::new();
    let mut reserved = None;
    let mut announced = HEAD;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        under_way.progress();
        taken.extend_from_slice(&data);
        if reserved.is_none()
            && let Some((head, _)) = taken.split_first_chunk::<HEAD>()
        {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > most {
                return Err(Failure::TooLarge { most }.into());
            }
            reserved = Some(budget.reserve(right, length)?);
            announced = HEAD + length;
            taken.reserve_exact(announced.saturating_sub(taken.len()));
        }
        if taken.len() > announced {
            return Err(Failure::Malformed("more than one message in a request".into()).into());
        }
    }
    let reserved = match reserved {
        Some(reserved) => reserved,
        None => budget.reserve(right, taken.len())?,
    };
    if count_fields(taken.get(HEAD..).unwrap_or_default()) > MOST_FIELDS {
        return Err(Failure::Malformed(format!("more than {MOST_FIELDS} fields in a request")).into());
    }
    Ok((taken.into(), reserved))
}

/// Number of fields of a message on the wire, as far as they can be read: what follows is refused when decoding.
fn count_fields(mut message: &[u8]) -> usize {
    let mut count = 0;
    while !message.is_empty() {
        let Some(tag) = varint(&mut message) else { break };
        let length = match tag & 7 {
            0 => varint(&mut message).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut message),
            5 => Some(4),
            _ => None,
        };
        let rest = length.and_then(|length| message.get(usize::try_from(length).ok()?..));
        let Some(rest) = rest else { break };
        message = rest;
        count += 1;
    }
    count
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use prost::Message as _;
    use wire::user::SetManifestRequest;

    use super::*;

    fn request(policies: usize) -> Vec<u8> {
        let message = SetManifestRequest { policies: vec![Vec::new(); policies], ..Default::default() };
        message.encode_to_vec()
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], length.as_slice(), message].concat()
    }

    async fn taken(bytes: Vec<u8>) -> Result<usize, tonic::Code> {
        let right = Right::Stranger(Ipv4Addr::LOCALHOST.into());
        let under_way = Activity::new().begin();
        let body = Body::new(Full::new(Bytes::from(bytes)));
        let taken = take(body, MOST_BYTES, right, &Budget::new(), &under_way).await;
        taken.map(|(message, _)| message.len()).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn fields_are_counted_before_they_are_decoded() {
        assert_eq!(count_fields(&request(3)), 3);
        assert_eq!(count_fields(&[0xff; 100]), 0, "nonsense is left to the decoder");
        assert!(taken(framed(&request(10_000))).await.is_ok());
        assert_eq!(taken(framed(&request(8_000_000))).await, Err(tonic::Code::InvalidArgument));
    }

    #[tokio::test]
    async fn what_is_announced_counts_and_not_what_has_come() {
        let announced =
            |length: usize| [&[0], u32::try_from(length).unwrap().to_be_bytes().as_slice()].concat();
        assert_eq!(taken(announced(MOST_BYTES + 1)).await, Err(tonic::Code::OutOfRange));
        assert_eq!(taken([announced(1), vec![0; 9]].concat()).await, Err(tonic::Code::InvalidArgument));
    }
}
