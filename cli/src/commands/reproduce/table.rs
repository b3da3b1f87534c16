//! Stored numbers, and how they were measured.

use serde::Deserialize;

/// The tables that come with the program.
pub(super) const TABLES: [&str; 3] = [
    include_str!("../../../../tests/results/stories260k.json"),
    include_str!("../../../../tests/results/opt-tiny-stories.json"),
    include_str!("../../../../tests/results/smollm2-135m.json"),
];

/// Perplexities of one model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// Name of the model, and of its folder.
    pub(super) model: String,
    /// Of the weights.
    pub(super) fingerprint: String,
    /// What it was calibrated on.
    pub(super) calibration: StoredDraw,
    /// What it was scored on.
    pub(super) text: TextFile,
    /// Of the scored windows.
    pub(super) token_hash: String,
    /// Tokens of a window.
    pub(super) seq_len: usize,
    /// Windows scored; all if absent.
    pub(super) max_windows: Option<usize>,
    /// Largest relative difference that passes.
    pub(super) tolerance: f64,
    /// Perplexity of the dense model.
    pub(super) dense: f64,
    /// Perplexities of compressed models: every method at every sparsity.
    pub(super) rows: Vec<StoredRow>,
}

/// Samples drawn at random from a text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredDraw {
    /// The text.
    pub(super) text: TextFile,
    /// How many.
    pub(super) samples: usize,
    /// Tokens of each.
    pub(super) seq_len: usize,
    /// Of the draw.
    pub(super) seed: u64,
    /// Of the samples.
    pub(super) token_hash: String,
    /// Tokens of the backward pass.
    pub(super) gradient_tokens: usize,
}

/// A file in the folder `text`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TextFile {
    /// Its path there.
    pub(super) file: String,
    /// Of its bytes.
    pub(super) sha256: String,
}

/// One number.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredRow {
    pub(super) method: String,
    pub(super) sparsity: f64,
    pub(super) perplexity: f64,
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let table: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let n_cells = table.methods().len() * table.sparsities().len();
        if table.rows.is_empty() || table.rows.len() != n_cells {
            return Err(format!(
                "{}: expected a row for each of {n_cells} cells, found {}",
                table.model,
                table.rows.len()
            ));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(table.tolerance) || !positive(table.dense) || !table.rows.iter().all(|r| positive(r.perplexity)) {
            return Err(format!("{}: expected positive numbers", table.model));
        }
        Ok(table)
    }

    /// Each method once, in order.
    pub(super) fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !methods.contains(&row.method.as_str()) {
                methods.push(&row.method);
            }
        }
        methods
    }

    /// Each sparsity once, in order.
    pub(super) fn sparsities(&self) -> Vec<f64> {
        let mut sparsities: Vec<f64> = Vec::new();
        for row in &self.rows {
            if !sparsities.contains(&row.sparsity) {
                sparsities.push(row.sparsity);
            }
        }
        sparsities
    }
}

#[cfg(test)]
mod tests {
    use modegpt::run::NamedMethod;

    use super::*;

    #[test]
    fn every_table_is_whole() {
        for text in TABLES {
            let table = Table::parse(text).expect("a table");
            for hash in
                [&table.token_hash, &table.text.sha256, &table.calibration.token_hash, &table.calibration.text.sha256]
            {
                assert!(hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{}: {hash}", table.model);
            }
            for method in table.methods() {
                NamedMethod::parse(method).expect("a method");
            }
            assert!(table.tolerance <= 0.02, "{}", table.model);
        }
    }

    #[test]
    fn tables_with_holes_are_refused() {
        let mut table: serde_json::Value = serde_json::from_str(TABLES[0]).expect("JSON");
        let rows = table["rows"].as_array_mut().expect("rows");
        let last = rows.pop().expect("a row");
        rows.push(serde_json::json!({ "method": "best", "sparsity": 0.123, "perplexity": 1.0 }));
        assert!(Table::parse(&table.to_string()).expect_err("a hole").contains("expected a row for each"));
        table["rows"] = serde_json::json!([{ "method": last["method"], "sparsity": 0.3, "perplexity": -1.0 }]);
        assert!(Table::parse(&table.to_string()).expect_err("negative").contains("expected positive numbers"));
    }
}
