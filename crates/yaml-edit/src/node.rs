//! What YAML means, with the bytes that say so.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput};
use serde_json::{Map, Value};

use crate::{Path, Step, YamlError, scalar};

/// Nesting beyond this is not a Kubernetes resource.
const MAX_DEPTH: usize = 64;
/// Aliases can multiply; no resource has this many nodes.
const MAX_NODES: usize = 500_000;
/// Stands for `\'` while the text is read: as many bytes, and no character that YAML allows.
const QUOTE: char = '\u{80}';
/// Most bytes that are read again because of what kubectl takes and YAML does not: each such place has the text read once
/// more.
const MAX_READ_AGAIN: usize = 64 << 20;
/// Ends of lines that YAML 1.1 has, as kubectl's reader does, and YAML 1.2 has not.
const LINE_ENDS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Bytes of the content, without what follows on the last line.
    pub(crate) span: Range<usize>,
    /// From 0, within the document's text.
    pub(crate) line: usize,
    /// Of the first byte, from 0.
    pub(crate) column: usize,
    /// Written in braces or brackets.
    pub(crate) flow: bool,
    /// Means what is written elsewhere.
    pub(crate) alias: bool,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Scalar(Value),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_node: Node,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.kind, step) {
            (Kind::Mapping(entries), Step::Key(key)) => {
                entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
            }
            (Kind::Sequence(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    /// The node at a place, or the deepest one on the way to it; what an alias means is elsewhere.
    pub(crate) fn nearest(&self, path: &Path) -> &Self {
        let mut node = self;
        for step in path.steps() {
            match node.child(step) {
                Some(child) if !node.alias => node = child,
                _ => break,
            }
        }
        node
    }

    pub(crate) fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::Sequence(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Kind::Mapping(entries) => {
                let mut map = Map::new();
                for entry in entries {
                    map.insert(entry.key.clone(), entry.value.to_value());
                }
                Value::Object(map)
            }
        }
    }

    fn size(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::Sequence(items) => items.iter().map(Self::size).sum::<usize>(),
            Kind::Mapping(entries) => entries.iter().map(|entry| 1 + entry.value.size()).sum::<usize>(),
        }
    }
}

/// Reads one document; `None` if it is empty. `first_line` is where it begins in its file, from 0.
pub(crate) fn parse(text: &str, first_line: usize) -> Result<Option<Node>, YamlError> {
    if let Some(at) = text.find(LINE_ENDS) {
        let line = first_line + 1 + text[..at].matches('\n').count();
        let message = "a character that ends a line for kubectl and for nobody else: write it with an escape in double quotes";
        return Err(YamlError::Syntax { line, message: message.into() });
    }
    let replaceable = !text.contains(QUOTE);
    let mut text = Cow::Borrowed(text);
    let mut budget = MAX_READ_AGAIN;
    loop {
        let mut reader = Reader::new(&text, first_line, replaceable && matches!(text, Cow::Owned(_)));
        let error = match reader.document() {
            Err(error) => error,
            read => return read,
        };
        let changed = match reader.trouble {
            Some(Trouble::Escape(at)) if replaceable => with_quotes(&text, at),
            Some(Trouble::Tab(at)) => without_tab(&text, at),
            _ => None,
        };
        budget = budget.checked_sub(text.len()).ok_or_else(|| error.clone())?;
        text = changed.ok_or(error)?.into();
    }
}

/// What kubectl's reader takes.
#[derive(Clone, Copy)]
enum Trouble {
    /// An escape that YAML does not know, in the quoted scalar that begins there (in bytes).
    Escape(usize),
    /// White space that is a tab, near there.
    Tab(usize),
}

/// The text with spaces for the tabs that begin the line, or that follow the colon nearest to that place. In braces, in double
/// quotes and behind a colon kubectl takes a tab for a space; where it does not, it refuses the file itself.
fn without_tab(text: &str, at: usize) -> Option<String> {
    let begin = text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
    let line = &text[begin..];
    let blank = line.len() - line.trim_start_matches([' ', '\t']).len();
    let mut changed = text.as_bytes().to_vec();
    if line[..blank].contains('\t') {
        changed[begin..begin + blank].fill(b' ');
    } else {
        // The reader's mark is at the colon, or behind it.
        let line = line.lines().next()?;
        let colons = line.match_indices(":\t").map(|(place, _)| begin + place + 1);
        let colon = colons.min_by_key(|place| place.abs_diff(at))?;
        let tabs = text[colon..].len() - text[colon..].trim_start_matches('\t').len();
        changed[colon..colon + tabs].fill(b' ');
    }
    String::from_utf8(changed).ok().filter(|changed| changed != text)
}

