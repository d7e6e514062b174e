//! Many pictures through the image encoder, where nothing is trained: in chunks of one size.
//!
//! A GPU chooses how it computes a matmul by the number of its rows, and the order of a sum with it. So all chunks have the
//! same number of pictures there, the last one filled up with zeros: a picture's numbers depend on no other picture, nor on
//! how many there are. The CPU sums every row in an order that does not depend on the other rows, but for the few sizes of
//! `sums_alike`; a chunk there has as many pictures as are left.
//!
//! A picture that is all a command looks at need not pay for a chunk: [`Model::image_features_alone`]. On a GPU its last
//! bits may then be others.

use super::{Config, Images, Model};
use crate::nn::Pass;
use crate::ops;
use crate::tensor::{Chunk, Tensor};
use crate::{Error, Result};

impl Model {
    /// Mode image, from pictures `[B,3,S,S]`: each as it is beside any others.
    pub fn image_features(&self, pass: &Pass, image: &Tensor) -> Result<Images> {
        let mut parts = Vec::new();
        self.each_chunk(pass, image, |tokens, n| {
            parts.push(self.image_features_of(pass, tokens)?.part(0..n)?);
            Ok(())
        })?;
        Images::stack(&parts)
    }

    /// Mode image, from pictures `[B,3,S,S]` that are all there is: as fast as the device can.
    pub fn image_features_alone(&self, pass: &Pass, image: &Tensor) -> Result<Images> {
        self.image_features_of(pass, &self.vit_tokens(pass, image, |_, _| {})?)
    }

    /// ViT tokens `[B*N,W]` of pictures `[B,3,S,S]`: on a GPU each picture's as they are beside any others, on the CPU those of a
    /// training step of this batch.
    pub fn tokens_in_chunks(&self, pass: &Pass, image: &Tensor) -> Result<Tensor> {
        if !Chunk::of(pass.params().device()).fixed {
            return self.vit_tokens(pass, image, |_, _| {});
        }
        let (mut parts, rows) = (Vec::new(), self.config.image_tokens());
        self.each_chunk(pass, image, |tokens, n| {
            parts.push(tokens.slice_rows(0..n * rows)?);
            Ok(())
        })?;
        ops::concat_rows(&parts.iter().collect::<Vec<_>>())
    }

    /// Both of them.
    pub fn tokens_and_features(&self, pass: &Pass, image: &Tensor) -> Result<(Tensor, Images)> {
        let (mut parts, mut features, rows) = (Vec::new(), Vec::new(), self.config.image_tokens());
        self.each_chunk(pass, image, |tokens, n| {
            parts.push(tokens.slice_rows(0..n * rows)?);
            features.push(self.image_features_of(pass, tokens)?.part(0..n)?);
            Ok(())
        })?;
        Ok((ops::concat_rows(&parts.iter().collect::<Vec<_>>())?, Images::stack(&features)?))
    }

    /// Hands out the tokens of every chunk, and how many of its pictures are some.
    fn each_chunk(
        &self,
        pass: &Pass,
        image: &Tensor,
        mut with: impl FnMut(&Tensor, usize) -> Result<()>,
    ) -> Result<()> {
        let &[count, planes, height, width] = image.shape().sizes() else {
            return Err(Error::argument("image features", "image", "[B, 3, S, S]", image.shape()));
        };
        let pixels = image.reshape(&[count, planes * height * width])?;
        let mut chunk = Chunk::of(pass.params().device());
        if !chunk.fixed && !sums_alike(&self.config) {
            chunk.pictures = 1;
        }
        for first in (0..count).step_by(chunk.pictures) {
            let n = chunk.pictures.min(count - first);
            let mut some = pass.here(&pixels.slice_rows(first..first + n)?)?;
            if chunk.fixed && n < chunk.pictures {
                some = some.with_zero_rows(chunk.pictures)?;
            }
            let some = some.reshape(&[some.rows().0, planes, height, width])?;
            with(&self.vit_tokens(pass, &some, |_, _| {})?, n)?;
        }
        Ok(())
    }
}

/// Whether the CPU sums the rows of one picture as it does those of several. The library behind [`crate::device::gemm`] has
/// other orders for a single row, for matmuls of at most 256 results, and, beyond 512 terms, for those of at most 64 rows and
/// 64 columns. Real models are larger.
fn sums_alike(c: &Config) -> bool {
    let alike = |rows: usize, columns: usize, terms: usize| {
        rows > 1 && rows * columns > 256 && (rows > 64 || columns > 64 || terms <= 512)
    };
    let patch = 3 * c.patch_size * c.patch_size;
    // Weights in half precision are multiplied by at most 64 columns at a time.
    let vit = alike(
        c.image_tokens() - 1,
        c.vit_width.min(c.vit_mlp).min(64),
        patch.max(c.vit_width).max(c.vit_mlp),
    );
    let queries = c.num_query.min(c.image_tokens());
    vit && alike(queries, c.hidden.min(c.ffn).min(c.embed_dim), c.hidden.max(c.ffn).max(c.vit_width))
}
