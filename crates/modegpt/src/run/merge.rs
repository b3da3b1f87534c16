//! Adding up statistics that were collected in parts.

use std::path::{Path, PathBuf};

use modegpt_checkpoint::{Existing, Journal, OutputFolder};
use modegpt_statistics::StatisticsHeader;
use modegpt_text::token_hash;

use super::{RunError, StatisticsFolder};
use crate::Model;

/// Adds the statistics in `parts`, in order, and writes the sum to the folder `target`.
///
/// The sum has the same bits as statistics collected in one go with as many shards, in the same order.
///
/// # Errors
/// [`RunError`] if a part is missing, broken, or of another model; nothing appears at `target` then.
pub fn merge_statistics(
    model: &Model,
    parts: &[StatisticsFolder],
    target: &Path,
    existing: Existing,
) -> Result<PathBuf, RunError> {
    // Found out before anything is written: parts that are missing, or of another model.
    for part in parts {
        part.read(0, model.fingerprint())?;
    }
    let names: Vec<String> = parts.iter().map(|part| part.path().display().to_string()).collect();
    let journal =
        Journal::from([("merge".to_owned(), names.join(", ")), ("model".to_owned(), model.fingerprint().to_owned())]);
    let folder = OutputFolder::begin(target, existing, &journal)?;
    let ((), folder) = RunError::end(merge_layers(model, parts, &folder), folder)?;
    Ok(folder.commit()?)
}

fn merge_layers(model: &Model, parts: &[StatisticsFolder], folder: &OutputFolder) -> Result<(), RunError> {
    for layer in 0..model.config().layers.len() {
        let file = StatisticsFolder::file_name(layer);
        if !folder.has(&file) {
            let bytes = merged_layer(model, parts, layer)?;
            folder.write(&file, |out| Ok(out.write_all(&bytes)?))?;
        }
    }
    Ok(())
}

fn merged_layer(model: &Model, parts: &[StatisticsFolder], layer: usize) -> Result<Vec<u8>, RunError> {
    let mut headers: Vec<StatisticsHeader> = Vec::with_capacity(parts.len());
    let mut total = None;
    for part in parts {
        let (statistics, header) = part.read(layer, model.fingerprint())?;
        headers.push(header);
        let Some(total) = &mut total else {
            total = Some(statistics);
            continue;
        };
        total.merge(&statistics).map_err(|e| RunError::Statistics {
            file: part.path().join(StatisticsFolder::file_name(layer)),
            reason: e.to_string(),
        })?;
    }
    let (Some(total), Some(first)) = (total, headers.first()) else {
        let reason = "nothing to merge".to_owned();
        return Err(RunError::Statistics { file: PathBuf::new(), reason });
    };
    // Names the parts in their order, as the hash of one calibration names its tokens.
    let hashes: Vec<u32> = headers.iter().flat_map(|header| header.token_hash.bytes().map(u32::from)).collect();
    let n_samples = headers.iter().map(|header| header.n_samples).sum();
    let header = StatisticsHeader::new(layer, model.fingerprint(), token_hash(&hashes), n_samples, first.seq_len);
    Ok(total.to_bytes(&header))
}
