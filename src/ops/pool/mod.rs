//! Pooling of channels-last images: 3x3 maximum of stride 2 with padding 1, and the global average.

pub mod cuda;

use rayon::prelude::*;

use super::{Real, conv2d::Size, simd::vectorized};

/// Height and width after pooling.
pub fn pooled(size: Size) -> Size {
    Size { n: size.n, h: (size.h - 1) / 2 + 1, w: (size.w - 1) / 2 + 1 }
}

/// y = max over 3x3 windows; `argmax` keeps for every output element which of its window's nine pixels won
/// (the first of equals, as in torch). Padding never wins.
pub fn max_pool<E: Real>(x: &[E], size: Size, channels: usize, y: &mut [E], argmax: &mut [u8]) {
    let out = pooled(size);
    let (image, row) = (size.h * size.w * channels, out.w * channels);
    let rows = y.par_chunks_mut(row).zip(argmax.par_chunks_mut(row)).enumerate();
    rows.for_each(|(i, (y, argmax))| {
        let (n, oy) = (i / out.h, i % out.h);
        let x = &x[n * image..(n + 1) * image];
        y.fill(E::neg_infinity());
        argmax.fill(u8::MAX);
        for_each_offset(
            size,
            oy,
            #[inline(always)]
            |ox, offset, pixel| {
                let (y, argmax) = (&mut y[ox * channels..][..channels], &mut argmax[ox * channels..][..channels]);
                let x = &x[pixel * channels..][..channels];
                for c in 0..channels {
                    // A NaN wins over everything, so that it is noticed. Without branches, so that the loop is vectorised.
                    let wins = (argmax[c] == u8::MAX) | (x[c] > y[c]) | x[c].is_nan();
                    y[c] = if wins { x[c] } else { y[c] };
                    argmax[c] = if wins { offset } else { argmax[c] };
                }
            },
        );
    });
}

/// gx = the gradient of [`max_pool`]'s input.
pub fn max_pool_backward<E: Real>(gy: &[E], argmax: &[u8], size: Size, channels: usize, gx: &mut [E]) {
    let out = pooled(size);
    let pooled_image = out.h * out.w * channels;
    let images = gx.par_chunks_mut(size.h * size.w * channels).zip(gy.par_chunks(pooled_image));
    images.zip(argmax.par_chunks(pooled_image)).for_each(|((gx, gy), argmax)| {
        gx.fill(E::zero());
        for oy in 0..out.h {
            for_each_offset(
                size,
                oy,
                #[inline(always)]
                |ox, offset, pixel| {
                    let at = (oy * out.w + ox) * channels;
                    let (gy, argmax) = (&gy[at..][..channels], &argmax[at..][..channels]);
                    let gx = &mut gx[pixel * channels..][..channels];
                    for c in 0..channels {
                        gx[c] += if argmax[c] == offset { gy[c] } else { E::zero() };
                    }
                },
            );
        }
    });
}

/// Calls `f(ox, offset, pixel index in the image)` for the outputs of row `oy` and the pixels of their windows inside the image,
/// compiled for the vector unit in use.
#[inline(always)]
fn for_each_offset(size: Size, oy: usize, mut f: impl FnMut(usize, u8, usize)) {
    vectorized(
        #[inline(always)]
        || {
            for ox in 0..pooled(size).w {
                for ky in 0..3 {
                    for kx in 0..3 {
                        let (y, x) = (oy * 2 + ky, ox * 2 + kx);
                        if (1..=size.h).contains(&y) && (1..=size.w).contains(&x) {
                            f(ox, (ky * 3 + kx) as u8, (y - 1) * size.w + x - 1);
                        }
                    }
                }
            }
        },
    );
}

/// features [n, channels] = mean over each image's pixels.
pub fn average_pool<E: Real>(x: &[E], size: Size, channels: usize) -> Vec<E> {
    let area = size.h * size.w;
    let mut features = vec![E::zero(); size.n * channels];
    features.par_chunks_mut(channels).zip(x.par_chunks(area * channels)).for_each(|(features, x)| {
        for pixel in x.chunks_exact(channels) {
            for (f, p) in features.iter_mut().zip(pixel) {
                *f += *p;
            }
        }
        for f in features {
            *f /= E::of(area as f64);
        }
    });
    features
}

/// gx = the gradient of [`average_pool`]'s input.
pub fn average_pool_backward<E: Real>(g_features: &[E], size: Size, channels: usize, gx: &mut [E]) {
    let area = size.h * size.w;
    gx.par_chunks_mut(area * channels).zip(g_features.par_chunks(channels)).for_each(|(gx, g)| {
        for pixel in gx.chunks_exact_mut(channels) {
            for (p, g) in pixel.iter_mut().zip(g) {
                *p = *g / E::of(area as f64);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    #[test]
    fn max_pooling_agrees_with_the_reference() {
        let golden = Golden::load("maxpool3x3_s2_p1");
        let size = Size { n: 2, h: 8, w: 8 };
        let x = golden.channels_last::<f64>("in.x");
        let mut y = vec![f64::NAN; 2 * 4 * 4 * 3];
        let mut argmax = vec![0; y.len()];
        max_pool(&x, size, 3, &mut y, &mut argmax);
        assert_close("y", &y, &golden.channels_last("out.y"), 0.0);
        let mut gx = vec![f64::NAN; x.len()];
        max_pool_backward(&golden.channels_last("in.cot"), &argmax, size, 3, &mut gx);
        assert_close("gx", &gx, &golden.channels_last("grad.x"), 1e-15);
    }

    #[test]
    fn average_pooling_and_its_gradient_are_adjoint() {
        let size = Size { n: 2, h: 3, w: 2 };
        let x: Vec<f64> = (0..size.pixels() * 4).map(|i| i as f64).collect();
        let features = average_pool(&x, size, 4);
        assert_eq!(features[..4], [10.0, 11.0, 12.0, 13.0]);
        let g: Vec<f64> = (0..8).map(|i| (i as f64).sin()).collect();
        let mut gx = vec![f64::NAN; x.len()];
        average_pool_backward(&g, size, 4, &mut gx);
        let along = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!((along(&gx, &x) - along(&g, &features)).abs() < 1e-12);
    }
}
