use super::*;
use crate::ops::golden::{Golden, assert_close, tolerance};

/// f32 sums of 100 values; PyTorch's own f32 run is off by up to 1e-6.
const F32: f64 = 2e-6;

fn kernels_agree<E: Real>() {
    let golden = Golden::load("batchnorm2d");
    let (x, cot) = (golden.channels_last::<E>("in.x"), golden.channels_last::<E>("in.cot"));
    let (weight, bias) = (golden.get::<E>("in.weight"), golden.get::<E>("in.bias"));
    let (mut mean, mut var) = (golden.get::<E>("in.rmean"), golden.get::<E>("in.rvar"));
    let close = |what: &str, actual: &[E], expected: Vec<E>| assert_close(what, actual, &expected, tolerance::<E>(F32));

    let moments = Moments::of(&x, 3, 1);
    let mut y = vec![E::nan(); x.len()];
    let affine = Affine::new(&moments.mean, &moments.inv_std, Some((&weight, &bias)));
    apply(&x, &affine, Residual::None, false, &mut y);
    close("y", &y, golden.channels_last("out.y"));
    moments.update_running(&mut mean, &mut var);
    close("rmean1", &mean, golden.get("out.rmean1"));
    close("rvar1", &var, golden.get("out.rvar1"));
    Moments::of(&golden.channels_last::<E>("in.x2"), 3, 1).update_running(&mut mean, &mut var);
    close("rmean2", &mean, golden.get("out.rmean2"));
    close("rvar2", &var, golden.get("out.rvar2"));
    apply(&x, &Affine::eval(&mean, &var, Some((&weight, &bias))), Residual::None, false, &mut y);
    close("y_eval", &y, golden.channels_last("out.y_eval"));

    let mut g = cot.clone();
    let sums = backward_sums(&x, &moments, &mut g, Relu::None);
    assert!(g == cot);
    close("grad.weight", &sums.g_normalised, golden.get("grad.weight"));
    close("grad.bias", &sums.g, golden.get("grad.bias"));
    let mut gx = x.clone();
    backward_input(&mut gx, &moments, Some(&weight), &sums, &g, Relu::None);
    close("grad.x", &gx, golden.channels_last("grad.x"));
}

#[test]
fn sums_behind_a_relu_are_those_of_the_masked_gradient() {
    for channels in [5, 32] {
        let values = |step: f64| (0..700 * channels).map(|i| (i as f64 * step).sin()).collect::<Vec<f64>>();
        let (x, output, g) = (values(0.7), values(0.3), values(1.1));
        let moments = Moments::of(&x, channels, 4);
        let (mut fused, mut masked) = (g.clone(), g);
        let sums = backward_sums(&x, &moments, &mut fused, Relu::Output(&output));
        relu_backward(&output, &mut masked);
        assert_eq!(fused, masked);
        let (scale, shift) = (vec![0.5; channels], vec![-0.1; channels]);
        let affine = Affine { scale, shift };
        let (mut by_input, mut by_output, mut y) = (masked.clone(), masked.clone(), vec![0.0; x.len()]);
        apply(&x, &affine, Residual::None, true, &mut y);
        // A mask by the input is applied wherever the gradient is read, one by the output once.
        let gradients = |g: &mut [f64], relu| {
            let (sums, mut gx) = (backward_sums(&x, &moments, g, relu), x.clone());
            backward_input(&mut gx, &moments, None, &sums, g, relu);
            (sums.g, sums.g_normalised, gx)
        };
        assert_eq!(gradients(&mut by_input, Relu::Of(&affine)), gradients(&mut by_output, Relu::Output(&y)));
        assert_eq!(by_input, masked);
        assert_ne!(by_output, masked);
        for c in 0..channels {
            let rows = || (0..700).map(|r| r * channels + c);
            let total: f64 = rows().map(|i| masked[i]).sum();
            let along: f64 = rows().map(|i| masked[i] * (x[i] - moments.mean[c]) * moments.inv_std[c]).sum();
            assert!((sums.g[c] - total).abs() < 1e-10 && (sums.g_normalised[c] - along).abs() < 1e-10);
        }
    }
}

#[test]
fn kernels_agree_with_the_reference() {
    kernels_agree::<f64>();
    kernels_agree::<f32>();
}

