//! A report in words. Nothing is verified.

use manifest::SnpProduct;

use super::{Report, SigningKey, Tcb};
use crate::Field;

const POLICY: [(u32, &str); 10] = [
    (16, "SMT allowed"),
    (17, "reserved, always set"),
    (18, "migration agent allowed"),
    (19, "debug allowed"),
    (20, "single socket"),
    (21, "CXL allowed"),
    (22, "AES-256-XTS demanded"),
    (23, "RAPL disabled"),
    (24, "ciphertext hiding demanded"),
    (25, "page swap disabled"),
];
const PLATFORM: [(u32, &str); 8] = [
    (0, "SMT"),
    (1, "TSME"),
    (2, "ECC"),
    (3, "RAPL disabled"),
    (4, "ciphertext hiding"),
    (5, "alias check complete"),
    (6, "IOMMU write safe"),
    (7, "trusted I/O"),
];

/// The fields of a report in the order of its layout.
pub(crate) fn describe(report: &Report) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut add = |name: &'static str, value: String| fields.push(Field { name, value });
    let tcb = |at: usize| {
        let product = report.product().unwrap_or(SnpProduct::Milan);
        Tcb::from_report(report.bytes(at), product).to_string()
    };
    let product = match report.product() {
        Some(product) => format!("{product:?}"),
        None if report.version() < 3 => {
            "not said in this version; TCBs are shown as of Milan and Genoa".into()
        }
        None => "unknown".into(),
    };
    add("version", report.version().to_string());
    add("product", product);
    if report.version() >= 3 {
        let [family, model, stepping] = report.bytes::<3>(0x188);
        add("processor", format!("family {family:#x}, model {model:#x}, stepping {stepping}"));
    }
    add("guest SVN", report.u32(0x04).to_string());
    let policy = report.policy();
    let abi = format!("ABI {}.{}", policy >> 8 & 0xff, policy & 0xff);
    add("guest policy", format!("{policy:#x}: {abi}{}", flags(policy, &POLICY)));
    add("family id", hex::encode(report.bytes::<16>(0x10)));
    add("image id", hex::encode(report.bytes::<16>(0x20)));
    add("VMPL", report.vmpl().to_string());
    add("signature algorithm", report.signature_algorithm().to_string());
    add(
        "platform info",
        format!("{:#x}{}", report.platform_info(), flags(report.platform_info(), &PLATFORM)),
    );
    let key = match report.signing_key() {
        Some(SigningKey::Vcek) => "VCEK (of the chip)",
        Some(SigningKey::Vlek) => "VLEK (of the provider)",
        None => "none or unknown",
    };
    add("signing key", key.into());
    add("report data", hex::encode(report.report_data()));
    add("launch measurement", hex::encode(report.measurement()));
    add("host data (policy hash)", hex::encode(report.host_data()));
    add("ID key digest", hex::encode(report.bytes::<48>(0xe0)));
    add("author key digest", hex::encode(report.bytes::<48>(0x110)));
    add("report id", hex::encode(report.bytes::<32>(0x140)));
    add("report id of the migration agent", hex::encode(report.bytes::<32>(0x160)));
    add("current TCB", tcb(0x38));
    add("reported TCB", tcb(0x180));
    add("committed TCB", tcb(0x1e0));
    add("launch TCB", tcb(0x1f0));
    let chip = report.chip_id();
    add("chip id", if chip == [0; 64] { "masked".into() } else { hex::encode(chip) });
    for (name, at) in [("current firmware", 0x1e8), ("committed firmware", 0x1ec)] {
        let [build, minor, major] = report.bytes::<3>(at);
        add(name, format!("{major}.{minor}, build {build}"));
    }
    if report.version() >= 5 {
        add("launch mitigation vector", format!("{:#x}", report.u64(0x1f8)));
        add("current mitigation vector", format!("{:#x}", report.u64(0x200)));
    }
    fields
}

fn flags(bits: u64, names: &[(u32, &str)]) -> String {
    let set = names.iter().filter(|(bit, _)| bits >> bit & 1 == 1);
    set.map(|(_, name)| format!(", {name}")).collect()
}
