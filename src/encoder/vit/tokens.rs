//! What lies between images and tokens, on a GPU. Addresses are of the device.

use crate::ops::cuda::{Arg, Buffer, Gpu, GpuError, Scalar, Source, THREADS, one_each};

const KERNELS: &[&str] =
    &["embed_tokens", "class_tokens", "spread_class_tokens", "patch_tokens", "interpolate_positions"];
const TEXT: &str = include_str!("tokens.cu");

/// The kernels, once per storage.
pub static SOURCES: [Source; 2] = [
    Source { name: "tokens_f32", defines: "#define HALF 0", text: TEXT, kernels: KERNELS },
    Source { name: "tokens_f16", defines: "#define HALF 1", text: TEXT, kernels: KERNELS },
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
    /// x = the class token and the embedded patches with their bias, both f32, positions [tokens, width] added.
    ///
    /// # Errors
    /// When the device fails.
    pub fn embed(&self, embedded: u64, positions: u64, [cls, bias]: [u64; 2], x: u64) -> Result<(), GpuError> {
        self.run("embed_tokens", &[embedded, positions, cls, bias], self.samples * self.tokens, x)
    }

    /// cls [samples, width] (f32) = the class tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn class_tokens(&self, x: u64, cls: u64) -> Result<(), GpuError> {
        self.run("class_tokens", &[x], self.samples, cls)
    }

    /// x = the class tokens cls (f32) at their places, zero elsewhere.
    ///
    /// # Errors
    /// When the device fails.
    pub fn spread_class_tokens(&self, cls: u64, x: u64) -> Result<(), GpuError> {
        self.run("spread_class_tokens", &[cls], self.samples * self.tokens, x)
    }

    /// patches [samples, tokens - 1, width] = the tokens but the class tokens.
    ///
    /// # Errors
    /// When the device fails.
    pub fn patch_tokens(&self, x: u64, patches: u64) -> Result<(), GpuError> {
        self.run("patch_tokens", &[x], self.samples * (self.tokens - 1), patches)
    }

    /// A pass that writes `rows` rows of the tokens' width to `to`.
    fn run(&self, kernel: &str, from: &[u64], rows: usize, to: u64) -> Result<(), GpuError> {
        let len = rows * self.width;
        let mut args: Vec<Arg> = from.iter().map(|at| Arg::At(*at)).collect();
        args.extend([self.tokens, self.width, len].map(Arg::count));
        args.push(Arg::At(to));
        self.gpu.launch(self.scalar.source(&SOURCES), kernel, [len.div_ceil(THREADS).clamp(1, 8192), 1, 1], &args)
    }
}

/// Positions [1 + h * w, width] from those of a grid of another size, as [`super::positions::interpolate`] makes them.
///
/// # Errors
/// When the device fails.
pub fn interpolate(
    gpu: &Gpu,
    positions: u64,
    grid: usize,
    [h, w]: [usize; 2],
    width: usize,
) -> Result<Buffer, GpuError> {
    let len = (1 + h * w) * width;
    let out = gpu.take(len * 4)?;
    let [grid, h, w, width] = [grid, h, w, width].map(Arg::count);
    gpu.launch(
        &SOURCES[0],
        "interpolate_positions",
        one_each(len),
        &[Arg::At(positions), grid, h, w, width, out.arg()],
    )?;
    Ok(out)
}
