//! Softmax cross-entropy, the mean over the counted rows.     x [R,V]   loss []
//!   logp = (x - top) - log sum_V e^(x - top), top the row's largest: never top + log sum, which rounds to an ulp of top
//!   with classes t and label smoothing s (as torch.nn.functional.cross_entropy):
//!     row = (1-s) (-logp[t]) + s mean_V(-logp);     target = (1-s) onehot(t) + s/V
//!   with soft targets:  row = -sum_V(target logp)
//!   loss = mean over rows that are not ignored (0 if all are);     dx = dloss (p sum(target) - target) / counted

mod head;

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, column_sum, gradient, int};
use crate::device::cpu;
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

pub use head::head_loss;

const OP: &str = "cross_entropy";

/// What each row should be.
pub enum Targets<'a> {
    /// A class per row, None for ignored rows, and label smoothing.
    Classes(&'a [Option<u32>], f64),
    /// A distribution per row `[R,V]`, a constant.
    Soft(&'a Tensor),
}

/// Softmax cross-entropy of logits x `[R,V]`: the mean over the rows that are counted, loss `[]`.
///
/// With a class t and label smoothing s, a row is (1-s) (-`logp[t]`) + s mean_V(-logp); with a soft target it is -sum_V(target logp).
/// dx = dloss (p sum(target) - target) / counted. Ignored rows are not counted; without any other the loss is 0.
/// Sums are in f32 on a GPU. Errors name the argument: as many classes as rows, below V, smoothing from 0 to 1.
///
/// ```
/// use qformer::ops::{Targets, cross_entropy};
/// use qformer::tensor::{Gradients, Tape, Tensor};
/// # fn main() -> qformer::Result<()> {
/// let (tape, mut gradients) = (Tape::new(), Gradients::new());
/// let x = tape.leaf(&Tensor::new(vec![0f64, 0.0], &[1, 2])?, 0);
/// let loss = cross_entropy(&x, Targets::Classes(&[Some(0)], 0.0))?;
/// assert!((loss.item()? - 2f64.ln()).abs() < 1e-12);
/// tape.backward(&loss, 1.0, &mut gradients)?;
/// let dx = gradients.get(0).map(|g| g.slice::<f64>().to_vec()).unwrap_or_default();
/// assert!((dx[0] + 0.5).abs() < 1e-12 && (dx[1] - 0.5).abs() < 1e-12); // p - 1 and p
/// # Ok(())
/// # }
/// ```
///
/// Source: `torch.nn.functional.cross_entropy`.
pub fn cross_entropy(x: &Tensor, targets: Targets) -> Result<Tensor> {
    cross_entropy_of(x, x.rows().1, targets)
}

/// [`cross_entropy`] of the first v columns of x. On a GPU there may be more, which count for nothing and whose gradient is 0:
/// those of [`super::Weight::Padded`].
pub fn cross_entropy_of(x: &Tensor, v: usize, targets: Targets) -> Result<Tensor> {
    let r = check_columns(x, v)?;
    if let Some([logits]) = arrays(OP, [x])? {
        return on_gpu(x, logits, &targets, (r, v));
    }
    on!(x.dtype(), T => {
        let (rows, smooth) = targets_of::<T>(x, &targets, r, v)?;
        let counted = rows.iter().filter(|t| !matches!(t, Row::Ignored)).count().max(1);
        let data = x.data::<T>();
        let (mut losses, mut norms) = (vec![T::ZERO; r], vec![T::ZERO; 2 * r]);
        cpu::each_row2((&mut losses, 1), (&mut norms, 2), #[inline(always)] |i, loss, kept| {
            if !matches!(rows[i], Row::Ignored) {
                let x = &data[i * v..][..v];
                let norm = Norm::of(x);
                (kept[0], kept[1]) = (norm.top, norm.log_sum);
                loss[0] = row_loss(x, norm, &rows[i], smooth);
            }
        });
        let loss = cpu::sum(r, |i| losses[i]) / T::of(counted as f64);
        let x2 = x.detach();
        record(OP, [x], vec![loss], &[], move |dy, grads| {
            let by = dy.data::<T>()[0] / T::of(counted as f64);
            let mut dx = x2.data::<T>().to_vec();
            cpu::each_row(&mut dx, v, #[inline(always)] |i, row| {
                let norm = Norm { top: norms[2 * i], log_sum: norms[2 * i + 1] };
                row_gradient(row, norm, &rows[i], smooth, by);
            });
            grads.add(0, dx)
        })
    })
}

/// In how many of the rows the first largest entry is the class; on a GPU counted when it is asked for.
pub struct Right {
    rows: usize,
    found: Found,
}

enum Found {
    Counted(usize),
    OnGpu(Array),
}

