//! The tape: what was computed, in order, each entry with the closure that sends its gradient back.
//!
//! There are two ways to make a tensor out of an op's result: [`record`], which asks for the backward closure, and
//! [`constant`], which is an error if an input is tracked. So no gradient stops silently. Closures run last to first,
//! once each, and are dropped as they run, which frees the activations they keep. The tape alone adds gradients up.

use super::{Array, Buffer, DType, Gpu, Real, Shape, Storage, Tensor};
use crate::{Error, Result, on};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};

type Backward = Box<dyn FnOnce(&Tensor, &mut Grads) -> Result<()> + Send>;

struct Entry {
    op: &'static str,
    out: usize,
    inputs: Vec<Option<usize>>,
    backward: Backward,
}

#[derive(Clone, Copy)]
struct Value {
    dtype: DType,
    shape: Shape,
    leaf: Option<usize>,
    /// How its gradient is stored on a GPU: as the value is, but in f32 for a leaf. None on the CPU.
    storage: Option<Storage>,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    values: Vec<Value>,
}

/// A place on a tape.
#[derive(Clone)]
pub(super) struct Node {
    id: usize,
    tape: Tape,
}

/// What was computed, for [`Tape::backward`]. Clones are one tape.
#[derive(Clone, Default)]
pub struct Tape(Arc<Mutex<Inner>>);

impl Tape {
    /// An empty one.
    pub fn new() -> Tape {
        Tape::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn push_value(&self, t: &Tensor, leaf: Option<usize>) -> Node {
        let mut inner = self.lock();
        let storage = t.buffer.array().map(|a| if leaf.is_some() { Storage::F32 } else { a.storage() });
        inner.values.push(Value { dtype: t.dtype(), shape: t.shape, leaf, storage });
        Node { id: inner.values.len() - 1, tape: self.clone() }
    }

    /// Tracks a tensor as a leaf: its gradient will be found under `key`.
    pub fn leaf(&self, t: &Tensor, key: usize) -> Tensor {
        Tensor { node: Some(self.push_value(t, Some(key))), ..t.clone() }
    }

    /// How many operations are recorded.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs the tape backwards from `loss` (one element), whose gradient is `seed`; leaf gradients are added to `into`.
    pub fn backward(&self, loss: &Tensor, seed: f64, into: &mut Gradients) -> Result<()> {
        if loss.len() != 1 {
            return Err(Error::argument("backward", "loss", "one element", loss.shape()));
        }
        let first = Tensor::of(loss.dtype(), &[seed], loss.shape().sizes())?.like(loss)?;
        self.backward_from(&[(loss, first)], into)
    }

    /// Runs the tape backwards from several tensors at once, each with its own gradient.
    pub fn backward_from(&self, seeds: &[(&Tensor, Tensor)], into: &mut Gradients) -> Result<()> {
        let mut inner = std::mem::take(&mut *self.lock());
        let mut slots: Vec<Option<Buffer>> = inner.values.iter().map(|_| None).collect();
        for (t, seed) in seeds {
            let Some(node) = &t.node else {
                return Err(Error::argument("backward", "loss", "a tensor of this tape", "a constant")
                    .fix("compute it from tracked parameters"));
            };
            if !Arc::ptr_eq(&node.tape.0, &self.0) {
                return Err(Error::argument(
                    "backward",
                    "loss",
                    "a tensor of this tape",
                    "one of another tape",
                ));
            }
            if seed.shape() != t.shape() || seed.dtype() != t.dtype() {
                let of = |t: &Tensor| format!("{} {}", t.dtype(), t.shape());
                return Err(Error::argument("backward", "gradient", of(t), of(seed)));
            }
            let gpu = seed.buffer.array().map(|a| a.gpu().clone());
            let inputs = &[Some(node.id)];
            let mut grads = Grads { slots: &mut slots, values: &inner.values, inputs, leaves: into, gpu };
            match seed.array() {
                Some(seed) => grads.add_array(0, seed.duplicate("backward")?)?,
                None => on!(seed.dtype(), T => grads.add(0, seed.data::<T>().to_vec()))?,
            }
        }
        while let Some(entry) = inner.entries.pop() {
            let Some(dy) = slots.get_mut(entry.out).and_then(Option::take) else { continue };
            let dy = Tensor::from_buffer(dy, inner.values[entry.out].shape);
            let gpu = dy.buffer.array().map(|a| a.gpu().clone());
            let inputs = &entry.inputs;
            let mut grads = Grads { slots: &mut slots, values: &inner.values, inputs, leaves: into, gpu };
            (entry.backward)(&dy, &mut grads)
                .map_err(|e| e.also(format!("in the backward of {}", entry.op)))?;
        }
        Ok(())
    }
}

/// Gradients of the leaves, by key. Kept between calls, they add up (gradient accumulation).
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    by_key: Vec<Option<Buffer>>,
}

