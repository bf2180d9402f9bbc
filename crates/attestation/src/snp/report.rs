//! The attestation report: 1184 bytes, little endian (AMD 56860 table 23; docs/spec/attestation.md,
//! section 7.3).

use manifest::SnpProduct;

use crate::EvidenceError;

pub(crate) const REPORT_BYTES: usize = 1184;
/// The signature covers the report up to here.
pub(crate) const SIGNED_BYTES: usize = 0x2a0;

/// A report as received. Fields are read where they are used; nothing is re-encoded.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Report([u8; REPORT_BYTES]);

/// Which kind of key signed a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SigningKey {
    /// Of one chip.
    Vcek,
    /// Of a cloud provider.
    Vlek,
}

impl Report {
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let length = EvidenceError::Length { field: "report", expected: REPORT_BYTES, found: bytes.len() };
        bytes.try_into().map(Self).map_err(|_| length)
    }

    pub(crate) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn version(&self) -> u32 {
        self.u32(0)
    }

    pub(crate) fn policy(&self) -> u64 {
        self.u64(0x08)
    }

    pub(crate) fn vmpl(&self) -> u32 {
        self.u32(0x30)
    }

    pub(crate) fn signature_algorithm(&self) -> u32 {
        self.u32(0x34)
    }

    pub(crate) fn platform_info(&self) -> u64 {
        self.u64(0x40)
    }

    pub(crate) fn signing_key(&self) -> Option<SigningKey> {
        match (self.u32(0x48) >> 2) & 7 {
            0 => Some(SigningKey::Vcek),
            1 => Some(SigningKey::Vlek),
            _ => None,
        }
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        self.bytes(0x50)
    }

    pub(crate) fn measurement(&self) -> [u8; 48] {
        self.bytes(0x90)
    }

    pub(crate) fn host_data(&self) -> [u8; 32] {
        self.bytes(0xc0)
    }

    pub(crate) fn chip_id(&self) -> [u8; 64] {
        self.bytes(0x1a0)
    }

    /// Version 3 and newer say which processor they come from; version 2 does not, but Turin alone
    /// leaves most of the chip id zero.
    pub(crate) fn product(&self) -> Option<SnpProduct> {
        let [family, model, _stepping] = self.bytes(0x188);
        match (self.version(), family, model) {
            (2, ..) => None,
            (_, 0x19, 0x00..=0x0f) => Some(SnpProduct::Milan),
            (_, 0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(SnpProduct::Genoa),
            (_, 0x1a, 0x00..=0x11) => Some(SnpProduct::Turin),
            _ => None,
        }
    }

    pub(crate) fn signed_part(&self) -> &[u8] {
        &self.0[..SIGNED_BYTES]
    }

    /// `r || s`, big endian; `None` if a byte that belongs to neither is set.
    pub(crate) fn signature(&self) -> Option<[u8; 96]> {
        let (r, rest) = self.0[SIGNED_BYTES..].split_at(72);
        let (s, reserved) = rest.split_at(72);
        if r[48..].iter().chain(&s[48..]).chain(reserved).any(|byte| *byte != 0) {
            return None;
        }
        let mut signature = [0; 96];
        for (to, from) in signature[..48].iter_mut().zip(r[..48].iter().rev()) {
            *to = *from;
        }
        for (to, from) in signature[48..].iter_mut().zip(s[..48].iter().rev()) {
            *to = *from;
        }
        Some(signature)
    }
}
