//! GELU on a GPU. Addresses are of the device.

use crate::ops::cuda::{Arg, Gpu, GpuError, Scalar, Source, THREADS};

const KERNELS: &[&str] = &["gelu", "gelu_backward"];
const TEXT: &str = include_str!("gelu.cu");

/// The kernels, once per storage.
pub static SOURCES: [Source; 2] = [
    Source { name: "gelu_f32", defines: "#define HALF 0", text: TEXT, kernels: KERNELS },
    Source { name: "gelu_f16", defines: "#define HALF 1", text: TEXT, kernels: KERNELS },
];

/// y = x Phi(x), `len` values.
///
/// # Errors
/// When the device fails.
pub fn gelu(gpu: &Gpu, scalar: Scalar, x: u64, len: usize, y: u64) -> Result<(), GpuError> {
    gpu.launch(scalar.source(&SOURCES), "gelu", strided(len), &[Arg::At(x), Arg::count(len), Arg::At(y)])
}

/// `g` goes from the gradient of y to that of x, `len` values; y itself is computed again into `y`.
///
/// # Errors
/// When the device fails.
pub fn gelu_backward(gpu: &Gpu, scalar: Scalar, x: u64, len: usize, g: u64, y: u64) -> Result<(), GpuError> {
    let args = [Arg::At(x), Arg::count(len), Arg::At(g), Arg::At(y)];
    gpu.launch(scalar.source(&SOURCES), "gelu_backward", strided(len), &args)
}

fn strided(len: usize) -> [usize; 3] {
    [len.div_ceil(THREADS).clamp(1, 8192), 1, 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        cuda::testing::{from_half, on_every_gpu, to_half},
        gelu,
        golden::assert_close,
    };

    #[test]
    fn values_and_gradients_agree_with_the_cpus() {
        let x: Vec<f32> = (-1500..1501).map(|i| from_half(to_half(i as f32 * 0.004))).collect();
        let (mut expected, mut g_expected) = (vec![0.0; x.len()], vec![0.5; x.len()]);
        gelu::gelu(&x, &mut expected);
        let mut again = vec![0.0; x.len()];
        gelu::gelu_backward(&x, &mut g_expected, &mut again);
        on_every_gpu(|gpu| {
            let check = |scalar: Scalar, tolerance: f64, up: &dyn Fn(&[f32]) -> crate::ops::cuda::Buffer| {
                let read = |buffer: &crate::ops::cuda::Buffer| -> Vec<f32> {
                    match scalar {
                        Scalar::F32 => buffer.read().unwrap(),
                        Scalar::F16 => buffer.read::<u16>().unwrap().into_iter().map(from_half).collect(),
                    }
                };
                let (x, g, y, again) = (up(&x), up(&vec![0.5; x.len()]), up(&x), up(&x));
                super::gelu(gpu, scalar, x.at(), expected.len(), y.at()).unwrap();
                super::gelu_backward(gpu, scalar, x.at(), expected.len(), g.at(), again.at()).unwrap();
                assert_close("y", &read(&y), &expected, tolerance);
                assert_close("g", &read(&g), &g_expected, tolerance);
                assert!(read(&y) == read(&again));
                [read(&y), read(&g)]
            };
            let half = |v: &[f32]| gpu.upload(&v.iter().map(|v| to_half(*v)).collect::<Vec<_>>()).unwrap();
            // Relative to the largest value, 6: f32's rounding; f16 has 11 bits.
            let wide = check(Scalar::F32, 2e-7, &|v| gpu.upload(v).unwrap());
            [wide, check(Scalar::F16, 3e-4, &half)]
        });
    }
}
