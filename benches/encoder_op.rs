//! One coarse encoder operation against the same network made of fine dfdx operations: `cargo bench --bench encoder_op`.
//!
//! Both run the same convolution and batch-norm kernels (forward and backward of ResNet-18 of width 16, 32x32, batch 128);
//! what differs is the seam: fine operations copy every activation in and out of dfdx tensors, allocate a gradient per
//! tensor, and use dfdx's ReLU and addition.

#![allow(clippy::disallowed_methods, reason = "made-up data, of which nothing but the speed is a result")]

use std::time::Instant;

use dfdx::prelude::*;
use snclr::{
    encoder::{Encoder, EncoderConfig, ResnetConfig, Stem},
    ops::{
        batch_norm::{Running, batch_norm},
        buffers::Buffers,
        conv2d::{Conv2d, Size, Source},
        product::Products,
        seam::Matrix,
    },
};

const SIZE: Size = Size { n: 128, h: 32, w: 32 };
const REPEATS: usize = 5;

type Traced = Matrix<f32, Cpu, OwnedTape<f32, Cpu>>;

/// A convolution as a fine operation; activations are [pixels, channels] matrices.
fn conv(x: Traced, w: Matrix<f32, Cpu>, geometry: Conv2d, size: Size) -> Traced {
    let (x, mut tape) = x.split_tape();
    let pixels = geometry.output_size(size).pixels();
    let mut y = vec![0.0; pixels * geometry.output];
    geometry.forward(Source::plain(&x.as_vec()), size, &w.as_vec(), 0.0, &mut y, None);
    let y: Matrix<f32, Cpu> = x.device().tensor_from_vec(y, (pixels, geometry.output));
    let ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&ghost)?.clone();
        geometry.backward_data(&gy, size, &w.as_vec(), 1.0, gradients.get_or_alloc_mut(&x)?);
        geometry.backward_weight(Source::plain(&x.as_vec()), size, &gy, gradients.get_or_alloc_mut(&w)?);
        Ok(())
    });
    y.put_tape(tape)
}

fn conv_norm(x: Traced, [input, output]: [usize; 2], kernel: usize, stride: usize, size: &mut Size) -> Traced {
    let device = Cpu::default();
    let geometry = Conv2d { kernel, stride, padding: kernel / 2, input, output, products: Products::Full };
    let weight = (0..geometry.weights()).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
    let weight: Matrix<f32, Cpu> = device.tensor_from_vec(weight, (output, geometry.patch()));
    let y = conv(x, weight, geometry, *size);
    *size = geometry.output_size(*size);
    let affine =
        (device.tensor_from_vec(vec![1.0; output], (output,)), device.tensor_from_vec(vec![0.0; output], (output,)));
    let mut statistics = vec![0.5; 2 * output];
    let running = Running { all: &mut statistics, mean: 0..output, var: output..2 * output };
    batch_norm(y, Some(affine), running).expect("memory")
}

fn fine(images: &[f32]) -> f32 {
    let device = Cpu::default();
    let mut size = SIZE;
    let x: Matrix<f32, Cpu> = device.tensor_from_vec(images.to_vec(), (size.pixels(), 3));
    let mut x = conv_norm(x.leaky_trace(), [3, 16], 3, 1, &mut size).relu();
    let mut channels = 16;
    for stage in 0..4 {
        for index in 0..2 {
            let (output, stride) = (16 << stage, if stage > 0 && index == 0 { 2 } else { 1 });
            let input_size = size;
            let shortcut = x.with_empty_tape();
            let y = conv_norm(x, [channels, output], 3, stride, &mut size).relu();
            let y = conv_norm(y, [output, output], 3, 1, &mut size);
            let shortcut = match stride {
                1 => shortcut,
                _ => conv_norm(shortcut, [channels, output], 1, stride, &mut input_size.clone()),
            };
            x = (y + shortcut).relu();
            channels = output;
        }
    }
    let loss = x.mean::<Rank0, _>();
    let value = loss.array();
    loss.backward();
    value
}

fn coarse(images: &[f32], memory: &mut Buffers<f32>) -> f32 {
    let config = EncoderConfig::Resnet18(ResnetConfig { width_multiplier: 0.25, stem: Stem::Cifar, init: None });
    let encoder = Encoder::new(&config, SIZE.h).expect("a network");
    let (params, mut buffers) = encoder.init::<f32>(0);
    let (features, saved) = encoder.forward_train(&params, &mut buffers, images, SIZE, memory);
    let g = vec![1.0 / features.len() as f32; features.len()];
    let mut gradients = vec![0.0; params.len()];
    encoder.backward(&params, images, saved, &g, &mut gradients, memory);
    features.iter().sum::<f32>() / features.len() as f32
}

fn median_ms(mut run: impl FnMut() -> f32) -> f64 {
    std::hint::black_box(run());
    let mut times: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[REPEATS / 2]
}

fn main() {
    let images: Vec<f32> = (0..SIZE.pixels() * 3).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut memory = Buffers::default();
    let (coarse, fine) = (median_ms(|| coarse(&images, &mut memory)), median_ms(|| fine(&images)));
    println!("coarse {coarse:.1} ms, fine {fine:.1} ms: fine takes {:.2} times as long", fine / coarse);
}
