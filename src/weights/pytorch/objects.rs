//! The instructions that name things, with the arguments they take, and what they stand for. Nothing is looked up or called:
//! an object of a class that is not read here becomes a node with the name of its class.

use super::graph::{Dialect, Element, GLOBALS, Global, Id, Node, class_of, is_data, makes_object, text_of};
use super::pickle::{Bad, DAMAGED, Machine, bad};

impl Machine<'_> {
    pub fn global(&mut self) -> Result<(), Bad> {
        let start = self.at as u32; // a pickle is at most MOST_BYTES long
        let name = format!("{}.{}", self.line()?, self.line()?);
        match GLOBALS.iter().find(|(known, _)| *known == name) {
            Some((_, global)) => self.push(Node::Global(*global), 0),
            None if is_data(&name) => self.push(Node::Foreign(start..self.at as u32 - 1), 0),
            None => refuse(&name),
        }
    }

    /// A storage, described by a tuple.
    pub fn persistent(&mut self) -> Result<(), Bad> {
        let id = self.pop()?;
        let refuse = || bad("a storage described in an unknown way", DAMAGED);
        let Node::Tuple(items) = self.node(id) else { return refuse() };
        let (head, view) = match (self.dialect, &**items) {
            (Dialect::Zip, &[a, b, c, d, e]) => ([a, b, c, d, e], None),
            (Dialect::Legacy, &[a, b, c, d, e, view]) => ([a, b, c, d, e], Some(view)),
            _ => return refuse(),
        };
        let [tag, kind, key, location, len] = head.map(|id| self.node(id));
        let tag = if let Node::Text(r) = tag { text_of(self.text, r) } else { None };
        if tag != Some("storage") || view.is_some_and(|v| !matches!(self.node(v), Node::None)) {
            return refuse();
        }
        match (kind, key, location, len) {
            (Node::Global(Global::Storage(element)), Node::Text(_), Node::Text(_), &Node::Int(len @ 0..)) => {
                self.push(Node::Storage { element: *element, key: head[2], len: len as u64 }, 0)
            }
            // PyTorch counts the elements of such a storage, and we do not know their size.
            (Node::Foreign(name), ..) => {
                bad(format!("numbers of the kind {}", class_of(self.text, name)), "save them as float32")
            }
            _ => refuse(),
        }
    }

    /// A known function of known arguments: what it would return, without running anything.
    pub fn reduce(&mut self) -> Result<(), Bad> {
        let args = self.pop()?;
        let function = self.pop()?;
        let Node::Tuple(args) = self.node(args) else {
            return bad("a call whose arguments are no tuple", DAMAGED);
        };
        let args = args.to_vec();
        match self.node(function) {
            &Node::Global(function) => self.call(function, &args),
            Node::Foreign(name) => {
                let (class, name) = (name.clone(), class_of(self.text, name));
                if makes_object(&name) { self.push(Node::Object(class), 1) } else { refuse(&name) }
            }
            _ => bad("a call of something that is no function", DAMAGED),
        }
    }

    /// An object of a class, made without its `__init__`.
    pub fn new_object(&mut self) -> Result<(), Bad> {
        let args = self.pop()?;
        let class = self.pop()?;
        match (self.node(class), self.node(args)) {
            (Node::Foreign(class), Node::Tuple(_)) => {
                let class = class.clone();
                self.push(Node::Object(class), 1)
            }
            (Node::Global(Global::OrderedDict), Node::Tuple(_)) => self.push(Node::Dict(Vec::new()), 1),
            _ => bad("an object of something that is no class", DAMAGED),
        }
    }

    fn call(&mut self, function: Global, args: &[Id]) -> Result<(), Bad> {
        match (function, args) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new()), 1),
            // as Python 2 wrote it: a list of pairs
            (Global::OrderedDict, &[pairs]) => {
                let pairs = self.pairs(pairs)?;
                self.push(Node::Dict(pairs), 2)
            }
            (Global::Size, &[size]) if matches!(self.node(size), Node::Tuple(_)) => self.push_id(size),
            // storage, offset, size, stride, requires_grad, hooks [, metadata]
            (
                Global::RebuildTensor,
                &[storage, offset, size, stride, _, _] | &[storage, offset, size, stride, _, _, _],
            ) => {
                if !matches!(self.node(storage), Node::Storage { .. }) {
                    return bad("a tensor without a storage", DAMAGED);
                }
                self.push(Node::Tensor { storage, offset, size, stride }, 1)
            }
            // the same and a dtype: the storage holds bytes, so that what lies in them is not read
            (Global::RebuildTensorOf, &[storage, offset, size, stride, _, _, _, ..])
                if matches!(self.node(storage), Node::Storage { element: Element::Other(_), .. }) =>
            {
                self.push(Node::Tensor { storage, offset, size, stride }, 1)
            }
            // data, requires_grad, hooks [, state]
            (Global::RebuildParameter, &[data, _, _] | &[data, _, _, _])
                if matches!(self.node(data), Node::Tensor { .. } | Node::Object(_)) =>
            {
                self.push_id(data)
            }
            // function, type, arguments, state: the state belongs to a subclass and is left out
            (Global::RebuildFromType, &[function, kind, args, _]) => {
                use Global::{RebuildParameter, RebuildTensor, RebuildTensorOf};
                match (self.node(function), self.node(kind), self.node(args)) {
                    (
                        &Node::Global(inner @ (RebuildTensor | RebuildTensorOf | RebuildParameter)),
                        Node::Global(Global::TensorType),
                        Node::Tuple(args),
                    ) => {
                        let args = args.to_vec();
                        self.call(inner, &args)
                    }
                    // a kind of tensor of another library: what its numbers mean is not known
                    (_, Node::Foreign(class), Node::Tuple(_)) => {
                        let class = class.clone();
                        self.push(Node::Object(class), 1)
                    }
                    _ => bad("a tensor of an unknown kind", DAMAGED),
                }
            }
            _ => {
                bad(format!("a call of {function:?} with {} arguments it does not take", args.len()), DAMAGED)
            }
        }
    }

    /// The pairs of a list of pairs.
    fn pairs(&self, id: Id) -> Result<Vec<(Id, Id)>, Bad> {
        let Node::List(items) = self.node(id) else { return bad("a dictionary made of no list", DAMAGED) };
        let pair = |id: &Id| match self.node(*id) {
            Node::Tuple(pair) => <[Id; 2]>::try_from(&**pair).ok().map(|[key, value]| (key, value)),
            Node::List(pair) => <[Id; 2]>::try_from(&pair[..]).ok().map(|[key, value]| (key, value)),
            _ => None,
        };
        match items.iter().map(pair).collect() {
            Some(pairs) => Ok(pairs),
            None => bad("a dictionary made of what are no pairs", DAMAGED),
        }
    }

    /// The state of an object, or the attributes of a dictionary (of a state dict: `_metadata`, the versions of its modules).
    /// They are dropped.
    pub fn build(&mut self) -> Result<(), Bad> {
        let state = self.pop()?;
        let target = self.top()?;
        let Node::Dict(items) = self.node(state) else {
            return match self.node(target) {
                Node::Object(_) => Ok(()),
                _ => bad("a state that is no dict", DAMAGED),
            };
        };
        let attribute = |id: &Id| match self.node(*id) {
            Node::Text(range) => text_of(self.text, range).is_some_and(|name| !name.starts_with("__")),
            _ => false,
        };
        match self.node(target) {
            Node::Object(_) => Ok(()),
            Node::Dict(_) if items.iter().all(|(key, _)| attribute(key)) => Ok(()),
            _ => bad("a state set on an object", DAMAGED),
        }
    }
}

fn refuse<T>(name: &str) -> Result<T, Bad> {
    let shown: String = name.escape_debug().take(120).collect();
    bad(
        format!("refers to {shown}, which is not tensor data: refused, nothing was run"),
        "only load files of people you trust in PyTorch; ask for a file of the state dict alone",
    )
}
