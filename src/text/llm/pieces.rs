//! The pieces of a sentencepiece model, and which of them a text begins with.

use crate::text::cursor::Found;
use crawdad::Trie;
use std::collections::HashSet;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Normal,
    Unknown,
    /// Has a meaning and no text: `<s>`.
    Control,
    /// Always taken whole.
    UserDefined,
    Unused,
    /// One byte of a character that no piece has: `<0xE3>`.
    Byte,
}

#[derive(Clone, Debug)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

impl PieceKind {
    /// Whether text can become it.
    pub fn is_text(self) -> bool {
        matches!(self, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
    }
}

/// Bytes of the longest piece, as sentencepiece has it.
const PIECE_BYTES: usize = 8000;
/// Characters of the longest piece that text can become.
const PIECE_CHARACTERS: usize = 1000;
/// As many user-defined symbols that begin alike are looked at.
const SYMBOLS: usize = 64;

/// Finds the pieces that a text begins with.
pub struct Lookup {
    trie: Trie,
    /// Bytes of each piece, by id.
    lengths: Vec<u16>,
}

impl Lookup {
    /// Of the pieces that `wanted` takes; none if it takes none.
    pub fn new(pieces: &[Piece], wanted: impl Fn(&Piece) -> bool) -> Found<Option<Lookup>> {
        let mut records: Vec<(&str, u32)> = (pieces.iter().zip(0..))
            .filter(|(p, _)| wanted(p))
            .map(|(p, id)| (p.text.as_str(), id))
            .collect();
        if records.is_empty() {
            return Ok(None);
        }
        records.sort_unstable();
        if let Some((long, _)) = records.iter().find(|(t, _)| t.chars().nth(PIECE_CHARACTERS).is_some()) {
            let start: String = long.chars().take(20).collect();
            return Err(format!("a piece of more than {PIECE_CHARACTERS} characters, {start:?}.."));
        }
        let trie = Trie::from_records(records).map_err(|e| format!("pieces that cannot be searched: {e}"))?;
        let lengths = pieces.iter().map(|p| u16::try_from(p.text.len()).unwrap_or(0)).collect();
        Ok(Some(Lookup { trie, lengths }))
    }

    /// The ids of the pieces that `text` begins with, shortest first, and their lengths in bytes.
    pub fn prefixes(&self, text: &str) -> impl Iterator<Item = (u32, usize)> {
        // The trie marks the ends of its keys with NUL.
        let characters = text.chars().take_while(|&c| c != '\0');
        self.trie.common_prefix_search(characters).map(|(id, _)| (id, self.length(id)))
    }

    /// The length of the longest piece that `text` begins with.
    pub fn longest(&self, text: &str) -> Option<usize> {
        self.prefixes(text).take(SYMBOLS).last().map(|(_, length)| length)
    }

    /// The id of a piece.
    pub fn id(&self, piece: &str) -> Option<u32> {
        if piece.contains('\0') { None } else { self.trie.exact_match(piece.chars()) }
    }

    fn length(&self, id: u32) -> usize {
        self.lengths.get(id as usize).copied().unwrap_or(0).into()
    }
}

/// What sentencepiece demands of a model's pieces: text, no two alike, one unknown piece or bytes for all.
/// `apart`: pieces that text can become and others may be alike.
pub fn check(pieces: &[Piece], bytes: bool, apart: bool) -> Found<()> {
    let mut known = HashSet::with_capacity(pieces.len());
    let mut unknown = None;
    for (piece, id) in pieces.iter().zip(0u32..) {
        let text = piece.text.as_str();
        if text.is_empty() {
            return Err(format!("no text for piece {id}"));
        }
        if text.len() >= PIECE_BYTES {
            return Err(format!("piece {id} of {} bytes", text.len()));
        }
        if !piece.score.is_finite() {
            return Err(format!("score {} of piece {id}, {text:?}", piece.score));
        }
        if is_null(piece) {
            continue;
        }
        if text.contains('\0') {
            return Err(format!("piece {id}, {text:?}, with a NUL"));
        }
        if !known.insert((apart && !piece.kind.is_text(), text)) {
            return Err(format!("piece {id}, {text:?}, a second time"));
        }
        match piece.kind {
            PieceKind::Unknown => {
                if let Some(before) = unknown.replace(id) {
                    return Err(format!("two unknown pieces, {before} and {id}"));
                }
            }
            PieceKind::Byte if !bytes || byte_of(text).is_none() => {
                return Err(format!("piece {id}, {text:?}, as a byte"));
            }
            _ => {}
        }
    }
    if !bytes && unknown.is_none() {
        return Err("no unknown piece".into());
    }
    Ok(())
}

/// Conversions leave such a piece behind; it never counts.
pub fn is_null(piece: &Piece) -> bool {
    piece.text == "\0" && piece.kind == PieceKind::Unused
}

/// The byte of a piece such as `<0xE3>`.
pub fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let written = digits.len() == 2 && !digits.contains(|c: char| !matches!(c, '0'..='9' | 'A'..='F'));
    if written { u8::from_str_radix(digits, 16).ok() } else { None }
}
