//! CIDEr and CIDEr-D (Vedantam et al. 2015). What COCO and pycocoevalcap print as "CIDEr" is CIDEr-D.
//!
//!   g_n(c)  = tf-idf vector over n-grams: count * (ln N - ln max(1, df)),  df = cases with the n-gram in a reference
//!   CIDEr   = 10 * mean over n = 1..4 and references of  g_n(h).g_n(r) / |g_n(h)||g_n(r)|
//!   CIDEr-D = the same with min(g_n(h), g_n(r)) for g_n(h) in the product, times exp(-d^2 / 2*6^2)
//!
//! N is the number of cases (one case alone always scores 0: every idf is 0). d is the difference in length; as in
//! pycocoevalcap, length is counted in pairs of tokens, so a caption of one token is as long as an empty one.

use super::{Case, Counts, Scored, check, ngrams};
use crate::Result;
use std::collections::{BTreeMap, BTreeSet};

const SIGMA: f64 = 6.0;

/// The plain measure, without clipping or penalty of length.
pub fn cider(cases: &[Case]) -> Result<Scored> {
    score("CIDEr", cases, false)
}

/// The measure of the COCO leaderboard.
pub fn cider_d(cases: &[Case]) -> Result<Scored> {
    score("CIDEr-D", cases, true)
}

/// A caption's n-grams with their weights, by length, and the norms.
struct Weighted<'a> {
    weights: Counts<'a>,
    norms: [f64; 4],
    pairs: f64,
}

fn weigh<'a>(tokens: &'a [String], frequency: &BTreeMap<&'a [String], f64>, documents: f64) -> Weighted<'a> {
    let mut weights = ngrams(tokens);
    let pairs = weights[1].values().sum();
    for (gram, weight) in weights.iter_mut().flatten() {
        *weight *= documents - frequency.get(gram).map_or(0.0, |df| df.max(1.0).ln());
    }
    let norms = std::array::from_fn(|n| weights[n].values().map(|w| w * w).sum::<f64>().sqrt());
    Weighted { weights, norms, pairs }
}

fn score(operation: &str, cases: &[Case], d: bool) -> Result<Scored> {
    check(operation, cases)?;
    let frequency = document_frequency(cases);
    let documents = (cases.len() as f64).ln();
    let mut scores = Vec::with_capacity(cases.len());
    for case in cases {
        let hypothesis = weigh(&case.hypothesis, &frequency, documents);
        let of = |r| similarity(&hypothesis, &weigh(r, &frequency, documents), d);
        let sum: f64 = case.references.iter().map(|r| of(r.as_slice())).sum();
        scores.push(10.0 * sum / (4 * case.references.len()) as f64);
    }
    Ok(Scored::of(scores))
}

/// In how many cases' references each n-gram occurs.
fn document_frequency(cases: &[Case]) -> BTreeMap<&[String], f64> {
    let mut frequency = BTreeMap::new();
    for case in cases {
        let grams = |r| (1..=4).flat_map(move |n| <[String]>::windows(r, n));
        let distinct: BTreeSet<&[String]> = case.references.iter().flat_map(|r| grams(r)).collect();
        for gram in distinct {
            *frequency.entry(gram).or_insert(0.0) += 1.0;
        }
    }
    frequency
}

/// The sum over n of the (clipped) cosines.
fn similarity(h: &Weighted, r: &Weighted, d: bool) -> f64 {
    let mut sum = 0.0;
    for n in 0..4 {
        let norm = h.norms[n] * r.norms[n];
        let product = |(gram, &x): (&&[String], &f64)| {
            let y = r.weights[n].get(gram).copied().unwrap_or(0.0);
            if d { x.min(y) * y } else { x * y }
        };
        let dot: f64 = h.weights[n].iter().map(product).sum();
        sum += if norm > 0.0 { dot / norm } else { 0.0 };
    }
    let delta = h.pairs - r.pairs;
    if d { sum * (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp() } else { sum }
}