#[test]
fn a_large_mean_costs_no_precision() {
    let x: Vec<f32> = (0..4096).map(|i| 1000.0 + (i % 7) as f32).collect();
    let moments = Moments::of(&x, 1, 4);
    let mean = x.iter().map(|v| *v as f64).sum::<f64>() / 4096.0;
    let var = x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / 4096.0;
    assert!((moments.var[0] as f64 - var).abs() < 1e-4 * var, "{} instead of {var}", moments.var[0]);
}

/// Statistics and backward sums of a batch are those of its parts, combined as a tree. The test combines them part by part
/// itself.
#[test]
fn parts_of_the_batch_are_combined_as_a_tree() {
    for channels in [5, 16, 80] {
        let (rows, count) = (96, 4);
        let values = |step: f64| (0..rows * channels).map(|i| (i as f64 * step).sin() + 0.5).collect::<Vec<f64>>();
        let (x, g) = (values(0.7), values(1.1));
        let part = rows / count * channels;
        let of = |i: usize| Moments::of(&x[i * part..][..part], channels, 1);
        // With equal numbers of rows, the mean is that of both means, and the variance grows by the square of half their
        // difference.
        let combined = crate::ops::parts::tree(
            count,
            |i| (rows / count, of(i).mean, of(i).var),
            |(n, m1, v1), (_, m2, v2)| {
                let mean = m1.iter().zip(&m2).map(|(a, b)| (a + b) / 2.0).collect();
                let var = (0..channels).map(|c| (v1[c] + v2[c]) / 2.0 + (m2[c] - m1[c]).powi(2) / 4.0).collect();
                (2 * n, mean, var)
            },
        );
        let moments = Moments::of(&x, channels, count);
        assert_eq!((moments.rows, moments.parts), (rows, count));
        assert_close("mean", &moments.mean, &combined.1, 1e-14);
        assert_close("var", &moments.var, &combined.2, 1e-14);
        let sums = backward_sums(&x, &moments, &mut g.clone(), Relu::None);
        let halves = |range: std::ops::Range<usize>| {
            let moments = Moments { parts: count / 2, ..moments.clone() };
            backward_sums(&x[range.clone()], &moments, &mut g[range].to_vec(), Relu::None).g
        };
        let (left, right) = (halves(0..2 * part), halves(2 * part..4 * part));
        for c in 0..channels {
            assert_eq!(sums.g[c], left[c] + right[c], "{channels} {c}");
        }
    }
}

/// Rows of few channels are taken several at a time, and a last one may be cut short. Values are those of a plain loop.
#[test]
fn any_number_of_channels_gives_the_bits_of_a_plain_loop() {
    for (channels, rows) in [(1, 900), (3, 701), (8, 515), (8, 1), (12, 33), (16, 40), (24, 77)] {
        let values = |step: f32, len: usize| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let [x, other, g] = [0.7, 1.1, 0.3].map(|step| values(step, rows * channels));
        let affine = |step: f32| Affine { scale: values(step, channels), shift: values(step + 0.1, channels) };
        let (own, others) = (affine(0.9), affine(1.7));
        let of =
            |affine: &Affine<f32>, x: &[f32], i: usize| x[i] * affine.scale[i % channels] + affine.shift[i % channels];
        let normalised = |residual, relu| {
            let mut out = vec![f32::NAN; x.len()];
            apply(&x, &own, residual, relu, &mut out);
            out
        };
        let each = |value: &dyn Fn(usize) -> f32| (0..x.len()).map(value).collect::<Vec<f32>>();
        assert_eq!(normalised(Residual::None, true), each(&|i| of(&own, &x, i).max(0.0)), "{channels}");
        assert_eq!(normalised(Residual::Plain(&other), false), each(&|i| of(&own, &x, i) + other[i]), "{channels}");
        let both = normalised(Residual::Normalised(&other, &others), true);
        assert_eq!(both, each(&|i| (of(&own, &x, i) + of(&others, &other, i)).max(0.0)), "{channels}");
        let [a, b, d] = [0.2, 0.4, 0.6].map(|step| values(step, channels));
        for relu_of in [None, Some(&own)] {
            let mut gx = x.clone();
            combine(&mut gx, &g, relu_of, [&a, &b, &d]);
            let passes = |i: usize| relu_of.is_none_or(|affine| of(affine, &x, i) > 0.0);
            let term = |i: usize| if passes(i) { a[i % channels] * g[i] } else { a[i % channels] * 0.0 };
            assert_eq!(gx, each(&|i| term(i) + b[i % channels] * x[i] + d[i % channels]), "{channels}");
        }
    }
}
