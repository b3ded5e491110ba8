//! Weights of linear layers, where a device keeps them.

use std::{
    fmt::Debug,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfdx::prelude::*;

use super::{
    Real,
    linear::{self, LinearKernel},
    seam::{Buffer, Matrix, Traced, traced, with_elements},
};

/// A device's weights of linear layers. They are what heads have most of: where they lie in a flat buffer of the host,
/// they are read there, and their gradients go to another, without a copy in a tensor.
pub trait Weights<E: Dtype>: LinearKernel<E> {
    /// A weight [out, in], and where its gradient goes.
    type Weight: Clone + Debug + 'static;

    /// y [n, out] = x [n, in] w^T.
    fn layer<T: Tape<E, Self> + Merge<T>>(
        x: Matrix<E, Self, T>,
        w: &Self::Weight,
    ) -> Result<Matrix<E, Self, T>, Self::Err>;

    /// The same of an `x` that needs no gradient.
    fn layer_of_constant(x: Matrix<E, Self>, w: &Self::Weight) -> Result<Traced<E, Self>, Self::Err> {
        Self::layer(traced(x), w)
    }

    /// The weight's values, off any tape.
    fn matrix(&self, w: &Self::Weight) -> Result<Matrix<E, Self>, Self::Err>;

    /// A tensor as a weight.
    #[cfg(any(test, feature = "cuda"))]
    fn weight(tensor: Matrix<E, Self>) -> Self::Weight;

    /// The gradient of a weight that a tensor was made; zero where it took no part.
    #[cfg(any(test, feature = "cuda"))]
    fn weight_gradient(
        &self,
        w: &Self::Weight,
        gradients: &mut Gradients<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err>;
}

/// y [n, out] = x [n, in] w^T.
///
/// # Errors
/// The device's, when memory runs out.
pub fn layer<E: Dtype, D: Weights<E>, T: Tape<E, D> + Merge<T>>(
    x: Matrix<E, D, T>,
    w: &D::Weight,
) -> Result<Matrix<E, D, T>, D::Err> {
    D::layer(x, w)
}

/// The same of an `x` that needs no gradient.
///
/// # Errors
/// The device's, when memory runs out.
pub fn layer_of_constant<E: Dtype, D: Weights<E>>(x: Matrix<E, D>, w: &D::Weight) -> Result<Traced<E, D>, D::Err> {
    D::layer_of_constant(x, w)
}

/// Gradients of a flat buffer of parameters, which operations on a tape add to.
#[derive(Clone, Debug, Default)]
pub struct Totals<E>(Arc<Mutex<Vec<E>>>);

impl<E: Real> Totals<E> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![E::zero(); len])))
    }

    /// The gradients themselves.
    pub fn lock(&self) -> MutexGuard<'_, Vec<E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A weight within a flat buffer of parameters of the host.
#[derive(Clone, Debug)]
pub struct FlatWeight<E> {
    params: Arc<Vec<E>>,
    /// Gradients of all of `params`; of none, where nothing is on a tape.
    totals: Totals<E>,
    range: Range<usize>,
    /// [out, in]
    shape: (usize, usize),
}

impl<E> FlatWeight<E> {
    /// The elements `range` of `params`, as a weight of `shape` [out, in].
    pub fn new(params: Arc<Vec<E>>, totals: Totals<E>, range: Range<usize>, shape: (usize, usize)) -> Self {
        assert_eq!(range.len(), shape.0 * shape.1);
        Self { params, totals, range, shape }
    }

    fn values(&self) -> &[E] {
        &self.params[self.range.clone()]
    }
}

impl<E: Real> FlatWeight<E>
where
    Cpu: Device<E, Err = CpuError>,
{
    /// x w^T
    fn times(&self, x: &Matrix<E, Cpu>) -> Result<Matrix<E, Cpu>, CpuError> {
        let y = with_elements(x, |x| linear::forward(x, self.values(), self.shape));
        x.device().try_tensor_from_vec(y, (x.shape().0, self.shape.0))
    }

    /// Adds gy^T x.
    fn add_gradient(&self, x: &Matrix<E, Cpu>, gy: &[E]) {
        with_elements(x, |x| linear::backward_w(x, self.shape, &mut self.totals.lock()[self.range.clone()], gy));
    }
}

impl<E: Real> Weights<E> for Cpu
where
    Cpu: LinearKernel<E, Err = CpuError> + Device<E>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    type Weight = FlatWeight<E>;

    fn layer<T: Tape<E, Self> + Merge<T>>(
        x: Matrix<E, Self, T>,
        w: &FlatWeight<E>,
    ) -> Result<Matrix<E, Self, T>, CpuError> {
        let (x, mut tape) = x.split_tape();
        let y = w.times(&x)?;
        let (y_ghost, w) = (y.ghost(), w.clone());
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            linear::backward_x(w.values(), w.shape, gradients.get_or_alloc_mut(&x)?, &gy);
            w.add_gradient(&x, &gy);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn layer_of_constant(x: Matrix<E, Self>, w: &FlatWeight<E>) -> Result<Traced<E, Self>, CpuError> {
        let mut tape = OwnedTape::default();
        let y = w.times(&x)?;
        let (y_ghost, w) = (y.ghost(), w.clone());
        tape.add_backward_op(move |gradients: &mut Gradients<E, Self>| {
            w.add_gradient(&x, gradients.get_or_alloc_mut(&y_ghost)?);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn matrix(&self, w: &FlatWeight<E>) -> Result<Matrix<E, Self>, CpuError> {
        self.try_tensor_from_vec(w.values().to_vec(), w.shape)
    }

    #[cfg(any(test, feature = "cuda"))]
    fn weight(tensor: Matrix<E, Self>) -> FlatWeight<E> {
        let (values, shape) = (super::seam::to_vec(&tensor), *tensor.shape());
        let (len, totals) = (values.len(), Totals::zeros(values.len()));
        FlatWeight::new(Arc::new(values), totals, 0..len, shape)
    }

    #[cfg(any(test, feature = "cuda"))]
    fn weight_gradient(&self, w: &FlatWeight<E>, _: &mut Gradients<E, Self>) -> Result<Matrix<E, Self>, CpuError> {
        self.try_tensor_from_vec(w.totals.lock()[w.range.clone()].to_vec(), w.shape)
    }
}
