//! The flags of a report: guest policy (AMD 56860, table of guest policy) and platform info (table of
//! `PLATFORM_INFO`). One table each, for the judge and for the description.

use manifest::{GuestPolicy, PlatformInfo};

use crate::checklist::Checklist;

/// What a `true` in the manifest means.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// The flag weakens a guest and may be set.
    Permitted,
    /// The flag hardens a guest and must be set.
    Demanded,
}

/// One flag; `W` is what a manifest says of its kind.
pub(super) struct Flag<W> {
    bit: u32,
    /// Name of the check.
    check: &'static str,
    /// What it means that it is set.
    meaning: &'static str,
    kind: Kind,
    wanted: fn(&W) -> bool,
}

use Kind::{Demanded, Permitted};

const fn flag<W>(
    bit: u32,
    kind: Kind,
    check: &'static str,
    meaning: &'static str,
    wanted: fn(&W) -> bool,
) -> Flag<W> {
    Flag { bit, check, meaning, kind, wanted }
}

pub(super) const POLICY: [Flag<GuestPolicy>; 9] = [
    flag(16, Permitted, "guest policy SMT", "SMT allowed", |p| p.smt),
    flag(18, Permitted, "guest policy migration agent", "migration agent allowed", |p| p.migrate_ma),
    flag(19, Permitted, "guest policy debug", "debug allowed", |p| p.debug),
    flag(20, Demanded, "guest policy single socket", "single socket", |p| p.single_socket),
    flag(21, Permitted, "guest policy CXL", "CXL allowed", |p| p.cxl_allowed),
    flag(22, Demanded, "guest policy AES-256-XTS", "AES-256-XTS demanded", |p| p.mem_aes256_xts),
    flag(23, Demanded, "guest policy RAPL", "RAPL disabled", |p| p.rapl_dis),
    flag(24, Demanded, "guest policy ciphertext hiding", "ciphertext hiding demanded", |p| {
        p.ciphertext_hiding_dram
    }),
    flag(25, Demanded, "guest policy page swap", "page swap disabled", |p| p.page_swap_disable),
];

pub(super) const PLATFORM: [Flag<PlatformInfo>; 8] = [
    flag(0, Permitted, "platform SMT", "SMT", |p| p.smt_enabled),
    flag(1, Permitted, "platform TSME", "TSME", |p| p.tsme_enabled),
    flag(2, Demanded, "platform ECC", "ECC", |p| p.ecc_enabled),
    flag(3, Demanded, "platform RAPL disabled", "RAPL disabled", |p| p.rapl_disabled),
    flag(4, Demanded, "platform ciphertext hiding", "ciphertext hiding", |p| {
        p.ciphertext_hiding_dram_enabled
    }),
    flag(5, Demanded, "platform alias check", "alias check complete", |p| p.alias_check_complete),
    flag(6, Demanded, "platform IOMMU write safety", "IOMMU write safe", |p| p.iommu_write_safe),
    flag(7, Permitted, "platform trusted I/O", "trusted I/O", |p| p.tio_enabled),
];

/// Compares each flag with what the manifest says of it.
pub(super) fn check<W>(bits: u64, flags: &[Flag<W>], wanted: &W, list: &mut Checklist) {
    for flag in flags {
        let (set, wanted) = (bits >> flag.bit & 1 == 1, (flag.wanted)(wanted));
        let (holds, expected) = match (flag.kind, wanted) {
            (Permitted, false) => (!set, "not set"),
            (Demanded, true) => (set, "set"),
            (Permitted, true) | (Demanded, false) => (true, "either"),
        };
        list.note(flag.check, holds, expected, if set { "set" } else { "not set" });
    }
}

/// The meanings of the flags that are set, and the numbers of the bits that have no name.
pub(super) fn describe<W>(bits: u64, named: u64, flags: &[Flag<W>]) -> String {
    let set = flags.iter().filter(|flag| bits >> flag.bit & 1 == 1);
    let mut text: String = set.map(|flag| format!(", {}", flag.meaning)).collect();
    let unnamed = bits & !named;
    if unnamed != 0 {
        text += &format!(", and without a name here: {}", numbers(unnamed));
    }
    text
}

/// The numbers of the bits that are set.
pub(super) fn numbers(bits: u64) -> String {
    let set: Vec<String> = (0..64).filter(|n| bits >> n & 1 == 1).map(|n: u32| n.to_string()).collect();
    match set.as_slice() {
        [] => "none".to_owned(),
        [one] => format!("bit {one}"),
        some => format!("bits {}", some.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_masks_name_exactly_the_flags_of_these_tables() {
        let policy = POLICY.iter().fold(0x2_ffff, |mask, flag| mask | 1 << flag.bit);
        assert_eq!(policy, GuestPolicy::NAMED_BITS);
        let platform = PLATFORM.iter().fold(0, |mask, flag| mask | 1 << flag.bit);
        assert_eq!(platform, PlatformInfo::NAMED_BITS);
    }
}
