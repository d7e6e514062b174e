//! The file of a sentencepiece model: the message `ModelProto`, of which are read
//!   1 pieces          1 text, 2 score, 3 kind (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte)
//!   2 trainer_spec    3 kind of model (1 Unigram, 2 BPE, 3 words, 4 characters), 24 space at the end, 35 byte fallback,
//!                     44 text of unknown pieces, 45-48 names of the unknown, first, last and padding piece
//!   3 normalizer_spec 2 replacement rules, 3 space added, 4 spaces removed, 5 spaces escaped
//!   5 denormalizer_spec   the same
//! Other fields tell how it was trained. A value that this does not know is an error, never a default.

use super::normalize::Rules;
use super::pieces::{self, Piece, PieceKind};
use super::protobuf::{Fields, Value};
use crate::text::cursor::Found;

/// Pieces of the largest model.
const PIECES: usize = 1 << 21;
/// What sentencepiece decodes an unknown piece to.
const UNKNOWN_TEXT: &str = " \u{2047} ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unigram,
    Bpe,
    Word,
    Character,
}

/// What the pieces with a meaning are called.
#[derive(Debug, PartialEq)]
pub struct Names {
    pub unknown: String,
    pub first: String,
    pub last: String,
    pub padding: String,
}

pub struct ModelFile {
    pub pieces: Vec<Piece>,
    pub kind: Kind,
    pub byte_fallback: bool,
    pub unknown_text: String,
    pub names: Names,
    pub rules: Rules,
    pub denormalizer: Option<Rules>,
}

impl ModelFile {
    pub fn parse(bytes: &[u8]) -> Found<ModelFile> {
        let mut file = ModelFile {
            pieces: Vec::new(),
            kind: Kind::Unigram,
            byte_fallback: false,
            unknown_text: UNKNOWN_TEXT.into(),
            names: Names {
                unknown: "<unk>".into(),
                first: "<s>".into(),
                last: "</s>".into(),
                padding: "<pad>".into(),
            },
            rules: Rules::default(),
            denormalizer: None,
        };
        let mut denormalizer = Rules::default();
        for field in Fields::of(bytes) {
            match field? {
                (1, value) => {
                    if file.pieces.len() == PIECES {
                        return Err(format!("more than {PIECES} pieces"));
                    }
                    file.pieces.push(piece(value.bytes("a piece")?)?);
                }
                (2, value) => file.trainer(value.bytes("the trainer's settings")?)?,
                (3, value) => normalizer(value.bytes("the normaliser")?, &mut file.rules)?,
                (5, value) => normalizer(value.bytes("the denormaliser")?, &mut denormalizer)?,
                _ => {}
            }
        }
        if denormalizer.charsmap.is_some() {
            file.denormalizer = Some(denormalizer);
        }
        if file.pieces.is_empty() {
            return Err("no pieces".into());
        }
        if file.byte_fallback {
            // A conversion's NUL beside the byte <0x00> never counts.
            file.pieces.iter_mut().filter(|p| p.text == "\0").for_each(|p| p.kind = PieceKind::Unused);
        }
        pieces::check(&file.pieces, file.byte_fallback, file.kind != Kind::Bpe)?;
        Ok(file)
    }

    fn trainer(&mut self, message: &[u8]) -> Found<()> {
        for field in Fields::of(message) {
            let name = |value: &Value, what: &str| {
                value.text(what).map(|text| if text.is_empty() { None } else { Some(text.to_string()) })
            };
            let set = |place: &mut String, name: Option<String>, default: &str| {
                *place = name.unwrap_or_else(|| default.into());
            };
            match field? {
                (3, value) => {
                    self.kind = match value.number("the kind of model")? {
                        1 => Kind::Unigram,
                        2 => Kind::Bpe,
                        3 => Kind::Word,
                        4 => Kind::Character,
                        other => return Err(format!("{other} for the kind of model")),
                    }
                }
                (24, value) => self.rules.space_last = value.flag("treat_whitespace_as_suffix")?,
                (35, value) => self.byte_fallback = value.flag("byte_fallback")?,
                (44, value) => self.unknown_text = value.text("unk_surface")?.into(),
                (45, value) => set(&mut self.names.unknown, name(&value, "unk_piece")?, "<unk>"),
                (46, value) => set(&mut self.names.first, name(&value, "bos_piece")?, "<s>"),
                (47, value) => set(&mut self.names.last, name(&value, "eos_piece")?, "</s>"),
                (48, value) => set(&mut self.names.padding, name(&value, "pad_piece")?, "<pad>"),
                _ => {}
            }
        }
        Ok(())
    }
}

fn piece(message: &[u8]) -> Found<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields::of(message) {
        match field? {
            (1, value) => piece.text = value.text("a piece")?.into(),
            (2, value) => piece.score = value.float("a score")?,
            (3, value) => {
                piece.kind = match value.number("the kind of a piece")? {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    5 => PieceKind::Unused,
                    6 => PieceKind::Byte,
                    other => return Err(format!("{other} for the kind of a piece")),
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn normalizer(message: &[u8], rules: &mut Rules) -> Found<()> {
    for field in Fields::of(message) {
        match field? {
            (2, value) => rules.set_charsmap(value.bytes("precompiled_charsmap")?)?,
            (3, value) => rules.add_dummy_prefix = value.flag("add_dummy_prefix")?,
            (4, value) => rules.remove_extra_whitespaces = value.flag("remove_extra_whitespaces")?,
            (5, value) => rules.escape_whitespaces = value.flag("escape_whitespaces")?,
            _ => {}
        }
    }
    Ok(())
}
