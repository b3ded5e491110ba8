//! The losses' operations on the CPU.

use std::ops::DerefMut;

use dfdx::prelude::*;

use super::{
    Buffer, Logits, Matrix, Rows, TensorDevice, Traced, TracedPerRow, TracedRows, TracedScalar, linear, traced,
};
use crate::ops::{
    Real,
    contrast::{self, Pairs},
    group_dots, linear as products, normalize,
    parts::{self, parts},
    pending::Pending,
    sinkhorn::{Sinkhorn, sinkhorn},
    softmax,
};

/// The CPU as dfdx's device, with the losses' operations for `E`.
pub trait CpuTensors<E: Real>:
    TensorDevice<E, Values = ()> + HasErr<Err = CpuError> + Storage<E, Vec: DerefMut<Target = Vec<E>>>
{
}

impl<E: Real, D> CpuTensors<E> for D where
    D: TensorDevice<E, Values = ()> + HasErr<Err = CpuError> + Storage<E, Vec: DerefMut<Target = Vec<E>>>
{
}

/// Added to the dot product of a row with itself, so that exp of the logit is 0: a row is no candidate of itself.
const NEVER: f64 = -1e9;

impl<E: Real> TensorDevice<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: DerefMut<Target = Vec<E>>,
{
    type Values = ();

    fn values(_: &Matrix<E, Self>) -> Result<(), CpuError> {
        Ok(())
    }

    fn read_later(tensor: &Matrix<E, Self>) -> Result<Pending<Vec<E>>, CpuError> {
        Ok(Pending::now(to_vec(tensor)))
    }

    fn linear_forward(x: &Rows<E, Self>, w: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let (shape, (n, columns)) = (w.shape(), x.shape());
        assert_eq!(columns, shape.1);
        let y = with_elements(x.tensor(), |x| with_elements(w.tensor(), |w| products::forward(x, w, shape)));
        rows(x, y, (n, shape.0))
    }

    fn linear_backward_x(
        w: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        _: usize,
    ) -> Result<(), CpuError> {
        with_elements(w.tensor(), |values| products::backward_x(values, w.shape(), gx, gy));
        Ok(())
    }

    fn linear_backward_w(
        x: &Rows<E, Self>,
        gw: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        out: usize,
    ) -> Result<(), CpuError> {
        with_elements(x.tensor(), |values| products::backward_w(values, (out, x.shape().1), gw, gy));
        Ok(())
    }

    fn normalize_forward(x: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let mut y = to_vec(x.tensor());
        normalize::normalize_rows(&mut y, x.shape().1);
        rows(x, y, x.shape())
    }

    fn normalize_backward(
        x: &Rows<E, Self>,
        y: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), CpuError> {
        let dim = x.shape().1;
        with_elements(x.tensor(), |x| {
            with_elements(y.tensor(), |y| normalize::normalize_backward([x, y, gy], dim, gx));
        });
        Ok(())
    }

    fn contrast<R: Tape<E, Self>>(
        anchors: TracedRows<E, Self>,
        candidates: Rows<E, Self, R>,
        pairs: Pairs,
        tau: f64,
    ) -> Result<Logits<E, Self>, CpuError>
    where
        OwnedTape<E, Self>: Merge<R>,
    {
        let (s, tau) = (linear::<E, Self, OwnedTape<E, Self>, R>(anchors, candidates)?, E::of(tau));
        let mut s = s.into_tensor();
        let (n, m) = *s.shape();
        if pairs.alone {
            let itself = (0..n * m).map(|i| if i % (m + 1) == 0 { E::of(NEVER) } else { E::zero() }).collect();
            let itself: Matrix<E, Self> = s.device().try_tensor_from_vec(itself, (n, m))?;
            s = s.try_add(itself)?;
        }
        let (s, tape) = s.split_tape();
        let all = log_sum_exp(s.clone().put_tape(tape), E::one() / tau)?;
        Ok((all, own_columns(traced(s), pairs, tau)?))
    }

    fn interleave(a: &Rows<E, Self>, b: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let ((n, dim), rest) = (a.shape(), b.shape().0);
        let both =
            with_elements(a.tensor(), |a| with_elements(b.tensor(), |b| contrast::interleave(a, b, [rest / n, dim])));
        rows(a, both, (n + rest, dim))
    }

    fn scale_rows(of: &Rows<E, Self>, factors: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let mut scaled = to_vec(of.tensor());
        with_elements(factors.tensor(), |factors| contrast::scale_rows(&mut scaled, factors, of.shape().1));
        rows(of, scaled, of.shape())
    }

