use super::*;
use crate::{
    ops::golden::{Golden, assert_close, tolerance},
    train::{AdamwConfig, LarsConfig, LrScaling, SgdConfig},
};

const NAMES: [&str; 4] = ["w", "conv", "b", "zero"];

/// Runs the golden case's three steps; calls `check` with the values after each.
fn three_steps<E: Real>(golden: &Golden, config: &OptimizerConfig, lrs: [f64; 3], check: impl Fn(usize, &str, &[E])) {
    let mut layout = Layout::default();
    for name in NAMES {
        layout.push(name, &golden.shape(&format!("in.{name}")));
    }
    let load = |prefix: &str| NAMES.iter().flat_map(|n| golden.get::<E>(&format!("{prefix}{n}"))).collect::<Vec<E>>();
    let mut params = load("in.");
    let mut optimizer = Optimizer::new(config, params.len());
    for (i, lr) in lrs.into_iter().enumerate() {
        optimizer.step(&layout, &mut params, &load(&format!("in.grad{i}.")), lr, |_| true);
        // State taken out and put into a fresh optimiser must go on as if nothing had happened.
        let state = optimizer.state();
        optimizer = Optimizer::new(config, params.len());
        optimizer.restore(&state);
        for entry in &layout.entries {
            check(i, &entry.name, &params[entry.range()]);
        }
    }
}

fn agrees<E: Real>(case: &str, config: &OptimizerConfig, lrs: [f64; 3]) {
    let golden = Golden::load(case);
    three_steps::<E>(&golden, config, lrs, |i, name, values| {
        let expected = golden.get::<E>(&format!("out.step{i}.{name}"));
        // PyTorch's own f32 run is off by 2e-7.
        assert_close(&format!("{case} step {i} {name}"), values, &expected, tolerance::<E>(5e-7));
    });
}

#[test]
fn lars_and_adamw_agree_with_the_reference() {
    let scaling = LrScaling::None;
    let lars = LarsConfig { base_lr: 0.3, lr_scaling: scaling, momentum: 0.9, eta: 1e-3, weight_decay: 1e-2 };
    agrees::<f64>("lars", &OptimizerConfig::Lars(lars.clone()), [0.3, 0.2, 0.1]);
    agrees::<f32>("lars", &OptimizerConfig::Lars(lars), [0.3, 0.2, 0.1]);
    let adamw = AdamwConfig { base_lr: 1e-2, lr_scaling: scaling, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 };
    agrees::<f64>("adamw", &OptimizerConfig::Adamw(adamw.clone()), [1e-2, 5e-3, 1e-3]);
    agrees::<f32>("adamw", &OptimizerConfig::Adamw(adamw), [1e-2, 5e-3, 1e-3]);
}

/// By hand: p = 2, g = 1, wd = 0.5, mu = 0.9, lr = 0.1: m = 2, p = 1.8; then g = 1: m = 1.8 + 1.9, p = 1.43.
#[test]
fn sgd_decays_weights_but_not_vectors() {
    let config = SgdConfig { base_lr: 0.1, lr_scaling: LrScaling::None, momentum: 0.9, weight_decay: 0.5 };
    let mut layout = Layout::default();
    layout.push("weight", &[1, 1]);
    layout.push("bias", &[1]);
    let mut params = vec![2.0f64, 2.0];
    let mut optimizer = Optimizer::new(&OptimizerConfig::Sgd(config), 2);
    optimizer.step(&layout, &mut params, &[1.0, 1.0], 0.1, |_| true);
    assert_close("first", &params, &[1.8, 1.9], 1e-12);
    optimizer.step(&layout, &mut params, &[1.0, 1.0], 0.1, |_| true);
    assert_close("second", &params, &[1.43, 1.71], 1e-12);
}

#[test]
fn what_is_not_trained_stays() {
    let mut layout = Layout::default();
    layout.push("moves", &[1, 1]);
    layout.push("stays", &[1, 1]);
    let config = SgdConfig { base_lr: 1.0, lr_scaling: LrScaling::None, momentum: 0.9, weight_decay: 0.1 };
    let mut optimizer = Optimizer::<f64>::new(&OptimizerConfig::Sgd(config), 2);
    let mut params = [1.0, 1.0];
    optimizer.step(&layout, &mut params, &[1.0, 1.0], 0.1, |entry| entry == 0);
    assert!(params[0] < 1.0 && params[1] == 1.0);
}
