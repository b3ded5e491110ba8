//! Optimisers on a GPU, with loss scaling for f16. The pass over the parameters also updates the moving average and the copies in
//! 16 bits. Updates never wait for the device.

use std::ops::Range;

use super::{Average, Kept, Optimize, Update, moments};
use crate::{
    backend::{Gpu as OnGpu, gpu::Params},
    ops::{
        arena::Layout,
        conv2d::cuda::Math,
        cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, THREADS, in_strides},
        normalize,
        tensor::GpuTensors,
    },
    train::OptimizerConfig,
};

const KERNELS: &[&str] = &[
    "sgd_step",
    "adamw_prepare",
    "adamw_step",
    "lars_norms",
    "lars_trust",
    "lars_step",
    "follow_all",
    "scale",
    "find_non_finite",
    "begin_update",
];
const TEXT: &str = concat!(include_str!("../../ops/cuda/storage.cuh"), include_str!("optimizer.cu"));

/// The kernels, for each storage type of the encoder.
pub static SOURCES: [Source; 3] = [
    Source { name: "optimizer_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "optimizer_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "optimizer_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// Elements per block of an update.
const CHUNK: usize = 4096;
/// The most blocks that search for gradients that are not finite. Each block has a flag.
const BLOCKS: usize = 2048;
/// Initial loss scale, and the number of steps without overflow after which it doubles (torch's defaults).
pub(super) const FIRST_SCALE: f32 = 65536.0;
const GROWTH_INTERVAL: i32 = 2000;
/// Number of floats of the state in a checkpoint.
const KEPT: usize = 5;

/// Arguments of the kernels for the buffers that the pass over the parameters also updates: the average, and the copies in 16
/// bits of the encoder's parameters and of their average.
fn followers<D: GpuTensors>(storage: Scalar, params: &Params, average: Option<&Average<OnGpu<D>>>) -> [Arg; 7] {
    let target = average.map(|average| &*average.target);
    let averaged = target.map_or(0, |target| target.all().len());
    let (len, encoder, m) = (params.all().len(), params.encoder(), average.map_or(0.0, |average| average.momentum));
    assert!(averaged <= len && encoder <= len, "the buffers to update are no longer than the parameters");
    let (keep, take) = (Arg::Float(m as f32), Arg::Float((1.0 - m) as f32));
    let half = [params.half(), target.and_then(Params::half)].map(|half| Arg::optional(half, storage, encoder));
    let target = Arg::optional(target.map(Params::all), Kind::F32, averaged);
    [target, Arg::count(averaged), keep, take, half[0], half[1], Arg::count(encoder)]
}

/// Statistics of loss scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Factor on the gradients of the features.
    pub scale: f32,
    /// Updates that were skipped because a gradient overflowed.
    pub skipped: u64,
    /// Updates that were applied.
    pub taken: u64,
}

impl std::fmt::Display for Scaling {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { scale, skipped, taken } = self;
        write!(f, "loss scale {scale}; {skipped} of {} updates skipped by overflow", skipped + taken)
    }
}

/// An optimiser with its state on a GPU.
#[derive(Debug)]
pub struct OptimizerGpu {
    config: OptimizerConfig,
    gpu: Gpu,
    layout: Layout,
    /// Which tensors are updated, the chunks of all tensors on the device, and the number of chunks.
    chunks: Option<(Vec<bool>, Buffer, usize)>,
    /// One or two moments, in the layout of the parameters.
    moments: Vec<Buffer>,
    /// [`KEPT`] floats (loss scale, steps since it changed, whether this update is skipped, skipped updates, applied updates),
    /// then the factor on the gradients of this update.
    state: Buffer,
    /// The storage type of the encoder's copies.
    storage: Scalar,
    /// Number of parameters, from the first, whose gradients carry the loss scale: those of the encoder in f16, else 0.
    scaled: usize,
}

