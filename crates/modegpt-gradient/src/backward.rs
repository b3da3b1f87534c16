//! One layer's share of the backward pass.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Block, Compute};
use modegpt_statistics::{Labels, LayerGradients, RowFisher};

use crate::accumulate::Sums;
use crate::forward::check_finite;
use crate::leaves::Leaves;
use crate::{GradientError, Loss, Tape};

/// What is asked of the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientOptions {
    /// Which tokens the loss is taken of.
    pub labels: Labels,
    /// Whether, and how, squared gradients of the weights are summed. They add a tenth to the time.
    pub row_fisher: Option<RowFisher>,
}

/// Carries the gradient back through layer `layer` and gives what was seen of it.
///
/// On the tape, stream `layer` holds that layer's input and stream `layer + 1` the gradient of its output; afterwards
/// stream `layer` holds the gradient of the input. The layer is computed again batch by batch with autodiff, whose graph
/// never spans more than one batch of one layer.
///
/// `loss` is what [`loss_gradient`](crate::loss_gradient) gave. `progress` is told how many samples have passed.
///
/// # Errors
/// [`GradientError`] if weights cannot be read, the device or the tape fails, a gradient is not finite, or all are zero.
pub async fn layer_gradients(
    weights: &dyn WeightProvider,
    layer: usize,
    loss: Loss,
    tape: &mut Tape<'_>,
    options: &GradientOptions,
    compute: &Compute,
    mut progress: impl FnMut(usize),
) -> Result<LayerGradients, GradientError> {
    let at = GradientError::at(layer);
    let config = weights.config();
    let shape = &config.layers[layer];
    let block = Block::new(weights.layer(layer).map_err(|e| at(e.into()))?, shape, config, compute);
    let mut sums = Sums::new(config, shape, options.row_fisher);
    for batch in tape.batches() {
        let x = compute.tensor(tape.load(layer, &batch)?, tape.shape(&batch)).autodiff().require_grad();
        let outgoing = compute.tensor(tape.load(layer + 1, &batch)?, tape.shape(&batch));
        let mut leaves = Leaves::new(options.row_fisher.is_some());
        let y = block.probe(x.clone(), &mut leaves);
        // The gradient of this number is that of the loss, of which `outgoing` is the derivative by `y`.
        let mut grads = (y * outgoing).sum().backward();
        sums.add(&leaves.gradients(&mut grads), tape.seq_len(), compute).await.map_err(&at)?;
        let incoming = x.grad_remove(&mut grads).expect("the output depends on the input");
        let incoming = compute.read(incoming).await.map_err(&at)?;
        check_finite(&incoming, "the gradient").map_err(&at)?;
        tape.store(layer, &batch, &incoming)?;
        progress(batch.end);
    }
    drop(block);
    compute.release();
    let gradients = sums.finish(loss);
    if gradients.residual.is_zero() { Err(GradientError::Zero { layer }) } else { Ok(gradients) }
}