    fn group_dots(a: Traced<E, Self>, b: Traced<E, Self>) -> Result<Traced<E, Self>, CpuError> {
        let (a, a_tape) = a.split_tape();
        let (b, b_tape) = b.split_tape();
        let mut tape = a_tape.merge(b_tape);
        let ((n, width), k) = (*a.shape(), b.shape().0 / a.shape().0);
        let y = with_elements(&a, |a| with_elements(&b, |b| group_dots::forward(a, b, width)));
        let y = a.device().try_tensor_from_vec(y, (n, k))?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            let ga = gradients.get_or_alloc_mut(&a)?;
            with_elements(&b, |b| group_dots::backward_a(b, width, ga, &gy));
            let gb = gradients.get_or_alloc_mut(&b)?;
            with_elements(&a, |a| group_dots::backward_b(a, width, gb, &gy));
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn assign(
        scores: &Rows<E, Self>,
        beside: Option<&Rows<E, Self>>,
        settings: Sinkhorn,
    ) -> Result<Matrix<E, Self>, CpuError> {
        let (n, columns) = scores.shape();
        let mut all = beside.map(|rows| to_vec(rows.tensor())).unwrap_or_default();
        all.extend(to_vec(scores.tensor()));
        sinkhorn(&mut all, columns, n, settings);
        let own = all.split_off(all.len() - n * columns);
        scores.device().try_tensor_from_vec(own, (n, columns))
    }

    fn log_sum_exp(s: Traced<E, Self>) -> Result<TracedPerRow<E, Self>, CpuError> {
        log_sum_exp(s, E::one())
    }

    fn log_softmax(s: Traced<E, Self>) -> Result<Traced<E, Self>, CpuError> {
        let (s, tape) = s.split_tape();
        let (shape, columns) = (*s.shape(), s.shape().1);
        let y = with_elements(&s, |s| softmax::log_softmax(s, columns));
        record((s, tape), y, shape, move |_, y, gy, gs| {
            with_elements(y, |y| softmax::log_softmax_backward(columns, [y, gy], gs));
        })
    }

    fn cross_entropy(s: Traced<E, Self>, q: Matrix<E, Self>, tau: f64) -> Result<TracedPerRow<E, Self>, CpuError> {
        let (s, tape) = s.split_tape();
        let ((n, columns), scale) = (*s.shape(), E::one() / E::of(tau));
        let (y, kept) = with_elements(&s, |s| with_elements(&q, |q| softmax::cross_entropy([s, q], columns, scale)));
        record((s, tape), y, (n,), move |s, _, gy, gs| {
            with_elements(s, |s| {
                with_elements(&q, |q| softmax::cross_entropy_backward([s, q], scale, (&kept, gy), gs));
            });
        })
    }

    fn exp(x: Traced<E, Self>) -> Result<Traced<E, Self>, CpuError> {
        let (x, tape) = x.split_tape();
        let (shape, y) = (*x.shape(), with_elements(&x, softmax::exp));
        record((x, tape), y, shape, |_, y, gy, gx| {
            with_elements(y, |y| gx.iter_mut().zip(y).zip(gy).for_each(|((gx, y), gy)| *gx += *y * *gy));
        })
    }

    /// The sum is the tree of [`parts`](mod@parts), for any number of threads.
    fn batch_mean(x: TracedPerRow<E, Self>) -> Result<TracedScalar<E, Self>, CpuError> {
        let (x, tape) = x.split_tape();
        let (n, share) = (x.shape().0, E::of(x.shape().0 as f64));
        let mean = with_elements(&x, |x| parts::sum(x, parts(n)) / share);
        record((x, tape), vec![mean], (), move |_, _, gy, gx| {
            let gradient = gy[0] / share;
            gx.iter_mut().for_each(|gx| *gx += gradient);
        })
    }
}

/// ln sum_j exp(s_j scale) of each row of s [n, m].
fn log_sum_exp<E: Real>(s: Traced<E, Cpu>, scale: E) -> Result<TracedPerRow<E, Cpu>, CpuError>
where
    Cpu: CpuTensors<E>,
{
    let (s, tape) = s.split_tape();
    let (n, columns) = *s.shape();
    let y = with_elements(&s, |s| softmax::log_sum_exp(s, columns, scale));
    record((s, tape), y, (n,), move |s, y, gy, gs| {
        with_elements(s, |s| with_elements(y, |y| softmax::log_sum_exp_backward(s, scale, [y, gy], gs)));
    })
}

/// The logits of each anchor's own candidates [n, own], from s [n, m], which is tau times the logits.
fn own_columns<E: Real>(s: Traced<E, Cpu>, pairs: Pairs, tau: E) -> Result<Traced<E, Cpu>, CpuError>
where
    Cpu: CpuTensors<E>,
{
    let (s, tape) = s.split_tape();
    let (n, m) = *s.shape();
    let y = with_elements(&s, |s| contrast::own_columns(s, m, pairs, tau));
    record((s, tape), y, (n, pairs.own), move |_, _, gy, gs| {
        contrast::own_columns_backward(gy, m, pairs, tau, gs);
    })
}

/// Puts y, the result of an operation on x, on the tape of x. `backward` gets x, y and the gradient of y, and adds to the
/// gradient of x.
pub fn record<E: Real, X: Shape, Y: Shape>(
    (x, mut tape): (Tensor<X, E, Cpu>, OwnedTape<E, Cpu>),
    y: Vec<E>,
    shape: Y,
    backward: impl FnOnce(&Tensor<X, E, Cpu>, &Tensor<Y, E, Cpu>, &[E], &mut [E]) + 'static,
) -> Result<Tensor<Y, E, Cpu, OwnedTape<E, Cpu>>, CpuError>
where
    Cpu: CpuTensors<E>,
{
    let y = x.device().try_tensor_from_vec(y, shape)?;
    let kept = y.clone();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&kept)?.clone();
        backward(&x, &kept, &gy, gradients.get_or_alloc_mut(&x)?);
        Ok(())
    });
    Ok(y.put_tape(tape))
}

