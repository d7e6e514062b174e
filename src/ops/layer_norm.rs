//! LayerNorm over the last axis.     x, y [R,C]   weight, bias [C]   mean, rstd [R]
//!   y  = n weight + bias,   n = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)   (two-pass variance)
//!   mean is sum / C and then what the row is off it on average: exact in a constant row, which eps would blow up otherwise
//!   dx = rstd (g - mean(g) - n mean(g n)),   g = dy weight;     dweight = sum_R(dy n);     dbias = sum_R(dy)

use super::check::{check_dropout, check_dtype, check_shape};
use super::gpu::{arrays, drop_args, gradient, gradients_beside, int};
use crate::device::cpu;
use crate::tensor::{
    Array, Dropout, Grads, Real, Storage, Tensor, constant, constant_tensor, record, record_tensor,
};
use crate::{Error, Result, on};

const OP: &str = "layer_norm";

/// LayerNorm over the last axis: x, y `[R,C]`, weight, bias `[C]`.
///
/// y = n weight + bias, n = (x - mean) rstd, rstd = 1 / sqrt(var + eps), the variance in two passes.
/// dx = rstd (g - mean(g) - n mean(g n)) with g = dy weight; dweight = sum_R(dy n); dbias = sum_R(dy).
/// Statistics and sums are in f32 on a GPU, where C is at most 2048 and weight and bias are in f32. Errors name the argument.
///
/// ```
/// use qformer::{ops, tensor::Tensor};
/// # fn main() -> qformer::Result<()> {
/// let x = Tensor::new(vec![1f64, 3.0], &[1, 2])?; // mean 2, variance 1
/// let [weight, bias] = [Tensor::new(vec![1f64, 1.0], &[2])?, Tensor::new(vec![0f64, 0.5], &[2])?];
/// let y = ops::layer_norm(&x, &weight, &bias, 1e-12)?.to_f64()?;
/// assert!((y[0] + 1.0).abs() < 1e-9 && (y[1] - 1.5).abs() < 1e-9);
/// # Ok(())
/// # }
/// ```
///
/// Source: `torch.nn.functional.layer_norm`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    layer_norm_as(x, weight, bias, eps, None)
}

/// [`layer_norm`] with y stored as told on a GPU (else as x is): a residual stream in f32 is normalised into 16 bits.
pub fn layer_norm_as(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    storage: Option<Storage>,
) -> Result<Tensor> {
    let (_, c) = x.rows();
    check_shape(OP, "weight", weight, &[c])?;
    check_shape(OP, "bias", bias, &[c])?;
    check_dtype(OP, x, &[("weight", weight), ("bias", bias)])?;
    check_eps(eps)?;
    if let Some([z, w, b]) = arrays(OP, [x, weight, bias])? {
        let storage = storage.unwrap_or(z.storage());
        let norm = OnGpu::new(None, z, [&w, &b], c, eps, storage, None)?;
        let y = Tensor::of_array(norm.y.clone(), x.shape().sizes())?;
        return record_tensor(OP, &[x, weight, bias], y, move |dy, grads| {
            let found = norm.backward(&gradient(OP, dy)?, &w, grads, [1, 2])?;
            grads.add_array(0, found.residual)
        });
    }
    on!(x.dtype(), T => {
        let (y, stats) = forward::<T>(x.data(), [weight.data(), bias.data()], eps, c);
        let (x2, w2) = (x.detach(), weight.detach());
        record(OP, [x, weight, bias], y, x.shape().sizes(), move |dy, grads| {
            let (dy, x) = (dy.data::<T>(), x2.data::<T>());
            if grads.wants(0) {
                grads.add(0, backward_x(dy, x, w2.data(), &stats, c))?;
            }
            affine_gradient(dy, x, &stats, c, [1, 2], grads)
        })
    })
}

