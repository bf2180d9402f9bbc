//! Regular expressions for entries of an environment. The agent compiles one anew at each use, which costs it more
//! than the rest of a decision: so all that may stand in an environment are one expression, and are asked at once.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Refuses what is no regular expression, or could match more than a line.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    // As it is used below.
    let expression = regex_syntax::parse(&format!("(?m)(?:{pattern})")).map_err(|error| match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        _ => "not understood".to_owned(),
    })?;
    match has_line_break(&expression) {
        true => Err("a line break (write [^,\\n] instead of [^,], and a blank instead of \\s)".into()),
        false => Ok(()),
    }
}

fn has_line_break(expression: &Hir) -> bool {
    match expression.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.contains(&b'\n'),
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().any(|range| (range.start()..=range.end()).contains(&'\n'))
        }
        HirKind::Class(Class::Bytes(class)) => {
            class.iter().any(|range| (range.start()..=range.end()).contains(&b'\n'))
        }
        HirKind::Capture(group) => has_line_break(&group.sub),
        HirKind::Repetition(repeated) => has_line_break(&repeated.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(has_line_break),
    }
}

/// An expression for at least one line, of which each is matched, as a whole, by one of `patterns`.
pub(crate) fn lines(patterns: &[String]) -> String {
    if patterns.is_empty() {
        return r"\z.".to_owned(); // nothing is behind the end
    }
    let patterns: Vec<String> = patterns.iter().map(|pattern| format!("(?:{pattern})")).collect();
    format!(r"(?m)\A(?:(?:{})(?:\n|\z))+\z", patterns.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_match_a_line_break_is_refused() {
        for pattern in ["^A=[^,]*$", r"\s", r"\W", "a\nb", "(?s).", "x|(y[^a]{2})", r"\n"] {
            let error = check(pattern).unwrap_err();
            assert!(error.contains("line break"), "{pattern}: {error}");
        }
        for pattern in [".", r"^A=[^,\n]*$", r"\w", "(?i)^no_proxy=.*$", "", "^a$|^b$"] {
            check(pattern).unwrap();
        }
        assert_eq!(check("^(x").unwrap_err(), "unclosed group");
        // A comment would hide the end of the group.
        assert_eq!(check("(?x)a # b").unwrap_err(), "unclosed group");
    }

    #[test]
    fn every_line_is_matched_by_one_as_a_whole() {
        let of = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            let expression = regex::Regex::new(&lines(&patterns)).unwrap();
            move |text: &str| expression.is_match(text)
        };
        let ab = of(&["^A=[0-9]$", "(?i)^b=.*$", "C="]);
        for text in ["A=1", "A=1\nb=x", "B=\nA=2\nC=", "C="] {
            assert!(ab(text), "{text:?}");
        }
        for text in
            ["A=", "A=1x", "xA=1", "A=1\n\nA=2", "A=1 A=2", "a=1", "A=1\nevil", "xC=", "C=x", "evil\nA=1"]
        {
            assert!(!ab(text), "{text:?}");
        }
        assert!(!ab("") && !of(&[])("") && !of(&[])("A=1"));
    }
}
