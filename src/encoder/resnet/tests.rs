use super::*;
use crate::ops::{
    buffers::Buffers,
    conv2d::Size,
    golden::{Golden, assert_close, tolerance},
};

/// Values of a layout's tensors from a state dict in torch's order.
fn load<E: Real>(layout: &Layout, state: &Golden, prefix: &str) -> Vec<E> {
    let mut values = vec![E::nan(); layout.len()];
    for entry in &layout.entries {
        let torch = state.get::<E>(&format!("{prefix}{}", entry.name));
        values[entry.range()].copy_from_slice(&entry.from_torch(&torch));
    }
    values
}

/// Checks the network against a whole torchvision step: features, all gradients, running statistics, eval mode.
fn reference<E: Real>(f32_tolerance: f64) {
    let (golden, state) = (Golden::load("resnet18_w8_cifar"), Golden::load("resnet18_w8_cifar_state"));
    let net = ResNet::new(
        Shape { depths: [2, 2, 2, 2], bottleneck: false },
        &ResnetConfig { width_multiplier: 0.125, stem: Stem::Cifar, init: None },
    )
    .unwrap();
    let tolerance = tolerance::<E>(f32_tolerance);
    let params = load::<E>(&net.params, &state, "");
    let mut buffers = load::<E>(&net.buffers, &state, "");
    let x = golden.channels_last::<E>("in.x");
    let size = Size { n: 4, h: 32, w: 32 };
    let mut memory = Buffers::default();

    let (features, saved) = net.forward_train(&params, &mut buffers, &x, size, &mut memory);
    assert_close("features", &features, &golden.get("out.features"), tolerance);
    for entry in &net.buffers.entries {
        let expected = golden.get(&format!("after.{}", entry.name));
        assert_close(&entry.name, &buffers[entry.range()], &expected, tolerance);
    }
    let eval = net.forward_eval(&params, &buffers, &x, size, &mut memory);
    assert_close("eval features", &eval, &golden.get("out.eval_features"), tolerance);

    let g_features = head_gradient::<E>(&features, &state, &golden.integers("in.labels"));
    let mut gradients = vec![E::zero(); params.len()];
    let mut gx = vec![E::nan(); x.len()];
    let write = ImageGradient::Write(&mut gx);
    net.backward(&params, &x, saved, &g_features, &mut gradients, &mut memory, write);
    for entry in &net.params.entries {
        let expected = golden.get(&format!("grad.{}", entry.name));
        assert_close(&entry.name, &entry.to_torch(&gradients[entry.range()]), &expected, tolerance);
    }
    assert_close("grad.x", &gx, &golden.channels_last("grad.x"), tolerance);
}

/// Gradient of the mean cross-entropy of fc(features) with respect to the features.
pub(super) fn head_gradient<E: Real>(features: &[E], state: &Golden, labels: &[i64]) -> Vec<E> {
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
    reference::<f64>(0.0);
}

/// PyTorch's own f32 run is off by up to 1e-5 of the largest value in some gradients.
#[test]
fn resnet18_agrees_with_torchvision_in_f32() {
    reference::<f32>(5e-5);
}

/// The bottleneck block and, around it, the ImageNet stem and max-pooling: gradients against finite differences.
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
    let mut memory = Buffers::default();
    let mut loss = |params: &[f64]| {
        let (features, saved) = net.forward_train(params, &mut buffers.clone(), &x, size, &mut memory);
        (features.iter().zip(&cot).map(|(f, c)| f * c).sum::<f64>(), saved)
    };
    let (_, saved) = loss(&params);
    let mut gradients = vec![0.0; params.len()];
    net.backward(&params, &x, saved, &cot, &mut gradients, &mut Buffers::default(), ImageGradient::Skip);
    // Along a random direction per tensor, so that every tensor is covered by two evaluations.
    for (t, entry) in net.params.entries.iter().enumerate() {
        let direction: Vec<f64> = (0..entry.len()).map(|i| ((i + 7 * t) as f64 * 1.3).sin()).collect();
        let mut at = |step: f64| {
            let mut moved = params.clone();
            for (p, d) in moved[entry.range()].iter_mut().zip(&direction) {
                *p += step * d;
            }
            loss(&moved).0
        };
        // A tiny step, lest many ReLUs and maxima change sides on the way.
        let difference = (at(1e-8) - at(-1e-8)) / 2e-8;
        let along: f64 = gradients[entry.range()].iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (along - difference).abs();
        // The loss is about 10, so that rounding alone moves the difference by 1e-4.
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
    let params = load::<f64>(&layout, &state, "");
    let mut buffers = load::<f64>(&buffer_layout, &state, "");
    let x = golden.channels_last::<f64>("in.x");
    let size = Size { n: 4, h: 8, w: 8 };
    let mut memory = Buffers::default();

    let statistics = forward::Statistics::Batch(&mut buffers);
    let mut pass = forward::Pass { params: &params, statistics, memory: &mut memory, keep: true };
    let (y, saved) = pass.block(&block, &x, &mut size.clone());
    assert_close("y", &y, &golden.channels_last("out.y"), 1e-10);
    for entry in &buffer_layout.entries {
        let expected = golden.get(&format!("after.{}", entry.name));
        assert_close(&entry.name, &buffers[entry.range()], &expected, 1e-10);
    }
    let mut saved = saved.unwrap();
    saved.output = y;
    let mut gradients = vec![0.0; params.len()];
    let mut pass = backward::Pass { params: &params, gradients: &mut gradients, memory: &mut memory };
    let gx = pass.block(&block, &x, size, saved, golden.channels_last("in.cot"));
    assert_close("grad.x", &gx, &golden.channels_last("grad.x"), 1e-10);
    for entry in &layout.entries {
        let expected = golden.get(&format!("grad.{}", entry.name));
        assert_close(&entry.name, &entry.to_torch(&gradients[entry.range()]), &expected, 1e-10);
    }
    let statistics = forward::Statistics::Running(&buffers);
    let mut pass = forward::Pass { params: &params, statistics, memory: &mut memory, keep: false };
    let (eval, _) = pass.block(&block, &x, &mut size.clone());
    assert_close("eval y", &eval, &golden.channels_last("out.eval_y"), 1e-10);
}

#[test]
fn names_and_shapes_are_torchvisions() {
    let net = ResNet::new(Shape { depths: [3, 4, 6, 3], bottleneck: true }, &ResnetConfig::default()).unwrap();
    assert_eq!(net.params.len(), 25_557_032 - 2048 * 1000 - 1000); // torchvision's count less its classifier
    let shape = |name: &str| net.params.entries.iter().find(|e| e.name == name).unwrap().shape.clone();
    assert_eq!(shape("conv1.weight"), [64, 3, 7, 7]);
    assert_eq!(shape("layer2.0.downsample.0.weight"), [512, 256, 1, 1]);
    assert_eq!(shape("layer4.2.conv3.weight"), [2048, 512, 1, 1]);
    assert_eq!(shape("layer3.5.bn2.bias"), [256]);
}

#[test]
fn a_width_that_is_no_whole_number_of_channels_is_refused() {
    let config = ResnetConfig { width_multiplier: 0.3, ..ResnetConfig::default() };
    assert!(
        ResNet::new(Shape { depths: [2, 2, 2, 2], bottleneck: false }, &config)
            .unwrap_err()
            .to_string()
            .contains("multiple of 1/64")
    );
}