impl OptimizerGpu {
    /// A fresh optimiser for the parameters of `layout`. The first `encoder` of them belong to an encoder that computes in
    /// `math`.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(
        gpu: &Gpu,
        config: &OptimizerConfig,
        layout: &Layout,
        math: Math,
        encoder: usize,
    ) -> Result<Self, GpuError> {
        // Gradients may leave the range of f16. The range of bf16 is that of f32.
        let (storage, scaled) = (math.scalar(), if math == Math::F16 { encoder } else { 0 });
        let moments: Result<Vec<_>, _> = (0..moments(config)).map(|_| gpu.zeros(Kind::F32, layout.len())).collect();
        let first = if scaled > 0 { FIRST_SCALE } else { 1.0 };
        let state = gpu.upload(&[first, 0.0, 0.0, 0.0, 0.0, 1.0])?;
        let (config, gpu, layout) = (config.clone(), gpu.clone(), layout.clone());
        Ok(Self { config, gpu, layout, chunks: None, moments: moments?, state, storage, scaled })
    }

    fn source(&self) -> &'static Source {
        self.storage.source(&SOURCES)
    }

    /// Updates the parameters, the average and the copies by one step. If gradients overflowed in f16, the update of the
    /// parameters is skipped and counted, but average and copies are updated.
    fn step<D: GpuTensors>(&mut self, update: Update<OnGpu<D>>) -> Result<(), GpuError> {
        let Update { params, gradients, batches, learning_rate, trains, average } = update;
        let len = self.layout.len();
        let gradients = gradients.view().arg(Kind::F32, len);
        let mut flags = None;
        if self.scaled > 0 {
            let blocks = self.scaled.div_ceil(THREADS).min(BLOCKS);
            let found = self.gpu.take(Kind::I32, blocks)?;
            let args = [gradients, Arg::count(self.scaled), found.arg()];
            // SAFETY: the first `scaled` gradients are the encoder's, so there are at least as many, and `found` has a flag for
            // every block.
            unsafe { self.gpu.launch(self.source(), "find_non_finite", [blocks, 1, 1], &args) }?;
            flags = Some(found);
        }
        let blocks = flags.as_ref().map_or(0, |flags| flags.view().len());
        let flags = Arg::optional(flags.as_ref().map(Buffer::view), Kind::I32, blocks);
        let args = [flags, Arg::count(blocks), Arg::Int(GROWTH_INTERVAL), self.state.arg()];
        // SAFETY: there are `blocks` flags, or no flags at all, and `state` has the six floats of the kernel.
        unsafe { self.gpu.launch(self.source(), "begin_update", [1, 1, 1], &args) }?;

        self.find_chunks(trains)?;
        let (_, chunks, count) = self.chunks.as_ref().expect("found just now");
        let grid = [*count, 1, 1];
        let tensors = [chunks.arg(), self.state.arg(), params.all().arg(Kind::F32, len)];
        let share = Arg::Float((1.0 / batches as f64) as f32);
        let gradients = [gradients, Arg::count(self.scaled), share];
        let moved =
            [&tensors[..], &gradients, &[self.moments[0].arg()], &followers(self.storage, params, average.as_ref())]
                .concat();
        // SAFETY: this holds for every launch below. Parameters, gradients and moments have as many elements as the layout, and
        // all chunks are within the layout. `state` has six floats, `coefficients` two, `norms` two per chunk, and `trust` one
        // per tensor, as the kernels require. `followers` checks that the other buffers are no longer than the parameters.
        let launch = |kernel: &str, grid, args: &[Arg]| unsafe { self.gpu.launch(self.source(), kernel, grid, args) };
        let run = |kernel: &str, more: &[Arg]| launch(kernel, grid, &[&moved[..], more].concat());
        let lr = learning_rate;
        match &self.config {
            OptimizerConfig::Sgd(c) => run("sgd_step", &[lr, c.momentum, c.weight_decay].map(|v| Arg::Float(v as f32))),
            OptimizerConfig::Adamw(c) => {
                let coefficients = self.gpu.take(Kind::F32, 2)?;
                let [b1, b2] = c.betas;
                let args = [self.state.arg(), Arg::Double(lr), Arg::Double(b1), Arg::Double(b2), coefficients.arg()];
                launch("adamw_prepare", [1, 1, 1], &args)?;
                let numbers = [1.0 - lr * c.weight_decay, b1, 1.0 - b1, b2, 1.0 - b2, c.eps];
                let numbers = numbers.map(|v| Arg::Float(v as f32));
                run("adamw_step", &[&[self.moments[1].arg(), coefficients.arg()][..], &numbers].concat())
            }
            OptimizerConfig::Lars(c) => {
                let norms = self.gpu.take(Kind::F64, count * 2)?;
                let trust = self.gpu.take(Kind::F32, self.layout.entries.len())?;
                let decay = Arg::Float(c.weight_decay as f32);
                let args = [&tensors[..], &gradients, &[decay, norms.arg()]].concat();
                launch("lars_norms", grid, &args)?;
                let args = [chunks.arg(), Arg::count(*count), norms.arg(), Arg::Double(c.eta), trust.arg()];
                launch("lars_trust", [count.div_ceil(THREADS / 32), 1, 1], &args)?;
                run("lars_step", &[trust.arg(), Arg::Float(lr as f32), Arg::Float(c.momentum as f32), decay])
            }
        }
    }

    /// Lays out the chunks of all tensors, unless the same tensors are updated as last time.
    fn find_chunks(&mut self, moved: Vec<bool>) -> Result<(), GpuError> {
        if self.chunks.as_ref().is_some_and(|(known, ..)| *known == moved) {
            return Ok(());
        }
        let mut chunks: Vec<i32> = Vec::new();
        for (i, entry) in self.layout.entries.iter().enumerate() {
            for offset in entry.range().step_by(CHUNK) {
                let length = CHUNK.min(entry.range().end - offset);
                let (weight, moves) = (entry.shape.len() > 1, moved[i]);
                chunks.extend([offset as i32, length as i32, i as i32, weight.into(), moves.into()]);
            }
        }
        let count = chunks.len() / 5;
        self.chunks = Some((moved, self.gpu.upload(&chunks)?, count));
        Ok(())
    }
}

