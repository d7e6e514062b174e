//! A compiled MeCab dictionary (`sys.dic`, `matrix.bin`, `char.bin`, `unk.dic`) as the texts it was made of, with
//! what vibrato needs to choose as MeCab does:
//!
//! - of paths that cost the same, vibrato keeps the last and MeCab the first: homographs and the entries of
//!   unknown words go in reverse order;
//! - features are left out: words alone are asked for.
//!
//! Layout, little-endian. `sys.dic`, `unk.dic`: 10 u32 (size of the file ^ 0xef718f77, version 102, type, words,
//! left ids, right ids, bytes of trie, of tokens, of features, 0), name of the encoding [32], then
//!   trie      units {i32 base, u32 check} of a double array over UTF-8 bytes: the child of `b` by byte `c` is unit
//!             p = b + c + 1 if check[p] = b, and goes on at base[p]; a key ends at `b` if check[b] = b and
//!             base[b] < 0, its value being -base[b] - 1: first token * 256 + number of tokens
//!   tokens    {u16 left, u16 right, u16, i16 cost, u32, u32}
//! `matrix.bin`: u16 L, u16 R, i16 cost[right id of the word before + L * left id of the word after].
//! `char.bin`: u32 n, n names [32], then for each of U+0000..U+FFFE a u32 (from the lowest bit: categories 18,
//! first category 8, length 4, group 1, invoke 1).

use super::cursor::{Cursor, Found, u16s, u32s};
use crate::files::read_regular;
use crate::{Error, Result};
use std::fmt::Write;
use std::path::Path;

const MAGIC: u32 = 0xef71_8f77;
const VERSION: u32 = 102;
const TOKEN: usize = 16;
/// No file of a dictionary is larger; that of the full UniDic has half a gigabyte.
const LARGEST: u64 = 2 << 30;
const CHARACTERS: usize = 0xFFFF;

/// The four texts of a dictionary, as vibrato's builder takes them.
pub struct Texts {
    pub lexicon: String,
    pub matrix: String,
    pub characters: String,
    pub unknown: String,
    /// Words of the lexicon, homographs counted each.
    pub words: usize,
}

/// Reads the four files of a folder.
pub fn read(folder: &Path) -> Result<Texts> {
    let (system, words) = part(folder, "sys.dic", lexicon)?;
    // Here the words are the names of the categories of characters.
    let (unknown, _) = part(folder, "unk.dic", lexicon)?;
    Ok(Texts {
        lexicon: system,
        matrix: part(folder, "matrix.bin", matrix)?,
        characters: part(folder, "char.bin", characters)?,
        unknown,
        words,
    })
}

fn part<T>(folder: &Path, name: &str, parse: impl Fn(&[u8]) -> Found<T>) -> Result<T> {
    const OPERATION: &str = "read a MeCab dictionary";
    let path = folder.join(name);
    let bytes = read_regular(&path, LARGEST, OPERATION).map_err(|e| {
        e.fix("give the folder of a compiled MeCab dictionary (sys.dic, matrix.bin, char.bin, unk.dic)")
    })?;
    parse(&bytes).map_err(|why| {
        let fix = "the file is damaged or of another kind: install the dictionary again";
        Error::file(OPERATION, &path, format!("MeCab's {name}, version {VERSION}"), why).fix(fix)
    })
}

struct Token {
    left: u16,
    right: u16,
    cost: i16,
}

pub(super) fn lexicon(bytes: &[u8]) -> Found<(String, usize)> {
    let entries = entries(bytes)?;
    let mut text = String::new();
    let mut words = 0;
    for (surface, tokens) in entries {
        let surface = surface.replace('"', "\"\"");
        words += tokens.len();
        for t in tokens.iter().rev() {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "\"{surface}\",{},{},{}", t.left, t.right, t.cost);
        }
    }
    Ok((text, words))
}

