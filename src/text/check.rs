//! Checks a dictionary as vibrato 0.5 writes it before vibrato reads it: vibrato and its trie trust their bytes, and
//! a count, an id or a node out of range would end the program there or later. What passes cannot: every count fits
//! the bytes that are there, every index leads into its table, every character has a way through the lattice.
//!
//! Layout: "VibratoTokenizer 0.5\n", then little-endian numbers, a u64 count before each list, a u32 for a variant:
//!   lexicon      trie: bytes {u32 n, codes [n] u32, u32 alphabet, u32 n, nodes [n] {base, check}}, postings [u32],
//!                words [{u16 left, u16 right, i16 cost}], features [string], u32 0 (the system's)
//!   u8 0         no user's lexicon
//!   u32 0        a matrix: costs [i16], u64 right ids, u64 left ids
//!   u8 0         ids not mapped
//!   characters   [u32 of: categories 18, first category 8, invoke 1, group 1, length 4], names [string]
//!   unknown      first entry of each category and the end [u64], entries [{u16 category, left, right, cost; string}]

use super::cursor::{Cursor, Found, u16s, u32s};

const MAGIC: &[u8] = b"VibratoTokenizer 0.5\n";
const LEAF: u32 = 1 << 31;
const NO_CODE: u32 = u32::MAX;
/// Words of one surface; MeCab counts them in a byte.
const HOMOGRAPHS: u32 = 255;

struct Ids {
    left: usize,
    right: usize,
}

impl Ids {
    fn check(&self, left: u16, right: u16, what: &str) -> Found<()> {
        if usize::from(left) < self.left && usize::from(right) < self.right {
            return Ok(());
        }
        Err(format!("ids {left}, {right} of {what} in a matrix of {} x {}", self.left, self.right))
    }
}

/// Says what is wrong with the bytes of a dictionary, if anything is.
pub fn dictionary(raw: &[u8]) -> Found<()> {
    let mut c = Cursor::new(raw);
    if c.take(MAGIC.len(), "its magic number")? != MAGIC {
        return Err("another magic number".into());
    }
    let trie = list(&mut c, 1, "the trie")?;
    let postings = list(&mut c, 4, "the postings")?;
    let words = list(&mut c, 6, "the words")?;
    let features = strings(&mut c, "the features")?;
    must_be(c.u32("the kind of lexicon")?, 0, "the kind of lexicon")?;
    must_be(c.u8("the user's lexicon")?.into(), 0, "the user's lexicon")?;
    let ids = matrix(&mut c)?;
    must_be(c.u8("the mapping of ids")?.into(), 0, "the mapping of ids")?;
    let characters = list(&mut c, 4, "the characters")?;
    let categories = strings(&mut c, "the categories")?;
    unknown(&mut c, characters, categories.len(), &ids)?;
    must_be(u32::from(c.left() > 0), 0, "bytes after the end")?;

    if !categories.contains(&"SPACE") {
        return Err("no category SPACE".into());
    }
    let count = words.len() / 6;
    if features.len() != count {
        return Err(format!("{} features of {count} words", features.len()));
    }
    let halves: Vec<u16> = u16s(words).collect();
    for (i, word) in halves.chunks_exact(3).enumerate() {
        ids.check(word[0], word[1], &format_args!("word {i}").to_string())?;
    }
    nodes(trie, &u32s(postings).collect::<Vec<_>>(), count)
}

fn must_be(got: u32, expected: u32, what: &str) -> Found<()> {
    if got == expected { Ok(()) } else { Err(format!("{got} for {what} where {expected} must be")) }
}

fn list<'a>(c: &mut Cursor<'a>, size: usize, what: &str) -> Found<&'a [u8]> {
    let count = c.u64(what)?;
    c.list(count, size, what)
}

fn strings<'a>(c: &mut Cursor<'a>, what: &str) -> Found<Vec<&'a str>> {
    let count = c.u64(what)?;
    // A string takes eight bytes at least.
    c.clone().list(count, 8, what)?;
    let mut found = Vec::new();
    for _ in 0..count {
        let text = list(c, 1, what)?;
        found.push(std::str::from_utf8(text).map_err(|_| format!("text that is not UTF-8 in {what}"))?);
    }
    Ok(found)
}