impl<D: GpuTensors> Optimize for OnGpu<D> {
    type Optimizer = OptimizerGpu;

    fn optimizer(&self, config: &OptimizerConfig, layout: &Layout, encoder: usize) -> Result<OptimizerGpu, GpuError> {
        OptimizerGpu::new(self.device(), config, layout, self.math(), encoder)
    }

    fn update(&self, optimizer: &mut OptimizerGpu, update: Update<Self>) -> Result<(), GpuError> {
        optimizer.step(update)
    }

    fn average(&self, params: &Params, average: Average<Self>) -> Result<(), GpuError> {
        let len = average.target.all().len();
        let from = params.all().part(0..len).arg(Kind::F32, len);
        let args = [&[from, Arg::count(len)][..], &followers(self.math().scalar(), params, Some(&average))].concat();
        // SAFETY: `from` has `len` parameters. `followers` passes the lengths of the buffers to update, and checks that they are
        // no longer than all parameters.
        unsafe { self.device().launch(self.math().scalar().source(&SOURCES), "follow_all", in_strides(len), &args) }
    }

    fn normalize_rows(&self, params: &mut Params, range: Range<usize>, columns: usize) -> Result<(), GpuError> {
        let (rows, count) = (params.all().part(range.clone()), range.len() / columns);
        normalize::cuda::forward(self.device(), rows, [count, columns], rows, None)
    }

    fn scale_features(&self, optimizer: &OptimizerGpu, g: &mut Buffer) -> Result<(), GpuError> {
        if optimizer.scaled == 0 {
            return Ok(());
        }
        let len = g.view().len();
        let args = [g.view().arg(Kind::F32, len), Arg::count(len), optimizer.state.arg()];
        // SAFETY: the gradient has `len` values, and `state` starts with the loss scale.
        unsafe { self.device().launch(optimizer.source(), "scale", in_strides(len), &args) }
    }

    /// None unless the encoder computes in f16.
    fn scaling(&self, optimizer: &OptimizerGpu) -> Result<Option<Scaling>, GpuError> {
        if optimizer.scaled == 0 {
            return Ok(None);
        }
        let state: Vec<f32> = optimizer.state.read()?;
        Ok(Some(Scaling { scale: state[0], skipped: state[3] as u64, taken: state[4] as u64 }))
    }

    /// Moments and number of updates, as on the host; in f16 also the state of loss scaling.
    fn kept(&self, optimizer: &OptimizerGpu) -> Result<Kept<f32>, GpuError> {
        let moment = |i: usize| optimizer.moments.get(i).map(Buffer::read).transpose();
        let state: Vec<f32> = self.device().read(optimizer.state.view().part(0..KEPT))?;
        let steps = Some(state[4] as i64);
        Ok(Kept { moments: [moment(0)?, moment(1)?], steps, loss_scaling: (optimizer.scaled > 0).then_some(state) })
    }

    fn go_on_from(&self, optimizer: &mut OptimizerGpu, kept: Kept<f32>) -> Result<(), GpuError> {
        for (own, moment) in optimizer.moments.iter().zip(&kept.moments) {
            if let Some(moment) = moment {
                self.device().write(own.view(), moment)?;
            }
        }
        let state = optimizer.state.view();
        if let Some(steps) = kept.steps {
            self.device().write(state.part(4..KEPT), &[steps as f32])?;
        }
        if let Some(scaling) = kept.loss_scaling {
            self.device().write(state.part(0..KEPT), &scaling)?;
        }
        Ok(())
    }
}
