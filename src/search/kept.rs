//! Image tokens of pictures that searches looked at again, in memory, so that the image encoder sees none of them twice.
//!
//! Bounded in bytes; the ones that were not asked for longest go first. A picture is known by the hash of its file. Scores are those of
//! pictures encoded again, to the last bit: on the CPU a picture's tokens do not depend on the others it is computed with. On a GPU they
//! may, so nothing is kept there.

use crate::Result;
use crate::model::Images;
use crate::nn::Pass;
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{Seen, look, planes};
use crate::tensor::{Chunk, Tensor};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Tokens `[N,W]` of pictures by the hashes of their files.
pub struct Kept {
    most: usize,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// When it was last asked for, and the tokens.
    of: HashMap<String, (u64, Tensor)>,
    bytes: usize,
    clock: u64,
}

impl Kept {
    /// At most so many bytes; 0 keeps nothing.
    pub fn new(most: usize) -> Kept {
        Kept { most, now: Mutex::default() }
    }

    /// The tokens of a picture, if they are here.
    pub fn tokens(&self, hash: &str) -> Option<Tensor> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.clock += 1;
        let clock = now.clock;
        now.of.get_mut(hash).map(|(last, tokens)| {
            *last = clock;
            tokens.clone()
        })
    }

    /// The features of a picture from its tokens.
    pub fn images(model: &Pretrained, tokens: &Tensor) -> Result<Images> {
        model.model.image_features_of(&Pass::inference(&model.params), tokens)
    }

    /// The features of pictures, whose tokens are kept.
    pub fn look(&self, model: &Pretrained, seen: &[(&str, &Seen)]) -> Result<Vec<Images>> {
        let pictures: Vec<&Seen> = seen.iter().map(|(_, seen)| *seen).collect();
        if seen.is_empty() || self.most == 0 || Chunk::of(model.params.device()).fixed {
            return look(model, &pictures);
        }
        let pass = Pass::inference(&model.params);
        let (tokens, images) = model.model.tokens_and_features(&pass, &planes(model, &pictures)?)?;
        let rows = model.model.config.image_tokens();
        for (i, (hash, _)) in seen.iter().enumerate() {
            // A copy: a slice would keep those of all.
            let own = tokens.slice_rows(i * rows..(i + 1) * rows)?;
            self.put(hash, Tensor::new(own.to_f32()?, own.shape().sizes())?);
        }
        images.each()
    }

    fn put(&self, hash: &str, tokens: Tensor) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = 4 * tokens.len();
        if bytes > self.most || now.of.contains_key(hash) {
            return;
        }
        while now.bytes + bytes > self.most {
            let oldest = now.of.iter().min_by_key(|(_, (last, _))| *last).map(|(hash, _)| hash.clone());
            let Some((_, gone)) = oldest.and_then(|hash| now.of.remove(&hash)) else { return };
            now.bytes -= 4 * gone.len();
        }
        now.clock += 1;
        let clock = now.clock;
        now.bytes += bytes;
        now.of.insert(hash.to_owned(), (clock, tokens));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let kept = Kept::new(100);
        let tokens = |n: usize| Tensor::new(vec![1f32; n], &[1, n]).unwrap();
        ["a", "b", "c"].iter().for_each(|name| kept.put(name, tokens(8)));
        assert!(kept.tokens("a").is_some());
        // 96 bytes and 36 more: one has to go, and it is not the one asked for.
        kept.put("d", tokens(9));
        kept.put("too large", tokens(26));
        let left: Vec<&str> = ["a", "b", "c", "d", "too large"]
            .into_iter()
            .filter(|name| kept.tokens(name).is_some())
            .collect();
        assert_eq!((left, kept.now.lock().unwrap().bytes), (vec!["a", "c", "d"], 100));
        let none = Kept::new(0);
        none.put("a", tokens(1));
        assert!(none.tokens("a").is_none());
    }
}
