//! Optimisers on a GPU, with loss scaling for f16, and what follows the parameters in the same pass: the moving average and
//! copies in half precision. Nothing here waits for the device.

use super::OptimizerConfig;
use crate::ops::{
    arena::Layout,
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Source, THREADS, View, one_each},
    named::{NamedTensor, Values},
};

/// The kernels.
pub static SOURCE: Source = Source {
    name: "optimizer",
    defines: "",
    text: include_str!("optimizer.cu"),
    kernels: &[
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
    ],
};

/// Elements per block of an update.
const CHUNK: usize = 4096;
/// Most blocks of a pass over a whole buffer.
const BLOCKS: usize = 2048;
/// Loss scale to begin with, and steps without overflow after which it doubles (torch's defaults).
const FIRST_SCALE: f32 = 65536.0;
const GROWTH_INTERVAL: i32 = 2000;
/// Floats of the state that a checkpoint holds.
const KEPT: usize = 5;

/// What follows the parameters in the pass that moves them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Followers<'a> {
    /// The first `encoder` parameters in half precision.
    pub narrow: Option<View<'a>>,
    pub encoder: usize,
    pub average: Option<Average<'a>>,
}

/// The momentum branch's parameters, which move towards the first ones of the online branch: target <- m target + (1 - m) p.
#[derive(Clone, Copy, Debug)]
pub struct Average<'a> {
    pub target: View<'a>,
    pub momentum: f64,
    /// Its encoder's in half precision.
    pub narrow: Option<View<'a>>,
}

impl Followers<'_> {
    /// As the kernels take them.
    ///
    /// # Panics
    /// When what follows `len` parameters is longer than they are.
    fn args(&self, len: usize) -> [Arg; 7] {
        let (target, narrow) = (self.average.map(|a| a.target), self.average.and_then(|a| a.narrow));
        let (averaged, m) = (target.map_or(0, View::len), self.average.map_or(0.0, |a| a.momentum));
        assert!(averaged <= len && self.encoder <= len, "what follows is part of the parameters");
        let (keep, take) = (Arg::Float(m as f32), Arg::Float((1.0 - m) as f32));
        let target = Arg::optional(target, Kind::F32, averaged);
        let narrow = [self.narrow, narrow].map(|narrow| Arg::optional(narrow, Kind::F16, self.encoder));
        [target, Arg::count(averaged), keep, take, narrow[0], narrow[1], Arg::count(self.encoder)]
    }
}

/// What an optimiser's step is given.
#[derive(Clone, Copy, Debug)]
pub struct StepGpu<'a> {
    pub params: View<'a>,
    /// Sum over the gradients of `batches` batches.
    pub gradients: View<'a>,
    pub batches: u64,
    pub learning_rate: f64,
    pub followers: Followers<'a>,
}

/// How loss scaling went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Factor on the gradients of the features.
    pub scale: f32,
    /// Updates that were skipped because a gradient overflowed.
    pub skipped: u64,
    /// Updates that were taken.
    pub taken: u64,
}

/// An optimiser with its state on a GPU.
#[derive(Debug)]
pub struct OptimizerGpu {
    config: OptimizerConfig,
    gpu: Gpu,
    layout: Layout,
    /// Which tensors are moved, and the chunks of all on the device.
    chunks: Option<(Vec<bool>, Buffer, usize)>,
    /// One or two buffers, laid out like the parameters.
    moments: Vec<Buffer>,
    /// [`KEPT`] floats: loss scale, steps since it changed, whether this update is skipped, skipped updates, updates taken;
    /// and what this update multiplies gradients by.
    state: Buffer,
    /// Whether gradients of the first so many parameters are scaled; 0 for f32.
    scaled: usize,
}

