//! Attention over segments of packed rows.     q [Rq, >=H*D]   k, v [Rk, >=G*D] (columns from an offset)   y [Rq, H*D]
//!   A segment lets the query rows `q` see all key rows of `a`, and of `b` all or, if causal, row i of q the rows b[0..=i].
//!   Query head h reads key head h / (H/G); G = H where nothing is said. Per head:  S = scale q k^T,   P = softmax(S),   y = (P m) v,   m the dropout factors; rows of no segment give zeros.
//!   With delta = sum_D(dy y):   dP = (dy v^T) m;   dS = P (dP - delta);   dq = scale dS k;   dk = scale dS^T q;   dv = (P m)^T dy
//!   Saved: log sum e^S per row and head; P is computed again backward. Dropout's element number is
//!   ((query row * H + head) * 2^16 + key position in the segment, a before b).
//! dk and dv of rows that several segments see are added in the order of the segments, and within one in that of the query
//! heads, by one task: no atomics.

mod gpu;

use super::check::{check_dropout, check_dtype};
use super::gpu::{arrays, gradient};
use super::segments::{MAX_KEYS, Segments};
use crate::device::attention::Segment;
use crate::device::cpu::{self, Shared};
use crate::device::gemm::{View, gemm};
use crate::tensor::{Dropout, Grads, Real, Tensor, record_tensor};
use crate::{Error, Result, on};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

const OP: &str = "attention";
/// H heads of D columns each, from column `column` of a tensor.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// Where the heads lie side by side.
    pub tensor: &'a Tensor,
    /// The first column of the first head.
    pub column: usize,
}

/// What the loops need of one operand.
#[derive(Clone, Copy)]
struct Operand<'a, T> {
    data: &'a [T],
    width: usize,
    column: usize,
}

impl<'a, T: Real> Operand<'a, T> {
    /// Rows from `row` on, the columns of one head.
    fn view(&self, row: usize, head: usize, d: usize) -> View<'a, T> {
        let at = (row * self.width + self.column + head * d).min(self.data.len());
        View::rows(&self.data[at..], self.width)
    }
}

/// H query heads of D columns that read G key heads, H / G each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// H.
    pub heads: usize,
    /// G, a divisor of H.
    pub key_heads: usize,
    /// D.
    pub size: usize,
}

#[derive(Clone)]
struct Call {
    segments: Arc<Segments>,
    heads: usize,
    key_heads: usize,
    d: usize,
    scale: f64,
    drop: Option<Dropout>,
    columns: [usize; 3],
}

impl Call {
    /// Query heads of a key head.
    fn group(&self) -> usize {
        self.heads / self.key_heads.max(1)
    }
}

/// Scratch of one task.
#[derive(Default)]
struct Scratch<T> {
    scores: Vec<T>,
    more: Vec<T>,
    out: Vec<T>,
}

fn sized<T: Real>(v: &mut Vec<T>, len: usize) -> &mut [T] {
    if v.len() < len {
        v.resize(len, T::ZERO);
    }
    &mut v[..len]
}

/// Attention over segments of packed rows: q `[Rq, >= H*D]`, k, v `[Rk, >= H*D]`, each from a column on; y `[Rq, H*D]`.
///
/// A segment lets its query rows see its key rows (see [`super::Segment`]). Per head: S = scale q k^T, P = softmax(S),
/// y = (P m) v, m the dropout's factors; rows of no segment give zeros. With delta = sum_D(dy y):
/// dP = (dy v^T) m, dS = P (dP - delta), dq = scale dS k, dk = scale dS^T q, dv = (P m)^T dy.
/// On a GPU, q, k and v are stored alike, a head has at most 160 columns, softmax and sums are in f32. Deterministic: rows that
/// several segments see have one owner. Errors name the argument that does not fit.
///
/// Source: `torch.nn.functional.scaled_dot_product_attention`; Dao et al., FlashAttention (2022).
pub fn attention(
    [q, k, v]: [Heads; 3],
    segments: &Arc<Segments>,
    heads: usize,
    scale: f64,
    drop: Option<Dropout>,
) -> Result<Tensor> {
    let room = |h: Heads| h.tensor.rows().1.checked_sub(h.column);
    // The head size follows from the narrowest operand: the others may be wider (several matrices side by side).
    let width = [q, k, v].into_iter().filter_map(room).min().unwrap_or(0);
    if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        return Err(Error::argument(OP, "heads", format!("a divisor of {width} columns"), heads));
    }
    let grouped = Grouped { heads, key_heads: heads, size: width / heads };
    grouped_attention([q, k, v], segments, grouped, scale, drop)
}

