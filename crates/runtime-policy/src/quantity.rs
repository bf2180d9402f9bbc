//! Resources that a container asks for: which of them are GPUs, and how many.

use serde_json::Value;

/// Whether a resource's name stands for a GPU.
pub(crate) fn is_gpu(resource: &str) -> bool {
    resource.starts_with("nvidia.com/") || resource.starts_with("amd.com/gpu")
}

/// A quantity in thousandths: `2`, `1.5`, `"500m"`. Other suffixes make no sense for processors and GPUs.
pub(crate) fn milli(value: &Value) -> Option<u64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(thousandths) = text.strip_suffix('m') {
        return thousandths.parse().ok();
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = format!("{fraction:0<3.3}");
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction.parse().ok()?)
}
