//! What a verified report says, and how a workload's certificate repeats it.

use manifest::SnpProduct;

use super::{Report, Tcb};
use crate::claims::{boolean, integer, octets};

/// What was proven about an SNP guest.
#[derive(Clone)]
pub(crate) struct SnpClaims {
    product: SnpProduct,
    report: Report,
}

impl SnpClaims {
    pub(crate) fn new(product: SnpProduct, report: Report) -> Self {
        Self { product, report }
    }

    /// The policy's hash.
    pub(crate) fn host_data(&self) -> [u8; 32] {
        self.report.host_data()
    }

    /// Security versions that the platform vouches for.
    pub(crate) fn reported_tcb(&self) -> Tcb {
        self.tcb(0x180)
    }

    fn tcb(&self, at: usize) -> Tcb {
        Tcb::from_report(self.report.bytes(at), self.product)
    }

    /// The claims as certificate extensions below 1.3.9901.2.1 (docs/spec/control-plane.md, section 4.4).
    pub(crate) fn extensions(&self) -> Vec<(u64, Vec<u8>)> {
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
        values
    }
}
