use dfdx::prelude::Cpu;

use super::*;
use crate::{
    backend::{Backend, Branch, Gpu, Host, Learned, Statistics},
    ops::{
        conv2d::{Size, cuda::Math},
        cuda::testing::{on_every_gpu, one_gpu, with_library},
        golden::{Golden, assert_close, tolerance},
    },
};

/// Values of a layout's tensors from a state dict in torch's order.
fn load<E: Real>(layout: &Layout, state: &Golden) -> Vec<E> {
    let mut values = vec![E::nan(); layout.len()];
    for entry in &layout.entries {
        values[entry.range()].copy_from_slice(&entry.from_torch(&state.get::<E>(&entry.name)));
    }
    values
}

/// The results of a step.
struct Step<E> {
    features: Vec<E>,
    eval: Vec<E>,
    buffers: Vec<E>,
    gradients: Vec<E>,
    /// The gradient of the images, if it was requested.
    gx: Option<Vec<E>>,
}

/// Runs a forward pass in training and in evaluation mode, and a backward pass from the gradient that `cot` computes from the
/// features.
fn step<B: Backend>(
    on: &B,
    net: &ResNet,
    [params, buffers, x]: [&[B::Real]; 3],
    size: Size,
    of_images: bool,
    cot: impl Fn(&[B::Real]) -> Vec<B::Real>,
) -> Step<B::Real> {
    let params = on.params(params.to_vec(), params.len()).unwrap();
    let (mut buffers, images) = (on.buffer(buffers.to_vec()).unwrap(), on.images(x.to_vec()).unwrap());
    let mut branch = Branch { params: &params, statistics: Statistics::Batch(&mut buffers) };
    let (features, saved) = net.forward(on, &mut branch, &images, size, true).unwrap();
    let features = on.read(&features).unwrap();
    let mut branch = Branch { params: &params, statistics: Statistics::Running(&buffers) };
    let (eval, none) = net.forward(on, &mut branch, &images, size, false).unwrap();
    assert!(none.is_none());
    let (g, mut gradients) = (on.buffer(cot(&features)).unwrap(), on.zeros(net.params.len()).unwrap());
    let mut learned = Learned { params: &params, gradients: &mut gradients };
    let gx = net.backward(on, &mut learned, &images, saved.unwrap(), &g, of_images).unwrap();
    let [eval, buffers, gradients] = [&eval, &buffers, &gradients].map(|buffer| on.read(buffer).unwrap());
    Step { features, eval, buffers, gradients, gx: gx.map(|gx| on.read(&gx).unwrap()) }
}

fn resnet18() -> ResNet {
    let config = ResnetConfig { width_multiplier: 0.125, stem: Stem::Cifar, init: None };
    ResNet::new(Shape { depths: [2, 2, 2, 2], bottleneck: false }, &config).unwrap()
}

/// Compares the network with a whole step of torchvision: features, all gradients, running statistics, eval mode.
fn reference<B: Backend>(on: &B, f32_tolerance: f64) -> Vec<B::Real> {
    let (golden, state) = (Golden::load("resnet18_w8_cifar"), Golden::load("resnet18_w8_cifar_state"));
    let net = resnet18();
    let (params, buffers) = (load(&net.params, &state), load(&net.buffers, &state));
    let x = golden.channels_last("in.x");
    let labels = golden.integers("in.labels");
    let cot = |features: &[B::Real]| head_gradient(features, &state, &labels);
    let found = step(on, &net, [&params, &buffers, &x], Size { n: 4, h: 32, w: 32 }, true, cot);
    let close = |what: &str, actual: &[B::Real], expected: &[B::Real]| {
        assert_close(what, actual, expected, tolerance::<B::Real>(f32_tolerance));
    };
    close("features", &found.features, &golden.get("out.features"));
    close("eval features", &found.eval, &golden.get("out.eval_features"));
    for entry in &net.buffers.entries {
        close(&entry.name, &found.buffers[entry.range()], &golden.get(&format!("after.{}", entry.name)));
    }
    for entry in &net.params.entries {
        let expected = golden.get(&format!("grad.{}", entry.name));
        close(&entry.name, &entry.to_torch(&found.gradients[entry.range()]), &expected);
    }
    close("grad.x", &found.gx.unwrap(), &golden.channels_last("grad.x"));
    [found.features, found.gradients].concat()
}

