//! Words of Japanese text as MeCab cuts them, by vibrato.
//!
//! A dictionary file is a zstd frame (with its checksum) around a dictionary as vibrato writes it. IPADIC is part of
//! the program; [`convert`] makes such a file of any compiled MeCab dictionary in UTF-8. Bytes are checked before
//! vibrato sees them (`check.rs`), since it trusts what it reads.

use super::check;
use super::cursor::Found;
use super::mecab::{self, Texts};
use crate::files::read_regular;
use crate::{Error, Result};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::borrow::Cow;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use vibrato::SystemDictionaryBuilder;

/// IPADIC 2.7.0-20070801 in UTF-8, in the order of PyPI's package ipadic 1.0.0; its licence lies beside it.
static IPADIC: &[u8] = include_bytes!("ipadic/ipadic.zst");

/// As MeCab groups characters of unknown words.
const GROUPING: usize = 24;

/// Characters that are segmented at once. Costs of a path are summed in 32 bits, at most 2^16 a word and a word per
/// character at the most: 2^14 characters stay far below 2^31.
const AT_ONCE: usize = 1 << 14;

/// A raw dictionary is at most this large (the full UniDic has half of it) ...
const LARGEST: u64 = 1 << 30;
/// ... and no more than this plus so many times its file: what zstd claims beyond is a bomb.
const SMALL: u64 = 4 << 20;
const RATIO: u64 = 1 << 10;

const OPERATION: &str = "read a dictionary";
const FORMAT: &str = "a dictionary file of `qformer dictionary`";

/// A dictionary and the segmentation it gives.
pub struct Segmenter {
    file: Cow<'static, [u8]>,
    vibrato: vibrato::Tokenizer,
}

impl Segmenter {
    /// The dictionary that is part of the program; unpacked once, shared from then on.
    pub fn ipadic() -> Result<Arc<Segmenter>> {
        static SHARED: OnceLock<Result<Arc<Segmenter>>> = OnceLock::new();
        let load = || Segmenter::new(Cow::Borrowed(IPADIC), Path::new("IPADIC")).map(Arc::new);
        SHARED.get_or_init(load).clone()
    }

    /// A dictionary file.
    pub fn open(path: &Path) -> Result<Segmenter> {
        let bytes = read_regular(path, LARGEST, OPERATION).map_err(|e| {
            e.fix(format!("make it: qformer dictionary --mecab FOLDER --out {}", path.display()))
        })?;
        Segmenter::new(Cow::Owned(bytes), path)
    }

    fn new(file: Cow<'static, [u8]>, path: &Path) -> Result<Segmenter> {
        let vibrato = unpack(&file).and_then(|raw| read(&raw)).map_err(|why| {
            let fix = "the file is damaged or of another kind: make it again from the MeCab dictionary";
            Error::file(OPERATION, path, FORMAT, why).fix(fix)
        })?;
        Ok(Segmenter { file, vibrato })
    }

    /// The bytes of the dictionary's file.
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// Hands the words of a text to `word`, in order. Like MeCab, which takes a C string, it stops at the first NUL.
    /// Text of more than 16,384 characters is cut, where there is one after a line feed, 。 or space, and the pieces
    /// are segmented apart.
    pub fn words(&self, text: &str, word: impl FnMut(&str)) {
        words(&self.vibrato, text, word);
    }
}

/// A dictionary that vibrato wrote, set to choose as MeCab does.
pub(super) fn read(raw: &[u8]) -> Found<vibrato::Tokenizer> {
    check::dictionary(raw)?;
    let dictionary = vibrato::Dictionary::read(raw).map_err(|e| e.to_string())?;
    let tokenizer = vibrato::Tokenizer::new(dictionary).ignore_space(true).map_err(|e| e.to_string())?;
    Ok(tokenizer.max_grouping_len(GROUPING))
}

pub(super) fn words(vibrato: &vibrato::Tokenizer, text: &str, mut word: impl FnMut(&str)) {
    let mut rest = text.split('\0').next().unwrap_or_default();
    let mut worker = vibrato.new_worker();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece(rest));
        worker.reset_sentence(now);
        worker.tokenize();
        for i in 0..worker.num_tokens() {
            word(worker.token(i).surface());
        }
        rest = later;
    }
}

/// Bytes of the text to segment at once.
fn piece(text: &str) -> usize {
    let Some((most, _)) = text.char_indices().nth(AT_ONCE) else { return text.len() };
    let head = text.get(..most).unwrap_or_default();
    let end = |marks: &[char]| {
        head.rfind(marks).and_then(|at| head.get(at..)?.chars().next().map(|c| at + c.len_utf8()))
    };
    end(&['\n', '。']).or_else(|| end(&[' '])).unwrap_or(most)
}

/// A dictionary file made of a compiled MeCab dictionary, and the number of its words.
pub fn convert(folder: &Path) -> Result<(Vec<u8>, usize)> {
    let texts = mecab::read(folder)?;
    let file = build(&texts).map(|raw| pack(&raw));
    let file =
        file.map_err(|why| Error::file("convert a dictionary", folder, "a whole MeCab dictionary", why))?;
    Ok((file, texts.words))
}

/// The dictionary of these texts as vibrato writes it.
pub(super) fn build(texts: &Texts) -> Found<Vec<u8>> {
    let built = SystemDictionaryBuilder::from_readers(
        texts.lexicon.as_bytes(),
        texts.matrix.as_bytes(),
        texts.characters.as_bytes(),
        texts.unknown.as_bytes(),
    );
    let mut raw = Vec::new();
    built.and_then(|d| d.write(&mut raw)).map_err(|e| e.to_string())?;
    check::dictionary(&raw)?;
    Ok(raw)
}

fn pack(raw: &[u8]) -> Vec<u8> {
    compress_to_vec(raw, CompressionLevel::Fastest)
}

fn unpack(file: &[u8]) -> Result<Vec<u8>, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("no whole zstd frame ({e})");
    let limit = LARGEST.min((file.len() as u64).saturating_mul(RATIO).saturating_add(SMALL));
    let beyond =
        |size: String| Err(format!("{} bytes that unpack to {size}, above the limit of {limit}", file.len()));
    let mut rest = file;
    let mut decoder = StreamingDecoder::new(&mut rest).map_err(|e| damaged(&e))?;
    // 0 where a frame does not tell its size.
    let size = decoder.decoder.content_size();
    if size > limit {
        return beyond(size.to_string());
    }
    let mut raw = Vec::with_capacity(size as usize);
    decoder.by_ref().take(limit + 1).read_to_end(&mut raw).map_err(|e| damaged(&e))?;
    let length = raw.len() as u64;
    if length > limit {
        return beyond("more".into());
    }
    if size > 0 && length != size {
        return Err(format!("{length} bytes where {size} were announced"));
    }
    let sum = decoder.decoder.get_checksum_from_data();
    if sum.is_none() || sum != decoder.decoder.get_calculated_checksum() {
        return Err("a zstd frame whose checksum is absent or wrong".into());
    }
    if !rest.is_empty() {
        return Err(format!("a zstd frame and {} bytes after it", rest.len()));
    }
    Ok(raw)
}