impl Right {
    /// The share of rows whose largest logit is the right one.
    pub fn share(&self) -> Result<f64> {
        match self.flags() {
            Some(flags) => Ok(self.share_of(&flags.read_f32()?)),
            None => Ok(self.share_of(&[])),
        }
    }

    /// On a GPU, of every row whether it is one, to be read with other numbers.
    pub fn flags(&self) -> Option<&Array> {
        if let Found::OnGpu(rows) = &self.found { Some(rows) } else { None }
    }

    /// Their share, by what was read of the flags.
    pub fn share_of(&self, flags: &[f32]) -> f64 {
        let n = match &self.found {
            Found::Counted(n) => *n,
            Found::OnGpu(_) => flags.iter().filter(|right| **right != 0.0).count(),
        };
        n as f64 / self.rows.max(1) as f64
    }
}

/// In how many rows of x `[R,V]` the first largest entry is the class; rows without a class count as wrong. No gradient.
pub fn right(x: &Tensor, classes: &[Option<u32>]) -> Result<Right> {
    right_of(x, x.rows().1, classes)
}

/// [`right`] among the first v columns.
pub fn right_of(x: &Tensor, v: usize, classes: &[Option<u32>]) -> Result<Right> {
    let r = check_columns(x, v)?;
    if let Some([logits]) = arrays(OP, [x])? {
        check_classes(classes, 0.0, r, v)?;
        let kernel = OnGpu::new(&logits, &Targets::Classes(classes, 0.0), (r, v))?;
        let found = logits.gpu().array(OP, Storage::I32, r)?;
        kernel.launch(&logits, Some(&found), None)?;
        return Ok(Right { rows: r, found: Found::OnGpu(found) });
    }
    let found = Found::Counted(on!(x.dtype(), T => {
        let largest = |row: &[T]| (0..v).fold(0, |best, j| if row[j] > row[best] { j } else { best });
        let rows = x.data::<T>().chunks(v.max(1)).zip(classes);
        rows.filter(|(row, t)| t.is_some_and(|t| largest(row) == t as usize)).count()
    }));
    Ok(Right { rows: r, found })
}

/// What the kernel is given beside the logits.
struct OnGpu {
    classes: Option<Array>,
    soft: Option<Array>,
    losses: Array,
    smooth: f32,
    counted: usize,
    sizes: (usize, usize),
}

impl OnGpu {
    fn new(x: &Array, targets: &Targets, (r, v): (usize, usize)) -> Result<OnGpu> {
        let gpu = x.gpu();
        let losses = gpu.array(OP, Storage::F32, r)?;
        let kernel = OnGpu { classes: None, soft: None, losses, smooth: 0.0, counted: r, sizes: (r, v) };
        match targets {
            Targets::Classes(classes, smooth) => {
                let table: Vec<i32> = classes.iter().map(|c| c.map_or(-1, |c| int(c as usize))).collect();
                let (smooth, counted) = (*smooth as f32, classes.iter().flatten().count());
                Ok(OnGpu { classes: Some(gpu.upload(OP, Storage::I32, &table)?), smooth, counted, ..kernel })
            }
            Targets::Soft(t) => {
                let t = match t.array() {
                    Some(t) => t.cast(OP, Storage::F32)?,
                    None => gpu.upload(OP, Storage::F32, &t.to_f32()?)?,
                };
                Ok(OnGpu { soft: Some(t), ..kernel })
            }
        }
    }

    /// With an upstream gradient, x becomes its gradient.
    fn launch(&self, x: &Array, right: Option<&Array>, upstream: Option<&Array>) -> Result<()> {
        let (r, v) = self.sizes;
        let by = 1.0 / self.counted.max(1) as f32;
        let (classes, soft) = (self.classes.as_ref(), self.soft.as_ref());
        let gradient = i32::from(upstream.is_some());
        let args = crate::args![
            x,
            classes,
            soft,
            &self.losses,
            right,
            int(v),
            int(x.len().checked_div(r).unwrap_or(v)),
            self.smooth,
            by,
            upstream,
            gradient
        ];
        let threads = u32::try_from(v.next_multiple_of(32).clamp(32, 512)).unwrap_or(512);
        let kernel = format!("cross_entropy_{}", x.storage().name());
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { x.gpu().launch(&kernel, (r, 1), (threads, 1), 0, args) }
    }
}

fn on_gpu(x: &Tensor, logits: Array, targets: &Targets, (r, v): (usize, usize)) -> Result<Tensor> {
    check_targets(x, targets, r, v)?;
    let kernel = OnGpu::new(&logits, targets, (r, v))?;
    kernel.launch(&logits, None, None)?;
    let (gpu, by) = (logits.gpu().clone(), 1.0 / kernel.counted.max(1) as f32);
    let sum = if r == 0 { gpu.zeros(OP, Storage::F32, 1)? } else { column_sum(OP, &kernel.losses, r, 1)? };
    let loss = gpu.array(OP, Storage::F32, 1)?;
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch_each("scale_fwd_f32", 1, crate::args![&sum, &loss, 1u64, by]) }?;
    record_tensor(OP, &[x], Tensor::of_array(loss, &[])?, move |dy, grads| {
        let dy = gradient(OP, dy)?;
        // In place if nobody else looks at the logits any more.
        let dx = if logits.is_unique() { logits } else { logits.duplicate(OP)? };
        kernel.launch(&dx, None, Some(&dy))?;
        grads.add_array(0, dx)
    })
}

