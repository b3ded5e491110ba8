//! Element-wise passes over rows of channels, on the calling thread.
//!
//! The passes go vector by vector. A compiler would turn a plain loop over a row into one that takes several vectors at a time
//! and the rest element by element. With few channels, that rest is the whole row. Where rows are no whole vectors, several rows
//! are taken as one that is, with the factors of the channels repeated.

use std::borrow::Cow;

use pulp::{Scalar, Simd, WithSimd};

use super::{Affine, Residual};
use crate::ops::{
    Real,
    reductions::WHOLE_VECTORS,
    simd,
    vector::{Vector, lanes},
};

/// Fewest groups of rows for which factors are repeated.
const LEAST_GROUPS: usize = 8;

/// A computation of each element of `out` [rows, channels].
trait Pass<E: Real> {
    /// The new value of the vector at `at`, from its old value `out`. It is in the columns of vector `column`. Must be inlined
    /// to be fast.
    fn vector<S: Simd>(&self, simd: S, at: usize, column: usize, out: Vector<E, S>) -> Vector<E, S>;
}

struct Run<'a, E, P> {
    pass: P,
    channels: usize,
    out: &'a mut [E],
}

impl<E: Real, P: Pass<E>> WithSimd for Run<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, channels, out } = self;
        let columns = channels / lanes::<E, S>();
        for (row, out) in E::vectors_mut::<S>(out).chunks_exact_mut(columns).enumerate() {
            for (column, out) in out.iter_mut().enumerate() {
                *out = pass.vector(simd, row * columns + column, column, Vector::new(simd, *out)).lanes;
            }
        }
    }
}

fn run<E: Real, P: Pass<E>>(pass: P, channels: usize, out: &mut [E]) {
    dispatch(channels, Run { pass, channels, out });
}

/// How many rows of `channels` elements to take as one so that they are whole vectors, and how many of the `all` elements such
/// groups hold. The rest is less than a group.
fn grouped(channels: usize, all: usize) -> (usize, usize) {
    let rows = WHOLE_VECTORS >> channels.trailing_zeros().min(WHOLE_VECTORS.trailing_zeros());
    let group = rows * channels;
    if rows > 1 && all >= LEAST_GROUPS * group { (rows, all - all % group) } else { (1, all) }
}

/// The factors of a row's channels, for `rows` rows as one.
fn repeated<E: Real>(factors: &[E], rows: usize) -> Cow<'_, [E]> {
    if rows == 1 { Cow::Borrowed(factors) } else { Cow::Owned(factors.repeat(rows)) }
}

/// Runs `work` on rows of `channels` elements: vector by vector if these are whole vectors, else element by element.
pub fn dispatch<W: WithSimd>(channels: usize, work: W) -> W::Output {
    if channels.is_multiple_of(WHOLE_VECTORS) { simd::dispatch(work) } else { work.with_simd(Scalar::new()) }
}

/// The vector at `at`.
#[inline(always)]
pub fn at<E: Real, S: Simd>(simd: S, values: &[E], at: usize) -> Vector<E, S> {
    Vector::new(simd, E::vectors::<S>(values)[at])
}

impl<E: Real> Affine<E> {
    /// The map of `rows` rows as one.
    fn repeated(&self, rows: usize) -> Cow<'_, Self> {
        match rows {
            1 => Cow::Borrowed(self),
            _ => Cow::Owned(Self { scale: self.scale.repeat(rows), shift: self.shift.repeat(rows) }),
        }
    }

    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, x: Vector<E, S>, column: usize) -> Vector<E, S> {
        x * at(simd, &self.scale, column) + at(simd, &self.shift, column)
    }
}

struct Normalise<'a, E> {
    x: &'a [E],
    affine: &'a Affine<E>,
    floor: E,
}

impl<E: Real> Normalise<'_, E> {
    /// The value, or the floor if that is larger. Keeps a NaN, so that it is noticed.
    #[inline(always)]
    fn rectified<S: Simd>(&self, simd: S, value: Vector<E, S>) -> Vector<E, S> {
        let floor = Vector::splat(simd, self.floor);
        value.less_than(floor, floor, value)
    }

    #[inline(always)]
    fn normalised<S: Simd>(&self, simd: S, i: usize, column: usize) -> Vector<E, S> {
        self.affine.of(simd, at(simd, self.x, i), column)
    }
}

impl<E: Real> Pass<E> for Normalise<'_, E> {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, i: usize, column: usize, _: Vector<E, S>) -> Vector<E, S> {
        self.rectified(simd, self.normalised(simd, i, column))
    }
}

