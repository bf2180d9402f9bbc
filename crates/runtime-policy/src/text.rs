//! Texts that are known in part: literally, by what the pod is called, or by a regular expression.

use std::borrow::Cow;

use serde_json::{Value, json};

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Known now.
    Literal(String),
    /// Known when the pod runs: a placeholder such as `$(sandbox-name)`.
    Placeholder(&'static str),
    /// Known by its form only: a regular expression without anchors.
    Form(Cow<'static, str>),
}

impl Piece {
    pub(crate) fn form(form: impl Into<Cow<'static, str>>) -> Self {
        Self::Form(form.into())
    }
}

/// A text in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Text(Vec<Piece>);

impl Text {
    pub(crate) fn literal(text: impl Into<String>) -> Self {
        Self(vec![Piece::Literal(text.into())])
    }

    pub(crate) fn piece(piece: Piece) -> Self {
        Self(vec![piece])
    }

    /// This text with another behind it.
    pub(crate) fn then(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// The text, if all of it is known.
    pub(crate) fn known(&self) -> Option<String> {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The text with its placeholders, if all the rest of it is known.
    pub(crate) fn template(&self) -> Option<String> {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Some(text.as_str()),
                Piece::Placeholder(name) => Some(*name),
                Piece::Form(_) => None,
            })
            .collect()
    }

    /// A regular expression for the text, with its placeholders.
    pub(crate) fn pattern(&self) -> String {
        self.pattern_with("", "")
    }

    /// The same with a regular expression in the place of one placeholder.
    pub(crate) fn pattern_with(&self, placeholder: &str, form: &str) -> String {
        let parts = self.0.iter().map(|piece| match piece {
            Piece::Literal(text) => quote(text),
            Piece::Placeholder(name) if *name == placeholder => format!("({form})"),
            Piece::Placeholder(name) => (*name).to_owned(),
            Piece::Form(form) => format!("({form})"),
        });
        format!("^{}$", parts.collect::<String>())
    }

    /// The form in which the policy's rules expect it.
    pub(crate) fn to_policy(&self) -> Value {
        match (self.known(), self.template()) {
            (Some(known), _) => Value::String(known),
            (None, Some(template)) => json!({ "template": template }),
            (None, None) => json!({ "pattern": self.pattern() }),
        }
    }
}

/// A regular expression for exactly this text.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// Expands `$(NAME)` as Kubernetes does: unknown names stay, `$$` is an escaped `$`.
pub(crate) fn expand(text: &str, value: impl Fn(&str) -> Option<Text>) -> Text {
    let (mut pieces, mut literal, mut rest) = (Text::default(), String::new(), text);
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            literal.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value(name) {
                Some(value) => {
                    pieces = pieces.then(Text::literal(std::mem::take(&mut literal))).then(value);
                }
                None => literal.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            literal.push('$');
        }
    }
    literal.push_str(rest);
    pieces.then(Text::literal(literal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let value = |name: &str| match name {
            "A" => Some(Text::literal("x.y")),
            "IP" => Some(Text::piece(Piece::form("[0-9.]+"))),
            "POD" => Some(Text::piece(Piece::Placeholder("$(sandbox-name)"))),
            _ => None,
        };
        let policy = |text: &str| expand(text, value).to_policy();
        assert_eq!(policy("a $(A) $$(A) $(B) $ $x $("), json!("a x.y $(A) $(B) $ $x $("));
        assert_eq!(policy("--ip=$(IP).$(A)"), json!({ "pattern": "^--ip=([0-9.]+)\\.x\\.y$" }));
        assert_eq!(policy("$(POD)-x"), json!({ "template": "$(sandbox-name)-x" }));
    }
}