impl Gradients {
    /// None yet.
    pub fn new() -> Gradients {
        Gradients::default()
    }

    /// The gradient of a leaf, if one came.
    pub fn get(&self, key: usize) -> Option<&Buffer> {
        self.by_key.get(key)?.as_ref()
    }

    /// The gradient of a leaf, to be changed.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut Buffer> {
        self.by_key.get_mut(key)?.as_mut()
    }

    /// Adds a gradient to a key's.
    pub fn add(&mut self, key: usize, grad: Buffer) -> Result<()> {
        let slot = self.slot(key);
        match slot {
            Some(Buffer::Gpu(have)) if grad.array().is_some_and(|g| g.len() == have.len()) => {
                grad.array().map_or(Ok(()), |g| own(have)?.add(g))?;
            }
            Some(have)
                if have.len() == grad.len()
                    && have.array().is_none()
                    && grad.array().is_none()
                    && have.dtype() == grad.dtype() =>
            {
                on!(grad.dtype(), T => add_into(have.slice_mut::<T>(), grad.slice::<T>()));
            }
            Some(have) => {
                let of = |b: &Buffer| format!("{} x {}", b.dtype(), b.len());
                return Err(Error::argument("gradients", "gradient", of(have), of(&grad)));
            }
            None => *slot = Some(grad),
        }
        Ok(())
    }

    /// Adds all gradients of another; those of keys that have none move over.
    pub fn absorb(&mut self, other: Gradients) -> Result<()> {
        let all = other.by_key.into_iter().enumerate();
        all.filter_map(|(key, grad)| Some((key, grad?))).try_for_each(|(key, grad)| self.add(key, grad))
    }

    /// Forgets the values; the next backward starts from nothing.
    pub fn clear(&mut self) {
        self.by_key.clear();
    }

    /// Keys that have a gradient, ascending.
    pub fn keys(&self) -> impl Iterator<Item = usize> + '_ {
        self.by_key.iter().enumerate().filter_map(|(k, b)| b.as_ref().map(|_| k))
    }

    fn slot(&mut self, key: usize) -> &mut Option<Buffer> {
        if self.by_key.len() <= key {
            self.by_key.resize(key + 1, None);
        }
        &mut self.by_key[key]
    }
}

/// Where a backward closure puts the gradients of its op's inputs (numbered as given to [`record`]).
pub struct Grads<'a> {
    slots: &'a mut [Option<Buffer>],
    values: &'a [Value],
    inputs: &'a [Option<usize>],
    leaves: &'a mut Gradients,
    /// Where the gradient that comes in is, if on a GPU.
    gpu: Option<Gpu>,
}

