//! Dense layers: one door, [`linear`]; the ways to compute one are behind it.
//!   y = x weight^T + bias;   dx = dy weight;   dweight = dy^T x;   dbias = sum_R(dy)
//!
//! | room | a layer |
//! |---|---|
//! | this one | by one matmul, forward and backward; GELU in its tanh form at the end of it |
//! | `beside` | three of one input, by one matmul where their weights lie side by side |
//! | `after_norm` | behind a LayerNorm whose input is a constant |
//! | `few_rows` | of few rows, each summed in an order of its own (decoding) |
//! | `half` | with a frozen weight in half precision, on the CPU |

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, column_sum_into, gradient, same_storage};
use crate::device::gpu::{Matmul, Operand};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{
    Array, Grads, HalfMatrix, Real, Storage, Tensor, constant, constant_tensor, record, record_tensor,
};
use crate::{Error, Result, on};

mod after_norm;
mod before_gelu;
mod beside;
mod few_rows;
mod half;

const OP: &str = "linear";

/// What a dense layer multiplies by, and how it is held: a weight `[N,K]` and a bias `[N]`.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// A matrix, and a bias where there is one.
    Dense(&'a Tensor, Option<&'a Tensor>),
    /// Weight and bias for a vocabulary that is no multiple of 8, and the same two with rows of zeros up to one: on a GPU y has
    /// as many columns, since matmuls are several times as fast so. They are 0, and must be 0 in y's gradient
    /// ([`super::cross_entropy_of`] sees to it). On the CPU y has N columns.
    Padded {
        /// Weight and bias as they are.
        layer: [&'a Tensor; 2],
        /// Both with rows of zeros behind them.
        wide: [&'a Tensor; 2],
    },
    /// A frozen matrix in half precision, and a bias. On the CPU only: a GPU stores tensors in 16 bits.
    Half(&'a HalfMatrix, Option<&'a Tensor>),
    /// Three layers of one size, (weight, bias) each: y `[R,3N]` has the columns of all.
    Beside([[&'a Tensor; 2]; 3]),
    /// A layer behind a LayerNorm whose normalised rows x are, a constant:
    /// y = (x gamma + beta) weight^T + bias.
    AfterNorm {
        /// gamma and beta `[K]`, in f32 on a GPU.
        norm: [&'a Tensor; 2],
        /// Weight and bias, in f32 on a GPU.
        layer: [&'a Tensor; 2],
    },
}

/// GELU: exact, or in its tanh form, which a GPU computes at the end of a matmul; it is off by up to 5e-4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gelu {
    /// x (1 + erf(x / sqrt 2)) / 2, as LAVIS has it.
    #[default]
    Exact,
    /// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
    Tanh,
}

impl Gelu {
    /// By its name in settings.
    pub fn named(name: &str) -> Result<Gelu> {
        match name {
            "exact" => Ok(Gelu::Exact),
            "tanh" => Ok(Gelu::Tanh),
            _ => Err(Error::argument("precision", "vit_gelu", "exact or tanh", name)),
        }
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Gelu::Exact => "exact",
            Gelu::Tanh => "tanh",
        }
    }
}

/// How a dense layer is computed; the default is a matmul, and nothing behind it.
#[derive(Default)]
pub struct Options<'a> {
    /// GELU of the layer. [`Gelu::Exact`] has gradients, unless the layer is batch-invariant. [`Gelu::Tanh`] is for constants, and for
    /// layers that are not batch-invariant.
    pub gelu: Option<Gelu>,
    /// Each row is summed in an order that does not depend on how many rows there are, so that it has the same bits in any
    /// batch. For few rows. Inputs are constants.
    pub batch_invariant: bool,
    /// Of three layers beside one another, batch-invariant: y is the first's; the others' rows are kept here.
    pub cache: Option<Cache<'a>>,
}

impl Options<'_> {
    /// Batch-invariant, nothing else.
    pub fn batch_invariant() -> Self {
        Options { batch_invariant: true, ..Options::default() }
    }

    /// GELU at the end, nothing else.
    pub fn gelu(gelu: Gelu) -> Self {
        Options { gelu: Some(gelu), ..Options::default() }
    }
}

/// Where the second and the third of three layers put their rows: those from `at` on of two tensors `[S,N]`, in place.
/// Nobody else may use those rows meanwhile.
pub struct Cache<'a> {
    /// One for each of the two.
    pub tensors: [&'a mut Tensor; 2],
    /// The first row that is written.
    pub at: usize,
}

/// A dense layer: y `[R,N]` = x `[R,K]` weight^T + bias.
///
/// dx = dy weight, dweight = dy^T x, dbias = sum over rows of dy; weights are stored as x is on a GPU, sums are in f32 there.
/// [`Weight`] says how the weight is held, [`Options`] how the layer is computed. Errors name the argument whose shape, dtype
/// or storage does not fit, and options that do not go together.
///
/// ```
/// use qformer::ops::{Options, Weight, linear};
/// use qformer::tensor::Tensor;
/// # fn main() -> qformer::Result<()> {
/// let x = Tensor::new(vec![1f32, 2.0], &[1, 2])?;
/// let weight = Tensor::new(vec![3f32, 4.0, 5.0, 6.0], &[2, 2])?;
/// let y = linear(&x, Weight::Dense(&weight, None), Options::default())?;
/// assert_eq!(y.to_f32()?, [11.0, 17.0]);
/// # Ok(())
/// # }
/// ```
///
/// Source: `torch.nn.functional.linear`.
pub fn linear(x: &Tensor, weight: Weight, options: Options) -> Result<Tensor> {
    layer(x, weight, options, None)
}

/// A LayerNorm in front of a batch-invariant layer: x `[R,K]` = LayerNorm(branch + stream).
#[derive(Clone, Copy)]
pub struct Normed<'a> {
    /// `[R,K]`
    pub branch: &'a Tensor,
    /// `[R,K]`, stored as the branch is, where there is one.
    pub stream: Option<&'a Tensor>,
    /// `[K]`, in f32 on a GPU.
    pub weight: &'a Tensor,
    /// `[K]`, in f32 on a GPU.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// How x is stored on a GPU; None: as the branch is.
    pub storage: Option<Storage>,
}

/// x and the dense layer of it, x = LayerNorm(branch + stream): the bits of [`layer_norm`](super::layer_norm) or
/// [`residual_norm`](super::residual_norm), and then of [`linear`]. Where a GPU has at most 16 rows of at most 768 columns, both are
/// one kernel. `options` must be batch-invariant, and inputs constants.
///
/// ```
/// use qformer::ops::{Normed, Options, Weight, linear_of_norm};
/// use qformer::tensor::Tensor;
/// # fn main() -> qformer::Result<()> {
/// let branch = Tensor::new(vec![1f64, 3.0], &[1, 2])?; // mean 2, variance 1
/// let [one, zero] = [Tensor::new(vec![1f64, 1.0], &[2])?, Tensor::new(vec![0f64, 0.0], &[2])?];
/// let norm = Normed { branch: &branch, stream: None, weight: &one, bias: &zero, eps: 0.0, storage: None };
/// let weight = Tensor::new(vec![2f64, 5.0], &[1, 2])?;
/// let (x, y) = linear_of_norm(norm, Weight::Dense(&weight, None), Options::batch_invariant())?;
/// assert_eq!((x.to_f64()?, y.to_f64()?), (vec![-1.0, 1.0], vec![3.0]));
/// # Ok(())
/// # }
/// ```
///
/// Errors are those of the two. Source: `torch.nn.functional.layer_norm` and `torch.nn.functional.linear`.
pub fn linear_of_norm(norm: Normed, weight: Weight, options: Options) -> Result<(Tensor, Tensor)> {
    let (_, k) = norm.branch.rows();
    check_shape("layer_norm", "weight", norm.weight, &[k])?;
    check_shape("layer_norm", "bias", norm.bias, &[k])?;
    if let Some(stream) = norm.stream {
        check_shape("layer_norm", "residual", stream, norm.branch.shape().sizes())?;
    }
    let one_kernel = options.batch_invariant && matches!(weight, Weight::Dense(..) | Weight::Beside(_));
    let before = if one_kernel { few_rows::Before::of(&norm)? } else { None };
    if let Some(before) = before {
        let x = before.x.clone();
        let y = layer(&x, weight, options, Some(&before))?;
        return Ok((x, y));
    }
    let Normed { branch, stream, weight: w, bias: b, eps, storage } = norm;
    let x = match stream {
        Some(stream) => super::residual_norm(branch, stream, w, b, eps, None)?.0,
        None => super::layer_norm_as(branch, w, b, eps, storage)?,
    };
    let y = linear(&x, weight, options)?;
    Ok((x, y))
}

fn layer(x: &Tensor, weight: Weight, options: Options, before: Option<&few_rows::Before>) -> Result<Tensor> {
    let Options { gelu, batch_invariant, cache } = options;
    match (weight, gelu, batch_invariant, cache) {
        (Weight::Dense(w, b), None, false, None) => dense(x, w, b, None),
        (Weight::Dense(w, b), Some(Gelu::Tanh), false, None) => gelu_tanh(x, w, b),
        (Weight::Dense(w, b), Some(Gelu::Exact), false, None) => before_gelu::before_gelu(x, w, b),
        (Weight::Dense(w, b), None | Some(Gelu::Exact), true, None) => {
            few_rows::few_rows(x, w, b, gelu.is_some(), before)
        }
        (Weight::Padded { layer: [w, b], wide }, None, false, None) => dense(x, w, Some(b), Some(wide)),
        (Weight::Half(w, b), None, false, None) => half::linear_half(x, w, b),
        (Weight::Beside(layers), None, false, None) => beside::beside(x, layers),
        (Weight::Beside(layers), None, true, Some(cache)) => few_rows::cached(x, layers, cache, before),
        (Weight::AfterNorm { norm, layer }, None, false, None) => after_norm::after_norm(x, norm, layer),
        (_, gelu, batch_invariant, cache) => Err(Error::argument(
            OP,
            "options",
            "options that go together and with the weight",
            format!("gelu {gelu:?}, batch_invariant {batch_invariant}, cache {}", cache.is_some()),
        )),
    }
}

/// GELU of a layer in its tanh form, on a GPU by the matmul itself: nothing in between is written, so it has no gradient.
fn gelu_tanh(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (r, n, k) = check_linear(x, weight, bias)?;
    let inputs = [x, weight, bias.unwrap_or(weight)];
    if let Some([x2, w2, b]) = arrays(OP, inputs)? {
        let y = x2.gpu().array(OP, x2.storage(), r * n)?;
        multiply([&x2, &w2, &y], bias.map(|_| &b), (r, n, k), true)?;
        return constant_tensor(OP, &inputs, Tensor::of_array(y, &[r, n])?);
    }
    on!(x.dtype(), T => {
        let sums = forward::<T>(x.data(), weight.data(), bias.map(Tensor::data), (r, n, k));
        constant(OP, &inputs, cpu::map(&sums, cpu::gelu_tanh), &[r, n])
    })
}

fn dense(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, padded: Option<[&Tensor; 2]>) -> Result<Tensor> {
    let (r, n, k) = check_linear(x, weight, bias)?;
    let has_bias = bias.is_some();
    let [wide, wide_bias] = padded.unwrap_or([weight, bias.unwrap_or(weight)]);
    if let Some([x2, w2, b]) = arrays(OP, [x, wide, wide_bias])? {
        let (_, width, _) = check_linear(x, wide, bias.map(|_| wide_bias))?;
        let y = x2.gpu().array(OP, x2.storage(), r * width)?;
        multiply([&x2, &w2, &y], bias.map(|_| &b), (r, width, k), false)?;
        let y = Tensor::of_array(y, &[r, width])?;
        // A frozen weight needs no dweight, and so no x.
        let (storage, kept) = (x2.storage(), weight.tracked().then_some(x2));
        return record_tensor(OP, &[x, weight, bias.unwrap_or(weight)], y, move |dy, grads| {
            let dy = gradient(OP, dy)?;
            let cast = dy.cast(OP, storage)?;
            dense_gradients(grads, &cast, (&w2, width), kept.as_ref(), (r, n, k))?;
            if has_bias {
                column_sum_into(OP, grads, 2, &dy, (r, n), 0)?;
            }
            Ok(())
        });
    }
    on!(x.dtype(), T => {
        let y = forward::<T>(x.data(), weight.data(), bias.map(Tensor::data), (r, n, k));
        let (kept, w2) = (weight.tracked().then(|| x.detach()), weight.detach());
        record(OP, [x, weight, bias.unwrap_or(weight)], y, &[r, n], move |dy, grads| {
            let dy = dy.data::<T>();
            if grads.wants(0) {
                let mut dx = vec![T::ZERO; r * k];
                let (a, b) = (View::rows(dy, n), View::rows(w2.data::<T>(), k));
                gemm((r, k, n), T::ONE, a, b, T::ZERO, &mut dx, k, true);
                grads.add(0, dx)?;
            }
            if let Some(x) = &kept {
                grads.accumulate::<T>(1, |dw, fresh| {
                    let beta = if fresh { T::ZERO } else { T::ONE };
                    let (a, b) = (View::rows(dy, n).transposed(), View::rows(x.data::<T>(), k));
                    gemm((n, k, r), T::ONE, a, b, beta, dw, k, true);
                    Ok(())
                })?;
            }
            if has_bias && grads.wants(2) {
                grads.add(2, cpu::column_sums(dy, r, n))?;
            }
            Ok(())
        })
    })
}

/// dx and, with x, dweight of a dense layer on a GPU. dy has rows of `width` columns, the first N of which are the layer's; w has
/// as many rows.
fn dense_gradients(
    grads: &mut Grads,
    dy: &Array,
    (w, width): (&Array, usize),
    x: Option<&Array>,
    (r, n, k): (usize, usize, usize),
) -> Result<()> {
    grads.accumulate_array(0, |dx, fresh| {
        let (a, b, c) = (Operand::rows(dy, width), Operand::rows(w, k), Operand::rows(dx, k));
        dx.gpu().matmul(&Matmul::of((r, k, width), a, b, c).added(!fresh))
    })?;
    x.map_or(Ok(()), |x| weight_gradient(grads, 1, Operand::rows(dy, width), x, (r, n, k)))
}

/// y [R,N] = x w^T + bias, or GELU of it, on a GPU. All are stored alike.
fn multiply(
    [x, w, y]: [&Array; 3],
    bias: Option<&Array>,
    (r, n, k): (usize, usize, usize),
    gelu: bool,
) -> Result<()> {
    same_storage(OP, "weight", w, x.storage())?;
    if let Some(b) = bias {
        same_storage(OP, "bias", b, x.storage())?;
    }
    let (a, b, c) = (Operand::rows(x, k), Operand::rows(w, k).transposed(), Operand::rows(y, n));
    x.gpu().matmul(&Matmul::of((r, n, k), a, b, c).with_bias(bias).with_gelu(gelu))
}

fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, (r, n, k): (usize, usize, usize)) -> Vec<T> {
    let mut y = b.map_or_else(|| vec![T::ZERO; r * n], |b| cpu::repeat_row(b, r));
    let beta = if b.is_some() { T::ONE } else { T::ZERO };
    gemm((r, n, k), T::ONE, View::rows(x, k), View::rows(w, k).transposed(), beta, &mut y, n, true);
    y
}