/// What ends every sublayer of a transformer: z = residual + drop(x),   y = LayerNorm(z); one kernel on a GPU.
///
/// x, residual, y, z `[R,C]`; weight, bias `[C]`; y is stored as x is, z as residual is. With dz as in [`layer_norm`]:
/// dresidual = dz, dx = dz m, m the dropout's factors (element numbers: positions in x).
/// -> y, and z for whoever needs the stream itself (a constant)
pub fn residual_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    drop: Option<Dropout>,
) -> Result<(Tensor, Tensor)> {
    let (_, c) = x.rows();
    check_shape(OP, "residual", residual, x.shape().sizes())?;
    check_shape(OP, "weight", weight, &[c])?;
    check_shape(OP, "bias", bias, &[c])?;
    check_dtype(OP, x, &[("residual", residual), ("weight", weight), ("bias", bias)])?;
    check_eps(eps)?;
    if let Some(drop) = drop {
        check_dropout(OP, drop)?;
    }
    let inputs = [x, residual, weight, bias];
    let Some([a, z, w, b]) = arrays(OP, inputs)? else {
        return on!(x.dtype(), T => residual_on_cpu::<T>(inputs, eps, drop));
    };
    let storage = a.storage();
    let norm = OnGpu::new(Some(&a), z, [&w, &b], c, eps, storage, drop)?;
    let sizes = x.shape();
    let z = Tensor::of_array(norm.z.clone(), sizes.sizes())?;
    let y = Tensor::of_array(norm.y.clone(), sizes.sizes())?;
    let y = record_tensor(OP, &inputs, y, move |dy, grads| {
        let found = norm.backward(&gradient(OP, dy)?, &w, grads, [2, 3])?;
        if let Some(dx) = found.branch {
            grads.add_array(0, dx)?;
        }
        grads.add_array(1, found.residual)
    })?;
    Ok((y, z))
}

fn residual_on_cpu<T: Real>(
    inputs: [&Tensor; 4],
    eps: f64,
    drop: Option<Dropout>,
) -> Result<(Tensor, Tensor)> {
    let [x, residual, weight, bias] = inputs;
    let (shape, c) = (x.shape(), x.rows().1);
    let masked = move |x: &mut [T]| {
        cpu::each_row(
            x,
            c,
            #[inline(always)]
            |i, row| {
                if let Some(drop) = drop {
                    drop.apply((i * c) as u64, row);
                }
            },
        );
    };
    let mut z = x.data::<T>().to_vec();
    masked(&mut z);
    cpu::zip_mut(&mut z, residual.data::<T>(), |z, r| *z += *r);
    let (y, stats) = forward::<T>(&z, [weight.data(), bias.data()], eps, c);
    let (z, w) = (Tensor::new(z, shape.sizes())?, weight.detach());
    let kept = z.clone();
    let y = Tensor::new(y, shape.sizes())?;
    let y = record_tensor(OP, &inputs, y, move |dy, grads| {
        let (dy, z) = (dy.data::<T>(), kept.data::<T>());
        if grads.wants(0) || grads.wants(1) {
            let mut dz = backward_x(dy, z, w.data(), &stats, c);
            if grads.wants(1) {
                grads.add(1, dz.clone())?;
            }
            masked(&mut dz);
            grads.add(0, dz)?;
        }
        affine_gradient(dy, z, &stats, c, [2, 3], grads)
    })?;
    Ok((y, z))
}

/// y, and of each row mean and rstd.
fn forward<T: Real>(x: &[T], [w, b]: [&[T]; 2], eps: f64, c: usize) -> (Vec<T>, Vec<T>) {
    let rows = x.len() / c.max(1);
    let (mut y, mut stats) = (vec![T::ZERO; x.len()], vec![T::ZERO; rows * 2]);
    cpu::each_row2(
        (&mut y, c),
        (&mut stats, 2),
        #[inline(always)]
        |i, y, stat| {
            let x = &x[i * c..][..c];
            let (mean, rstd) = statistics(x, eps);
            (stat[0], stat[1]) = (mean, rstd);
            for j in 0..c {
                y[j] = ((x[j] - mean) * rstd).mul_add(w[j], b[j]);
            }
        },
    );
    (y, stats)
}

/// dweight and dbias, where they are asked for.
fn affine_gradient<T: Real>(
    dy: &[T],
    x: &[T],
    stats: &[T],
    c: usize,
    [w, b]: [usize; 2],
    grads: &mut Grads,
) -> Result<()> {
    if !grads.wants(w) && !grads.wants(b) {
        return Ok(());
    }
    let sums = backward_w(dy, x, stats, stats.len() / 2, c);
    grads.add(b, sums[c..].to_vec())?;
    grads.add(w, sums[..c].to_vec())
}

/// How the kernels share out the work (see `kernels/layer_norm.cu`): threads of a block, its shared memory, and how many
/// blocks there are.
fn share((r, c): (usize, usize), [t, z]: [Storage; 2], blocks: usize) -> (u32, u32, usize) {
    let warps = c.div_ceil(768).max(1);
    let rows = (8 / warps).max(1);
    let bytes = t.bytes() + z.bytes();
    let stages = if bytes == 4 { 3 } else { 2 };
    let threads = u32::try_from(32 * warps * rows).unwrap_or(u32::MAX);
    (threads, (8 * 768 * stages * bytes) as u32, r.div_ceil(rows).min(2 * blocks))
}

