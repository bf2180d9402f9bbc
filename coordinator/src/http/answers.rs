//! Requests and answers of the HTTP API: JSON, with bytes as base64.

use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
};

use axum::{extract::Request, response::Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{StatusCode, header::CONTENT_TYPE};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor},
};
use zeroize::Zeroizing;

use super::{
    error::{ApiError, Code},
    server::{body, json},
};

/// Bytes that are standard base64 with padding in JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?); // it may be a seed
        let decoded = BASE64_STANDARD.decode(text.as_bytes()).map(Self);
        decoded.map_err(|_| serde::de::Error::custom("expected standard base64 with padding"))
    }
}

/// A JSON answer with one trailing newline.
pub(super) fn answer(value: &impl Serialize) -> Result<Response, ApiError> {
    let mut body = serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))?;
    body.push(b'\n');
    Ok(json(StatusCode::OK, body))
}

/// Where a request came from.
pub(super) fn source_of(request: &Request) -> Result<IpAddr, ApiError> {
    let source = request.extensions().get::<SocketAddr>();
    source.map(SocketAddr::ip).ok_or_else(|| ApiError::internal("a request without a source"))
}

/// Reads a JSON request of at most `most` bytes.
pub(super) async fn read<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, ApiError> {
    let media_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type =
        media_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match media_type.as_deref() {
        Some("application/json") => {}
        Some(other) if other.split('/').filter(|part| !part.is_empty()).count() == 2 => {
            let text = "Content-Type: expected application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, text));
        }
        _ => {
            return Err(ApiError::malformed("Content-Type: missing or malformed, expected application/json"));
        }
    }
    let bytes = body(request, most).await.map_err(|status| {
        let text = format!("the request is larger than {most} bytes, or was broken off");
        ApiError::new(status, Code::InvalidArgument, text)
    })?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::malformed(format!("the body: {error}")))
}

/// Reads a list, or nothing, of at most `N` entries: it stops at the first one too many, before it takes memory.
pub(crate) fn at_most<'de, D, T, const N: usize>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<T, const N: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for AtMost<T, N> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "a list of at most {N} entries")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while list.len() < N {
                match seq.next_element()? {
                    Some(entry) => list.push(entry),
                    None => return Ok(Some(list)),
                }
            }
            if seq.next_element::<IgnoredAny>()?.is_some() {
                return Err(A::Error::custom(format!("more than {N} entries")));
            }
            Ok(Some(list))
        }
    }

    deserializer.deserialize_any(AtMost::<T, N>(PhantomData))
}
