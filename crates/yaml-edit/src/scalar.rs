//! What a plain scalar means to Kubernetes.

use serde_json::{Number, Value};

/// Resolves an unquoted scalar. Kubernetes' reader keeps YAML 1.1's booleans, octal numbers
/// and underscores in numbers.
pub(crate) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    // `1_000` is a thousand.
    let text = &text.replace('_', "");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = |prefix: &[&str], radix| {
        let rest = prefix.iter().find_map(|prefix| digits.strip_prefix(prefix))?;
        i64::from_str_radix(rest, radix)
            .ok()
            .filter(|_| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    let octal = digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit());
    let integer = radix(&["0x", "0X"], 16)
        .or_else(|| radix(&["0o", "0O"], 8))
        .or_else(|| radix(&["0b", "0B"], 2))
        .or_else(|| if octal { i64::from_str_radix(digits, 8).ok() } else { digits.parse().ok() });
    if let Some(integer) = integer {
        return Some(Number::from(if negative { -integer } else { integer }));
    }
    if let Ok(large) = digits.parse::<u64>()
        && !negative
    {
        return Some(Number::from(large));
    }
    let float_like =
        digits.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'+' | b'-'));
    let float: f64 = float_like.then(|| text.parse().ok()).flatten()?;
    Number::from_f64(float)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::resolve;

    #[test]
    fn scalars_mean_what_kubernetes_takes_them_for() {
        for (text, value) in [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1f", json!(31)),
            ("-5", json!(-5)),
            ("yes", json!(true)),
            ("y", json!(true)),
            ("N", json!(false)),
            ("1_000", json!(1000)),
            ("1_", json!(1)),
            ("_1", json!("_1")),
            ("~", json!(null)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.2.3", json!("1.2.3")),
            ("50Mi", json!("50Mi")),
            ("08", json!(8)),
            ("-", json!("-")),
            (".", json!(".")),
            ("10.0.0.1", json!("10.0.0.1")),
        ] {
            assert_eq!(resolve(text), value, "{text}");
        }
    }
}
