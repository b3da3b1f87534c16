//! Models with other layers than they are stored with.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::Path;

use modegpt::Model;
use modegpt::architecture::{
    LayerWeights, Matrix, ModelConfig, OuterWeights, Weight, WeightError, WeightProvider, family,
};
use modegpt::checkpoint::{index_json, shard_name, write_layer, write_outer};

/// A model with other layers than it is stored with, which notes what it is asked for.
pub struct Replaced<'a> {
    pub(crate) model: &'a Model,
    /// What the model is with these layers.
    pub config: ModelConfig,
    pub(crate) layers: Vec<LayerWeights<Weight>>,
    asked: RefCell<Vec<usize>>,
}

impl<'a> Replaced<'a> {
    pub(crate) fn new(model: &'a Model, config: ModelConfig, layers: Vec<LayerWeights<Weight>>) -> Self {
        Self { model, config, layers, asked: RefCell::default() }
    }

    /// `model` after `edit`, which is given every layer with its index. No map may be held as a product.
    pub fn edited(model: &'a Model, edit: impl Fn(usize, &mut LayerWeights)) -> Self {
        let edited = |layer: usize| {
            let mut weights = dense_layer(model, layer);
            edit(layer, &mut weights);
            weights.into()
        };
        let config = model.config().clone();
        let layers = (0..config.layers.len()).map(edited).collect();
        Self::new(model, config, layers)
    }

    /// The layers that were asked for, in that order.
    pub fn asked(&self) -> Vec<usize> {
        self.asked.borrow().clone()
    }

    /// Writes the model as a folder that this program and transformers load.
    ///
    /// # Errors
    /// If the folder cannot be written, or a map would grow.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let Self { model, config, layers, .. } = self;
        let (checkpoint, dtype, n_layers) = (&model.checkpoint, model.checkpoint.dtype(), layers.len());
        std::fs::create_dir_all(folder)?;
        let file =
            |shard: usize| std::fs::File::create(folder.join(shard_name(shard, n_layers))).map(io::BufWriter::new);
        write_outer(checkpoint, dtype, &mut file(0)?).map_err(io::Error::other)?;
        for (index, (layer, shape)) in layers.iter().zip(&config.layers).enumerate() {
            write_layer(config, index, shape, layer, dtype, &mut file(index + 1)?).map_err(io::Error::other)?;
        }
        let text = |name: &str, text: &str| std::fs::write(folder.join(name), text);
        text("config.json", &family::to_json(config, checkpoint.config_json(), dtype).to_string())?;
        text("model.safetensors.index.json", &index_json(config, dtype).to_string())?;
        text("configuration_modegpt.py", include_str!("../../crates/modegpt/python/configuration_modegpt.py"))?;
        text("modeling_modegpt.py", include_str!("../../crates/modegpt/python/modeling_modegpt.py"))?;
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            if let Some(bytes) = checkpoint.companion(name, 1 << 26).map_err(io::Error::other)? {
                std::fs::write(folder.join(name), bytes)?;
            }
        }
        Ok(())
    }
}

/// The weights of a layer of a model that holds no map as a product.
///
/// # Panics
/// If they cannot be read, or a map is a product.
pub fn dense_layer(model: &Model, layer: usize) -> LayerWeights {
    model.checkpoint.layer(layer).expect("readable weights").into_dense().expect("dense weights")
}

impl WeightProvider for Replaced<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layer(&self, index: usize) -> Result<LayerWeights<Weight>, WeightError> {
        self.asked.borrow_mut().push(index);
        Ok(self.layers[index].clone())
    }

    fn outer(&self) -> Result<OuterWeights, WeightError> {
        self.model.checkpoint.outer()
    }

    fn embedding_rows(&self, ids: &[u32]) -> Result<Matrix, WeightError> {
        self.model.checkpoint.embedding_rows(ids)
    }

    fn position_rows(&self, range: Range<usize>) -> Result<Option<Matrix>, WeightError> {
        self.model.checkpoint.position_rows(range)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Matrix, WeightError> {
        self.model.checkpoint.head_rows(range)
    }
}
