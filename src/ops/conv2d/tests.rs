use rand_distr::{Distribution, StandardNormal};

use super::{Conv2d, LEAST_ROWS, Size, Source, even_rows, whole::Whole, winograd};
use crate::ops::{
    Real,
    batch_norm::{Affine, Residual, TileMoments, apply},
    golden::{Golden, assert_close, tolerance},
    matmul::MatmulPrecision,
    random::{Purpose, stream},
};

/// f32 sums of up to 147 products of magnitude 1 to 10; PyTorch's own f32 run is off by up to 9e-6.
const F32: f64 = 2e-6;

fn reference<E: Real>(case: &str, kernel: usize, stride: usize, padding: usize) {
    let golden = Golden::load(case);
    let [n, input, h, w] = golden.shape("in.x")[..] else { unreachable!() };
    let output = golden.shape("in.weight")[0];
    let conv = Conv2d { kernel, stride, padding, input, output, matmul: MatmulPrecision::Full };
    let size = Size { n, h, w };
    let x = golden.channels_last::<E>("in.x");
    let weight = golden.channels_last::<E>("in.weight"); // OIHW to OHWI is the same permutation
    let cot = golden.channels_last::<E>("in.cot");

    let mut y = vec![E::nan(); conv.output_size(size).pixels() * output];
    conv.forward(Source::plain(&x), size, &weight, E::zero(), &mut y, None);
    assert_close("y", &y, &golden.channels_last("out.y"), tolerance::<E>(F32));
    let mut gx = vec![E::nan(); x.len()];
    conv.backward_data(&cot, size, &weight, E::zero(), &mut gx);
    assert_close("gx", &gx, &golden.channels_last("grad.x"), tolerance::<E>(F32));
    let first = gx.clone();
    conv.backward_data(&cot, size, &weight, E::one(), &mut gx);
    let twice: Vec<E> = first.iter().map(|g| *g + *g).collect();
    assert_close("accumulated gx", &gx, &twice, tolerance::<E>(F32));
    let mut gw = vec![E::zero(); weight.len()];
    conv.backward_weight(Source::plain(&x), size, &cot, &mut gw);
    assert_close("gw", &gw, &golden.channels_last("grad.weight"), tolerance::<E>(F32));
}

#[test]
fn agrees_with_the_reference() {
    for (case, kernel, stride, padding) in [
        ("conv3x3_s1_p1", 3, 1, 1),
        ("conv3x3_s2_p1", 3, 2, 1),
        ("conv3x3_s2_p1_odd", 3, 2, 1),
        ("conv1x1_s2_p0", 1, 2, 0),
        ("conv7x7_s2_p3", 7, 2, 3),
    ] {
        reference::<f64>(case, kernel, stride, padding);
        reference::<f32>(case, kernel, stride, padding);
    }
}

fn ramp(n: usize, step: f64) -> Vec<f64> {
    (0..n).map(|i| (i as f64 * step).sin()).collect()
}

/// Convolution by its definition.
fn direct(conv: &Conv2d, x: &[f64], size: Size, weight: &[f64]) -> Vec<f64> {
    let out = conv.output_size(size);
    let mut y = Vec::new();
    for i in 0..out.pixels() {
        let (n, oy, ox) = (i / (out.h * out.w), i / out.w % out.h, i % out.w);
        for o in 0..conv.output {
            let mut sum = 0.0;
            for (ky, kx) in (0..conv.kernel).flat_map(|ky| (0..conv.kernel).map(move |kx| (ky, kx))) {
                let iy = (oy * conv.stride + ky).wrapping_sub(conv.padding);
                let ix = (ox * conv.stride + kx).wrapping_sub(conv.padding);
                if iy < size.h && ix < size.w {
                    for c in 0..conv.input {
                        let w = weight[((o * conv.kernel + ky) * conv.kernel + kx) * conv.input + c];
                        sum += w * x[((n * size.h + iy) * size.w + ix) * conv.input + c];
                    }
                }
            }
            y.push(sum);
        }
    }
    y
}

