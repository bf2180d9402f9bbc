//! A report in words. Nothing is verified.

use manifest::{GuestPolicy, PlatformInfo, SnpProduct};

use super::{
    Report, SigningKey, flags,
    report::{Place, place},
};
use crate::Field;

/// The fields of a report in the order of its layout.
pub(crate) fn describe(report: &Report) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut add = |name: &'static str, value: String| fields.push(Field { name, value });
    let layout = report.product().unwrap_or(SnpProduct::Milan);
    let tcb = |place: Place<8>| report.tcb(place, layout).to_string();
    let product = match report.product() {
        Some(product) => format!("{product:?}"),
        None if report.version() < 3 => {
            "not said in this version; TCBs are shown as of Milan and Genoa".into()
        }
        None => "unknown".into(),
    };
    add("version", report.version().to_string());
    add("product", product);
    if let Some([family, model, stepping]) = report.processor() {
        add("processor", format!("family {family:#x}, model {model:#x}, stepping {stepping}"));
    }
    add("guest SVN", report.u32(place::GUEST_SVN).to_string());
    let policy = report.u64(place::POLICY);
    let abi = format!("ABI {}.{}", policy >> 8 & 0xff, policy & 0xff);
    add(
        "guest policy",
        format!("{policy:#x}: {abi}{}", flags::describe(policy, GuestPolicy::NAMED_BITS, &flags::POLICY)),
    );
    add("family id", hex::encode(report.get(place::FAMILY_ID)));
    add("image id", hex::encode(report.get(place::IMAGE_ID)));
    add("VMPL", report.u32(place::VMPL).to_string());
    add("signature algorithm", report.u32(place::SIGNATURE_ALGORITHM).to_string());
    let info = report.u64(place::PLATFORM_INFO);
    let flags = flags::describe(info, PlatformInfo::NAMED_BITS, &flags::PLATFORM);
    add("platform info", format!("{info:#x}{flags}"));
    let key = match report.signing_key() {
        Some(SigningKey::Vcek) => "VCEK (of the chip)",
        Some(SigningKey::Vlek) => "VLEK (of the provider)",
        None => "none or unknown",
    };
    add("signing key", key.into());
    add("report data", hex::encode(report.get(place::REPORT_DATA)));
    add("launch measurement", hex::encode(report.get(place::MEASUREMENT)));
    add("host data (policy hash)", hex::encode(report.get(place::HOST_DATA)));
    add("ID key digest", hex::encode(report.get(place::ID_KEY_DIGEST)));
    add("author key digest", hex::encode(report.get(place::AUTHOR_KEY_DIGEST)));
    add("report id", hex::encode(report.get(place::REPORT_ID)));
    add("report id of the migration agent", hex::encode(report.get(place::REPORT_ID_MA)));
    add("current TCB", tcb(place::CURRENT_TCB));
    add("reported TCB", tcb(place::REPORTED_TCB));
    add("committed TCB", tcb(place::COMMITTED_TCB));
    add("launch TCB", tcb(place::LAUNCH_TCB));
    let chip = report.get(place::CHIP_ID);
    add("chip id", if chip == [0; 64] { "masked".into() } else { hex::encode(chip) });
    for (name, at) in
        [("current firmware", place::CURRENT_FIRMWARE), ("committed firmware", place::COMMITTED_FIRMWARE)]
    {
        let [build, minor, major] = report.get(at);
        add(name, format!("{major}.{minor}, build {build}"));
    }
    if report.version() >= 5 {
        add("launch mitigation vector", format!("{:#x}", report.mitigations(place::LAUNCH_MITIGATIONS)));
        add("current mitigation vector", format!("{:#x}", report.mitigations(place::CURRENT_MITIGATIONS)));
    }
    for (at, bytes) in report.reserved() {
        add("reserved bytes", format!("{} at {at:#x}", hex::encode(bytes)));
    }
    fields
}