/// [`attention`] where several query heads read one key head: q `[Rq, >= H*D]`, k, v `[Rk, >= G*D]`, y `[Rq, H*D]`.
///
/// Query head h reads key head h / (H/G); dk and dv of a key head are sums over its query heads.
///
/// Source: Ainslie et al., GQA (2023).
pub fn grouped_attention(
    [q, k, v]: [Heads; 3],
    segments: &Arc<Segments>,
    Grouped { heads, key_heads, size: d }: Grouped,
    scale: f64,
    drop: Option<Dropout>,
) -> Result<Tensor> {
    if heads == 0 || key_heads == 0 || d == 0 || !heads.is_multiple_of(key_heads) {
        let got = format!("{heads} heads, {key_heads} key heads of {d} columns");
        return Err(Error::argument(OP, "heads", "heads of at least one column, key heads a divisor", got));
    }
    check([q, k, v], segments, [heads * d, key_heads * d], scale, drop)?;
    let columns = [q.column, k.column, v.column];
    let call = Call { segments: segments.clone(), heads, key_heads, d, scale, drop, columns };
    if let Some(arrays) = arrays(OP, [q.tensor, k.tensor, v.tensor])? {
        let widths = [q, k, v].map(|h| h.tensor.rows().1);
        let (y, kept) = call.forward_on_gpu(arrays, widths)?;
        let y = Tensor::of_array(y, &[segments.q_rows, heads * d])?;
        return record_tensor(OP, &[q.tensor, k.tensor, v.tensor], y, move |dy, grads| {
            call.backward_on_gpu(&kept, &gradient(OP, dy)?, grads)
        });
    }
    on!(q.tensor.dtype(), T => {
        let kept = [q.tensor.detach(), k.tensor.detach(), v.tensor.detach()];
        let (y, norms) = forward::<T>(&call, &kept);
        let y = Tensor::new(y, &[segments.q_rows, heads * d])?;
        let out = y.clone();
        record_tensor(OP, &[q.tensor, k.tensor, v.tensor], y, move |dy, grads| {
            backward::<T>(&call, &kept, &out, &norms, dy, grads)
        })
    })
}

fn check(
    qkv: [Heads; 3],
    segments: &Segments,
    [width, key_width]: [usize; 2],
    scale: f64,
    drop: Option<Dropout>,
) -> Result<()> {
    let [q, k, v] = qkv;
    let (queries, keys) = (segments.q_rows, segments.k_rows);
    for (name, h, rows, width) in
        [("q", q, queries, width), ("k", k, keys, key_width), ("v", v, keys, key_width)]
    {
        if h.tensor.rows().1 < h.column + width || h.tensor.rows().0 != rows {
            let want = format!("[{rows}, at least {}]", h.column + width);
            return Err(Error::argument(OP, name, want, h.tensor.shape()));
        }
        check_dtype(OP, q.tensor, &[(name, h.tensor)])?;
    }
    if !scale.is_finite() {
        return Err(Error::argument(OP, "scale", "a finite number", scale));
    }
    if let Some(drop) = drop {
        check_dropout(OP, drop)?;
    }
    Ok(())
}

fn operands<'a, T: Real>(call: &Call, kept: &'a [Tensor; 3]) -> [Operand<'a, T>; 3] {
    let mut columns = call.columns.into_iter();
    kept.each_ref().map(|t| Operand {
        data: t.data::<T>(),
        width: t.rows().1,
        column: columns.next().unwrap_or(0),
    })
}

