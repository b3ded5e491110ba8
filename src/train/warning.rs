//! What can go wrong in training: what was seen, why it matters, what to try.

use std::fmt;

/// A reason to stop training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warning {
    /// The loss is no longer a number.
    NonFiniteLoss { step: u64, loss: f64, learning_rate: f64 },
    /// All images are mapped to nearly one point.
    Collapse { step: u64, std: f64, effective_rank: f64 },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Warning::NonFiniteLoss { step, loss, learning_rate } => write!(
                f,
                "training diverged: the loss is {loss} at step {step} (learning rate {learning_rate:.3e})\n  \
                 why it matters: from here on every weight is NaN\n  \
                 what to try: a lower optimizer.base_lr, a longer schedule.warmup_epochs, a higher method.tau"
            ),
            Warning::Collapse { step, std, effective_rank } => write!(
                f,
                "the embeddings collapsed: at step {step} their spread is {std:.4} (1 is uniform) and their effective \
                 rank {effective_rank:.2}\n  \
                 why it matters: all images look the same to the encoder, so no probe can tell them apart\n  \
                 what to try: a lower optimizer.base_lr, stronger augmentations, a larger batch_size, a lower method.tau; \
                 or health.stop_on_collapse: false to go on regardless"
            ),
        }
    }
}
