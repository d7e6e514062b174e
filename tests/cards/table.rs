//! `docs/gpu.md` says of every situation which test shows it: those tests are there.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_situation_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/gpu.md")).unwrap();
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| ") && l.split('|').count() == 6).collect();
    let numbered: Vec<Vec<&str>> = rows
        .iter()
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[1].parse::<u32>().is_ok())
        .collect();
    let numbers: Vec<u32> = numbered.iter().map(|cells| cells[1].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=38).collect::<Vec<u32>>());
    let known = functions(root);
    let mut named = 0;
    for cells in &numbered {
        let test = cells[4];
        assert!(!test.is_empty() && !cells[3].is_empty(), "{cells:?}");
        for name in test.split('`').skip(1).step_by(2) {
            assert!(known.contains(name), "situation {}: no test {name}", cells[1]);
            named += 1;
        }
        let shown = test.contains('`') || test.contains("documented");
        assert!(shown, "situation {}: neither a test nor documented", cells[1]);
    }
    assert!(named > 25, "{named}");
}

fn functions(root: &Path) -> BTreeSet<String> {
    let mut folders: Vec<_> = ["src", "tests", "build", ".ci"].map(|f| root.join(f)).into();
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let tests = text.split("#[test]").skip(1).filter_map(|rest| rest.split_once("fn "));
                found.extend(tests.filter_map(|(_, rest)| Some(rest.split_once('(')?.0.to_string())));
            }
        }
    }
    found
}
