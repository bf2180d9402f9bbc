//! What a verified report says, and how a workload's certificate repeats it.

use manifest::SnpProduct;

use super::{
    Report, Tcb,
    report::{Place, place},
};
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
        self.report.get(place::HOST_DATA)
    }

    /// Security versions that the platform vouches for.
    pub(crate) fn reported_tcb(&self) -> Tcb {
        self.tcb(place::REPORTED_TCB)
    }

    fn tcb(&self, place: Place<8>) -> Tcb {
        self.report.tcb(place, self.product)
    }

    /// The claims as certificate extensions below 1.3.9901.2.1 (docs/spec/control-plane.md, section 4.4).
    pub(crate) fn extensions(&self) -> Vec<(u64, Vec<u8>)> {
        let report = &self.report;
        let policy = report.u64(place::POLICY);
        let bit = |value: u64, n: u32| boolean(value >> n & 1 == 1);
        let info = report.u64(place::PLATFORM_INFO);
        let key_info = u64::from(report.u32(place::KEY_INFO));
        let firmware = |place| report.get::<3>(place).map(|part| integer(u64::from(part)));
        let [current_build, current_minor, current_major] = firmware(place::CURRENT_FIRMWARE);
        let [committed_build, committed_minor, committed_major] = firmware(place::COMMITTED_FIRMWARE);
        let mut values = vec![
            (1, integer(u64::from(report.version()))),
            (2, integer(u64::from(report.u32(place::GUEST_SVN)))),
            (3, integer(policy >> 8 & 0xff)),
            (4, integer(policy & 0xff)),
            (5, bit(policy, 19)),
            (6, bit(policy, 18)),
            (7, bit(policy, 16)),
            (8, bit(policy, 20)),
            (9, octets(&report.get(place::FAMILY_ID))),
            (10, octets(&report.get(place::IMAGE_ID))),
            (11, integer(u64::from(report.u32(place::VMPL)))),
            (16, bit(info, 0)),
            (17, bit(info, 1)),
            (18, bit(key_info, 0)),
            (19, bit(key_info, 1)),
            (20, integer(key_info >> 2 & 7)),
            (21, octets(&report.get(place::REPORT_DATA))),
            (22, octets(&report.get(place::MEASUREMENT))),
            (23, octets(&report.get(place::HOST_DATA))),
            (24, octets(&report.get(place::ID_KEY_DIGEST))),
            (25, octets(&report.get(place::AUTHOR_KEY_DIGEST))),
            (26, octets(&report.get(place::REPORT_ID))),
            (27, octets(&report.get(place::REPORT_ID_MA))),
            (32, octets(&report.get(place::CHIP_ID))),
            (37, current_build),
            (38, current_minor),
            (39, current_major),
            (40, committed_build),
            (41, committed_minor),
            (42, committed_major),
        ];
        let tcbs = [
            (12, place::CURRENT_TCB),
            (28, place::REPORTED_TCB),
            (33, place::COMMITTED_TCB),
            (43, place::LAUNCH_TCB),
        ];
        for (first, place) in tcbs {
            let tcb = self.tcb(place);
            let parts = [tcb.bootloader, tcb.snp, tcb.tee, tcb.microcode];
            values.extend((first..).zip(parts.map(|part| integer(u64::from(part)))));
        }
        values.sort_by_key(|(n, _)| *n);
        values
    }
}
