//! What a pickle describes: an arena of nodes that refer to each other by index, and the names that stand for tensors.
//!
//! A value that occurs a million times is one node, nothing is ever cloned, compared or dropped recursively, and a cycle is
//! harmless. Texts stay where they are in the pickle.
//!
//! Checkpoints hold more than tensors: settings, states of optimizers, dates, numpy's numbers. Such an object becomes a node
//! that remembers the name of its class and nothing else ([`Node::Object`]). Names that belong to no data at all are refused.

use super::Dtype;
use std::ops::Range;

pub(super) type Id = u32;

/// What a pickle may mention by name and what is read. None is looked up anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    /// As `RebuildTensor`, with the dtype as an argument of its own.
    RebuildTensorOf,
    RebuildParameter,
    RebuildFromType,
    /// `torch.Tensor` or `Parameter`, only as an argument of `_rebuild_from_type_v2`.
    TensorType,
    Size,
    Storage(Element),
}

/// What a storage is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Of(Dtype),
    /// Numbers of so many bytes that are not read here.
    Other(u8),
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Element::Of(dtype) => dtype.size(),
            Element::Other(bytes) => usize::from(bytes),
        }
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Element::Of(dtype) => write!(f, "{dtype}"),
            Element::Other(bytes) => write!(f, "{bytes} bytes each"),
        }
    }
}

pub(super) const GLOBALS: [(&str, Global); 25] = [
    ("collections.OrderedDict", Global::OrderedDict),
    ("torch._utils._rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils._rebuild_tensor_v3", Global::RebuildTensorOf),
    ("torch._utils._rebuild_parameter", Global::RebuildParameter),
    ("torch._utils._rebuild_parameter_with_state", Global::RebuildParameter),
    ("torch._tensor._rebuild_from_type_v2", Global::RebuildFromType),
    ("torch.Tensor", Global::TensorType),
    ("torch.nn.parameter.Parameter", Global::TensorType),
    ("torch.Size", Global::Size),
    ("torch.DoubleStorage", Global::Storage(Element::Of(Dtype::F64))),
    ("torch.FloatStorage", Global::Storage(Element::Of(Dtype::F32))),
    ("torch.HalfStorage", Global::Storage(Element::Of(Dtype::F16))),
    ("torch.BFloat16Storage", Global::Storage(Element::Of(Dtype::Bf16))),
    ("torch.LongStorage", Global::Storage(Element::Of(Dtype::I64))),
    ("torch.IntStorage", Global::Storage(Element::Of(Dtype::I32))),
    ("torch.ShortStorage", Global::Storage(Element::Of(Dtype::I16))),
    ("torch.CharStorage", Global::Storage(Element::Of(Dtype::I8))),
    ("torch.ByteStorage", Global::Storage(Element::Of(Dtype::U8))),
    ("torch.BoolStorage", Global::Storage(Element::Of(Dtype::Bool))),
    ("torch.ComplexFloatStorage", Global::Storage(Element::Other(8))),
    ("torch.ComplexDoubleStorage", Global::Storage(Element::Other(16))),
    ("torch.QInt8Storage", Global::Storage(Element::Other(1))),
    ("torch.QUInt8Storage", Global::Storage(Element::Other(1))),
    ("torch.QInt32Storage", Global::Storage(Element::Other(4))),
    ("torch.storage.UntypedStorage", Global::Storage(Element::Other(1))),
];

/// Whether a name may belong to data: not to what runs programs, reads files or loads code.
pub(super) fn is_data(name: &str) -> bool {
    const NEVER: [&str; 40] = [
        "os",
        "posix",
        "nt",
        "posixpath",
        "ntpath",
        "sys",
        "subprocess",
        "popen2",
        "commands",
        "pty",
        "shutil",
        "socket",
        "ctypes",
        "_ctypes",
        "importlib",
        "imp",
        "pkgutil",
        "runpy",
        "pickle",
        "_pickle",
        "cPickle",
        "shelve",
        "marshal",
        "code",
        "codeop",
        "webbrowser",
        "multiprocessing",
        "threading",
        "_thread",
        "asyncio",
        "signal",
        "pdb",
        "bdb",
        "timeit",
        "trace",
        "profile",
        "cProfile",
        "urllib",
        "http",
        "types",
    ];
    const BUILTINS: [&str; 16] = [
        "set",
        "frozenset",
        "complex",
        "bytearray",
        "bytes",
        "slice",
        "range",
        "xrange",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "str",
        "bool",
        "object",
    ];
    let (module, rest) = name.split_once('.').unwrap_or((name, ""));
    match module {
        "builtins" | "__builtin__" => BUILTINS.contains(&rest),
        module => !NEVER.contains(&module),
    }
}

/// Whether calling a name makes an object that holds data: a class, or one of the functions that pickles of data are full of.
pub(super) fn makes_object(name: &str) -> bool {
    const FUNCTIONS: [&str; 18] = [
        "_codecs.encode",
        "_operator.getitem",
        "builtins.bytearray",
        "collections.defaultdict",
        "collections.deque",
        "copy_reg._reconstructor",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "functools.partial",
        "numpy.dtype",
        "numpy.ndarray",
        "operator.getitem",
        "torch.device",
        "torch.serialization._get_layout",
    ];
    let parts = [".multiarray.scalar", ".multiarray._reconstruct", ".numeric._frombuffer"];
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    FUNCTIONS.contains(&name)
        || matches!(module, "builtins" | "__builtin__") // those that are data
        || name.starts_with("torch._utils._rebuild_")
        || name.starts_with("numpy.random.")
        || name.starts_with("numpy.") && parts.iter().any(|p| name.ends_with(p))
        || last.starts_with(char::is_uppercase)
}

/// How a pickle may refer to storages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `('storage', type, key, location, elements)`
    Zip,
    /// `('storage', type, key, location, elements, view)`, whose view must be None.
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
    /// A value that says nothing about tensors: a float, a larger integer, text that is not UTF-8.
    Value,
    /// Where its UTF-8 stands in the pickle.
    Text(Range<u32>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// Another class or function: where `module LF name` stands in the pickle.
    Foreign(Range<u32>),
    /// An object of such a class.
    Object(Range<u32>),
    Storage {
        element: Element,
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

    /// (element, key, elements) of every storage mentioned, in order.
    pub fn storages(&self) -> impl Iterator<Item = (Element, &str, u64)> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage { element, key, len } => Some((*element, self.text(*key)?, *len)),
            _ => None,
        })
    }

    /// What stands under a key, for those who list what is in a file.
    pub fn describe(&self, key: &str, id: Id) -> String {
        match self.node(id) {
            Node::Foreign(class) | Node::Object(class) => format!("{key} ({})", class_of(self.text, class)),
            Node::Tensor { storage, .. } => match self.node(*storage) {
                Node::Storage { element, .. } => format!("{key} (a tensor of {element})"),
                _ => key.to_string(),
            },
            _ => key.to_string(),
        }
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(range) => text_of(self.text, range),
            _ => None,
        }
    }
}

/// The name of a class as Python writes it.
pub(super) fn class_of(text: &[u8], range: &Range<u32>) -> String {
    text_of(text, range).unwrap_or_default().replacen('\n', ".", 1)
}

pub(super) fn text_of<'a>(text: &'a [u8], range: &Range<u32>) -> Option<&'a str> {
    std::str::from_utf8(text.get(range.start as usize..range.end as usize)?).ok()
}