/// The arguments of a dense layer: R, N and K.
fn check_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize, usize)> {
    let (r, k) = x.rows();
    let &[n, wk] = weight.shape().sizes() else {
        return Err(Error::argument("linear", "weight", "[out, in]", weight.shape()));
    };
    if wk != k {
        return Err(Error::argument(
            "linear",
            "weight",
            format!("[{n}, {k}] for x {}", x.shape()),
            weight.shape(),
        ));
    }
    if let Some(b) = bias {
        check_shape("linear", "bias", b, &[n])?;
        check_dtype("linear", x, &[("bias", b)])?;
    }
    check_dtype("linear", x, &[("weight", weight)])?;
    Ok((r, n, k))
}

/// A dense layer's dweight [N,K] = dy^T x, on a GPU, into the gradient of input i.
fn weight_gradient(
    grads: &mut Grads,
    i: usize,
    dy: Operand,
    x: &Array,
    (r, n, k): (usize, usize, usize),
) -> Result<()> {
    grads.accumulate_array(i, |dw, fresh| {
        if r == 0 && fresh {
            return dw.zero();
        }
        let (a, b, c) = (dy.transposed(), Operand::rows(x, k), Operand::rows(dw, k));
        x.gpu().matmul(&Matmul::of((n, k, r), a, b, c).added(!fresh))
    })
}
