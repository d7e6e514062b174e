//! Pieces of a text as sentencepiece's BPE model finds them: characters, and again and again the two neighbours that
//! make the piece with the highest score, the first of equals; symbols that users defined stay whole.

use super::pieces::{Lookup, Piece, PieceKind};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// How often a piece that is not used is taken apart again.
const DEPTH: usize = 100;

/// A part of the text in a chain.
struct Symbol {
    start: usize,
    /// 0: merged into the one before.
    length: usize,
    before: Option<usize>,
    after: Option<usize>,
    whole: bool,
}

/// Two neighbours that make a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

/// What a text is being made into.
struct Chain<'a, 'p> {
    text: &'a str,
    pieces: &'p [Piece],
    lookup: Option<&'p Lookup>,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Pair>,
    /// The two halves of each unused piece that was made.
    halves: HashMap<&'a str, (&'a str, &'a str)>,
}

/// Calls `emit` with each piece of a normalised text in order, and its id if it is known.
pub fn cut<'a>(
    text: &'a str,
    pieces: &[Piece],
    lookup: Option<&Lookup>,
    defined: Option<&Lookup>,
    mut emit: impl FnMut(&'a str, Option<u32>),
) {
    let symbols = symbols(text, defined);
    let mut chain =
        Chain { text, pieces, lookup, symbols, agenda: BinaryHeap::new(), halves: HashMap::new() };
    for right in 1..chain.symbols.len() {
        chain.offer(Some(right - 1), Some(right));
    }
    chain.merge();
    let mut next = (!chain.symbols.is_empty()).then_some(0);
    while let Some(symbol) = next.and_then(|at| chain.symbols.get(at)) {
        chain.emit(chain.part(symbol.start, symbol.length), 0, &mut emit);
        next = symbol.after;
    }
}

/// Characters and user-defined symbols.
fn symbols(text: &str, defined: Option<&Lookup>) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::new();
    let mut start = 0;
    while let Some(first) = text.get(start..).and_then(|rest| rest.chars().next()) {
        let found = defined.and_then(|d| d.longest(text.get(start..)?));
        let length = found.unwrap_or(first.len_utf8());
        let at = symbols.len();
        let after = (start + length < text.len()).then_some(at + 1);
        symbols.push(Symbol { start, length, before: at.checked_sub(1), after, whole: found.is_some() });
        start += length;
    }
    symbols
}

impl<'a> Chain<'a, '_> {
    fn part(&self, start: usize, length: usize) -> &'a str {
        self.text.get(start..start + length).unwrap_or_default()
    }

    fn piece(&self, part: &str) -> Option<(u32, &Piece)> {
        let id = self.lookup?.id(part)?;
        Some((id, self.pieces.get(id as usize)?))
    }

    /// Puts two neighbours on the agenda if they make a piece.
    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (Some(l), Some(r)) = (self.symbols.get(left), self.symbols.get(right)) else { return };
        if l.whole || r.whole {
            return;
        }
        let (first, second) = (self.part(l.start, l.length), self.part(r.start, r.length));
        let length = l.length + r.length;
        let both = self.part(l.start, length);
        let Some((_, piece)) = self.piece(both) else { return };
        let (score, unused) = (piece.score, piece.kind == PieceKind::Unused);
        self.agenda.push(Pair { score, left, right, length });
        if unused {
            self.halves.insert(both, (first, second));
        }
    }

    fn merge(&mut self) {
        while let Some(Pair { left, right, length, .. }) = self.agenda.pop() {
            let [Some(l), Some(r)] = [left, right].map(|i| self.symbols.get(i)) else { continue };
            // One of the two is something else by now.
            if l.length == 0 || r.length == 0 || l.length + r.length != length {
                continue;
            }
            let (before, after) = (l.before, r.after);
            if let Some(symbol) = self.symbols.get_mut(left) {
                symbol.length = length;
                symbol.after = after;
            }
            if let Some(symbol) = self.symbols.get_mut(right) {
                symbol.length = 0;
            }
            if let Some(symbol) = after.and_then(|i| self.symbols.get_mut(i)) {
                symbol.before = Some(left);
            }
            self.offer(before, Some(left));
            self.offer(Some(left), after);
        }
    }

    /// A piece that is not used becomes what it was made of.
    fn emit(&self, part: &'a str, depth: usize, emit: &mut impl FnMut(&'a str, Option<u32>)) {
        match self.piece(part) {
            None => emit(part, None),
            Some((id, piece)) if piece.kind != PieceKind::Unused || depth > DEPTH => emit(part, Some(id)),
            Some(_) => match self.halves.get(part) {
                None => emit(part, None),
                Some((first, second)) => {
                    self.emit(first, depth + 1, emit);
                    self.emit(second, depth + 1, emit);
                }
            },
        }
    }
}
