use dfdx::prelude::Cpu;

use super::*;
use crate::{
    backend::{Backend, Gpu, Host, Learned},
    ops::{
        Number, Real,
        conv2d::{Size, cuda::Math},
        cuda::testing::{on_every_gpu, one_gpu, with_library},
        golden::{Golden, assert_close, tolerance},
        tokens::{self, positions},
    },
};

const SMALL: Shape = Shape { width: 16, depth: 2, heads: 2 };

fn small(stop_grad_patch_embed: bool) -> Vit {
    Vit::new(SMALL, &VitConfig { patch_size: 4, stop_grad_patch_embed, ..VitConfig::default() }, 16).unwrap()
}

/// Values of a layout's tensors from a state dict of timm.
fn load<E: Real>(layout: &Layout, state: &Golden) -> Vec<E> {
    let mut values = vec![E::nan(); layout.len()];
    for entry in &layout.entries {
        assert_eq!(state.shape(&entry.name), entry.shape, "{}", entry.name);
        values[entry.range()].copy_from_slice(&entry.from_torch(&state.get::<E>(&entry.name)));
    }
    values
}

/// Features, and gradients of the parameters from the gradient `cot` of the features.
fn step<B: Backend>(
    on: &B,
    net: &Vit,
    [params, buffers, x]: [&[B::Real]; 3],
    size: Size,
    cot: &[B::Real],
) -> [Vec<B::Real>; 2] {
    let params = on.params(params.to_vec(), params.len()).unwrap();
    let (buffers, images) = (on.buffer(buffers.to_vec()).unwrap(), on.images(x.to_vec()).unwrap());
    let (features, saved) = net.forward(on, &params, &buffers, &images, size, true).unwrap();
    let features = on.read(&features).unwrap();
    let (alone, none) = net.forward(on, &params, &buffers, &images, size, false).unwrap();
    assert!(none.is_none() && on.read(&alone).unwrap() == features);
    let (g, mut gradients) = (on.buffer(cot.to_vec()).unwrap(), on.zeros(net.params.len()).unwrap());
    let mut learned = Learned { params: &params, gradients: &mut gradients };
    net.backward(on, &mut learned, &images, saved.unwrap(), &g).unwrap();
    [features, on.read(&gradients).unwrap()]
}

/// Features and gradients of the golden step.
fn golden_step<B: Backend>(on: &B, net: &Vit) -> [Vec<B::Real>; 2] {
    let (golden, state) = (Golden::load("vit_w16"), Golden::load("vit_w16_state"));
    let (params, buffers) = (load(&net.params, &state), load(&net.buffers, &state));
    let (x, size) = (golden.channels_last("in.x"), Size { n: 3, h: 16, w: 16 });
    step(on, net, [&params, &buffers, &x], size, &golden.get("in.cot"))
}

/// Checks features and all gradients against timm's.
fn reference<B: Backend>(on: &B, f32_tolerance: f64) -> [Vec<B::Real>; 2] {
    let golden = Golden::load("vit_w16");
    let (net, tolerance) = (small(false), tolerance::<B::Real>(f32_tolerance));
    let [features, gradients] = golden_step(on, &net);
    assert_close("features", &features, &golden.get("out.features"), tolerance);
    for entry in &net.params.entries {
        let expected = golden.get(&format!("grad.{}", entry.name));
        assert_close(&entry.name, &entry.to_torch(&gradients[entry.range()]), &expected, tolerance);
    }
    [features, gradients]
}

#[test]
fn agrees_with_timm_in_f64() {
    reference(&Host::<f64>::default(), 0.0);
}

/// PyTorch's own f32 run is off by up to 2e-6.
#[test]
fn agrees_with_timm_in_f32() {
    reference(&Host::<f32>::default(), 1e-5);
    on_every_gpu(|gpu| reference(&Gpu::new(gpu.clone(), Cpu::default(), Math::F32), 1e-5));
}

/// Image sizes that differ from the one that the positions are laid out for.
const OTHERS: [(&str, usize, usize); 3] = [("large", 24, 24), ("small", 8, 8), ("wide", 12, 20)];

fn other_sizes<B: Backend>(on: &B, f32_tolerance: f64) -> [Vec<B::Real>; 3] {
    let (golden, state, net) = (Golden::load("vit_w16"), Golden::load("vit_w16_state"), small(false));
    let (params, buffers) = (load(&net.params, &state), load(&net.buffers, &state));
    OTHERS.map(|(name, h, w)| {
        let (x, cot) = (golden.channels_last(&format!("in.{name}")), vec![B::Real::of(1.0); 32]);
        let [features, _] = step(on, &net, [&params, &buffers, &x], Size { n: 2, h, w }, &cot);
        let tolerance = tolerance::<B::Real>(f32_tolerance);
        assert_close(name, &features, &golden.get(&format!("out.{name}")), tolerance);
        features
    })
}

