//! The house rules that a compiler does not know: who may import whom, what a room may hold, how long a file is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room and the rooms it may import; `error` and `terminal` are open to all. Imports go down only.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("terminal", &[]),
    ("files", &[]),
    ("random", &[]),
    ("group", &[]),
    ("device", &[]),
    ("tensor", &["device", "random"]),
    ("ops", &["tensor", "device"]),
    ("kernels", &["ops", "tensor"]),
    ("nn", &["ops", "tensor"]),
    ("model", &["nn", "ops", "tensor"]),
    // These know no tensors: they hand over plain buffers.
    ("text", &["files"]),
    ("vision", &["files"]),
    ("metrics", &[]),
    ("weights", &["files"]),
    ("data", &["text", "vision", "files", "random"]),
    ("results", &["files"]),
    ("demo", &["data", "vision", "files"]),
    // From here on a model meets the world.
    ("pretrained", &["model", "nn", "ops", "tensor", "data", "text", "vision", "weights", "files"]),
    ("search", &["pretrained", "device", "model", "nn", "tensor", "data", "vision", "results", "files"]),
    (
        "train",
        &[
            "pretrained",
            "model",
            "nn",
            "ops",
            "tensor",
            "device",
            "data",
            "vision",
            "text",
            "metrics",
            "weights",
            "files",
            "group",
        ],
    ),
    ("console", &["train"]),
    ("parity", &["group", "train", "model", "nn", "ops", "tensor", "text", "vision", "weights"]),
    ("report", &["train", "data", "vision", "metrics", "results", "files"]),
    ("serve", &["report", "results", "vision", "files"]),
    (
        "commands",
        &[
            "serve",
            "console",
            "report",
            "parity",
            "pretrained",
            "train",
            "demo",
            "search",
            "results",
            "data",
            "weights",
            "metrics",
            "vision",
            "text",
            "model",
            "kernels",
            "nn",
            "ops",
            "tensor",
            "device",
            "files",
            "group",
        ],
    ),
];

/// Files that may be longer than 450 lines: one state machine each.
const LONG: &[&str] = &["weights/pytorch/pickle.rs"];

struct Source {
    path: PathBuf,
    room: String,
    /// Without comments and without the tests at its end.
    code: String,
    lines: usize,
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            found.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// The text of a file without `//` comments; what stands in strings stays.
fn without_comments(text: &str) -> String {
    let line = |line: &str| {
        let code =
            line.match_indices("//").find(|(at, _)| line[..*at].matches('"').count().is_multiple_of(2));
        code.map_or(line, |(at, _)| &line[..at]).to_string() + "\n"
    };
    text.lines().map(line).collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let inside = path.strip_prefix(&root).unwrap().to_path_buf();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let room = first.trim_end_matches(".rs").to_string();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        Source { code: without_comments(code), lines: text.lines().count(), path: inside, room }
    };
    let all: Vec<Source> = rust_files(&root).into_iter().map(source).collect();
    assert!(all.len() > 30, "the sources were not found");
    // Files of tests, declared as `#[cfg(test)] mod name;` in their room.
    let tests: Vec<PathBuf> = (all.iter())
        .flat_map(|s| {
            let declared = s.code.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.split_once(';'));
            declared.map(|(name, _)| s.path.with_file_name(format!("{name}.rs"))).collect::<Vec<_>>()
        })
        .collect();
    all.into_iter().filter(|s| s.room != "lib" && s.room != "main" && !tests.contains(&s.path)).collect()
}

