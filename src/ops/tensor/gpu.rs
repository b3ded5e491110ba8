//! Between buffers of a GPU and the rows of a dfdx device.

use std::rc::Rc;

use dfdx::prelude::*;

use super::{Matrix, Rows, TensorDevice};
use crate::ops::cuda::{Buffer, Gpu, GpuError, View};

/// A dfdx device beside a GPU.
pub trait GpuTensors: TensorDevice<f32> {
    /// Rows of f32 values on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are more or fewer than the shape has.
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<f32, Self>, GpuError>;

    /// The values of rows on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    fn lend(gpu: &Gpu, rows: &Rows<f32, Self>) -> Result<Rc<Buffer>, GpuError>;

    /// The gradient of a tensor on the GPU; zero where it took no part.
    ///
    /// # Errors
    /// When memory runs out.
    fn read_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
    ) -> Result<Buffer, GpuError>;

    /// Overwrites the gradient of a tensor.
    ///
    /// # Errors
    /// When memory runs out.
    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
        values: View,
    ) -> Result<(), GpuError>;
}

/// In tests the GPU may be emulated; then losses are on the CPU.
impl GpuTensors for Cpu {
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<f32, Self>, GpuError> {
        Ok(Rows::new(self.tensor_from_vec(gpu.read(at)?, shape), ()))
    }

    fn lend(gpu: &Gpu, rows: &Rows<f32, Self>) -> Result<Rc<Buffer>, GpuError> {
        Ok(Rc::new(gpu.upload(&rows.tensor().as_vec())?))
    }

    fn read_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
    ) -> Result<Buffer, GpuError> {
        gpu.upload(gradients.get_or_alloc_mut(of).expect("the host has memory"))
    }

    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
        values: View,
    ) -> Result<(), GpuError> {
        let values: Vec<f32> = gpu.read(values)?;
        gradients.get_or_alloc_mut(of).expect("the host has memory").copy_from_slice(&values);
        Ok(())
    }
}
