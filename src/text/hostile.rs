//! Dictionaries cut short and with bytes changed: each is refused, or works without a panic.

use super::mecab::{Texts, characters, lexicon, matrix};
use super::segment::{build, read, words};

const SYSTEM: &[u8] = include_bytes!("../../tests/text/tiny/sys.dic");
const UNKNOWN: &[u8] = include_bytes!("../../tests/text/tiny/unk.dic");
const MATRIX: &[u8] = include_bytes!("../../tests/text/tiny/matrix.bin");
const CHARACTERS: &[u8] = include_bytes!("../../tests/text/tiny/char.bin");
const TEXT: &str = "犬猫が走る 山川町海原空々aBz\u{3000}\n、a,bsay\"𠮷🐕走るxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

fn texts() -> Texts {
    let (lexicon, words) = lexicon(SYSTEM).unwrap();
    let unknown = super::mecab::lexicon(UNKNOWN).unwrap().0;
    let (matrix, characters) = (matrix(MATRIX).unwrap(), characters(CHARACTERS).unwrap());
    Texts { lexicon, matrix, characters, unknown, words }
}

/// Numbers that look random, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// What a changed dictionary makes of texts; the point is that it comes back.
fn use_up(raw: &[u8]) {
    if let Ok(vibrato) = read(raw) {
        let mut length = 0;
        words(&vibrato, TEXT, |word| length += word.len());
        assert!(length <= TEXT.len());
    }
}

/// Every cut of a MeCab file is refused; every byte changed in three ways is refused or gives a whole dictionary.
fn change(
    file: &[u8],
    original: &str,
    parse: impl Fn(&[u8]) -> Option<String>,
    put: impl Fn(&mut Texts, String),
) {
    assert_eq!(parse(file).as_deref(), Some(original));
    for n in 0..file.len() {
        assert!(parse(&file[..n]).is_none(), "cut at {n}");
    }
    let mut changed = file.to_vec();
    for at in 0..file.len() {
        for bits in [0x01, 0x80, 0xFF] {
            changed[at] ^= bits;
            if let Some(text) = parse(&changed).filter(|text| text != original) {
                let mut texts = texts();
                put(&mut texts, text);
                let _ = build(&texts).map(|raw| use_up(&raw));
            }
            changed[at] ^= bits;
        }
    }
}

#[test]
fn damaged_lexicon() {
    let parse = |b: &[u8]| lexicon(b).ok().map(|found| found.0);
    change(SYSTEM, &texts().lexicon, parse, |t, text| t.lexicon = text);
}

#[test]
fn damaged_unknown_words() {
    let parse = |b: &[u8]| lexicon(b).ok().map(|found| found.0);
    change(UNKNOWN, &texts().unknown, parse, |t, text| t.unknown = text);
}

#[test]
fn damaged_matrix() {
    change(MATRIX, &texts().matrix, |b| matrix(b).ok(), |t, text| t.matrix = text);
}

#[test]
fn damaged_characters() {
    let whole = texts().characters;
    let mut random = Random(1);
    for _ in 0..300 {
        assert!(characters(&CHARACTERS[..random.below(CHARACTERS.len())]).is_err());
        let mut changed = CHARACTERS.to_vec();
        // The number of categories and their names, or a character.
        let at = if random.below(3) == 0 { random.below(4 + 5 * 32) } else { random.below(changed.len()) };
        changed[at] ^= 1 << random.below(8);
        if let Some(text) = characters(&changed).ok().filter(|text| *text != whole) {
            let _ = build(&Texts { characters: text, ..texts() }).map(|raw| use_up(&raw));
        }
    }
}

#[test]
fn damaged_dictionary() {
    let raw = build(&texts()).unwrap();
    assert!(read(&raw).is_ok());
    let mut random = Random(2);
    let mut refused = 0;
    for i in 0..4000 {
        let cut = random.below(raw.len());
        assert!(read(&raw[..cut]).is_err(), "cut at {cut}");
        let mut changed = raw.clone();
        // Where the large tables end and the small ones begin is not looked up: the ends of the file hold most of those.
        let at = match i % 4 {
            0 => random.below(2000),
            1 => raw.len() - 1 - random.below(2000),
            _ => random.below(raw.len()),
        };
        changed[at] ^= [0x01, 0x80, 0xFF, 1 << random.below(8)][random.below(4)];
        if random.below(4) == 0 {
            changed[random.below(raw.len())] ^= 0xFF;
        }
        refused += usize::from(read(&changed).is_err());
        use_up(&changed);
    }
    assert!(refused > 400, "only {refused} of 4000 changes were refused");
}
