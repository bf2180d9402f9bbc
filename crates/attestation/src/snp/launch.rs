//! Launch digests over numbers of virtual CPUs.
//!
//! Firmware, kernel and command line of a runtime are the same for every pod; the number of its
//! virtual CPUs is not. Each adds one page, its saved state (VMSA), to the launch digest: the first
//! one starts at the reset vector, the others at the firmware's entry point. So one digest in the
//! manifest, taken before any of these pages, stands for all sizes of a pod (docs/spec/control-plane.md,
//! section 3.2; AMD 56860, 8.17.2; layout of the page: AMD 24593, table B-4).

use aws_lc_rs::digest::{SHA384, digest};
use manifest::EntryPoint;
use sev::measurement::{
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType, VMSA},
};

/// Most virtual CPUs that are tried: what KVM and Kata allow a pod today, and then some.
pub(super) const MOST_VCPUS: usize = 512;
/// Address under which VMSA pages are measured.
const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;
/// Length and type of the page information that is hashed for one page.
const PAGE_INFO: [u8; 8] = [0x70, 0, 2, 0, 0, 0, 0, 0];
/// Where a VMSA has RDX, which starts as the processor's signature.
const RDX: usize = 0x310;
/// `SNPActive`, the only SEV feature that KVM turns on by itself.
const SNP_ACTIVE: u64 = 1;

/// The digests for one, two, three ... virtual CPUs.
pub(super) struct VcpuDigests {
    digest: [u8; 48],
    first_page: [u8; 48],
    other_page: [u8; 48],
    made: usize,
}

impl VcpuDigests {
    /// `before` is the digest before the first virtual CPU; `signature` is EAX of CPUID leaf 1.
    pub(super) fn new(
        before: [u8; 48],
        entry_point: EntryPoint,
        signature: u32,
        features: Option<u64>,
    ) -> Self {
        let entry_point = u32::from_be_bytes(*entry_point.as_bytes());
        // The model only matters for RDX, which is set here.
        let features = GuestFeatures(features.unwrap_or(SNP_ACTIVE));
        let state = VMSA::new(entry_point.into(), CpuType::EpycV4, VMMType::QEMU, None, features);
        let pages = state.pages(2).unwrap_or_default();
        let page = |place: usize| {
            let mut page = pages.get(place).or(pages.first()).cloned().unwrap_or_default();
            if let Some(rdx) = page.get_mut(RDX..RDX + 8) {
                rdx.copy_from_slice(&u64::from(signature).to_le_bytes());
            }
            sha384(&page)
        };
        Self { digest: before, first_page: page(0), other_page: page(1), made: 0 }
    }
}

impl Iterator for VcpuDigests {
    type Item = [u8; 48];

    fn next(&mut self) -> Option<[u8; 48]> {
        if self.made == MOST_VCPUS {
            return None;
        }
        let page = if self.made == 0 { self.first_page } else { self.other_page };
        let info = [self.digest.as_slice(), &page, &PAGE_INFO, &VMSA_ADDRESS.to_le_bytes()].concat();
        self.digest = sha384(&info);
        self.made += 1;
        Some(self.digest)
    }
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut hash = [0; 48];
    hash.copy_from_slice(digest(&SHA384, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with sev-snp-measure 0.0.13 (PyPI), from a digest of sevens.
    #[test]
    fn digests_are_those_of_another_implementation() {
        let vectors = [
            (
                0x0080_0f12_u32,
                None,
                1,
                "0242721e607642b2fcdbbd8ce549ff9204ce63ee0143e63adc7e94e241646aca2954c907bb504467a9a4062e6f39d476",
            ),
            (
                0x0080_0f12_u32,
                None,
                3,
                "1ef8a7699fd51718b3385a2e74bfbf4533e647da0b2930fbbe3337b177b59888e49597aa22d0287461558f66f1aa97bc",
            ),
            (
                0x00a0_0f11_u32,
                None,
                1,
                "e7937bff49db86369f99a4c12e457d21fe7e78fac384045fd7c42d472cfde818c1f89e276021a086253c0ff9b869a7df",
            ),
            (
                0x00a0_0f11_u32,
                None,
                3,
                "22d0a0f911625e33103bbd92e6ae490af3a0b0c0753a51f78fae84c53ae34302d701b03fd27f5901734ea3f25dbe6e52",
            ),
            (
                0x00a1_0f10_u32,
                Some(0x21),
                1,
                "9ae3a7bccf3fdbdaa90cf1cb7911b7cbdfed0dc26c9b0085e70f4754303d755911ca40deb8b27f63c90765b40ce55423",
            ),
            (
                0x00a1_0f10_u32,
                Some(0x21),
                3,
                "66be5503f15d1897a463dd11d05ee78dd45a876b86e21175c871d0f6c883c506c0d5b892670d01d80325dde966d0a1e1",
            ),
        ];
        for (signature, features, vcpus, expected) in vectors {
            let entry_point = EntryPoint::from_bytes([0x00, 0x80, 0xb0, 0x04]);
            let mut digests = VcpuDigests::new([7; 48], entry_point, signature, features);
            assert_eq!(digests.nth(vcpus - 1).map(hex::encode).as_deref(), Some(expected));
        }
    }

    #[test]
    fn the_search_ends() {
        let digests = VcpuDigests::new([0; 48], EntryPoint::from_bytes([1; 4]), 1, None);
        assert_eq!(digests.count(), MOST_VCPUS);
    }
}
