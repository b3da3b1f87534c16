//! The instructions, one line each; their meaning is that of Python's `pickletools`, protocols 0 to 5.

use super::{ElementType, Global, Id, Machine, Node};
use crate::Error;

/// Ends the pickle.
pub(super) const STOP: u8 = b'.';

/// The most bytes of a line in the text instructions.
const LIMIT_LINE: usize = 4096;
/// The most bytes of an integer that are understood.
const LIMIT_INT: usize = 16;

impl Machine<'_, '_> {
    /// Carries out one instruction other than `STOP`.
    pub(super) fn step(&mut self, opcode: u8) -> Result<(), Error> {
        if let Some(node) = self.literal(opcode)? {
            self.push(node);
            return Ok(());
        }
        if self.arrange(opcode)? || self.collect(opcode)? || self.remember(opcode)? {
            return Ok(());
        }
        Err(self.broken(format_args!("expected an instruction that builds data, found {opcode:#04x}")))
    }

    /// The value of an instruction that is one by itself.
    fn literal(&mut self, opcode: u8) -> Result<Option<Node>, Error> {
        Ok(Some(match opcode {
            b'N' => Node::None,
            0x88 | 0x89 => Node::Bool,
            b'I' | b'L' => self.decimal()?,
            b'K' => Node::Int(self.input.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.input.array()?).into()),
            b'J' => Node::Int(i32::from_le_bytes(self.input.array()?).into()),
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'F' => self.line().map(|_| Node::Unused)?,
            b'G' => self.input.skip(8).map(|()| Node::Unused)?,
            b'V' => Node::Text(self.line()?.into()),
            b'U' | 0x8c => self.text::<1>()?,
            b'T' | b'X' => self.text::<4>()?,
            0x8d => self.text::<8>()?,
            b'C' => self.skip_bytes::<1>()?,
            b'B' => self.skip_bytes::<4>()?,
            0x8e | 0x96 => self.skip_bytes::<8>()?,
            b'}' => Node::Dict(Vec::new()),
            b']' => Node::List(Vec::new()),
            b')' => Node::Tuple(Box::default()),
            b'c' => Node::Global(self.global_lines()?),
            _ => return Ok(None),
        }))
    }

    /// Instructions that take values from the stack and give one back, or none.
    fn arrange(&mut self, opcode: u8) -> Result<bool, Error> {
        let node = match opcode {
            b'(' => return Ok(self.mark()),
            b'0' => return self.discard(),
            b'1' => return self.pop_mark().map(|_| true),
            b'2' => return self.duplicate(),
            b't' => Node::Tuple(self.pop_mark()?.into()),
            0x85 => Node::Tuple(self.pop_many::<1>()?.into()),
            0x86 => Node::Tuple(self.pop_many::<2>()?.into()),
            0x87 => Node::Tuple(self.pop_many::<3>()?.into()),
            b'l' => Node::List(self.pop_mark()?),
            b'd' => Node::Dict(self.pop_pairs()?),
            b'Q' => self.pop().and_then(|id| self.storage(id))?,
            b'R' => self.pop_many().and_then(|[function, arguments]| self.call(function, arguments))?,
            0x93 => self.pop_many().and_then(|[module, name]| self.global_texts(module, name))?,
            _ => return Ok(false),
        };
        self.push(node);
        Ok(true)
    }

    /// Instructions that add to a container below them.
    fn collect(&mut self, opcode: u8) -> Result<bool, Error> {
        match opcode {
            b'a' => self.pop().and_then(|item| self.extend_list(&[item]))?,
            b'e' => self.pop_mark().and_then(|items| self.extend_list(&items))?,
            b's' => self.pop_many().and_then(|[key, value]| self.extend_dict(&[(key, value)]))?,
            b'u' => self.pop_pairs().and_then(|pairs| self.extend_dict(&pairs))?,
            // The state of a dictionary is what PyTorch notes about module versions; it holds no tensors.
            b'b' => self.pop().and_then(|_| self.extend_dict(&[]))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions about the memo, and those that only describe the pickle.
    fn remember(&mut self, opcode: u8) -> Result<bool, Error> {
        match opcode {
            b'p' => self.line_number().and_then(|place| self.put(place))?,
            b'q' => self.input.byte().and_then(|place| self.put(place.into()))?,
            b'r' => self.input.array().and_then(|place| self.put(u32::from_le_bytes(place).into()))?,
            0x94 => self.put(self.memo.len() as u64)?,
            b'g' => self.line_number().and_then(|place| self.get(place))?,
            b'h' => self.input.byte().and_then(|place| self.get(place.into()))?,
            b'j' => self.input.array().and_then(|place| self.get(u32::from_le_bytes(place).into()))?,
            0x80 => self.protocol()?,
            0x95 => self.input.skip(8)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mark(&mut self) -> bool {
        self.marks.push(self.stack.len());
        true
    }

    /// `POP` takes a mark if nothing lies above it.
    fn discard(&mut self) -> Result<bool, Error> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(true);
        }
        self.pop().map(|_| true)
    }

    fn duplicate(&mut self) -> Result<bool, Error> {
        let id = self.top()?;
        self.stack.push(id);
        Ok(true)
    }

    fn pop_pairs(&mut self) -> Result<Vec<(Id, Id)>, Error> {
        let items = self.pop_mark()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.broken(format_args!("expected keys and values, found {} items", items.len())));
        };
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), Error> {
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::List(list) => list.extend_from_slice(items),
            _ => return Err(self.broken(format_args!("expected a list to add to"))),
        }
        Ok(())
    }

    fn extend_dict(&mut self, pairs: &[(Id, Id)]) -> Result<(), Error> {
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::Dict(dict) => dict.extend_from_slice(pairs),
            _ => return Err(self.broken(format_args!("expected a dictionary to add to"))),
        }
        Ok(())
    }

    fn put(&mut self, place: u64) -> Result<(), Error> {
        let id = self.top()?;
        self.memo.insert(place, id);
        Ok(())
    }

    fn get(&mut self, place: u64) -> Result<(), Error> {
        let Some(&id) = self.memo.get(&place) else {
            return Err(self.broken(format_args!("expected a value in place {place} of the memo, found none")));
        };
        self.stack.push(id);
        Ok(())
    }

    fn protocol(&mut self) -> Result<(), Error> {
        match self.input.byte()? {
            0..=5 => Ok(()),
            other => Err(self.broken(format_args!("expected protocol 0 to 5, found {other}"))),
        }
    }

    /// A line of text, without its end.
    fn line(&mut self) -> Result<String, Error> {
        let line = self.input.line(LIMIT_LINE)?.and_then(|line| String::from_utf8(line).ok());
        line.ok_or_else(|| self.broken(format_args!("expected a line of at most {LIMIT_LINE} bytes of UTF-8")))
    }

    fn line_number(&mut self) -> Result<u64, Error> {
        let line = self.line()?;
        line.parse()
            .map_err(|_| self.broken(format_args!("expected a place in the memo, found `{}`", line.escape_debug())))
    }

    /// A decimal integer on its line; Python 2 ends it with `L`, and writes truth values as `00` and `01`.
    fn decimal(&mut self) -> Result<Node, Error> {
        let line = self.line()?;
        if matches!(&*line, "00" | "01") {
            return Ok(Node::Bool);
        }
        let value = line.strip_suffix('L').unwrap_or(&line).parse();
        value
            .map(Node::Int)
            .map_err(|_| self.broken(format_args!("expected an integer, found `{}`", line.escape_debug())))
    }

    /// A little-endian integer in two's complement, after its length in `N` bytes.
    fn long<const N: usize>(&mut self) -> Result<Node, Error> {
        let n_bytes = self.length::<N>()?;
        if n_bytes > LIMIT_INT as u64 {
            return Err(self.broken(format_args!("expected an integer of at most {LIMIT_INT} bytes, found {n_bytes}")));
        }
        let bytes = self.input.bytes(n_bytes)?;
        let sign = if bytes.last().is_some_and(|byte| byte >= &0x80) { 0xff } else { 0 };
        let mut value = [sign; LIMIT_INT];
        value[..bytes.len()].copy_from_slice(&bytes);
        Ok(Node::Int(i128::from_le_bytes(value)))
    }

    fn text<const N: usize>(&mut self) -> Result<Node, Error> {
        let n_bytes = self.length::<N>()?;
        let text = String::from_utf8(self.input.bytes(n_bytes)?);
        text.map(|text| Node::Text(text.into())).map_err(|_| self.broken(format_args!("expected text in UTF-8")))
    }

    fn skip_bytes<const N: usize>(&mut self) -> Result<Node, Error> {
        let n_bytes = self.length::<N>()?;
        self.input.skip(n_bytes).map(|()| Node::Unused)
    }

    /// A length in `N` bytes, at most that of a pickle.
    fn length<const N: usize>(&mut self) -> Result<u64, Error> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.input.array::<N>()?);
        let n_bytes = u64::from_le_bytes(wide);
        if n_bytes <= super::LIMIT_BYTES {
            return Ok(n_bytes);
        }
        Err(self.broken(format_args!("expected at most {} bytes, found {n_bytes}", super::LIMIT_BYTES)))
    }

    fn global_lines(&mut self) -> Result<Global, Error> {
        let (module, name) = (self.line()?, self.line()?);
        self.global(&module, &name)
    }

    fn global_texts(&self, module: Id, name: Id) -> Result<Node, Error> {
        match (self.node(module), self.node(name)) {
            (Node::Text(module), Node::Text(name)) => self.global(module, name).map(Node::Global),
            _ => Err(self.broken(format_args!("expected the texts of a module and a name"))),
        }
    }

    /// Every name that may be mentioned.
    fn global(&self, module: &str, name: &str) -> Result<Global, Error> {
        let storage = |name, bytes| Global::StorageType(ElementType { name, bytes });
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "FloatStorage") => storage("F32", 4),
            ("torch", "HalfStorage") => storage("F16", 2),
            ("torch", "BFloat16Storage") => storage("BF16", 2),
            ("torch", "DoubleStorage") => storage("F64", 8),
            ("torch", "LongStorage") => storage("I64", 8),
            ("torch", "IntStorage") => storage("I32", 4),
            ("torch", "ShortStorage") => storage("I16", 2),
            ("torch", "CharStorage") => storage("I8", 1),
            ("torch", "ByteStorage") => storage("U8", 1),
            ("torch", "BoolStorage") => storage("BOOL", 1),
            _ => {
                let global: String = module.chars().chain(['.']).chain(name.chars()).take(200).collect();
                let global = global.escape_debug().to_string();
                return Err(Error::RefusedGlobal { file: self.input.file().to_owned(), global });
            }
        })
    }
}