/// Shapes on both sides of every threshold: several tiles, ragged last tiles, pointwise, and weights so large that all threads
/// share each product; one part of the batch or several, and tiles that hold several parts or a piece of one.
const SHAPES: [(Conv2d, Size); 20] = [
    // Winograd's algorithm: whole tiles and several blocks, ragged ones, and weights that all threads share.
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 16, output: 32, matmul: MatmulPrecision::Full },
        Size { n: 5, h: 16, w: 20 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 48, output: 16, matmul: MatmulPrecision::Full },
        Size { n: 9, h: 7, w: 7 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 16, output: 80, matmul: MatmulPrecision::Full },
        Size { n: 2, h: 8, w: 9 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 112, output: 96, matmul: MatmulPrecision::Full },
        Size { n: 50, h: 3, w: 6 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 8, output: 8, matmul: MatmulPrecision::Full },
        Size { n: 7, h: 17, w: 19 },
    ),
    (
        Conv2d { kernel: 1, stride: 1, padding: 0, input: 24, output: 5, matmul: MatmulPrecision::Full },
        Size { n: 3, h: 21, w: 20 },
    ),
    (
        Conv2d { kernel: 3, stride: 2, padding: 1, input: 16, output: 12, matmul: MatmulPrecision::Full },
        Size { n: 5, h: 15, w: 18 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 172, output: 170, matmul: MatmulPrecision::Full },
        Size { n: 2, h: 5, w: 4 },
    ),
    (
        Conv2d { kernel: 1, stride: 1, padding: 0, input: 520, output: 512, matmul: MatmulPrecision::Full },
        Size { n: 1, h: 34, w: 31 },
    ),
    // A patch that ends within a vector.
    (
        Conv2d { kernel: 7, stride: 2, padding: 3, input: 3, output: 32, matmul: MatmulPrecision::Full },
        Size { n: 3, h: 31, w: 34 },
    ),
    // Whole vectors of channels, whose factors can be packed.
    (
        Conv2d { kernel: 3, stride: 2, padding: 1, input: 32, output: 48, matmul: MatmulPrecision::Full },
        Size { n: 5, h: 15, w: 18 },
    ),
    (
        Conv2d { kernel: 1, stride: 2, padding: 0, input: 80, output: 16, matmul: MatmulPrecision::Full },
        Size { n: 3, h: 33, w: 30 },
    ),
    (
        Conv2d { kernel: 1, stride: 1, padding: 0, input: 512, output: 528, matmul: MatmulPrecision::Full },
        Size { n: 1, h: 34, w: 31 },
    ),
    // Several parts of the batch.
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 128, output: 112, matmul: MatmulPrecision::Full },
        Size { n: 48, h: 4, w: 5 },
    ),
    (
        Conv2d { kernel: 3, stride: 2, padding: 1, input: 64, output: 512, matmul: MatmulPrecision::Full },
        Size { n: 72, h: 5, w: 5 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 10, output: 7, matmul: MatmulPrecision::Full },
        Size { n: 64, h: 3, w: 2 },
    ),
    // Every output pixel sees all of the image.
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 48, output: 80, matmul: MatmulPrecision::Full },
        Size { n: 72, h: 2, w: 2 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 10, output: 7, matmul: MatmulPrecision::Full },
        Size { n: 18, h: 1, w: 2 },
    ),
    (
        Conv2d { kernel: 3, stride: 1, padding: 1, input: 32, output: 40, matmul: MatmulPrecision::Full },
        Size { n: 3, h: 1, w: 1 },
    ),
    (
        Conv2d { kernel: 5, stride: 1, padding: 2, input: 16, output: 16, matmul: MatmulPrecision::Full },
        Size { n: 7, h: 3, w: 2 },
    ),
];

