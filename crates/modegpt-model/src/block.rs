//! One decoder block: attention, then the MLP, each around the residual stream.

use burn::tensor::{
    Tensor,
    activation::{gelu, gelu_approximate, relu, silu},
};
use modegpt_architecture::{
    Activation, LayerShape, LayerWeights, Linear as LinearWeights, ModelConfig, NormPlacement, Weight,
};

use crate::probe::{Closed, Keep};
use crate::{
    Compute, KvCache, Point, Probe, attention::Attention, host, linear::Linear, norm::Norm, rope::RotaryTables,
};

/// A decoder block on the device. Its widths are those of its weights.
#[derive(Clone, Debug)]
pub struct Block {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
    placement: NormPlacement,
    shape: LayerShape,
    config: ModelConfig,
    compute: Compute,
}

/// One of the two sublayers of a block, each with its residual connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The first.
    Attention,
    /// The second.
    Mlp,
}

/// What calibration looks at, for all tokens of a batch as rows.
#[derive(Clone, Debug)]
pub struct Observations {
    /// Queries before rotation, with their bias: `[rows, n_heads * d_qk]`.
    pub query: Tensor<2>,
    /// Keys before rotation, with their bias: `[rows, n_kv_heads * d_qk]`.
    pub key: Tensor<2>,
    /// Values without their bias: `[rows, n_kv_heads * d_v]`.
    pub value: Tensor<2>,
    /// What attention delivers to its output map, without the values' bias: `[rows, n_heads * d_v]`.
    pub attention: Tensor<2>,
    /// Hidden units of the MLP, as they enter its last map: `[rows, d_ff]`.
    pub hidden: Tensor<2>,
    /// The input of query, key and value maps: `[rows, d_model]`.
    pub attention_input: Tensor<2>,
    /// The input of the MLP's first maps: `[rows, d_model]`.
    pub mlp_input: Tensor<2>,
}

impl Block {
    /// Brings a layer's weights to the device, dense or as stored.
    ///
    /// `shape` is that layer's entry of `config.layers`; the weights have its widths.
    pub fn new(
        weights: impl Into<LayerWeights<Weight>>,
        shape: &LayerShape,
        config: &ModelConfig,
        compute: &Compute,
    ) -> Self {
        let LayerWeights { attention_norm, query, key, value, output, mlp_norm, gate, up, down } = weights.into();
        Self {
            attention_norm: Norm::new(attention_norm, config, compute),
            attention: Attention::new([query, key, value, output], config, compute),
            mlp_norm: Norm::new(mlp_norm, config, compute),
            mlp: Mlp::new(gate, up, down, config.activation, compute),
            placement: config.norm_placement,
            shape: shape.clone(),
            config: config.clone(),
            compute: compute.clone(),
        }
    }

