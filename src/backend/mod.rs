//! What devices compute: one trait of coarse, fused operations, implemented by the [`Host`] and by the [`Gpu`]. Networks, heads,
//! the optimiser, the queue and the training step are written once, above it, and know no device.
//!
//! A branch's values lie in flat buffers: parameters, gradients laid out like them, and buffers (running statistics, fixed
//! positions). Layers say where (see [`layers`]). Operations give back owned memory, which returns to its pool when dropped.

mod bank;
mod contrasts;
mod convolutions;
pub mod gpu;
mod host;
pub mod layers;
mod perceptrons;
mod transformers;

pub use bank::{Banks, Marks, Nearest, Origins};
pub use contrasts::Contrasts;
pub use convolutions::{Convolutions, Residual, Source};
pub use gpu::Gpu;
pub use host::Host;
pub use perceptrons::{Passed, Perceptrons};
pub use transformers::Transformers;

use std::ops::Range;

use dfdx::prelude::Gradients;

use crate::{
    ops::{
        Real,
        tensor::{Rows, TensorDevice},
    },
    ranks::Ranks,
};

/// A device that trains.
pub trait Backend: Convolutions + Transformers + Perceptrons + Banks + Contrasts {}

impl<B: Convolutions + Transformers + Perceptrons + Banks + Contrasts> Backend for B {}

/// Rows on the device of a backend's losses.
pub type RowsOf<B> = Rows<<B as Memory>::Real, <B as Memory>::Tensors>;

/// A device's memory. Clones are the same device.
pub trait Memory: Clone + 'static {
    /// What losses, statistics and checkpoints are in.
    type Real: Real;
    /// What the device may fail with.
    type Error: std::error::Error + Send + Sync + 'static;
    /// The dfdx device that has the losses' tensors and their tape.
    type Tensors: TensorDevice<Self::Real>;
    /// Elements in the device's memory.
    type Buffer: Send;
    /// A branch's parameters, as layers read them.
    type Params;

    /// Whether operations return before they are done. Then a step's values are there only later.
    const ASYNCHRONOUS: bool;

    /// The device of the losses' tensors.
    fn tensors(&self) -> &Self::Tensors;

    /// The ranks that train together. Encoders compute this rank's share of a batch, with statistics of the whole batch, or
    /// of this rank's group.
    fn ranks(&self) -> &Ranks;

    /// The same device among other ranks.
    fn with_ranks(&self, ranks: Ranks) -> Self;

    /// Whether nothing is exchanged with other ranks.
    fn is_alone(&self) -> bool {
        self.ranks().is_alone()
    }

    /// The rows of a batch, from this rank's share of them: reals, in the order of ranks.
    fn gather(&self, own: Self::Buffer) -> Result<Self::Buffer, Self::Error>;

    /// This rank's share of the reals `all`, the rows of a batch.
    fn share(&self, all: Self::Buffer) -> Result<Self::Buffer, Self::Error>;

    /// The sum of all ranks' reals, in their place: the top of the tree over a batch's parts.
    fn sum_over_ranks(&self, values: &mut Self::Buffer) -> Result<(), Self::Error>;

    /// The cause of an error that dfdx told, as far as the device knows more.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        error
    }

    /// A buffer of reals.
    fn buffer(&self, values: Vec<Self::Real>) -> Result<Self::Buffer, Self::Error>;

    /// A buffer of zeros.
    fn zeros(&self, len: usize) -> Result<Self::Buffer, Self::Error>;

    /// Sets a buffer of reals to zero.
    fn zero(&self, buffer: &mut Self::Buffer) -> Result<(), Self::Error>;

    /// The reals of a buffer. Waits for the device.
    fn read(&self, buffer: &Self::Buffer) -> Result<Vec<Self::Real>, Self::Error>;

    /// Overwrites the first reals of a buffer.
    fn write(&self, buffer: &mut Self::Buffer, values: &[Self::Real]) -> Result<(), Self::Error>;

    /// Images [n, h, w, 3] as networks read them.
    fn images(&self, values: Vec<Self::Real>) -> Result<Self::Buffer, Self::Error>;

    /// The parameters of a branch, of which the first `encoder` are an encoder's.
    fn params(&self, values: Vec<Self::Real>, encoder: usize) -> Result<Self::Params, Self::Error>;

    /// Their values. Waits for the device.
    fn read_params(&self, params: &Self::Params) -> Result<Vec<Self::Real>, Self::Error>;

    /// Overwrites the first parameters.
    fn write_params(&self, params: &mut Self::Params, values: &[Self::Real]) -> Result<(), Self::Error>;

    /// Parameters [n, columns] as rows of the losses' device.
    fn weight(&self, params: &Self::Params, range: Range<usize>, shape: (usize, usize))
    -> anyhow::Result<RowsOf<Self>>;

    /// Reals [n, columns] as rows of the losses' device.
    fn rows(&self, buffer: &Self::Buffer, shape: (usize, usize)) -> anyhow::Result<RowsOf<Self>>;

    /// The gradient of rows; zero where it took no part.
    fn gradient(
        &self,
        gradients: &mut Gradients<Self::Real, Self::Tensors>,
        of: &RowsOf<Self>,
    ) -> anyhow::Result<Self::Buffer>;

    /// Lets the gradient of rows begin at the reals of `range` in `start`.
    fn begin_gradient(
        &self,
        gradients: &mut Gradients<Self::Real, Self::Tensors>,
        of: &RowsOf<Self>,
        start: &Self::Buffer,
        range: Range<usize>,
    ) -> anyhow::Result<()>;

    /// Elements of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// A copy of the elements of `range`, whatever they are.
    fn part(&self, buffer: &Self::Buffer, range: Range<usize>) -> Result<Self::Buffer, Self::Error>;

    /// Multiplies reals by a factor.
    fn scale(&self, values: &mut Self::Buffer, factor: f64) -> Result<(), Self::Error>;

    /// Moves the reals of `range` out of a buffer and leaves zeros.
    fn take_out(&self, buffer: &mut Self::Buffer, range: Range<usize>) -> Result<Self::Buffer, Self::Error>;

    /// Overwrites the reals of `range` in a buffer.
    fn put(&self, buffer: &mut Self::Buffer, range: Range<usize>, values: &Self::Buffer) -> Result<(), Self::Error>;

    /// Adds the reals `more` to those of `range` in `total`.
    fn add(&self, total: &mut Self::Buffer, range: Range<usize>, more: &Self::Buffer) -> Result<(), Self::Error>;
}

/// Features of a network on a device and, where it is kept, what its backward pass needs.
pub type Features<B, S> = Result<(<B as Memory>::Buffer, Option<S>), <B as Memory>::Error>;

/// What layers read and move in a forward pass.
pub struct Branch<'a, B: Memory> {
    pub params: &'a B::Params,
    pub statistics: Statistics<'a, B>,
}

/// Where batch norm's statistics come from; the buffers of a branch.
pub enum Statistics<'a, B: Memory> {
    /// From the batch; running statistics move.
    Batch(&'a mut B::Buffer),
    /// From the running statistics.
    Running(&'a B::Buffer),
}

impl<B: Memory> Statistics<'_, B> {
    /// All of them.
    pub fn all(&self) -> &B::Buffer {
        match self {
            Statistics::Batch(all) => all,
            Statistics::Running(all) => all,
        }
    }
}

/// What layers read and add to in a backward pass.
pub struct Learned<'a, B: Memory> {
    pub params: &'a B::Params,
    /// Laid out like the parameters.
    pub gradients: &'a mut B::Buffer,
}