/// Rows of `values` on the device of `like`.
fn rows<E: Real>(like: &Rows<E, Cpu>, values: Vec<E>, shape: (usize, usize)) -> Result<Rows<E, Cpu>, CpuError>
where
    Cpu: CpuTensors<E>,
{
    Ok(Rows::new(like.device().try_tensor_from_vec(values, shape)?, ()))
}

/// The elements of a tensor in row-major order. `Tensor::as_vec` walks them one by one, which takes several times as long
/// as a copy.
pub fn to_vec<S: Shape, E: Real>(x: &Tensor<S, E, Cpu>) -> Vec<E>
where
    Cpu: Device<E, Err = CpuError>,
{
    let x = x.clone().contiguous(); // shares the elements unless they were broadcast or permuted
    let mut values = vec![E::zero(); x.shape().num_elements()];
    x.copy_into(&mut values);
    values
}

/// Calls `f` with the elements of a tensor in row-major order, copied to working memory that the thread reuses.
fn with_elements<S: Shape, E: Real, R>(x: &Tensor<S, E, Cpu>, f: impl FnOnce(&[E]) -> R) -> R
where
    Cpu: Device<E, Err = CpuError>,
{
    let x = x.clone().contiguous();
    E::with_scratch(x.shape().num_elements(), |elements| {
        x.copy_into(elements);
        f(elements)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Gradients = dfdx::prelude::Gradients<f64, Cpu>;

    fn values(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin()).collect()
    }

    fn matrix(n: usize, columns: usize, step: f64) -> Matrix<f64, Cpu> {
        Cpu::default().tensor_from_vec(values(n * columns, step), (n, columns))
    }

    fn per_row(n: usize, step: f64) -> Tensor<(usize,), f64, Cpu> {
        Cpu::default().tensor_from_vec(values(n, step), (n,))
    }

    #[track_caller]
    fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < tolerance), "{a:?} {b:?}");
    }

    /// Compares the values and, along a cotangent, the gradients of all `inputs`.
    #[track_caller]
    fn assert_alike<S: Shape>(
        [found, expected]: [Tensor<S, f64, Cpu, OwnedTape<f64, Cpu>>; 2],
        cot: Tensor<S, f64, Cpu>,
        inputs: &[&Matrix<f64, Cpu>],
        tolerance: f64,
    ) {
        assert_close(&found.as_vec(), &expected.as_vec(), tolerance);
        let [found, expected]: [Gradients; 2] = [found, expected].map(|y| {
            let along = (y * cot.clone()).reshape_like(&(1, cot.shape().num_elements()));
            along.sum::<Rank0, Axes2<0, 1>>().backward()
        });
        for x in inputs {
            assert_close(&found.get(*x).as_vec(), &expected.get(*x).as_vec(), tolerance);
        }
    }

    #[test]
    fn softmax_agrees_with_compositions_of_dfdx() {
        // Fewer and more columns than a sum has lanes.
        for (n, columns) in [(1, 1), (5, 4), (7, 37)] {
            let (s, q, cot) = (matrix(n, columns, 0.7), matrix(n, columns, 0.3), matrix(n, columns, 1.3));
            let (tau, of_rows) = (0.2, per_row(n, 1.1));
            let composed = || (s.leaky_trace() / tau).log_softmax::<Axis<1>>();
            let steep = || s.leaky_trace() / tau;
            assert_alike([Cpu::log_softmax(steep()).unwrap(), composed()], cot.clone(), &[&s], 1e-12);
            let expected = -(composed() * q.clone()).sum::<(usize,), Axis<1>>();
            let found = Cpu::cross_entropy(s.leaky_trace(), q, tau).unwrap();
            assert_alike([found, expected], of_rows.clone(), &[&s], 1e-11);
            assert_alike([Cpu::exp(s.leaky_trace()).unwrap(), s.leaky_trace().exp()], cot, &[&s], 1e-13);
            let found = log_sum_exp(s.leaky_trace(), 1.0 / tau).unwrap();
            assert_alike([found, steep().logsumexp::<(usize,), Axis<1>>()], of_rows, &[&s], 1e-12);
        }
    }

    #[test]
    fn softmax_of_f32_is_close_to_that_of_f64() {
        let (s, cot) = (matrix(7, 37, 3.5), matrix(7, 37, 1.3));
        let single = |x: &Matrix<f64, Cpu>| -> Matrix<f32, Cpu> {
            Cpu::default().tensor_from_vec(x.as_vec().into_iter().map(|x| x as f32).collect(), *x.shape())
        };
        let double = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let in_f32 = single(&s);
        let (y, expected) =
            (Cpu::log_softmax(in_f32.leaky_trace()).unwrap(), Cpu::log_softmax(s.leaky_trace()).unwrap());
        assert_close(&double(y.as_vec()), &expected.as_vec(), 3e-6);
        let gradient = (y * single(&cot)).sum::<Rank0, _>().backward().get(&in_f32);
        let expected = (expected * cot).sum::<Rank0, _>().backward().get(&s);
        assert_close(&double(gradient.as_vec()), &expected.as_vec(), 1e-4);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let s: Matrix<f32, Cpu> = Cpu::default().tensor_from_vec(vec![9000.0, 0.0, -9000.0, 0.0], (2, 2));
        let y = Cpu::log_softmax(s.leaky_trace()).unwrap();
        assert_eq!(y.as_vec(), [0.0, -9000.0, -9000.0, 0.0]);
        assert!(y.sum::<Rank0, _>().backward().get(&s).as_vec().iter().all(|g| g.is_finite()));
    }

    #[test]
    fn own_columns_agree_with_a_composition_of_dfdx() {
        let (rows, tau) = (5, 0.2);
        for (n, pairs) in
            [(5, Pairs::grouped(3)), (2, Pairs::grouped(3).from(3)), (5, Pairs { shift: 3, ..Pairs::grouped(2) })]
        {
            let (own, m) = (pairs.own, rows * pairs.own);
            let (s, cot) = (matrix(n, m, 0.7), matrix(n, own, 1.3));
            let of_row = |i: usize| (i + pairs.shift) % rows * own..((i + pairs.shift) % rows + 1) * own;
            let columns = Cpu::default().tensor_from_vec((0..n).flat_map(of_row).collect(), (n, own));
            let composed: Traced<f64, Cpu> = (s.leaky_trace() / tau).gather(columns);
            assert_alike([own_columns(s.leaky_trace(), pairs, tau).unwrap(), composed], cot, &[&s], 1e-12);
        }
    }

    #[test]
    fn dots_of_groups_agree_with_a_composition_of_dfdx() {
        let (n, k, width) = (4, 3, 21);
        let (a, b, cot) = (matrix(n, width, 0.7), matrix(n * k, width, 0.3), matrix(n, k, 1.3));
        let wide = a.leaky_trace().broadcast_like::<_, Axis<1>>(&(n, k, width));
        let composed = (wide * b.leaky_trace().reshape_like(&(n, k, width))).sum::<(usize, usize), Axis<2>>();
        let found = Cpu::group_dots(a.leaky_trace(), b.leaky_trace()).unwrap();
        assert_alike([found, composed], cot, &[&a, &b], 1e-12);
    }

    #[test]
    fn the_mean_of_a_batch_agrees_with_that_of_dfdx() {
        for n in [1, 6, 48] {
            let x = per_row(n, 0.9);
            let (found, expected) =
                (Cpu::batch_mean(x.leaky_trace()).unwrap() * 3.0, x.leaky_trace().mean::<Rank0, _>() * 3.0);
            assert_close(&[found.array()], &[expected.array()], 1e-12);
            assert_close(&found.backward().get(&x).as_vec(), &expected.backward().get(&x).as_vec(), 1e-12);
        }
    }

    #[test]
    fn elements_come_in_row_major_order_however_they_lie() {
        let device = Cpu::default();
        let x: Matrix<f64, Cpu> = device.tensor_from_vec((0..6).map(f64::from).collect(), (2, 3));
        assert_eq!(to_vec(&x), x.as_vec());
        let permuted: Matrix<f64, Cpu> = x.clone().permute::<_, Axes2<1, 0>>();
        assert_eq!(to_vec(&permuted), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let row: Tensor<(usize,), f64, Cpu> = device.tensor_from_vec(vec![1.0, 2.0], (2,));
        let broadcast: Matrix<f64, Cpu> = row.broadcast_like::<_, Axis<0>>(&(3usize, 2usize));
        assert_eq!(to_vec(&broadcast), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    }
}
