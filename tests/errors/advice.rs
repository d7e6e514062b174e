//! Advice that can be followed: every flag that a message of the program names is one that its command has.

use clap::CommandFactory;
use qformer::commands::Cli;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who prints the messages of a file or folder of `src`, the longest name that fits counts; all of them must know a flag that a
/// message names without naming a command. A place that is not listed may be reached from any command.
const SPEAKERS: &[(&str, &[&str])] = &[
    ("commands/bench", &["bench"]),
    ("commands/caption.rs", &["caption"]),
    ("commands/convert", &["convert"]),
    ("commands/demo", &["demo"]),
    ("commands/dictionary.rs", &["dictionary"]),
    ("commands/doctor.rs", &["doctor"]),
    ("commands/engine.rs", &["caption", "search index", "search query", "features", "evaluate"]),
    ("commands/evaluate.rs", &["evaluate"]),
    ("commands/features.rs", &["features"]),
    ("commands/generation.rs", &["caption", "evaluate"]),
    ("commands/inputs.rs", &["caption", "search index", "features"]),
    ("commands/inspect.rs", &["inspect"]),
    ("commands/parity.rs", &["parity"]),
    ("commands/report.rs", &["report"]),
    ("commands/search.rs", &["search query"]),
    ("commands/tokens.rs", &["tokens"]),
    ("commands/train.rs", &["train"]),
    ("commands/vocabulary.rs", &["vocabulary"]),
    ("nn", &["train", "caption", "search index", "search query", "features", "evaluate"]),
    ("pretrained", &["train", "caption", "search index", "search query", "features", "evaluate"]),
    // A language model is named where a second stage is opened.
    ("pretrained/llm.rs", &["train", "caption", "doctor"]),
    ("search/add.rs", &["search index"]),
    ("search/gallery.rs", &["evaluate"]),
    ("search/query.rs", &["search query"]),
    ("train", &["train"]),
    ("weights/start.rs", &["convert"]),
];

/// The long flags of each command, `search query` among them.
fn flags() -> BTreeMap<String, BTreeSet<String>> {
    fn add(command: &clap::Command, name: &str, all: &mut BTreeMap<String, BTreeSet<String>>) {
        let own = command.get_arguments().filter_map(|a| a.get_long()).map(String::from);
        all.entry(name.to_string()).or_default().extend(own.chain(["help".into(), "version".into()]));
        for sub in command.get_subcommands() {
            add(sub, format!("{name} {}", sub.get_name()).trim(), all);
        }
    }
    let mut all = BTreeMap::new();
    add(&Cli::command(), "", &mut all);
    all
}

/// The texts in a source, without comments and tests, as they are printed.
fn literals(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let (mut found, mut chars) = (Vec::new(), code.chars().peekable());
    let mut before = ' ';
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|c| *c != '\n').is_some() {},
            '\'' => {
                // A character, '"' among them; a lifetime has no end and stays.
                let rest: String = chars.clone().take(3).collect();
                let n = if rest.starts_with('\\') { 3 } else { 2 };
                if rest.chars().nth(n - 1) == Some('\'') {
                    (0..n).for_each(|_| assert!(chars.next().is_some()));
                }
            }
            '"' => {
                let (mut text, raw) = (String::new(), before == 'r' || before == '#');
                while let Some(c) = chars.next_if(|c| *c != '"') {
                    match (c, raw) {
                        ('\\', false) => match chars.next() {
                            Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                            Some('n') => text.push('\n'),
                            Some(other) => text.push(other),
                            None => {}
                        },
                        _ => text.push(c),
                    }
                }
                chars.next();
                found.push(text);
            }
            _ => {}
        }
        before = c;
    }
    found
}

/// Flags of other programs: cargo, docker, tar, srun.
const OTHERS: [&str; 5] = ["features", "release", "gpus", "sparse", "mpi"];

/// A flag of a text, and the command that the text names for it: the last one before it.
fn named(text: &str, known: &BTreeMap<String, BTreeSet<String>>) -> Vec<(String, Option<String>)> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let flag = |(at, _): (usize, &str)| {
        let name: String = text[at + 2..].chars().take_while(|c| word(*c)).collect();
        let alone = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
        // One letter is a property of a style sheet.
        if !alone || name.len() < 2 || name.starts_with('-') || OTHERS.contains(&name.as_str()) {
            return None;
        }
        let line = text[..at].rsplit(['\n', ';', ',']).next().unwrap_or_default();
        let command = line.rfind("qformer ").map(|at| {
            let words: Vec<&str> = line[at + 8..].split_whitespace().take(2).collect();
            let clean = |w: &str| w.trim_matches(|c: char| !c.is_ascii_lowercase()).to_string();
            let both = words.iter().map(|w| clean(w)).collect::<Vec<_>>().join(" ");
            if known.contains_key(&both) { both } else { words.first().map(|w| clean(w)).unwrap_or_default() }
        });
        Some((name, command))
    };
    text.match_indices("--").filter_map(flag).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

/// What is wrong with the flags of a text that is printed from a file.
fn wrong(place: &str, text: &str, known: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let fits = |name: &str| place == name || place.strip_prefix(name).is_some_and(|r| r.starts_with('/'));
    let speakers = SPEAKERS.iter().filter(|(name, _)| fits(name)).max_by_key(|(name, _)| name.len());
    let has = |command: &str, flag: &str| known.get(command).is_some_and(|f| f.contains(flag));
    let mut found = Vec::new();
    for (flag, command) in named(text, known) {
        let lacks = match (command, speakers) {
            (Some(command), _) => (!has(&command, &flag)).then_some(command),
            (None, Some((_, all))) => all.iter().find(|c| !has(c, &flag)).map(|c| c.to_string()),
            (None, None) => (!known.keys().any(|c| has(c, &flag))).then_some("any command".to_string()),
        };
        found.extend(lacks.map(|c| format!("src/{place}: --{flag} is no flag of {c}: {text:?}")));
    }
    found
}

#[test]
fn every_flag_that_a_message_names_is_known() {
    let (root, known) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), flags());
    let (mut files, mut faults, mut seen) = (Vec::new(), Vec::new(), 0);
    sources(&root, &mut files);
    files.sort();
    for path in files {
        let place = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        for text in literals(&std::fs::read_to_string(&path).unwrap()) {
            seen += named(&text, &known).len();
            faults.extend(wrong(&place, &text, &known));
        }
    }
    assert!(seen > 100, "the messages were not found: {seen} flags");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for (place, commands) in SPEAKERS {
        assert!(root.join(place).exists(), "src/{place} is gone: take it out of the list");
        assert!(commands.iter().all(|c| known.contains_key(*c)), "{place}: {commands:?}");
    }
}

#[test]
fn a_flag_of_another_command_is_found() {
    let known = flags();
    let count = |place: &str, text: &str| wrong(place, text, &known).len();
    assert_eq!(count("pretrained/mod.rs", "give it with --vit"), 1);
    assert_eq!(count("pretrained/mod.rs", "qformer convert MODEL --vit FILE, or qformer train --bert"), 1);
    assert_eq!(count("pretrained/mod.rs", "run qformer convert with --vit"), 0);
    assert_eq!(count("error.rs", "--no-such-flag"), 1);
    assert_eq!(
        count("commands/search.rs", "say with --model where it is (qformer search query --index X)"),
        0
    );
    let code = "f(\"a \\\"b\\\" \\\n   c\"); // \"no\"\nlet c = '\"'; g(r#\"--x\"#, \"d\")";
    assert_eq!(literals(code), ["a \"b\" c", "--x", "d"]);
}
