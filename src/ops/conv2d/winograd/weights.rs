//! Transforms weights, and transforms the gradients of transformed weights back.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    tiling::{CHANNELS, POINTS, SIDE},
    transform,
};
use crate::ops::{
    Real,
    matmul::{Operand, PANEL, Panels},
    simd::dispatch,
    vector::{Vector, lanes},
};

/// Rows and columns of a kernel.
const KERNEL: usize = 3;
pub const TAPS: usize = KERNEL * KERNEL;

/// The kernels of a convolution, as they are stored.
#[derive(Clone, Copy)]
pub enum Kernels<'a, E> {
    /// The convolution's own weights, [output, taps, input].
    Own(&'a [E]),
    /// The weights of the convolution whose data gradient this one computes, [input, taps, output]; taps are read mirrored.
    Mirrored(&'a [E]),
}

impl<E: Real> Kernels<'_, E> {
    /// Copies the kernels of [`CHANNELS`] input channels from `i` on and as many output channels from `o` on to `taps`, [inputs,
    /// taps, outputs].
    fn gather(self, [input, output]: [usize; 2], [i, o]: [usize; 2], taps: &mut [E]) {
        match self {
            Kernels::Own(weight) => {
                for c in 0..CHANNELS {
                    for tap in 0..TAPS {
                        let inputs = &weight[((o + c) * TAPS + tap) * input + i..][..CHANNELS];
                        for (l, value) in inputs.iter().enumerate() {
                            taps[(l * TAPS + tap) * CHANNELS + c] = *value;
                        }
                    }
                }
            }
            Kernels::Mirrored(weight) => {
                for (l, taps) in taps.chunks_exact_mut(TAPS * CHANNELS).enumerate() {
                    for (tap, outputs) in taps.chunks_exact_mut(CHANNELS).enumerate() {
                        let from = ((i + l) * TAPS + TAPS - 1 - tap) * output + o;
                        outputs.copy_from_slice(&weight[from..][..CHANNELS]);
                    }
                }
            }
        }
    }
}

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

    /// Transforms `kernels` into `values`.
    pub fn of<P: Operand<E>>(input: usize, output: usize, kernels: Kernels<E>, values: &'a mut [E]) -> Self {
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
            let mut taps = vec![E::zero(); CHANNELS * TAPS * CHANNELS];
            for i in (0..input).step_by(CHANNELS) {
                for o in (0..width).step_by(CHANNELS) {
                    kernels.gather([input, output], [i, first + o], &mut taps);
                    let (at, row) = (i / P::PACK * width + o, width);
                    P::dispatch(Transform::<E, P> { taps: &taps, points: &mut points, at, row, operand: PhantomData });
                }
            }
        });
        Self { values, depth, output }
    }

    /// The right factor of a point.
    pub fn point(&self, point: usize) -> Panels<'_, E> {
        let len = self.depth * self.output;
        Panels { values: &self.values[point * len..][..len], depth: self.depth, columns: self.output }
    }
}

/// G g G^T of the kernels of [`CHANNELS`] input channels and as many output channels.
struct Transform<'a, 'b, E, P> {
    /// [inputs, taps, outputs]
    taps: &'a [E],
    points: &'a mut [&'b mut [E]],
    /// Offset of the first result in a point's matrix.
    at: usize,
    /// Elements of a row of that matrix.
    row: usize,
    operand: PhantomData<P>,
}

impl<E: Real, P: Operand<E>> WithSimd for Transform<'_, '_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let taps = E::vectors::<S>(self.taps);
        let vectors = CHANNELS / lanes::<E, S>();
        for input in (0..CHANNELS).step_by(P::PACK) {
            let target = self.at + input / P::PACK * self.row;
            for v in 0..vectors {
                let first = down::<E, S>(simd, &taps[input * TAPS * vectors..][..TAPS * vectors], v);
                let second = match P::PACK {
                    2 => down::<E, S>(simd, &taps[(input + 1) * TAPS * vectors..][..TAPS * vectors], v),
                    _ => first,
                };
                for i in 0..SIDE {
                    let (first, second) = (transform::weight(first[i]), transform::weight(second[i]));
                    for j in 0..SIDE {
                        let point = &mut self.points[i * SIDE + j][target..][..CHANNELS];
                        let point = std::ptr::from_mut(&mut E::vectors_mut::<S>(point)[v]).cast();
                        // SAFETY: `point` is a whole vector of the point's matrix.
                        unsafe {
                            match P::PACK {
                                2 => P::store_both_across(simd, [first[j].lanes, second[j].lanes], point),
                                _ => P::store_across(simd, first[j].lanes, 0, point),
                            }
                        }
                    }
                }
            }
        }
    }
}

/// G g of vector `v` of the kernels `taps` [3, 3, vectors], by rows.
#[inline(always)]
fn down<E: Real, S: Simd>(simd: S, taps: &[E::Vector<S>], v: usize) -> [[Vector<E, S>; KERNEL]; SIDE] {
    let zero = Vector::splat(simd, E::zero());
    let vectors = taps.len() / TAPS;
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
    rows
}

/// The gradient of weights [rows, taps, columns] from that of the transformed ones, G^T u G. `points` are 36 slices of equal
/// length, each of which starts with a matrix [rows, columns] and may be longer.
pub fn gradient<E: Real>(points: &[E], [rows, columns]: [usize; 2], gradient: &mut [E]) {
    dispatch(Gradient { points, rows, columns, gradient });
}

struct Gradient<'a, E> {
    points: &'a [E],
    rows: usize,
    columns: usize,
    gradient: &'a mut [E],
}

impl<E: Real> WithSimd for Gradient<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { points, rows, columns, gradient } = self;
        let lanes = lanes::<E, S>();
        let (points, gradient) = (E::vectors::<S>(points), E::vectors_mut::<S>(gradient));
        let vectors = columns / lanes;
        let point = points.len() / POINTS;
        assert!(point >= rows * vectors && gradient.len() >= rows * TAPS * vectors);
        for o in 0..rows {
            for v in 0..vectors {
                let zero = Vector::splat(simd, E::zero());
                let mut columns = [[zero; SIDE]; KERNEL];
                for i in 0..SIDE {
                    let mut line = [zero; SIDE];
                    for j in 0..SIDE {
                        // SAFETY: each point's slice contains its matrix, by the assertion.
                        let value = unsafe { *points.get_unchecked((i * SIDE + j) * point + o * vectors + v) };
                        line[j] = Vector::new(simd, value);
                    }
                    let values = transform::weight_gradient(line);
                    for x in 0..KERNEL {
                        columns[x][i] = values[x];
                    }
                }
                for x in 0..KERNEL {
                    let values = transform::weight_gradient(columns[x]);
                    for y in 0..KERNEL {
                        gradient[(o * TAPS + y * KERNEL + x) * vectors + v] = values[y].lanes;
                    }
                }
            }
        }
    }
}
