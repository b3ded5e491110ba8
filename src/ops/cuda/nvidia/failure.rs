//! Failures of the driver as errors of ours.

use cudarc::driver::DriverError;

use crate::ops::cuda::GpuError;

/// What the driver calls an error.
pub fn explain(error: &DriverError) -> String {
    // SAFETY: the text is the driver's own, or there is none.
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    }
}

/// An error at something.
pub fn failed(what: &str) -> impl FnOnce(DriverError) -> GpuError {
    move |error| GpuError::Failed { what: what.into(), why: explain(&error) }
}
