//! The most likely pieces of a text, as sentencepiece's Unigram model finds them.
//!
//! best[end] = max over pieces that end there of f32(best[start] + score), starts ascending and a strictly greater sum
//! replacing an earlier one; so of two equal ways the one with the longer last piece stays. A start without a piece of
//! one character offers that character as unknown. Sums are rounded to f32 at every step: ties depend on it.

use super::pieces::{Lookup, Piece, PieceKind};

/// An unknown character scores this much less than the least likely piece.
const UNKNOWN: f32 = 10.0;
/// Sums beyond it are counted from zero again.
const RESET: f32 = 100_000.0;

/// The best way to an end: its sum, its last piece and where that starts.
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    start: Option<usize>,
    id: Option<u32>,
}

/// Calls `emit` with each piece of a normalised text in order, and its id if it is known.
pub fn cut<'a>(
    text: &'a str,
    pieces: &[Piece],
    lookup: &Lookup,
    least: f32,
    mut emit: impl FnMut(&'a str, Option<u32>),
) {
    let unknown = least - UNKNOWN;
    let mut best = vec![Best { score: 0.0, start: None, id: None }; text.len() + 1];
    let mut reached = 0;
    for (start, first) in text.char_indices() {
        let so_far = restart(&mut best, start, reached);
        let mut offer = |length: usize, score: f32, id: Option<u32>| {
            reached = reached.max(start + length);
            let sum = score + so_far;
            if let Some(end) = best.get_mut(start + length).filter(|b| b.start.is_none() || sum > b.score) {
                *end = Best { score: sum, start: Some(start), id };
            }
        };
        let mut single = false;
        for (id, length) in lookup.prefixes(text.get(start..).unwrap_or_default()) {
            let Some(piece) = pieces.get(id as usize).filter(|p| p.kind != PieceKind::Unused) else {
                continue;
            };
            let score = match piece.kind {
                // A double in sentencepiece, too.
                PieceKind::UserDefined => (0.1 * (length as f64 - 1.0)) as f32,
                _ => piece.score,
            };
            offer(length, score, Some(id));
            single |= length == first.len_utf8();
        }
        if !single {
            offer(first.len_utf8(), unknown, None);
        }
    }
    let mut way = Vec::new();
    let mut end = text.len();
    while let Some(Best { start: Some(start), id, .. }) = best.get(end) {
        way.push((*start, end, *id));
        end = *start;
    }
    for (start, end, id) in way.into_iter().rev() {
        emit(text.get(start..end).unwrap_or_default(), id);
    }
}

/// The sum up to `start`; a large one is taken off all sums that are still looked at.
fn restart(best: &mut [Best], start: usize, reached: usize) -> f32 {
    let score = best.get(start).map_or(0.0, |b| b.score);
    if score.abs() <= RESET {
        return score;
    }
    for (i, end) in best.iter_mut().enumerate().take(reached + 1).skip(start) {
        if i == start || end.start.is_some() {
            end.score -= score;
        }
    }
    0.0
}