#[test]
fn images_of_other_sizes_get_interpolated_positions() {
    let (golden, state) = (Golden::load("vit_w16"), Golden::load("vit_w16_state"));
    let own = load::<f64>(&small(false).buffers, &state);
    for (name, h, w) in OTHERS {
        let found = positions::interpolate(&own, 4, [h / 4, w / 4], 16);
        assert_close(name, &found, &golden.get(&format!("out.pos_{name}")), 1e-12);
    }
    other_sizes(&Host::<f64>::default(), 0.0);
    on_every_gpu(|gpu| {
        let own = gpu.upload(&load::<f32>(&small(false).buffers, &state)).unwrap();
        for (name, h, w) in OTHERS {
            let found = tokens::cuda::interpolate(gpu, own.view(), 4, [h / 4, w / 4], 16).unwrap();
            let found: Vec<f32> = found.read().unwrap();
            assert_close(name, &found, &golden.get(&format!("out.pos_{name}")), 1e-6);
        }
        other_sizes(&Gpu::new(gpu.clone(), Cpu::default(), Math::F32), 1e-5)
    });
}

#[test]
fn positions_are_moco_v3s() {
    assert_close("positions", &positions::sin_cos::<f64>(4, 16), &Golden::load("vit_w16").get("out.sincos4"), 1e-12);
}

/// The images are not of the base size, so that positions are interpolated too.
#[test]
fn gradients_agree_with_finite_differences() {
    let net = small(false);
    let state = Golden::load("vit_w16_state");
    let (params, buffers) = (load::<f64>(&net.params, &state), load::<f64>(&net.buffers, &state));
    let size = Size { n: 2, h: 8, w: 20 };
    let x: Vec<f64> = (0..size.pixels() * 3).map(|i| (i as f64 * 0.713).sin()).collect();
    let cot: Vec<f64> = (0..2 * net.feature_dim()).map(|i| (i as f64 * 0.37).cos()).collect();
    let on = Host::default();
    let run = |params: &[f64]| step(&on, &net, [params, &buffers, &x], size, &cot);
    let loss = |params: &[f64]| run(params)[0].iter().zip(&cot).map(|(f, c)| f * c).sum::<f64>();
    let [_, gradients] = run(&params);
    for (t, entry) in net.params.entries.iter().enumerate() {
        let direction: Vec<f64> = (0..entry.len()).map(|i| ((i + 7 * t) as f64 * 1.3).sin()).collect();
        let at = |step: f64| {
            let mut moved = params.clone();
            moved[entry.range()].iter_mut().zip(&direction).for_each(|(p, d)| *p += step * d);
            loss(&moved)
        };
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        let along: f64 = gradients[entry.range()].iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (along - difference).abs();
        assert!(error < 1e-6 * difference.abs() + 1e-7, "{}: {along} instead of {difference}", entry.name);
    }
}

fn frozen_and_free<B: Backend>(on: &B) {
    let (frozen, free) = (small(true), small(false));
    let ([_, a], [_, b]) = (golden_step(on, &frozen), golden_step(on, &free));
    for (i, entry) in free.params.entries.iter().enumerate() {
        let trains = !entry.name.starts_with("patch_embed.");
        assert_eq!((frozen.trains(i), free.trains(i)), (trains, true), "{}", entry.name);
        let (a, b) = (&a[entry.range()], &b[entry.range()]);
        assert!(if trains { a == b } else { a.iter().all(|g| g.as_f64() == 0.0) }, "{}", entry.name);
    }
}

#[test]
fn a_frozen_patch_embedding_has_no_gradient_and_changes_no_other() {
    frozen_and_free(&Host::<f64>::default());
    let Some(gpu) = one_gpu() else { return };
    frozen_and_free(&Gpu::new(gpu, Cpu::default(), Math::F32));
}

