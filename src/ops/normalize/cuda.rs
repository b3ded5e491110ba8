//! Scales rows of f32 values on a GPU to unit length. All views are of GPU memory.

use crate::ops::cuda::{Arg, Gpu, GpuError, Kind, Source, View};

/// The kernels.
pub static SOURCE: Source = Source {
    name: "normalize",
    defines: "",
    text: include_str!("normalize.cu"),
    kernels: &["normalize_forward", "normalize_backward"],
};

/// y = the rows of x [rows, dim], scaled to unit length. `norms`, if given, receives the lengths of x. y may be x.
///
/// # Errors
/// When the device fails.
pub fn forward(gpu: &Gpu, x: View, [rows, dim]: [usize; 2], y: View, norms: Option<View>) -> Result<(), GpuError> {
    let [x, y] = [x, y].map(|view| view.arg(Kind::F32, rows * dim));
    let args = [x, Arg::count(dim), y, Arg::optional(norms, Kind::F32, rows)];
    // SAFETY: x and y have `rows` rows, and `norms`, if given, has a length for each; `View::arg` checks this.
    unsafe { gpu.launch(&SOURCE, "normalize_forward", [rows, 1, 1], &args) }
}

/// gx += the gradient of [`forward`]'s input.
///
/// # Errors
/// When the device fails.
pub fn backward(gpu: &Gpu, [x, y, gy]: [View; 3], [rows, dim]: [usize; 2], gx: View) -> Result<(), GpuError> {
    let [x, y, gy, gx] = [x, y, gy, gx].map(|view| view.arg(Kind::F32, rows * dim));
    // SAFETY: all views have `rows` rows; `View::arg` checks this.
    unsafe { gpu.launch(&SOURCE, "normalize_backward", [rows, 1, 1], &[x, y, gy, Arg::count(dim), gx]) }
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
            let (y, gx, norms) =
                (x.take_alike().unwrap(), gpu.zeros(Kind::F32, 48).unwrap(), gpu.take(Kind::F32, 6).unwrap());
            forward(gpu, x.view(), [6, 8], y.view(), Some(norms.view())).unwrap();
            backward(gpu, [x.view(), y.view(), gy.view()], [6, 8], gx.view()).unwrap();
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
