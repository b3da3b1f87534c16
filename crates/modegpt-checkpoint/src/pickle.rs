//! Pickles as data: a stack machine that knows tensors, containers and plain values, and runs no code.
//!
//! A pickle is a program. This machine carries out only the instructions that build data, and calls only three
//! functions, which it imitates: `OrderedDict`, `_rebuild_tensor_v2` and `_rebuild_parameter`. Any other name is refused
//! as soon as it is mentioned.
//!
//! Values live in one list and refer to each other by place. So a value that contains itself does no harm, nothing
//! recurses, and memory grows with the length of the pickle, not with what it unfolds to.

mod opcodes;

use std::collections::BTreeMap;

use crate::Error;
use crate::input::Input;

/// The most instructions of one pickle; about sixty build one tensor.
const LIMIT_OPCODES: u64 = 1 << 22;
/// The most bytes of one pickle.
const LIMIT_BYTES: u64 = 64 << 20;

/// The place of a [`Node`].
pub(crate) type Id = u32;

/// One value.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    None,
    Bool,
    Int(i128),
    /// A float or a byte string: allowed, but never of use to a checkpoint.
    Unused,
    Text(Box<str>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
}

/// The names that a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageType(ElementType),
}

/// An element type, as safetensors names it, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ElementType {
    pub(crate) name: &'static str,
    pub(crate) bytes: u64,
}

/// What a persistent id stands for: a run of numbers outside the pickle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    pub(crate) element: ElementType,
    /// The name of the storage, a text.
    pub(crate) key: Id,
    /// How many elements the whole storage has.
    pub(crate) n_elements: u64,
    /// Which of them are meant: the first, and how many. All, unless the file is very old.
    pub(crate) view: (u64, u64),
}

/// A tensor: a storage looked at from `offset`, with `shape` and `strides`, two tuples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) offset: u64,
    pub(crate) shape: Id,
    pub(crate) strides: Id,
}

/// The values of one pickle.
pub(crate) struct Unpickled {
    nodes: Vec<Node>,
    root: Id,
}

impl Unpickled {
    /// What the pickle amounts to.
    pub(crate) fn root(&self) -> &Node {
        self.node(self.root)
    }

    /// One of its values.
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// All of its values, also those that the root does not lead to.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The text at `id`, if it is one.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        if let Node::Text(text) = self.node(id) { Some(text) } else { None }
    }

    /// The count at `id`, if it is an integer that can be one.
    pub(crate) fn count(&self, id: Id) -> Option<u64> {
        if let Node::Int(value) = self.node(id) { u64::try_from(*value).ok() } else { None }
    }
}

/// Reads one pickle and leaves `input` behind its last byte.
///
/// # Errors
/// [`Error::RefusedGlobal`] if it mentions a name that is not needed for tensors, [`Error::Pickle`] if it is broken, too
/// large, or uses an instruction that no checkpoint needs.
pub(crate) fn unpickle(input: &mut Input<'_>) -> Result<Unpickled, Error> {
    let start = input.position();
    let mut machine = Machine { input, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() };
    for _ in 0..LIMIT_OPCODES {
        if machine.input.position() - start > LIMIT_BYTES {
            return Err(machine.broken(format_args!("expected at most {LIMIT_BYTES} bytes")));
        }
        let opcode = machine.input.byte()?;
        if opcode == opcodes::STOP {
            let root = machine.pop()?;
            return Ok(Unpickled { nodes: machine.nodes, root });
        }
        machine.step(opcode)?;
    }
    Err(machine.broken(format_args!("expected at most {LIMIT_OPCODES} instructions")))
}

/// The state of the machine between two instructions.
struct Machine<'a, 'b> {
    input: &'a mut Input<'b>,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack that `MARK` remembers; nothing below the last one can be taken.
    marks: Vec<usize>,
    memo: BTreeMap<u64, Id>,
}

