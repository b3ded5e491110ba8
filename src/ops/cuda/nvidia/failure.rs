//! Converts failures of the driver to our errors.

use cudarc::driver::DriverError;

use crate::ops::cuda::GpuError;

/// The driver's text for an error.
pub fn explain(error: &DriverError) -> String {
    // The driver may have no text for an error.
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    }
}

/// Converts a failure of the driver at `what`.
pub fn failed(what: &str) -> impl FnOnce(DriverError) -> GpuError {
    move |error| GpuError::Failed { what: what.into(), why: explain(&error) }
}
