//! Pictures to tokens.     image [B,3,S,S]   weight [W,3,P,P]   bias [W]   cls [1,1,W]   pos [1,N,W]   y [B*N,W],  N = (S/P)^2 + 1
//!   y[b,0] = cls + pos[0];     y[b,1+g] = patch(b,g) . weight + bias + pos[1+g],  patches row by row, no padding
//!   dweight = dy^T patches;   dbias = sum(dy of patches);   dcls = sum_B(dy[b,0]);   dpos = sum_B(dy)

use super::{check_dtype, check_shape};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{Real, Tensor, record};
use crate::{Error, Result, on};

const OP: &str = "patch_embed";

pub fn patch_embed(
    image: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    cls: &Tensor,
    pos: &Tensor,
) -> Result<Tensor> {
    let &[b, ch, s, s2] = image.shape().sizes() else {
        return Err(Error::argument(OP, "image", "[batch, 3, size, size]", image.shape()));
    };
    let &[w, wch, p, p2] = weight.shape().sizes() else {
        return Err(Error::argument(OP, "weight", "[width, 3, patch, patch]", weight.shape()));
    };
    if image.tracked() {
        return Err(Error::argument(OP, "image", "a constant", "a tracked tensor"));
    }
    if p != p2 || p == 0 {
        return Err(Error::argument(OP, "weight", "square patches of at least 1 pixel", weight.shape()));
    }
    if s != s2 || ch != wch || s < p {
        let want = format!("a square of at least {p} pixels with {wch} channels");
        return Err(Error::argument(OP, "image", want, image.shape()));
    }
    let side = s / p;
    let n = side * side + 1;
    check_shape(OP, "bias", bias, &[w])?;
    check_shape(OP, "cls_token", cls, &[1, 1, w])?;
    check_shape(OP, "pos_embed", pos, &[1, n, w])?;
    check_dtype(OP, image, &[("weight", weight), ("bias", bias), ("cls_token", cls), ("pos_embed", pos)])?;
    let (k, g) = (ch * p * p, side * side);
    on!(image.dtype(), T => {
        let patches = extract::<T>(image.data(), (b, ch, s, p, side));
        let mut y = vec![T::ZERO; b * n * w];
        let (first, place, bias_data) = (cls.data::<T>(), pos.data::<T>(), bias.data::<T>());
        cpu::each_row(&mut y, w, |i, row| {
            let add = if i % n == 0 { first } else { bias_data };
            for ((y, p), a) in row.iter_mut().zip(&place[i % n * w..]).zip(add) {
                *y = *p + *a;
            }
        });
        for i in 0..b {
            let (x, to) = (View::rows(&patches[i * g * k..][..g * k], k), &mut y[(i * n + 1) * w..][..g * w]);
            gemm((g, w, k), T::ONE, x, View::rows(weight.data::<T>(), k).transposed(), T::ONE, to, w, true);
        }
        record(OP, [weight, bias, cls, pos], y, &[b * n, w], move |dy, grads| {
            let dy = dy.data::<T>();
            grads.accumulate::<T>(0, |dw, _| {
                for i in 0..b {
                    let d = View::rows(&dy[(i * n + 1) * w..][..g * w], w).transposed();
                    let x = View::rows(&patches[i * g * k..][..g * k], k);
                    gemm((w, k, g), T::ONE, d, x, T::ONE, dw, k, true);
                }
                Ok(())
            })?;
            let per_place = cpu::column_sums(dy, b, n * w);
            grads.add(1, cpu::column_sums(&per_place[w..], g, w))?;
            grads.add(2, per_place[..w].to_vec())?;
            grads.add(3, per_place)
        })
    })
}

/// [B*G, C*P*P]: what each patch's product reads, in the weight's order.
fn extract<T: Real>(image: &[T], (b, ch, s, p, side): (usize, usize, usize, usize, usize)) -> Vec<T> {
    let (k, g) = (ch * p * p, side * side);
    let mut out = vec![T::ZERO; b * g * k];
    cpu::each_row(&mut out, k, |row, patch| {
        let (i, gy, gx) = (row / g, row % g / side, row % side);
        for (line, to) in patch.chunks_exact_mut(p).enumerate() {
            let (c, y) = (line / p, line % p);
            let from = ((i * ch + c) * s + gy * p + y) * s + gx * p;
            to.copy_from_slice(&image[from..from + p]);
        }
    });
    out
}
