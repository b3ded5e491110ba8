//! A transformer's block, forward and backward, on whatever rows of tokens a device takes through it at a time.

/// The types of a block's rows on a device.
pub trait Types {
    /// [rows, columns]
    type Rows;
    /// Rows that were normalised, and what is kept of their statistics.
    type Normed;
    /// Queries, keys and values.
    type Qkv;
    /// What attention keeps beside its output.
    type Weights;
}

/// A linear layer behind the attention.
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

/// What a block's backward pass needs. Outputs of norms and of the GELU are computed again.
pub struct Kept<T: Types> {
    input: T::Normed,
    qkv: T::Qkv,
    attended: T::Rows,
    weights: T::Weights,
    /// Input of the perceptron's half.
    middle: T::Normed,
    /// Output of `fc1`, before the GELU.
    hidden: T::Rows,
}

type Rows<O> = <<O as Operations>::Types as Types>::Rows;
type Normed<O> = <<O as Operations>::Types as Types>::Normed;
type Qkv<O> = <<O as Operations>::Types as Types>::Qkv;
type Weights<O> = <<O as Operations>::Types as Types>::Weights;

/// What a device does with the rows that it takes through a block.
pub trait Operations {
    type Types: Types;
    type Error;

    /// The normalised rows, and what is kept of those given.
    fn layer_norm(&self, norm: Norm, x: Rows<Self>) -> Result<(Rows<Self>, Normed<Self>), Self::Error>;

    /// The normalised rows again.
    fn normed(&self, norm: Norm, x: &Normed<Self>) -> Result<Rows<Self>, Self::Error>;

    /// Adds to `g` the gradient of the rows given, from that of the normalised ones. Adds to the gradient of the norm's
    /// parameters.
    fn norm_backward(
        &mut self,
        norm: Norm,
        x: Normed<Self>,
        g_normed: Rows<Self>,
        g: Rows<Self>,
    ) -> Result<Rows<Self>, Self::Error>;

    /// x w^T + bias, plus the rows `residual` where there are any.
    fn linear(&self, layer: Layer, x: &Rows<Self>, residual: Option<&Normed<Self>>) -> Result<Rows<Self>, Self::Error>;

    /// The gradient of a layer's input.
    fn linear_backward(&self, layer: Layer, g: &Rows<Self>) -> Result<Rows<Self>, Self::Error>;

    /// Adds to the gradients of a layer's parameters.
    fn add_gradient(&mut self, layer: Layer, x: &Rows<Self>, g: &Rows<Self>) -> Result<(), Self::Error>;

    fn qkv(&self, x: &Rows<Self>) -> Result<Qkv<Self>, Self::Error>;

    /// The gradient of the input. Adds to the gradients of the layer's parameters.
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

    /// Its output again; `g` becomes the gradient of its input.
    fn gelu_backward(&self, x: Rows<Self>, g: &mut Rows<Self>) -> Result<Rows<Self>, Self::Error>;
}

/// A block's output, and what its backward pass needs.
type Passed<O> = Result<(Rows<O>, Kept<<O as Operations>::Types>), <O as Operations>::Error>;

/// The block's output, and what its backward pass needs.
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

/// The gradient of the block's input from that of its output, `g`. Adds to the gradients of the parameters.
///
/// # Errors
/// When the device fails.
pub fn backward<O: Operations>(on: &mut O, kept: Kept<O::Types>, g: Rows<O>) -> Result<Rows<O>, O::Error> {
    let Kept { input, qkv, attended, weights, middle, hidden } = kept;
    // The residual connections pass g on as it is; each half of the block adds its own part.
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