impl Grads<'_> {
    /// Whether input i is tracked: if not, its gradient need not be computed.
    pub fn wants(&self, i: usize) -> bool {
        self.inputs.get(i).copied().flatten().is_some()
    }

    fn slot(&mut self, i: usize) -> Option<(&mut Option<Buffer>, Value)> {
        let id = self.inputs.get(i).copied().flatten()?;
        let value = self.values[id];
        let slot = match value.leaf {
            Some(key) => self.leaves.slot(key),
            None => &mut self.slots[id],
        };
        Some((slot, value))
    }

    /// Adds a whole gradient to input i's.
    pub fn add<T: Real>(&mut self, i: usize, grad: Vec<T>) -> Result<()> {
        let Some((slot, value)) = self.slot(i) else { return Ok(()) };
        check(value, grad.len(), T::DTYPE)?;
        match slot {
            Some(have) => add_into(have.slice_mut::<T>(), &grad),
            None => *slot = Some(Buffer::of(grad)),
        }
        Ok(())
    }

    /// Adds a whole gradient on a GPU, which is nobody else's, to input i's.
    pub fn add_array(&mut self, i: usize, grad: Array) -> Result<()> {
        let Some((slot, value)) = self.slot(i) else { return Ok(()) };
        let storage = check_array(value, grad.len())?;
        match slot {
            Some(Buffer::Gpu(have)) => own(have)?.add(&grad),
            slot => {
                *slot = Some(Buffer::Gpu(grad.cast("gradients", storage)?));
                Ok(())
            }
        }
    }

    /// Adds a gradient on a GPU to a part of input i's, beginning at element `at`.
    pub fn add_array_at(&mut self, i: usize, at: usize, grad: &Array) -> Result<()> {
        self.accumulate_array(i, |all, fresh| {
            let to = all.part(at..at + grad.len())?;
            if !fresh {
                return to.add(grad);
            }
            all.part(0..at)?.zero()?;
            all.part(at + grad.len()..all.len())?.zero()?;
            grad.cast_into(&to)
        })
    }

    /// Hands out input i's gradient on a GPU for adding in place; if it is `fresh`, nothing is there yet and all of it must
    /// be written. Stored as input i is, or in f32 if that is a leaf.
    pub fn accumulate_array(&mut self, i: usize, add: impl FnOnce(&Array, bool) -> Result<()>) -> Result<()> {
        let Some((slot, value)) = self.slot(i) else { return Ok(()) };
        let storage = check_array(value, value.shape.len())?;
        if let Some(Buffer::Gpu(have)) = slot {
            return add(own(have)?, false);
        }
        let Some(gpu) = self.gpu.clone() else {
            return Err(Error::argument("backward", "gradient", "one on a GPU", "one on the CPU"));
        };
        let fresh = gpu.array("gradients", storage, value.shape.len())?;
        add(&fresh, true)?;
        if let Some((slot, _)) = self.slot(i) {
            *slot = Some(Buffer::Gpu(fresh));
        }
        Ok(())
    }

    /// The gradients of these inputs on a GPU as one, for adding in place: where there are all of them, one after the other in
    /// memory that nobody else sees.
    pub fn joined(&mut self, inputs: &[usize]) -> Option<Array> {
        let mut all: Option<Array> = None;
        for i in inputs {
            let Some(Buffer::Gpu(have)) = self.slot(*i)?.0 else { return None };
            // What was joined so far sees it, too.
            if have.seen_by() != inputs.len() + usize::from(all.is_some()) {
                return None;
            }
            all = Some(all.map_or_else(|| Some(have.clone()), |all| all.joined(have))?);
        }
        all
    }

    /// How the gradient of input i is stored; None if nobody asks for it.
    pub fn storage(&self, i: usize) -> Option<Storage> {
        self.inputs.get(i).copied().flatten().and_then(|id| self.values[id].storage)
    }

    /// Adds a gradient to a part of input i's, beginning at element `at`.
    pub fn add_at<T: Real>(&mut self, i: usize, at: usize, grad: &[T]) -> Result<()> {
        self.accumulate::<T>(i, |all, _| {
            add_into(&mut all[at..at + grad.len()], grad);
            Ok(())
        })
    }

    /// Hands out input i's gradient (zeros if there was none) for adding in place; `fresh` says it is still zeros.
    pub fn accumulate<T: Real>(
        &mut self,
        i: usize,
        add: impl FnOnce(&mut [T], bool) -> Result<()>,
    ) -> Result<()> {
        let Some((slot, value)) = self.slot(i) else { return Ok(()) };
        check(value, value.shape.len(), T::DTYPE)?;
        let fresh = slot.is_none();
        let all = slot.get_or_insert_with(|| Buffer::zeros(value.dtype, value.shape.len()));
        add(all.slice_mut::<T>(), fresh)
    }
}