    /// Applies the block to whole sequences, `[batch, tokens, d_model]` in and out.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.run(x, None, &mut Closed)
    }

    /// Applies the block and also gives what passes inside it.
    pub fn observe(&self, x: Tensor<3>) -> (Tensor<3>, Observations) {
        let mut kept = Keep::default();
        let y = self.run(x, None, &mut kept);
        (y, kept.into_observations())
    }

    /// Applies the block and lets `probe` see, and replace, what passes inside it.
    pub fn probe(&self, x: Tensor<3>, probe: &mut dyn Probe) -> Tensor<3> {
        self.run(x, None, probe)
    }

    /// Applies one half of the block with its residual connection, `[batch, tokens, d_model]` in and out.
    pub fn forward_half(&self, half: Half, x: Tensor<3>) -> Tensor<3> {
        self.probe_half(half, x, &mut Closed)
    }

    /// Applies one half of the block and lets `probe` see, and replace, what passes inside it.
    pub fn probe_half(&self, half: Half, x: Tensor<3>, probe: &mut dyn Probe) -> Tensor<3> {
        let dims @ [batch, tokens, d_model] = x.dims();
        let x = match half {
            Half::Attention => self.run_attention(x, None, probe),
            Half::Mlp => self.run_mlp(x.reshape([batch * tokens, d_model]), probe),
        };
        x.reshape(dims)
    }

    /// What [`probe_half`](Self::probe_half) gives for `x` whose `units` are known already: what enters the last map of that
    /// half, `[batch * tokens, k]`.
    pub fn finish_half(&self, half: Half, x: Tensor<3>, units: Tensor<2>) -> Tensor<3> {
        let dims @ [batch, tokens, d_model] = x.dims();
        let x = x.reshape([batch * tokens, d_model]);
        let (norm, added) = match half {
            Half::Attention => (&self.attention_norm, self.attention.output(units)),
            Half::Mlp => (&self.mlp_norm, self.mlp.down.forward(units)),
        };
        self.join(x, norm, added).reshape(dims)
    }

    /// Applies the block to the next tokens of one sequence, `[1, tokens, d_model]`: either all of its first ones, into an
    /// empty cache, or one at a time.
    pub fn extend(&self, x: Tensor<3>, cache: &mut KvCache) -> Tensor<3> {
        self.run(x, Some(cache), &mut Closed)
    }

    fn run(&self, x: Tensor<3>, cache: Option<&mut KvCache>, probe: &mut dyn Probe) -> Tensor<3> {
        let dims = x.dims();
        let x = self.run_attention(x, cache, probe);
        self.run_mlp(x, probe).reshape(dims)
    }

    /// `[batch, tokens, d_model]` → `[batch * tokens, d_model]`
    fn run_attention(&self, x: Tensor<3>, cache: Option<&mut KvCache>, probe: &mut dyn Probe) -> Tensor<2> {
        let [batch, tokens, d_model] = x.dims();
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let rotary = RotaryTables::new(&self.config, &self.shape, start, tokens, &self.compute);
        let x = x.reshape([batch * tokens, d_model]);
        self.around(x, &self.attention_norm, |x| {
            self.attention.forward(x, batch, rotary.as_ref(), cache, &self.compute, probe)
        })
    }

    /// `[rows, d_model]`, same shape out.
    fn run_mlp(&self, x: Tensor<2>, probe: &mut dyn Probe) -> Tensor<2> {
        self.around(x, &self.mlp_norm, |x| self.mlp.forward(x, &self.compute, probe))
    }

    /// A sublayer with its residual connection and normalisation.
    fn around(&self, x: Tensor<2>, norm: &Norm, sublayer: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let added = match self.placement {
            NormPlacement::Pre => sublayer(norm.forward(x.clone())),
            NormPlacement::Post => sublayer(x.clone()),
        };
        self.join(x, norm, added)
    }

    /// The residual connection.
    fn join(&self, x: Tensor<2>, norm: &Norm, added: Tensor<2>) -> Tensor<2> {
        match self.placement {
            NormPlacement::Pre => x + added,
            NormPlacement::Post => norm.forward(x + added),
        }
    }
}

/// `act(x W_up) W_down`, or `(act(x W_gate) * (x W_up)) W_down` if gated.
#[derive(Clone, Debug)]
struct Mlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(
        gate: Option<LinearWeights<Weight>>,
        up: LinearWeights<Weight>,
        down: LinearWeights<Weight>,
        activation: Activation,
        compute: &Compute,
    ) -> Self {
        Self {
            gate: gate.map(|gate| Linear::new(gate, compute)),
            up: Linear::new(up, compute),
            down: Linear::new(down, compute),
            activation,
        }
    }

    fn forward(&self, x: Tensor<2>, compute: &Compute, probe: &mut dyn Probe) -> Tensor<2> {
        let x = probe.pass(Point::MlpInput, x);
        let gate = self.gate.as_ref().map(|gate| probe.pass(Point::Gate, gate.forward(x.clone())));
        let up = probe.pass(Point::Up, self.up.forward(x));
        let hidden = probe.pass(Point::Hidden, self.hidden(gate, up, compute));
        probe.pass(Point::Down, self.down.forward(hidden))
    }

    fn hidden(&self, gate: Option<Tensor<2>>, up: Tensor<2>, compute: &Compute) -> Tensor<2> {
        let kernel = match self.activation {
            Activation::GeluTanh => Some(host::Gate::GeluTanh),
            Activation::Silu => Some(host::Gate::Silu),
            Activation::Relu | Activation::Gelu => None,
        };
        let on_host = host::takes(&up, compute) && gate.as_ref().is_none_or(|gate| host::takes(gate, compute));
        match (kernel.filter(|_| on_host), gate) {
            (Some(kernel), Some(gate)) => {
                let up = up.into_data();
                host::change(gate, |gate| host::activate(gate, Some(host::values(&up)), kernel))
            }
            (Some(kernel), None) => host::change(up, |up| host::activate(up, None, kernel)),
            (None, Some(gate)) => self.activate(gate) * up,
            (None, None) => self.activate(up),
        }
    }

    fn activate(&self, x: Tensor<2>) -> Tensor<2> {
        match self.activation {
            Activation::Relu => relu(x),
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_approximate(x),
            Activation::Silu => silu(x),
        }
    }
}
