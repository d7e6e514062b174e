//! Words to tokens: WordPiece and single characters.

use super::clean::is_white;
use super::settings::Subwords;
use super::vocabulary::Vocabulary;
use unicode_normalization::UnicodeNormalization;

/// Characters of a word beyond which it is not looked up.
const LONGEST: usize = 100;

/// True for words that are not looked up: always one `[UNK]`.
pub fn is_too_long(word: &str) -> bool {
    word.chars().nth(LONGEST).is_some()
}

pub struct Subword {
    kind: Subwords,
    /// Characters of the longest token, `##` not counted: nothing longer is looked up.
    longest: usize,
}

impl Subword {
    pub fn new(kind: Subwords, vocabulary: &Vocabulary) -> Subword {
        let tokens = (0..).map_while(|id| vocabulary.token(id));
        let longest = tokens.map(|t| t.strip_prefix("##").unwrap_or(t).chars().count().max(1)).max();
        Subword { kind, longest: longest.unwrap_or(1).max(1) }
    }

    /// Appends the ids of a word.
    pub fn push(&self, word: &str, vocabulary: &Vocabulary, ids: &mut Vec<u32>) {
        match self.kind {
            Subwords::WordPiece => {
                for piece in word.split(is_white).filter(|p| !p.is_empty()) {
                    self.push_pieces(piece, vocabulary, ids);
                }
            }
            Subwords::Character => {
                let mut buffer = [0; 4];
                for c in word.nfkc() {
                    let token = c.encode_utf8(&mut buffer);
                    ids.push(vocabulary.id(token).unwrap_or(vocabulary.special().unk));
                }
            }
        }
    }

    /// The longest token that the piece starts with, then the longest `##` token that the rest starts with, and so on;
    /// one `[UNK]` for the whole piece if somewhere there is none, or if it is too long.
    fn push_pieces(&self, piece: &str, vocabulary: &Vocabulary, ids: &mut Vec<u32>) {
        let start = ids.len();
        let mut rest = piece;
        let mut fits = !is_too_long(piece);
        let mut token = String::new();
        while fits && !rest.is_empty() {
            token.clear();
            token.push_str(if rest.len() == piece.len() { "" } else { "##" });
            let mark = token.len();
            let most = rest.char_indices().nth(self.longest).map_or(rest.len(), |(at, _)| at);
            token.push_str(rest.get(..most).unwrap_or_default());
            fits = false;
            while token.len() > mark {
                if let Some(id) = vocabulary.id(&token) {
                    ids.push(id);
                    rest = rest.get(token.len() - mark..).unwrap_or_default();
                    fits = true;
                    break;
                }
                token.pop();
            }
        }
        if !fits {
            ids.truncate(start);
            ids.push(vocabulary.special().unk);
        }
    }
}
