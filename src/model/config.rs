//! The sizes of a model; keys as in `config.json` and in the metadata of recorded cases.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The sizes of a model, as in its `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Pixels on a side; patches of `patch_size` without padding.
    pub image_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Columns of the image encoder.
    pub vit_width: usize,
    /// Blocks of the image encoder.
    pub vit_depth: usize,
    /// Heads of the image encoder.
    pub vit_heads: usize,
    /// Columns of its feed-forward networks.
    pub vit_mlp: usize,
    /// Width, layers, heads and feed-forward width of the Q-Former.
    pub hidden: usize,
    /// Layers of the Q-Former.
    pub layers: usize,
    /// Heads of the Q-Former.
    pub heads: usize,
    /// Columns of its feed-forward networks.
    pub ffn: usize,
    /// Queries of a picture.
    pub num_query: usize,
    /// Layers i with i % cross_freq == 0 attend to the image.
    pub cross_freq: usize,
    /// With `[DEC]`, which is the last id.
    pub vocab: usize,
    /// Tokens of a caption, at most.
    pub max_txt_len: usize,
    /// Columns of the features that are compared.
    pub embed_dim: usize,
    /// Text positions the model has embeddings for.
    pub max_pos: usize,
    /// Pictures are turned upright as their EXIF orientation says; LAVIS takes them as they are stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exif_orientation: bool,
}

impl Config {
    /// BLIP-2's stage 1: EVA ViT-g/14 and the Q-Former with the Japanese BERT's vocabulary.
    pub fn full() -> Config {
        Config {
            patch_size: 14,
            vit_width: 1408,
            vit_depth: 39,
            vit_heads: 16,
            vit_mlp: 6144,
            ..Config::base()
        }
    }

    /// ViT-B/16 sizes with the full Q-Former.
    pub fn base() -> Config {
        Config {
            image_size: 224,
            patch_size: 16,
            vit_width: 768,
            vit_depth: 12,
            vit_heads: 12,
            vit_mlp: 3072,
            hidden: 768,
            layers: 12,
            heads: 12,
            ffn: 3072,
            num_query: 32,
            cross_freq: 2,
            vocab: 32001,
            max_txt_len: 32,
            embed_dim: 256,
            max_pos: 512,
            exif_orientation: false,
        }
    }

    /// The real head sizes (88 and 64) and query count, everything else small.
    pub fn heads() -> Config {
        Config {
            image_size: 56,
            patch_size: 14,
            vit_width: 176,
            vit_depth: 1,
            vit_heads: 2,
            vit_mlp: 392,
            hidden: 128,
            layers: 2,
            heads: 2,
            ffn: 256,
            num_query: 32,
            cross_freq: 2,
            vocab: 203,
            max_txt_len: 32,
            embed_dim: 64,
            max_pos: 64,
            exif_orientation: false,
        }
    }

    /// Small, odd sizes.
    pub fn tiny() -> Config {
        Config {
            image_size: 28,
            patch_size: 7,
            vit_width: 48,
            vit_depth: 3,
            vit_heads: 4,
            vit_mlp: 209,
            hidden: 64,
            layers: 4,
            heads: 4,
            ffn: 128,
            num_query: 8,
            cross_freq: 2,
            vocab: 120,
            max_txt_len: 12,
            embed_dim: 24,
            max_pos: 64,
            exif_orientation: false,
        }
    }

    /// A configuration by its name, or None.
    pub fn named(name: &str) -> Option<Config> {
        match name {
            "tiny" => Some(Config::tiny()),
            "heads" => Some(Config::heads()),
            "base" => Some(Config::base()),
            "full" => Some(Config::full()),
            _ => None,
        }
    }

    /// The sizes that a `config.json` names.
    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config = serde_json::from_str(text)
            .map_err(|e| Error::argument("model configuration", "JSON", "the sizes of a model", e))?;
        config.check()?;
        Ok(config)
    }

    /// Every size is positive, sane, and divides where it must.
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, want: String, got: usize| {
            Err(Error::argument("model configuration", key, want, got).fix("correct it in config.json"))
        };
        let limits = [
            ("image_size", self.image_size, 1 << 12),
            ("patch_size", self.patch_size, 1 << 10),
            ("vit_width", self.vit_width, 1 << 14),
            ("vit_depth", self.vit_depth, 1 << 10),
            ("vit_heads", self.vit_heads, 1 << 10),
            ("vit_mlp", self.vit_mlp, 1 << 16),
            ("hidden", self.hidden, 1 << 14),
            ("layers", self.layers, super::sites::MAX_LAYERS),
            ("heads", self.heads, 1 << 10),
            ("ffn", self.ffn, 1 << 16),
            ("num_query", self.num_query, 1 << 10),
            ("cross_freq", self.cross_freq, 1 << 10),
            ("vocab", self.vocab, 1 << 20),
            ("max_txt_len", self.max_txt_len, 1 << 12),
            ("embed_dim", self.embed_dim, 1 << 14),
            ("max_pos", self.max_pos, 1 << 14),
        ];
        for (key, value, most) in limits {
            if value == 0 || value > most {
                return wrong(key, format!("1 to {most}"), value);
            }
        }
        if self.image_size < self.patch_size {
            return wrong("image_size", format!("at least patch_size {}", self.patch_size), self.image_size);
        }
        if !self.vit_width.is_multiple_of(self.vit_heads) {
            return wrong("vit_heads", format!("a divisor of vit_width {}", self.vit_width), self.vit_heads);
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return wrong("heads", format!("a divisor of hidden {}", self.hidden), self.heads);
        }
        if self.max_txt_len > self.max_pos {
            return wrong("max_txt_len", format!("at most max_pos {}", self.max_pos), self.max_txt_len);
        }
        if self.vocab < 6 {
            return wrong("vocab", "at least 6 (five special tokens and [DEC])".into(), self.vocab);
        }
        Ok(())
    }

    /// Image tokens: patches and the class token.
    pub fn image_tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    /// Whether a layer sees the picture.
    pub fn has_cross(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.cross_freq)
    }

    /// The id of `[DEC]`, which begins a caption that is decoded.
    pub fn bos(&self) -> u32 {
        (self.vocab - 1) as u32
    }
}

/// Ids that are the same in every BERT vocabulary used here.
pub const PAD: u32 = 0;
/// `[CLS]`, with which BERT begins a text.
pub const CLS: u32 = 2;
/// `[SEP]`, which ends it.
pub const SEP: u32 = 3;