/// Gradient of the mean cross-entropy of fc(features) with respect to the features.
fn head_gradient<E: Real>(features: &[E], state: &Golden, labels: &[i64]) -> Vec<E> {
    let (weight, bias) = (state.get::<f64>("fc.weight"), state.get::<f64>("fc.bias"));
    let (n, dim, classes) = (labels.len(), features.len() / labels.len(), bias.len());
    let mut gradient = vec![E::zero(); features.len()];
    for i in 0..n {
        let f = &features[i * dim..][..dim];
        let logit = |c: usize| bias[c] + (0..dim).map(|d| weight[c * dim + d] * f[d].as_f64()).sum::<f64>();
        let exps: Vec<f64> = (0..classes).map(|c| logit(c).exp()).collect();
        let total: f64 = exps.iter().sum();
        for d in 0..dim {
            let g = (0..classes).map(|c| {
                let target = if labels[i] == c as i64 { 1.0 } else { 0.0 };
                (exps[c] / total - target) * weight[c * dim + d]
            });
            gradient[i * dim + d] = E::of(g.sum::<f64>() / n as f64);
        }
    }
    gradient
}

#[test]
fn resnet18_agrees_with_torchvision_in_f64() {
    reference(&Host::<f64>::default(), 0.0);
}

/// PyTorch's own f32 run is off by up to 1e-5 of the largest value in some gradients.
#[test]
fn resnet18_agrees_with_torchvision_in_f32() {
    reference(&Host::<f32>::default(), 5e-5);
    on_every_gpu(|gpu| reference(&Gpu::new(gpu.clone(), Cpu::default(), Math::F32), 5e-5));
}

/// Compares every arithmetic of a GPU with the host, with and without a library for products, for bottlenecks, the ImageNet stem
/// and max-pooling.
#[test]
fn resnet50_on_a_gpu_agrees_with_the_host() {
    let config = ResnetConfig { width_multiplier: 0.125, ..ResnetConfig::default() };
    let net = ResNet::new(Shape { depths: [3, 4, 6, 3], bottleneck: true }, &config).unwrap();
    let (mut params, buffers) = net.init::<f32>(3);
    // Makes the residual branches small. With the usual initial values, a network this deep amplifies every rounding error
    // in a batch this small.
    for entry in net.params.entries.iter().filter(|entry| entry.name.ends_with("bn3.weight")) {
        params[entry.range()].fill(0.1);
    }
    let size = Size { n: 6, h: 64, w: 64 };
    let x: Vec<f32> = (0..size.pixels() * 3).map(|i| (i as f32 * 0.713).sin()).collect();
    let cot: Vec<f32> = (0..size.n * net.feature_dim).map(|i| (i as f32 * 0.37).cos()).collect();
    let values = [&params[..], &buffers, &x];
    let expected = step(&Host::default(), &net, values, size, false, |_| cot.clone());
    // Gradients are compared by their cosine. ReLUs and maxima near a threshold change sides, so single values may differ,
    // but directions do not.
    for gpu in one_gpu().into_iter().chain(with_library()) {
        for (math, features_off, least_cosine) in
            [(Math::F32, 1e-3, 0.9999), (Math::Tf32, 0.1, 0.97), (Math::F16, 0.1, 0.97), (Math::Bf16, 0.8, 0.5)]
        {
            let found = step(&Gpu::new(gpu.clone(), Cpu::default(), math), &net, values, size, false, |_| cot.clone());
            assert_close(&format!("{math:?} features"), &found.features, &expected.features, features_off);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
            let (a, b) = (&expected.gradients, &found.gradients);
            let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            eprintln!("{math:?}: the gradients' cosine is {cosine}");
            assert!(cosine > least_cosine, "{math:?}: the gradients' cosine is {cosine}");
        }
    }
}

/// Covers bottleneck blocks, the ImageNet stem and max-pooling.
#[test]
fn resnet50_gradients_agree_with_finite_differences() {
    let net = ResNet::new(
        Shape { depths: [3, 4, 6, 3], bottleneck: true },
        &ResnetConfig { width_multiplier: 0.0625, ..ResnetConfig::default() },
    )
    .unwrap();
    let (params, buffers) = net.init::<f64>(3);
    let size = Size { n: 3, h: 40, w: 40 };
    let x: Vec<f64> = (0..size.pixels() * 3).map(|i| (i as f64 * 0.713).sin()).collect();
    let cot: Vec<f64> = (0..3 * net.feature_dim).map(|i| (i as f64 * 0.37).cos()).collect();
    let on = Host::default();
    let run = |params: &[f64]| step(&on, &net, [params, &buffers, &x], size, false, |_| cot.clone());
    let loss = |params: &[f64]| run(params).features.iter().zip(&cot).map(|(f, c)| f * c).sum::<f64>();
    let gradients = run(&params).gradients;
    // One direction per tensor, so that two evaluations cover the tensor.
    for (t, entry) in net.params.entries.iter().enumerate() {
        let direction: Vec<f64> = (0..entry.len()).map(|i| ((i + 7 * t) as f64 * 1.3).sin()).collect();
        let at = |step: f64| {
            let mut moved = params.clone();
            for (p, d) in moved[entry.range()].iter_mut().zip(&direction) {
                *p += step * d;
            }
            loss(&moved)
        };
        // The step is tiny, so that few ReLUs and maxima change sides between the two points.
        let difference = (at(1e-8) - at(-1e-8)) / 2e-8;
        let along: f64 = gradients[entry.range()].iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (along - difference).abs();
        // The loss is about 10, so rounding alone changes the difference by 1e-4.
        assert!(error < 1e-4 * difference.abs() + 1e-3, "{}: {along} instead of {difference}", entry.name);
    }
}