/// The text with [`QUOTE`] for each `\'` of the scalar in double quotes that begins there: kubectl takes that for a
/// quote, though YAML has no such escape.
fn with_quotes(text: &str, scalar: usize) -> Option<String> {
    let bytes = text.as_bytes();
    let mut changed = bytes.to_vec();
    let mut at = scalar + usize::from(bytes.get(scalar) == Some(&b'"'));
    while *bytes.get(at)? != b'"' {
        let escape = bytes[at] == b'\\';
        if escape && bytes.get(at + 1) == Some(&b'\'') {
            QUOTE.encode_utf8(&mut changed[at..at + 2]);
        }
        at += if escape { 2 } else { 1 };
    }
    String::from_utf8(changed).ok().filter(|changed| changed != text)
}

struct Reader<'a> {
    text: &'a str,
    /// Byte of each character, where they differ.
    offsets: Option<Vec<usize>>,
    line_starts: Vec<usize>,
    parser: Parser<'a, StrInput<'a>>,
    first_line: usize,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    /// Whether [`QUOTE`] stands for something.
    quotes: bool,
    /// What the text was not read for.
    trouble: Option<Trouble>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, first_line: usize, quotes: bool) -> Self {
        Self {
            text,
            offsets: (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect()),
            line_starts: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect(),
            parser: Parser::new_from_str(text),
            first_line,
            anchors: HashMap::new(),
            nodes: 0,
            quotes,
            trouble: None,
        }
    }

    fn document(&mut self) -> Result<Option<Node>, YamlError> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::DocumentEnd | Event::StreamEnd, _) => return Ok(None),
                (event, span) => {
                    let node = self.node(event, span, 0)?;
                    self.end()?;
                    let empty = matches!(&node.kind, Kind::Scalar(Value::Null)) && node.span.is_empty();
                    return Ok((!empty).then_some(node));
                }
            }
        }
    }

    fn syntax(&self, mark: &Marker, message: impl Into<String>) -> YamlError {
        YamlError::Syntax { line: self.first_line + mark.line(), message: message.into() }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let at = self.byte(error.marker());
                let about = |words: &str| error.info().contains(words);
                self.trouble = if about("unknown escape") {
                    Some(Trouble::Escape(at))
                } else if about("tabs disallowed") || about("tab cannot be used") || about("YAML whitespace")
                {
                    Some(Trouble::Tab(at))
                } else {
                    None
                };
                Err(self.syntax(error.marker(), error.info()))
            }
            None => Err(YamlError::Syntax { line: self.first_line + 1, message: "unexpected end".into() }),
        }
    }

    /// Nothing but one document may be in the text.
    fn end(&mut self) -> Result<(), YamlError> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentEnd | Event::Nothing, _) => {}
                (_, span) => return Err(self.syntax(&span.start, "a second document without a line ---")),
            }
        }
    }

    fn byte(&self, mark: &Marker) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.get(mark.index()).copied().unwrap_or(self.text.len()),
            None => mark.index().min(self.text.len()),
        }
    }

    /// A node from its first and last byte; trailing white space is not content.
    fn place(&self, from: usize, end: usize, kind: Kind) -> Node {
        let end = end.max(from);
        let content = self.text.get(from..end).unwrap_or_default().trim_end().len();
        let line = self.line_starts.partition_point(|start| *start <= from) - 1;
        let line_start = self.line_starts.get(line).copied().unwrap_or_default();
        let column = self.text[line_start..from].chars().count();
        Node { span: from..from + content, line, column, flow: false, alias: false, kind }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, YamlError> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err(self.syntax(&span.start, "nested too deeply, or too many nodes"));
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err(self.syntax(&span.start, "tags are not used in Kubernetes resources"));
                }
                let mut from = self.byte(&span.start);
                let value = match style {
                    ScalarStyle::Plain if text.starts_with('?') => {
                        return Err(self.syntax(&span.start, "? begins a key: put the text in quotes"));
                    }
                    ScalarStyle::Plain => scalar::resolve(&text),
                    ScalarStyle::DoubleQuoted if self.quotes => {
                        let written = self.text.get(from..self.byte(&span.end)).unwrap_or_default();
                        match written.matches(QUOTE).count() {
                            0 => Value::String(text.into_owned()),
                            quotes if quotes == text.matches(QUOTE).count() => {
                                Value::String(text.replace(QUOTE, "'"))
                            }
                            _ => return Err(self.syntax(&span.start, r"\x80 beside \' is not understood")),
                        }
                    }
                    _ => Value::String(text.into_owned()),
                };
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                    // The mark is at the first line of content; the scalar begins with its indicator.
                    from = self.text[..from].rfind(['|', '>']).unwrap_or(from);
                }
                (self.place(from, self.byte(&span.end), Kind::Scalar(value)), anchor)
            }
            Event::SequenceStart(anchor, None) => (self.sequence(&span, depth)?, anchor),
            Event::MappingStart(anchor, None) => (self.mapping(&span, depth)?, anchor),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                return Err(self.syntax(&span.start, "tags are not used in Kubernetes resources"));
            }
            Event::Alias(anchor) => {
                let target = self.anchors.get(&anchor).cloned();
                let target = target.ok_or_else(|| self.syntax(&span.start, "alias without an anchor"))?;
                self.nodes = self.nodes.saturating_add(target.size());
                if self.nodes > MAX_NODES {
                    return Err(self.syntax(&span.start, "aliases multiply beyond measure"));
                }
                let mut node = self.place(self.byte(&span.start), self.byte(&span.end), target.kind);
                node.alias = true;
                return Ok(node);
            }
            _ => return Err(self.syntax(&span.start, "expected a value")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, span: &Span, depth: usize) -> Result<Node, YamlError> {
        let mut items: Vec<Node> = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                let end = items.last().map_or(self.byte(&span.end), |item| item.span.end);
                return Ok(self.close(span, &at, end, Kind::Sequence(items)));
            }
            items.push(self.node(event, at, depth + 1)?);
        }
    }

    fn mapping(&mut self, span: &Span, depth: usize) -> Result<Node, YamlError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Node> = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                let end = entries.last().map(|entry| entry.value.span.end.max(entry.key_node.span.end + 1));
                let end = end.unwrap_or_else(|| self.byte(&span.end));
                let end = merged.iter().map(|node| node.span.end).fold(end, usize::max);
                merge(&mut entries, merged);
                return Ok(self.close(span, &at, end, Kind::Mapping(entries)));
            }
            let mark = at.start;
            let key_node = self.node(event, at, depth + 1)?;
            let key = match &key_node.kind {
                Kind::Scalar(Value::String(text)) => text.clone(),
                Kind::Scalar(Value::Null) => return Err(self.syntax(&mark, "a key is missing")),
                Kind::Scalar(other) => other.to_string(),
                _ => return Err(self.syntax(&mark, "a key must be a scalar")),
            };
            let (event, at) = self.next()?;
            let value = self.node(event, at, depth + 1)?;
            if key == "<<" {
                merged.push(value);
            } else if entries.iter().any(|entry| entry.key == key) {
                return Err(self.syntax(&mark, format!("the key {key:?} is there twice")));
            } else {
                entries.push(Entry { key, key_node, value });
            }
        }
    }

    /// Flow collections end at their bracket, block collections with their last content.
    fn close(&self, span: &Span, end_mark: &Span, content_end: usize, kind: Kind) -> Node {
        let flow = !span.is_empty(); // a bracket; block collections begin with no character of their own
        let start = self.byte(&span.start);
        if flow {
            return Node { flow, ..self.place(start, self.byte(&end_mark.end), kind) };
        }
        // The mark of a sequence may stand behind its dash.
        let first = match &kind {
            Kind::Sequence(items) => items.first().map(|item| self.text[..item.span.start].rfind('-')),
            _ => None,
        };
        self.place(first.flatten().unwrap_or(start), content_end, kind)
    }
}

/// Adds what `<<` brings in; keys of the mapping itself win.
fn merge(entries: &mut Vec<Entry>, merged: Vec<Node>) {
    for node in merged {
        let maps = match node.kind {
            Kind::Mapping(inner) => vec![inner],
            Kind::Sequence(items) => items
                .into_iter()
                .filter_map(|item| match item.kind {
                    Kind::Mapping(inner) => Some(inner),
                    _ => None,
                })
                .collect(),
            Kind::Scalar(_) => Vec::new(),
        };
        for mut entry in maps.into_iter().flatten() {
            if entries.iter().all(|known| known.key != entry.key) {
                entry.value.alias = true;
                entries.push(entry);
            }
        }
    }
}
