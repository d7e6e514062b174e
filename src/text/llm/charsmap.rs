//! The replacement rules of a sentencepiece model (`precompiled_charsmap`): longest prefix -> text.
//!
//! Layout: u32 bytes of the array, the array, then NUL-terminated texts. The array is a double array as darts-clone
//! writes it, a u32 a unit:
//!   bits 0-7 and 31  label: the byte that leads here; bit 31 marks a leaf, whose bits 0-30 are the place of its text
//!   bit 8            a leaf hangs below: the child by byte 0
//!   bits 9-30        offset: bits 10-30, times 256 if bit 9 is set; the child of unit i by byte c is i ^ offset ^ c
//! [`Charsmap::parse`] follows every unit that can be reached once, so that a lookup never leaves the array, never
//! takes more than [`KEY`] steps and never ends in the middle of a text.

use crate::text::cursor::{Cursor, Found, u32s};

const LEAF: u32 = 1 << 31;
/// Bytes of the longest prefix that is replaced; NFKC's have a dozen.
const KEY: u16 = 512;
/// Bytes of the longest text that stands for a prefix; NFKC's longest has 33.
const TEXT: usize = 4096;
/// Bytes of an array; NFKC's has 250 thousand.
const ARRAY: usize = 1 << 24;
/// sentencepiece looks at so many matching prefixes, shortest first.
const MATCHES: usize = 32;

pub struct Charsmap {
    units: Vec<u32>,
    texts: String,
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn label(unit: u32) -> u32 {
    unit & (LEAF | 0xFF)
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

impl Charsmap {
    pub fn parse(bytes: &[u8]) -> Found<Charsmap> {
        let mut c = Cursor::new(bytes);
        let size = c.u32("the size of the replacement rules")? as usize;
        if !(1024..=ARRAY).contains(&size) || !size.is_multiple_of(1024) {
            return Err(format!("replacement rules of {size} bytes"));
        }
        let units: Vec<u32> = u32s(c.take(size, "the replacement rules")?).collect();
        let texts = c.take(c.left(), "the replacement texts")?;
        let texts = std::str::from_utf8(texts).map_err(|_| "replacement texts that are not UTF-8")?;
        if !texts.ends_with('\0') || texts.split('\0').any(|text| text.len() > TEXT) {
            return Err("replacement texts without an end".into());
        }
        let map = Charsmap { units, texts: texts.into() };
        map.check()?;
        Ok(map)
    }

    /// Walks the units that can be reached, each once; `height` is how far it is from a unit to the end of its longest
    /// prefix.
    fn check(&self) -> Found<()> {
        const NEW: u16 = 0;
        const OPEN: u16 = u16::MAX;
        let mut height = vec![NEW; self.units.len()];
        let mut path = vec![0];
        while let Some(&at) = path.last() {
            let start = path.len();
            self.check_unit(at)?;
            let first = at ^ offset(self.units[at]);
            let children = (1..256).filter(|&byte| label(self.units[first ^ byte]) == byte as u32);
            let mut below = 0;
            for child in children.map(|byte| first ^ byte) {
                match height[child] {
                    OPEN => return Err("replacement rules in a circle".into()),
                    NEW => path.push(child),
                    known => below = below.max(known),
                }
            }
            if path.len() > start {
                height[at] = OPEN;
            } else if below > KEY {
                return Err(format!("replacement rules of more than {KEY} bytes"));
            } else {
                height[at] = below + 1;
                path.pop();
            }
        }
        Ok(())
    }

    /// The children of a unit lie in the array, its leaf is one, and the leaf's text is there.
    fn check_unit(&self, at: usize) -> Found<()> {
        let first = at ^ offset(self.units[at]);
        if first | 0xFF >= self.units.len() {
            return Err(format!("unit {at} of the replacement rules at {first} of {}", self.units.len()));
        }
        if has_leaf(self.units[at]) {
            let leaf = self.units[first];
            let text = self.texts.get((leaf & !LEAF) as usize..);
            if leaf & LEAF == 0 || text.is_none_or(str::is_empty) {
                return Err(format!("unit {at} of the replacement rules without its text"));
            }
        }
        Ok(())
    }

    /// The bytes of the longest prefix that is replaced, and what stands for it. Prefixes are whole characters.
    pub fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut at = offset(*self.units.first()?);
        let mut found = None;
        let mut matches = 0;
        for (byte, length) in text.bytes().zip(1..) {
            at ^= usize::from(byte);
            let unit = *self.units.get(at)?;
            // A leaf is the child by NUL: no prefix holds one.
            if label(unit) != u32::from(byte) || byte == 0 {
                break;
            }
            at ^= offset(unit);
            if has_leaf(unit) && text.is_char_boundary(length) {
                found = Some((length, self.units.get(at)? & !LEAF));
                matches += 1;
                if matches == MATCHES {
                    break;
                }
            }
        }
        let (length, place) = found?;
        let replacement = self.texts.get(place as usize..)?;
        Some((length, replacement.split('\0').next()?))
    }
}
