//! One YAML document: its text and its value, changed together.

use std::ops::Range;

use serde_json::{Map, Value};

use crate::{
    Path, Step, YamlError, emit,
    node::{self, Kind, Node},
};

/// Largest file, in bytes.
pub const MAX_BYTES: usize = 8 << 20;

/// Where a new item goes in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Before all others.
    First,
    /// After all others.
    Last,
}

/// One YAML document of a file.
#[derive(Debug, Clone)]
pub struct Document {
    text: String,
    first_line: usize,
    root: Option<Node>,
    value: Value,
}

/// The documents of a file, in order. Their texts joined are the file's text.
pub fn read(text: &str) -> Result<Vec<Document>, YamlError> {
    if text.len() > MAX_BYTES {
        return Err(YamlError::TooLarge { found: text.len() });
    }
    let mut documents = Vec::new();
    let (mut begin, mut begin_line, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // A line that begins so is a separator wherever it stands, in scalars too (YAML 1.2, 9.1.2).
        let separator = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty());
        if separator && text[begin..at].lines().any(|line| !line.trim().is_empty()) {
            documents.push(Document::parse(&text[begin..at], begin_line)?);
            (begin, begin_line) = (at, number);
        }
        at += line.len();
    }
    documents.push(Document::parse(&text[begin..], begin_line)?);
    Ok(documents)
}

impl Document {
    fn parse(text: &str, first_line: usize) -> Result<Self, YamlError> {
        let root = node::parse(text, first_line)?;
        let value = root.as_ref().map_or(Value::Null, Node::to_value);
        Ok(Self { text: text.to_owned(), first_line, root, value })
    }

    /// The text, with the separator before it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it means; null if it is empty.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Line in the file, from 1, of a place or of the last thing above it that exists.
    pub fn line(&self, path: &Path) -> usize {
        self.first_line + 1 + self.root.as_ref().map_or(0, |root| root.nearest(path).line)
    }

    /// Makes a place mean `value`, creating what is missing on the way. Whether something changed.
    pub fn set(&mut self, path: &Path, value: &Value) -> Result<bool, YamlError> {
        if path.find(&self.value) == Some(value) {
            return Ok(false);
        }
        let Some(root) = &self.root else { return Err(self.refuse(path, "the document is empty")) };
        // Walk down as far as nodes exist; the rest becomes part of the new value.
        let (mut node, mut depth) = (root, 0);
        while let Some(child) = path.steps().get(depth).and_then(|step| node.child(step)) {
            if node.alias {
                return Err(self.refuse(path, "it is an alias; write it out"));
            }
            (node, depth) = (child, depth + 1);
        }
        let missing = &path.steps()[depth..];
        let change = match missing {
            [] => self.replacement(path, node, value)?,
            [Step::Key(key), rest @ ..] => {
                let inner = wrap(rest, value).ok_or_else(|| self.refuse(path, "an item is missing"))?;
                self.addition(path, node, key, &inner)?
            }
            [Step::Index(_), ..] => return Err(self.refuse(path, "there is no such item")),
        };
        let mut intended = self.value.clone();
        set_in(&mut intended, path.steps(), value);
        self.apply(path, change, intended)
    }

    /// Adds an item to the sequence at a place, which is created if it is missing.
    pub fn insert(&mut self, path: &Path, position: Position, item: &Value) -> Result<(), YamlError> {
        let existing = path.find(&self.value).and_then(Value::as_array).filter(|items| !items.is_empty());
        let Some(items) = existing else {
            return self.set(path, &Value::Array(vec![item.clone()])).map(drop);
        };
        let mut items = items.clone();
        items.insert(if position == Position::First { 0 } else { items.len() }, item.clone());
        let Some(node) = self.root.as_ref().map(|root| root.nearest(path)) else {
            return Err(self.refuse(path, "the document is empty"));
        };
        let Kind::Sequence(nodes) = &node.kind else { return Err(self.refuse(path, "it is not a list")) };
        let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else {
            return Err(self.refuse(path, "it is an empty list"));
        };
        if node.alias {
            return Err(self.refuse(path, "it is an alias; write it out"));
        }
        let change = match (node.flow, position) {
            (true, Position::First) => {
                (first.span.start..first.span.start, format!("{}, ", emit::flow(item)))
            }
            (true, Position::Last) => (last.span.end..last.span.end, format!(", {}", emit::flow(item))),
            (false, Position::First) => {
                let pad = " ".repeat(node.column);
                let text = format!("- {}\n{pad}", emit::block(item, node.column + 2));
                (node.span.start..node.span.start, text)
            }
            (false, Position::Last) => {
                let text = format!("\n{}- {}", " ".repeat(node.column), emit::block(item, node.column + 2));
                let end = self.line_end(node.span.end);
                (end..end, text)
            }
        };
        let mut intended = self.value.clone();
        set_in(&mut intended, path.steps(), &Value::Array(items));
        self.apply(path, change, intended).map(drop)
    }

