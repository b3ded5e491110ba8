//! What projectors and predictors are made of.

use super::{Branch, Learned, Memory, layers::Dense};

/// A layer's forward pass, as its backward pass needs it.
pub struct Passed<'a, B: Perceptrons> {
    pub x: &'a B::Buffer,
    pub kept: B::KeptDense,
    /// The output, where the layer ends with a ReLU.
    pub output: Option<&'a B::Buffer>,
}

/// Linear layers with what follows them; rows are [n, channels], in reals.
pub trait Perceptrons: Memory {
    /// What a layer's backward pass needs beside its input and output.
    type KeptDense;

    /// A layer's output; running statistics move.
    fn dense(
        &self,
        layer: &Dense,
        branch: &mut Branch<Self>,
        x: &Self::Buffer,
    ) -> Result<(Self::Buffer, Self::KeptDense), Self::Error>;

    /// The gradient of a layer's input from `g`, that of its output, added to `onto` where there is one. Adds to the gradients
    /// of the parameters.
    fn dense_backward(
        &self,
        layer: &Dense,
        learned: &mut Learned<Self>,
        passed: Passed<Self>,
        g: Self::Buffer,
        onto: Option<Self::Buffer>,
    ) -> Result<Self::Buffer, Self::Error>;
}