enum Row<T> {
    Ignored,
    Class(usize),
    Soft(Vec<T>),
}

fn targets_of<T: Real>(x: &Tensor, targets: &Targets, r: usize, v: usize) -> Result<(Vec<Row<T>>, T)> {
    check_targets(x, targets, r, v)?;
    match targets {
        Targets::Classes(classes, smooth) => {
            let row = |t: &Option<u32>| t.map_or(Row::Ignored, |t| Row::Class(t as usize));
            Ok((classes.iter().map(row).collect(), T::of(*smooth)))
        }
        Targets::Soft(t) => {
            let rows = t.data::<T>().chunks(v.max(1)).map(|t| Row::Soft(t.to_vec())).collect();
            Ok((rows, T::ZERO))
        }
    }
}

/// Rows of x, which has v columns; more only on a GPU.
fn check_columns(x: &Tensor, v: usize) -> Result<usize> {
    let (r, columns) = x.rows();
    if columns == v || (columns > v && x.array().is_some()) {
        return Ok(r);
    }
    Err(Error::argument(OP, "logits", format!("{v} columns"), columns))
}

fn check_classes(classes: &[Option<u32>], smooth: f64, r: usize, v: usize) -> Result<()> {
    if classes.len() != r {
        return Err(Error::argument(OP, "classes", format!("{r} of them"), classes.len()));
    }
    if !(0.0..=1.0).contains(&smooth) {
        return Err(Error::argument(OP, "label smoothing", "0 to 1", smooth));
    }
    match classes.iter().flatten().find(|t| **t as usize >= v) {
        Some(bad) => Err(Error::argument(OP, "classes", format!("below {v}"), bad)),
        None => Ok(()),
    }
}

fn check_targets(x: &Tensor, targets: &Targets, r: usize, v: usize) -> Result<()> {
    match targets {
        Targets::Classes(classes, smooth) => check_classes(classes, *smooth, r, v),
        Targets::Soft(t) => {
            check_shape(OP, "soft targets", t, x.shape().sizes())?;
            check_dtype(OP, x, &[("soft targets", t)])?;
            if t.tracked() {
                return Err(
                    Error::argument(OP, "soft targets", "a constant", "a tracked tensor").fix("detach it")
                );
            }
            Ok(())
        }
    }
}

/// A row's largest entry and log(sum(e^(x - top))); NaN and +inf propagate.
#[derive(Clone, Copy)]
struct Norm<T> {
    top: T,
    log_sum: T,
}

impl<T: Real> Norm<T> {
    #[inline(always)]
    fn of(x: &[T]) -> Norm<T> {
        let top = cpu::max(x);
        Norm { top, log_sum: cpu::sum(x.len(), |j| (x[j] - top).exp()).ln() }
    }

    #[inline(always)]
    fn log_p(self, x: T) -> T {
        (x - self.top) - self.log_sum
    }
}

#[inline(always)]
fn row_loss<T: Real>(x: &[T], norm: Norm<T>, row: &Row<T>, smooth: T) -> T {
    match row {
        Row::Ignored => T::ZERO,
        Row::Class(t) => {
            let mut loss = (T::ONE - smooth) * -norm.log_p(x[*t]);
            if smooth > T::ZERO {
                let share = T::of(1.0 / x.len() as f64);
                loss -= smooth * cpu::sum(x.len(), |j| norm.log_p(x[j])) * share;
            }
            loss
        }
        Row::Soft(t) => -cpu::sum(x.len(), |j| t[j] * norm.log_p(x[j])),
    }
}

/// x becomes its gradient.
#[inline(always)]
fn row_gradient<T: Real>(x: &mut [T], norm: Norm<T>, row: &Row<T>, smooth: T, by: T) {
    match row {
        Row::Ignored => x.fill(T::ZERO),
        Row::Class(t) => {
            let even = smooth * T::of(1.0 / x.len() as f64);
            for x in x.iter_mut() {
                *x = by * (norm.log_p(*x).exp() - even);
            }
            x[*t] -= by * (T::ONE - smooth);
        }
        Row::Soft(t) => {
            let total = cpu::sum(t.len(), |j| t[j]);
            for (x, t) in x.iter_mut().zip(t) {
                *x = by * (norm.log_p(*x).exp() * total - *t);
            }
        }
    }
}
