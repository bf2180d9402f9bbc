//! The attestation report: 1184 bytes, little endian (AMD 56860, table of `ATTESTATION_REPORT`;
//! docs/spec/attestation.md, section 7.3).
//!
//! The one place that knows where a field is. Versions 2 to 5 have one layout: version 3 added the
//! processor's family, model and stepping, version 4 nothing that is read here, version 5 the
//! mitigation vectors. Bytes that a version does not have are reserved in it and are not read.

use manifest::SnpProduct;

use super::Tcb;
use crate::EvidenceError;

pub(crate) const REPORT_BYTES: usize = 1184;
/// The signature covers the report up to here.
pub(crate) const SIGNED_BYTES: usize = 0x2a0;
/// Versions that are judged.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = 2..=5;

/// Where a field begins; `N` is its size in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Place<const N: usize>(pub(crate) usize);

macro_rules! places {
    ($($name:ident: $at:literal, $size:literal;)*) => {
        /// Where each field of a report is.
        pub(crate) mod place {
            use super::Place;

            $(pub(crate) const $name: Place<$size> = Place($at);)*

            #[cfg(test)]
            pub(crate) const ALL: &[(&str, usize, usize)] = &[$((stringify!($name), $at, $size)),*];
        }
    };
}

places! {
    VERSION: 0x00, 4;
    GUEST_SVN: 0x04, 4;
    POLICY: 0x08, 8;
    FAMILY_ID: 0x10, 16;
    IMAGE_ID: 0x20, 16;
    VMPL: 0x30, 4;
    SIGNATURE_ALGORITHM: 0x34, 4;
    CURRENT_TCB: 0x38, 8;
    PLATFORM_INFO: 0x40, 8;
    KEY_INFO: 0x48, 4;
    REPORT_DATA: 0x50, 64;
    MEASUREMENT: 0x90, 48;
    HOST_DATA: 0xc0, 32;
    ID_KEY_DIGEST: 0xe0, 48;
    AUTHOR_KEY_DIGEST: 0x110, 48;
    REPORT_ID: 0x140, 32;
    REPORT_ID_MA: 0x160, 32;
    REPORTED_TCB: 0x180, 8;
    PROCESSOR: 0x188, 3;
    CHIP_ID: 0x1a0, 64;
    COMMITTED_TCB: 0x1e0, 8;
    CURRENT_FIRMWARE: 0x1e8, 3;
    COMMITTED_FIRMWARE: 0x1ec, 3;
    LAUNCH_TCB: 0x1f0, 8;
    LAUNCH_MITIGATIONS: 0x1f8, 8;
    CURRENT_MITIGATIONS: 0x200, 8;
    SIGNATURE: 0x2a0, 512;
}

/// Bytes of the signed part that belong to no field.
pub(crate) const RESERVED: [std::ops::Range<usize>; 5] =
    [0x4c..0x50, 0x18b..0x1a0, 0x1eb..0x1ec, 0x1ef..0x1f0, 0x208..SIGNED_BYTES];

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

    pub(crate) fn get<const N: usize>(&self, Place(at): Place<N>) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }

    pub(crate) fn u32(&self, place: Place<4>) -> u32 {
        u32::from_le_bytes(self.get(place))
    }

    pub(crate) fn u64(&self, place: Place<8>) -> u64 {
        u64::from_le_bytes(self.get(place))
    }

    pub(crate) fn version(&self) -> u32 {
        self.u32(place::VERSION)
    }

    pub(crate) fn signing_key(&self) -> Option<SigningKey> {
        match (self.u32(place::KEY_INFO) >> 2) & 7 {
            0 => Some(SigningKey::Vcek),
            1 => Some(SigningKey::Vlek),
            _ => None,
        }
    }

    pub(crate) fn tcb(&self, place: Place<8>, product: SnpProduct) -> Tcb {
        Tcb::from_report(self.get(place), product)
    }

    /// Mitigations of the firmware at launch and now; versions before 5 do not say, and count as none.
    pub(crate) fn mitigations(&self, place: Place<8>) -> u64 {
        if self.version() < 5 { 0 } else { self.u64(place) }
    }

    /// Family, model and stepping; version 2 does not say them.
    pub(crate) fn processor(&self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| self.get(place::PROCESSOR))
    }

    /// Version 3 and newer say which processor they come from; version 2 does not, but Turin alone
    /// leaves most of the chip id zero.
    pub(crate) fn product(&self) -> Option<SnpProduct> {
        let [family, model, _stepping] = self.processor()?;
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(SnpProduct::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(SnpProduct::Genoa),
            (0x1a, 0x00..=0x11) => Some(SnpProduct::Turin),
            _ => None,
        }
    }

    /// Ranges of the signed part that this version leaves reserved and that are not zero: where each
    /// begins, and its bytes.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let later = [(3, 0x188..0x18b), (5, 0x1f8..0x208)];
        let later = later.into_iter().filter(|(since, _)| self.version() < *since).map(|(_, range)| range);
        let bytes = RESERVED.into_iter().chain(later).map(|range| (range.start, &self.0[range]));
        bytes.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_reserved_bytes_cover_a_report_once() {
        let mut owner = vec![None; REPORT_BYTES];
        let reserved = RESERVED.map(|range| ("reserved", range.start, range.len()));
        for &(name, at, size) in place::ALL.iter().chain(&reserved) {
            for byte in &mut owner[at..at + size] {
                assert_eq!(*byte, None, "{name} overlaps");
                *byte = Some(name);
            }
        }
        assert_eq!(owner.iter().position(Option::is_none), None, "a byte without an owner");
    }
}
