//! Writes what another program's logits are compared with.
//!
//! `dump-logits MODEL OUT` writes `OUT/ids.json` and `OUT/logits.safetensors` (tensor `logits`, `[1, tokens, vocab]`) for
//! the beginning of the test stories.

use std::path::PathBuf;

use modegpt::architecture::DType;
use modegpt::checkpoint::{ShardWriter, TensorSpec};
use modegpt::model_runtime::Compute;
use modegpt_tests::{logits, open_folder, read_text};

const TOKENS: usize = 48;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(out)) = (args.next(), args.next()) else {
        return Err(std::io::Error::other("usage: dump-logits MODEL OUT"));
    };
    let model = open_folder(model);
    let text: String = read_text("text/tinystories/test.txt").chars().take(1000).collect();
    let mut ids = model.tokenizer.prefix_ids().to_vec();
    ids.extend(model.tokenizer.encode(&text).map_err(std::io::Error::other)?);
    ids.truncate(TOKENS);
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("ids.json"), serde_json::to_string(&[&ids])?)?;
    let spec = TensorSpec { name: "logits".to_owned(), shape: vec![1, ids.len(), model.config().vocab] };
    let file = std::fs::File::create(out.join("logits.safetensors"))?;
    let mut writer = ShardWriter::begin(file, vec![spec], DType::F32)?;
    writer.put(&logits(&model, &ids, &Compute::host()))?;
    writer.finish()?;
    Ok(())
}
