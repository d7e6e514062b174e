//! ROUGE-L (Lin 2004), as pycocoevalcap's `Rouge` computes it.
//!
//!   P = max over references of lcs / |hypothesis|,  R = max over references of lcs / |reference|,
//!   score = (1 + b^2) P R / (R + b^2 P),  b = 1.2;  0 if either is 0
//!
//! lcs is the length of the longest common subsequence. pycocoevalcap splits at single blanks, so its empty caption
//! is one empty word: it scores 0, and 1 where a reference is empty too. So it is here.

use super::{Case, Scored, check};
use crate::Result;

const BETA2: f64 = 1.2 * 1.2;

/// ROUGE-L as COCO's evaluation has it.
pub fn rouge_l(cases: &[Case]) -> Result<Scored> {
    check("ROUGE-L", cases)?;
    Ok(Scored::of(cases.iter().map(score).collect()))
}

fn score(case: &Case) -> f64 {
    let nothing = [String::new()];
    let words = |tokens| if <[String]>::is_empty(tokens) { &nothing } else { tokens };
    let hypothesis = words(&case.hypothesis);
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in &case.references {
        let reference = words(reference);
        let common = lcs(hypothesis, reference) as f64;
        precision = precision.max(common / hypothesis.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA2) * precision * recall / (recall + BETA2 * precision)
}

/// The longest common subsequence's length, by rows of the table L[i][j] over the first i and j tokens.
fn lcs(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        // The corner is L[i-1][j], left is L[i][j], above is L[i-1][j+1].
        let (mut corner, mut left) = (0, 0);
        for (above, y) in row.iter_mut().skip(1).zip(b) {
            left = if x == y { corner + 1 } else { left.max(*above) };
            corner = std::mem::replace(above, left);
        }
    }
    row.last().copied().unwrap_or(0)
}
