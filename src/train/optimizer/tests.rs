use dfdx::prelude::Cpu;

use super::*;
use crate::{
    backend::{Gpu, Host, Memory},
    ops::{
        Number,
        conv2d::cuda::Math,
        cuda::testing::on_every_gpu,
        golden::{Golden, assert_close, tolerance},
    },
    train::{AdamwConfig, LarsConfig, LrScaling, SgdConfig},
};

const NAMES: [&str; 4] = ["w", "conv", "b", "zero"];

fn sgd(base_lr: f64, weight_decay: f64) -> OptimizerConfig {
    OptimizerConfig::Sgd(SgdConfig { base_lr, lr_scaling: LrScaling::None, momentum: 0.9, weight_decay })
}

fn lars() -> OptimizerConfig {
    let lr_scaling = LrScaling::None;
    OptimizerConfig::Lars(LarsConfig { base_lr: 0.3, lr_scaling, momentum: 0.9, eta: 1e-3, weight_decay: 1e-2 })
}

fn adamw() -> OptimizerConfig {
    let (lr_scaling, betas) = (LrScaling::None, [0.9, 0.999]);
    OptimizerConfig::Adamw(AdamwConfig { base_lr: 1e-2, lr_scaling, betas, eps: 1e-8, weight_decay: 0.1 })
}

/// A model that has only parameters.
struct Moving<B: Optimize> {
    on: B,
    layout: Layout,
    params: B::Params,
    optimizer: B::Optimizer,
}

impl<B: Optimize> Moving<B> {
    fn new(on: &B, config: &OptimizerConfig, layout: &Layout, encoder: usize, params: Vec<B::Real>) -> Self {
        let optimizer = on.optimizer(config, layout, encoder).unwrap();
        Self { on: on.clone(), layout: layout.clone(), params: on.params(params, encoder).unwrap(), optimizer }
    }

    fn update(
        &mut self,
        gradients: &[B::Real],
        batches: u64,
        learning_rate: f64,
        trains: impl Fn(usize) -> bool,
        average: Option<Average<B>>,
    ) {
        let trains = (0..self.layout.entries.len()).map(trains).collect();
        let (params, gradients) = (&mut self.params, &mut self.on.buffer(gradients.to_vec()).unwrap());
        let update = Update { params, gradients, batches, learning_rate, trains, average };
        self.on.update(&mut self.optimizer, update).unwrap();
    }

    fn values(&self) -> Vec<B::Real> {
        self.on.read_params(&self.params).unwrap()
    }
}

/// Compares the three steps of a golden case.
fn agrees<B: Optimize>(on: &B, case: &str, config: &OptimizerConfig, lrs: [f64; 3]) -> Vec<B::Real> {
    let golden = Golden::load(case);
    let mut layout = Layout::default();
    for name in NAMES {
        layout.push(name, &golden.shape(&format!("in.{name}")));
    }
    let load = |prefix: &str| NAMES.iter().flat_map(|n| golden.get(&format!("{prefix}{n}"))).collect::<Vec<B::Real>>();
    let mut model = Moving::new(on, config, &layout, 0, load("in."));
    for (i, lr) in lrs.into_iter().enumerate() {
        model.update(&load(&format!("in.grad{i}.")), 1, lr, |_| true, None);
        // A fresh optimiser with the restored state must continue as if nothing had happened.
        let state = on.optimizer_state(&model.optimizer).unwrap();
        model.optimizer = on.optimizer(config, &layout, 0).unwrap();
        on.restore_optimizer(&mut model.optimizer, &state).unwrap();
        for entry in &layout.entries {
            let expected = golden.get(&format!("out.step{i}.{}", entry.name));
            // PyTorch's own f32 run is off by 2e-7.
            let what = format!("{case} step {i} {}", entry.name);
            assert_close(&what, &model.values()[entry.range()], &expected, tolerance::<B::Real>(5e-7));
        }
    }
    model.values()
}

fn on_gpu(gpu: &crate::ops::cuda::Gpu, math: Math) -> Gpu<Cpu> {
    Gpu::new(gpu.clone(), Cpu::default(), math)
}

#[test]
fn lars_and_adamw_agree_with_the_reference() {
    for (case, config, lrs) in [("lars", lars(), [0.3, 0.2, 0.1]), ("adamw", adamw(), [1e-2, 5e-3, 1e-3])] {
        agrees(&Host::<f64>::default(), case, &config, lrs);
        agrees(&Host::<f32>::default(), case, &config, lrs);
        on_every_gpu(|gpu| agrees(&on_gpu(gpu, Math::F32), case, &config, lrs));
    }
}

/// By hand: p = 2, g = 1, wd = 0.5, mu = 0.9, lr = 0.1: m = 2, p = 1.8; then g = 1: m = 1.8 + 1.9, p = 1.43.
fn by_hand<B: Optimize>(on: &B) {
    let mut layout = Layout::default();
    layout.push("weight", &[1, 1]);
    layout.push("bias", &[1]);
    let [one, two] = [1.0, 2.0].map(|v| vec![B::Real::of(v); 2]);
    let mut model = Moving::new(on, &sgd(0.1, 0.5), &layout, 0, two);
    for expected in [[1.8, 1.9], [1.43, 1.71]] {
        model.update(&one, 1, 0.1, |_| true, None);
        assert_close("params", &model.values(), &expected.map(B::Real::of), 1e-6);
    }
}

#[test]
fn sgd_decays_weights_but_not_vectors() {
    by_hand(&Host::<f64>::default());
    on_every_gpu(|gpu| by_hand(&on_gpu(gpu, Math::F32)));
}

