//! The mistakes that `tests/planted/run.py` plants still have their places in the sources: text that stands there once.

use serde_json::Value;
use std::path::Path;

#[test]
fn every_mistake_has_its_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/planted/mistakes.json")).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(all.len() >= 50);
    for (m, n) in all.iter().zip(1..) {
        let of = |key: &str| m[key].as_str().unwrap_or_else(|| panic!("mistake {n}: {key}"));
        assert_eq!(m["n"], n);
        let source = std::fs::read_to_string(root.join(of("file"))).unwrap();
        let found = source.matches(of("before")).count();
        assert_eq!(found, 1, "{}: the place of mistake {n}, {}: {}", of("file"), of("what"), of("before"));
        assert!(of("before") != of("after") && m["tests"].as_array().is_some_and(|t| !t.is_empty()));
    }
}
