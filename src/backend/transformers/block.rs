//! The forward and backward pass of a transformer block, written once for all devices. A device chooses how many rows of tokens
//! pass through a block at a time, and provides the [operations](Operations).

/// The types in which a device holds the rows and intermediate results of a block.
pub trait Types {
    /// [rows, columns]
    type Rows;
    /// The input of a layer norm, with the statistics that the device keeps of it.
    type Normed;
    /// Queries, keys and values.
    type Qkv;
    /// Results of the attention, beside its output, that its backward pass needs.
    type Weights;
}

/// A linear layer after the attention.
#[derive(Clone, Copy, Debug)]
pub enum Layer {
    Proj,
    Fc1,
    Fc2,
}

/// A layer norm of the block.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    First,
    Second,
}

/// The results that a block's backward pass needs. It recomputes the outputs of norms and of the GELU.
pub struct Kept<T: Types> {
    input: T::Normed,
    qkv: T::Qkv,
    attended: T::Rows,
    weights: T::Weights,
    /// The input of the second half of the block, the perceptron.
    middle: T::Normed,
    /// Output of `fc1`, before the GELU.
    hidden: T::Rows,
}

type Rows<O> = <<O as Operations>::Types as Types>::Rows;
type Normed<O> = <<O as Operations>::Types as Types>::Normed;
type Qkv<O> = <<O as Operations>::Types as Types>::Qkv;
type Weights<O> = <<O as Operations>::Types as Types>::Weights;

/// The operations of a device on the rows that pass through a block.
pub trait Operations {
    type Types: Types;
    type Error;

    /// The normalised rows, and `x` in the form that the backward pass needs.
    fn layer_norm(&self, norm: Norm, x: Rows<Self>) -> Result<(Rows<Self>, Normed<Self>), Self::Error>;

    /// Recomputes the normalised rows.
    fn normed(&self, norm: Norm, x: &Normed<Self>) -> Result<Rows<Self>, Self::Error>;

    /// Adds to `g` the gradient of the norm's input `x`, computed from the gradient `g_normed` of its output. Adds to the
    /// gradients of the norm's parameters.
    fn norm_backward(
        &mut self,
        norm: Norm,
        x: Normed<Self>,
        g_normed: Rows<Self>,
        g: Rows<Self>,
    ) -> Result<Rows<Self>, Self::Error>;

    /// x w^T + bias, plus the rows `residual` if given.
    fn linear(&self, layer: Layer, x: &Rows<Self>, residual: Option<&Normed<Self>>) -> Result<Rows<Self>, Self::Error>;

    /// The gradient of a layer's input, from the gradient `g` of its output.
    fn linear_backward(&self, layer: Layer, g: &Rows<Self>) -> Result<Rows<Self>, Self::Error>;

    /// Adds to the gradients of a layer's parameters, for input `x` and output gradient `g`.
    fn add_gradient(&mut self, layer: Layer, x: &Rows<Self>, g: &Rows<Self>) -> Result<(), Self::Error>;

    fn qkv(&self, x: &Rows<Self>) -> Result<Qkv<Self>, Self::Error>;

    /// The gradient of the input of the qkv layer. Adds to the gradients of the layer's parameters.
    fn qkv_backward(&mut self, x: Rows<Self>, g: Qkv<Self>) -> Result<Rows<Self>, Self::Error>;

    fn attention(&self, qkv: &Qkv<Self>) -> Result<(Rows<Self>, Weights<Self>), Self::Error>;

    /// The gradient of queries, keys and values.
    fn attention_backward(
        &self,
        qkv: Qkv<Self>,
        attended: (Rows<Self>, Weights<Self>),
        g: Rows<Self>,
    ) -> Result<Qkv<Self>, Self::Error>;

    fn gelu(&self, x: &Rows<Self>) -> Result<Rows<Self>, Self::Error>;

    /// Recomputes the output of the GELU. Replaces `g`, the gradient of its output, by that of its input.
    fn gelu_backward(&self, x: Rows<Self>, g: &mut Rows<Self>) -> Result<Rows<Self>, Self::Error>;
}

/// A block's output, and the results that its backward pass needs.
type Passed<O> = Result<(Rows<O>, Kept<<O as Operations>::Types>), <O as Operations>::Error>;

/// The forward pass: the block's output, and the results that the backward pass needs.
///
/// # Errors
/// When the device fails.
pub fn forward<O: Operations>(on: &O, input: Rows<O>) -> Passed<O> {
    let (normed, input) = on.layer_norm(Norm::First, input)?;
    let qkv = on.qkv(&normed)?;
    drop(normed);
    let (attended, weights) = on.attention(&qkv)?;
    let middle = on.linear(Layer::Proj, &attended, Some(&input))?;

    let (normed, middle) = on.layer_norm(Norm::Second, middle)?;
    let hidden = on.linear(Layer::Fc1, &normed, None)?;
    drop(normed);
    let active = on.gelu(&hidden)?;
    let output = on.linear(Layer::Fc2, &active, Some(&middle))?;
    Ok((output, Kept { input, qkv, attended, weights, middle, hidden }))
}

/// The backward pass: the gradient of the block's input, from the gradient `g` of its output. Adds to the gradients of the
/// parameters.
///
/// # Errors
/// When the device fails.
pub fn backward<O: Operations>(on: &mut O, kept: Kept<O::Types>, g: Rows<O>) -> Result<Rows<O>, O::Error> {
    let Kept { input, qkv, attended, weights, middle, hidden } = kept;
    // The residual connections pass g through unchanged. Each half of the block adds the gradient through its layers.
    let mut g_hidden = on.linear_backward(Layer::Fc2, &g)?;
    let active = on.gelu_backward(hidden, &mut g_hidden)?;
    on.add_gradient(Layer::Fc2, &active, &g)?;
    drop(active);
    let normed = on.normed(Norm::Second, &middle)?;
    on.add_gradient(Layer::Fc1, &normed, &g_hidden)?;
    drop(normed);
    let g_normed = on.linear_backward(Layer::Fc1, &g_hidden)?;
    drop(g_hidden);
    let g = on.norm_backward(Norm::Second, middle, g_normed, g)?;

    on.add_gradient(Layer::Proj, &attended, &g)?;
    let g_attended = on.linear_backward(Layer::Proj, &g)?;
    let g_qkv = on.attention_backward(qkv, (attended, weights), g_attended)?;
    let normed = on.normed(Norm::First, &input)?;
    let g_normed = on.qkv_backward(normed, g_qkv)?;
    on.norm_backward(Norm::First, input, g_normed, g)
}
