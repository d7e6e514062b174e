//! A WordPiece vocabulary for those who start from nothing: byte-pair merges of characters, within words.
//!
//! Captions are cleaned and cut into words as in training. Every character has a form at the start of a word (`c`)
//! and one inside (`##c`). Then, again and again, the neighbours that stand together most often become one token,
//! until the vocabulary is full or no two stand together twice. Among equals the older tokens win, so the same
//! captions give the same vocabulary whatever their order.

use super::clean::{clean_caption, is_white};
use super::segment::Segmenter;
use super::vocabulary::SPECIAL;
use super::{Part, each_word, parts, subword};
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

const OPERATION: &str = "train a vocabulary";

type Pair = (u32, u32);

/// A word as it is cut at the moment, and how often it stands in the captions.
struct Word {
    tokens: Vec<u32>,
    count: u64,
}

/// The lines of a `vocab.txt` of at most `size` tokens, special tokens first; `[DEC]`, which a tokenizer adds, is not
/// among them. If all characters fit into `size`, none of these captions has an `[UNK]` (except for words of more
/// than 100 characters, which always are one).
pub fn train<S: AsRef<str>>(captions: impl IntoIterator<Item = S>, size: usize) -> Result<Vec<String>> {
    let counts = count_words(captions)?;
    if counts.is_empty() {
        let got = "no word at all";
        return Err(Error::argument(OPERATION, "captions", "captions with words", got));
    }
    let mut tokens: Vec<String> = SPECIAL.map(String::from).to_vec();
    if size <= tokens.len() {
        let expected = format!("more than the {} special tokens", tokens.len());
        return Err(Error::argument(OPERATION, "size", expected, size).fix("8000 suits most collections"));
    }
    tokens.extend(alphabet(&counts, size - tokens.len()));
    merge(&counts, &mut tokens, size);
    Ok(tokens)
}

/// Each word of the captions with its number, in the order of the words.
fn count_words<S: AsRef<str>>(captions: impl IntoIterator<Item = S>) -> Result<BTreeMap<String, u64>> {
    let segmenter = Segmenter::ipadic()?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for caption in captions {
        let clean = clean_caption(caption.as_ref());
        for part in parts(&clean) {
            let Part::Text(text) = part else { continue };
            each_word(&segmenter, text, |word| {
                for piece in word.split(is_white).filter(|p| !p.is_empty() && !subword::is_too_long(p)) {
                    match counts.get_mut(piece) {
                        Some(count) => *count += 1,
                        None => {
                            counts.insert(piece.to_string(), 1);
                        }
                    }
                }
            });
        }
    }
    Ok(counts)
}

/// The tokens of single characters, the most frequent if there is no room for all, in the order of the characters.
/// A form that was not seen joins its twin, for captions to come, as long as characters fill no more than half.
fn alphabet(counts: &BTreeMap<String, u64>, room: usize) -> Vec<String> {
    let mut forms: BTreeMap<(char, bool), u64> = BTreeMap::new();
    for (word, count) in counts {
        for (i, c) in word.chars().enumerate() {
            *forms.entry((c, i > 0)).or_default() += count;
        }
    }
    let twins: Vec<_> = forms.keys().map(|&(c, inside)| (c, !inside)).collect();
    if 2 * twins.iter().chain(forms.keys()).collect::<HashSet<_>>().len() <= room {
        for twin in twins {
            forms.entry(twin).or_default();
        }
    }
    let mut kept: Vec<((char, bool), u64)> = forms.into_iter().collect();
    kept.sort_by_key(|&(form, count)| (Reverse(count), form));
    kept.truncate(room);
    kept.sort_by_key(|&((c, inside), _)| (inside, c));
    kept.into_iter().map(|(form, _)| text_of(form)).collect()
}

fn text_of((c, inside): (char, bool)) -> String {
    if inside { format!("##{c}") } else { c.to_string() }
}

/// Adds the tokens that merging makes until there are `size`.
fn merge(counts: &BTreeMap<String, u64>, tokens: &mut Vec<String>, size: usize) {
    let mut ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut pairs = Pairs::default();
    for (word, &count) in counts {
        let forms = word.chars().enumerate().map(|(i, c)| ids.get(&text_of((c, i > 0))).copied());
        // A word with a character that found no room is [UNK] whatever is merged.
        if let Some(tokens) = forms.collect() {
            pairs.push(Word { tokens, count });
        }
    }
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> =
        pairs.counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
    while tokens.len() < size
        && let Some((count, Reverse(pair))) = queue.pop()
        && count > 1
    {
        // Counts change: then this entry is out of date, and a newer one is in the queue.
        if pairs.counts.get(&pair) != Some(&count) {
            continue;
        }
        let [left, right] = [pair.0, pair.1].map(|id| tokens.get(id as usize).map_or("", String::as_str));
        let text = format!("{left}{}", right.strip_prefix("##").unwrap_or(right));
        let merged = *ids.entry(text).or_insert_with_key(|text| {
            tokens.push(text.clone());
            tokens.len() as u32 - 1
        });
        for changed in pairs.merge(pair, merged) {
            queue.extend(pairs.counts.get(&changed).map(|&count| (count, Reverse(changed))));
        }
    }
}

/// The words as they are cut at the moment, and the neighbours in them.
#[derive(Default)]
struct Pairs {
    words: Vec<Word>,
    counts: HashMap<Pair, u64>,
    /// Words that hold a pair, or held it once.
    places: HashMap<Pair, Vec<usize>>,
}

impl Pairs {
    fn push(&mut self, word: Word) {
        for pair in neighbours(&word.tokens) {
            *self.counts.entry(pair).or_default() += word.count;
            self.places.entry(pair).or_default().push(self.words.len());
        }
        self.words.push(word);
    }

    /// Makes one token of a pair, everywhere. Returns the pairs whose counts have changed.
    fn merge(&mut self, pair: Pair, merged: u32) -> HashSet<Pair> {
        let mut changed = HashSet::new();
        for place in self.places.remove(&pair).unwrap_or_default() {
            let Some(word) = self.words.get_mut(place) else { continue };
            for old in neighbours(&word.tokens) {
                let count = self.counts.entry(old).or_default();
                *count -= word.count;
                changed.insert(old);
            }
            word.tokens = replaced(&word.tokens, pair, merged);
            for new in neighbours(&word.tokens) {
                *self.counts.entry(new).or_default() += word.count;
                changed.insert(new);
                if new.0 == merged || new.1 == merged {
                    self.places.entry(new).or_default().push(place);
                }
            }
        }
        changed
    }
}

fn neighbours(tokens: &[u32]) -> impl Iterator<Item = Pair> + '_ {
    tokens.iter().copied().zip(tokens.iter().copied().skip(1))
}

fn replaced(tokens: &[u32], (left, right): Pair, merged: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut rest = tokens;
    while let Some((&token, after)) = rest.split_first() {
        if token == left && after.first() == Some(&right) {
            out.push(merged);
            rest = after.get(1..).unwrap_or_default();
        } else {
            out.push(token);
            rest = after;
        }
    }
    out
}
