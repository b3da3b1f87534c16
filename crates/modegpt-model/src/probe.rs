//! Looking into a block while it computes.

use burn::tensor::Tensor;

use crate::Observations;

/// A place in a block where a value passes, all tokens of a batch as its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// What enters the query, key and value maps: `[rows, d_model]`.
    AttentionInput,
    /// Queries before rotation, with their bias: `[rows, n_heads * d_qk]`.
    Query,
    /// Keys before rotation, with their bias: `[rows, n_kv_heads * d_qk]`.
    Key,
    /// Values without their bias: `[rows, n_kv_heads * d_v]`.
    Value,
    /// What attention delivers, without the values' bias: `[rows, n_heads * d_v]`.
    Attention,
    /// The same with the values' bias, as it enters the output map: `[rows, n_heads * d_v]`.
    OutputInput,
    /// What the output map gives, with its bias: `[rows, d_model]`.
    Output,
    /// What enters the first maps of the MLP: `[rows, d_model]`.
    MlpInput,
    /// What the gate map gives, before the activation; in gated MLPs only: `[rows, d_ff]`.
    Gate,
    /// What the up map gives, before the activation if there is no gate: `[rows, d_ff]`.
    Up,
    /// Hidden units as they enter the down map: `[rows, d_ff]`.
    Hidden,
    /// What the down map gives, with its bias: `[rows, d_model]`.
    Down,
}

/// Sees every value that passes a [`Point`], in the order in which they are computed, and decides what goes on.
pub trait Probe {
    /// `x` passes `point`; what is returned, of the same shape, takes its place.
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2>;
}

/// Lets everything pass.
pub(crate) struct Closed;

impl Probe for Closed {
    fn pass(&mut self, _point: Point, x: Tensor<2>) -> Tensor<2> {
        x
    }
}

/// Keeps what [`Observations`] hold.
#[derive(Default)]
pub(crate) struct Keep {
    query: Option<Tensor<2>>,
    key: Option<Tensor<2>>,
    value: Option<Tensor<2>>,
    attention: Option<Tensor<2>>,
    hidden: Option<Tensor<2>>,
    attention_input: Option<Tensor<2>>,
    mlp_input: Option<Tensor<2>>,
}

impl Probe for Keep {
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2> {
        let place = match point {
            Point::Query => &mut self.query,
            Point::Key => &mut self.key,
            Point::Value => &mut self.value,
            Point::Attention => &mut self.attention,
            Point::Hidden => &mut self.hidden,
            Point::AttentionInput => &mut self.attention_input,
            Point::MlpInput => &mut self.mlp_input,
            _ => return x,
        };
        *place = Some(x.clone());
        x
    }
}

impl Keep {
    pub(crate) fn into_observations(self) -> Observations {
        let seen = |kept: Option<Tensor<2>>| kept.expect("every point is passed once in a forward pass");
        Observations {
            query: seen(self.query),
            key: seen(self.key),
            value: seen(self.value),
            attention: seen(self.attention),
            hidden: seen(self.hidden),
            attention_input: seen(self.attention_input),
            mlp_input: seen(self.mlp_input),
        }
    }
}
