//! The warnings of a training. Each says what was seen, why it matters, and what to try.

use std::fmt;

/// A problem of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warning {
    /// The loss is no longer a number.
    NonFiniteLoss { step: u64, loss: f64, learning_rate: f64 },
    /// All images are mapped to nearly one point.
    Collapse { step: u64, std: f64, effective_rank: f64 },
    /// For some image, one neighbour has nearly all the weight.
    Saturated { step: u64, largest: f64 },
    /// For `steps` steps the loss has been that of embeddings without information.
    Uninformative { step: u64, loss: f64, expected: f64, steps: u64 },
}

impl Warning {
    /// Whether training must stop.
    pub fn stops(&self) -> bool {
        matches!(self, Warning::NonFiniteLoss { .. } | Warning::Collapse { .. })
    }
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
                 or health.stop_on_collapse: false to continue anyway"
            ),
            Warning::Saturated { step, largest } => write!(
                f,
                "the attention saturates: at step {step} the largest positiveness is {largest:.3}\n  \
                 why it matters: all of an image's weight goes to one neighbour, whether it is of its kind or not\n  \
                 what to try: method.attention: uniform, method.detach_w: projection, a larger method.k"
            ),
            Warning::Uninformative { step, loss, expected, steps } => write!(
                f,
                "the loss tells nothing: at step {step} it is {loss:.3}, and for {steps} steps it has stayed within 1 % of \
                 {expected:.3}, where all candidates are equally likely\n  \
                 why it matters: the encoder is not learning\n  \
                 what to try: a higher optimizer.base_lr, a lower method.tau, a longer schedule.warmup_epochs; for SwAV a \
                 smaller method.epsilon or fewer method.prototypes"
            ),
        }
    }
}