/// Compares every arithmetic of a GPU with the host, with and without a library for products, for heads of the usual width and many
/// tokens.
#[test]
fn every_arithmetic_of_a_gpu_agrees_with_the_host() {
    let config = VitConfig { patch_size: 4, ..VitConfig::default() };
    let net = Vit::new(Shape { width: 128, depth: 3, heads: 2 }, &config, 36).unwrap();
    let (params, buffers) = net.init::<f32>(3);
    let size = Size { n: 3, h: 36, w: 36 };
    let x: Vec<f32> = (0..size.pixels() * 3).map(|i| (i as f32 * 0.713).sin()).collect();
    let cot: Vec<f32> = (0..size.n * 128).map(|i| (i as f32 * 0.37).cos()).collect();
    let values = [&params[..], &buffers, &x];
    let [features, gradients] = step(&Host::default(), &net, values, size, &cot);
    // In f32, sums have another order. Tensor cores round each operand to 11 bits (bf16: 8), and errors grow over three blocks.
    for gpu in one_gpu().into_iter().chain(with_library()) {
        for (math, features_off, least_cosine) in [
            (Math::F32, 1e-5, 0.999_999),
            (Math::Tf32, 1e-2, 0.9999),
            (Math::F16, 1e-2, 0.9999),
            (Math::Bf16, 8e-2, 0.99),
        ] {
            let [found, g] = step(&Gpu::new(gpu.clone(), Cpu::default(), math), &net, values, size, &cot);
            assert_close(&format!("{math:?} features"), &found, &features, features_off);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
            let cosine = dot(&gradients, &g) / (dot(&gradients, &gradients) * dot(&g, &g)).sqrt();
            eprintln!("{math:?}: the gradients' cosine is {cosine}");
            assert!(cosine > least_cosine, "{math:?}: the gradients' cosine is {cosine}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let shape = Shape { width: 64, depth: 2, heads: 4 };
    let net = Vit::new(shape, &VitConfig { patch_size: 4, ..VitConfig::default() }, 32).unwrap();
    let (params, buffers) = net.init::<f32>(1);
    let size = Size { n: 12, h: 32, w: 32 };
    let x: Vec<f32> = (0..size.pixels() * 3).map(|i| (i as f32 * 0.713).sin()).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let cot: Vec<f32> = (0..size.n * 64).map(|i| (i as f32 * 0.37).cos()).collect();
            step(&Host::default(), &net, [&params, &buffers, &x], size, &cot)
        })
    };
    let one = run(1);
    assert!(one[1].iter().all(|g| g.is_finite()));
    for threads in [2, 3, 7] {
        assert!(one == run(threads), "{threads} threads");
    }
}

#[test]
fn names_and_shapes_are_timms() {
    // timm's count for vit_small_patch16_224, without its classifier and its positions.
    let net = Vit::new(Shape { width: 384, depth: 12, heads: 6 }, &VitConfig::default(), 224).unwrap();
    assert_eq!(net.params.len(), 21_590_016);
    let shape = |layout: &Layout, name: &str| layout.entries.iter().find(|e| e.name == name).unwrap().shape.clone();
    assert_eq!(shape(&net.buffers, "pos_embed"), [1, 197, 384]);
    assert_eq!(shape(&net.params, "patch_embed.proj.weight"), [384, 3, 16, 16]);
    assert_eq!(shape(&net.params, "blocks.11.attn.qkv.bias"), [1152]);
    assert_eq!(shape(&net.params, "blocks.0.mlp.fc2.weight"), [384, 1536]);
}

#[test]
fn initial_weights_are_moco_v3s() {
    let net = small(false);
    let (params, _) = net.init::<f64>(3);
    let largest = |name: &str| {
        let entry = net.params.entries.iter().find(|e| e.name == name).unwrap();
        params[entry.range()].iter().fold(0.0f64, |most, v| most.max(v.abs()))
    };
    for (name, fans) in [
        ("blocks.0.attn.qkv.weight", 16 + 16),
        ("blocks.1.attn.proj.weight", 16 + 16),
        ("blocks.1.mlp.fc1.weight", 16 + 64),
        ("patch_embed.proj.weight", 16 + 48),
    ] {
        let bound = (6.0 / f64::from(fans)).sqrt();
        assert!((0.9 * bound..=bound).contains(&largest(name)), "{name}");
    }
    assert!(largest("cls_token") < 1e-5 && largest("cls_token") > 0.0);
    assert_eq!((largest("blocks.0.attn.qkv.bias"), largest("blocks.1.norm2.weight")), (0.0, 1.0));
    assert!(params == net.init::<f64>(3).0 && params != net.init::<f64>(4).0);
}

#[test]
fn what_does_not_divide_is_refused() {
    let refused = |config: VitConfig, size: usize| Vit::new(SMALL, &config, size).unwrap_err().to_string();
    let heads = VitConfig { heads: Some(3), ..VitConfig::default() };
    let message = "encoder.heads: 3 heads do not divide a width of 16; the nearest number of heads is 2";
    assert_eq!(refused(heads, 32), message);
    let message =
        |key: &str| format!("{key}: patches of 16 pixels do not tile images of 40; the nearest `{key}` is 48");
    assert_eq!(refused(VitConfig::default(), 40), message("augmentations.size"));
    let own_size = VitConfig { image_size: Some(40), ..VitConfig::default() };
    assert_eq!(refused(own_size, 32), message("encoder.image_size"));
}