    fn replacement(
        &self,
        path: &Path,
        node: &Node,
        value: &Value,
    ) -> Result<(Range<usize>, String), YamlError> {
        if node.alias {
            return Err(self.refuse(path, "it is an alias; write it out"));
        }
        let structured = matches!(value, Value::Object(map) if !map.is_empty())
            || matches!(value, Value::Array(items) if !items.is_empty());
        let block = matches!(node.kind, Kind::Mapping(_) | Kind::Sequence(_)) && !node.flow;
        let same = matches!(
            (&node.kind, value),
            (Kind::Sequence(_), Value::Array(_)) | (Kind::Mapping(_), Value::Object(_))
        );
        let text = match (block, structured) {
            (true, true) if same => emit::block(value, node.column),
            // A list may stand at its key's own column, where nothing else may.
            (true, true) => format!("  {}", emit::block(value, node.column + 2)),
            (true, false) => format!("  {}", emit::flow(value)),
            (false, _) => emit::flow(value),
        };
        if node.span.is_empty() {
            // An empty value has no place of its own: write after the colon.
            let colon = self.text[node.span.start..].starts_with(':');
            let at = node.span.start + usize::from(colon);
            return Ok((at..at, format!(" {text}")));
        }
        Ok((node.span.clone(), text))
    }

    fn addition(
        &self,
        path: &Path,
        node: &Node,
        key: &str,
        value: &Value,
    ) -> Result<(Range<usize>, String), YamlError> {
        if node.alias {
            return Err(self.refuse(path, "it is an alias; write it out"));
        }
        let entry = |key: &str| Value::Object(Map::from_iter([(key.to_owned(), value.clone())]));
        match &node.kind {
            // `annotations:` with nothing after it.
            Kind::Scalar(Value::Null) => self.replacement(path, node, &entry(key)),
            Kind::Mapping(entries) if node.flow => {
                let added = emit::flow(&entry(key));
                let added = &added[1..added.len() - 1];
                let end = node.span.end - 1;
                match entries.last() {
                    Some(last) => {
                        let at = last.value.span.end.max(last.key_node.span.end);
                        Ok((at..at, format!(", {added}")))
                    }
                    None => Ok((end..end, added.to_owned())),
                }
            }
            Kind::Mapping(_) => {
                let end = self.line_end(node.span.end);
                let text = format!("\n{}{}", " ".repeat(node.column), emit::entry(key, value, node.column));
                Ok((end..end, text))
            }
            _ => Err(self.refuse(path, "what is above it is not a mapping")),
        }
    }

    /// End of the line on which content ends, so that a comment behind it stays there.
    fn line_end(&self, at: usize) -> usize {
        let end = self.text[at..].find('\n').map_or(self.text.len(), |found| at + found);
        if self.text[..end].ends_with('\r') { end - 1 } else { end }
    }

    fn apply(
        &mut self,
        path: &Path,
        change: (Range<usize>, String),
        intended: Value,
    ) -> Result<bool, YamlError> {
        let (range, replacement) = change;
        let mut text = self.text.clone();
        text.replace_range(range, &replacement);
        match Self::parse(&text, self.first_line) {
            Ok(changed) if changed.value == intended => {
                *self = changed;
                Ok(true)
            }
            _ => Err(self
                .refuse(path, "the layout is not one that can be changed in place; write it in block style")),
        }
    }

    fn refuse(&self, path: &Path, message: &'static str) -> YamlError {
        YamlError::Edit { line: self.line(path), path: path.clone(), message }
    }
}

/// The value with the missing levels around it.
fn wrap(steps: &[Step], value: &Value) -> Option<Value> {
    match steps {
        [] => Some(value.clone()),
        [Step::Key(key), rest @ ..] => {
            Some(Value::Object(Map::from_iter([(key.clone(), wrap(rest, value)?)])))
        }
        [Step::Index(_), ..] => None,
    }
}

fn set_in(target: &mut Value, steps: &[Step], value: &Value) {
    match steps {
        [] => *target = value.clone(),
        [Step::Key(key), rest @ ..] => {
            if target.is_null() {
                *target = Value::Object(Map::new());
            }
            if let Value::Object(map) = target {
                set_in(map.entry(key.clone()).or_insert(Value::Null), rest, value);
            }
        }
        [Step::Index(index), rest @ ..] => {
            if let Some(item) = target.get_mut(*index) {
                set_in(item, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
