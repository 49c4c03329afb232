//! YAML documents whose parts know where they stand.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{Location, Spanned};
use std::fmt;

/// Line and column, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    const START: Self = Self { line: 1, column: 1 };

    fn of(location: Location) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
        Self { line: number(location.line()), column: number(location.column()) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Document {
    place: Place,
    pub(super) node: Node,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Leaf(Value),
    List(Vec<Document>),
    /// An object: key, place of the key, value.
    Object(Vec<(String, Place, Document)>),
}

/// All documents of a text that hold anything.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, (Place, String)> {
    let plain = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<Document> = serde_saphyr::from_multiple_with_options(text, plain).map_err(|error| {
        let place = error.location().map_or(Place::START, Place::of);
        (place, error.to_string())
    })?;
    Ok(documents.into_iter().filter(|document| !matches!(document.node, Node::Leaf(Value::Null))).collect())
}

impl Document {
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match &self.node {
            Node::Object(fields) => fields.iter().find(|(key, ..)| key == name).map(|(.., value)| value),
            _ => None,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        match &self.node {
            Node::Leaf(value) => value.clone(),
            Node::List(items) => items.iter().map(Self::to_json).collect(),
            Node::Object(fields) => {
                let fields = fields.iter().map(|(key, _, value)| (key.clone(), value.to_json()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    /// Where the field at `path` stands: its key, or as far towards it as there are fields.
    pub(super) fn locate(&self, path: &str) -> Place {
        self.walk(path).1
    }

    fn walk(&self, path: &str) -> (&Self, Place) {
        let (mut here, mut place, mut rest) = (self, self.place, path);
        while !rest.is_empty() {
            let next = match &here.node {
                Node::Leaf(_) => None,
                Node::List(items) => {
                    index(rest).and_then(|(n, rest)| items.get(n).map(|item| (item, item.place, rest)))
                }
                // Keys of labels have dots in them: the longest key that fits is the one.
                Node::Object(fields) => fields
                    .iter()
                    .filter_map(|(key, place, value)| field(rest, key).map(|rest| (value, *place, rest)))
                    .min_by_key(|(.., rest)| rest.len()),
            };
            let Some(next) = next else { break };
            (here, place, rest) = next;
        }
        (here, place)
    }

    /// Where below `path` a key of a label is written, with a source before it or without; else where `path` is.
    pub(super) fn find_key(&self, path: &str, key: &str) -> Place {
        let (here, place) = self.walk(path);
        here.key(key).unwrap_or(place)
    }

    fn key(&self, wanted: &str) -> Option<Place> {
        let is = |text: &str| text == wanted || text.split_once(':').is_some_and(|(_, bare)| bare == wanted);
        match &self.node {
            Node::Leaf(Value::String(text)) if is(text) => Some(self.place),
            Node::Leaf(_) => None,
            Node::List(items) => items.iter().find_map(|item| item.key(wanted)),
            Node::Object(fields) => {
                fields.iter().find_map(|(key, place, value)| if is(key) { Some(*place) } else { value.key(wanted) })
            }
        }
    }
}

/// `[3].rest`
fn index(path: &str) -> Option<(usize, &str)> {
    let (number, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((number.parse().ok()?, rest.strip_prefix('.').unwrap_or(rest)))
}

/// What follows `key` in a path that begins with it.
fn field<'p>(path: &'p str, key: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(key)?;
    match rest.strip_prefix('.') {
        Some(rest) => Some(rest),
        None => (rest.is_empty() || rest.starts_with('[')).then_some(rest),
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Plain(node), referenced, .. } = Spanned::<Plain>::deserialize(deserializer)?;
        Ok(Self { place: Place::of(referenced), node })
    }
}

struct Plain(Node);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor).map(Plain)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            fields.push((key.value, Place::of(key.referenced), map.next_value()?));
        }
        Ok(Node::Object(fields))
    }
}
