//! What the README says of cards, batches and times is counted here; and what a dry run says of a GPU.

use crate::world::World;
use qformer::device::{cards, setup};
use qformer::model::Config;
use qformer::nn::Precision;
use qformer::train::config::{self, Length, yaml};
use qformer::train::rehearsal::Run;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// LAVIS cuts captions here.
const LONGEST: usize = 32;

/// Rows of a README table whose first cell `is` accepts, cell by cell.
fn rows(is: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = text.split("## GPUs").nth(1).expect("the section on GPUs").split("\n## ").next().unwrap();
    let cells = |l: &str| l.trim_matches('|').split('|').map(|c| c.trim().to_string()).collect::<Vec<_>>();
    section.lines().filter(|l| l.starts_with('|')).map(cells).filter(|cells| is(&cells[0])).collect()
}

/// The first number of a cell.
fn number(cell: &str) -> f64 {
    let digits: String = cell
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(|c| c.is_ascii_digit() || ".,".contains(*c))
        .collect();
    digits.replace(',', "").trim_end_matches('.').parse().unwrap_or_else(|e| panic!("{cell}: {e}"))
}

/// A step of the full size, counted.
fn step(device: &str, more: &[&str]) -> Value {
    let step = ["bench", "step", "--config", "full", "--json", "--device", device];
    let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(step).args(more).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Bytes at the peak of a step whose captions are all as long as they can be, by a frozen image encoder.
fn longest(batch: usize, precision: Precision) -> u64 {
    let entries = [format!("batch={batch}"), "start=x".into()].map(|e| yaml::assignment(&e).unwrap());
    let settings = config::Config::from_entries(&entries).unwrap();
    let sizes = Config::named("full").unwrap();
    let length = Length { steps: 100, whole: 100, steps_per_epoch: 100, max_epoch: 1, warmup_steps: 10 };
    let run = Run { llm: None, config: &settings, sizes: &sizes, length, precision, text: LONGEST };
    run.rehearse(None, false).unwrap().peak
}

/// `| 12 GB | batch 25 | 6.7 GB |`: counted, no lower than it is and not much higher; and it fits, with the longest captions, too.
#[test]
fn memory_that_the_readme_promises_is_counted() {
    let promised = rows(|cell| cell.ends_with(" GB"));
    assert!(promised.len() >= 4, "{promised:?}");
    for row in &promised {
        let (card, batch, said) =
            (number(&row[0]) as u64 * (1 << 30), number(&row[1]) as usize, number(&row[2]));
        for dtype in ["bf16", "f16"] {
            let batch = batch.to_string();
            let counted =
                step("plan", &["--batch", &batch, "--dtype", dtype])["peak_bytes"].as_f64().unwrap() / 1e9;
            assert!(
                said >= counted - 0.05 && said <= 1.1 * counted,
                "{row:?}, {dtype}: {counted:.2} GB are counted"
            );
        }
        for precision in [Precision::BF16, Precision::F16] {
            let (peak, usable) = (longest(batch, precision), setup::usable(card, card, false));
            assert!(peak <= usable, "{row:?}: {peak} of {usable} bytes");
        }
    }
}

/// `| GeForce RTX 4090 | plan:rtx-4090 | 156 ms, 161 pictures/s | 40 ms |`: as `bench step` says, give or take the last digit.
#[test]
fn times_that_the_readme_predicts_are_those_of_the_roofline() {
    let predicted =
        rows(|cell| cards::CARDS.iter().any(|card| card.title.ends_with(cell) && !cell.is_empty()));
    assert_eq!(predicted.len(), cards::CARDS.len(), "{predicted:?}");
    for row in &predicted {
        let device = row[1].trim_matches('`');
        let card = cards::named(device.strip_prefix("plan:").unwrap()).unwrap();
        assert!(card.title.ends_with(&row[0]), "{row:?}");
        let cells: [(&[&str], &str); 2] = [(&[], &row[2]), (&["--cached"], &row[3])];
        for (more, cell) in cells {
            let counted = step(device, &[&["--batch", "25"], more].concat());
            let ms = counted["microseconds"].as_f64().unwrap() / 1e3;
            assert!((number(cell) / ms - 1.0).abs() < 0.1, "{row:?}: {ms:.1} ms are counted");
            assert_eq!(counted["figures"], card.source);
        }
    }
}

fn dry_run(world: &World, more: &[&str]) -> String {
    let data = ["train", "--images", "images", "--captions", "captions.json", "--out", "run", "--dry-run"];
    world.run(&[&data[..], more].concat()).good().text()
}

/// From nothing, the image encoder is trained, too; of what fits, the card's own memory decides, less a margin, and not the host's.
#[test]
fn a_dry_run_on_a_gpu_judges_by_its_memory() {
    let world = World::new();
    let full = dry_run(&world, &["--size", "full", "--batch", "4", "--device", "plan:rtx-4080-laptop"]);
    let said = full.lines().find(|l| l.starts_with("image encoder")).expect("what --start saves");
    assert!(
        said.contains("trained, too") && said.contains("(--start)") && said.contains("985.89 million"),
        "{said}"
    );
    assert!(full.contains("not even a batch of 2 fits"), "{full}");
    // 12 GiB less a fortieth.
    assert!(full.contains("it has 11.70 GiB"), "{full}");
    for host in ["  weights", "  optimizer", "memory         "] {
        assert!(!full.contains(host), "the CPU's estimate: {full}");
    }
    world.run(&["convert", "--random", "tiny", "--out", "start"]).good();
    let frozen = dry_run(&world, &["--start", "start", "--device", "plan:8"]);
    assert!(
        !frozen.contains("image encoder ") && frozen.contains("it has 7.45 GiB: a batch of "),
        "{frozen}"
    );
    let cpu = dry_run(&world, &["--size", "tiny", "--device", "cpu"]);
    assert!(
        cpu.contains("  weights") && cpu.contains("memory         ") && cpu.contains("image encoder"),
        "{cpu}"
    );
    world.train("run", &["--device", "plan:8"]).refused(2, &["plan, which computes nothing"]);
}

#[test]
fn plan_and_its_cards_stand_in_the_help() {
    let world = World::new();
    for command in [&["bench", "--help"][..], &["train", "--help"], &["caption", "--help"]] {
        let text = world.run(command).good().text().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("plan:CARD"), "{text}");
        for card in cards::CARDS {
            assert!(text.contains(card.name), "{}: {text}", card.name);
        }
    }
    let error = world.run(&["bench", "step", "--device", "plan:rtx-9"]);
    error.refused(2, &["plan:80 has 80 GB", "rtx-4080-laptop", "got plan:rtx-9"]);
}
