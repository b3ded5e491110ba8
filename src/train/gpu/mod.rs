//! Training on a GPU: encoder, its gradients, optimiser and moving average in our kernels on flat buffers of the device;
//! heads and losses as dfdx tensors there.

mod batch;
mod branch;
#[cfg(test)]
mod tests;
mod trainer;
mod unfinished;

pub use batch::KeptBatch;
pub use trainer::GpuTrainer;
