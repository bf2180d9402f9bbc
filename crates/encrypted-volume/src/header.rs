//! The binary LUKS2 header (LUKS2 On-Disk Format Specification 1.1, section 2.1), both copies.

use sha2::{Digest as _, Sha256};

use crate::metadata;

/// Size of one copy: the binary part and its JSON.
const COPY: usize = 16 << 10;
const BINARY: usize = 4 << 10;
/// Both copies and the keyslots, in bytes.
pub const HEADER_BYTES: usize = 2 * COPY + metadata::KEYSLOTS_BYTES;

const MAGIC: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// What in a header is not as we would have written it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Too few or too many bytes.
    #[error("a header of {0} bytes, expected {HEADER_BYTES}")]
    Length(usize),
    /// A field of the binary part.
    #[error("copy {copy} of the LUKS2 header, {field}: expected {expected}, found {found}")]
    Binary {
        /// Which of the two.
        copy: usize,
        /// Its field.
        field: &'static str,
        /// What we write there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The two copies say different things.
    #[error("the two copies of the LUKS2 header differ in {0}")]
    CopiesDiffer(&'static str),
    /// The JSON cannot be read, lacks a field, or has one that we never write.
    #[error("LUKS2 metadata: {0}")]
    Json(String),
    /// A field of the JSON.
    #[error("LUKS2 metadata, {field}: expected {expected}, found {found}")]
    Field {
        /// Its path.
        field: &'static str,
        /// What we write there.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// Checks that a header is one that we would have written: LUKS2, one keyslot, one segment at our offset,
/// our cipher, integrity and key sizes, nothing else.
pub fn check_header(bytes: &[u8]) -> Result<(), HeaderError> {
    if bytes.len() != HEADER_BYTES {
        return Err(HeaderError::Length(bytes.len()));
    }
    let (first, rest) = bytes.split_at(COPY);
    let second = rest.get(..COPY).unwrap_or_default();
    for (number, copy) in [first, second].into_iter().enumerate() {
        check_copy(number, copy)?;
    }
    let same = |what, range: std::ops::Range<usize>| match first.get(range.clone()) == second.get(range) {
        true => Ok(()),
        false => Err(HeaderError::CopiesDiffer(what)),
    };
    same("their sequence number", 16..24)?;
    same("the UUID", 168..208)?;
    same("the metadata", BINARY..COPY)?;

    let json = first.get(BINARY..).unwrap_or_default();
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let (text, padding) = json.split_at(end);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(HeaderError::Json("something follows after its end".into()));
    }
    metadata::check(text)
}

fn check_copy(copy: usize, bytes: &[u8]) -> Result<(), HeaderError> {
    let place = (copy * COPY) as u64;
    let magic = MAGIC.get(copy).map(|magic| magic.as_slice()).unwrap_or_default();
    let fields: [(&'static str, usize, Vec<u8>); 7] = [
        ("magic", 0, magic.to_vec()),
        ("version", 6, 2_u16.to_be_bytes().to_vec()),
        ("size", 8, (COPY as u64).to_be_bytes().to_vec()),
        ("label", 24, vec![0; 48]),
        ("checksum algorithm", 72, padded(b"sha256", 32)),
        ("subsystem", 208, vec![0; 48]),
        ("offset", 256, place.to_be_bytes().to_vec()),
    ];
    let wrong = |field, expected: &[u8], found: &[u8]| {
        let (expected, found) = (readable(expected), readable(found));
        Err(HeaderError::Binary { copy, field, expected, found })
    };
    for (field, at, expected) in fields {
        let found = bytes.get(at..at + expected.len()).unwrap_or_default();
        if found != expected {
            return wrong(field, &expected, found);
        }
    }
    for (field, range) in [("padding", 264..448), ("padding after the checksum", 512..BINARY)] {
        let found = bytes.get(range).unwrap_or_default();
        if let Some(byte) = found.iter().find(|byte| **byte != 0) {
            return wrong(field, &[0], &[*byte]);
        }
    }
    let mut without_checksum = bytes.to_vec();
    if let Some(field) = without_checksum.get_mut(CHECKSUM) {
        field.fill(0);
    }
    let expected = padded(&Sha256::digest(&without_checksum), 64);
    match bytes.get(CHECKSUM).unwrap_or_default() {
        found if found == expected => Ok(()),
        found => wrong("checksum", &expected, found),
    }
}

fn padded(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(length, 0);
    padded
}

fn readable(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    format!("\"{}\"", bytes.get(..end).unwrap_or_default().escape_ascii())
}
