//! Gradients inside a block.

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor};
use modegpt_model::{Point, Probe};

/// Adds a zero to what passes, of which autodiff keeps the gradient: that of the value itself.
///
/// ```text
/// y = f(x + z),   ∂L/∂z at z = 0  =  ∂L/∂x
/// ```
///
/// Only leaves of the graph have a gradient in burn, and what passes is none.
pub(crate) struct Leaves {
    all_maps: bool,
    zeros: BTreeMap<Point, Tensor<2>>,
    values: BTreeMap<Point, Tensor<2>>,
}

/// What was seen of a block, without graph.
pub(crate) struct Seen {
    values: BTreeMap<Point, Tensor<2>>,
    gradients: BTreeMap<Point, Tensor<2>>,
}

impl Leaves {
    /// `all_maps`: the inputs and outputs of every linear map, not only what the Gram matrices need.
    pub(crate) fn new(all_maps: bool) -> Self {
        Self { all_maps, zeros: BTreeMap::new(), values: BTreeMap::new() }
    }

    /// What was seen, once the backward pass has been run.
    pub(crate) fn gradients(self, grads: &mut Gradients) -> Seen {
        let mut gradient = |zero: &Tensor<2>| zero.grad_remove(grads).expect("the output depends on all that passes");
        let gradients = self.zeros.iter().map(|(point, zero)| (*point, gradient(zero))).collect();
        Seen { values: self.values, gradients }
    }

    fn wants_gradient(&self, point: Point) -> bool {
        match point {
            Point::Query | Point::Key | Point::Output | Point::Down => true,
            Point::Value | Point::Gate | Point::Up => self.all_maps,
            Point::AttentionInput | Point::Attention | Point::OutputInput | Point::MlpInput | Point::Hidden => false,
        }
    }

    fn wants_value(&self, point: Point) -> bool {
        match point {
            Point::Query => true,
            Point::AttentionInput | Point::OutputInput | Point::MlpInput | Point::Hidden => self.all_maps,
            _ => false,
        }
    }
}

impl Probe for Leaves {
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2> {
        if self.wants_value(point) {
            self.values.insert(point, x.clone().inner());
        }
        if !self.wants_gradient(point) {
            return x;
        }
        let zero = x.clone().inner().zeros_like().autodiff().require_grad();
        self.zeros.insert(point, zero.clone());
        x + zero
    }
}

impl Seen {
    /// What passed.
    pub(crate) fn value(&self, point: Point) -> Tensor<2> {
        self.values[&point].clone()
    }

    /// Its gradient.
    pub(crate) fn gradient(&self, point: Point) -> Tensor<2> {
        self.gradients[&point].clone()
    }

    /// Whether the block has such a point.
    pub(crate) fn has(&self, point: Point) -> bool {
        self.gradients.contains_key(&point)
    }
}
