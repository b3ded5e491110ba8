//! Converts between GPU buffers and the rows of a dfdx device.

use std::rc::Rc;

use dfdx::prelude::*;

use super::{Matrix, Rows, TensorDevice};
use crate::ops::cuda::{Buffer, Gpu, GpuError, View};

/// A dfdx device that exchanges rows and gradients with a GPU.
pub trait GpuTensors: TensorDevice<f32> {
    /// Makes rows from f32 values on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the number of values differs from that of the shape.
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<f32, Self>, GpuError>;

    /// The values of rows as a GPU buffer.
    ///
    /// # Errors
    /// When the device fails.
    fn lend(gpu: &Gpu, rows: &Rows<f32, Self>) -> Result<Rc<Buffer>, GpuError>;

    /// The gradient of a tensor as a GPU buffer. It is zero if the tensor took no part in the loss.
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

/// For tests with an emulated GPU: the losses then run on the CPU.
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