/// A bottleneck with the stride on its 3x3 convolution and a projected shortcut.
#[test]
fn bottleneck_agrees_with_torchvision() {
    let (golden, state) = (Golden::load("bottleneck_s2"), Golden::load("bottleneck_s2_state"));
    let mut builder = Builder::default();
    let block = builder.block("block", 16, 4, 2, true);
    let (layout, buffer_layout) = builder.finish();
    let strip = |mut layout: Layout| {
        layout.entries.iter_mut().for_each(|e| e.name = e.name["block.".len()..].into());
        layout
    };
    let (layout, buffer_layout) = (strip(layout), strip(buffer_layout));
    let params = load::<f64>(&layout, &state);
    let (on, mut buffers) = (Host::default(), load::<f64>(&buffer_layout, &state).into());
    let x = golden.channels_last::<f64>("in.x").into();
    let size = Size { n: 4, h: 8, w: 8 };

    let mut branch = Branch { params: &params, statistics: Statistics::Batch(&mut buffers) };
    let Ok((y, saved)) = forward::forward(&on, &block, &mut branch, &x, &mut size.clone(), true);
    assert_close("y", &y, &golden.channels_last("out.y"), 1e-10);
    for entry in &buffer_layout.entries {
        let expected = golden.get(&format!("after.{}", entry.name));
        assert_close(&entry.name, &buffers[entry.range()], &expected, 1e-10);
    }
    let mut gradients = vec![0.0; params.len()].into();
    let mut learned = Learned { params: &params, gradients: &mut gradients };
    let g = golden.channels_last::<f64>("in.cot").into();
    let Ok(gx) = backward::backward(&on, &block, &mut learned, &x, size, saved.unwrap(), y, g);
    assert_close("grad.x", &gx, &golden.channels_last("grad.x"), 1e-10);
    for entry in &layout.entries {
        let expected = golden.get(&format!("grad.{}", entry.name));
        assert_close(&entry.name, &entry.to_torch(&gradients[entry.range()]), &expected, 1e-10);
    }
    let mut branch = Branch { params: &params, statistics: Statistics::Running(&buffers) };
    let Ok((eval, _)) = forward::forward(&on, &block, &mut branch, &x, &mut size.clone(), false);
    assert_close("eval y", &eval, &golden.channels_last("out.eval_y"), 1e-10);
}

#[test]
fn names_and_shapes_are_torchvisions() {
    let net = ResNet::new(Shape { depths: [3, 4, 6, 3], bottleneck: true }, &ResnetConfig::default()).unwrap();
    assert_eq!(net.params.len(), 25_557_032 - 2048 * 1000 - 1000); // torchvision's count without its classifier
    let shape = |name: &str| net.params.entries.iter().find(|e| e.name == name).unwrap().shape.clone();
    assert_eq!(shape("conv1.weight"), [64, 3, 7, 7]);
    assert_eq!(shape("layer2.0.downsample.0.weight"), [512, 256, 1, 1]);
    assert_eq!(shape("layer4.2.conv3.weight"), [2048, 512, 1, 1]);
    assert_eq!(shape("layer3.5.bn2.bias"), [256]);
}

#[test]
fn a_width_that_is_no_whole_number_of_channels_is_refused() {
    let config = ResnetConfig { width_multiplier: 0.3, ..ResnetConfig::default() };
    let refused = ResNet::new(Shape { depths: [2, 2, 2, 2], bottleneck: false }, &config).unwrap_err();
    let message = "encoder.width_multiplier: 19.2 is not a whole number of channels; the nearest width is 0.296875";
    assert_eq!(refused.to_string(), message);
}
