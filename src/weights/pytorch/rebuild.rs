//! From a pickle's nodes to tensors: names, shapes, and views of storages.

use super::choose::{SAVE_ALONE, choose};
use super::graph::{Element, Graph, Id, Node};
use super::{Info, Refusal};
use std::collections::HashMap;

const MOST_AXES: usize = 8;
const MOST_NAME: usize = 512;
/// All tensors together may be this many times the file: tensors may share storages, but not without end.
const MOST_SHARING: u64 = 2;

const DAMAGED: &str = "the file is damaged or built to deceive";

/// A storage that tensors refer to.
pub(super) struct Storage {
    pub key: String,
    pub element: Element,
    /// Elements.
    pub len: u64,
}

/// Where a tensor's elements lie in its storage.
pub(super) struct View {
    pub storage: usize,
    pub offset: u64,
    pub strides: Vec<u64>,
}

pub(super) struct Described {
    pub tensors: Vec<Info>,
    /// One per tensor.
    pub views: Vec<View>,
    /// All that the pickle mentions in tensors of any kind, so that the container can be checked against them.
    pub storages: Vec<Storage>,
    pub others: Vec<String>,
}

/// The tensors of the dictionary that holds the weights (see `choose.rs`), and what else is in the file.
pub(super) fn describe(graph: &Graph) -> Result<Described, Refusal> {
    let chosen = choose(graph)?;
    let mut others = chosen.others;
    let entries = unique(graph, chosen.dict)?;
    let (mut storages, by_key) = collect_storages(graph)?;
    storages.shrink_to_fit();
    let (mut tensors, mut views) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
    for (name, id) in entries {
        let element = match graph.node(id) {
            Node::Tensor { storage, .. } => match graph.node(*storage) {
                Node::Storage { element, .. } => *element,
                _ => Element::Other(0),
            },
            _ => Element::Other(0),
        };
        if !matches!(element, Element::Of(_)) {
            others.push(graph.describe(name, id));
            continue;
        }
        let (info, view) = tensor(graph, name, id, &by_key, &storages)
            .map_err(|got| Refusal::whole(format!("tensor {name:?} {got}")).fix(DAMAGED))?;
        tensors.push(info);
        views.push(view);
    }
    if tensors.is_empty() {
        return Err(Refusal::whole("a dictionary without a tensor that is read here").fix(SAVE_ALONE));
    }
    Ok(Described { tensors, views, storages, others })
}

/// A dictionary with texts as keys, each once.
fn unique<'g>(graph: &'g Graph, dict: &[(Id, Id)]) -> Result<Vec<(&'g str, Id)>, Refusal> {
    let mut seen = HashMap::new();
    let mut out = Vec::with_capacity(dict.len());
    for (key, value) in dict {
        let Some(name) = graph.text(*key) else {
            return Err(Refusal::whole("a dictionary whose keys are not names").fix(SAVE_ALONE));
        };
        if name.len() > MOST_NAME || name.chars().any(char::is_control) {
            let got = format!("a name of {} bytes or with control characters", name.len());
            return Err(Refusal::whole(got).fix(DAMAGED));
        }
        if seen.insert(name, ()).is_some() {
            return Err(Refusal::whole(format!("two entries named {name:?}")).fix(DAMAGED));
        }
        out.push((name, *value));
    }
    Ok(out)
}

/// Every storage of the pickle, also of tensors that are not read; one key means one storage.
fn collect_storages(graph: &Graph) -> Result<(Vec<Storage>, HashMap<String, usize>), Refusal> {
    let (mut storages, mut by_key) = (Vec::<Storage>::new(), HashMap::new());
    for (element, key, len) in graph.storages() {
        match by_key.get(key).and_then(|i: &usize| storages.get(*i)) {
            None => {
                by_key.insert(key.to_string(), storages.len());
                storages.push(Storage { key: key.to_string(), element, len });
            }
            Some(same) if (same.element, same.len) == (element, len) => {}
            Some(other) => {
                let got = format!(
                    "storage {key:?} as {len} of {element} and as {} of {}",
                    other.len, other.element
                );
                return Err(Refusal::whole(got).fix(DAMAGED));
            }
        }
    }
    Ok((storages, by_key))
}

fn tensor(
    graph: &Graph,
    name: &str,
    id: Id,
    by_key: &HashMap<String, usize>,
    storages: &[Storage],
) -> Result<(Info, View), String> {
    let &Node::Tensor { storage, offset, size, stride } = graph.node(id) else {
        return Err("is none".into());
    };
    let Node::Storage { key, .. } = graph.node(storage) else { return Err("has no storage".into()) };
    let index = graph.text(*key).and_then(|key| by_key.get(key)).copied();
    let (index, held) = index.and_then(|i| Some((i, storages.get(i)?))).ok_or("has no storage")?;
    let Element::Of(dtype) = held.element else { return Err("is of a kind that is not read".into()) };
    let number = |id: Id| match graph.node(id) {
        Node::Int(n @ 0..) => Ok(*n as u64),
        _ => Err("with a size, stride or offset that is no number of 0 or more".to_string()),
    };
    let numbers = |id: Id| match graph.node(id) {
        Node::Tuple(ids) if ids.len() <= MOST_AXES => ids.iter().map(|id| number(*id)).collect(),
        Node::Tuple(ids) => Err(format!("with {} axes (at most {MOST_AXES})", ids.len())),
        _ => Err("with a shape that is no tuple".into()),
    };
    let (offset, sizes, strides): (u64, Vec<u64>, Vec<u64>) =
        (number(offset)?, numbers(size)?, numbers(stride)?);
    if sizes.len() != strides.len() {
        return Err(format!("with {} sizes and {} strides", sizes.len(), strides.len()));
    }
    let elements = sizes.iter().try_fold(1u64, |n, s| n.checked_mul(*s));
    let bytes = elements.and_then(|n| n.checked_mul(dtype.size() as u64)).filter(|n| *n <= isize::MAX as u64);
    let Some(_) = bytes else { return Err(format!("of shape {sizes:?}, which no memory holds")) };
    // offset + sum((size - 1) * stride) is the last element; a tensor without elements touches none
    let last = sizes
        .iter()
        .zip(&strides)
        .try_fold(offset, |at, (size, stride)| at.checked_add(size.saturating_sub(1).checked_mul(*stride)?));
    let inside = last.is_some_and(|last| last < held.len);
    if elements == Some(0) && offset > held.len || elements != Some(0) && !inside {
        return Err(format!(
            "of shape {sizes:?}, strides {strides:?} at {offset}, which reaches beyond its storage {:?} of {} elements",
            held.key, held.len
        ));
    }
    let shape = sizes.iter().map(|s| *s as usize).collect();
    Ok((Info { name: name.into(), dtype, shape }, View { storage: index, offset, strides }))
}

/// Refuses tensors that repeat the file's bytes without end.
pub(super) fn check_total(tensors: &[Info], file: u64) -> Result<(), Refusal> {
    let total = tensors.iter().try_fold(0u64, |sum, t| sum.checked_add(t.bytes() as u64));
    match total {
        Some(total) if total <= file.saturating_mul(MOST_SHARING) => Ok(()),
        _ => {
            let total = total.map_or("more than 2^64".into(), |t| t.to_string());
            Err(Refusal::whole(format!("tensors of {total} bytes in a file of {file}"))
                .fix("save contiguous copies: {name: t.contiguous().clone() for name, t in ...}"))
        }
    }
}