#[test]
fn tiled_shapes_agree_with_the_definition_and_with_each_other() {
    for (conv, size) in SHAPES {
        let x = ramp(size.pixels() * conv.input, 0.37);
        let weight = ramp(conv.weights(), 0.11);
        let expected = direct(&conv, &x, size, &weight);
        let mut y = vec![f64::NAN; expected.len()];
        let mut tiles = TileMoments::new();
        conv.forward(Source::plain(&x), size, &weight, 0.0, &mut y, Some(&mut tiles));
        assert_close("y", &y, &expected, 1e-12);
        let moments = tiles.combine();
        let rows = (expected.len() / conv.output) as f64;
        for c in 0..conv.output {
            let column = || expected.iter().skip(c).step_by(conv.output);
            let mean = column().sum::<f64>() / rows;
            let var = column().map(|v| (v - mean).powi(2)).sum::<f64>() / rows;
            assert!((moments.mean[c] - mean).abs() < 1e-10 && (moments.var[c] - var).abs() < 1e-9 * var.max(1.0));
        }
        // The two gradients are the adjoints of a map that is linear in x and in the weights.
        let cot = ramp(expected.len(), 0.23);
        let along = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let inner = along(&expected, &cot);
        let mut gx = vec![0.0; x.len()];
        conv.backward_data(&cot, size, &weight, 0.0, &mut gx);
        assert!((along(&gx, &x) - inner).abs() < 1e-9 * inner.abs().max(1.0));
        let mut gw = vec![0.0; weight.len()];
        conv.backward_weight(Source::plain(&x), size, &cot, &mut gw);
        assert!((along(&gw, &weight) - inner).abs() < 1e-9 * inner.abs().max(1.0));
        for i in [0, x.len() / 3, x.len() - 1] {
            let mut moved = x.clone();
            moved[i] += 1.0;
            let difference = along(&direct(&conv, &moved, size, &weight), &cot) - inner;
            assert!((gx[i] - difference).abs() < 1e-8, "gx[{i}]: {} instead of {difference}", gx[i]);
        }
    }
}

/// Normalising and rectifying while reading gives the same bits as doing it beforehand.
#[test]
fn a_source_behind_a_normalisation_and_relu_reads_as_its_output_would() {
    for (conv, size) in SHAPES {
        let x = ramp(size.pixels() * conv.input, 0.37);
        let affine = Affine { scale: ramp(conv.input, 0.9), shift: ramp(conv.input, 1.3) };
        let mut rectified = vec![f64::NAN; x.len()];
        apply(&x, &affine, Residual::None, true, &mut rectified);
        let weight = ramp(conv.weights(), 0.11);
        let cot = ramp(conv.output_size(size).pixels() * conv.output, 0.23);
        let run = |x: Source<f64>| {
            let (mut y, mut gw) = (cot.clone(), weight.clone());
            conv.forward(x, size, &weight, 0.0, &mut y, None);
            conv.backward_weight(x, size, &cot, &mut gw);
            [y, gw]
        };
        assert!(run(Source { images: &x, relu_of: Some(&affine) }) == run(Source::plain(&rectified)));
    }
}

/// Root mean square of `a` minus `b`, relative to that of `b`.
fn distance<E: Real>(a: &[E], b: &[f64]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    (square(&mut a.iter().zip(b).map(|(a, b)| a.as_f64() - b)) / square(&mut b.iter().copied())).sqrt()
}