fn forward<T: Real>(call: &Call, kept: &[Tensor; 3]) -> (Vec<T>, Vec<T>) {
    let (h, d) = (call.heads, call.d);
    let [q, k, v] = operands::<T>(call, kept);
    let mut y = vec![T::ZERO; call.segments.q_rows * h * d];
    let mut norms = vec![T::ZERO; call.segments.q_rows * h];
    let (ys, ns) = (Shared::new(&mut y), Shared::new(&mut norms));
    let tasks = call.segments.list.len() * h;
    (0..tasks).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let (s, head) = (&call.segments.list[task / h], task % h);
        let (n, keys) = (s.q.len(), s.keys());
        if n == 0 {
            return;
        }
        let p = sized(&mut scratch.scores, n * keys);
        scores(call, s, head, q, k, p);
        cpu::simd(
            #[inline(always)]
            || {
                for (i, row) in p.chunks_exact_mut(keys.max(1)).enumerate() {
                    let norm = softmax(row, s.visible(i));
                    // SAFETY: a query row is in one segment only, so this (row, head) is this task's alone.
                    unsafe { ns.piece((s.q.start + i) * h + head, 1)[0] = norm };
                    drop_row(call, s.q.start + i, head, row);
                }
            },
        );
        let out = sized(&mut scratch.out, n * d);
        out.fill(T::ZERO);
        for (at, rows) in s.parts() {
            let (p, v) =
                (View { data: &p[at..], row: keys, column: 1 }, v.view(rows.start, head / call.group(), d));
            gemm((n, d, rows.len()), T::ONE, p, v, T::ONE, out, d, false);
        }
        for (i, from) in out.chunks_exact(d).enumerate() {
            // SAFETY: as above.
            unsafe { ys.piece((s.q.start + i) * h * d + head * d, d).copy_from_slice(from) };
        }
    });
    (y, norms)
}

/// p [n, keys] = scale q k^T
fn scores<T: Real>(call: &Call, s: &Segment, head: usize, q: Operand<T>, k: Operand<T>, p: &mut [T]) {
    let (n, d, keys) = (s.q.len(), call.d, s.keys());
    if n == 0 {
        return;
    }
    for (at, rows) in s.parts() {
        let keys_of = k.view(rows.start, head / call.group(), d);
        let (a, b) = (q.view(s.q.start, head, d), keys_of.transposed());
        gemm((n, rows.len(), d), T::of(call.scale), a, b, T::ZERO, &mut p[at..], keys, false);
    }
}

/// Softmax of the first `visible` entries, zeros behind them; returns log sum e^x.
#[inline(always)]
fn softmax<T: Real>(row: &mut [T], visible: usize) -> T {
    let (seen, hidden) = row.split_at_mut(visible);
    hidden.fill(T::ZERO);
    if seen.is_empty() {
        return T::ZERO;
    }
    let top = cpu::max(seen);
    for x in seen.iter_mut() {
        *x = (*x - top).exp();
    }
    let total = cpu::sum(seen.len(), |j| seen[j]);
    let share = T::ONE / total;
    for x in seen.iter_mut() {
        *x *= share;
    }
    top + total.ln()
}

#[inline(always)]
fn drop_row<T: Real>(call: &Call, q_row: usize, head: usize, row: &mut [T]) {
    if let Some(drop) = call.drop {
        drop.apply(first_element(call, q_row, head), row);
    }
}

#[inline(always)]
fn first_element(call: &Call, q_row: usize, head: usize) -> u64 {
    (q_row * call.heads + head) as u64 * MAX_KEYS as u64
}

