//! GELU on a GPU. All views are of GPU memory.

use crate::ops::cuda::{Arg, Gpu, GpuError, Scalar, Source, View, in_strides};

const KERNELS: &[&str] = &["gelu", "gelu_backward"];
const TEXT: &str = concat!(include_str!("../cuda/storage.cuh"), include_str!("gelu.cu"));

/// The kernels, compiled once per storage type.
pub static SOURCES: [Source; 3] = [
    Source { name: "gelu_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "gelu_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "gelu_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// y = x Phi(x).
///
/// # Errors
/// When the device fails.
pub fn gelu(gpu: &Gpu, scalar: Scalar, x: View, y: View) -> Result<(), GpuError> {
    let len = x.len();
    let args = [x.arg(scalar, len), Arg::count(len), y.arg(scalar, len)];
    // SAFETY: x and y have `len` values.
    unsafe { gpu.launch(scalar.source(&SOURCES), "gelu", in_strides(len), &args) }
}

/// Turns `g` from the gradient of y into the gradient of x. Computes y again, into `y`.
///
/// # Errors
/// When the device fails.
pub fn gelu_backward(gpu: &Gpu, scalar: Scalar, x: View, g: View, y: View) -> Result<(), GpuError> {
    let len = x.len();
    let args = [x.arg(scalar, len), Arg::count(len), g.arg(scalar, len), y.arg(scalar, len)];
    // SAFETY: x, g and y have `len` values.
    unsafe { gpu.launch(scalar.source(&SOURCES), "gelu_backward", in_strides(len), &args) }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::{
        cuda::testing::{on_every_gpu, read, upload},
        gelu,
        golden::assert_close,
    };

    #[test]
    fn values_and_gradients_agree_with_the_cpus() {
        let x: Vec<f32> = (-1500..1501).map(|i| bf16::to_f32(bf16::from_f32(i as f32 * 0.004))).collect();
        let (mut expected, mut g_expected) = (vec![0.0; x.len()], vec![0.5; x.len()]);
        gelu::gelu(&x, &mut expected);
        let mut again = vec![0.0; x.len()];
        gelu::gelu_backward(&x, &mut g_expected, &mut again);
        on_every_gpu(|gpu| {
            let check = |scalar: Scalar, tolerance: f64| {
                let up = |values: &[f32]| upload(gpu, scalar, values);
                let (x, g, y, again) = (up(&x), up(&vec![0.5; x.len()]), up(&x), up(&x));
                super::gelu(gpu, scalar, x.view(), y.view()).unwrap();
                super::gelu_backward(gpu, scalar, x.view(), g.view(), again.view()).unwrap();
                assert_close("y", &read(&y), &expected, tolerance);
                assert_close("g", &read(&g), &g_expected, tolerance);
                assert!(read(&y) == read(&again));
                [read(&y), read(&g)]
            };
            // Relative to the largest value, 6: f32's rounding; f16 has 11 bits, bf16 8.
            [check(Scalar::F32, 2e-7), check(Scalar::F16, 3e-4), check(Scalar::Bf16, 4e-3)]
        });
    }
}
