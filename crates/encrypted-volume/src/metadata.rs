//! The JSON of a LUKS2 header (LUKS2 On-Disk Format Specification 1.1, section 3), field by field.
//!
//! Every object's fields are known, all others are refused: no second keyslot or segment, no token, no
//! requirement, no field that a later cryptsetup would obey.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::{DATA_OFFSET, HeaderError};

/// Cipher of data and of the keyslot.
pub const CIPHER: &str = "aes-xts-plain64";
/// How cryptsetup is told to authenticate sectors.
pub const INTEGRITY: &str = "hmac-sha256";
/// Key of the cipher alone, in bits.
pub const KEY_BITS: u64 = 512;
/// Memory that unlocking takes (docs/spec/data-plane.md, section 1), in KiB.
pub const KDF_MEMORY_KIB: u64 = 10_240;
/// Size of the area for keyslots, in bytes.
pub const KEYSLOTS_BYTES: usize = 1 << 20;
/// Size of a sector, in bytes.
pub const SECTOR_BYTES: u64 = 4096;

const INTEGRITY_IN_HEADER: &str = "hmac(sha256)";
const INTEGRITY_KEY_BYTES: u64 = 32;
const STRIPES: u64 = 4000;
/// After both copies of the header.
const KEYSLOT_OFFSET: &str = "32768";
const SALT_BYTES: std::ops::RangeInclusive<usize> = 32..=64;
/// A passphrase of 512 random bits needs no stretching; these bound what a header makes us do.
const ARGON2_TIME: std::ops::RangeInclusive<u64> = 1..=64;
const ARGON2_CPUS: std::ops::RangeInclusive<u64> = 1..=4;
const DIGEST_ITERATIONS: std::ops::RangeInclusive<u64> = 1000..=100_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    keyslots: Only<Keyslot>,
    tokens: Nothing,
    segments: Only<Segment>,
    digests: Only<KeyDigest>,
    config: Config,
}

/// An object with the one member `0`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Only<T> {
    #[serde(rename = "0")]
    it: T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyslot {
    r#type: String,
    key_size: u64,
    af: AntiForensic,
    area: Area,
    kdf: Kdf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AntiForensic {
    r#type: String,
    stripes: u64,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    r#type: String,
    time: u64,
    memory: u64,
    cpus: u64,
    salt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u64,
    integrity: Integrity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Integrity {
    r#type: String,
    journal_encryption: String,
    journal_integrity: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyDigest {
    r#type: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u64,
    salt: String,
    digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    json_size: String,
    keyslots_size: String,
}

pub(crate) fn check(json: &[u8]) -> Result<(), HeaderError> {
    let found: Metadata =
        serde_json::from_slice(json).map_err(|error| HeaderError::Json(error.to_string()))?;
    keyslot(&found.keyslots.it)?;
    let Nothing {} = found.tokens;
    segment(&found.segments.it)?;
    digest(&found.digests.it)?;
    is("config.json_size", "12288", &found.config.json_size)?;
    is("config.keyslots_size", &KEYSLOTS_BYTES.to_string(), &found.config.keyslots_size)
}

fn keyslot(slot: &Keyslot) -> Result<(), HeaderError> {
    let key_bytes = KEY_BITS / 8;
    let whole_key = key_bytes + INTEGRITY_KEY_BYTES;
    is("keyslots.0.type", "luks2", &slot.r#type)?;
    is("keyslots.0.key_size", &whole_key, &slot.key_size)?;
    is("keyslots.0.af.type", "luks1", &slot.af.r#type)?;
    is("keyslots.0.af.stripes", &STRIPES, &slot.af.stripes)?;
    is("keyslots.0.af.hash", "sha256", &slot.af.hash)?;
    is("keyslots.0.area.type", "raw", &slot.area.r#type)?;
    is("keyslots.0.area.offset", KEYSLOT_OFFSET, &slot.area.offset)?;
    let area = (whole_key * STRIPES).next_multiple_of(4096).to_string();
    is("keyslots.0.area.size", &area, &slot.area.size)?;
    is("keyslots.0.area.encryption", CIPHER, &slot.area.encryption)?;
    is("keyslots.0.area.key_size", &key_bytes, &slot.area.key_size)?;
    is("keyslots.0.kdf.type", "argon2id", &slot.kdf.r#type)?;
    within("keyslots.0.kdf.time", &ARGON2_TIME, slot.kdf.time)?;
    is("keyslots.0.kdf.memory", &KDF_MEMORY_KIB, &slot.kdf.memory)?;
    within("keyslots.0.kdf.cpus", &ARGON2_CPUS, slot.kdf.cpus)?;
    bytes("keyslots.0.kdf.salt", &SALT_BYTES, &slot.kdf.salt)
}

fn segment(segment: &Segment) -> Result<(), HeaderError> {
    is("segments.0.type", "crypt", &segment.r#type)?;
    is("segments.0.offset", &DATA_OFFSET.to_string(), &segment.offset)?;
    is("segments.0.size", "dynamic", &segment.size)?;
    is("segments.0.iv_tweak", "0", &segment.iv_tweak)?;
    is("segments.0.encryption", CIPHER, &segment.encryption)?;
    is("segments.0.sector_size", &SECTOR_BYTES, &segment.sector_size)?;
    is("segments.0.integrity.type", INTEGRITY_IN_HEADER, &segment.integrity.r#type)?;
    is("segments.0.integrity.journal_encryption", "none", &segment.integrity.journal_encryption)?;
    is("segments.0.integrity.journal_integrity", "none", &segment.integrity.journal_integrity)
}

fn digest(digest: &KeyDigest) -> Result<(), HeaderError> {
    is("digests.0.type", "pbkdf2", &digest.r#type)?;
    is("digests.0.keyslots", "0", &digest.keyslots.join(","))?;
    is("digests.0.segments", "0", &digest.segments.join(","))?;
    is("digests.0.hash", "sha256", &digest.hash)?;
    within("digests.0.iterations", &DIGEST_ITERATIONS, digest.iterations)?;
    bytes("digests.0.salt", &SALT_BYTES, &digest.salt)?;
    bytes("digests.0.digest", &(32..=32), &digest.digest)
}

fn is<T, F>(field: &'static str, expected: &T, found: &F) -> Result<(), HeaderError>
where
    T: PartialEq + fmt::Display + ?Sized,
    F: std::borrow::Borrow<T> + fmt::Display,
{
    match found.borrow() == expected {
        true => Ok(()),
        false => Err(HeaderError::Field { field, expected: expected.to_string(), found: found.to_string() }),
    }
}

fn within(
    field: &'static str,
    expected: &std::ops::RangeInclusive<u64>,
    found: u64,
) -> Result<(), HeaderError> {
    match expected.contains(&found) {
        true => Ok(()),
        false => {
            Err(HeaderError::Field { field, expected: format!("{expected:?}"), found: found.to_string() })
        }
    }
}

fn bytes(
    field: &'static str,
    expected: &std::ops::RangeInclusive<usize>,
    found: &str,
) -> Result<(), HeaderError> {
    match STANDARD.decode(found) {
        Ok(bytes) if expected.contains(&bytes.len()) => Ok(()),
        _ => Err(HeaderError::Field {
            field,
            expected: format!("base64 of {expected:?} bytes"),
            found: found.chars().take(100).collect(),
        }),
    }
}