/// Factors with 8 bits of mantissa are off by 0.17 % (root mean square), their products by 0.24 %, and so are sums of products
/// whose errors are independent. Winograd's algorithm, which rounds transformed factors, is off by 1.3 %.
fn bf16_is_as_close_as_its_mantissa_allows<E: Real>() {
    for (conv, size) in SHAPES {
        let rounded = Conv2d { matmul: MatmulPrecision::Bf16, ..conv };
        let tolerance =
            if Whole::of(&conv, size).is_none() && winograd::Tiling::of(&conv, size).is_some() { 0.026 } else { 0.005 };
        let of = |v: Vec<f64>| v.into_iter().map(E::of).collect::<Vec<_>>();
        let noise = |n: usize, seed: u64| -> Vec<f64> {
            let mut random = stream(seed, Purpose::Init, 0, 0, 0);
            (0..n).map(|_| StandardNormal.sample(&mut random)).collect()
        };
        let (x, weight) = (noise(size.pixels() * conv.input, 0), noise(conv.weights(), 1));
        let cot = noise(conv.output_size(size).pixels() * conv.output, 2);
        let run = |conv: &Conv2d, [x, weight, cot]: [&[f64]; 3]| {
            let [x, weight, cot] = [x, weight, cot].map(|v| of(v.to_vec()));
            let (mut y, mut gx, mut gw) = (cot.clone(), x.clone(), weight.clone());
            conv.forward(Source::plain(&x), size, &weight, E::one(), &mut y, None);
            conv.backward_data(&cot, size, &weight, E::one(), &mut gx);
            conv.backward_weight(Source::plain(&x), size, &cot, &mut gw);
            [y, gx, gw]
        };
        let [y, gx, gw] = run(&rounded, [&x, &weight, &cot]);
        let exact = run(&conv, [&x, &weight, &cot]).map(|v| v.iter().map(|v| v.as_f64()).collect::<Vec<_>>());
        for (what, actual, exact) in [("y", y, &exact[0]), ("gx", gx, &exact[1]), ("gw", gw, &exact[2])] {
            let distance = distance(&actual, exact);
            assert!(distance < tolerance, "{what} of {rounded:?} is off by {distance}");
            assert!(distance > 1e-4, "{what} of {rounded:?} is not rounded: {distance}");
        }
    }
}

#[test]
fn bf16_in_pairs_is_as_close_as_its_mantissa_allows() {
    bf16_is_as_close_as_its_mantissa_allows::<f32>();
}

#[test]
fn bf16_by_rounding_is_as_close_as_its_mantissa_allows() {
    bf16_is_as_close_as_its_mantissa_allows::<f64>();
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let bf16 = SHAPES.map(|(conv, size)| (Conv2d { matmul: MatmulPrecision::Bf16, ..conv }, size));
    for (conv, size) in SHAPES.into_iter().chain(bf16) {
        let to_f32 = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let x = to_f32(ramp(size.pixels() * conv.input, 0.37));
        let weight = to_f32(ramp(conv.weights(), 0.11));
        let cot = to_f32(ramp(conv.output_size(size).pixels() * conv.output, 0.23));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut gx, mut gw) = (cot.clone(), x.clone(), weight.clone());
                conv.forward(Source::plain(&x), size, &weight, 0.0, &mut y, None);
                conv.backward_data(&cot, size, &weight, 1.0, &mut gx);
                conv.backward_weight(Source::plain(&x), size, &cot, &mut gw);
                [y, gx, gw].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }
}

