//! Gradients of the loss, streamed backward with one layer of weights on the device.
//!
//! ```text
//! forward    x_0 → layer 0 → x_1 → … → x_L            every x_l is kept on the tape
//! loss       g_L = ∂L/∂x_L                            final norm and head, a part of the vocabulary at a time
//! backward   g_L → layer L−1 → g_{L−1} → … → g_0      each layer computes x_{l+1} again from x_l, with autodiff
//! ```
//!
//! The loss `L` is the *sum* of the token losses in nats, so a gradient belongs to a position of the text, not to a batch;
//! how samples are batched changes nothing but rounding. Its tokens are those of the text or drawn from the model itself
//! ([`Labels`]), and a mask may take some out ([`Samples::counted`]).
//!
//! What is learnt of each layer is a [`LayerGradients`]: Gram matrices of the gradients where a layer adds to the residual
//! stream and at its queries and keys and, if asked for, the squared gradients of its weights.
//!
//! [`collect_gradients`] does all of it. The [`Tape`] is `L + 1` residual streams in whatever store it is given, memory or a
//! file; the gradient takes the places of streams that are not needed any more.

mod accumulate;
mod backward;
mod error;
mod forward;
mod leaves;
mod loss;
mod row_fisher;
mod sample;
mod tape;

use modegpt_architecture::WeightProvider;
use modegpt_model::Compute;

pub use backward::{GradientOptions, layer_gradients};
pub use error::GradientError;
pub use forward::forward;
pub use loss::{Loss, loss_elements, loss_gradient};
pub use modegpt_statistics::{Labels, LayerGradients, RowFisher};
pub use row_fisher::MAPS;
pub use tape::{Samples, Tape};

/// What [`collect_gradients`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The forward pass.
    Forward,
    /// Final norm, head and loss.
    Loss,
    /// The backward pass.
    Backward,
}

impl Stage {
    /// What to call it while it lasts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "gradients: forward",
            Self::Loss => "gradients: loss",
            Self::Backward => "gradients: backward",
        }
    }
}

/// Forward, loss, and backward through every layer.
///
/// `each` is given the gradients of the layers, from last to first. `progress` is told the stage, what is done of it and
/// what there is in all. The tape holds the gradients of the embeddings at the end ([`Tape::load`] of stream 0).
///
/// # Errors
/// [`GradientError`] if the samples do not fit the tape, none of their tokens counts, weights cannot be read, the device
/// fails, a value is not finite, or all gradients behind a layer are zero; also what `each` gives.
pub async fn collect_gradients<E: From<GradientError>>(
    weights: &dyn WeightProvider,
    samples: &Samples<'_>,
    options: &GradientOptions,
    tape: &mut Tape<'_>,
    compute: &Compute,
    mut progress: impl FnMut(Stage, usize, usize),
    mut each: impl FnMut(usize, LayerGradients) -> Result<(), E>,
) -> Result<Loss, E> {
    let (n_layers, n_samples) = (weights.config().layers.len(), tape.n_samples());
    let all = n_layers * n_samples;
    forward(weights, samples, tape, compute, |done| progress(Stage::Forward, done, all)).await?;
    let loss = loss_gradient(weights, samples, options.labels, tape, compute, |done, all| {
        progress(Stage::Loss, done, all);
    })
    .await?;
    for layer in (0..n_layers).rev() {
        let before = (n_layers - 1 - layer) * n_samples;
        let told = |done| progress(Stage::Backward, before + done, all);
        each(layer, layer_gradients(weights, layer, loss, tape, options, compute, told).await?)?;
    }
    Ok(loss)
}
