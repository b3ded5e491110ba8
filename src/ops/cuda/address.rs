//! Where a dfdx tensor's values lie on the GPU.

use std::fmt::{self, Write};

use dfdx::prelude::*;

/// What the storage of a tensor prints of its address.
const FIELD: &str = "cu_device_ptr: ";

/// The device address of a tensor's storage.
///
/// dfdx keeps the storage of tensors private, but prints it: `… cu_device_ptr: N, …`. Printing stops once N is known.
///
/// # Panics
/// When dfdx prints something else; the version is pinned, and the first test on a GPU notices.
pub fn address<S: Shape, E: Unit, T: fmt::Debug>(tensor: &Tensor<S, E, Cuda, T>) -> u64
where
    Cuda: Storage<E>,
{
    let mut text = Found(String::with_capacity(256));
    let _ = write!(text, "{tensor:?}");
    let digits = text.number().expect("a CUDA tensor prints its address");
    digits.parse().expect("an address is a number")
}

/// Collects text until the address is complete.
struct Found(String);

impl Found {
    /// The digits behind the field's name, once something follows them.
    fn number(&self) -> Option<&str> {
        let rest = &self.0[self.0.find(FIELD)? + FIELD.len()..];
        rest.find(|c: char| !c.is_ascii_digit()).map(|end| &rest[..end])
    }
}

impl Write for Found {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        if self.number().is_some() { Err(fmt::Error) } else { Ok(()) }
    }
}
