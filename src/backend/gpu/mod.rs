//! The backend for a GPU, with this project's own kernels. Tests may run it on an emulated GPU.

mod bank;
mod convolutions;
mod exchange;
mod perceptrons;
mod transformers;

use std::ops::Range;

pub use exchange::Exchange;

use dfdx::prelude::Gradients;

use super::Memory;
use crate::{
    ops::{
        batch_norm::cuda::Rows as Batch,
        contrast,
        conv2d::{
            Conv2d, Size,
            cuda::{Math, OnGpu},
        },
        cuda::{Buffer, Gpu as Device, GpuError, Kind, Scalar, View},
        parts::parts,
        tensor::{GpuTensors, Rows},
    },
    ranks::Ranks,
};

/// A GPU, and the dfdx device `D` that holds the losses' tensors.
#[derive(Clone, Debug)]
pub struct Gpu<D> {
    device: Device,
    tensors: D,
    /// The arithmetic of encoders.
    math: Math,
    exchange: Exchange,
}

/// A branch's parameters on a GPU.
#[derive(Debug)]
pub struct Params {
    /// All parameters, f32.
    all: Buffer,
    /// A copy of the encoder's parameters in 16 bits, if the encoder computes in 16 bits.
    half: Option<Buffer>,
    /// Number of the encoder's parameters, which come first.
    encoder: usize,
}

impl Params {
    /// The parameters in `range`, f32.
    fn of(&self, range: &Range<usize>) -> View<'_> {
        self.all.view().part(range.clone())
    }

    /// The encoder's parameters in `range`, in the precision in which its matrix products read them.
    fn factors(&self, range: &Range<usize>) -> View<'_> {
        self.half.as_ref().unwrap_or(&self.all).view().part(range.clone())
    }

    /// All parameters, f32.
    pub fn all(&self) -> View<'_> {
        self.all.view()
    }

    /// The copy of the encoder's parameters in 16 bits, if the encoder computes in 16 bits.
    pub fn half(&self) -> Option<View<'_>> {
        self.half.as_ref().map(Buffer::view)
    }

    /// Number of the encoder's parameters.
    pub fn encoder(&self) -> usize {
        self.encoder
    }
}

impl<D> Gpu<D> {
    /// A GPU that trains alone. Its encoders compute in `math`.
    pub fn new(device: Device, tensors: D, math: Math) -> Self {
        Self { device, tensors, math, exchange: Exchange::default() }
    }

    /// The same GPU as one of several ranks.
    #[must_use]
    pub fn among(self, exchange: Exchange) -> Self {
        Self { exchange, ..self }
    }

    /// The device itself.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The arithmetic of encoders.
    pub fn math(&self) -> Math {
        self.math
    }

    /// How activations are stored.
    fn scalar(&self) -> Scalar {
        self.math.scalar()
    }

    /// Memory for activations.
    fn take(&self, len: usize) -> Result<Buffer, GpuError> {
        self.device.take(self.scalar(), len)
    }

    /// Memory for reals.
    fn take_reals(&self, len: usize) -> Result<Buffer, GpuError> {
        self.device.take(Kind::F32, len)
    }

    /// A pass over images of `size`, this rank's share of a batch.
    fn over(&self, size: Size) -> OnGpu<'_> {
        OnGpu { gpu: &self.device, math: self.math, size, parts: parts(size.n) }
    }

    /// `values` (f32) converted to the storage type of activations.
    fn stored(&self, values: Buffer) -> Result<Buffer, GpuError> {
        match self.scalar() {
            Scalar::F32 => Ok(values),
            scalar => {
                let half = self.take(values.view().len())?;
                Batch::narrow(&self.device, scalar, values.view(), half.view())?;
                Ok(half)
            }
        }
    }
}

impl<D: GpuTensors> Memory for Gpu<D> {
    type Real = f32;
    type Error = GpuError;
    type Tensors = D;
    type Buffer = Buffer;
    type Params = Params;

    const ASYNCHRONOUS: bool = true;

    fn tensors(&self) -> &D {
        &self.tensors
    }

    fn ranks(&self) -> &Ranks {
        &self.exchange.ranks
    }

    fn is_alone(&self) -> bool {
        self.exchange.is_alone()
    }

    fn with_ranks(&self, ranks: Ranks) -> Self {
        self.clone().among(self.exchange.with_ranks(ranks))
    }

    fn gather(&self, own: Buffer) -> Result<Buffer, GpuError> {
        self.exchange.gather(&self.device, own)
    }

    fn share(&self, all: Buffer) -> Result<Buffer, GpuError> {
        self.exchange.share(&self.device, all)
    }

    fn sum_over_ranks(&self, values: &mut Buffer) -> Result<(), GpuError> {
        self.exchange.sum(&self.device, values.view())
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        self.device.take_noted().map_or(error, Into::into)
    }