fn ramp(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * step).sin()).collect()
}

/// Covers tensors that span several chunks on a GPU, accumulation, and a tensor that is not trained.
#[test]
fn every_optimiser_moves_large_tensors_as_the_host_does_and_leaves_others() {
    let mut layout = Layout::default();
    layout.push("weight", &[3, 3000]);
    layout.push("bias", &[7]);
    layout.push("stays", &[2, 2]);
    let start = ramp(layout.len(), 0.7);
    for config in [sgd(0.1, 0.5), lars(), adamw()] {
        fn moved<B: Optimize<Real = f32>>(on: &B, config: &OptimizerConfig, layout: &Layout) -> Vec<f32> {
            let mut model = Moving::new(on, config, layout, 0, ramp(layout.len(), 0.7));
            model.update(&ramp(layout.len(), 0.3), 2, 0.1, |entry| entry < 2, None);
            model.values()
        }
        let expected = moved(&Host::default(), &config, &layout);
        let moved_most = expected.iter().zip(&start).filter(|(a, b)| a != b).count() > 9000;
        assert!(moved_most && expected[9007..] == start[9007..]);
        on_every_gpu(|gpu| {
            let found = moved(&on_gpu(gpu, Math::F32), &config, &layout);
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
        let on = on_gpu(gpu, Math::F16);
        let mut model = Moving::new(&on, &sgd(0.1, 0.5), &layout, 1, vec![2.0, 2.0]);
        model.update(&[f32::INFINITY, 1.0], 1, 0.1, |_| true, None);
        assert_eq!(model.values(), [2.0, 2.0]);
        let halved = gpu::FIRST_SCALE / 2.0;
        let scaling = |model: &Moving<Gpu<Cpu>>| on.scaling(&model.optimizer).unwrap();
        assert_eq!(scaling(&model), Some(Scaling { scale: halved, skipped: 1, taken: 0 }));
        // By hand: p = 2, g = 1, wd = 0.5, lr = 0.1: m = 2, p = 1.8.
        model.update(&[halved, 1.0], 1, 0.1, |_| true, None);
        let after = model.values();
        assert!(after.iter().all(|p| (p - 1.8).abs() < 1e-6), "{after:?}");
        assert_eq!(scaling(&model), Some(Scaling { scale: halved, skipped: 1, taken: 1 }));
        let mut gradient = gpu.upload(&[0.5f32]).unwrap();
        on.scale_features(&model.optimizer, &mut gradient).unwrap();
        assert_eq!(gradient.read::<f32>().unwrap(), [0.5 * halved]);
        after
    });
}

#[test]
fn the_average_moves_by_what_is_left_of_the_momentum() {
    fn averaged<B: Optimize<Real = f32>>(on: &B) -> Vec<f32> {
        let params = on.params(vec![0.3, 4.0, -1.0], 0).unwrap();
        let mut target = on.params(vec![1.0, -2.0], 0).unwrap();
        on.average(&params, Average { target: &mut target, momentum: 0.99 }).unwrap();
        on.read_params(&target).unwrap()
    }
    let expected = [1.0 * 0.99 + 0.3 * 0.01, -2.0 * 0.99 + 4.0 * 0.01];
    assert_close("host", &averaged(&Host::default()), &expected, 1e-7);
    on_every_gpu(|gpu| {
        let found = averaged(&on_gpu(gpu, Math::F32));
        assert_close("gpu", &found, &expected, 1e-7);
        found
    });
}

/// Compares a step that also updates average and 16-bit copies with a plain step and a separate pass for the average. The bits
/// agree, also for a tensor that is not trained, and if the update is skipped.
#[test]
fn what_follows_a_step_has_the_bits_of_separate_passes() {
    let mut layout = Layout::default();
    layout.push("encoder", &[3, 2000]);
    layout.push("stays", &[2, 500]);
    layout.push("head", &[9]);
    let (len, encoder, shared) = (layout.len(), 6000, 6900);
    for config in [sgd(0.1, 0.5), lars(), adamw()] {
        for overflows in [false, true] {
            on_every_gpu(|gpu| {
                let mut g = ramp(len, 0.3);
                g[5] = if overflows { f32::NAN } else { g[5] };
                let on = on_gpu(gpu, Math::F16);
                let run = |at_once: bool| {
                    let mut target = on.params(ramp(shared, 0.11), encoder).unwrap();
                    let mut model = Moving::new(&on, &config, &layout, encoder, ramp(len, 0.7));
                    let average = Average { target: &mut target, momentum: 0.99 };
                    if at_once {
                        model.update(&g, 2, 0.1, |entry| entry != 1, Some(average));
                    } else {
                        model.update(&g, 2, 0.1, |entry| entry != 1, None);
                        on.average(&model.params, average).unwrap();
                    }
                    let half = |params: &crate::backend::gpu::Params| {
                        let half = params.half().expect("the encoder's copy");
                        gpu.read::<half::f16>(half).unwrap().into_iter().map(half::f16::to_bits).collect::<Vec<_>>()
                    };
                    let reals = [model.values(), on.read_params(&target).unwrap()];
                    let bits = reals.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>());
                    (bits, [half(&model.params), half(&target)])
                };
                let (at_once, apart) = (run(true), run(false));
                assert!(at_once == apart, "{config:?}");
                let start: Vec<u32> = ramp(len, 0.7).iter().map(|v| v.to_bits()).collect();
                assert_eq!(at_once.0[0] == start, overflows);
                assert!(at_once.0[0][6000..7000] == start[6000..7000], "a tensor that stays has moved");
                at_once
            });
        }
    }
}