fn entries(bytes: &[u8]) -> Found<Vec<(String, Vec<Token>)>> {
    let mut c = Cursor::new(bytes);
    let magic = c.u32("its header")? ^ MAGIC;
    if usize::try_from(magic) != Ok(bytes.len()) {
        return Err(format!("a header that does not fit a file of {} bytes", bytes.len()));
    }
    let version = c.u32("its header")?;
    if version != VERSION {
        return Err(format!("version {version}"));
    }
    c.take(16, "its header")?;
    let (trie, tokens, features) = (c.u32("its header")?, c.u32("its header")?, c.u32("its header")?);
    c.u32("its header")?;
    let encoding = name(c.take(32, "the name of its encoding")?)?;
    if !matches!(encoding.to_ascii_lowercase().as_str(), "utf8" | "utf-8" | "utf_8") {
        return Err(format!("a dictionary in the encoding '{encoding}', not UTF-8"));
    }
    let trie = c.list(u64::from(trie), 1, "the trie")?;
    let tokens = c.list(u64::from(tokens), 1, "the tokens")?;
    c.list(u64::from(features), 1, "the features")?;
    if c.left() > 0 || trie.len() % 8 != 0 || tokens.len() % TOKEN != 0 {
        return Err("sections that do not fill the file".into());
    }
    let mut found = Vec::new();
    for (key, value) in keys(trie)? {
        let surface =
            String::from_utf8(key).map_err(|e| format!("a word that is not UTF-8: {:?}", e.as_bytes()))?;
        let (first, count) = ((value >> 8) as usize, (value & 255) as usize);
        let Some(own) = tokens.get(first * TOKEN..(first + count) * TOKEN) else {
            return Err(format!("tokens {first} to {} of '{surface}', beyond the last", first + count));
        };
        if surface.is_empty() || count == 0 {
            return Err(format!("an empty entry ('{surface}', {count} tokens)"));
        }
        found.push((surface, own.chunks_exact(TOKEN).map(token).collect::<Found<Vec<_>>>()?));
    }
    Ok(found)
}

fn token(bytes: &[u8]) -> Found<Token> {
    let mut c = Cursor::new(bytes);
    let (left, right, _) = (c.u16("a token")?, c.u16("a token")?, c.u16("a token")?);
    Ok(Token { left, right, cost: c.u16("a token")?.cast_signed() })
}

/// Every key of a double array with its value, in the order of the bytes. Each unit is entered at most once, so a
/// trie that loops ends here.
fn keys(trie: &[u8]) -> Found<Vec<(Vec<u8>, u32)>> {
    let numbers: Vec<u32> = u32s(trie).collect();
    let unit = |p: usize| numbers.get(2 * p..2 * p + 2).map(|u| (u[0].cast_signed(), u[1]));
    let child = |base: u32, p: usize| unit(p).filter(|&(_, check)| check == base).map(|(b, _)| b);
    let Some((root, _)) = unit(0) else { return Err("an empty trie".into()) };
    let root = u32::try_from(root).map_err(|_| format!("a trie whose root is {root}"))?;
    let mut entered = vec![false; numbers.len() / 2];
    let mut found = Vec::new();
    let mut key = Vec::new();
    // Bases on the way from the root, each with the next byte to try.
    let mut way = vec![(root, 0)];
    while let Some((base, byte)) = way.last_mut() {
        let (b, start) = (*base, *base as usize);
        if *byte == 0
            && let Some(value) = child(b, start).filter(|&v| v < 0)
        {
            found.push((key.clone(), (-(value + 1)).cast_unsigned()));
        }
        let next = (*byte..256).find(|&c| child(b, start + c + 1).is_some());
        let Some(c) = next else {
            way.pop();
            key.pop();
            continue;
        };
        *byte = c + 1;
        let p = start + c + 1;
        if std::mem::replace(&mut entered[p], true) {
            return Err(format!("a trie that reaches unit {p} twice"));
        }
        let below = child(b, p).and_then(|b| u32::try_from(b).ok());
        let below = below.ok_or_else(|| format!("a trie that breaks off at unit {p}"))?;
        key.push(u8::try_from(c).map_err(|e| e.to_string())?);
        way.push((below, 0));
    }
    Ok(found)
}

