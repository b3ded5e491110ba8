use super::*;
use crate::ops::{
    Real,
    buffers::Buffers,
    conv2d::Size,
    golden::{Golden, assert_close, tolerance},
};

const SMALL: Shape = Shape { width: 16, depth: 2, heads: 2 };

pub(super) fn small(stop_grad_patch_embed: bool) -> Vit {
    Vit::new(SMALL, &VitConfig { patch_size: 4, stop_grad_patch_embed, ..VitConfig::default() }, 16).unwrap()
}

/// Values of a layout's tensors from a state dict of timm.
pub(super) fn load<E: Real>(layout: &Layout, state: &Golden) -> Vec<E> {
    let mut values = vec![E::nan(); layout.len()];
    for entry in &layout.entries {
        assert_eq!(state.shape(&entry.name), entry.shape, "{}", entry.name);
        values[entry.range()].copy_from_slice(&entry.from_torch(&state.get::<E>(&entry.name)));
    }
    values
}

/// Features and gradients of the golden step.
fn step<E: Real>(net: &Vit) -> (Vec<E>, Vec<E>) {
    let (golden, state) = (Golden::load("vit_w16"), Golden::load("vit_w16_state"));
    let (params, buffers) = (load::<E>(&net.params, &state), load::<E>(&net.buffers, &state));
    let (x, size) = (golden.channels_last::<E>("in.x"), Size { n: 3, h: 16, w: 16 });
    let mut memory = Buffers::default();
    let (features, saved) = net.forward_train(&params, &buffers, &x, size, &mut memory);
    assert_eq!(features, net.forward_eval(&params, &buffers, &x, size, &mut memory));
    let mut gradients = vec![E::zero(); params.len()];
    net.backward(&params, &x, saved, &golden.get("in.cot"), &mut gradients, &mut memory);
    (features, gradients)
}

/// Checks features and all gradients against timm's.
fn reference<E: Real>(f32_tolerance: f64) {
    let golden = Golden::load("vit_w16");
    let (net, tolerance) = (small(false), tolerance::<E>(f32_tolerance));
    let (features, gradients) = step::<E>(&net);
    assert_close("features", &features, &golden.get("out.features"), tolerance);
    for entry in &net.params.entries {
        let expected = golden.get(&format!("grad.{}", entry.name));
        assert_close(&entry.name, &entry.to_torch(&gradients[entry.range()]), &expected, tolerance);
    }
}

#[test]
fn agrees_with_timm_in_f64() {
    reference::<f64>(0.0);
}

/// PyTorch's own f32 run is off by up to 2e-6.
#[test]
fn agrees_with_timm_in_f32() {
    reference::<f32>(1e-5);
}

#[test]
fn images_of_other_sizes_get_interpolated_positions() {
    let (golden, state) = (Golden::load("vit_w16"), Golden::load("vit_w16_state"));
    let net = small(false);
    let (params, buffers) = (load::<f64>(&net.params, &state), load::<f64>(&net.buffers, &state));
    for (name, h, w) in [("large", 24, 24), ("small", 8, 8), ("wide", 12, 20)] {
        let positions = positions::interpolate(&buffers, 4, [h / 4, w / 4], 16);
        assert_close(name, &positions, &golden.get(&format!("out.pos_{name}")), 1e-12);
        let x = golden.channels_last::<f64>(&format!("in.{name}"));
        let features = net.forward_eval(&params, &buffers, &x, Size { n: 2, h, w }, &mut Buffers::default());
        assert_close(name, &features, &golden.get(&format!("out.{name}")), 1e-10);
    }
}

#[test]
fn positions_are_moco_v3s() {
    assert_close("positions", &positions::sin_cos::<f64>(4, 16), &Golden::load("vit_w16").get("out.sincos4"), 1e-12);
}

/// Away from the base grid too, whose positions are interpolated.
#[test]
fn gradients_agree_with_finite_differences() {
    let net = small(false);
    let state = Golden::load("vit_w16_state");
    let (params, buffers) = (load::<f64>(&net.params, &state), load::<f64>(&net.buffers, &state));
    let size = Size { n: 2, h: 8, w: 20 };
    let x: Vec<f64> = (0..size.pixels() * 3).map(|i| (i as f64 * 0.713).sin()).collect();
    let cot: Vec<f64> = (0..2 * net.feature_dim()).map(|i| (i as f64 * 0.37).cos()).collect();
    let mut memory = Buffers::default();
    let mut loss = |params: &[f64]| {
        let (features, saved) = net.forward_train(params, &buffers, &x, size, &mut memory);
        (features.iter().zip(&cot).map(|(f, c)| f * c).sum::<f64>(), saved)
    };
    let mut gradients = vec![0.0; params.len()];
    net.backward(&params, &x, loss(&params).1, &cot, &mut gradients, &mut Buffers::default());
    for (t, entry) in net.params.entries.iter().enumerate() {
        let direction: Vec<f64> = (0..entry.len()).map(|i| ((i + 7 * t) as f64 * 1.3).sin()).collect();
        let mut at = |step: f64| {
            let mut moved = params.clone();
            moved[entry.range()].iter_mut().zip(&direction).for_each(|(p, d)| *p += step * d);
            loss(&moved).0
        };
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        let along: f64 = gradients[entry.range()].iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (along - difference).abs();
        assert!(error < 1e-6 * difference.abs() + 1e-7, "{}: {along} instead of {difference}", entry.name);
    }
}

#[test]
fn a_frozen_patch_embedding_has_no_gradient_and_changes_no_other() {
    let (frozen, free) = (small(true), small(false));
    let ((_, a), (_, b)) = (step::<f64>(&frozen), step::<f64>(&free));
    for (i, entry) in free.params.entries.iter().enumerate() {
        let trains = !entry.name.starts_with("patch_embed.");
        assert_eq!((frozen.trains(i), free.trains(i)), (trains, true), "{}", entry.name);
        let (a, b) = (&a[entry.range()], &b[entry.range()]);
        assert!(if trains { a == b } else { a.iter().all(|g| *g == 0.0) }, "{}", entry.name);
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
            let mut memory = Buffers::default();
            let (features, saved) = net.forward_train(&params, &buffers, &x, size, &mut memory);
            let mut gradients = vec![0.0; params.len()];
            net.backward(&params, &x, saved, &features, &mut gradients, &mut memory);
            (features, gradients)
        })
    };
    let one = run(1);
    assert!(one.1.iter().all(|g| g.is_finite()));
    for threads in [2, 3, 7] {
        assert!(one == run(threads), "{threads} threads");
    }
}

#[test]
fn names_and_shapes_are_timms() {
    // timm's count of vit_small_patch16_224 less its classifier and its positions.
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
    assert_eq!(refused(heads, 32), "encoder.heads: 3 heads do not divide a width of 16");
    let message = "encoder.patch_size: patches of 16 pixels do not tile images of 40";
    assert_eq!(refused(VitConfig::default(), 40), message);
    assert_eq!(refused(VitConfig { image_size: Some(40), ..VitConfig::default() }, 32), message);
}
