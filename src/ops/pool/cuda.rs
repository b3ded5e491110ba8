//! Pooling on a GPU; addresses are of the device.

use super::pooled;
use crate::ops::{
    conv2d::Size,
    cuda::{Arg, Gpu, GpuError, Scalar, Source, THREADS, one_each},
};

const KERNELS: &[&str] = &["max_pool", "max_pool_backward", "average_pool", "average_pool_backward"];
const TEXT: &str = include_str!("pool.cu");

/// The kernels, once per storage.
pub static SOURCES: [Source; 2] = [
    Source { name: "pool_f32", defines: "#define HALF 0", text: TEXT, kernels: KERNELS },
    Source { name: "pool_f16", defines: "#define HALF 1", text: TEXT, kernels: KERNELS },
];

/// Images on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    pub gpu: &'a Gpu,
    pub scalar: Scalar,
    pub size: Size,
    pub channels: usize,
}

impl Images<'_> {
    fn source(&self) -> &'static Source {
        match self.scalar {
            Scalar::F32 => &SOURCES[0],
            Scalar::F16 => &SOURCES[1],
        }
    }

    /// y = max over 3x3 windows of stride 2; `taps` (a byte each) keeps which pixel won.
    ///
    /// # Errors
    /// When the device fails.
    pub fn max_pool(&self, x: u64, y: u64, taps: u64) -> Result<(), GpuError> {
        let len = pooled(self.size).pixels() * self.channels;
        let [h, w, c, oh, ow] = self.shape();
        self.strided("max_pool", len, &[Arg::At(x), h, w, c, oh, ow, Arg::count(len), Arg::At(y), Arg::At(taps)])
    }

    /// gx = the gradient of [`Images::max_pool`]'s input.
    ///
    /// # Errors
    /// When the device fails.
    pub fn max_pool_backward(&self, gy: u64, taps: u64, gx: u64) -> Result<(), GpuError> {
        let len = self.size.pixels() * self.channels;
        let [h, w, c, oh, ow] = self.shape();
        let args = [Arg::At(gy), Arg::At(taps), h, w, c, oh, ow, Arg::count(len), Arg::At(gx)];
        self.strided("max_pool_backward", len, &args)
    }

    /// features [n, channels] (f32) = mean over each image's pixels.
    ///
    /// # Errors
    /// When the device fails.
    pub fn average_pool(&self, x: u64, features: u64) -> Result<(), GpuError> {
        let (len, area) = (self.size.n * self.channels, self.size.h * self.size.w);
        let args = [Arg::At(x), Arg::count(area), Arg::count(self.channels), Arg::count(len), Arg::At(features)];
        self.gpu.launch(self.source(), "average_pool", one_each(len), &args)
    }

    /// gx = the gradient of [`Images::average_pool`]'s input, from that of the features (f32).
    ///
    /// # Errors
    /// When the device fails.
    pub fn average_pool_backward(&self, g_features: u64, gx: u64) -> Result<(), GpuError> {
        let (len, area) = (self.size.pixels() * self.channels, self.size.h * self.size.w);
        let args = [Arg::At(g_features), Arg::count(area), Arg::count(self.channels), Arg::count(len), Arg::At(gx)];
        self.strided("average_pool_backward", len, &args)
    }

    fn shape(&self) -> [Arg; 5] {
        let out = pooled(self.size);
        [self.size.h, self.size.w, self.channels, out.h, out.w].map(Arg::count)
    }

    fn strided(&self, kernel: &str, len: usize, args: &[Arg]) -> Result<(), GpuError> {
        self.gpu.launch(self.source(), kernel, [len.div_ceil(THREADS).clamp(1, 8192), 1, 1], args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        cuda::testing::on_every_gpu,
        golden::{Golden, assert_close},
        pool,
    };

    #[test]
    fn max_pooling_agrees_with_the_reference() {
        let golden = Golden::load("maxpool3x3_s2_p1");
        on_every_gpu(|gpu| {
            let images = Images { gpu, scalar: Scalar::F32, size: Size { n: 2, h: 8, w: 8 }, channels: 3 };
            let x = gpu.upload(&golden.channels_last::<f32>("in.x")).unwrap();
            let (y, taps) = (gpu.take(96 * 4).unwrap(), gpu.take(96).unwrap());
            images.max_pool(x.at(), y.at(), taps.at()).unwrap();
            let y: Vec<f32> = y.read().unwrap();
            assert_close("y", &y, &golden.channels_last("out.y"), 0.0);
            let gy = gpu.upload(&golden.channels_last::<f32>("in.cot")).unwrap();
            let gx = gpu.take(x.bytes()).unwrap();
            images.max_pool_backward(gy.at(), taps.at(), gx.at()).unwrap();
            let gx: Vec<f32> = gx.read().unwrap();
            // Up to four gradients are added.
            assert_close("gx", &gx, &golden.channels_last("grad.x"), 1e-6);
            [y, gx]
        });
    }

    #[test]
    fn odd_sizes_and_averages_agree_with_the_cpu() {
        let (size, channels) = (Size { n: 2, h: 7, w: 5 }, 6);
        let x: Vec<f32> = (0..size.pixels() * channels).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut y = vec![0.0; pooled(size).pixels() * channels];
        let mut taps = vec![0; y.len()];
        pool::max_pool(&x, size, channels, &mut y, &mut taps);
        let mut gx = vec![0.0; x.len()];
        pool::max_pool_backward(&y, &taps, size, channels, &mut gx);
        let features = pool::average_pool(&x, size, channels);
        let mut g_average = vec![0.0; x.len()];
        pool::average_pool_backward(&features, size, channels, &mut g_average);
        on_every_gpu(|gpu| {
            let images = Images { gpu, scalar: Scalar::F32, size, channels };
            let x = gpu.upload(&x).unwrap();
            let (y_gpu, taps_gpu) = (gpu.take(y.len() * 4).unwrap(), gpu.take(y.len()).unwrap());
            images.max_pool(x.at(), y_gpu.at(), taps_gpu.at()).unwrap();
            assert_eq!(taps_gpu.read::<u8>().unwrap(), taps);
            let g = gpu.take(x.bytes()).unwrap();
            images.max_pool_backward(y_gpu.at(), taps_gpu.at(), g.at()).unwrap();
            // The CPU adds in another order.
            assert_close("gx", &g.read::<f32>().unwrap(), &gx, 1e-6);
            let f = gpu.take(features.len() * 4).unwrap();
            images.average_pool(x.at(), f.at()).unwrap();
            assert_close("features", &f.read::<f32>().unwrap(), &features, 1e-6);
            images.average_pool_backward(f.at(), g.at()).unwrap();
            assert_close("average gx", &g.read::<f32>().unwrap(), &g_average, 1e-6);
            g.read::<f32>().unwrap()
        });
    }
}
