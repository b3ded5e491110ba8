//! The network on every GPU at hand against timm's numbers and against the CPU.

use super::*;
use crate::{
    encoder::cuda::Arenas,
    ops::{
        buffers::Buffers,
        conv2d::{Size, cuda::Math},
        cuda::{
            Gpu, Kind,
            testing::{on_every_gpu, one_gpu, upload},
        },
        golden::{Golden, assert_close},
    },
};

/// Features, and gradients of the parameters from that of the features.
fn step(gpu: &Gpu, math: Math, net: &Vit, [params, buffers, x]: [&[f32]; 3], size: Size, cot: &[f32]) -> [Vec<f32>; 2] {
    let stored = |values: &[f32]| upload(gpu, math.scalar(), values);
    let (params_gpu, kernels) = (gpu.upload(params).unwrap(), stored(params));
    let (buffers, images) = (gpu.upload(buffers).unwrap(), stored(x));
    let on = Arenas { gpu, math, params: params_gpu.view(), kernels: kernels.view(), buffers: buffers.view() };
    let (features, saved) = net.forward_gpu(&on, images.view(), size, true).unwrap();
    let features: Vec<f32> = features.read().unwrap();
    let (alone, none) = net.forward_gpu(&on, images.view(), size, false).unwrap();
    assert!(none.is_none() && alone.read::<f32>().unwrap() == features);
    let (g, gradients) = (gpu.upload(cot).unwrap(), gpu.zeros(Kind::F32, params.len()).unwrap());
    net.backward_gpu(&on, images.view(), saved.unwrap(), g.view(), gradients.view()).unwrap();
    [features, gradients.read().unwrap()]
}

/// Sizes and values of the reference's network.
fn reference() -> (Vit, Golden, [Vec<f32>; 2]) {
    let net = super::tests::small(false);
    let state = Golden::load("vit_w16_state");
    let values = [super::tests::load::<f32>(&net.params, &state), super::tests::load(&net.buffers, &state)];
    (net, Golden::load("vit_w16"), values)
}

/// PyTorch's own f32 run is off by up to 2e-6.
#[test]
fn agrees_with_timm() {
    let (net, golden, [params, buffers]) = reference();
    let (x, cot) = (golden.channels_last::<f32>("in.x"), golden.get::<f32>("in.cot"));
    on_every_gpu(|gpu| {
        let found = step(gpu, Math::F32, &net, [&params, &buffers, &x], Size { n: 3, h: 16, w: 16 }, &cot);
        assert_close("features", &found[0], &golden.get("out.features"), 1e-5);
        for entry in &net.params.entries {
            let expected = golden.get::<f32>(&format!("grad.{}", entry.name));
            assert_close(&entry.name, &entry.to_torch(&found[1][entry.range()]), &expected, 1e-5);
        }
        found.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    });
}

#[test]
fn images_of_other_sizes_get_interpolated_positions() {
    let (net, golden, [params, buffers]) = reference();
    on_every_gpu(|gpu| {
        let values = gpu.upload(&buffers).unwrap();
        [("large", 24, 24), ("small", 8, 8), ("wide", 12, 20)].map(|(name, h, w)| {
            let positions = tokens::interpolate(gpu, values.view(), 4, [h / 4, w / 4], 16).unwrap();
            let positions: Vec<f32> = positions.read().unwrap();
            assert_close(name, &positions, &golden.get(&format!("out.pos_{name}")), 1e-6);
            let (x, size) = (golden.channels_last::<f32>(&format!("in.{name}")), Size { n: 2, h, w });
            let [features, _] = step(gpu, Math::F32, &net, [&params, &buffers, &x], size, &[1.0; 32]);
            assert_close(name, &features, &golden.get(&format!("out.{name}")), 1e-5);
            features
        })
    });
}

#[test]
fn a_frozen_patch_embedding_has_no_gradient_and_changes_no_other() {
    let Some(gpu) = one_gpu() else { return };
    let (_, golden, [params, buffers]) = reference();
    let (x, cot) = (golden.channels_last::<f32>("in.x"), golden.get::<f32>("in.cot"));
    let gradients = |net: &Vit| {
        let [_, gradients] = step(&gpu, Math::F32, net, [&params, &buffers, &x], Size { n: 3, h: 16, w: 16 }, &cot);
        gradients
    };
    let (frozen, free) = (super::tests::small(true), super::tests::small(false));
    let (a, b) = (gradients(&frozen), gradients(&free));
    for (i, entry) in free.params.entries.iter().enumerate() {
        let (a, b) = (&a[entry.range()], &b[entry.range()]);
        assert!(if frozen.trains(i) { a == b } else { a.iter().all(|g| *g == 0.0) }, "{}", entry.name);
    }
}

/// Heads of the usual width and many tokens, in every arithmetic, against the CPU.
#[test]
fn every_arithmetic_agrees_with_the_cpu() {
    let Some(gpu) = one_gpu() else { return };
    let config = VitConfig { patch_size: 4, ..VitConfig::default() };
    let net = Vit::new(Shape { width: 128, depth: 3, heads: 2 }, &config, 36).unwrap();
    let (params, buffers) = net.init::<f32>(3);
    let size = Size { n: 3, h: 36, w: 36 };
    let x: Vec<f32> = (0..size.pixels() * 3).map(|i| (i as f32 * 0.713).sin()).collect();
    let cot: Vec<f32> = (0..size.n * 128).map(|i| (i as f32 * 0.37).cos()).collect();
    let mut memory = Buffers::default();
    let (features, saved) = net.forward_train(&params, &buffers, &x, size, &mut memory);
    let mut gradients = vec![0.0; params.len()];
    net.backward(&params, &x, saved, &cot, &mut gradients, &mut memory);
    // f32 sums in another order; tensor cores read 11 bits of each operand, through three blocks.
    for (math, features_off, least_cosine) in
        [(Math::F32, 1e-5, 0.999_999), (Math::Tf32, 1e-2, 0.9999), (Math::F16, 1e-2, 0.9999)]
    {
        let [found, g] = step(&gpu, math, &net, [&params, &buffers, &x], size, &cot);
        assert_close(&format!("{math:?} features"), &found, &features, features_off);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
        let cosine = dot(&gradients, &g) / (dot(&gradients, &gradients) * dot(&g, &g)).sqrt();
        eprintln!("{math:?}: the gradients' cosine is {cosine}");
        assert!(cosine > least_cosine, "{math:?}: the gradients' cosine is {cosine}");
    }
}
