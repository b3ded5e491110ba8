//! Weights to transformed weights, and their gradients back.

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    tiling::{CHANNELS, POINTS, SIDE},
    transform,
};
use crate::ops::{
    Real,
    lanes::Vector,
    product::{Operand, PANEL, Panels},
};

/// Rows and columns of a kernel.
const KERNEL: usize = 3;
/// G g G^T of all weights: a right factor [input, output] per point.
pub struct Weights<'a, E> {
    values: &'a [E],
    /// Elements along the sum over input channels.
    depth: usize,
    output: usize,
}

impl<'a, E: Real> Weights<'a, E> {
    /// Elements of the transformed weights.
    pub fn len<P: Operand<E>>(input: usize, output: usize) -> usize {
        POINTS * input / P::PACK * output
    }

    /// Transforms weights of which `at(output, tap, input)` is the element, into `values`.
    pub fn of<P: Operand<E>>(
        input: usize,
        output: usize,
        at: impl Fn(usize, usize, usize) -> E + Sync,
        values: &'a mut [E],
    ) -> Self {
        let depth = input / P::PACK;
        let mut parts: Vec<Vec<&mut [E]>> = (0..output.div_ceil(PANEL)).map(|_| Vec::new()).collect();
        for point in values.chunks_exact_mut(depth * output) {
            for (part, panel) in parts.iter_mut().zip(point.chunks_mut(depth * PANEL)) {
                part.push(panel);
            }
        }
        parts.into_par_iter().enumerate().for_each(|(panel, mut points)| {
            let first = panel * PANEL;
            let width = PANEL.min(output - first);
            let mut taps = vec![E::zero(); KERNEL * KERNEL * CHANNELS];
            for i in 0..input {
                for o in (0..width).step_by(CHANNELS) {
                    for (tap, row) in taps.chunks_exact_mut(CHANNELS).enumerate() {
                        for (c, value) in row.iter_mut().enumerate() {
                            *value = at(first + o + c, tap, i);
                        }
                    }
                    let (at, part) = (i / P::PACK * width + o, i % P::PACK);
                    P::dispatch(Transform::<E, P> { taps: &taps, points: &mut points, at, part, operand: PhantomData });
                }
            }
        });
        Self { values, depth, output }
    }

    /// The factor of a point.
    pub fn point(&self, point: usize) -> Panels<'_, E> {
        let len = self.depth * self.output;
        Panels { values: &self.values[point * len..][..len], depth: self.depth, columns: self.output }
    }
}

/// G g G^T for [`CHANNELS`] pairs of channels.
struct Transform<'a, 'b, E, P> {
    /// [taps, CHANNELS]
    taps: &'a [E],
    points: &'a mut [&'b mut [E]],
    at: usize,
    /// Which factor of its elements this is.
    part: usize,
    operand: PhantomData<P>,
}

impl<E: Real, P: Operand<E>> WithSimd for Transform<'_, '_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let taps = E::vectors::<S>(self.taps);
        let vectors = taps.len() / (KERNEL * KERNEL);
        for v in 0..vectors {
            let zero = Vector::splat(simd, E::zero());
            let mut rows = [[zero; KERNEL]; SIDE];
            for x in 0..KERNEL {
                let mut column = [zero; KERNEL];
                for y in 0..KERNEL {
                    column[y] = Vector::new(simd, taps[(y * KERNEL + x) * vectors + v]);
                }
                let values = transform::weight(column);
                for i in 0..SIDE {
                    rows[i][x] = values[i];
                }
            }
            for i in 0..SIDE {
                let values = transform::weight(rows[i]);
                for j in 0..SIDE {
                    let point = &mut self.points[i * SIDE + j][self.at..][..CHANNELS];
                    let point = &mut E::vectors_mut::<S>(point)[v];
                    // SAFETY: that is room for a vector.
                    unsafe { P::store_across(simd, values[j].lanes, self.part, std::ptr::from_mut(point).cast()) };
                }
            }
        }
    }
}

/// Adds to `gradient` [output, taps, input] what `points` [36, output, input], the transformed weights' gradient, means
/// for the weights: G^T u G.
pub fn add_gradient<E: Real>(points: &[E], input: usize, gradient: &mut [E]) {
    let point = points.len() / POINTS;
    gradient.par_chunks_exact_mut(KERNEL * KERNEL * input).enumerate().for_each(|(o, gradient)| {
        let rows = std::array::from_fn(|p| &points[p * point + o * input..][..input]);
        Arch::new().dispatch(AddGradient { rows, gradient });
    });
}

/// One output channel's part of [`add_gradient`].
struct AddGradient<'a, E> {
    /// [input] per point
    rows: [&'a [E]; POINTS],
    /// [taps, input]
    gradient: &'a mut [E],
}

impl<E: Real> WithSimd for AddGradient<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.rows.map(E::vectors::<S>);
        let vectors = rows[0].len();
        let gradient = E::vectors_mut::<S>(self.gradient);
        for v in 0..vectors {
            let zero = Vector::splat(simd, E::zero());
            let mut columns = [[zero; SIDE]; KERNEL];
            for i in 0..SIDE {
                let mut line = [zero; SIDE];
                for j in 0..SIDE {
                    line[j] = Vector::new(simd, rows[i * SIDE + j][v]);
                }
                let values = transform::weight_gradient(line);
                for x in 0..KERNEL {
                    columns[x][i] = values[x];
                }
            }
            for x in 0..KERNEL {
                let values = transform::weight_gradient(columns[x]);
                for y in 0..KERNEL {
                    let target = &mut gradient[(y * KERNEL + x) * vectors + v];
                    *target = (Vector::new(simd, *target) + values[y]).lanes;
                }
            }
        }
    }
}
