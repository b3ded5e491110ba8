//! Transfers values from the memory of one rank's GPU to that of another rank's GPU.

use std::fmt::Debug;

use super::{Gpu, GpuError, View};

/// Exchanges between ranks of values in GPU memory, in the order of each device's work. All ranks must make the same calls in the
/// same order, with views of the same kind and length.
pub trait Wire: Debug + Send + Sync {
    /// Gathers the values `own` of all ranks in `all`, one rank after the other.
    ///
    /// # Errors
    /// When the device or the exchange fails.
    fn all_gather(&self, gpu: &Gpu, own: View, all: View) -> Result<(), GpuError>;

    /// Sends piece r of `send` to rank r, and receives piece r of `receive` from rank r. Both views are cut into one piece per
    /// rank, in the order of the ranks.
    ///
    /// # Errors
    /// When the device or the exchange fails.
    fn all_to_all(&self, gpu: &Gpu, send: View, receive: View) -> Result<(), GpuError>;
}
