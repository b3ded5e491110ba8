//! One branch's values on a GPU.

use std::sync::Arc;

use crate::{
    encoder::cuda::Arenas,
    ops::{
        batch_norm::cuda::Rows,
        conv2d::cuda::Math,
        cuda::{Bridge, Buffer, Gpu, GpuError, Scalar, View},
    },
    train::{
        Branch,
        optimizer::cuda::{Average, Followers},
    },
};

/// Parameters and running statistics of a branch, whose heads are on the dfdx device `D`.
pub struct BranchGpu<D: Bridge<f32>> {
    gpu: Gpu,
    math: Math,
    /// All parameters, f32.
    params: Buffer,
    /// The encoder's in half precision, where that is what it computes in.
    narrow: Option<Buffer>,
    /// The encoder's running statistics.
    statistics: Buffer,
    /// Those of the heads, where their batch norm moves them; laid out like all, without the encoder's being kept up to date.
    pub running: D::Running,
    lens: Lens,
}

/// Elements of all parameters; of the encoder's; of its running statistics.
#[derive(Clone, Copy, Debug)]
struct Lens {
    params: usize,
    encoder: usize,
    statistics: usize,
}

impl<D: Bridge<f32>> BranchGpu<D> {
    /// A copy of `branch` on the GPU; the encoder comes first, with so many parameters and running statistics.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(gpu: &Gpu, math: Math, branch: &Branch<f32>, encoder: (usize, usize)) -> Result<Self, GpuError> {
        let (encoder, statistics) = encoder;
        let narrow = match math.scalar() {
            Scalar::F32 => None,
            Scalar::F16 => Some(gpu.take(Scalar::F16, encoder)?),
        };
        let created = Self {
            gpu: gpu.clone(),
            math,
            params: gpu.upload(&branch.params)?,
            narrow,
            statistics: gpu.upload(&branch.buffers[..statistics])?,
            running: D::running(gpu, &branch.buffers)?,
            lens: Lens { params: branch.params.len(), encoder, statistics },
        };
        created.refresh()?;
        Ok(created)
    }

    /// The parameters.
    pub fn params(&self) -> View<'_> {
        self.params.view()
    }

    /// Elements of the parameters.
    pub fn len(&self) -> usize {
        self.lens.params
    }

    /// What the encoder reads.
    pub fn arenas(&self) -> Arenas<'_> {
        let kernels = self.narrow.as_ref().unwrap_or(&self.params).view();
        let (params, buffers) = (self.params.view(), self.statistics.view());
        Arenas { gpu: &self.gpu, math: self.math, params, kernels, buffers }
    }

    /// What follows this branch's parameters when they move: their copy in half precision, and an average of them.
    pub fn followers<'a>(&'a self, average: Option<Average<'a>>) -> Followers<'a> {
        Followers { narrow: self.narrow.as_ref().map(Buffer::view), encoder: self.lens.encoder, average }
    }

    /// This branch as the average of another, moving by `1 - momentum`.
    pub fn average(&self, momentum: f64) -> Average<'_> {
        Average { target: self.params.view(), momentum, narrow: self.narrow.as_ref().map(Buffer::view) }
    }

    /// Brings what is derived of the parameters up to date, after they were written.
    ///
    /// # Errors
    /// When the device fails.
    fn refresh(&self) -> Result<(), GpuError> {
        match &self.narrow {
            Some(narrow) => Rows::narrow(&self.gpu, Scalar::F16, self.params.view(), narrow.view()),
            None => Ok(()),
        }
    }

    /// All values, on the host. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<Branch<f32>, GpuError> {
        let mut buffers = D::running_values(&self.running)?;
        buffers[..self.lens.statistics].copy_from_slice(&self.statistics.read::<f32>()?);
        Ok(Branch { params: Arc::new(self.params.read()?), buffers })
    }

    /// Other parameters, as far as `params` goes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write_params(&self, params: &[f32]) -> Result<(), GpuError> {
        assert!(params.len() <= self.lens.params);
        self.gpu.write(self.params.view().part(0..params.len()), params)?;
        self.refresh()
    }

    /// Other running statistics, as far as `buffers` goes, which is at least the encoder's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write_buffers(&mut self, buffers: &[f32]) -> Result<(), GpuError> {
        let mut all = D::running_values(&self.running)?;
        all[..buffers.len()].copy_from_slice(buffers);
        self.running = D::running(&self.gpu, &all)?;
        self.gpu.write(self.statistics.view(), &buffers[..self.lens.statistics])
    }
}