    fn buffer(&self, values: Vec<f32>) -> Result<Buffer, GpuError> {
        self.device.upload(&values)
    }

    fn zeros(&self, len: usize) -> Result<Buffer, GpuError> {
        self.device.zeros(Kind::F32, len)
    }

    fn zero(&self, buffer: &mut Buffer) -> Result<(), GpuError> {
        self.device.zero(buffer.view())
    }

    fn read(&self, buffer: &Buffer) -> Result<Vec<f32>, GpuError> {
        buffer.read()
    }

    fn write(&self, buffer: &mut Buffer, values: &[f32]) -> Result<(), GpuError> {
        self.device.write(buffer.view().part(0..values.len()), values)
    }

    fn images(&self, values: Vec<f32>) -> Result<Buffer, GpuError> {
        self.stored(self.device.upload(&values)?)
    }

    fn params(&self, values: Vec<f32>, encoder: usize) -> Result<Params, GpuError> {
        let half = match self.scalar() {
            Scalar::F32 => None,
            Scalar::F16 | Scalar::Bf16 => Some(self.take(encoder)?),
        };
        let mut params = Params { all: self.device.upload(&values)?, half, encoder };
        self.write_params(&mut params, &[])?;
        Ok(params)
    }

    fn read_params(&self, params: &Params) -> Result<Vec<f32>, GpuError> {
        params.all.read()
    }

    fn write_params(&self, params: &mut Params, values: &[f32]) -> Result<(), GpuError> {
        self.device.write(params.all.view().part(0..values.len()), values)?;
        match &params.half {
            Some(half) => Batch::narrow(&self.device, self.scalar(), params.all.view(), half.view()),
            None => Ok(()),
        }
    }

    fn weight(&self, params: &Params, range: Range<usize>, shape: (usize, usize)) -> anyhow::Result<Rows<f32, D>> {
        Ok(self.tensors.rows_at(&self.device, params.of(&range), shape)?)
    }

    fn rows(&self, buffer: &Buffer, shape: (usize, usize)) -> anyhow::Result<Rows<f32, D>> {
        Ok(self.tensors.rows_at(&self.device, buffer.view(), shape)?)
    }

    fn gradient(&self, gradients: &mut Gradients<f32, D>, of: &Rows<f32, D>) -> anyhow::Result<Buffer> {
        Ok(D::read_gradient(&self.device, gradients, of.tensor())?)
    }

    fn begin_gradient(
        &self,
        gradients: &mut Gradients<f32, D>,
        of: &Rows<f32, D>,
        start: &Buffer,
        range: Range<usize>,
    ) -> anyhow::Result<()> {
        Ok(D::write_gradient(&self.device, gradients, of.tensor(), start.view().part(range))?)
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.view().len()
    }

    fn part(&self, buffer: &Buffer, range: Range<usize>) -> Result<Buffer, GpuError> {
        let part = self.device.take(buffer.view().kind(), range.len())?;
        self.device.copy(buffer.view().part(range), part.view())?;
        Ok(part)
    }

    fn scale(&self, values: &mut Buffer, factor: f64) -> Result<(), GpuError> {
        let (len, factor) = (values.view().len(), self.device.upload(&[factor as f32])?);
        let scaled = self.take_reals(len)?;
        contrast::cuda::scale_rows(&self.device, [values.view(), factor.view()], [1, len], scaled.view())?;
        *values = scaled;
        Ok(())
    }

    fn take_out(&self, buffer: &mut Buffer, range: Range<usize>) -> Result<Buffer, GpuError> {
        let values = self.take_reals(range.len())?;
        let part = buffer.view().part(range);
        self.device.copy(part, values.view())?;
        self.device.zero(part)?;
        Ok(values)
    }

    fn put(&self, buffer: &mut Buffer, range: Range<usize>, values: &Buffer) -> Result<(), GpuError> {
        self.device.copy(values.view(), buffer.view().part(range))
    }

    fn add(&self, total: &mut Buffer, range: Range<usize>, more: &Buffer) -> Result<(), GpuError> {
        Batch::add(&self.device, Scalar::F32, more.view(), total.view().part(range))
    }
}

/// A linear layer of a head as a convolution of images of one pixel. Its products are in f32 if the encoder computes in f32, else
/// in tf32. Every rank has all rows of the batch, so the sums need no parts.
fn head<'a, D>(gpu: &'a Gpu<D>, rows: usize, [input, output]: [usize; 2]) -> (Conv2d, OnGpu<'a>) {
    let math = if gpu.math == Math::F32 { Math::F32 } else { Math::Tf32 };
    let conv =
        Conv2d { kernel: 1, stride: 1, padding: 0, input, output, matmul: crate::ops::matmul::MatmulPrecision::Full };
    (conv, OnGpu { gpu: &gpu.device, math, size: Size { n: rows, h: 1, w: 1 }, parts: 1 })
}
