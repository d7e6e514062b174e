//! Pictures to tokens.     image [B,3,S,S]   weight [W,3,P,P]   bias [W]   cls [1,1,W]   pos [1,N,W]   y [B*N,W],  N = (S/P)^2 + 1
//!   y[b,0] = cls + pos[0];     y[b,1+g] = patch(b,g) . weight + bias + pos[1+g],  patches row by row, no padding
//!   dweight = dy^T patches;   dbias = sum(dy of patches);   dcls = sum_B(dy[b,0]);   dpos = sum_B(dy)

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, column_sum, column_sum_into, gradient, int, same_storage};
use crate::device::gpu::{Matmul, Operand};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{Array, Device, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};
use rayon::prelude::*;

const OP: &str = "patch_embed";

/// Pictures to tokens: image `[B,3,S,S]` (a constant), weight `[W,3,P,P]`, bias `[W]`, cls `[1,1,W]`, pos `[1,N,W]`; y `[B*N,W]` with
/// N = (S/P)^2 + 1.
///
/// `y[b,0]` = cls + `pos[0]`; y[b,1+g] = patch(b,g) . weight + bias + pos[1+g], patches row by row, no padding.
/// dweight = dy^T patches; dbias = sum(dy of patches); dcls = sum_B(`dy[b,0]`); dpos = sum_B(dy).
/// On a GPU, y is in f32 whatever the weight is stored as: it begins the residual stream. Errors name the argument.
///
/// Source: EVA's ViT as LAVIS has it (`torch.nn.functional.conv2d` with stride P).
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
    if let Some(arrays) = arrays(OP, [image, weight, bias, cls, pos])? {
        return on_gpu([weight, bias, cls, pos], arrays, Sizes { b, s, p, g, k, w });
    }
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

/// Planes `[B,3,S,S]` in f32 of 8-bit pixels `[B,S,S,3]`, on a device:   (v / 255 - `mean[c]`) / `std[c]`
///
/// In f32 and in this order, as torchvision's ToTensor and Normalize compute it. A GPU is sent the bytes, a quarter of the
/// planes. A constant; an error unless there are whole pictures of `size` x `size`.
pub fn pixel_planes(
    device: &Device,
    bytes: &[u8],
    size: usize,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<Tensor> {
    let picture = 3 * size * size;
    if picture == 0 || !bytes.len().is_multiple_of(picture) {
        let want = format!("pictures of {size} x {size} x 3 bytes");
        return Err(Error::argument("pixel_planes", "bytes", want, format!("{} bytes", bytes.len())));
    }
    let n = bytes.len() / picture;
    let sizes = [n, 3, size, size];
    if let Device::Gpu(gpu) = device {
        let bytes = gpu.upload("pictures", Storage::U8, bytes)?;
        let planes = gpu.array("pixel_planes", Storage::F32, bytes.len())?;
        // A patch as large as a picture, in the order of the patch matmul's rows: channel, row, column.
        let side = int(size);
        let [m0, m1, m2] = mean;
        let [s0, s1, s2] = std;
        let args = crate::args![&bytes, &planes, side, side, m0, m1, m2, s0, s1, s2];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch("patch_embed_bytes_f32", (n, 1), (128, 1), 0, args) }?;
        return Tensor::of_array(planes, &sizes);
    }
    let mut planes = vec![0f32; bytes.len()];
    planes.par_chunks_mut(size * size).enumerate().for_each(|(plane, out)| {
        let (picture, c) = (&bytes[plane / 3 * picture..][..picture], plane % 3);
        // Only 256 values can occur.
        let table: [f32; 256] = core::array::from_fn(|v| (v as f32 / 255.0 - mean[c]) / std[c]);
        for (out, pixel) in out.iter_mut().zip(picture.chunks_exact(3)) {
            *out = table[usize::from(pixel[c])];
        }
    });
    Tensor::new(planes, &sizes)
}

#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    s: usize,
    p: usize,
    g: usize,
    k: usize,
    w: usize,
}

/// The tokens are in f32 whatever the weight is stored as: they begin the residual stream.
fn on_gpu(tensors: [&Tensor; 4], [image, weight, bias, cls, pos]: [Array; 5], z: Sizes) -> Result<Tensor> {
    let (gpu, storage) = (image.gpu().clone(), weight.storage());
    for (name, a) in [("image", &image), ("bias", &bias), ("cls_token", &cls), ("pos_embed", &pos)] {
        same_storage(OP, name, a, Storage::F32)?;
    }
    let Sizes { b, s, p, g, k, w } = z;
    if k != 3 * p * p {
        return Err(Error::argument(OP, "image", "3 channels on a GPU", k / (p * p)));
    }
    let patches = gpu.array(OP, storage, b * g * k)?;
    let args = crate::args![&image, &patches, int(s), int(p)];
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&format!("patch_embed_planes_{}", storage.name()), (b * g, 1), (128, 1), 0, args) }?;
    let product = gpu.array(OP, storage, b * g * w)?;
    let (rows, columns) = (Operand::rows(&patches, k), Operand::rows(&weight, k).transposed());
    gpu.matmul(&Matmul::of((b * g, w, k), rows, columns, Operand::rows(&product, w)))?;
    let y = gpu.array(OP, Storage::F32, b * (g + 1) * w)?;
    let args = crate::args![&product, &bias, &cls, &pos, &y, int(g), int(w)];
    let kernel = if storage == Storage::F32 { "f32".into() } else { format!("{}_f32", storage.name()) };
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&format!("patch_embed_tokens_{kernel}"), (b * (g + 1), 1), (128, 1), 0, args) }?;
    let y = Tensor::of_array(y, &[b * (g + 1), w])?;
    record_tensor(OP, &tensors, y, move |dy, grads| {
        let dy = gradient(OP, dy)?;
        let narrow = dy.cast(OP, storage)?;
        grads.accumulate_array(0, |dw, fresh| {
            if b == 0 && fresh {
                return dw.zero();
            }
            (0..b).try_for_each(|i| {
                let d = narrow.part((i * (g + 1) + 1) * w..(i + 1) * (g + 1) * w)?;
                let x = patches.part(i * g * k..(i + 1) * g * k)?;
                let (a, b) = (Operand::rows(&d, w).transposed(), Operand::rows(&x, k));
                let (c, add) = (Operand::rows(dw, k), !fresh || i > 0);
                gpu.matmul(&Matmul::of((w, k, g), a, b, c).added(add))
            })
        })?;
        let n = (g + 1) * w;
        let per_place = column_sum(OP, &dy, b, n)?;
        column_sum_into(OP, grads, 1, &per_place.part(w..n)?, (g, w), 0)?;
        grads.add_array(2, per_place.part(0..w)?)?;
        grads.add_array(3, per_place)
    })
}

/// [B*G, C*P*P]: what each patch's matmul reads, in the weight's order.
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
