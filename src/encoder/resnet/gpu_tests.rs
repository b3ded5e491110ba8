//! The network on every GPU at hand against torchvision's numbers and against the CPU.

use super::*;
use crate::{
    encoder::cuda::{Arenas, Statistics},
    ops::{
        conv2d::{Size, cuda::Math},
        cuda::{
            Gpu, Kind,
            testing::{on_every_gpu, one_gpu, read, upload},
        },
        golden::{Golden, assert_close},
    },
};

fn load(layout: &Layout, state: &Golden) -> Vec<f32> {
    let mut values = vec![f32::NAN; layout.len()];
    for entry in &layout.entries {
        values[entry.range()].copy_from_slice(&entry.from_torch(&state.get::<f32>(&entry.name)));
    }
    values
}

/// Everything that a step on the GPU gives.
struct Step {
    features: Vec<f32>,
    eval: Vec<f32>,
    buffers: Vec<f32>,
    gradients: Vec<f32>,
    gx: Vec<f32>,
}

/// Forward, eval, backward from the gradient that `cot` makes of the features.
fn step(
    gpu: &Gpu,
    math: Math,
    net: &ResNet,
    [params, buffers, x]: [&[f32]; 3],
    size: Size,
    cot: impl Fn(&[f32]) -> Vec<f32>,
) -> Step {
    let stored = |values: &[f32]| upload(gpu, math.scalar(), values);
    let (params_gpu, kernels) = (gpu.upload(params).unwrap(), stored(params));
    let (buffers, images) = (gpu.upload(buffers).unwrap(), stored(x));
    let on = Arenas { gpu, math, params: params_gpu.view(), kernels: kernels.view(), buffers: buffers.view() };
    let (features, saved) = net.forward_gpu(&on, Statistics::Batch, images.view(), size, true).unwrap();
    let features: Vec<f32> = features.read().unwrap();
    let (eval, none) = net.forward_gpu(&on, Statistics::Running, images.view(), size, false).unwrap();
    assert!(none.is_none());
    let g = gpu.upload(&cot(&features)).unwrap();
    let (gradients, gx) = (gpu.zeros(Kind::F32, params.len()).unwrap(), images.take_alike().unwrap());
    net.backward_gpu(&on, images.view(), saved.unwrap(), g.view(), gradients.view(), Some(gx.view())).unwrap();
    let gx = read(&gx);
    let [eval, buffers, gradients] = [eval, buffers, gradients].map(|buffer| buffer.read().unwrap());
    Step { features, eval, buffers, gradients, gx }
}

fn resnet18() -> ResNet {
    let config = ResnetConfig { width_multiplier: 0.125, stem: Stem::Cifar, init: None };
    ResNet::new(Shape { depths: [2, 2, 2, 2], bottleneck: false }, &config).unwrap()
}

/// PyTorch's own f32 run is off by up to 1e-5 of the largest value in some gradients.
#[test]
fn resnet18_agrees_with_torchvision() {
    let (golden, state) = (Golden::load("resnet18_w8_cifar"), Golden::load("resnet18_w8_cifar_state"));
    let net = resnet18();
    let (params, buffers) = (load(&net.params, &state), load(&net.buffers, &state));
    let x = golden.channels_last::<f32>("in.x");
    on_every_gpu(|gpu| {
        let size = Size { n: 4, h: 32, w: 32 };
        let labels = golden.integers("in.labels");
        let cot = |features: &[f32]| super::tests::head_gradient::<f32>(features, &state, &labels);
        let found = step(gpu, Math::F32, &net, [&params, &buffers, &x], size, cot);
        let close = |what: &str, actual: &[f32], expected: &[f32]| assert_close(what, actual, expected, 5e-5);
        close("features", &found.features, &golden.get::<f32>("out.features"));
        close("eval features", &found.eval, &golden.get::<f32>("out.eval_features"));
        for entry in &net.buffers.entries {
            close(&entry.name, &found.buffers[entry.range()], &golden.get::<f32>(&format!("after.{}", entry.name)));
        }
        for entry in &net.params.entries {
            let expected = golden.get::<f32>(&format!("grad.{}", entry.name));
            close(&entry.name, &entry.to_torch(&found.gradients[entry.range()]), &expected);
        }
        close("gx", &found.gx, &golden.channels_last::<f32>("grad.x"));
        [found.features, found.gradients].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    });
}

/// Bottlenecks, the ImageNet stem and max-pooling, in every arithmetic, against the CPU.
#[test]
fn resnet50_agrees_with_the_cpu() {
    let Some(gpu) = one_gpu() else { return };
    let config = ResnetConfig { width_multiplier: 0.125, ..ResnetConfig::default() };
    let net = ResNet::new(Shape { depths: [3, 4, 6, 3], bottleneck: true }, &config).unwrap();
    let (mut params, buffers) = net.init::<f32>(3);
    // Small residual branches: as it is initialised, so deep a network makes much of any rounding in so small a batch.
    for entry in net.params.entries.iter().filter(|entry| entry.name.ends_with("bn3.weight")) {
        params[entry.range()].fill(0.1);
    }
    let size = Size { n: 6, h: 64, w: 64 };
    let x: Vec<f32> = (0..size.pixels() * 3).map(|i| (i as f32 * 0.713).sin()).collect();
    let cot: Vec<f32> = (0..size.n * net.feature_dim).map(|i| (i as f32 * 0.37).cos()).collect();
    let (mut after, mut memory) = (buffers.clone(), crate::ops::buffers::Buffers::default());
    let (features, saved) = net.forward_train(&params, &mut after, &x, size, &mut memory);
    let mut gradients = vec![0.0; params.len()];
    net.backward(&params, &x, saved, &cot, &mut gradients, &mut memory, ImageGradient::Skip);
    // Cosine with the CPU's: ReLUs and maxima near their edge change sides, so single values may differ, directions not.
    for (math, features_off, least_cosine) in
        [(Math::F32, 1e-3, 0.9999), (Math::Tf32, 0.1, 0.97), (Math::F16, 0.1, 0.97)]
    {
        let found = step(&gpu, math, &net, [&params, &buffers, &x], size, |_| cot.clone());
        assert_close(&format!("{math:?} features"), &found.features, &features, features_off);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
        let cosine = dot(&gradients, &found.gradients)
            / (dot(&gradients, &gradients) * dot(&found.gradients, &found.gradients)).sqrt();
        eprintln!("{math:?}: the gradients' cosine is {cosine}");
        assert!(cosine > least_cosine, "{math:?}: the gradients' cosine is {cosine}");
    }
}