/// The rooms named behind `crate::` in a piece of code: `crate::x::y`, and the first names in `crate::{..}`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, found_text) in code.match_indices("crate::") {
        let rest = code[at + found_text.len()..].trim_start();
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(name(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.insert(name(group[start..i].trim()));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn names_behind_crate_are_found() {
    let code = "use crate::{Error, text::{a, b}, on};\nfn f() { crate::device::cpu::x(); crate::on!(T) }\nuse crate::{\n  Result,\n};";
    let all: Vec<String> = imports(code).into_iter().collect();
    assert_eq!(all, ["Error", "Result", "device", "on", "text"]);
    assert_eq!(without_comments("a // crate::b\n\"http://c\" // d"), "a \n\"http://c\" \n");
}

/// Two files of a room that need each other: what is known, with what would open it.
const CIRCLES: &[[&str; 2]] = &[
    // A picture's place may be a row of a parquet file, and that file's rows are pictures.
    ["data::image", "data::parquet"],
    // Requests are read into what handlers answer, whose errors they are.
    ["serve::body", "serve::handlers"],
];

/// `train::cache::fill`, or of a folder's mod.rs `train::cache`.
fn module(path: &Path) -> String {
    let name = path.with_extension("").to_string_lossy().replace('/', "::");
    name.strip_suffix("::mod").unwrap_or(&name).to_string()
}

/// No file needs, directly or through others of its room, a file that needs it. (A folder's own file and those in it are one.)
#[test]
fn no_circle_between_files_of_a_room() {
    let all: Vec<(String, String)> = sources().into_iter().map(|s| (module(&s.path), s.code)).collect();
    let needs = |from: &(String, String), to: &str| {
        let (parent, name) = to.rsplit_once("::").unwrap_or(("", to));
        let beside = from.0.rsplit_once("::").is_some_and(|(of, _)| of == parent);
        let room = |m: &str| m.split("::").next().unwrap_or_default().to_string();
        from.0 != to
            && room(&from.0) == room(to)
            && (from.1.contains(&format!("crate::{to}::"))
                || beside && from.1.contains(&format!("super::{name}::")))
    };
    let reached = |from: usize| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(at) = left.pop() {
            for to in (0..all.len()).filter(|to| needs(&all[at], &all[*to].0)).collect::<Vec<_>>() {
                if seen.insert(to) {
                    left.push(to);
                }
            }
        }
        seen
    };
    let circles: Vec<&str> =
        (0..all.len()).filter(|i| reached(*i).contains(i)).map(|i| all[i].0.as_str()).collect();
    assert_eq!(circles, CIRCLES.concat(), "files that need themselves");
}

/// The table itself goes down only: a room imports rooms that stand above it in the table.
#[test]
fn the_table_has_no_circle() {
    for (i, (room, allowed)) in ROOMS.iter().enumerate() {
        for a in *allowed {
            assert!(
                ROOMS[..i].iter().any(|(r, _)| r == a),
                "{room} may import {a}, which does not stand below it"
            );
        }
    }
}

#[test]
fn imports_go_down_only() {
    for source in sources() {
        let at = source.path.display();
        let allowed = ROOMS.iter().find(|(room, _)| *room == source.room);
        let Some((_, allowed)) = allowed else {
            panic!("{at}: the room {} is not in this test's table", source.room)
        };
        for name in imports(&source.code) {
            // The error type and two macros stand in the crate's root.
            let room = match name.as_str() {
                "Error" | "Result" | "Kind" => "error",
                "on" => "tensor",
                "args" => "device",
                room => room,
            };
            let open = ["error", "terminal", &source.room].contains(&room) || allowed.contains(&room);
            assert!(open, "{at}: {} imports crate::{name}; it may import {allowed:?}", source.room);
        }
    }
}

/// What several operations share, and a table; everything else in `ops` is an operation.
const NO_OPERATION: &[&str] = &["mod", "check", "gpu", "segments"];

/// The operation to which a file of `ops` belongs: its name, or its folder's.
fn operation(path: &Path) -> String {
    let inside = path.components().nth(1).unwrap().as_os_str().to_string_lossy();
    inside.trim_end_matches(".rs").to_string()
}

#[test]
fn no_operation_imports_another() {
    let all = sources();
    let ops = || all.iter().filter(|s| s.room == "ops").map(|s| (operation(&s.path), s));
    let names: BTreeSet<String> =
        ops().map(|(name, _)| name).filter(|name| !NO_OPERATION.contains(&name.as_str())).collect();
    for (own, source) in ops().filter(|(own, _)| names.contains(own)) {
        for name in names.iter().filter(|name| **name != own) {
            for path in [format!("super::{name}::"), format!("ops::{name}::")] {
                assert!(!source.code.contains(&path), "{}: {path}", source.path.display());
            }
        }
    }
}

/// Each operation has a case of its name in `tests/cases`, which the suite runs.
#[test]
fn every_operation_has_a_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let suite = fs::read_to_string(root.join("ops.rs")).unwrap();
    let names: BTreeSet<String> =
        sources().iter().filter(|s| s.room == "ops").map(|s| operation(&s.path)).collect();
    for name in names.iter().filter(|name| !NO_OPERATION.contains(&name.as_str())) {
        assert!(
            root.join(format!("cases/{name}.rs")).exists(),
            "src/ops/{name}.rs has no tests/cases/{name}.rs"
        );
        assert!(suite.contains(&format!("mod {name};")), "tests/ops.rs does not run cases/{name}.rs");
    }
    assert!(names.len() > 20, "the operations were not found");
}

