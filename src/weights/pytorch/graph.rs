//! What a pickle describes: an arena of nodes that refer to each other by index, and the closed list of names.
//!
//! A value that occurs a million times is one node, nothing is ever cloned, compared or dropped recursively, and a cycle is
//! harmless. Texts stay where they are in the pickle.

use super::Dtype;
use std::ops::Range;

pub(super) type Id = u32;

/// What a pickle may mention by name. Each is understood here; none is looked up anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    RebuildFromType,
    /// `torch.Tensor` or `Parameter`, only as an argument of `_rebuild_from_type_v2`.
    TensorType,
    Size,
    Storage(Dtype),
}

pub(super) const GLOBALS: [(&str, Global); 17] = [
    ("collections.OrderedDict", Global::OrderedDict),
    ("torch._utils._rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils._rebuild_parameter", Global::RebuildParameter),
    ("torch._tensor._rebuild_from_type_v2", Global::RebuildFromType),
    ("torch.Tensor", Global::TensorType),
    ("torch.nn.parameter.Parameter", Global::TensorType),
    ("torch.Size", Global::Size),
    ("torch.DoubleStorage", Global::Storage(Dtype::F64)),
    ("torch.FloatStorage", Global::Storage(Dtype::F32)),
    ("torch.HalfStorage", Global::Storage(Dtype::F16)),
    ("torch.BFloat16Storage", Global::Storage(Dtype::Bf16)),
    ("torch.LongStorage", Global::Storage(Dtype::I64)),
    ("torch.IntStorage", Global::Storage(Dtype::I32)),
    ("torch.ShortStorage", Global::Storage(Dtype::I16)),
    ("torch.CharStorage", Global::Storage(Dtype::I8)),
    ("torch.ByteStorage", Global::Storage(Dtype::U8)),
    ("torch.BoolStorage", Global::Storage(Dtype::Bool)),
];

/// How a pickle may refer to storages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `('storage', type, key, location, elements)`
    Zip,
    /// The same and a view, which must be None.
    Legacy,
    /// Not at all.
    Plain,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of 9 or 10 bytes, little-endian: the magic number of the legacy format.
    Wide([u8; 10]),
    Float,
    /// Where its UTF-8 stands in the pickle.
    Text(Range<u32>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        dtype: Dtype,
        key: Id,
        len: u64,
    },
    Tensor {
        storage: Id,
        offset: Id,
        size: Id,
        stride: Id,
    },
}

/// What a pickle described.
pub(super) struct Graph<'a> {
    pub text: &'a [u8],
    pub nodes: Vec<Node>,
    pub root: Id,
}

impl Graph<'_> {
    pub fn root(&self) -> &Node {
        self.node(self.root)
    }

    pub fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    /// (dtype, key, elements) of every storage mentioned, in order.
    pub fn storages(&self) -> impl Iterator<Item = (Dtype, &str, u64)> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage { dtype, key, len } => Some((*dtype, self.text(*key)?, *len)),
            _ => None,
        })
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(range) => text_of(self.text, range),
            _ => None,
        }
    }
}

pub(super) fn text_of<'a>(text: &'a [u8], range: &Range<u32>) -> Option<&'a str> {
    std::str::from_utf8(text.get(range.start as usize..range.end as usize)?).ok()
}