/// What each of two ranks would compute: outputs and input gradients of half of the batch are those of the whole batch, and its
/// weight gradient is a branch of the tree.
#[test]
fn a_batch_is_its_halves_to_the_bit() {
    let sizes = [(32, 5, 5), (48, 12, 9), (128, 2, 3), (36, 2, 2), (16, 2, 2), (16, 20, 32)];
    let all = [MatmulPrecision::Full, MatmulPrecision::Bf16].into_iter().flat_map(|matmul| {
        SHAPES.iter().flat_map(move |(conv, _)| sizes.map(|size| (Conv2d { matmul, ..*conv }, size)))
    });
    for (conv, (n, h, w)) in all.filter(|(conv, (n, h, w))| conv.weights() * n * h * w < 1 << 29) {
        let to_f32 = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let size = Size { n, h, w };
        let x = to_f32(ramp(size.pixels() * conv.input, 0.37));
        let weight = to_f32(ramp(conv.weights(), 0.11));
        let cot = to_f32(ramp(conv.output_size(size).pixels() * conv.output, 0.23));
        let run = |x: &[f32], cot: &[f32], n: usize| {
            let size = Size { n, ..size };
            let (mut y, mut gx, mut gw) = (cot.to_vec(), x.to_vec(), vec![0.0; weight.len()]);
            conv.forward(Source::plain(x), size, &weight, 1.0, &mut y, None);
            conv.backward_data(cot, size, &weight, 1.0, &mut gx);
            conv.backward_weight(Source::plain(x), size, cot, &mut gw);
            [y, gx, gw]
        };
        let whole = run(&x, &cot, n);
        let ((x1, x2), (cot1, cot2)) = (x.split_at(x.len() / 2), cot.split_at(cot.len() / 2));
        let ([y1, gx1, gw1], [y2, gx2, gw2]) = (run(x1, cot1, n / 2), run(x2, cot2, n / 2));
        let sums: Vec<f32> = gw1.iter().zip(&gw2).map(|(a, b)| a + b).collect();
        let halves = [[y1, y2].concat(), [gx1, gx2].concat(), sums];
        for (what, (whole, halves)) in ["y", "gx", "gw"].into_iter().zip(whole.iter().zip(&halves)) {
            assert!(whole == halves, "{what} of {conv:?} with {size:?}");
        }
    }
}

/// The same of weight gradients that AMX multiplies, emulated where the CPU lacks it: cutting a sum there changes its bits.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn a_weight_gradient_by_tiles_is_that_of_its_halves_to_the_bit() {
    use super::{packed, whole};
    use crate::ops::matmul::{Factor, Tiles, WithOperand};

    if !f32::multiplies_pairs() {
        return;
    }
    for (kernel, stride, [h, w]) in [(3, 1, [2, 2]), (3, 2, [9, 7]), (1, 1, [6, 6])] {
        let conv = Conv2d { kernel, stride, padding: kernel / 2, input: 16, output: 32, matmul: MatmulPrecision::Bf16 };
        for n in [16, 32, 64] {
            let size = Size { n, h, w };
            let to_f32 = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<_>>();
            let x = to_f32(ramp(size.pixels() * conv.input, 0.37));
            let gy = to_f32(ramp(conv.output_size(size).pixels() * conv.output, 0.23));
            let run = |x: &[f32], gy: &[f32], n: usize| {
                let (x, size, mut gradient) = (Source::plain(x), Size { n, ..size }, vec![0.0; conv.weights()]);
                let gw = &mut gradient[..];
                match Whole::of(&conv, size) {
                    Some(whole) => whole::BackwardWeight { whole, x, gy, gw }.with::<Tiles>(),
                    None => packed::BackwardWeight { conv: &conv, x, size, gy, gw }.with::<Tiles>(),
                }
                gradient
            };
            let ((x1, x2), (gy1, gy2)) = (x.split_at(x.len() / 2), gy.split_at(gy.len() / 2));
            let halves = [run(x1, gy1, n / 2), run(x2, gy2, n / 2)];
            let sums: Vec<f32> = halves[0].iter().zip(&halves[1]).map(|(a, b)| a + b).collect();
            assert!(run(&x, &gy, n) == sums, "{conv:?} with {size:?}");
        }
    }
}

#[test]
fn tiles_share_out_evenly() {
    for (rows, most) in [(392, 64), (392, 256), (1568, 512), (6272, 256), (25088, 512), (131072, 455)] {
        let tile = even_rows(rows, most);
        assert!(tile <= most && tile >= LEAST_ROWS, "{rows} {most}: {tile}");
        // The work of two threads differs by less than a tile.
        let tiles = rows.div_ceil(tile);
        let half = tiles / 2 * tile;
        assert!(half.abs_diff(rows - half) < tile, "{rows} {most}: {tiles} tiles of {tile}");
    }
    // Too few rows for more than one tile.
    assert_eq!(even_rows(40, 512), 40);
}