/// Whatever computes on the CPU has kernels, too: nothing is left that would find no numbers there.
#[test]
fn every_operation_runs_on_a_gpu() {
    let mut found = 0;
    for source in sources().iter().filter(|s| s.room == "ops" && s.code.contains("on!(")) {
        // Half matrices are the CPU's: on a GPU weights in 16 bits are tensors.
        let known = source.path.ends_with("linear/half.rs");
        assert!(
            known || ["arrays(", "on_gpu("].iter().any(|door| source.code.contains(door)),
            "{}: no kernels",
            source.path.display()
        );
        found += 1;
    }
    assert!(found > 12, "the operations were not found");
}

#[test]
fn unsafe_and_devices_stay_below_the_model() {
    let holds = |code: &str, word: &str| {
        code.match_indices(word).any(|(at, _)| {
            let part_of_name = |c: char| c.is_alphanumeric() || "_-".contains(c);
            !code[..at].ends_with(part_of_name) && !code[at + word.len()..].starts_with(part_of_name)
        })
    };
    assert!(holds("x unsafe {", "unsafe") && !holds("unsafe_code", "unsafe"));
    for source in sources() {
        let at = source.path.display();
        // What decodes pictures is C, and MPI.
        let native = ["vision/c.rs", "group/mpi.rs"].iter().any(|p| source.path == Path::new(p));
        if !native && !["device", "ops", "files", "weights"].contains(&source.room.as_str()) {
            let allowed = source.code.contains("forbid(unsafe_code)");
            assert!(allowed || !holds(&source.code, "unsafe"), "{at}: unsafe");
        }
        if ["model", "nn", "train", "pretrained"].contains(&source.room.as_str()) {
            for name in ["Device::Gpu", "Device::Cpu", "is_gpu", "match device"] {
                assert!(
                    !source.code.contains(name),
                    "{at}: {name}; ask the device what it can do, or an operation"
                );
            }
        }
    }
}

/// Strangers' names and texts reach a terminal escaped: what writes there is in three places.
#[test]
fn text_meets_the_terminal_in_one_place() {
    for source in sources() {
        let at = source.path.display();
        let writes = ["terminal.rs", "commands/output.rs"].iter().any(|p| source.path.ends_with(p));
        for word in ["println!(", "print!("] {
            assert!(writes || !source.code.contains(word), "{at}: {word} (take say! or terminal::note!)");
        }
    }
}

#[test]
fn nothing_unfinished_and_no_panic_from_an_argument() {
    for source in sources() {
        for word in
            [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!(", "dbg!("]
        {
            for (n, line) in source.code.lines().enumerate() {
                assert!(!line.contains(word), "{}:{}: {word}", source.path.display(), n + 1);
            }
        }
    }
}

#[test]
fn files_are_short_and_begin_with_what_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in sources().iter().filter(|s| !LONG.iter().any(|long| s.path.ends_with(long))) {
        assert!(source.lines <= 450, "src/{}: {} lines, at most 450", source.path.display(), source.lines);
    }
    for path in rust_files(&root.join("src")).into_iter().chain(rust_files(&root.join("tests"))) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{}: the first line says what the file is", path.display());
    }
}

/// `docs/dependencies.md` has a row for each crate in `Cargo.toml`, and none for another.
#[test]
fn every_dependency_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let wanted: BTreeSet<&str> = section.lines().filter_map(|l| Some(l.split_once(" = ")?.0)).collect();
    let table = fs::read_to_string(root.join("docs/dependencies.md")).unwrap();
    let rows = table.lines().filter_map(|l| l.strip_prefix("| `")?.split(" | ").next());
    let found: BTreeSet<&str> = rows.flat_map(|r| r.split(", ")).map(|n| n.trim_matches('`')).collect();
    assert!(wanted.len() > 20, "the dependencies were not found");
    assert_eq!(wanted, found, "docs/dependencies.md");
}
