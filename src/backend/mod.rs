//! The operations of devices: one trait of coarse, fused operations, implemented by the [`Host`] and by the [`Gpu`]. Networks,
//! heads, the optimiser, the queue and the training step are written once, on top of the trait, and know no device.
//!
//! The values of a branch are stored in flat buffers: parameters, gradients in the same layout, and buffers (running statistics,
//! fixed positions). A layer holds the ranges of its tensors (see [`layers`]). Operations return owned memory, which returns to
//! its pool when dropped.

mod bank;
mod contrasts;
mod convolutions;
pub mod cost;
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

/// A device that can train a model.
pub trait Backend: Convolutions + Transformers + Perceptrons + Banks + Contrasts {}

impl<B: Convolutions + Transformers + Perceptrons + Banks + Contrasts> Backend for B {}

/// Rows of a matrix on the device of a backend's losses.
pub type RowsOf<B> = Rows<<B as Memory>::Real, <B as Memory>::Tensors>;

/// A device with its memory. Clones refer to the same device.
pub trait Memory: Clone + 'static {
    /// The number type of losses, statistics and checkpoints.
    type Real: Real;
    /// The device's error.
    type Error: std::error::Error + Send + Sync + 'static;
    /// The dfdx device that holds the losses' tensors and their tape.
    type Tensors: TensorDevice<Self::Real>;
    /// An array of elements in the device's memory.
    type Buffer: Send;
    /// A branch's parameters, in the form that layers read.
    type Params;

    /// Whether operations return before the device has finished them. Then the metrics of a step arrive later.
    const ASYNCHRONOUS: bool;

    /// The device of the losses' tensors.
    fn tensors(&self) -> &Self::Tensors;

    /// The ranks that train together. A rank's encoder computes its share of a batch. Batch norm's statistics are those of the
    /// whole batch, or of the ranks in this rank's group.
    fn ranks(&self) -> &Ranks;

    /// The same device with other ranks.
    fn with_ranks(&self, ranks: Ranks) -> Self;

    /// Whether this rank exchanges nothing with other ranks.
    fn is_alone(&self) -> bool {
        self.ranks().is_alone()
    }

    /// Gathers the rows of a batch (reals). Each rank passes its share, and all ranks receive all shares in the order of ranks.
    fn gather(&self, own: Self::Buffer) -> Result<Self::Buffer, Self::Error>;

    /// This rank's share of `all`, the rows of a batch (reals).
    fn share(&self, all: Self::Buffer) -> Result<Self::Buffer, Self::Error>;

    /// Replaces `values` (reals) on every rank by their sum over all ranks. The sum is the top of the binary tree over the parts
    /// of a batch, so its bits do not depend on the number of ranks.
    fn sum_over_ranks(&self, values: &mut Self::Buffer) -> Result<(), Self::Error>;

    /// The device's own error behind an error that dfdx reported; `error` itself if the device noted none.
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

    /// A buffer of images [n, h, w, 3], in the form that networks read.
    fn images(&self, values: Vec<Self::Real>) -> Result<Self::Buffer, Self::Error>;

    /// The parameters of a branch. The first `encoder` of them belong to the encoder.
    fn params(&self, values: Vec<Self::Real>, encoder: usize) -> Result<Self::Params, Self::Error>;

    /// The values of parameters. Waits for the device.
    fn read_params(&self, params: &Self::Params) -> Result<Vec<Self::Real>, Self::Error>;

    /// Overwrites the first parameters.
    fn write_params(&self, params: &mut Self::Params, values: &[Self::Real]) -> Result<(), Self::Error>;

    /// Parameters [n, columns] as rows of the losses' device.
    fn weight(&self, params: &Self::Params, range: Range<usize>, shape: (usize, usize))
    -> anyhow::Result<RowsOf<Self>>;

    /// Reals [n, columns] as rows of the losses' device.
    fn rows(&self, buffer: &Self::Buffer, shape: (usize, usize)) -> anyhow::Result<RowsOf<Self>>;

    /// The gradient of rows; zero if the loss does not depend on them.
    fn gradient(
        &self,
        gradients: &mut Gradients<Self::Real, Self::Tensors>,
        of: &RowsOf<Self>,
    ) -> anyhow::Result<Self::Buffer>;

    /// Initialises the gradient of rows with the reals of `range` in `start`.
    fn begin_gradient(
        &self,
        gradients: &mut Gradients<Self::Real, Self::Tensors>,
        of: &RowsOf<Self>,
        start: &Self::Buffer,
        range: Range<usize>,
    ) -> anyhow::Result<()>;

    /// Number of elements in a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// A copy of the elements of `range`, reals or not.
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

/// Features of a network on a device, and the results that its backward pass needs, if they are kept.
pub type Features<B, S> = Result<(<B as Memory>::Buffer, Option<S>), <B as Memory>::Error>;

/// The values that layers read and update in a forward pass.
pub struct Branch<'a, B: Memory> {
    pub params: &'a B::Params,
    pub statistics: Statistics<'a, B>,
}

/// The source of batch norm's statistics, with the buffers of a branch.
pub enum Statistics<'a, B: Memory> {
    /// Statistics of the batch. The forward pass updates the running statistics.
    Batch(&'a mut B::Buffer),
    /// The running statistics, which stay as they are.
    Running(&'a B::Buffer),
}

impl<B: Memory> Statistics<'_, B> {
    /// The buffers of the branch.
    pub fn all(&self) -> &B::Buffer {
        match self {
            Statistics::Batch(all) => all,
            Statistics::Running(all) => all,
        }
    }
}

/// The values that layers read and add to in a backward pass.
pub struct Learned<'a, B: Memory> {
    pub params: &'a B::Params,
    /// In the layout of the parameters.
    pub gradients: &'a mut B::Buffer,
}