fn backward<T: Real>(
    call: &Call,
    kept: &[Tensor; 3],
    y: &Tensor,
    norms: &[T],
    dy: &Tensor,
    grads: &mut Grads,
) -> Result<()> {
    let ops = operands::<T>(call, kept);
    let mut out = kept.each_ref().map(|t| vec![T::ZERO; t.len()]);
    let targets = {
        let [a, b, c] = &mut out;
        [Shared::new(a), Shared::new(b), Shared::new(c)]
    };
    let (groups, h) = (&call.segments.groups, call.key_heads);
    let of_y = [y.data::<T>(), dy.data::<T>()];
    (0..groups.len() * h).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        for i in &groups[task / h] {
            let s = &call.segments.list[*i];
            let first = task % h * call.group();
            for head in first..first + call.group() {
                segment_backward(call, s, head, ops, of_y, norms, &targets, scratch);
            }
        }
    });
    for (i, g) in out.into_iter().enumerate() {
        if grads.wants(i) {
            grads.add(i, g)?;
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn segment_backward<T: Real>(
    call: &Call,
    s: &Segment,
    head: usize,
    [q, k, v]: [Operand<T>; 3],
    [y, dy]: [&[T]; 2],
    norms: &[T],
    [dq, dk, dv]: &[Shared<T>; 3],
    scratch: &mut Scratch<T>,
) {
    let (h, d, n, keys) = (call.heads, call.d, s.q.len(), s.keys());
    let key_head = head / call.group();
    if n == 0 || keys == 0 {
        return;
    }
    let (y, dy) = [y, dy].map(|data| Operand { data, width: h * d, column: 0 }).into();
    let p = sized(&mut scratch.scores, n * keys);
    let ds = sized(&mut scratch.more, n * keys);
    scores(call, s, head, q, k, p);
    // dP (before dropout's factors) = dy v^T
    for (at, rows) in s.parts() {
        let v = v.view(rows.start, key_head, d).transposed();
        gemm((n, rows.len(), d), T::ONE, dy.view(s.q.start, head, d), v, T::ZERO, &mut ds[at..], keys, false);
    }
    cpu::simd(
        #[inline(always)]
        || {
            let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
            for (i, (p, ds)) in rows.enumerate() {
                let (seen, row) = (s.visible(i), s.q.start + i);
                let (y, dy) = (&y.view(row, head, d).data[..d], &dy.view(row, head, d).data[..d]);
                let delta = cpu::sum(d, |j| y[j] * dy[j]);
                score_gradient(call, (row, head), (p, ds), seen, norms[row * h + head], delta);
            }
        },
    );
    let scale = T::of(call.scale);
    let out = sized(&mut scratch.out, n.max(keys) * d);
    // dq = scale dS k, written once: a query row is in one segment only
    let (mut beta, whole) = (T::ZERO, View::rows(ds, keys));
    for (at, rows) in s.parts() {
        let a = View { data: &whole.data[at..], ..whole };
        gemm((n, d, rows.len()), scale, a, k.view(rows.start, key_head, d), beta, out, d, false);
        beta = T::ONE;
    }
    add_rows(dq, q, s.q.clone(), head, d, &out[..n * d]);
    // dk = scale dS^T q, dv = (P m)^T dy
    for (at, rows) in s.parts() {
        let m = rows.len();
        for (by, x, from, to, like) in [(scale, &*ds, q, dk, k), (T::ONE, &*p, dy, dv, v)] {
            let a = View { data: &x[at..], row: keys, column: 1 }.transposed();
            gemm((m, d, n), by, a, from.view(s.q.start, head, d), T::ZERO, out, d, false);
            add_rows(to, like, rows.clone(), key_head, d, &out[..m * d]);
        }
    }
}

/// In: p = scores, ds = dy v^T. Out: p = P m, ds = P (dP - delta).
#[inline(always)]
fn score_gradient<T: Real>(
    call: &Call,
    (row, head): (usize, usize),
    (p, ds): (&mut [T], &mut [T]),
    seen: usize,
    norm: T,
    delta: T,
) {
    let (p, p_hidden) = p.split_at_mut(seen);
    let (ds, ds_hidden) = ds.split_at_mut(seen);
    p_hidden.fill(T::ZERO);
    ds_hidden.fill(T::ZERO);
    let Some(drop) = call.drop else {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = (*p - norm).exp();
            *ds = *p * (*ds - delta);
        }
        return;
    };
    let mut first = first_element(call, row, head);
    let mut factors = [T::ZERO; 256];
    for (p, ds) in p.chunks_mut(256).zip(ds.chunks_mut(256)) {
        let f = &mut factors[..p.len()];
        drop.factors(first, f);
        first += p.len() as u64;
        for ((p, ds), m) in p.iter_mut().zip(ds).zip(f) {
            let prob = (*p - norm).exp();
            *p = prob * *m;
            *ds = prob * (*ds * *m - delta);
        }
    }
}

/// Adds [rows, D] to the head's columns of `rows` of a gradient that is laid out like `like`.
fn add_rows<T: Real>(
    to: &Shared<T>,
    like: Operand<T>,
    rows: Range<usize>,
    head: usize,
    d: usize,
    from: &[T],
) {
    for (row, from) in rows.zip(from.chunks_exact(d)) {
        // SAFETY: a (row, head) of a gradient belongs to one group of segments, and a group's key head to one task.
        let to = unsafe { to.piece(row * like.width + like.column + head * d, d) };
        for (t, f) in to.iter_mut().zip(from) {
            *t += *f;
        }
    }
}