/// Whether a warp has a row of so many columns, in whole pieces of 16 bytes.
fn is_whole(c: usize) -> bool {
    c <= 768 && c.is_multiple_of(8)
}

/// The kernel's forward: what it keeps for its backward.
struct OnGpu {
    y: Array,
    z: Array,
    stats: [Array; 2],
    kernel: String,
    sizes: (usize, usize),
    drop: Option<Dropout>,
    /// The dropout's decisions, a bit each, where the backward reads them.
    kept: Option<Array>,
    branch: bool,
}

/// What its backward finds.
struct Found {
    residual: Array,
    branch: Option<Array>,
}

impl OnGpu {
    fn new(
        x: Option<&Array>,
        residual: Array,
        [w, b]: [&Array; 2],
        c: usize,
        eps: f64,
        storage: Storage,
        drop: Option<Dropout>,
    ) -> Result<OnGpu> {
        let (gpu, r) = (residual.gpu().clone(), residual.len() / c.max(1));
        let kernel = match (storage, residual.storage()) {
            (t, r) if t == r => t.name().to_string(),
            (t, Storage::F32) => format!("{}_f32", t.name()),
            (t, r) => {
                return Err(Error::argument(OP, "x", format!("stored as f32 or {}", t.name()), r.name()));
            }
        };
        let y = gpu.array(OP, storage, r * c)?;
        let stats = [gpu.array(OP, Storage::F32, r)?, gpu.array(OP, Storage::F32, r)?];
        let z = if x.is_some() { gpu.array(OP, residual.storage(), r * c)? } else { residual.clone() };
        let written = x.is_some().then_some(&z);
        let bytes = r * c * residual.storage().bytes() / 16;
        let kept = drop.filter(|_| x.is_some() && is_whole(c)).map(|_| gpu.array(OP, Storage::U8, bytes));
        let (kept, [mean, rstd]) = (kept.transpose()?, &stats);
        let (n, columns) = (int(r), int(c));
        let args = crate::args![
            x,
            None,
            &residual,
            w,
            b,
            written,
            &y,
            mean,
            rstd,
            kept.as_ref(),
            n,
            columns,
            eps as f32
        ];
        let args = [args, &drop_args(drop)[..]].concat();
        let (threads, shared, blocks) = share((r, c), [storage, residual.storage()], gpu.blocks());
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch(&format!("layer_norm_fwd_{kernel}"), (blocks, 1), (threads, 1), shared, &args) }?;
        Ok(OnGpu { y, z, stats, kernel, sizes: (r, c), drop, kept, branch: x.is_some() })
    }

    /// The gradients of the rows; those of weight and bias go to these inputs.
    fn backward(&self, dy: &Array, w: &Array, grads: &mut Grads, affine: [usize; 2]) -> Result<Found> {
        let ((r, c), gpu) = (self.sizes, dy.gpu());
        let dy = &dy.cast(OP, self.y.storage())?;
        let residual = gpu.array(OP, self.z.storage(), r * c)?;
        let branch = self.branch.then(|| gpu.array(OP, self.y.storage(), r * c)).transpose()?;
        let found = Found { residual, branch };
        if affine.iter().any(|i| grads.wants(*i)) {
            gradients_beside(OP, gpu, grads, (&affine, c), |to, add| {
                self.launch_backward(dy, w, &found, Some((to, add)))
            })?;
        } else {
            self.launch_backward(dy, w, &found, None)?;
        }
        Ok(found)
    }

    /// `affine` [2,C] = dweight, dbias; or they are added there.
    fn launch_backward(
        &self,
        dy: &Array,
        w: &Array,
        found: &Found,
        affine: Option<(&Array, bool)>,
    ) -> Result<()> {
        let ((r, c), gpu, t, z) = (self.sizes, dy.gpu(), self.y.storage(), self.z.storage());
        if r == 0 {
            return affine.filter(|(_, add)| !add).map_or(Ok(()), |(to, _)| to.zero());
        }
        let (sums, add) = affine.map_or((None, false), |(to, add)| (Some(to), add));
        let (threads, shared, blocks) = share((r, c), [t, z], gpu.blocks());
        let groups = blocks.div_ceil(17);
        let partial = if sums.is_some() { (blocks + groups) * 2 * c } else { 0 };
        let partial = gpu.array(OP, Storage::F32, partial)?;
        let counters = gpu.counters(OP, groups + 1)?;
        let [mean, rstd] = &self.stats;
        let (n, columns) = (int(r), int(c));
        let args = crate::args![
            dy,
            &self.z,
            mean,
            rstd,
            w,
            None,
            &found.residual,
            found.branch.as_ref(),
            sums,
            &partial,
            counters,
            n,
            columns,
            i32::from(add)
        ];
        let drop = drop_args(self.drop);
        let moved = [Some(dy), Some(&self.z), Some(w), Some(&found.residual), found.branch.as_ref()];
        let whole = is_whole(c) && moved.into_iter().flatten().all(|a| a.pointer().addr().is_multiple_of(16));
        let (form, drop) = match whole {
            true => ("whole_", [crate::args![self.kept.as_ref()], &drop[4..]].concat()),
            false => ("", drop.to_vec()),
        };
        let args = [args, &drop].concat();
        let kernel = format!("layer_norm_bwd_{form}{}", self.kernel);
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch(&kernel, (blocks, 1), (threads, 1), shared, &args) }
    }
}

