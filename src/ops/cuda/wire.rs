//! How values get from the memory of one rank's GPU into another's.

use std::fmt::Debug;

use super::{Gpu, GpuError, View};

/// Exchanges between ranks of what lies in their GPUs' memory, in the order of each device's work. All ranks call the same in the
/// same order, with views of the same kind and length.
pub trait Wire: Debug + Send + Sync {
    /// `all` becomes what all ranks have in `own`, one behind the other in their order.
    ///
    /// # Errors
    /// When the device or the exchange fails.
    fn all_gather(&self, gpu: &Gpu, own: View, all: View) -> Result<(), GpuError>;

    /// `send` is cut into a piece for each rank, in their order. So is `receive`: piece r becomes what rank r sent to this one.
    ///
    /// # Errors
    /// When the device or the exchange fails.
    fn all_to_all(&self, gpu: &Gpu, send: View, receive: View) -> Result<(), GpuError>;
}