struct NormaliseAndAdd<'a, E> {
    of: Normalise<'a, E>,
    residual: &'a [E],
}

impl<E: Real> Pass<E> for NormaliseAndAdd<'_, E> {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, i: usize, column: usize, _: Vector<E, S>) -> Vector<E, S> {
        self.of.rectified(simd, self.of.normalised(simd, i, column) + at(simd, self.residual, i))
    }
}

struct NormaliseBoth<'a, E> {
    of: Normalise<'a, E>,
    residual: Normalise<'a, E>,
}

impl<E: Real> Pass<E> for NormaliseBoth<'_, E> {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, i: usize, column: usize, _: Vector<E, S>) -> Vector<E, S> {
        self.of.rectified(simd, self.of.normalised(simd, i, column) + self.residual.normalised(simd, i, column))
    }
}

/// out = x scale + shift + residual, through a ReLU if `relu`. The residual has the same elements as `out`.
pub fn normalise<E: Real>(x: &[E], affine: &Affine<E>, residual: Residual<E>, relu: bool, out: &mut [E]) {
    let (rows, most) = grouped(affine.scale.len(), out.len());
    let ((x, x_rest), (out, rest)) = (x.split_at(most), out.split_at_mut(most));
    if !rest.is_empty() {
        normalise(x_rest, affine, residual.part(most..most + rest.len()), relu, rest);
    }
    let floor = if relu { E::zero() } else { E::neg_infinity() };
    let affine = &*affine.repeated(rows);
    let (of, channels) = (Normalise { x, affine, floor }, affine.scale.len());
    match residual.part(0..most) {
        Residual::None => run(of, channels, out),
        Residual::Plain(residual) => run(NormaliseAndAdd { of, residual }, channels, out),
        Residual::Normalised(x, affine) => {
            let affine = &*affine.repeated(rows);
            run(NormaliseBoth { of, residual: Normalise { x, affine, floor } }, channels, out);
        }
    }
}

/// Selects the elements of a gradient that pass, by the input x of the normalisation whose output the gradient belongs to.
pub trait Gate<E: Real>: Copy {
    /// The gradient's vector `g`, with zeros for elements that do not pass. It is in the columns of vector `column`. Must be
    /// inlined to be fast.
    fn pass<S: Simd>(&self, simd: S, x: Vector<E, S>, g: Vector<E, S>, column: usize) -> Vector<E, S>;
}

/// Passes the whole gradient.
#[derive(Clone, Copy)]
pub struct Open;

impl<E: Real> Gate<E> for Open {
    #[inline(always)]
    fn pass<S: Simd>(&self, _: S, _: Vector<E, S>, g: Vector<E, S>, _: usize) -> Vector<E, S> {
        g
    }
}

/// Passes the gradient where the affine map of x is positive, as a ReLU does.
impl<E: Real> Gate<E> for &Affine<E> {
    #[inline(always)]
    fn pass<S: Simd>(&self, simd: S, x: Vector<E, S>, g: Vector<E, S>, column: usize) -> Vector<E, S> {
        let zero = Vector::splat(simd, E::zero());
        zero.less_than(self.of(simd, x, column), g, zero)
    }
}

struct Combine<'a, E, G> {
    g: &'a [E],
    gate: G,
    /// Per channel: the factor of g, the factor of x, and a constant term.
    factors: [&'a [E]; 3],
}

impl<E: Real, G: Gate<E>> Pass<E> for Combine<'_, E, G> {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, i: usize, column: usize, x: Vector<E, S>) -> Vector<E, S> {
        let [a, b, d] = self.factors;
        let g = self.gate.pass(simd, x, at(simd, self.g, i), column);
        at(simd, a, column) * g + at(simd, b, column) * x + at(simd, d, column)
    }
}

/// x = a g + b x + d with factors [a, b, d] per channel. With `relu_of`, g counts only where that map of x is positive.
pub fn combine<E: Real>(x: &mut [E], g: &[E], relu_of: Option<&Affine<E>>, factors: [&[E]; 3]) {
    let (rows, most) = grouped(factors[0].len(), x.len());
    let ((x, x_rest), (g, g_rest)) = (x.split_at_mut(most), g.split_at(most));
    if !x_rest.is_empty() {
        combine(x_rest, g_rest, relu_of, factors);
    }
    let factors = &factors.map(|factors| repeated(factors, rows));
    let (factors, channels) = (factors.each_ref().map(|factors| &**factors), factors[0].len());
    match relu_of.map(|affine| affine.repeated(rows)) {
        Some(affine) => run(Combine { g, gate: &*affine, factors }, channels, x),
        None => run(Combine { g, gate: Open, factors }, channels, x),
    }
}
