//! Operations between images and a transformer's tokens, on a GPU.

use crate::ops::cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, THREADS, View, one_each};

const KERNELS: &[&str] =
    &["embed_tokens", "class_tokens", "spread_class_tokens", "patch_tokens", "interpolate_positions"];
const TEXT: &str = concat!(include_str!("../cuda/storage.cuh"), include_str!("tokens.cu"));

/// The kernels, compiled once per storage type.
pub static SOURCES: [Source; 3] = [
    Source { name: "tokens_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "tokens_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "tokens_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// Tokens [samples, tokens, width] on a GPU, each sample's class token first.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    pub gpu: &'a Gpu,
    pub scalar: Scalar,
    pub samples: usize,
    pub tokens: usize,
    pub width: usize,
}

impl Tokens<'_> {
    /// x = the class token, then the embedded patches plus their bias, with positions [tokens, width] added to all. Class token,
    /// bias and positions are f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn embed(&self, embedded: View, positions: View, [cls, bias]: [View; 2], x: View) -> Result<(), GpuError> {
        let [cls, bias] = [cls, bias].map(|view| view.arg(Kind::F32, self.width));
        let from = [self.patches(embedded), positions.arg(Kind::F32, self.tokens * self.width), cls, bias];
        // SAFETY: each view has the elements of its shape; `View::arg` checks this.
        unsafe { self.run("embed_tokens", &from, self.samples * self.tokens, self.all(x)) }
    }

    /// cls [samples, width] (f32) = the class tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn class_tokens(&self, x: View, cls: View) -> Result<(), GpuError> {
        // SAFETY: both views have the elements of their shapes; `View::arg` checks this.
        unsafe { self.run("class_tokens", &[self.all(x)], self.samples, self.of_samples(cls)) }
    }

    /// x = the class tokens cls (f32) as each sample's first token, zeros elsewhere.
    ///
    /// # Errors
    /// When the device fails.
    pub fn spread_class_tokens(&self, cls: View, x: View) -> Result<(), GpuError> {
        let rows = self.samples * self.tokens;
        // SAFETY: both views have the elements of their shapes; `View::arg` checks this.
        unsafe { self.run("spread_class_tokens", &[self.of_samples(cls)], rows, self.all(x)) }
    }

    /// patches [samples, tokens - 1, width] = all tokens except the class tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn patch_tokens(&self, x: View, patches: View) -> Result<(), GpuError> {
        let rows = self.samples * (self.tokens - 1);
        // SAFETY: both views have the elements of their shapes; `View::arg` checks this.
        unsafe { self.run("patch_tokens", &[self.all(x)], rows, self.patches(patches)) }
    }

    fn all(&self, view: View) -> Arg {
        view.arg(self.scalar, self.samples * self.tokens * self.width)
    }

    fn patches(&self, view: View) -> Arg {
        view.arg(self.scalar, self.samples * (self.tokens - 1) * self.width)
    }

    /// An argument with a row of f32 per sample.
    fn of_samples(&self, view: View) -> Arg {
        view.arg(Kind::F32, self.samples * self.width)
    }

    /// Runs a kernel that writes `rows` rows of the tokens' width to `to`.
    ///
    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn run(&self, kernel: &str, from: &[Arg], rows: usize, to: Arg) -> Result<(), GpuError> {
        let len = rows * self.width;
        let args = [from, &[self.tokens, self.width, len].map(Arg::count), &[to]].concat();
        let grid = [len.div_ceil(THREADS).clamp(1, 8192), 1, 1];
        // SAFETY: as the caller promises.
        unsafe { self.gpu.launch(self.scalar.source(&SOURCES), kernel, grid, &args) }
    }
}

/// Interpolates positions [1 + h * w, width] from those of a grid of another size, like [`super::positions::interpolate`].
///
/// # Errors
/// When the device fails.
pub fn interpolate(
    gpu: &Gpu,
    positions: View,
    grid: usize,
    [h, w]: [usize; 2],
    width: usize,
) -> Result<Buffer, GpuError> {
    let len = (1 + h * w) * width;
    let out = gpu.take(Kind::F32, len)?;
    let positions = positions.arg(Kind::F32, (1 + grid * grid) * width);
    let [grid, h, w, width] = [grid, h, w, width].map(Arg::count);
    let args = [positions, grid, h, w, width, out.arg()];
    // SAFETY: `positions` and `out` have the positions of their grids.
    unsafe { gpu.launch(&SOURCES[0], "interpolate_positions", one_each(len), &args) }?;
    Ok(out)
}
