//! Between buffers of a GPU and the rows of a dfdx device.

use std::rc::Rc;

use dfdx::prelude::*;

use super::{Buffer, Gpu, GpuError, View};
use crate::ops::{
    Real,
    tensor::{self, Matrix, Rows, Seen},
};

/// A dfdx device beside a GPU.
pub trait Bridge<E: Dtype>: Seen<E> {
    /// Rows of f32 values on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are more or fewer than the shape has.
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<E, Self>, GpuError>;

    /// The values of rows on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    fn lend(gpu: &Gpu, rows: &Rows<E, Self>) -> Result<Rc<Buffer>, GpuError>;

    /// The gradient of a tensor on the GPU; zero where it took no part.
    ///
    /// # Errors
    /// When memory runs out.
    fn read_gradient(gpu: &Gpu, gradients: &mut Gradients<E, Self>, of: &Matrix<E, Self>) -> Result<Buffer, GpuError>;

    /// Overwrites the gradient of a tensor.
    ///
    /// # Errors
    /// When memory runs out.
    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<E, Self>,
        of: &Matrix<E, Self>,
        values: View,
    ) -> Result<(), GpuError>;
}

/// In tests the GPU may be emulated; then losses are on the CPU.
impl<E: Real> Bridge<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    tensor::Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<E, Self>, GpuError> {
        let values: Vec<f32> = gpu.read(at)?;
        let values = values.into_iter().map(|v| E::of(v.into())).collect();
        Ok(Rows::new(self.tensor_from_vec(values, shape), ()))
    }

    fn lend(gpu: &Gpu, rows: &Rows<E, Self>) -> Result<Rc<Buffer>, GpuError> {
        let values: Vec<f32> = rows.tensor().as_vec().into_iter().map(|v| v.as_f64() as f32).collect();
        Ok(Rc::new(gpu.upload(&values)?))
    }

    fn read_gradient(gpu: &Gpu, gradients: &mut Gradients<E, Self>, of: &Matrix<E, Self>) -> Result<Buffer, GpuError> {
        let values = gradients.get_or_alloc_mut(of).expect("the host has memory");
        gpu.upload(&values.iter().map(|v| v.as_f64() as f32).collect::<Vec<_>>())
    }

    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<E, Self>,
        of: &Matrix<E, Self>,
        values: View,
    ) -> Result<(), GpuError> {
        let values: Vec<f32> = gpu.read(values)?;
        let to = gradients.get_or_alloc_mut(of).expect("the host has memory");
        to.iter_mut().zip(values).for_each(|(to, value)| *to = E::of(value.into()));
        Ok(())
    }
}
