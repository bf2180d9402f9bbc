//! The hash by which UEFI measures a PE image (Microsoft, "Windows Authenticode Portable Executable
//! Signature Format", calculating the PE image hash), with SHA-384.

use sha2::{Digest as _, Sha384};

use crate::{MeasureError, malformed};

const WHAT: &str = "kernel";

fn u16_at(bytes: &[u8], at: usize) -> Result<usize, MeasureError> {
    let field = at.checked_add(2).and_then(|end| bytes.get(at..end));
    field
        .map(|field| usize::from(u16::from_le_bytes([field[0], field[1]])))
        .ok_or_else(|| malformed(WHAT, "the PE header is cut off"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, MeasureError> {
    let field = at.checked_add(4).and_then(|end| bytes.get(at..end));
    let number = field.map(|field| u32::from_le_bytes([field[0], field[1], field[2], field[3]]));
    number.map(|number| number as usize).ok_or_else(|| malformed(WHAT, "the PE header is cut off"))
}

/// SHA-384 over everything but the checksum, the certificate table's entry, and the certificates.
pub(crate) fn hash(image: &[u8]) -> Result<[u8; 48], MeasureError> {
    if !image.starts_with(b"MZ") {
        return Err(malformed(WHAT, "it is no EFI image: it does not begin with MZ"));
    }
    let pe = u32_at(image, 0x3c)?;
    if image.get(pe..).is_none_or(|rest| !rest.starts_with(b"PE\0\0")) {
        return Err(malformed(WHAT, "it has no PE header"));
    }
    let sections = u16_at(image, pe + 6)?;
    let optional = pe + 24;
    let optional_size = u16_at(image, pe + 20)?;
    let directories = match u16_at(image, optional)? {
        0x10b => optional + 96,
        0x20b => optional + 112,
        other => return Err(malformed(WHAT, format!("unknown kind of PE header {other:#x}"))),
    };
    let headers = u32_at(image, optional + 60)?;
    let checksum = optional + 64;
    let entry = directories + 4 * 8; // the fifth entry is the certificate table's
    let certificates = u32_at(image, entry + 4)?;
    let part = |from: usize, to: usize| {
        image.get(from..to).ok_or_else(|| malformed(WHAT, "the PE image is cut off"))
    };

    let mut hasher = Sha384::new();
    hasher.update(part(0, checksum)?);
    hasher.update(part(checksum + 4, entry)?);
    hasher.update(part(entry + 8, headers)?);
    let mut parts = Vec::new();
    for index in 0..sections {
        let header = optional + optional_size + index * 40;
        let (size, at) = (u32_at(image, header + 16)?, u32_at(image, header + 20)?);
        if size > 0 {
            parts.push((at, size));
        }
    }
    parts.sort_unstable();
    let mut hashed = headers;
    for (at, size) in parts {
        let end = at.checked_add(size).ok_or_else(|| malformed(WHAT, "a section is larger than the file"))?;
        hasher.update(part(at, end)?);
        hashed += size;
    }
    let end = image.len().saturating_sub(certificates);
    if end > hashed {
        hasher.update(part(hashed, end)?);
    }
    Ok(hasher.finalize().into())
}
