//! The instructions that name things: each name of the closed list with the arguments it takes, and what it stands for.
//! Nothing is looked up or called.

use super::graph::{Dialect, GLOBALS, Global, Id, Node, text_of};
use super::pickle::{Bad, DAMAGED, Machine, bad};

impl Machine<'_> {
    pub fn global(&mut self) -> Result<(), Bad> {
        let name = format!("{}.{}", self.line()?, self.line()?);
        match GLOBALS.iter().find(|(known, _)| *known == name) {
            Some((_, global)) => self.push(Node::Global(*global), 0),
            None => {
                let shown: String = name.escape_debug().take(120).collect();
                let got = format!("refers to {shown}, which is not tensor data: refused, nothing was run");
                bad(
                    got,
                    "only load files of people you trust in PyTorch; ask for a file of the state dict alone",
                )
            }
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
            (Node::Global(Global::Storage(dtype)), Node::Text(_), Node::Text(_), &Node::Int(len @ 0..)) => {
                self.push(Node::Storage { dtype: *dtype, key: head[2], len: len as u64 }, 0)
            }
            _ => refuse(),
        }
    }

    /// A known function of known arguments: what it would return, without running anything.
    pub fn reduce(&mut self) -> Result<(), Bad> {
        let args = self.pop()?;
        let function = self.pop()?;
        let &Node::Global(function) = self.node(function) else {
            return bad("a call of something that is no function", DAMAGED);
        };
        let Node::Tuple(args) = self.node(args) else {
            return bad("a call whose arguments are no tuple", DAMAGED);
        };
        let args = args.to_vec();
        self.call(function, &args)
    }

    fn call(&mut self, function: Global, args: &[Id]) -> Result<(), Bad> {
        match (function, args) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new()), 1),
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
            // data, requires_grad, hooks
            (Global::RebuildParameter, &[data, _, _]) if matches!(self.node(data), Node::Tensor { .. }) => {
                self.push_id(data)
            }
            // function, type, arguments, state: the state belongs to a subclass and is left out
            (Global::RebuildFromType, &[function, kind, args, _]) => {
                match (self.node(function), self.node(kind), self.node(args)) {
                    (
                        &Node::Global(inner @ (Global::RebuildTensor | Global::RebuildParameter)),
                        Node::Global(Global::TensorType),
                        Node::Tuple(args),
                    ) => {
                        let args = args.to_vec();
                        self.call(inner, &args)
                    }
                    _ => bad("a tensor of an unknown kind", DAMAGED),
                }
            }
            _ => {
                bad(format!("a call of {function:?} with {} arguments it does not take", args.len()), DAMAGED)
            }
        }
    }

    /// Only a state dict's `_metadata` (versions of modules), which is dropped.
    pub fn build(&mut self) -> Result<(), Bad> {
        let state = self.pop()?;
        let target = self.top()?;
        let Node::Dict(state) = self.node(state) else {
            return bad("a state that is no dict", DAMAGED);
        };
        let key = |id: &Id| if let Node::Text(r) = self.node(*id) { text_of(self.text, r) } else { None };
        let metadata_only = state.iter().all(|(k, _)| key(k) == Some("_metadata"));
        if !metadata_only || !matches!(self.node(target), Node::Dict(_)) {
            return bad("a state set on an object", DAMAGED);
        }
        Ok(())
    }
}