fn matrix(c: &mut Cursor) -> Found<Ids> {
    must_be(c.u32("the kind of matrix")?, 0, "the kind of matrix")?;
    let costs = list(c, 2, "the matrix")?.len() as u64 / 2;
    let (right, left) = (c.u64("right ids")?, c.u64("left ids")?);
    if costs == 0 || right.checked_mul(left) != Some(costs) || right.max(left) > 1 << 16 {
        return Err(format!("a matrix of {right} x {left} with {costs} costs"));
    }
    // Both are at most 2^16.
    Ok(Ids { left: left as usize, right: right as usize })
}

fn unknown(c: &mut Cursor, characters: &[u8], categories: usize, ids: &Ids) -> Found<()> {
    let starts = list(c, 8, "the unknown words")?;
    let starts: Vec<u64> = starts.chunks_exact(8).map(|b| Cursor::new(b).u64("")).collect::<Found<_>>()?;
    let entries = c.u64("the unknown words")?;
    for i in 0..entries {
        let what = "an unknown word";
        let (_, left, right, _) = (c.u16(what)?, c.u16(what)?, c.u16(what)?, c.u16(what)?);
        list(c, 1, what)?;
        ids.check(left, right, &format_args!("unknown word {i}").to_string())?;
    }
    let rising = starts.is_sorted() && starts.last() == Some(&entries);
    if !rising || starts.len() != categories + 1 || entries > 1 << 16 {
        return Err(format!("{} starts of {entries} unknown words in {categories} categories", starts.len()));
    }
    if characters.is_empty() {
        return Err("no characters".into());
    }
    for (i, info) in u32s(characters).enumerate() {
        let base = (info >> 18 & 0xFF) as usize;
        if starts.get(base..base + 2).is_none_or(|s| s[0] == s[1]) {
            return Err(format!("U+{i:04X} in category {base}, which has no unknown words"));
        }
    }
    Ok(())
}

/// The double array: a child of node `i` by code `k` is node base[i] ^ k if its check is `i`. The top bit of base
/// marks a leaf, whose base is then a place in the postings (a count and so many words); the top bit of check says
/// that child 0 is a leaf.
fn nodes(trie: &[u8], postings: &[u32], words: usize) -> Found<()> {
    let what = "the trie";
    let mut c = Cursor::new(trie);
    let count = c.u32(what)?;
    let codes = c.list(count.into(), 4, what)?;
    c.u32(what)?;
    let count = c.u32(what)?;
    let nodes: Vec<u32> = u32s(c.list(count.into(), 8, what)?).collect();
    must_be(u32::from(c.left() > 0), 0, "bytes after the trie")?;
    // base ^ code stays below `reach` if both do, as `reach` is a power of two.
    let reach = u32s(codes).filter(|&k| k != NO_CODE).max().unwrap_or(0).checked_add(1);
    let reach = reach.and_then(u32::checked_next_power_of_two);
    if reach.is_none_or(|r| count % r != 0) || !(1..LEAF).contains(&count) {
        return Err(format!("{count} nodes that its codes overstep"));
    }
    for (i, node) in nodes.chunks_exact(2).enumerate() {
        let (base, check) = (node[0] & !LEAF, node[1]);
        let vacant = i > 0 && node[0] == !LEAF && check == !LEAF;
        if node[0] & LEAF != 0 {
            posting(postings, base, words).map_err(|why| format!("{why} at leaf {i}"))?;
        } else if !vacant {
            let first = nodes.get(2 * base as usize..2 * base as usize + 2);
            let Some(first) = first else { return Err(format!("node {i} at {base} of {count} nodes")) };
            let leaf = first[0] & LEAF != 0 && (first[1] & !LEAF) as usize == i;
            if check & LEAF != 0 && !leaf {
                return Err(format!("node {i} without the leaf it promises"));
            }
        }
    }
    Ok(())
}

fn posting(postings: &[u32], at: u32, words: usize) -> Found<()> {
    let at = at as usize;
    let count = postings.get(at).copied().filter(|&n| n <= HOMOGRAPHS);
    let own = count.and_then(|n| postings.get(at + 1..at + 1 + n as usize));
    match own {
        Some(own) if own.iter().all(|&w| (w as usize) < words) => Ok(()),
        _ => Err(format!("a posting {at} of {} for {words} words", postings.len())),
    }
}
