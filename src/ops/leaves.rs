//! The parameters of heads and losses on a device, and the way back for their gradients.

use std::{ops::Range, sync::Arc};

use dfdx::prelude::*;

#[cfg(any(test, feature = "cuda"))]
use super::arena::Entry;
use super::{
    Real,
    arena::Layout,
    seam::{Matrix, to_vec},
    weight::{FlatWeight, Totals, Weights},
};

/// One parameter on the device.
#[derive(Clone, Debug)]
enum Leaf<E: Dtype, D: Weights<E>> {
    Weight(D::Weight),
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
pub struct Leaves<E: Dtype, D: Weights<E>> {
    device: D,
    first: usize,
    leaves: Vec<Leaf<E, D>>,
}

impl<E: Real, D: Weights<E>> Leaves<E, D> {
    /// The entries `entries` from tensors that `matrix` and `vector` give. They must have one or two axes.
    ///
    /// # Errors
    /// Those of `matrix` and `vector`.
    #[cfg(any(test, feature = "cuda"))]
    pub fn from_tensors<Error>(
        device: &D,
        layout: &Layout,
        entries: Range<usize>,
        matrix: impl Fn(&Entry, (usize, usize)) -> Result<Matrix<E, D>, Error>,
        vector: impl Fn(&Entry, usize) -> Result<Tensor<(usize,), E, D>, Error>,
    ) -> Result<Self, Error> {
        let first = entries.start;
        let mut leaves = Vec::with_capacity(entries.len());
        for entry in &layout.entries[entries] {
            leaves.push(match entry.shape[..] {
                [rows, columns] => Leaf::Weight(D::weight(matrix(entry, (rows, columns))?)),
                [len] => Leaf::Vector(vector(entry, len)?),
                _ => panic!("{} has neither one nor two axes", entry.name),
            });
        }
        Ok(Self { device: device.clone(), first, leaves })
    }

    /// Shows `visit` the gradient of every leaf that is made of tensors, with its entry.
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
                    Leaf::Weight(weight) => Gradient::Matrix(self.device.weight_gradient(weight, gradients)?),
                    Leaf::Vector(leaf) => {
                        gradients.try_alloc_for(leaf)?;
                        Gradient::Vector(gradients.get(leaf))
                    }
                },
            );
        }
        Ok(())
    }

    /// The weight of an entry of the layout that has two axes.
    pub fn weight(&self, entry: usize) -> &D::Weight {
        match &self.leaves[entry - self.first] {
            Leaf::Weight(weight) => weight,
            Leaf::Vector(_) => panic!("entry {entry} is a vector"),
        }
    }

    /// Its values, off any tape.
    ///
    /// # Errors
    /// The device's, when memory runs out.
    pub fn matrix(&self, entry: usize) -> Result<Matrix<E, D>, D::Err> {
        self.device.matrix(self.weight(entry))
    }

    /// The vector of an entry of the layout.
    pub fn vector(&self, entry: usize) -> Tensor<(usize,), E, D> {
        match &self.leaves[entry - self.first] {
            Leaf::Vector(vector) => vector.clone(),
            Leaf::Weight(_) => panic!("entry {entry} is a matrix"),
        }
    }
}

impl<E: Real> Leaves<E, Cpu>
where
    Cpu: Weights<E, Weight = FlatWeight<E>, Err = CpuError>,
{
    /// The entries `entries` of `params`, which must have one or two axes. Gradients of matrices go to `totals` during the
    /// backward pass, those of vectors by [`Leaves::add_gradients`].
    ///
    /// # Errors
    /// The device's, when memory runs out.
    pub fn new(
        device: &Cpu,
        layout: &Layout,
        params: &Arc<Vec<E>>,
        totals: &Totals<E>,
        entries: Range<usize>,
    ) -> Result<Self, CpuError> {
        let first = entries.start;
        let mut leaves = Vec::with_capacity(entries.len());
        for entry in &layout.entries[entries] {
            leaves.push(match entry.shape[..] {
                [rows, columns] => {
                    Leaf::Weight(FlatWeight::new(params.clone(), totals.clone(), entry.range(), (rows, columns)))
                }
                [len] => Leaf::Vector(device.try_tensor_from_vec(params[entry.range()].to_vec(), (len,))?),
                _ => panic!("{} has neither one nor two axes", entry.name),
            });
        }
        Ok(Self { device: device.clone(), first, leaves })
    }

    /// All entries with the values `params`, and where their gradients go.
    #[cfg(test)]
    pub fn all(layout: &Layout, params: &[E]) -> (Self, Totals<E>) {
        let (params, totals) = (Arc::new(params.to_vec()), Totals::zeros(params.len()));
        let leaves = Self::new(&Cpu::default(), layout, &params, &totals, 0..layout.entries.len());
        (leaves.expect("memory"), totals)
    }

    /// Adds the vectors' gradients to `totals`, as those of matrices were during the backward pass.
    ///
    /// # Errors
    /// The device's, when memory runs out.
    pub fn add_gradients(
        &self,
        layout: &Layout,
        gradients: &mut Gradients<E, Cpu>,
        totals: &Totals<E>,
    ) -> Result<(), CpuError> {
        let mut totals = totals.lock();
        for (entry, leaf) in layout.entries[self.first..].iter().zip(&self.leaves) {
            let Leaf::Vector(leaf) = leaf else { continue };
            // A parameter that took no part has a gradient of zero.
            gradients.try_alloc_for(leaf)?;
            totals[entry.range()].iter_mut().zip(to_vec(&gradients.get(leaf))).for_each(|(total, g)| *total += g);
        }
        Ok(())
    }
}