fn check(value: Value, len: usize, dtype: DType) -> Result<()> {
    if value.shape.len() != len || value.dtype != dtype {
        let expected = format!("{} {}", value.dtype, value.shape);
        return Err(Error::argument("backward", "gradient", expected, format!("{dtype} x {len}")));
    }
    Ok(())
}

/// Memory that nobody else sees, for writing: a gradient may have been handed to two inputs.
fn own(have: &mut Array) -> Result<&Array> {
    if !have.is_unique() {
        *have = have.duplicate("gradients")?;
    }
    Ok(have)
}

/// How a gradient of `len` elements on a GPU is to be stored.
fn check_array(value: Value, len: usize) -> Result<Storage> {
    match value.storage {
        Some(storage) if value.shape.len() == len => Ok(storage),
        Some(_) => Err(Error::argument("backward", "gradient", value.shape, format!("{len} elements"))),
        None => Err(Error::argument("backward", "gradient", "one on the CPU", "one on a GPU")),
    }
}

thread_local! {
    static WATCH: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// Runs `f` and names the first operation on this thread whose result was not finite.
pub fn watch_non_finite<R>(f: impl FnOnce() -> R) -> (R, Option<String>) {
    WATCH.set(Some(None));
    let result = f();
    (result, WATCH.take().flatten())
}

fn watch(op: &str, out: &Tensor) {
    WATCH.with_borrow_mut(|w| {
        if let Some(first @ None) = w
            && let Ok(Some(i)) = out.first_non_finite()
        {
            *first = Some(format!("{op} {} at element {i}", out.shape()));
        }
    });
}

fn add_into<T: Real>(to: &mut [T], from: &[T]) {
    crate::device::cpu::zip_mut(to, from, |a, b| *a += *b);
}

/// Makes a tensor of an op's result and records how its gradient goes back.
pub fn record<T: Real, const N: usize>(
    op: &'static str,
    inputs: [&Tensor; N],
    out: Vec<T>,
    shape: &[usize],
    backward: impl FnOnce(&Tensor, &mut Grads) -> Result<()> + Send + 'static,
) -> Result<Tensor> {
    let out = Tensor::new(out, shape)?;
    record_tensor(op, &inputs, out, backward)
}

/// [`record`] for a result that is a tensor already (its backward may keep it, too).
pub fn record_tensor(
    op: &'static str,
    inputs: &[&Tensor],
    mut out: Tensor,
    backward: impl FnOnce(&Tensor, &mut Grads) -> Result<()> + Send + 'static,
) -> Result<Tensor> {
    watch(op, &out);
    let Some(tape) = inputs.iter().find_map(|t| t.node.as_ref().map(|n| n.tape.clone())) else {
        return Ok(out);
    };
    for t in inputs {
        if t.node.as_ref().is_some_and(|n| !Arc::ptr_eq(&n.tape.0, &tape.0)) {
            return Err(Error::argument(op, "inputs", "tensors of one tape", "tensors of two tapes"));
        }
    }
    let node = tape.push_value(&out, None);
    let ids = inputs.iter().map(|t| t.node.as_ref().map(|n| n.id)).collect();
    tape.lock().entries.push(Entry { op, out: node.id, inputs: ids, backward: Box::new(backward) });
    out.node = Some(node);
    Ok(out)
}

/// Makes a tensor of a result that has no gradient; an error if an input is tracked.
pub fn constant<T: Real>(
    op: &'static str,
    inputs: &[&Tensor],
    out: Vec<T>,
    shape: &[usize],
) -> Result<Tensor> {
    constant_tensor(op, inputs, Tensor::new(out, shape)?)
}

/// [`constant`] for a result that is a tensor already.
pub fn constant_tensor(op: &'static str, inputs: &[&Tensor], out: Tensor) -> Result<Tensor> {
    if inputs.iter().any(|t| t.tracked()) {
        return Err(Error::argument(op, "inputs", "constants", "a tracked tensor")
            .fix("detach it: this operation has no gradient"));
    }
    watch(op, &out);
    Ok(out)
}