/// The normalised rows alone: n = (x - mean) rstd, see [`layer_norm`]; a constant.
pub fn normalize_rows(x: &Tensor, eps: f64) -> Result<Tensor> {
    normalize_rows_as(x, eps, None)
}

/// [`normalize_rows`] with n stored as told on a GPU.
pub fn normalize_rows_as(x: &Tensor, eps: f64, storage: Option<Storage>) -> Result<Tensor> {
    let (_, c) = x.rows();
    check_eps(eps)?;
    if let Some([z]) = arrays("normalize_rows", [x])? {
        let storage = storage.unwrap_or(z.storage());
        let rows = [1.0, 0.0].map(|v| z.gpu().row(OP, v, c));
        let [w, b] = rows;
        let y = OnGpu::new(None, z, [&w?, &b?], c, eps, storage, None)?.y;
        return constant_tensor("normalize_rows", &[x], Tensor::of_array(y, x.shape().sizes())?);
    }
    on!(x.dtype(), T => {
        let mut y = x.data::<T>().to_vec();
        cpu::each_row(&mut y, c, #[inline(always)] |_, row| {
            let (mean, rstd) = statistics(row, eps);
            for v in row.iter_mut() {
                *v = (*v - mean) * rstd;
            }
        });
        constant("normalize_rows", &[x], y, x.shape().sizes())
    })
}

fn check_eps(eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(OP, "eps", "a finite number, at least 0", eps))
}

#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let share = T::of(1.0 / x.len() as f64);
    let rough = cpu::sum(x.len(), |j| x[j]) * share;
    let mean = rough + cpu::sum(x.len(), |j| x[j] - rough) * share;
    let var = cpu::sum(x.len(), |j| (x[j] - mean) * (x[j] - mean)) * share;
    (mean, T::ONE / (var + T::of(eps)).sqrt())
}

fn backward_x<T: Real>(dy: &[T], x: &[T], w: &[T], stats: &[T], c: usize) -> Vec<T> {
    let mut dx = dy.to_vec();
    let share = T::of(1.0 / c as f64);
    cpu::each_row(
        &mut dx,
        c,
        #[inline(always)]
        |i, d| {
            let (x, mean, rstd) = (&x[i * c..][..c], stats[2 * i], stats[2 * i + 1]);
            let w = &w[..c];
            let mean_g = cpu::sum(c, |j| d[j] * w[j]) * share;
            let mean_gn = cpu::sum(c, |j| d[j] * w[j] * (x[j] - mean)) * rstd * share;
            for j in 0..c {
                d[j] = rstd * (d[j] * w[j] - mean_g - (x[j] - mean) * rstd * mean_gn);
            }
        },
    );
    dx
}

/// [dweight, dbias], one after the other.
fn backward_w<T: Real>(dy: &[T], x: &[T], stats: &[T], r: usize, c: usize) -> Vec<T> {
    cpu::sum_rows(
        r,
        2 * c,
        #[inline(always)]
        |i, sums| {
            let (dy, x) = (&dy[i * c..][..c], &x[i * c..][..c]);
            let (mean, rstd) = (stats[2 * i], stats[2 * i + 1]);
            let (dw, db) = sums.split_at_mut(c);
            for j in 0..c {
                dw[j] += dy[j] * ((x[j] - mean) * rstd);
                db[j] += dy[j];
            }
        },
    )
}
