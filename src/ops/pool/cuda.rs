//! Pooling on a GPU. All tensors are in device memory.

use super::pooled;
use crate::ops::{
    conv2d::Size,
    cuda::{Arg, Gpu, GpuError, Kind, Scalar, Source, View, in_strides, one_each},
};

const KERNELS: &[&str] = &["max_pool", "max_pool_backward", "average_pool", "average_pool_backward"];
const TEXT: &str = concat!(include_str!("../cuda/storage.cuh"), include_str!("pool.cu"));

/// The kernels, once per storage.
pub static SOURCES: [Source; 3] = [
    Source { name: "pool_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "pool_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "pool_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
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
    /// Number of elements of the images, and of the images after max-pooling.
    fn lens(&self) -> [usize; 2] {
        [self.size, pooled(self.size)].map(|size| size.pixels() * self.channels)
    }

    /// The images themselves, or their gradient.
    fn arg(&self, x: View) -> Arg {
        x.arg(self.scalar, self.lens()[0])
    }

    /// y = max over 3x3 windows of stride 2; `argmax` (a byte per output element) keeps which of the window's nine pixels won.
    ///
    /// # Errors
    /// When the device fails.
    pub fn max_pool(&self, x: View, y: View, argmax: View) -> Result<(), GpuError> {
        let ([_, len], [h, w, c, oh, ow]) = (self.lens(), self.shape());
        let [y, argmax] = [y.arg(self.scalar, len), argmax.arg(Kind::U8, len)];
        let args = [self.arg(x), h, w, c, oh, ow, Arg::count(len), y, argmax];
        // SAFETY: all have the elements of their shape.
        unsafe { self.strided("max_pool", len, &args) }
    }

    /// gx = the gradient of [`Images::max_pool`]'s input.
    ///
    /// # Errors
    /// When the device fails.
    pub fn max_pool_backward(&self, gy: View, argmax: View, gx: View) -> Result<(), GpuError> {
        let ([len, pooled], [h, w, c, oh, ow]) = (self.lens(), self.shape());
        let [gy, argmax] = [gy.arg(self.scalar, pooled), argmax.arg(Kind::U8, pooled)];
        let args = [gy, argmax, h, w, c, oh, ow, Arg::count(len), self.arg(gx)];
        // SAFETY: all have the elements of their shape.
        unsafe { self.strided("max_pool_backward", len, &args) }
    }

    /// features [n, channels] (f32) = mean over each image's pixels.
    ///
    /// # Errors
    /// When the device fails.
    pub fn average_pool(&self, x: View, features: View) -> Result<(), GpuError> {
        let (len, area) = (self.size.n * self.channels, self.size.h * self.size.w);
        let features = features.arg(Kind::F32, len);
        let args = [self.arg(x), Arg::count(area), Arg::count(self.channels), Arg::count(len), features];
        // SAFETY: both have the elements of their shape.
        unsafe { self.gpu.launch(self.scalar.source(&SOURCES), "average_pool", one_each(len), &args) }
    }

    /// gx = the gradient of [`Images::average_pool`]'s input, from that of the features (f32).
    ///
    /// # Errors
    /// When the device fails.
    pub fn average_pool_backward(&self, g_features: View, gx: View) -> Result<(), GpuError> {
        let ([len, _], area) = (self.lens(), self.size.h * self.size.w);
        let g_features = g_features.arg(Kind::F32, self.size.n * self.channels);
        let args = [g_features, Arg::count(area), Arg::count(self.channels), Arg::count(len), self.arg(gx)];
        // SAFETY: both have the elements of their shape.
        unsafe { self.strided("average_pool_backward", len, &args) }
    }

    fn shape(&self) -> [Arg; 5] {
        let out = pooled(self.size);
        [self.size.h, self.size.w, self.channels, out.h, out.w].map(Arg::count)
    }

    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn strided(&self, kernel: &str, len: usize, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: as the caller promises.
        unsafe { self.gpu.launch(self.scalar.source(&SOURCES), kernel, in_strides(len), args) }
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
            let (y, argmax) = (gpu.take(Kind::F32, 96).unwrap(), gpu.take(Kind::U8, 96).unwrap());
            images.max_pool(x.view(), y.view(), argmax.view()).unwrap();
            let y: Vec<f32> = y.read().unwrap();
            assert_close("y", &y, &golden.channels_last("out.y"), 0.0);
            let gy = gpu.upload(&golden.channels_last::<f32>("in.cot")).unwrap();
            let gx = x.take_alike().unwrap();
            images.max_pool_backward(gy.view(), argmax.view(), gx.view()).unwrap();
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
        let mut argmax = vec![0; y.len()];
        pool::max_pool(&x, size, channels, &mut y, &mut argmax);
        let mut gx = vec![0.0; x.len()];
        pool::max_pool_backward(&y, &argmax, size, channels, &mut gx);
        let features = pool::average_pool(&x, size, channels);
        let mut g_average = vec![0.0; x.len()];
        pool::average_pool_backward(&features, size, channels, &mut g_average);
        on_every_gpu(|gpu| {
            let images = Images { gpu, scalar: Scalar::F32, size, channels };
            let x = gpu.upload(&x).unwrap();
            let (y_gpu, argmax_gpu) = (gpu.take(Kind::F32, y.len()).unwrap(), gpu.take(Kind::U8, y.len()).unwrap());
            images.max_pool(x.view(), y_gpu.view(), argmax_gpu.view()).unwrap();
            assert_eq!(argmax_gpu.read::<u8>().unwrap(), argmax);
            let g = x.take_alike().unwrap();
            images.max_pool_backward(y_gpu.view(), argmax_gpu.view(), g.view()).unwrap();
            // The CPU adds in another order.
            assert_close("gx", &g.read::<f32>().unwrap(), &gx, 1e-6);
            let f = gpu.take(Kind::F32, features.len()).unwrap();
            images.average_pool(x.view(), f.view()).unwrap();
            assert_close("features", &f.read::<f32>().unwrap(), &features, 1e-6);
            images.average_pool_backward(f.view(), g.view()).unwrap();
            assert_close("average gx", &g.read::<f32>().unwrap(), &g_average, 1e-6);
            g.read::<f32>().unwrap()
        });
    }
}
