//! Leaf tensors on a device for parameters that live in a flat buffer, and the way back for their gradients.

use std::ops::Range;

use dfdx::prelude::*;
use rayon::prelude::*;

#[cfg(any(test, feature = "cuda"))]
use super::arena::Entry;
use super::{
    Real,
    arena::Layout,
    seam::{Matrix, with_elements},
    simd::vectorized,
};

/// Elements per task of an element-wise pass.
const PART: usize = 1 << 15;

/// One parameter on the device.
#[derive(Clone, Debug)]
enum Leaf<E: Dtype, D: Device<E>> {
    Matrix(Matrix<E, D>),
    Vector(Tensor<(usize,), E, D>),
}

/// The gradient of one parameter, on the device.
#[cfg(any(test, feature = "cuda"))]
pub enum Gradient<E: Dtype, D: Device<E>> {
    Matrix(Matrix<E, D>),
    Vector(Tensor<(usize,), E, D>),
}

/// The parameters of some entries of a layout, on a device.
#[derive(Clone, Debug)]
pub struct Leaves<E: Dtype, D: Device<E>> {
    first: usize,
    leaves: Vec<Leaf<E, D>>,
}

impl<E: Real, D: Device<E>> Leaves<E, D> {
    /// Copies the entries `entries` of `params` to the device. They must have one or two axes.
    ///
    /// # Errors
    /// The device's, when memory runs out.
    pub fn new(device: &D, layout: &Layout, params: &[E], entries: Range<usize>) -> Result<Self, D::Err> {
        let first = entries.start;
        let mut leaves = Vec::with_capacity(entries.len());
        for entry in &layout.entries[entries] {
            let values = params[entry.range()].to_vec();
            leaves.push(match entry.shape[..] {
                [rows, columns] => Leaf::Matrix(device.try_tensor_from_vec(values, (rows, columns))?),
                [len] => Leaf::Vector(device.try_tensor_from_vec(values, (len,))?),
                _ => panic!("{} has neither one nor two axes", entry.name),
            });
        }
        Ok(Self { first, leaves })
    }

    /// The entries `entries` from tensors that `matrix` and `vector` give. They must have one or two axes.
    ///
    /// # Errors
    /// Those of `matrix` and `vector`.
    #[cfg(any(test, feature = "cuda"))]
    pub fn from_tensors<Error>(
        layout: &Layout,
        entries: Range<usize>,
        matrix: impl Fn(&Entry, (usize, usize)) -> Result<Matrix<E, D>, Error>,
        vector: impl Fn(&Entry, usize) -> Result<Tensor<(usize,), E, D>, Error>,
    ) -> Result<Self, Error> {
        let first = entries.start;
        let mut leaves = Vec::with_capacity(entries.len());
        for entry in &layout.entries[entries] {
            leaves.push(match entry.shape[..] {
                [rows, columns] => Leaf::Matrix(matrix(entry, (rows, columns))?),
                [len] => Leaf::Vector(vector(entry, len)?),
                _ => panic!("{} has neither one nor two axes", entry.name),
            });
        }
        Ok(Self { first, leaves })
    }

    /// Shows `visit` the gradient of every leaf, with its entry.
    ///
    /// # Errors
    /// The device's, when memory runs out.
    #[cfg(any(test, feature = "cuda"))]
    pub fn each_gradient(
        &self,
        layout: &Layout,
        gradients: &mut Gradients<E, D>,
        mut visit: impl FnMut(&Entry, Gradient<E, D>),
    ) -> Result<(), D::Err> {
        for (entry, leaf) in layout.entries[self.first..].iter().zip(&self.leaves) {
            // A parameter that took no part has a gradient of zero.
            visit(
                entry,
                match leaf {
                    Leaf::Matrix(leaf) => {
                        gradients.try_alloc_for(leaf)?;
                        Gradient::Matrix(gradients.get(leaf))
                    }
                    Leaf::Vector(leaf) => {
                        gradients.try_alloc_for(leaf)?;
                        Gradient::Vector(gradients.get(leaf))
                    }
                },
            );
        }
        Ok(())
    }

    /// The matrix of an entry of the layout.
    pub fn matrix(&self, entry: usize) -> Matrix<E, D> {
        match &self.leaves[entry - self.first] {
            Leaf::Matrix(matrix) => matrix.clone(),
            Leaf::Vector(_) => panic!("entry {entry} is a vector"),
        }
    }

    /// The vector of an entry of the layout.
    pub fn vector(&self, entry: usize) -> Tensor<(usize,), E, D> {
        match &self.leaves[entry - self.first] {
            Leaf::Vector(vector) => vector.clone(),
            Leaf::Matrix(_) => panic!("entry {entry} is a matrix"),
        }
    }
}

impl<E: Real> Leaves<E, Cpu>
where
    Cpu: Device<E, Err = CpuError>,
{
    /// Adds the leaves' gradients to the flat buffer `totals`.
    ///
    /// # Errors
    /// The device's, when memory runs out.
    pub fn add_gradients(
        &self,
        layout: &Layout,
        gradients: &mut Gradients<E, Cpu>,
        totals: &mut [E],
    ) -> Result<(), CpuError> {
        for (entry, leaf) in layout.entries[self.first..].iter().zip(&self.leaves) {
            let totals = &mut totals[entry.range()];
            // A parameter that took no part has a gradient of zero.
            match leaf {
                Leaf::Matrix(leaf) => {
                    gradients.try_alloc_for(leaf)?;
                    with_elements(&gradients.get(leaf), |gradient| add(gradient, totals));
                }
                Leaf::Vector(leaf) => {
                    gradients.try_alloc_for(leaf)?;
                    with_elements(&gradients.get(leaf), |gradient| add(gradient, totals));
                }
            }
        }
        Ok(())
    }
}

fn add<E: Real>(gradient: &[E], totals: &mut [E]) {
    totals.par_chunks_mut(PART).zip(gradient.par_chunks(PART)).for_each(|(totals, gradient)| {
        vectorized(
            #[inline(always)]
            || {
                for (total, g) in totals.iter_mut().zip(gradient) {
                    *total += *g;
                }
            },
        );
    });
}
