//! The metrics against pycocoevalcap 1.2 and LAVIS's recall, as recorded by `metrics/record_pycocoevalcap.py`.
//!
//! The bound of 1e-6 is the project's; sums are of the same f64 terms in another order, so the
//! differences to be expected are some 1e-15 of the largest score (10).
//! `QFORMER_METRICS=FILE` runs the same comparison on a larger recording.

use qformer::metrics::{Case, bleu, cider, cider_d, recall, rouge_l};
use serde_json::Value;

const BOUND: f64 = 1e-6;

fn recorded() -> Value {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/metrics/metrics.json");
    let path = std::env::var("QFORMER_METRICS").unwrap_or(own.into());
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn words(text: &Value) -> Vec<String> {
    text.as_str().unwrap().split_whitespace().map(str::to_owned).collect()
}

fn cases(record: &Value) -> Vec<Case> {
    let of = |c: &Value| Case {
        hypothesis: words(&c["hypothesis"]),
        references: c["references"].as_array().unwrap().iter().map(words).collect(),
    };
    record["cases"].as_array().unwrap().iter().map(of).collect()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The largest difference, asserted below the bound, with the place.
fn compare(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= BOUND, "{what} {i}: {g}, recorded {w}");
    }
}

#[test]
fn bleu_is_pycocoevalcaps() {
    let record = recorded();
    let got = bleu(&cases(&record)).unwrap();
    compare("BLEU", &got.corpus, &numbers(&record["bleu"]));
    let each = record["bleu_each"].as_array().unwrap();
    assert_eq!(got.each.len(), each.len());
    for (g, w) in got.each.iter().zip(each) {
        compare("BLEU of a case", g, &numbers(w));
    }
}

#[test]
fn rouge_l_and_cider_are_pycocoevalcaps() {
    let record = recorded();
    let cases = cases(&record);
    let got = [("rouge_l", rouge_l(&cases)), ("cider_d", cider_d(&cases)), ("cider", cider(&cases))];
    for (name, scored) in got {
        let scored = scored.unwrap();
        compare(name, &[scored.mean], &[record[name].as_f64().unwrap()]);
        compare(name, &scored.each, &numbers(&record[format!("{name}_each")]));
    }
}

#[test]
fn recall_is_lavis() {
    let record = &recorded()["recall"];
    let matrix = |name: &str| -> Vec<f32> {
        record[name].as_array().unwrap().iter().flat_map(numbers).map(|x| x as f32).collect()
    };
    let (images, texts) = (numbers(&record["images"]), numbers(&record["texts"]));
    let got = recall(&matrix("i2t"), &matrix("t2i"), &images, &texts).unwrap();
    compare("image to text", &got.image_to_text, &numbers(&record["image_to_text"]));
    compare("text to image", &got.text_to_image, &numbers(&record["text_to_image"]));
    let sum: f64 = got.image_to_text.iter().chain(&got.text_to_image).sum();
    compare("mean", &[got.mean], &[sum / 6.0]);
}

#[test]
fn a_model_that_says_the_same_of_everything_finds_nothing() {
    let ids: Vec<u32> = (0..20).collect();
    let got = recall(&[1.0; 400], &[1.0; 400], &ids, &ids).unwrap();
    assert_eq!(got.image_to_text, [0.0, 0.0, 0.0]);
    // The diagonal highest: everything found at once.
    let mut scores = vec![0.5; 400];
    (0..20).for_each(|i| scores[21 * i] = 0.75);
    let got = recall(&scores, &scores, &ids, &ids).unwrap();
    assert_eq!((got.image_to_text, got.mean), ([100.0; 3], 100.0));
}

#[test]
fn what_cannot_be_scored_is_an_error() {
    assert!(bleu(&[]).unwrap_err().to_string().contains("at least one"));
    let lonely = [Case { hypothesis: vec!["犬".into()], references: vec![] }];
    for error in [bleu(&lonely).unwrap_err(), rouge_l(&lonely).unwrap_err(), cider_d(&lonely).unwrap_err()] {
        assert!(error.to_string().contains("case 0: expected at least one reference caption"), "{error}");
    }
    let ids = [1u32, 2];
    let nan = [0.0, f32::NAN, 0.0, 0.0];
    assert!(recall(&nan, &nan, &ids, &ids).unwrap_err().to_string().contains("NaN at element 1"));
    assert!(recall(&[0.0; 3], &[0.0; 4], &ids, &ids).unwrap_err().to_string().contains("[2, 2]"));
    let error = recall(&[0.0; 4], &[0.0; 4], &[1, 2], &[1, 3]).unwrap_err();
    assert!(error.to_string().contains("none in row 1"), "{error}");
}
