//! The table of certificates that a host hands to its SEV-SNP guests (AMD 56421, GHCB, 4.1.8.1):
//! entries of a GUID, an offset and a length, ended by zeros; the certificates behind them.

use crate::{SnpEvidence, pem};

/// Most entries that are read.
const MAX_ENTRIES: usize = 16;
const ENTRY_BYTES: usize = 24;

/// The certificates of a table, DER each; empty where the host sent none. Hosts store what their admins
/// gave them, so PEM is read too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateTable {
    /// Chip endorsement key.
    pub vcek: Vec<u8>,
    /// Provider's endorsement key.
    pub vlek: Vec<u8>,
    /// AMD's signing key.
    pub ask: Vec<u8>,
    /// AMD's root.
    pub ark: Vec<u8>,
    /// Revocation list.
    pub crl: Option<Vec<u8>>,
}

/// Why bytes are not a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No entry of zeros within the limit.
    #[error("the certificate table has no end within {MAX_ENTRIES} entries")]
    Endless,
    /// An entry names bytes that are not there.
    #[error("the certificate table names {length} bytes at {offset}, it has {size}")]
    Outside {
        /// Where the certificate should begin.
        offset: usize,
        /// Its length, in bytes.
        length: usize,
        /// Size of the table with its certificates, in bytes.
        size: usize,
    },
}

impl CertificateTable {
    /// Reads a table. No bytes at all are an empty table.
    pub fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        let mut table = Self::default();
        if bytes.is_empty() {
            return Ok(table);
        }
        for entry in bytes.chunks_exact(ENTRY_BYTES).take(MAX_ENTRIES) {
            let (guid, place) = entry.split_at(16);
            if guid.iter().all(|byte| *byte == 0) {
                return Ok(table);
            }
            let number = |at: usize| {
                place[at..at + 4].iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
            };
            let (offset, length) = (number(0), number(4));
            let outside = TableError::Outside { offset, length, size: bytes.len() };
            let end = offset.checked_add(length).ok_or_else(|| outside.clone())?;
            let certificate = pem::to_der(bytes.get(offset..end).ok_or(outside)?.to_vec());
            match guid_text(guid).as_str() {
                "63da758d-e664-4564-adc5-f4b93be8accd" => table.vcek = certificate,
                "a8074bc2-a25a-483e-aae6-39c045a0b8a1" => table.vlek = certificate,
                "4ab7b379-bbac-4fe4-a02f-05aef327c782" => table.ask = certificate,
                "c0b406a4-a803-4952-9743-3fb6014cd0ae" => table.ark = certificate,
                "92f81bc3-5811-4d3d-97ff-d19f88dc67ea" => table.crl = Some(certificate),
                _ => {}
            }
        }
        Err(TableError::Endless)
    }

    /// Evidence without its report.
    pub(super) fn into_chain(self) -> SnpEvidence {
        let Self { vcek, vlek, ask, ark, crl } = self;
        SnpEvidence { report: Vec::new(), vcek, vlek, ask, ark, crl }
    }
}

fn guid_text(bytes: &[u8]) -> String {
    let text = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VCEK: &str = "63da758de6644564adc5f4b93be8accd";

    fn table(entries: &[(&str, u32, u32)], certificates: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (guid, offset, length) in entries {
            bytes.extend(hex::decode(guid).unwrap());
            bytes.extend(offset.to_le_bytes());
            bytes.extend(length.to_le_bytes());
        }
        bytes.extend([0; ENTRY_BYTES]);
        bytes.extend(certificates);
        bytes
    }

    #[test]
    fn certificates_are_found_by_their_guid() {
        let ark = "c0b406a4a803495297433fb6014cd0ae";
        let bytes = table(&[(VCEK, 72, 4), (ark, 76, 3)], b"vcekark");
        let found = CertificateTable::parse(&bytes).unwrap();
        assert_eq!((found.vcek.as_slice(), found.ark.as_slice()), (b"vcek".as_slice(), b"ark".as_slice()));
        assert_eq!(CertificateTable::parse(&[]), Ok(CertificateTable::default()));
    }

    /// `sev` 8.0.0 follows these offsets out of its buffer.
    #[test]
    fn entries_that_point_outside_are_refused() {
        for (offset, length) in [(48, 100), (u32::MAX, 1), (1, u32::MAX), (1_000_000, 0)] {
            let outcome = CertificateTable::parse(&table(&[(VCEK, offset, length)], b"vcek"));
            assert!(matches!(outcome, Err(TableError::Outside { .. })), "{offset} {length}: {outcome:?}");
        }
        let endless = vec![1; 20 * ENTRY_BYTES];
        assert!(CertificateTable::parse(&endless).is_err());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_tables_never_panic(bytes: Vec<u8>) {
            let _ = CertificateTable::parse(&bytes);
        }
    }
}
