//! Models of sentencepiece (`tokenizer.model`, `spiece.model`): Unigram, BPE, words and characters. Normalised text,
//! ids and decoded text are those of sentencepiece 0.2.3.
//!
//! text -> normalised text (`normalize`) -> pieces (`viterbi` or
//! `merges`) -> ids; neighbours without a piece become one unknown piece, or the bytes of their UTF-8
//! where the model has byte fallback.

use super::model_file::{Kind, ModelFile};
use super::normalize::SPACE;
use super::pieces::{self, Lookup, Piece, PieceKind, byte_of};
use super::{merges, viterbi};
use crate::text::cursor::Found;
use crate::{Error, Result};
use std::path::Path;

const OPERATION: &str = "open the tokenizer";
/// Bytes of the largest file; that of 256,000 pieces has 4 million.
const LARGEST: u64 = 1 << 27;

/// A model with what is looked up in it. Every method works from many threads at once.
pub struct SentencePiece {
    file: ModelFile,
    /// Pieces that text can become.
    text: Option<Lookup>,
    defined: Option<Lookup>,
    /// Score of the least likely piece.
    least: f32,
    unknown: Option<u32>,
    /// Ids of the 256 bytes, if unknown characters become bytes.
    bytes: Option<Box<[u32]>>,
}

impl SentencePiece {
    /// Reads a `tokenizer.model`.
    pub fn open(path: &Path) -> Result<SentencePiece> {
        let fail = |e: std::io::Error| Error::io(OPERATION, path, &e);
        let wrong = |why: String| {
            Error::file(OPERATION, path, "a model of sentencepiece", why)
                .fix("take tokenizer.model or spiece.model of the language model's folder, whole")
        };
        let size = std::fs::metadata(path).map_err(fail)?.len();
        if size > LARGEST {
            return Err(wrong(format!("{size} bytes")));
        }
        SentencePiece::parse(&std::fs::read(path).map_err(fail)?).map_err(wrong)
    }

    /// A model in the bytes of its file.
    pub fn parse(bytes: &[u8]) -> Found<SentencePiece> {
        let file = ModelFile::parse(bytes)?;
        let is_text = |p: &Piece| p.kind.is_text() && !pieces::is_null(p);
        let text = Lookup::new(&file.pieces, is_text)?;
        if text.is_none() && file.kind == Kind::Unigram {
            return Err("no piece that text could become".into());
        }
        let defined = Lookup::new(&file.pieces, |p| p.kind == PieceKind::UserDefined)?;
        let normal = file.pieces.iter().filter(|p| p.kind == PieceKind::Normal);
        let least = normal.map(|p| p.score).fold(f32::MAX, f32::min);
        let of_kind = |kind| file.pieces.iter().zip(0u32..).filter(move |(p, _)| p.kind == kind);
        let unknown = of_kind(PieceKind::Unknown).next().map(|(_, id)| id);
        let mut bytes = vec![None; 256];
        for (piece, id) in of_kind(PieceKind::Byte) {
            if let Some(place) = byte_of(&piece.text).and_then(|byte| bytes.get_mut(usize::from(byte))) {
                *place = Some(id);
            }
        }
        let bytes = if file.byte_fallback {
            let all: Option<Box<[u32]>> = bytes.into_iter().collect();
            Some(all.ok_or("less than 256 bytes among the pieces of a model with byte fallback")?)
        } else {
            None
        };
        Ok(SentencePiece { text, defined, least, unknown, bytes, file })
    }

    /// How many pieces it has.
    #[expect(clippy::len_without_is_empty, reason = "a model has an unknown piece or 256 bytes")]
    pub fn len(&self) -> usize {
        self.file.pieces.len()
    }

    /// The id of a piece; of one with a meaning before one of text.
    pub fn id(&self, piece: &str) -> Option<u32> {
        let all = || self.file.pieces.iter().zip(0u32..).filter(|(p, _)| p.text == piece);
        let reserved = all().find(|(p, _)| !p.kind.is_text());
        reserved.or_else(|| all().next()).map(|(_, id)| id)
    }

    /// The piece of an id.
    pub fn piece(&self, id: u32) -> Option<&Piece> {
        self.file.pieces.get(id as usize)
    }

    /// The id of what no piece stands for.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The pieces that the file names for the beginning and the end of a text, and for padding.
    pub fn control(&self, piece: &str) -> Option<u32> {
        let id = self.id(piece)?;
        self.piece(id).filter(|p| p.kind == PieceKind::Control).map(|_| id)
    }

