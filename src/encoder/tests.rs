//! Tests that every encoder must pass.

use super::*;
use crate::{
    backend::{Host, Memory, Statistics},
    ops::parts::parts,
};

fn encoders() -> Vec<Encoder> {
    let specs = [
        "{arch: resnet18, width_multiplier: 0.0625, stem: cifar}",
        "{arch: resnet18, width_multiplier: 0.25, stem: cifar}",
        "{arch: resnet50, width_multiplier: 0.25, stem: imagenet}",
        "{arch: vit_tiny, patch_size: 8, heads: 3}",
    ];
    let config = |spec: &str| serde_yaml::from_str::<EncoderConfig>(spec).expect("a configuration");
    specs.iter().map(|spec| Encoder::new(&config(spec), 32).expect("a network")).collect()
}

fn ramp(n: usize, step: f64) -> Vec<f32> {
    (0..n).map(|i| (i as f64 * step).sin() as f32).collect()
}

/// Each half of a batch has the same bits as by itself, in both precisions. Ranks that share a batch rely on this.
#[test]
fn features_of_a_batch_are_those_of_its_halves_to_the_bit() {
    for encoder in encoders() {
        let (n, size) = (32, 32);
        let (params, buffers) = encoder.init::<f32>(3);
        let images = ramp(n * size * size * 3, 0.713);
        for matmul in [MatmulPrecision::Full, MatmulPrecision::Bf16] {
            let encoder = encoder.clone().with_matmul_precision(matmul);
            let (on, buffers) = (Host::default(), buffers.clone().into());
            let features = |images: &[f32], n: usize| {
                let mut branch = Branch { params: &params, statistics: Statistics::Running(&buffers) };
                let images = images.to_vec().into();
                let Ok((features, _)) = encoder.forward(&on, &mut branch, &images, Size { n, h: size, w: size }, false);
                features.to_vec()
            };
            let (first, second) = images.split_at(images.len() / 2);
            let halves = [features(first, n / 2), features(second, n / 2)].concat();
            assert!(features(&images, n) == halves, "{matmul:?} {:?}", encoder.feature_dim());
        }
    }
}

/// In a transformer, images interact only in the sums of gradients, and these sums follow a binary tree.
#[test]
fn a_transformers_gradient_is_the_sum_of_its_halves_to_the_bit() {
    let encoder = encoders().pop().expect("the last one");
    let (n, size) = (32, Size { n: 32, h: 32, w: 32 });
    assert_eq!(parts(n), 4);
    let (params, buffers) = encoder.init::<f32>(3);
    let (on, mut buffers) = (Host::default(), buffers.into());
    let images = ramp(n * size.h * size.w * 3, 0.713);
    let g = ramp(n * encoder.feature_dim(), 0.37);
    for matmul in [MatmulPrecision::Full, MatmulPrecision::Bf16] {
        let encoder = encoder.clone().with_matmul_precision(matmul);
        let mut gradient = |images: &[f32], g: &[f32], n: usize| {
            let (images, g) = (images.to_vec().into(), g.to_vec().into());
            let mut branch = Branch { params: &params, statistics: Statistics::Batch(&mut buffers) };
            let Ok((_, saved)) = encoder.forward(&on, &mut branch, &images, Size { n, ..size }, true);
            let Ok(mut gradients) = on.zeros(params.len());
            let mut learned = Learned { params: &params, gradients: &mut gradients };
            let Ok(()) = encoder.backward(&on, &mut learned, &images, saved.expect("kept"), &g);
            gradients.to_vec()
        };
        let whole = gradient(&images, &g, n);
        let ((x1, x2), (g1, g2)) = (images.split_at(images.len() / 2), g.split_at(g.len() / 2));
        let halves = [gradient(x1, g1, n / 2), gradient(x2, g2, n / 2)];
        for (i, whole) in whole.iter().enumerate() {
            assert_eq!(*whole, halves[0][i] + halves[1][i], "{matmul:?} {i}");
        }
    }
}
