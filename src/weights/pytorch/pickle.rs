//! The pickle machine: the instructions of protocol 2 that PyTorch writes that build a [`Graph`] (those that name things are in `objects.rs`).
//! Whatever grows is bounded: nodes, stack, memo, depth of nesting, length of texts.

use super::Refusal;
use super::graph::{Dialect, Graph, Id, Node};
use std::collections::HashMap;

pub(super) const MOST_BYTES: u64 = 8 << 20;
const MOST_NODES: usize = 1 << 18;
const MOST_STACK: usize = 1 << 17;
const MOST_NAME: usize = 512;
const MOST_DEPTH: u8 = 64;

/// Runs the pickle at the beginning of `text`; returns what it described and how many bytes it took. `part` names it in
/// messages.
pub(super) fn run<'a>(text: &'a [u8], part: &str, dialect: Dialect) -> Result<(Graph<'a>, usize), Refusal> {
    let mut m = Machine {
        text,
        at: 0,
        dialect,
        nodes: Vec::new(),
        depths: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let start = m.at;
        match m.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok((Graph { text, nodes: m.nodes, root }, m.at)),
            Err(Bad(got, fix)) => return Err(Refusal::at(start as u64, part, got).fix(fix)),
        }
    }
}

/// What is wrong with an instruction, and what to do.
pub(super) struct Bad(String, &'static str);

pub(super) const DAMAGED: &str = "the file is damaged or built to deceive";
const NOT_PYTORCH: &str =
    "load it in PyTorch and save the state dict alone, with torch.save and its own pickle protocol";
const TOO_MUCH: &str = "save the state dict alone: torch.save(model.state_dict(), path)";

pub(super) fn bad<T>(got: impl Into<String>, fix: &'static str) -> Result<T, Bad> {
    Err(Bad(got.into(), fix))
}

pub(super) struct Machine<'a> {
    pub text: &'a [u8],
    pub at: usize,
    pub dialect: Dialect,
    nodes: Vec<Node>,
    /// Of each node: how deep its contents nest (of a list or dict: when they were put in).
    depths: Vec<u8>,
    stack: Vec<Id>,
    /// Heights of the stack where MARK was.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// One instruction; the root when it was STOP.
    fn step(&mut self) -> Result<Option<Id>, Bad> {
        let first = self.at == 0;
        let op = self.take(1)?.first().copied().unwrap_or_default();
        if first != (op == 0x80) {
            return bad("a pickle that does not begin with its protocol, or begins twice", NOT_PYTORCH);
        }
        match op {
            0x80 => match self.number(1)? {
                2 => {}
                n => {
                    return bad(
                        format!("pickle protocol {n} (only 2, torch.save's own, is read)"),
                        NOT_PYTORCH,
                    );
                }
            },
            b'N' => self.push(Node::None, 0)?,
            0x88 => self.push(Node::Bool(true), 0)?,
            0x89 => self.push(Node::Bool(false), 0)?,
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => self.integer(4)?,
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Node::Value, 0)?;
            }
            b'X' => self.read_text(4)?,
            // bytes, which Python 2 took for text
            b'T' => self.read_text(4)?,
            b'U' => self.read_text(1)?,
            b')' => self.push(Node::Tuple(Box::new([])), 1)?,
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(op - 0x84))?;
                self.tuple(items)?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.tuple(items)?;
            }
            b']' => self.push(Node::List(Vec::new()), 1)?,
            b'}' => self.push(Node::Dict(Vec::new()), 1)?,
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(&items)?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            b'(' => {
                if self.marks.len() >= MOST_STACK {
                    return bad(format!("more than {MOST_STACK} marks"), TOO_MUCH);
                }
                self.marks.push(self.stack.len());
            }
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            b'c' => self.global()?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            0x81 => self.new_object()?,
            b'b' => self.build()?,
            b'.' => return self.stop().map(Some),
            _ => return bad(format!("the instruction {}", name_of(op)), NOT_PYTORCH),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Bad> {
        let text: &'a [u8] = self.text;
        let end = self.at.checked_add(n);
        let Some(part) = end.and_then(|end| text.get(self.at..end)) else {
            let left = text.len().saturating_sub(self.at);
            return bad(format!("an instruction that wants {n} bytes of {left}"), Refusal::FETCH_AGAIN);
        };
        self.at += n;
        Ok(part)
    }

    /// Unsigned, little-endian, at most 4 bytes.
    fn number(&mut self, bytes: usize) -> Result<u32, Bad> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)))
    }

    pub fn push(&mut self, node: Node, depth: u8) -> Result<(), Bad> {
        if depth > MOST_DEPTH {
            return bad(format!("values nested more than {MOST_DEPTH} deep"), DAMAGED);
        }
        if self.nodes.len() >= MOST_NODES {
            return bad(format!("more than {MOST_NODES} values"), TOO_MUCH);
        }
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        self.depths.push(depth);
        self.push_id(id)
    }

    pub fn push_id(&mut self, id: Id) -> Result<(), Bad> {
        if self.stack.len() >= MOST_STACK {
            return bad(format!("more than {MOST_STACK} values at once"), TOO_MUCH);
        }
        self.stack.push(id);
        Ok(())
    }

    /// The topmost `n` values above the last mark, in their order.
    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, Bad> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(at) if at >= floor => Ok(self.stack.split_off(at)),
            _ => bad("an instruction without its values", DAMAGED),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Bad> {
        match self.marks.pop() {
            Some(at) if at <= self.stack.len() => Ok(self.stack.split_off(at)),
            _ => bad("an instruction without its mark", DAMAGED),
        }
    }

    pub fn pop(&mut self) -> Result<Id, Bad> {
        Ok(self.pop_many(1)?.first().copied().unwrap_or_default())
    }

    pub fn top(&self) -> Result<Id, Bad> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(id) if self.stack.len() > floor => Ok(*id),
            _ => bad("an instruction without its values", DAMAGED),
        }
    }

    pub fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    /// One more than the deepest of these.
    fn depth_over(&self, ids: &[Id]) -> u8 {
        ids.iter().filter_map(|id| self.depths.get(*id as usize)).max().map_or(1, |d| d + 1)
    }

    fn integer(&mut self, bytes: usize) -> Result<(), Bad> {
        let n = self.number(bytes)?;
        let n = if bytes == 4 { i64::from(n as i32) } else { i64::from(n) };
        self.push(Node::Int(n), 0)
    }

    fn long(&mut self) -> Result<(), Bad> {
        const MOST: usize = 64; // states of random numbers have 16
        let len = self.number(1)? as usize;
        if len > MOST {
            return bad(format!("an integer of {len} bytes"), DAMAGED);
        }
        let bytes = self.take(len)?;
        let fill = if bytes.last().is_some_and(|b| *b >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 10];
        let node = match wide.get_mut(..len) {
            None => Node::Value,
            Some(low) => {
                low.copy_from_slice(bytes);
                let [a, b, c, d, e, f, g, h, ..] = wide;
                if len > 8 {
                    Node::Wide(wide)
                } else {
                    Node::Int(i64::from_le_bytes([a, b, c, d, e, f, g, h]))
                }
            }
        };
        self.push(node, 0)
    }

    /// A text, its length before it in so many bytes.
    fn read_text(&mut self, length: usize) -> Result<(), Bad> {
        let len = self.number(length)?;
        let start = self.at as u32; // a pickle is at most MOST_BYTES long
        let bytes = self.take(len as usize)?;
        let node = match std::str::from_utf8(bytes) {
            Ok(_) => Node::Text(start..start + len),
            Err(_) => Node::Value,
        };
        self.push(node, 0)
    }

    fn tuple(&mut self, items: Vec<Id>) -> Result<(), Bad> {
        let depth = self.depth_over(&items);
        self.push(Node::Tuple(items.into()), depth)
    }

    fn deepen(&mut self, id: Id, items: &[Id]) -> Result<(), Bad> {
        let depth = self.depth_over(items);
        if depth > MOST_DEPTH {
            return bad(format!("values nested more than {MOST_DEPTH} deep"), DAMAGED);
        }
        if let Some(d) = self.depths.get_mut(id as usize) {
            *d = depth.max(*d);
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Bad> {
        let id = self.top()?;
        self.deepen(id, items)?;
        match self.nodes.get_mut(id as usize) {
            Some(Node::List(list)) => list.extend_from_slice(items),
            Some(object @ Node::Object(_)) => *object = Node::List(items.to_vec()), // a kind of list
            _ => return bad("an item put into something that is no list", DAMAGED),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Bad> {
        let id = self.top()?;
        self.deepen(id, items)?;
        let (pairs, rest) = items.as_chunks::<2>();
        let pairs = pairs.iter().map(|[k, v]| (*k, *v));
        match self.nodes.get_mut(id as usize) {
            Some(Node::Dict(_) | Node::Object(_)) if !rest.is_empty() => {
                return bad("a key without its value", DAMAGED);
            }
            Some(Node::Dict(dict)) => dict.extend(pairs),
            Some(object @ Node::Object(_)) => *object = Node::Dict(pairs.collect()), // a kind of dictionary
            _ => return bad("a key set on something that is no dict", DAMAGED),
        }
        Ok(())
    }

    fn put(&mut self, bytes: usize) -> Result<(), Bad> {
        let (slot, id) = (self.number(bytes)?, self.top()?);
        if slot as usize >= self.at {
            return bad(format!("memo slot {slot}, beyond the instructions read"), DAMAGED);
        }
        if self.memo.len() >= MOST_NODES && !self.memo.contains_key(&slot) {
            return bad(format!("more than {MOST_NODES} memo slots"), TOO_MUCH);
        }
        self.memo.insert(slot, id);
        Ok(())
    }

    fn get(&mut self, bytes: usize) -> Result<(), Bad> {
        let slot = self.number(bytes)?;
        match self.memo.get(&slot) {
            Some(id) => self.push_id(*id),
            None => bad(format!("memo slot {slot}, which is empty"), DAMAGED),
        }
    }

    pub fn line(&mut self) -> Result<&'a str, Bad> {
        let text: &'a [u8] = self.text;
        let rest = text.get(self.at..).unwrap_or_default();
        let Some(len) = rest.iter().take(MOST_NAME).position(|b| *b == b'\n') else {
            return bad("a name that does not end", DAMAGED);
        };
        self.at += len + 1;
        match std::str::from_utf8(rest.get(..len).unwrap_or_default()) {
            Ok(line) => Ok(line),
            Err(_) => bad("a name that is not UTF-8", DAMAGED),
        }
    }

    fn stop(&mut self) -> Result<Id, Bad> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return bad("values left over at the end", DAMAGED);
        }
        Ok(root)
    }
}

/// The instructions of pickle that are not read here, by name.
fn name_of(op: u8) -> String {
    let name = match op {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'P' => "PERSID",
        b'd' => "DICT",
        b'l' => "LIST",
        b'g' => "GET",
        b'p' => "PUT",
        b'i' => "INST",
        b'o' => "OBJ",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{op:#04x}, which no pickle has"),
    };
    name.into()
}