impl OptimizerGpu {
    /// A fresh optimiser for the parameters of `layout`. The gradients of the first `scaled` are computed in f16.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(gpu: &Gpu, config: &OptimizerConfig, layout: &Layout, scaled: usize) -> Result<Self, GpuError> {
        let buffers = match config {
            OptimizerConfig::Sgd(_) | OptimizerConfig::Lars(_) => 1,
            OptimizerConfig::Adamw(_) => 2,
        };
        let moments: Result<Vec<_>, _> = (0..buffers).map(|_| gpu.zeros(Kind::F32, layout.len())).collect();
        let first = if scaled > 0 { FIRST_SCALE } else { 1.0 };
        let state = gpu.upload(&[first, 0.0, 0.0, 0.0, 0.0, 1.0])?;
        let (config, gpu, layout) = (config.clone(), gpu.clone(), layout.clone());
        Ok(Self { config, gpu, layout, chunks: None, moments: moments?, state, scaled })
    }

    /// Multiplies the features' gradient by the loss scale.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scale_features(&self, gradient: View) -> Result<(), GpuError> {
        if self.scaled == 0 {
            return Ok(());
        }
        let len = gradient.len();
        let args = [gradient.arg(Kind::F32, len), Arg::count(len), self.state.arg()];
        // SAFETY: the gradient has `len` values.
        unsafe { self.gpu.launch(&SOURCE, "scale", strided(len), &args) }
    }

    /// Moves the parameters, and what follows them, by one step. An update whose f16 gradients overflowed is skipped, and
    /// counted; what follows does so all the same. Tensors that `trains` refuses are left alone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, step: StepGpu, trains: impl Fn(usize) -> bool) -> Result<(), GpuError> {
        let len = self.layout.len();
        let gradients = step.gradients.arg(Kind::F32, len);
        let mut flags = None;
        if self.scaled > 0 {
            let blocks = self.scaled.div_ceil(THREADS).min(BLOCKS);
            let found = self.gpu.take(Kind::I32, blocks)?;
            let args = [gradients, Arg::count(self.scaled), found.arg()];
            // SAFETY: as many gradients are scaled, and every block has its flag.
            unsafe { self.gpu.launch(&SOURCE, "find_non_finite", [blocks, 1, 1], &args) }?;
            flags = Some(found);
        }
        let blocks = flags.as_ref().map_or(0, |flags| flags.view().len());
        let flags = Arg::optional(flags.as_ref().map(Buffer::view), Kind::I32, blocks);
        let args = [flags, Arg::count(blocks), Arg::Int(GROWTH_INTERVAL), self.state.arg()];
        // SAFETY: there are as many flags.
        unsafe { self.gpu.launch(&SOURCE, "begin_update", [1, 1, 1], &args) }?;

        self.find_chunks(trains)?;
        let (_, chunks, count) = self.chunks.as_ref().expect("found just now");
        let grid = [*count, 1, 1];
        let tensors = [chunks.arg(), self.state.arg(), step.params.arg(Kind::F32, len)];
        let share = Arg::Float((1.0 / step.batches as f64) as f32);
        let gradients = [gradients, Arg::count(self.scaled), share];
        let moved = [&tensors[..], &gradients, &[self.moments[0].arg()], &step.followers.args(len)].concat();
        // SAFETY: of every launch below: chunks lie within parameters, gradients and moments, of which the layout says how many
        // there are, and the others have what their kernels say of each chunk or tensor.
        let launch = |kernel: &str, grid, args: &[Arg]| unsafe { self.gpu.launch(&SOURCE, kernel, grid, args) };
        let run = |kernel: &str, more: &[Arg]| launch(kernel, grid, &[&moved[..], more].concat());
        let lr = step.learning_rate;
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
                launch("lars_trust", one_each(*count), &args)?;
                run("lars_step", &[trust.arg(), Arg::Float(lr as f32), Arg::Float(c.momentum as f32), decay])
            }
        }
    }

    /// How loss scaling went; None in f32. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scaling(&self) -> Result<Option<Scaling>, GpuError> {
        if self.scaled == 0 {
            return Ok(None);
        }
        let state: Vec<f32> = self.state.read()?;
        Ok(Some(Scaling { scale: state[0], skipped: state[3] as u64, taken: state[4] as u64 }))
    }

    /// What a checkpoint must hold: as on the CPU, and the loss scaling's state in f16. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<Vec<NamedTensor<f32>>, GpuError> {
        let mut state = Vec::new();
        for (i, moment) in self.moments.iter().enumerate() {
            state.push(NamedTensor::real(format!("optimizer.moment{}", i + 1), &[self.layout.len()], moment.read()?));
        }
        let values: Vec<f32> = self.gpu.read(self.state.view().part(0..KEPT))?;
        state.push(NamedTensor::integer("optimizer.steps", &[1], vec![values[4] as i64]));
        if self.scaled > 0 {
            state.push(NamedTensor::real("optimizer.loss_scaling", &[KEPT], values));
        }
        Ok(state)
    }

    /// Takes over what [`OptimizerGpu::state`] gave.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, tensors: &[NamedTensor<f32>]) -> Result<(), GpuError> {
        for tensor in tensors {
            match (tensor.name.strip_prefix("optimizer."), &tensor.values) {
                (Some("steps"), Values::Integer(steps)) => {
                    self.gpu.write(self.state.view().part(4..KEPT), &[steps[0] as f32])?;
                }
                (Some("moment1"), Values::Real(moment)) => self.gpu.write(self.moments[0].view(), moment)?,
                (Some("moment2"), Values::Real(moment)) => self.gpu.write(self.moments[1].view(), moment)?,
                (Some("loss_scaling"), Values::Real(values)) => {
                    self.gpu.write(self.state.view().part(0..KEPT), values)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lays out the chunks of all tensors, unless the same ones are moved as the last time.
    fn find_chunks(&mut self, trains: impl Fn(usize) -> bool) -> Result<(), GpuError> {
        let moved: Vec<bool> = (0..self.layout.entries.len()).map(trains).collect();
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

/// Brings what follows the parameters up to date, where these have not moved by a step.
///
/// # Errors
/// When the device fails.
pub fn follow(gpu: &Gpu, params: View, followers: Followers) -> Result<(), GpuError> {
    let len = params.len();
    let args = [&[params.arg(Kind::F32, len), Arg::count(len)][..], &followers.args(len)].concat();
    // SAFETY: there are `len` parameters, and what follows is no longer.
    unsafe { gpu.launch(&SOURCE, "follow_all", strided(len), &args) }
}

fn strided(len: usize) -> [usize; 3] {
    [len.div_ceil(THREADS).clamp(1, BLOCKS), 1, 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::{
            cuda::testing::on_every_gpu,
            golden::{Golden, assert_close},
        },
        train::{AdamwConfig, LarsConfig, LrScaling, SgdConfig, optimizer::Optimizer},
    };

    const NAMES: [&str; 4] = ["w", "conv", "b", "zero"];

    /// A step that nothing follows.
    fn plain<'a>(params: &'a Buffer, gradients: &'a Buffer, learning_rate: f64, batches: u64) -> StepGpu<'a> {
        let followers = Followers::default();
        StepGpu { params: params.view(), gradients: gradients.view(), batches, learning_rate, followers }
    }

    fn agrees(case: &str, config: &OptimizerConfig, lrs: [f64; 3]) {
        let golden = Golden::load(case);
        let mut layout = Layout::default();
        for name in NAMES {
            layout.push(name, &golden.shape(&format!("in.{name}")));
        }
        let load =
            |prefix: &str| NAMES.iter().flat_map(|n| golden.get::<f32>(&format!("{prefix}{n}"))).collect::<Vec<_>>();
        on_every_gpu(|gpu| {
            let params = gpu.upload(&load("in.")).unwrap();
            let mut optimizer = OptimizerGpu::new(gpu, config, &layout, 0).unwrap();
            for (i, lr) in lrs.into_iter().enumerate() {
                let gradients = gpu.upload(&load(&format!("in.grad{i}."))).unwrap();
                optimizer.step(plain(&params, &gradients, lr, 1), |_| true).unwrap();
                let state = optimizer.state().unwrap();
                optimizer = OptimizerGpu::new(gpu, config, &layout, 0).unwrap();
                optimizer.restore(&state).unwrap();
                let values: Vec<f32> = params.read().unwrap();
                for entry in &layout.entries {
                    let expected = golden.get::<f32>(&format!("out.step{i}.{}", entry.name));
                    // PyTorch's own f32 run is off by 2e-7.
                    assert_close(&format!("{case} {i} {}", entry.name), &values[entry.range()], &expected, 5e-7);
                }
            }
            params.read::<f32>().unwrap()
        });
    }

    #[test]
    fn lars_and_adamw_agree_with_the_reference() {
        let scaling = LrScaling::None;
        let lars = LarsConfig { base_lr: 0.3, lr_scaling: scaling, momentum: 0.9, eta: 1e-3, weight_decay: 1e-2 };
        agrees("lars", &OptimizerConfig::Lars(lars), [0.3, 0.2, 0.1]);
        let adamw =
            AdamwConfig { base_lr: 1e-2, lr_scaling: scaling, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 };
        agrees("adamw", &OptimizerConfig::Adamw(adamw), [1e-2, 5e-3, 1e-3]);
    }

    fn sgd() -> OptimizerConfig {
        let scaling = LrScaling::None;
        OptimizerConfig::Sgd(SgdConfig { base_lr: 0.1, lr_scaling: scaling, momentum: 0.9, weight_decay: 0.5 })
    }

    /// Tensors of several chunks, accumulation, and a tensor that stays, against the CPU.
    #[test]
    fn every_optimiser_moves_large_tensors_as_the_cpu_does() {
        let mut layout = Layout::default();
        layout.push("weight", &[3, 3000]);
        layout.push("bias", &[7]);
        layout.push("stays", &[2, 2]);
        let ramp = |step: f32| (0..layout.len()).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
        let lars =
            LarsConfig { base_lr: 0.3, lr_scaling: LrScaling::None, momentum: 0.9, eta: 1e-3, weight_decay: 1e-2 };
        let adamw = AdamwConfig {
            base_lr: 1e-2,
            lr_scaling: LrScaling::None,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.1,
        };
        for config in [sgd(), OptimizerConfig::Lars(lars), OptimizerConfig::Adamw(adamw)] {
            let mut expected = ramp(0.7);
            let mut cpu = Optimizer::new(&config, layout.len());
            let half: Vec<f32> = ramp(0.3).iter().map(|g| g * 0.5).collect();
            cpu.step(&layout, &mut expected, &half, 0.1, |entry| entry < 2);
            on_every_gpu(|gpu| {
                let (params, gradients) = (gpu.upload(&ramp(0.7)).unwrap(), gpu.upload(&ramp(0.3)).unwrap());
                let mut optimizer = OptimizerGpu::new(gpu, &config, &layout, 0).unwrap();
                optimizer.step(plain(&params, &gradients, 0.1, 2), |entry| entry < 2).unwrap();
                let found: Vec<f32> = params.read().unwrap();
                assert_close(&format!("{config:?}"), &found, &expected, 1e-6);
                found
            });
        }
    }

    #[test]
    fn an_update_whose_gradients_overflowed_is_skipped_and_counted() {
        let mut layout = Layout::default();
        layout.push("encoder", &[1, 1]);
        layout.push("head", &[1, 1]);
        on_every_gpu(|gpu| {
            let params = gpu.upload(&[2.0f32, 2.0]).unwrap();
            let mut optimizer = OptimizerGpu::new(gpu, &sgd(), &layout, 1).unwrap();
            let step = |optimizer: &mut OptimizerGpu, encoder: f32| {
                let gradients = gpu.upload(&[encoder, 1.0f32]).unwrap();
                optimizer.step(plain(&params, &gradients, 0.1, 1), |_| true).unwrap();
                params.read::<f32>().unwrap()
            };
            assert_eq!(step(&mut optimizer, f32::INFINITY), [2.0, 2.0]);
            let halved = FIRST_SCALE / 2.0;
            assert_eq!(optimizer.scaling().unwrap(), Some(Scaling { scale: halved, skipped: 1, taken: 0 }));
            // By hand: p = 2, g = 1, wd = 0.5, lr = 0.1: m = 2, p = 1.8.
            let after = step(&mut optimizer, halved);
            assert!(after.iter().all(|p| (p - 1.8).abs() < 1e-6), "{after:?}");
            assert_eq!(optimizer.scaling().unwrap(), Some(Scaling { scale: halved, skipped: 1, taken: 1 }));
            let gradient = gpu.upload(&[0.5f32]).unwrap();
            optimizer.scale_features(gradient.view()).unwrap();
            assert_eq!(gradient.read::<f32>().unwrap(), [0.5 * halved]);
            after
        });
    }

    #[test]
    fn the_average_agrees_with_the_cpus() {
        let (target, source) = ([1.0f32, -2.0, 0.5], [0.3f32, 4.0, -1.0]);
        on_every_gpu(|gpu| {
            let (t, s) = (gpu.upload(&target).unwrap(), gpu.upload(&source).unwrap());
            let average = Some(Average { target: t.view().part(0..2), momentum: 0.99, narrow: None });
            follow(gpu, s.view(), Followers { average, ..Followers::default() }).unwrap();
            let mut expected = target.to_vec();
            crate::train::ema::ema(&mut expected[..2], &source[..2], 0.99);
            assert_close("ema", &t.read::<f32>().unwrap(), &expected, 1e-7);
        });
    }

    /// A step that takes average and half precision along, against a plain step and what follows it in a pass of its own:
    /// the same bits, with a tensor that is not moved, and when the update is skipped.
    #[test]
    fn what_follows_a_step_has_the_bits_of_separate_passes() {
        let mut layout = Layout::default();
        layout.push("encoder", &[3, 2000]);
        layout.push("stays", &[2, 500]);
        layout.push("head", &[9]);
        let (len, encoder, shared) = (layout.len(), 6000, 6900);
        let ramp = |step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
        let scaling = LrScaling::None;
        let lars = LarsConfig { base_lr: 0.3, lr_scaling: scaling, momentum: 0.9, eta: 1e-3, weight_decay: 1e-2 };
        let adamw =
            AdamwConfig { base_lr: 1e-2, lr_scaling: scaling, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 };
        for config in [sgd(), OptimizerConfig::Lars(lars), OptimizerConfig::Adamw(adamw)] {
            for overflows in [false, true] {
                on_every_gpu(|gpu| {
                    let mut g = ramp(0.3);
                    g[5] = if overflows { f32::NAN } else { g[5] };
                    let run = |at_once: bool| {
                        let up = |step: f32| gpu.upload(&ramp(step)).unwrap();
                        let (params, target, gradients) = (up(0.7), up(0.11), gpu.upload(&g).unwrap());
                        let narrow = [(); 2].map(|()| gpu.take(Kind::F16, encoder).unwrap());
                        let (target_shared, second) = (target.view().part(0..shared), Some(narrow[1].view()));
                        let average = Some(Average { target: target_shared, momentum: 0.99, narrow: second });
                        let followers = Followers { narrow: Some(narrow[0].view()), encoder, average };
                        let mut optimizer = OptimizerGpu::new(gpu, &config, &layout, encoder).unwrap();
                        let step = plain(&params, &gradients, 0.1, 2);
                        if at_once {
                            optimizer.step(StepGpu { followers, ..step }, |entry| entry != 1).unwrap();
                        } else {
                            optimizer.step(step, |entry| entry != 1).unwrap();
                            follow(gpu, params.view(), followers).unwrap();
                        }
                        let bits =
                            |b: &Buffer| b.read::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
                        let halves = narrow.map(|b| {
                            b.read::<half::f16>().unwrap().into_iter().map(half::f16::to_bits).collect::<Vec<_>>()
                        });
                        ([bits(&params), bits(&target)], halves)
                    };
                    let (at_once, apart) = (run(true), run(false));
                    assert!(at_once == apart, "{config:?}");
                    let start: Vec<u32> = ramp(0.7).iter().map(|v| v.to_bits()).collect();
                    assert_eq!(at_once.0[0] == start, overflows);
                    assert!(at_once.0[0][6000..7000] == start[6000..7000], "a tensor that stays has moved");
                    at_once
                });
            }
        }
    }
}
