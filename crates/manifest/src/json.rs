//! Reads JSON as the manifest's many writers mean it (docs/spec/manifest-and-cli.md, section 1): names in
//! any case, unknown names noted and not refused, a name twice refused, and each error with the JSON
//! path of the value that is wrong.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
        VariantAccess, Visitor,
    },
    forward_to_deserialize_any,
};

/// Most names that are reported as unknown; one manifest can hold a hundred thousand.
const MAX_UNKNOWN: usize = 20;

/// A value that is not what the type wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathError {
    /// JSON path; empty for the whole document.
    pub(crate) path: String,
    pub(crate) message: String,
}

/// What was read, and the JSON paths of names that mean nothing here.
pub(crate) struct Read<T> {
    pub(crate) value: T,
    pub(crate) unknown: Vec<String>,
}

/// Reads a document.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Read<T>, PathError> {
    let syntax = |error: serde_json::Error| PathError { path: String::new(), message: error.to_string() };
    let tree: Tree = serde_json::from_slice(bytes).map_err(syntax)?;
    let unknown = RefCell::new(Vec::new());
    let value = T::deserialize(At { tree: &tree, path: String::new(), unknown: &unknown })?;
    let mut unknown = unknown.into_inner();
    unknown.sort();
    Ok(Read { value, unknown })
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for PathError {}

impl de::Error for PathError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: String::new(), message: message.to_string() }
    }
}

/// A JSON value that keeps the order of names, and names that occur twice.
#[derive(Debug)]
enum Tree {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        serde_json::Number::from_f64(value).map(Tree::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut object = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            object.push(entry);
        }
        Ok(Tree::Object(object))
    }
}

/// A value and where it stands.
struct At<'a> {
    tree: &'a Tree,
    path: String,
    unknown: &'a RefCell<Vec<String>>,
}

impl<'a> At<'a> {
    fn child(&self, tree: &'a Tree, path: String) -> At<'a> {
        At { tree, path, unknown: self.unknown }
    }

    fn below(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Names the place in an error that does not name one yet: the innermost place wins.
    fn located<T>(path: &str, outcome: Result<T, PathError>) -> Result<T, PathError> {
        outcome.map_err(|mut error| {
            if error.path.is_empty() {
                path.clone_into(&mut error.path);
            }
            error
        })
    }

    fn entries(
        &self,
        names: Option<&'static [&'static str]>,
        object: &'a [(String, Tree)],
    ) -> Result<Entries<'a>, PathError> {
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::with_capacity(object.len());
        for (name, tree) in object {
            let path = self.below(name);
            if !seen.insert(name.to_ascii_lowercase()) {
                let message =
                    "is there twice, maybe in another case: which one counts is not clear".to_owned();
                return Err(PathError { path, message });
            }
            let known = names.map(|names| names.iter().find(|known| known.eq_ignore_ascii_case(name)));
            match known {
                Some(None) => {
                    let mut unknown = self.unknown.borrow_mut();
                    if unknown.len() < MAX_UNKNOWN {
                        unknown.push(path);
                    }
                }
                // Go reads null as if the name were not there.
                Some(Some(_)) if matches!(tree, Tree::Null) => {}
                Some(Some(known)) => entries.push(((*known).to_owned(), self.child(tree, path))),
                None => entries.push((name.to_ascii_lowercase(), self.child(tree, path))),
            }
        }
        Ok(Entries { entries: entries.into_iter(), value: None })
    }
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = PathError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PathError> {
        let outcome = match self.tree {
            Tree::Null => visitor.visit_unit().map_err(|error: PathError| PathError {
                message: error.message.replace("unit value", "null"),
                ..error
            }),
            Tree::Bool(value) => visitor.visit_bool(*value),
            Tree::Number(number) => number.clone().deserialize_any(visitor).map_err(de::Error::custom),
            Tree::Text(text) => visitor.visit_str(text),
            Tree::List(list) => visitor.visit_seq(Items { at: &self, items: list.iter().enumerate() }),
            Tree::Object(object) => self.entries(None, object).and_then(|entries| visitor.visit_map(entries)),
        };
        Self::located(&self.path, outcome)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PathError> {
        let Tree::Object(object) = self.tree else { return self.deserialize_any(visitor) };
        let outcome = self.entries(Some(fields), object).and_then(|entries| visitor.visit_map(entries));
        Self::located(&self.path, outcome)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PathError> {
        match self.tree {
            Tree::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, PathError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PathError> {
        let outcome = match self.tree {
            Tree::Text(text) => visitor.visit_enum(Name(text)),
            _ => Err(de::Error::custom("expected a text")),
        };
        Self::located(&self.path, outcome)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    at: &'a At<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Tree>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = PathError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, PathError> {
        let Some((index, tree)) = self.items.next() else { return Ok(None) };
        seed.deserialize(self.at.child(tree, format!("{}[{index}]", self.at.path))).map(Some)
    }
}

struct Entries<'a> {
    entries: std::vec::IntoIter<(String, At<'a>)>,
    value: Option<At<'a>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = PathError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, PathError> {
        let Some((name, at)) = self.entries.next() else { return Ok(None) };
        let key = At::located(&at.path, seed.deserialize(name.into_deserializer()));
        self.value = Some(at);
        key.map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, PathError> {
        let at =
            self.value.take().ok_or_else(|| PathError { path: String::new(), message: "no value".into() })?;
        let path = at.path.clone();
        At::located(&path, seed.deserialize(at))
    }
}

/// A variant without content, by its name.
struct Name<'a>(&'a str);

impl<'de> EnumAccess<'de> for Name<'_> {
    type Error = PathError;
    type Variant = Unit;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Unit), PathError> {
        seed.deserialize(self.0.into_deserializer()).map(|value| (value, Unit))
    }
}

struct Unit;

impl<'de> VariantAccess<'de> for Unit {
    type Error = PathError;

    fn unit_variant(self) -> Result<(), PathError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, PathError> {
        Err(de::Error::custom("expected a name"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, PathError> {
        Err(de::Error::custom("expected a name"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, PathError> {
        Err(de::Error::custom("expected a name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Outer {
        #[serde(alias = "Olds")]
        names: Vec<Inner>,
        #[serde(default)]
        count: Option<u8>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        id: u8,
    }

    fn refusal(text: &str) -> String {
        read::<Outer>(text.as_bytes()).err().unwrap().to_string()
    }

    #[test]
    fn names_in_any_case_and_by_alias_are_read_and_unknown_ones_are_noted() {
        let found =
            read::<Outer>(br#"{"nAMES": [{"ID": 7, "Colour": 1}], "COUNT": null, "New": {}}"#).unwrap();
        assert_eq!(found.value, Outer { names: vec![Inner { id: 7 }], count: None });
        assert_eq!(found.unknown, ["New", "nAMES[0].Colour"]);
        assert_eq!(read::<Outer>(br#"{"olds": []}"#).unwrap().value.names, []);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        assert_eq!(refusal(r#"{"Names": [{"Id": 7}, {"Id": 256}]}"#).split(':').next(), Some("Names[1].Id"));
        assert!(refusal(r#"{"Names": [{}]}"#).starts_with("Names[0]: missing field `Id`"));
        assert!(refusal(r#"{"Names": [], "names": []}"#).starts_with("names: is there twice"));
        assert!(refusal("null").contains("invalid type: null"));
        assert!(refusal("{").contains("line 1 column 1"));
    }
}
