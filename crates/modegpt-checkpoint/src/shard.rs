//! A safetensors file written as a stream: the header first, then each tensor's elements in the order announced.

use std::io::{self, Write};

use modegpt_architecture::DType;
use serde_json::{Map, Value, json};

use crate::TensorSpec;

/// Writes one safetensors file without holding it.
pub struct ShardWriter<W> {
    out: W,
    dtype: DType,
    tensors: Vec<TensorSpec>,
    /// The tensor being written and how many of its elements are.
    current: usize,
    written: usize,
}

impl<W: Write> ShardWriter<W> {
    /// Writes the header for `tensors`, all of one element type.
    ///
    /// # Errors
    /// What `out` gives.
    pub fn begin(mut out: W, tensors: Vec<TensorSpec>, dtype: DType) -> io::Result<Self> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut start = 0;
        for spec in &tensors {
            let end = start + spec.n_elements() * dtype.size();
            let name = match dtype {
                DType::F32 => "F32",
                DType::F16 => "F16",
                DType::Bf16 => "BF16",
            };
            header.insert(spec.name.clone(), json!({"dtype": name, "shape": spec.shape, "data_offsets": [start, end]}));
            start = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // The elements begin at a multiple of eight, as the format asks.
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        Ok(Self { out, dtype, tensors, current: 0, written: 0 })
    }

    /// Writes the next elements of the next unfinished tensor, in its stored order.
    ///
    /// # Errors
    /// What the stream gives; [`io::ErrorKind::InvalidData`], naming the tensor, if a value does not fit the element type
    /// or there are more elements than announced.
    pub fn put(&mut self, values: &[f32]) -> io::Result<()> {
        let Some(spec) = self.tensors.get(self.current) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more tensors than announced"));
        };
        let invalid =
            |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, format!("tensor `{}`: {what}", spec.name)));
        if self.written + values.len() > spec.n_elements() {
            return invalid(format!("more than the {} elements of its shape {:?}", spec.n_elements(), spec.shape));
        }
        let bytes = self.dtype.encode(values);
        if self.dtype != DType::F32 {
            let overflow = values.iter().zip(self.dtype.decode(&bytes)).find(|(_, rounded)| !rounded.is_finite());
            if let Some((value, _)) = overflow {
                return invalid(format!("{value} does not fit {}; choose --dtype f32", self.dtype.torch_name()));
            }
        }
        self.out.write_all(&bytes)?;
        self.written += values.len();
        if self.written == spec.n_elements() {
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if elements are missing.
    pub fn finish(self) -> io::Result<W> {
        match self.tensors.get(self.current) {
            None => Ok(self.out),
            Some(spec) => {
                let text = format!("tensor `{}`: {} of {} elements", spec.name, self.written, spec.n_elements());
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{MemorySource, TensorIndex};

    fn specs() -> Vec<TensorSpec> {
        vec![
            TensorSpec { name: "b".to_owned(), shape: vec![2, 3] },
            TensorSpec { name: "a".to_owned(), shape: vec![4] },
        ]
    }

    #[test]
    fn what_is_written_in_parts_reads_back_whole() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let mut writer = ShardWriter::begin(Vec::new(), specs(), dtype).expect("memory takes it");
            writer.put(&[1.0, 2.0]).expect("fits");
            writer.put(&[3.0, 4.0, 5.0, 6.0]).expect("fits");
            writer.put(&[-1.0, -2.0, -3.0, -4.0]).expect("fits");
            let bytes = writer.finish().expect("complete");
            let source = Arc::new(MemorySource::from_iter([("model.safetensors", bytes)]));
            let index = TensorIndex::open(source.as_ref()).expect("a valid file");
            assert_eq!(index.read_f32(source.as_ref(), "b").expect("there"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert_eq!(index.read_f32(source.as_ref(), "a").expect("there"), [-1.0, -2.0, -3.0, -4.0]);
        }
    }

    #[test]
    fn wrong_counts_and_overflow_are_errors() {
        let begin = |dtype| ShardWriter::begin(Vec::new(), specs(), dtype).expect("memory takes it");
        let mut writer = begin(DType::F32);
        writer.put(&[0.0; 6]).expect("fits");
        assert_eq!(writer.finish().expect_err("a is missing").to_string(), "tensor `a`: 0 of 4 elements");
        let error = begin(DType::F32).put(&[0.0; 7]).expect_err("too many");
        assert!(error.to_string().contains("more than the 6 elements"));
        let error = begin(DType::F16).put(&[7e4]).expect_err("too large");
        assert!(error.to_string().contains("tensor `b`: 70000 does not fit float16"));
    }
}