pub(super) fn matrix(bytes: &[u8]) -> Found<String> {
    let mut c = Cursor::new(bytes);
    let (before, after) = (usize::from(c.u16("its size")?), usize::from(c.u16("its size")?));
    let costs = c.list((before * after) as u64, 2, "the costs")?;
    if c.left() > 0 || costs.is_empty() {
        return Err(format!("{} bytes for {before} x {after} costs", bytes.len()));
    }
    let mut text = format!("{before} {after}\n");
    for (i, cost) in u16s(costs).enumerate().filter(|&(_, cost)| cost != 0) {
        let _ = writeln!(text, "{} {} {}", i % before, i / before, cost.cast_signed());
    }
    Ok(text)
}

pub(super) fn characters(bytes: &[u8]) -> Found<String> {
    let mut c = Cursor::new(bytes);
    let n = c.u32("the number of categories")?;
    if !(1..=18).contains(&n) {
        return Err(format!("{n} categories, where 1 to 18 may be"));
    }
    let names = c.list(u64::from(n), 32, "the names of the categories")?;
    let names = names.chunks_exact(32).map(name).collect::<Found<Vec<_>>>()?;
    for (i, name) in names.iter().enumerate() {
        let odd = name.is_empty() || name.starts_with("0x") || name.starts_with('#');
        if odd || name.contains(char::is_whitespace) || names.iter().take(i).any(|n| n == name) {
            return Err(format!("'{name}' as the name of category {i}"));
        }
    }
    let table = c.list(CHARACTERS as u64, 4, "the characters")?;
    if c.left() > 0 {
        return Err(format!("{} bytes after the last character", c.left()));
    }
    let infos: Vec<u32> = u32s(table).collect();
    category_lines(&names, &infos)
}

/// `NAME invoke group length` for each category, then `0xFIRST..0xLAST NAME NAME...` for each run of characters.
fn category_lines(names: &[String], infos: &[u32]) -> Found<String> {
    let mut kinds: Vec<Option<u32>> = vec![None; names.len()];
    let mut ranges = String::new();
    let mut first = 0;
    for run in infos.chunk_by(|a, b| a == b) {
        let last = first + run.len() - 1;
        let info = run[0];
        let (set, base, kind) = (info & 0x3_FFFF, (info >> 18 & 0xFF) as usize, info >> 26);
        let Some(known) = kinds.get_mut(base).filter(|_| set >> base & 1 == 1) else {
            return Err(format!("U+{first:04X} in category {base}, which it does not list"));
        };
        if *known.get_or_insert(kind) != kind || set >> names.len() != 0 {
            return Err(format!("categories of U+{first:04X} that contradict others"));
        }
        let _ = write!(ranges, "0x{first:04X}..0x{last:04X} {}", names[base]);
        for (_, name) in names.iter().enumerate().filter(|&(i, _)| i != base && set >> i & 1 == 1) {
            let _ = write!(ranges, " {name}");
        }
        ranges.push('\n');
        first = last + 1;
    }
    let mut text = String::new();
    for (name, kind) in names.iter().zip(kinds) {
        let kind = kind.unwrap_or(0);
        let _ = writeln!(text, "{name} {} {} {}", kind >> 5 & 1, kind >> 4 & 1, kind & 15);
    }
    Ok(text + &ranges)
}

/// A name in a field filled up with zeros.
fn name(field: &[u8]) -> Found<String> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let name = field.get(..end).unwrap_or_default();
    Ok(std::str::from_utf8(name).map_err(|_| format!("a name that is not UTF-8: {name:?}"))?.to_string())
}
