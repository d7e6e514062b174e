//! The image encoder: EVA's ViT, pre-norm, no final norm.     image [B,3,S,S] -> [B*N,W]

use super::{Config, sites};
use crate::Result;
use crate::nn::{Builder, Id, Init, LayerNorm, Linear, Pass};
use crate::ops::{self, Heads, Segment, Segments};
use crate::tensor::Tensor;
use std::sync::Arc;

pub struct Vit {
    patch: Linear,
    cls_token: Id,
    pos_embed: Id,
    blocks: Vec<Block>,
    heads: usize,
    tokens: usize,
    /// How often training drops the last block's branches.
    pub drop_path: f64,
}

struct Block {
    norm1: LayerNorm,
    qkv: Id,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Vit {
    pub fn new(b: &mut Builder, c: &Config) -> Vit {
        let (w, p) = (c.vit_width, c.patch_size);
        let v = "visual_encoder";
        Vit {
            cls_token: b.param(format!("{v}.cls_token"), &[1, 1, w], Init::Normal(0.02)),
            pos_embed: b.param(format!("{v}.pos_embed"), &[1, c.image_tokens(), w], Init::Normal(0.02)),
            patch: Linear {
                weight: b.dense(format!("{v}.patch_embed.proj.weight"), &[w, 3, p, p], Init::Normal(0.02)),
                bias: b.param(format!("{v}.patch_embed.proj.bias"), &[w], Init::Constant(0.0)),
            },
            blocks: (0..c.vit_depth).map(|i| Block::new(b, c, &format!("{v}.blocks.{i}"))).collect(),
            heads: c.vit_heads,
            tokens: c.image_tokens(),
            drop_path: 0.0,
        }
    }

    /// `each` sees the output of every block (`parity` compares them).
    pub fn forward(
        &self,
        pass: &Pass,
        image: &Tensor,
        mut each: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let [w, b, cls, pos] =
            [self.patch.weight, self.patch.bias, self.cls_token, self.pos_embed].map(|id| pass.param(id));
        let mut x = ops::patch_embed(&pass.here(image)?, &w, &b, &cls, &pos)?;
        let images = x.rows().0 / self.tokens;
        let segments = per_image(images, self.tokens)?;
        let Some(first) = self.blocks.first() else { return Ok(x) };
        let mut n = first.norm1.forward(pass, &x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let kept = |branch: Tensor, site: u32| {
                ops::drop_path(
                    &branch,
                    self.tokens,
                    pass.dropout_of(sites::vit(i) + site, self.drop_path_of(i)),
                )
            };
            let up = block.forward(pass, &mut x, &n, &segments, self.heads, kept)?;
            match self.blocks.get(i + 1) {
                Some(next) => (x, n) = next.norm1.between(pass, &up, &x)?,
                None => x = ops::add(&x, &up)?,
            }
            each(i, &x);
        }
        Ok(x)
    }

    /// How often training drops a branch of block i for a picture: from 0 at the first block on in equal steps, as EVA has it.
    fn drop_path_of(&self, i: usize) -> f32 {
        (self.drop_path * i as f64 / (self.blocks.len().max(2) - 1) as f64) as f32
    }
}

/// Every image's tokens see one another.
fn per_image(images: usize, tokens: usize) -> Result<Arc<Segments>> {
    let rows = |i: usize| i * tokens..(i + 1) * tokens;
    let list = (0..images).map(|i| Segment { q: rows(i), a: rows(i), b: 0..0, causal: false }).collect();
    Segments::new(list, images * tokens, images * tokens)
}

impl Block {
    fn new(b: &mut Builder, c: &Config, name: &str) -> Block {
        let w = c.vit_width;
        let norm1 = b.norm(&format!("{name}.norm1"), w, 1e-6);
        let qkv = b.dense(format!("{name}.attn.qkv.weight"), &[3 * w, w], Init::Normal(0.02));
        let biases = ["q_bias", "v_bias"]
            .map(|bias| b.dense(format!("{name}.attn.{bias}"), &[w], Init::Constant(0.0)));
        Block {
            norm1,
            qkv: b.qkv(qkv, biases),
            proj: b.linear(&format!("{name}.attn.proj"), w, w),
            norm2: b.norm(&format!("{name}.norm2"), w, 1e-6),
            fc1: b.linear(&format!("{name}.mlp.fc1"), w, c.vit_mlp),
            fc2: b.linear(&format!("{name}.mlp.fc2"), c.vit_mlp, w),
        }
    }

    /// From the stream x and its norm n to the branch that is to be added to x, which has the attention's by then. `kept` is
    /// what drop path leaves of a branch.
    fn forward(
        &self,
        pass: &Pass,
        x: &mut Tensor,
        n: &Tensor,
        segments: &Arc<Segments>,
        heads: usize,
        kept: impl Fn(Tensor, u32) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let w = x.rows().1;
        let qkv = pass.linear_qkv(n, self.qkv)?;
        let [q, k, v] = [0, 1, 2].map(|i| Heads { tensor: &qkv, column: i * w });
        let scale = ((w / heads) as f64).powf(-0.5);
        let y = ops::attention([q, k, v], segments, heads, scale, None)?;
        let up = kept(self.proj.forward(pass, &y)?, 0)?;
        let (sum, n) = self.norm2.between(pass, &up, x)?;
        *x = sum;
        kept(self.fc2.forward(pass, &pass.vit_gelu(&n, &self.fc1)?)?, 1)
    }
}
