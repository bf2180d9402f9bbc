//! A quote in words. Nothing is verified.

use super::{platform_id, quote::Quote};
use crate::Field;

const ATTRIBUTES: [(u32, &str); 7] = [
    (0, "DEBUG"),
    (28, "SEPT_VE_DISABLE"),
    (29, "MIGRATABLE"),
    (30, "PKS"),
    (31, "KL"),
    (62, "TPA"),
    (63, "PERFMON"),
];

/// The fields of a quote in the order of its layout.
pub(crate) fn describe(quote: &Quote) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut add = |name: &'static str, value: String| fields.push(Field { name, value });
    let body = match quote.body_type {
        2 => "TD 1.0",
        3 => "TD 1.5",
        _ => "later than TD 1.5",
    };
    add("version", format!("{}, body of {body}", quote.version));
    add("QE vendor", hex::encode(quote.qe_vendor()));
    if let Some(platform) = platform_id(quote.bytes()) {
        add("platform (FMSPC)", format!("{}, certified by Intel's {} CA", platform.fmspc, platform.ca));
    }
    add("TEE TCB SVN", hex::encode(quote.tee_tcb_svn()));
    add("MRSEAM", hex::encode(quote.mr_seam()));
    let attributes = quote.td_attributes();
    let bits = u64::from_le_bytes(attributes);
    let set = ATTRIBUTES.iter().filter(|(bit, _)| bits >> bit & 1 == 1);
    let set: String = set.map(|(_, name)| format!(", {name}")).collect();
    add("TD attributes", hex::encode(attributes) + &set);
    add("XFAM", hex::encode(quote.xfam()));
    add("MRTD", hex::encode(quote.mr_td()));
    add("MRCONFIGID (policy hash first)", hex::encode(quote.mr_config_id()));
    add("MROWNER", hex::encode(quote.mr_owner()));
    add("MROWNERCONFIG", hex::encode(quote.mr_owner_config()));
    for (n, name) in ["RTMR 0", "RTMR 1", "RTMR 2", "RTMR 3"].into_iter().enumerate() {
        add(name, hex::encode(quote.rtmr(n)));
    }
    add("report data", hex::encode(quote.report_data()));
    if let Some(service_td) = quote.mr_service_td() {
        add("MRSERVICETD", hex::encode(service_td));
    }
    fields
}
