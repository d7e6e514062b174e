//! A configuration file as a flat list of entries: dotted path, value, and the line it stands on.
//!
//! YAML is parsed under the library's limits (size, depth, aliases); a key given twice is an error.

use crate::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::fmt;
use std::path::Path;

/// A configuration is a page, not a data set.
const MAX_BYTES: usize = 1 << 20;

/// One setting as somebody wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `run.init_lr`
    pub path: String,
    /// A scalar, a list of values, or null.
    pub value: Value,
    /// `train.yaml line 7`, or `--set`
    pub place: String,
}

enum Node {
    Value(Value),
    Map(Vec<(Spanned<String>, Node)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Node, D::Error> {
        d.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("settings, a list, a number, a text, true, false or null")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Node::Value(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        Ok(Node::Value(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Node::Value(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
        Ok(Node::Value(v.into()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Node::Value(v.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Value(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Value(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut values = Vec::new();
        while let Some(node) = list.next_element()? {
            values.push(match node {
                Node::Value(v) => v,
                Node::Map(_) => Value::Object(serde_json::Map::new()), // no setting takes one: refused by its type
            });
        }
        Ok(Node::Value(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

/// The settings of a file's text, in its order.
pub fn entries(file: &Path, text: &str) -> Result<Vec<Entry>> {
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    if text.len() > MAX_BYTES {
        return Err(Error::file(
            OPERATION,
            file,
            format!("at most {MAX_BYTES} bytes of settings"),
            "a larger file",
        ));
    }
    let node: Option<Node> = serde_saphyr::from_str(text).map_err(|e| {
        let message = e.to_string();
        let first = message.lines().next().unwrap_or_default().to_string();
        Error::file(OPERATION, file, "YAML", first).fix("correct this line")
    })?;
    let mut found = Vec::new();
    match node {
        Some(Node::Map(map)) => flatten("", map, &name, &mut found),
        None | Some(Node::Value(Value::Null)) => {}
        Some(Node::Value(v)) => {
            let got = crate::data::quoted(&v.to_string());
            return Err(Error::file(OPERATION, file, "settings such as init_lr: 1e-4", got));
        }
    }
    Ok(found)
}

const OPERATION: &str = "read configuration";

fn flatten(before: &str, map: Vec<(Spanned<String>, Node)>, file: &str, found: &mut Vec<Entry>) {
    for (key, node) in map {
        let dot = if before.is_empty() { "" } else { "." };
        let path = format!("{before}{dot}{}", key.value);
        match node {
            Node::Map(inner) if !inner.is_empty() => flatten(&path, inner, file, found),
            Node::Map(_) => found.push(Entry { path, value: Value::Null, place: line(file, &key) }),
            Node::Value(value) => found.push(Entry { path, value, place: line(file, &key) }),
        }
    }
}

fn line(file: &str, key: &Spanned<String>) -> String {
    format!("{file} line {}", key.referenced.line())
}

/// A setting from the command line: `name=value`, the value written as in YAML.
pub fn assignment(text: &str) -> Result<Entry> {
    let Some((path, value)) = text.split_once('=') else {
        return Err(Error::argument("--set", text, "name=value, such as init_lr=5e-5", "no ="));
    };
    let value = match serde_saphyr::from_str::<Node>(value) {
        Ok(Node::Value(v)) => v,
        // What is no YAML by itself (`C:`, `a: b`) is meant as a text.
        _ => Value::String(value.to_string()),
    };
    Ok(Entry { path: path.trim().to_string(), value, place: "--set".to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_have_their_lines() {
        let text = "# a comment\nmodel:\n  arch: blip2\n\nrun:\n  init_lr: 1e-4 # rate\n  splits: [\"train\", 2]\n  \
                    resume: null\n  amp: True\nempty: {}\nname: '007'\n";
        let found = entries(Path::new("a/train.yaml"), text).unwrap();
        let seen: Vec<_> = found.iter().map(|e| (e.path.as_str(), &e.value, e.place.as_str())).collect();
        let wanted = [
            ("model.arch", json!("blip2"), "train.yaml line 3"),
            ("run.init_lr", json!(1e-4), "train.yaml line 6"),
            ("run.splits", json!(["train", 2]), "train.yaml line 7"),
            ("run.resume", json!(null), "train.yaml line 8"),
            ("run.amp", json!(true), "train.yaml line 9"),
            ("empty", json!(null), "train.yaml line 10"),
            ("name", json!("007"), "train.yaml line 11"),
        ];
        assert_eq!(seen.len(), wanted.len());
        for (seen, (path, value, place)) in seen.iter().zip(&wanted) {
            assert_eq!(*seen, (*path, value, *place));
        }
    }

    #[test]
    fn broken_files_are_refused() {
        for (text, wanted) in [
            ("a: 1\nb: [1, 2\n", "YAML"),
            ("a: 1\na: 2\n", "duplicate"),
            ("- 1\n- 2\n", "settings such as"),
            ("just words", "settings such as"),
        ] {
            let error = entries(Path::new("x.yaml"), text).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("x.yaml"), "{text:?}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(entries(Path::new("x.yaml"), &deep).is_err());
        let bomb: String = (1..30)
            .map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1))
            .fold("a0: &a0 [1, 1]\n".to_string(), |all, line| all + &line);
        assert!(entries(Path::new("x.yaml"), &bomb).is_err());
        assert_eq!(entries(Path::new("x.yaml"), "# nothing\n").unwrap(), []);
    }

    #[test]
    fn assignments_are_yaml_values() {
        let value = |text: &str| assignment(text).map(|e| e.value).map_err(|e| e.to_string());
        assert_eq!(value("a.b=3"), Ok(json!(3)));
        assert_eq!(value("a=1e-4"), Ok(json!(1e-4)));
        assert_eq!(value("a=[0.5, 1]"), Ok(json!([0.5, 1])));
        assert_eq!(value("a=x: y"), Ok(json!("x: y")));
        assert_eq!(value("a=/photos/猫"), Ok(json!("/photos/猫")));
        assert_eq!(value("a=null"), Ok(json!(null)));
        assert!(value("a").unwrap_err().contains("name=value"));
    }
}