    /// What its special pieces are called.
    pub fn names(&self) -> &super::model_file::Names {
        &self.file.names
    }

    /// The text as it is cut into pieces.
    pub fn normalize(&self, text: &str) -> String {
        self.file.rules.apply(text, self.defined.as_ref())
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let normalized = self.normalize(text);
        let mut ids = Vec::with_capacity(normalized.len() / 3);
        let mut after_unknown = false;
        let emit = |part: &str, id: Option<u32>| {
            let id = id.or(self.unknown);
            let unknown = id == self.unknown;
            match (&self.bytes, id) {
                (Some(bytes), _) if unknown => {
                    ids.extend(part.bytes().filter_map(|byte| bytes.get(usize::from(byte))));
                }
                (_, Some(id)) if !(unknown && after_unknown) => ids.push(id),
                _ => {}
            }
            after_unknown = unknown;
        };
        self.cut(&normalized, emit);
        ids
    }

    fn cut<'a>(&self, text: &'a str, mut emit: impl FnMut(&'a str, Option<u32>)) {
        let pieces = &self.file.pieces;
        let used = |part: &str| {
            let id = self.text.as_ref()?.id(part)?;
            self.piece(id).filter(|p| p.kind != PieceKind::Unused).map(|_| id)
        };
        match (self.file.kind, &self.text) {
            (Kind::Unigram, Some(lookup)) => viterbi::cut(text, pieces, lookup, self.least, emit),
            (Kind::Unigram, None) => {}
            (Kind::Bpe, lookup) => merges::cut(text, pieces, lookup.as_ref(), self.defined.as_ref(), emit),
            (Kind::Word, _) => words(text).for_each(|word| emit(word, used(word))),
            (Kind::Character, _) => {
                let mut rest = text;
                while let Some(first) = rest.chars().next() {
                    let defined = self.defined.as_ref().and_then(|d| d.longest(rest));
                    let (part, after) = rest.split_at(defined.unwrap_or(first.len_utf8()));
                    emit(part, used(part));
                    rest = after;
                }
            }
        }
    }

    /// The text of ids; those with a meaning have none, and an id beyond the last is left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let rules = &self.file.rules;
        let mut text = String::new();
        let mut bytes = Vec::new();
        // A space that the normaliser put there is taken away again.
        let mut at_start = rules.add_dummy_prefix || rules.remove_extra_whitespaces;
        for piece in ids.iter().filter_map(|&id| self.piece(id)) {
            if let (PieceKind::Byte, Some(byte)) = (piece.kind, byte_of(&piece.text)) {
                bytes.push(byte);
                continue;
            }
            push_bytes(&mut text, &mut bytes);
            at_start &= text.is_empty();
            match piece.kind {
                PieceKind::Control => {}
                PieceKind::Unknown => text.push_str(&self.file.unknown_text),
                _ => {
                    let stripped = piece.text.strip_prefix(SPACE).filter(|_| at_start);
                    text.push_str(&stripped.unwrap_or(&piece.text).replace(SPACE, " "));
                    at_start &= rules.remove_extra_whitespaces || stripped.is_none();
                }
            }
            at_start &= text.is_empty();
        }
        push_bytes(&mut text, &mut bytes);
        match &self.file.denormalizer {
            Some(rules) => rules.apply(&text, None),
            None => text,
        }
    }
}

/// Each word begins with its ▁; what comes before the first is a word, too.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?.len_utf8();
        let next = rest.get(first..)?.find(SPACE).map_or(rest.len(), |at| first + at);
        let (word, after) = rest.split_at(next);
        rest = after;
        Some(word)
    })
}

/// Characters of UTF-8; a byte that belongs to none becomes U+FFFD, each its own.
fn push_bytes(text: &mut String, bytes: &mut Vec<u8>) {
    let mut rest = bytes.as_slice();
    while let Some(&first) = rest.first() {
        let length = match first {
            0..0x80 => 1,
            0x80..0xE0 => 2,
            0xE0..0xF0 => 3,
            0xF0.. => 4,
        };
        match rest.get(..length).and_then(|character| std::str::from_utf8(character).ok()) {
            Some(character) => {
                text.push_str(character);
                rest = rest.get(length..).unwrap_or_default();
            }
            None => {
                text.push(char::REPLACEMENT_CHARACTER);
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    bytes.clear();
}