impl Machine<'_, '_> {
    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Adds a value. The number of instructions bounds their number, since each adds one at most.
    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    /// Takes the uppermost value.
    fn pop(&mut self) -> Result<Id, Error> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.broken(format_args!("expected a value on the stack, found none")));
        }
        self.stack.pop().ok_or_else(|| self.broken(format_args!("expected a value on the stack, found none")))
    }

    /// Looks at the uppermost value.
    fn top(&mut self) -> Result<Id, Error> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(id)
    }

    /// Takes the uppermost `n` values, lowest first.
    fn pop_many<const N: usize>(&mut self) -> Result<[Id; N], Error> {
        let mut ids = [0; N];
        for id in ids.iter_mut().rev() {
            *id = self.pop()?;
        }
        Ok(ids)
    }

    /// Takes everything above the last mark, and the mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Error> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.broken(format_args!("expected a mark on the stack, found none"))),
        }
    }

    /// Calls `function` with the values of a tuple, in imitation.
    fn call(&self, function: Id, arguments: Id) -> Result<Node, Error> {
        let (Node::Global(global), Node::Tuple(arguments)) = (self.node(function), self.node(arguments)) else {
            return Err(self.broken(format_args!("expected a function and a tuple to call it with")));
        };
        match (global, &arguments[..]) {
            (Global::OrderedDict, []) => Ok(Node::Dict(Vec::new())),
            (
                Global::RebuildTensor,
                &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _],
            ) => self.tensor(storage, offset, shape, strides),
            (Global::RebuildParameter, &[data, _, _]) => match self.node(data) {
                tensor @ Node::Tensor(_) => Ok(tensor.clone()),
                _ => Err(self.broken(format_args!("expected a tensor as parameter"))),
            },
            _ => Err(self.broken(format_args!("expected other arguments for {global:?}, found {}", arguments.len()))),
        }
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<Node, Error> {
        match (self.node(storage), self.node(offset), self.node(shape), self.node(strides)) {
            (
                Node::Storage(storage),
                &Node::Int(offset @ 0..=0x7fff_ffff_ffff_ffff),
                Node::Tuple(_),
                Node::Tuple(_),
            ) => Ok(Node::Tensor(Tensor { storage: *storage, offset: offset as u64, shape, strides })),
            _ => Err(self.broken(format_args!("expected a tensor made of storage, offset, shape and strides"))),
        }
    }

    /// Reads `("storage", type, key, location, n_elements[, None or (view key, offset, n_elements)])`.
    fn storage(&self, id: Id) -> Result<Node, Error> {
        let malformed = || self.broken(format_args!("expected a persistent id of a storage"));
        let Node::Tuple(parts) = self.node(id) else { return Err(malformed()) };
        let (&[kind, element, key, _, n_elements], rest) = parts.split_first_chunk::<5>().ok_or_else(malformed)?;
        let (Node::Text(kind), Node::Global(Global::StorageType(element)), Node::Text(_), Some(n_elements)) =
            (self.node(kind), self.node(element), self.node(key), self.count(n_elements))
        else {
            return Err(malformed());
        };
        let view = match rest {
            [] => Some((0, n_elements)),
            &[view] => self.view(view, n_elements),
            _ => None,
        };
        let view = view.filter(|_| &**kind == "storage").ok_or_else(malformed)?;
        Ok(Node::Storage(Storage { element: *element, key, n_elements, view }))
    }

    /// The part of a storage of `n_elements` that a view stands for, if it is within the storage.
    fn view(&self, view: Id, n_elements: u64) -> Option<(u64, u64)> {
        match self.node(view) {
            Node::None => Some((0, n_elements)),
            Node::Tuple(parts) => {
                let &[_, offset, size] = &parts[..] else { return None };
                let (offset, size) = (self.count(offset)?, self.count(size)?);
                offset.checked_add(size).filter(|&end| end <= n_elements).map(|_| (offset, size))
            }
            _ => None,
        }
    }

    fn count(&self, id: Id) -> Option<u64> {
        if let Node::Int(value) = self.node(id) { u64::try_from(*value).ok() } else { None }
    }

    fn broken(&self, reason: std::fmt::Arguments<'_>) -> Error {
        Error::Pickle { file: self.input.file().to_owned(), offset: self.input.position(), reason: reason.to_string() }
    }
}
