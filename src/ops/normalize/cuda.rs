//! Rows of unit length on a GPU; addresses are of the device, values f32.

use crate::ops::cuda::{Arg, Gpu, GpuError, Source};

/// The kernels.
pub static SOURCE: Source = Source {
    name: "normalize",
    defines: "",
    text: include_str!("normalize.cu"),
    kernels: &["normalize_forward", "normalize_backward"],
};

/// y = each of the rows x [rows, dim] at unit length; `norms` (or 0) receives their lengths. y may be x.
///
/// # Errors
/// When the device fails.
pub fn forward(gpu: &Gpu, x: u64, [rows, dim]: [usize; 2], y: u64, norms: u64) -> Result<(), GpuError> {
    gpu.launch(&SOURCE, "normalize_forward", [rows, 1, 1], &[Arg::At(x), Arg::count(dim), Arg::At(y), Arg::At(norms)])
}

/// gx += the gradient of [`forward`]'s input.
///
/// # Errors
/// When the device fails.
pub fn backward(gpu: &Gpu, [x, y, gy]: [u64; 3], [rows, dim]: [usize; 2], gx: u64) -> Result<(), GpuError> {
    let args = [Arg::At(x), Arg::At(y), Arg::At(gy), Arg::count(dim), Arg::At(gx)];
    gpu.launch(&SOURCE, "normalize_backward", [rows, 1, 1], &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        cuda::testing::on_every_gpu,
        golden::{Golden, assert_close},
    };

    #[test]
    fn agrees_with_the_reference() {
        let golden = Golden::load("l2_normalize");
        on_every_gpu(|gpu| {
            let up = |name: &str| gpu.upload(&golden.get::<f32>(name)).unwrap();
            let (x, gy) = (up("in.x"), up("in.cot"));
            let (y, gx, norms) = (gpu.take(x.bytes()).unwrap(), gpu.zeros(x.bytes()).unwrap(), gpu.take(24).unwrap());
            forward(gpu, x.at(), [6, 8], y.at(), norms.at()).unwrap();
            backward(gpu, [x.at(), y.at(), gy.at()], [6, 8], gx.at()).unwrap();
            let [y, gx, norms]: [Vec<f32>; 3] = [y, gx, norms].map(|buffer| buffer.read().unwrap());
            // Rounding of f32.
            assert_close("y", &y, &golden.get("out.y"), 1e-6);
            assert_close("gx", &gx, &golden.get("grad.x"), 1e-6);
            let row: f32 = golden.get::<f32>("in.x")[..8].iter().map(|v| v * v).sum();
            assert!((norms[0] - row.sqrt()).abs() < 1e-5);
            [y, gx]
        });
    }
}
