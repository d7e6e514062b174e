//! What moves between the processes of a world (see [`super::world`]), each of which holds A micro-batches of B samples: features and
//! captions go to all; of image tokens only those that another process has drawn, each once; gradients are summed micro-batch by
//! micro-batch, in order, so that W processes have the sum of one. Alone, nothing is copied.

use crate::group::Group;
use crate::nn::{Id, Params};
use crate::tensor::{Buffer, DType, Gradients, Tensor};
use crate::{Error, Kind, Result, on};
use std::collections::BTreeMap;

const OP: &str = "train in a group";
/// Bytes of gradients that are summed together.
const BUCKET: usize = 64 << 20;

/// The rows of all processes in turn, as this one's lie: `[W R, C]` of its `[R, C]`.
pub fn gather_rows(group: &Group, name: &'static str, own: &Tensor) -> Result<Tensor> {
    if group.size() == 1 {
        return Ok(own.clone());
    }
    let all = group.all_gather(name, &own.raw()?)?.concat();
    let (rows, columns) = own.rows();
    own.of_raw(&all, &[rows * group.size(), columns])
}

/// The lists of all processes in turn.
pub fn gather_lists(group: &Group, name: &'static str, own: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
    if group.size() == 1 {
        return Ok(own.to_vec());
    }
    let flat: Vec<u32> =
        own.iter().flat_map(|list| std::iter::once(list.len() as u32).chain(list.iter().copied())).collect();
    let mut numbers = group.gather(name, &flat)?.into_iter().flatten();
    let mut lists = Vec::new();
    while let Some(n) = numbers.next() {
        lists.push(numbers.by_ref().take(n as usize).collect());
    }
    Ok(lists)
}

/// Image tokens that this process has drawn from others, by the number of their sample in the world. `own` are the tokens of its own
/// micro-batches; `needs` lists, for a process, the samples that it has drawn, ascending, those of its own left out. Every process
/// knows all draws, so nobody has to ask.
pub fn drawn_tokens(
    group: &Group,
    own: &[Tensor],
    batch: usize,
    needs: impl Fn(usize) -> Vec<usize>,
) -> Result<BTreeMap<usize, Tensor>> {
    let Some(first) = own.first().filter(|_| group.size() > 1) else { return Ok(BTreeMap::new()) };
    let (held, me) = (own.len() * batch, group.rank());
    let (rows, columns) = (first.rows().0 / batch, first.rows().1);
    let owned = |rank: usize| move |i: &usize| *i / held == rank;
    let tokens = |i: usize| {
        let at = i % batch * rows;
        own[i % held / batch].slice_rows(at..at + rows)
    };
    let mut out = Vec::new();
    for rank in 0..group.size() {
        let mut bytes = Vec::new();
        for i in needs(rank).into_iter().filter(owned(me)).filter(|_| rank != me) {
            bytes.extend(tokens(i)?.raw()?);
        }
        out.push(bytes);
    }
    let size = first.slice_rows(0..rows)?.raw_bytes();
    let needed = needs(me);
    let from = |rank: usize| needed.iter().copied().filter(owned(rank));
    let lengths: Vec<usize> =
        (0..group.size()).map(|rank| if rank == me { 0 } else { size * from(rank).count() }).collect();
    let got = group.exchange("exchange drawn pictures", &out, &lengths)?;
    let mut drawn = BTreeMap::new();
    for (rank, bytes) in got.iter().enumerate().filter(|(rank, _)| *rank != me) {
        for (i, bytes) in from(rank).zip(bytes.chunks_exact(size.max(1))) {
            drawn.insert(i, first.of_raw(bytes, &[rows, columns])?);
        }
    }
    Ok(drawn)
}

