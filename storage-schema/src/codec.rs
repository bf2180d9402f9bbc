//! CBOR, in one place. `serde_cbor` is unmaintained: it is fed only bytes whose hash and signature
//! were checked, behind a limit on size; replacing it touches this file.

use serde::{Serialize, de::DeserializeOwned};

/// Largest encoded value, in bytes.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// Why a value cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Over the limit.
    #[error("{0} bytes of CBOR, at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    /// Not the expected shape.
    #[error("not the expected CBOR: {0}")]
    Malformed(String),
}

#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
fn malformed(error: serde_cbor::Error) -> CodecError {
    CodecError::Malformed(error.to_string())
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = serde_cbor::to_vec(value).map_err(malformed)?;
    if bytes.len() > MAX_BYTES { Err(CodecError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    serde_cbor::from_slice(bytes).map_err(malformed)
}
