//! Linear layers with bias, batch norm and ReLU: the building blocks of projectors and predictors.

use super::{Branch, Learned, Memory, layers::Dense};

/// The values of a layer's forward pass that its backward pass needs.
pub struct Passed<'a, B: Perceptrons> {
    pub x: &'a B::Buffer,
    pub kept: B::KeptDense,
    /// The output, if the layer ends with a ReLU.
    pub output: Option<&'a B::Buffer>,
}

/// The layers of projectors and predictors. Rows are [n, channels], in reals.
pub trait Perceptrons: Memory {
    /// Values that a layer's backward pass needs beside its input and output.
    type KeptDense;

    /// A layer's output. Updates the running statistics.
    fn dense(
        &self,
        layer: &Dense,
        branch: &mut Branch<Self>,
        x: &Self::Buffer,
    ) -> Result<(Self::Buffer, Self::KeptDense), Self::Error>;

    /// The gradient of a layer's input, from the gradient `g` of its output; added to `onto` if given. Adds to the gradients
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
