//! Regular expressions in policies. The agent compiles one anew at each use, which costs it more than the rest of
//! a decision: so rules look first for a text without which it cannot match.

use regex_syntax::hir::{Hir, HirKind};
use serde_json::{Value, json};

/// The expression as rules use it: `{"has": TEXT, "pattern": EXPRESSION}`.
pub(crate) fn guarded(pattern: &str) -> Result<Value, String> {
    let expression = regex_syntax::parse(pattern).map_err(|error| match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        _ => "not understood".to_owned(),
    })?;
    Ok(json!({ "has": needed(&expression).unwrap_or_default(), "pattern": pattern }))
}

/// A text that stands in everything that matches, if one is easily seen. The last of several: names begin alike. A
/// single character would tell little.
fn needed(expression: &Hir) -> Option<&str> {
    match expression.kind() {
        HirKind::Literal(literal) if literal.0.len() > 1 => std::str::from_utf8(&literal.0).ok(),
        HirKind::Capture(group) => needed(&group.sub),
        HirKind::Repetition(repeated) if repeated.min > 0 => needed(&repeated.sub),
        HirKind::Concat(parts) => parts.iter().rev().find_map(needed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_match_holds() {
        let has = |pattern: &str| guarded(pattern).unwrap()["has"].clone();
        assert_eq!(has("^[A-Z][A-Z0-9_]*_PORT_[0-9]{1,5}_TCP_ADDR=[0-9a-f.:]+$"), "_TCP_ADDR=");
        assert_eq!(has("^(ab){2}(abc)?x$"), "ab");
        assert_eq!(has("(?i)^no_proxy=.*$"), "");
        assert_eq!(has("one|two"), "");
        assert_eq!(has(""), "");
        assert_eq!(guarded("^(x").unwrap_err(), "unclosed group");
    }
}