/// Adds the gradients of all micro-batches of all processes to `into`, in turn; `own` are those of this one's.
pub fn sum_gradients(
    group: &Group,
    params: &Params,
    own: Vec<Gradients>,
    into: &mut Gradients,
) -> Result<()> {
    if group.size() == 1 {
        return own.into_iter().try_for_each(|one| into.absorb(one));
    }
    let Some(first) = own.first() else { return Ok(()) };
    let keys: Vec<usize> = first.keys().collect();
    if own.iter().any(|g| !g.keys().eq(keys.iter().copied())) {
        let want = "gradients of the same parameters in every micro-batch";
        return Err(Error::new(Kind::Group, OP).expected(want).got("others"));
    }
    let bytes = |key: &usize| first.get(*key).map_or(0, |g| g.len() * width(g.dtype()));
    let mut rest = keys.as_slice();
    while !rest.is_empty() {
        let mut size = 0;
        let end = rest.iter().position(|key| (size >= BUCKET, size += bytes(key)).0).unwrap_or(rest.len());
        let (bucket, behind) = rest.split_at(end);
        sum_bucket(group, params, &own, bucket, into)?;
        rest = behind;
    }
    Ok(())
}

/// Adds up some of the gradients, one after the other in one message.
fn sum_bucket(
    group: &Group,
    params: &Params,
    own: &[Gradients],
    keys: &[usize],
    into: &mut Gradients,
) -> Result<()> {
    let flats: Vec<Vec<u8>> = own.iter().map(|g| flat(g, keys)).collect::<Result<_>>()?;
    let Some(first) = own.first() else { return Ok(()) };
    let wide = keys.iter().filter_map(|k| first.get(*k)).any(|g| g.dtype() == DType::F64);
    let mut sum = vec![0u8; flats.first().map_or(0, Vec::len)];
    let begins = group.rank() == 0;
    group.sum_in_order("sum gradients", &mut sum, |at, piece| {
        for (i, flat) in flats.iter().enumerate() {
            let more = flat.get(at..at + piece.len()).unwrap_or_default();
            match (i == 0 && begins, wide) {
                (true, _) => piece.copy_from_slice(more),
                (false, true) => add::<f64, 8>(piece, more, f64::from_le_bytes, f64::to_le_bytes),
                (false, false) => add::<f32, 4>(piece, more, f32::from_le_bytes, f32::to_le_bytes),
            }
        }
        Ok(())
    })?;
    let mut rest = sum.as_slice();
    for key in keys {
        let Some(like) = first.get(*key) else { continue };
        let (bytes, behind) = rest.split_at(like.len() * width(like.dtype()));
        rest = behind;
        into.add(*key, beside(params, *key, like, bytes)?)?;
    }
    Ok(())
}

/// Bytes of a number.
fn width(dtype: DType) -> usize {
    on!(dtype, T => size_of::<T>())
}

/// The bytes of these gradients, one behind the other.
fn flat(grads: &Gradients, keys: &[usize]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for g in keys.iter().filter_map(|k| grads.get(*k)) {
        let here = g.to_cpu()?;
        on!(here.dtype(), T => bytes.extend_from_slice(bytemuck::cast_slice(here.slice::<T>())));
    }
    Ok(bytes)
}

/// A gradient of these bytes, where this one lies.
fn beside(params: &Params, key: usize, like: &Buffer, bytes: &[u8]) -> Result<Buffer> {
    if like.array().is_none() {
        return Ok(on!(like.dtype(), T => Buffer::of(bytemuck::pod_collect_to_vec::<u8, T>(bytes))));
    }
    let to = params.get(Id(key)).zeros_beside(OP)?;
    to.array().map_or(Ok(()), |a| a.write(bytes))?;
    Ok(to)
}

fn add<T: std::ops::Add<Output = T>, const N: usize>(
    sum: &mut [u8],
    more: &[u8],
    read: fn([u8; N]) -> T,
    write: fn(T) -> [u8; N],
) {
    let (sum, more) = (sum.as_chunks_mut::<N>().0, more.as_chunks::<N>().0);
    sum.iter_mut().zip(more).for_each(|(a, b)| *a = write(read(*a) + read(*b)));
}
