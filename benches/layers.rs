//! Measures the speed of each kind of layer: `cargo bench --bench layers [-- small|resnet18|resnet50] [bf16]`.
//!
//! Measures the convolutions of the benchmark's networks, forward and both gradients, in GFLOP/s. It counts the multiplications
//! and additions of the definition of a convolution. For comparison, it prints the peak that a loop of fused multiply-adds
//! reaches on the same threads. Winograd's algorithm needs up to four times fewer multiplications, so it can exceed that peak.
//! Element-wise passes are measured in GB/s.

#![allow(clippy::disallowed_methods, reason = "made-up data, of which nothing but the speed is a result")]

use std::time::Instant;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use snclr_engine::ops::{
    batch_norm::{Affine, Moments, Relu, Residual, apply, backward_input, backward_sums},
    conv2d::{Conv2d, Size, Source},
    matmul::MatmulPrecision,
    simd::dispatch,
};

const REPEATS: usize = 7;

/// A convolution: its kind, how often the network has it, its input size, and [kernel, stride, input channels, output channels].
struct Layer(&'static str, usize, Size, [usize; 4]);

fn layers(case: &str) -> Vec<Layer> {
    let square = |n, edge| Size { n, h: edge, w: edge };
    let basic = |w: usize| {
        vec![
            Layer("stem 3x3", 1, square(128, 32), [3, 1, 3, w]),
            Layer("3x3", 4, square(128, 32), [3, 1, w, w]),
            Layer("3x3 stride 2", 1, square(128, 32), [3, 2, w, 2 * w]),
            Layer("1x1 stride 2", 1, square(128, 32), [1, 2, w, 2 * w]),
            Layer("3x3", 3, square(128, 16), [3, 1, 2 * w, 2 * w]),
            Layer("3x3 stride 2", 1, square(128, 16), [3, 2, 2 * w, 4 * w]),
            Layer("3x3", 3, square(128, 8), [3, 1, 4 * w, 4 * w]),
            Layer("3x3 stride 2", 1, square(128, 8), [3, 2, 4 * w, 8 * w]),
            Layer("3x3", 3, square(128, 4), [3, 1, 8 * w, 8 * w]),
        ]
    };
    match case {
        "small" => basic(16),
        "resnet18" => basic(64),
        "resnet50" => vec![
            Layer("stem 7x7", 1, square(8, 224), [7, 2, 3, 64]),
            Layer("1x1 down", 2, square(8, 56), [1, 1, 256, 64]),
            Layer("3x3", 3, square(8, 56), [3, 1, 64, 64]),
            Layer("1x1 up", 4, square(8, 56), [1, 1, 64, 256]),
            Layer("3x3 stride 2", 1, square(8, 56), [3, 2, 128, 128]),
            Layer("3x3", 3, square(8, 28), [3, 1, 128, 128]),
            Layer("1x1 down", 3, square(8, 28), [1, 1, 512, 128]),
            Layer("1x1 up", 4, square(8, 28), [1, 1, 128, 512]),
            Layer("3x3", 5, square(8, 14), [3, 1, 256, 256]),
            Layer("1x1 down", 5, square(8, 14), [1, 1, 1024, 256]),
            Layer("1x1 up", 6, square(8, 14), [1, 1, 256, 1024]),
            Layer("3x3", 2, square(8, 7), [3, 1, 512, 512]),
            Layer("1x1 down", 2, square(8, 7), [1, 1, 2048, 512]),
            Layer("1x1 up", 3, square(8, 7), [1, 1, 512, 2048]),
        ],
        other => panic!("no case {other}: small, resnet18, resnet50"),
    }
}

/// A loop of independent fused multiply-adds, which returns its GFLOP/s.
struct Peak;

impl WithSimd for Peak {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        const SUMS: usize = 12;
        const STEPS: usize = 1 << 22;
        let (factor, more) = (simd.splat_f32s(std::hint::black_box(0.5)), simd.splat_f32s(1.0));
        let mut sums = [more; SUMS];
        let start = Instant::now();
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(factor, *sum, more);
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        std::hint::black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
        (2 * SUMS * STEPS * size_of::<S::f32s>() / 4) as f64 / seconds / 1e9
    }
}

fn median_seconds(mut run: impl FnMut()) -> f64 {
    run();
    let mut seconds: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[REPEATS / 2]
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let matmul = if asked.iter().any(|a| a == "bf16") { MatmulPrecision::Bf16 } else { MatmulPrecision::Full };
    let threads = rayon::current_num_threads();
    let peak: f64 = (0..threads).into_par_iter().map(|_| dispatch(Peak)).sum();
    println!("{threads} threads, {peak:.0} GFLOP/s of fused multiply-adds in f32; factors: {matmul:?}");
    let cases: Vec<&str> = asked.iter().map(String::as_str).filter(|a| *a != "bf16").collect();
    for case in if cases.is_empty() { vec!["small", "resnet18", "resnet50"] } else { cases } {
        println!("\n{case}\n{:44} {:>24} {:>24} {:>24}", "GFLOP/s (ms times occurrences)", "forward", "data", "weight");
        for Layer(kind, times, size, [kernel, stride, input, output]) in layers(case) {
            let conv = Conv2d { kernel, stride, padding: kernel / 2, input, output, matmul };
            let out = conv.output_size(size);
            let ramp = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
            let (mut x, weight) = (ramp(size.pixels() * input, 0.37), ramp(conv.weights(), 0.11));
            let (mut y, mut gw) = (ramp(out.pixels() * output, 0.23), vec![0.0; conv.weights()]);
            let forward = median_seconds(|| conv.forward(Source::plain(&x), size, &weight, 0.0, &mut y, None));
            let weights = median_seconds(|| conv.backward_weight(Source::plain(&x), size, &y, &mut gw));
            let data = median_seconds(|| conv.backward_data(&y, size, &weight, 0.0, &mut x));
            let flops = 2.0 * out.pixels() as f64 * (conv.patch() * output) as f64;
            let column = |s: f64| format!("{:8.0} ({:7.2} x {times})", flops / s / 1e9, s * 1e3);
            println!(
                "{:44} {:>24} {:>24} {:>24}",
                format!("{kind}, {input} to {output} channels, {0}x{0}", size.h),
                column(forward),
                column(data),
                column(weights)
            );
        }
    }

    let (rows, channels) = (128 * 32 * 32, 16);
    let x: Vec<f32> = (0..rows * channels).map(|i| (i as f32 * 0.7).sin()).collect();
    let (mut y, mut g, mut raw) = (x.clone(), x.clone(), x.clone());
    let moments = Moments::of(&x, channels, 16);
    let affine = Affine::new(&moments.mean, &moments.inv_std, None);
    println!("\nelement-wise passes over {rows} rows of {channels} channels, GB/s read and written");
    let bytes = (rows * channels * 4) as f64;
    let show = |name: &str, arrays: f64, seconds: f64| println!("{name:44} {:24.1}", arrays * bytes / seconds / 1e9);
    show("batch norm, residual, ReLU", 3.0, median_seconds(|| apply(&x, &affine, Residual::Plain(&g), true, &mut y)));
    let sums = backward_sums(&x, &moments, &mut g, Relu::Of(&affine));
    show(
        "sums behind a ReLU, its gradient",
        3.0,
        median_seconds(|| drop(backward_sums(&x, &moments, &mut g, Relu::Of(&affine)))),
    );
    show(
        "batch norm's gradient",
        3.0,
        median_seconds(|| backward_input(&mut raw, &moments, None, &sums, &g, Relu::None)),
    );
}
