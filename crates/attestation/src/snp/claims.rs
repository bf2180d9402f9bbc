//! What a verified report says, and how a workload's certificate repeats it.

use manifest::{KeyDigest, PolicyHash, SnpProduct};

use super::{Report, Tcb};
use crate::Platform;

/// What was proven about a workload. Only the verifier makes one.
#[derive(Clone)]
pub struct Claims {
    platform: Platform,
    product: SnpProduct,
    root: KeyDigest,
    report: Report,
    reference: usize,
}

impl Claims {
    pub(crate) fn new(
        platform: Platform,
        product: SnpProduct,
        root: KeyDigest,
        report: Report,
        reference: usize,
    ) -> Self {
        Self { platform, product, root, report, reference }
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The processor line.
    pub fn product(&self) -> SnpProduct {
        self.product
    }

    /// SHA-256 of the root certificate that the evidence leads to.
    pub fn root(&self) -> KeyDigest {
        self.root
    }

    /// JSON path of the manifest's entry that the evidence met.
    pub fn met_reference(&self) -> String {
        format!("ReferenceValues.snp[{}]", self.reference)
    }

    /// The policy that the guest runs under: the report's HOSTDATA.
    pub fn policy_hash(&self) -> PolicyHash {
        PolicyHash::from_bytes(self.report.host_data())
    }

    /// Launch digest.
    pub fn measurement(&self) -> [u8; 48] {
        self.report.measurement()
    }

    /// Security versions that the platform vouches for.
    pub fn reported_tcb(&self) -> Tcb {
        self.tcb(0x180)
    }

    fn tcb(&self, at: usize) -> Tcb {
        Tcb::from_report(self.report.bytes(at), self.product)
    }

    /// The claims as certificate extensions: object identifier and DER value (spec
    /// control-plane.md 4.4).
    pub fn extensions(&self) -> Vec<(Vec<u64>, Vec<u8>)> {
        let report = &self.report;
        let policy = report.policy();
        let bit = |value: u64, n: u32| boolean(value >> n & 1 == 1);
        let info = report.platform_info();
        let key_info = u64::from(report.u32(0x48));
        let byte = |at: usize| integer(u64::from(report.bytes::<1>(at)[0]));
        let mut values = vec![
            (1, integer(u64::from(report.version()))),
            (2, integer(u64::from(report.u32(0x04)))),
            (3, integer(policy >> 8 & 0xff)),
            (4, integer(policy & 0xff)),
            (5, bit(policy, 19)),
            (6, bit(policy, 18)),
            (7, bit(policy, 16)),
            (8, bit(policy, 20)),
            (9, octets(&report.bytes::<16>(0x10))),
            (10, octets(&report.bytes::<16>(0x20))),
            (11, integer(u64::from(report.vmpl()))),
            (16, bit(info, 0)),
            (17, bit(info, 1)),
            (18, bit(key_info, 0)),
            (19, bit(key_info, 1)),
            (20, integer(key_info >> 2 & 7)),
            (21, octets(&report.report_data())),
            (22, octets(&report.measurement())),
            (23, octets(&report.host_data())),
            (24, octets(&report.bytes::<48>(0xe0))),
            (25, octets(&report.bytes::<48>(0x110))),
            (26, octets(&report.bytes::<32>(0x140))),
            (27, octets(&report.bytes::<32>(0x160))),
            (32, octets(&report.chip_id())),
            (37, byte(0x1e8)),
            (38, byte(0x1e9)),
            (39, byte(0x1ea)),
            (40, byte(0x1ec)),
            (41, byte(0x1ed)),
            (42, byte(0x1ee)),
        ];
        for (first, at) in [(12, 0x38), (28, 0x180), (33, 0x1e0), (43, 0x1f0)] {
            let tcb = self.tcb(at);
            let parts = [tcb.bootloader, tcb.snp, tcb.tee, tcb.microcode];
            values.extend((first..).zip(parts.map(|part| integer(u64::from(part)))));
        }
        values.sort_by_key(|(n, _)| *n);
        values.into_iter().map(|(n, der)| (vec![1, 3, 9901, 2, 1, n], der)).collect()
    }
}

fn integer(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(7);
    let significant = &bytes[start..];
    let padding: &[u8] = if significant[0] & 0x80 == 0 { &[] } else { &[0] };
    tagged(2, &[padding, significant].concat())
}

fn boolean(value: bool) -> Vec<u8> {
    tagged(1, &[if value { 0xff } else { 0 }])
}

fn octets(bytes: &[u8]) -> Vec<u8> {
    tagged(4, bytes)
}

/// DER with a one-byte length: no claim is longer than 64 bytes.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap_or(0x7f);
    [&[tag, length], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_integers_are_minimal_and_positive() {
        assert_eq!(integer(0), [2, 1, 0]);
        assert_eq!(integer(127), [2, 1, 127]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(256), [2, 2, 1, 0]);
    }
}
