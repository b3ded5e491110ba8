//! Values of dfdx tensors on the GPU, as views.

use std::fmt::{self, Write};

use cudarc::driver::{DevicePtr, DeviceSlice};
use dfdx::prelude::*;

use super::{Kind, View};

/// A tensor whose values lie in the order of its axes, as kernels read and write them.
pub struct Contiguous<S: Shape>(Tensor<S, f32, Cuda>);

impl<S: Shape> Contiguous<S> {
    /// The tensor itself, where its values lie so, or a copy.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn of(tensor: &Tensor<S, f32, Cuda>) -> Result<Self, CudaError> {
        Ok(Self(tensor.clone().try_contiguous()?))
    }

    /// Zeros.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn zeros(device: &Cuda, shape: S) -> Result<Self, CudaError> {
        Ok(Self(device.try_zeros_like(&shape)?))
    }

    /// The tensor.
    pub fn tensor(self) -> Tensor<S, f32, Cuda> {
        self.0
    }
}

/// Something whose values lie on the GPU.
pub trait Viewed {
    /// The values.
    fn view(&self) -> View<'_>;
}

impl<S: Shape> Viewed for Contiguous<S> {
    fn view(&self) -> View<'_> {
        // SAFETY: a contiguous tensor's storage has as many elements, and lives as long as the tensor, which is borrowed.
        unsafe { View::foreign(address(&self.0), Kind::F32, self.0.shape().num_elements()) }
    }
}

/// The values of storage, e.g. of a gradient.
pub fn of_storage(values: &<Cuda as Storage<f32>>::Vec) -> View<'_> {
    // SAFETY: the storage has as many elements, and is borrowed as long as the view is used.
    unsafe { lasting(values) }
}

/// The same, for as long as the caller likes.
///
/// # Safety
/// The storage must stay where it is as long as the view is used.
pub unsafe fn lasting<'a>(values: &<Cuda as Storage<f32>>::Vec) -> View<'a> {
    // SAFETY: as the caller promises.
    unsafe { View::foreign(*values.device_ptr(), Kind::F32, values.len()) }
}

/// What the storage of a tensor prints of its address.
const FIELD: &str = "cu_device_ptr: ";

/// The device address of a tensor's storage.
///
/// dfdx keeps the storage of tensors private, but prints it: `… cu_device_ptr: N, …`. Printing stops once N is known.
///
/// # Panics
/// When dfdx prints something else; the version is pinned, and the first test on a GPU notices.
fn address<S: Shape, E: Unit, T: fmt::Debug>(tensor: &Tensor<S, E, Cuda, T>) -> u64
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
