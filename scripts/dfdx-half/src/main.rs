//! dfdx's own operations and training in f16 and with AMP on `cuda:0`, against f32 on the CPU. Ends with 1 if they differ.

use std::process::ExitCode;

use dfdx::{
    dtypes::{AMP, f16},
    nn::{DeviceBuildExt, ModuleMut, builders as layers},
    optim::{Adam, AdamConfig},
    prelude::*,
};

fn ramp(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

/// A type of numbers on both sides.
trait Number: Dtype {
    fn of(value: f32) -> Self;
    fn value(self) -> f32;
}

impl Number for f32 {
    fn of(value: f32) -> Self {
        value
    }
    fn value(self) -> f32 {
        self
    }
}

impl Number for f16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}

impl Number for AMP<f16> {
    fn of(value: f32) -> Self {
        AMP(f16::from_f32(value))
    }
    fn value(self) -> f32 {
        self.0.to_f32()
    }
}

fn numbers<E: Number>(values: Vec<f32>) -> Vec<E> {
    values.into_iter().map(E::of).collect()
}

fn values<E: Number>(numbers: Vec<E>) -> Vec<f32> {
    numbers.into_iter().map(E::value).collect()
}

/// Values and gradients of a chain of operations.
fn operations<E: Number, D: Device<E>>(device: &D) -> Vec<f32> {
    let x: Tensor<Rank2<12, 8>, E, D> = device.tensor_from_vec(numbers(ramp(96, 0.7)), (Const, Const));
    let w: Tensor<Rank2<8, 5>, E, D> = device.tensor_from_vec(numbers(ramp(40, 0.3)), (Const, Const));
    let s = x.leaky_trace().matmul(w.clone()).relu();
    let (s, tape) = s.split_tape();
    let all = s.clone().put_tape(tape).logsumexp::<Rank1<12>, _>();
    let soft = s.leaky_trace().softmax::<Axis<1>>();
    let total = all.sum::<Rank0, _>() + soft.square().mean::<Rank0, _>();
    let value = values(total.as_vec());
    let gradients = total.backward();
    [value, values(gradients.get(&s).as_vec()), values(s.as_vec())].concat()
}

/// Losses of five steps of Adam, whose eps of 1e-8 would be zero in f16.
macro_rules! training {
    ($number:ty, $device:expr) => {{
        let device = $device;
        type Net = (layers::Linear<8, 16>, layers::ReLU, layers::Linear<16, 4>);
        let mut net = device.build_module::<Net, $number>();
        net.0.weight.copy_from(&numbers::<$number>(ramp(128, 0.9)));
        net.0.bias.copy_from(&numbers::<$number>(ramp(16, 0.4)));
        net.2.weight.copy_from(&numbers::<$number>(ramp(64, 0.2)));
        net.2.bias.copy_from(&numbers::<$number>(ramp(4, 0.8)));
        let mut adam = Adam::new(&net, AdamConfig { lr: 1e-2, eps: 1e-4, ..AdamConfig::default() });
        let x: Tensor<Rank2<12, 8>, $number, _> = device.tensor_from_vec(numbers(ramp(96, 0.7)), (Const, Const));
        let mut losses = Vec::new();
        let mut gradients = net.alloc_grads();
        for _ in 0..5 {
            let loss = net.forward_mut(x.trace(gradients)).square().mean();
            losses.extend(values(loss.as_vec()));
            gradients = loss.backward();
            adam.update(&mut net, &gradients).expect("an update");
            net.zero_grads(&mut gradients);
        }
        losses
    }};
}

/// Says how far off the values are, as a share of the largest; whether that is too far.
fn differs(what: &str, found: &[f32], expected: &[f32], tolerance: f32) -> bool {
    let scale = expected.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    let off = found.iter().zip(expected).map(|(f, e)| (f - e).abs() / scale);
    let off = off.fold(0.0, |most: f32, v| if v > most || v.is_nan() { v } else { most });
    let wrong = !(off <= tolerance) || found.len() != expected.len();
    println!("{what:<44} {:<14} off by {off:.1e}, allowed {tolerance:.0e}", if wrong { "FAILED" } else { "ok" });
    wrong
}

fn main() -> ExitCode {
    let (cuda, cpu) = (Cuda::seed_from_u64(0), Cpu::seed_from_u64(0));
    let (chain, losses) = (operations::<f32, _>(&cpu), training!(f32, &cpu));
    // 11 bits of mantissa, through sums of a dozen terms; five steps of training on top.
    let failed = [
        differs("dfdx: operations (f16)", &operations::<f16, _>(&cuda), &chain, 1e-2),
        differs("dfdx: operations (AMP)", &operations::<AMP<f16>, _>(&cuda), &chain, 1e-2),
        differs("dfdx: Linear, Adam, 5 steps (f16)", &training!(f16, &cuda), &losses, 2e-2),
        differs("dfdx: Linear, Adam, 5 steps (AMP)", &training!(AMP<f16>, &cuda), &losses, 2e-2),
    ];
    if failed.contains(&true) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
