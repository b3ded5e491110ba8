//! A bank of rows that is searched many times.

use super::{Factors, TopK, search};
use crate::ops::{
    Real,
    matmul::{Left, MatmulPrecision, Operand, WithOperand, elements},
    reductions::WHOLE_VECTORS,
};

/// Rows [m, dim] and, if the search rounds factors, a rounded and packed copy of the rows. Rounding them in each search would
/// take a seventh of its time.
#[derive(Clone, Debug)]
pub struct Bank<E> {
    dim: usize,
    matmul: MatmulPrecision,
    rows: Vec<E>,
    /// Empty if the search reads the factors unchanged.
    packed: Vec<E>,
}

impl<E: Real> Bank<E> {
    /// A bank of `rows` that is searched with factors in the precision `matmul`.
    ///
    /// # Panics
    /// When `dim` does not divide the length of `rows`.
    pub fn new(rows: Vec<E>, dim: usize, matmul: MatmulPrecision) -> Self {
        assert!(rows.len().is_multiple_of(dim));
        // Bf16 needs whole vectors of dimensions.
        let matmul = if dim.is_multiple_of(WHOLE_VECTORS) { matmul } else { MatmulPrecision::Full };
        let packed = matmul.run(Pack { rows: &rows, dim, first: 0, packed: Vec::new() });
        Self { dim, matmul, rows, packed }
    }

    /// All rows.
    pub fn rows(&self) -> &[E] {
        &self.rows
    }

    /// Sets the precision of the factors in the search.
    pub fn set_matmul_precision(&mut self, matmul: MatmulPrecision) {
        *self = Self::new(std::mem::take(&mut self.rows), self.dim, matmul);
    }

    /// Overwrites rows from row `first` on.
    pub fn write(&mut self, first: usize, rows: &[E]) {
        let Self { dim, matmul, .. } = *self;
        self.rows[first * dim..][..rows.len()].copy_from_slice(rows);
        let packed = std::mem::take(&mut self.packed);
        self.packed = matmul.run(Pack { rows, dim, first, packed });
    }

    /// Searches the bank like [`super::top_k`].
    pub fn top_k(&self, queries: &[E], k: usize, excluded: impl Fn(usize, usize) -> bool + Sync) -> TopK<E> {
        let bank = if self.packed.is_empty() { Factors::Plain(&self.rows) } else { Factors::Packed(&self.packed) };
        let rows = self.rows.len() / self.dim;
        search(queries, bank, [rows, self.dim], k, self.matmul, excluded)
    }
}

/// Packs rows and writes them to the packed rows from row `first` on. Rows beyond the end are appended.
struct Pack<'a, E> {
    rows: &'a [E],
    dim: usize,
    first: usize,
    packed: Vec<E>,
}

impl<E: Real> WithOperand<E> for Pack<'_, E> {
    type Output = Vec<E>;

    fn with<P: Operand<E>>(self) -> Vec<E> {
        let Self { rows, dim, first, mut packed } = self;
        if P::PACKS {
            let (row, count) = (elements::<E, P>(dim), rows.len() / dim);
            packed.resize(packed.len().max((first + count) * row), E::zero());
            Left::rows::<P>(rows, dim, &mut packed[first * row..][..count * row]);
        }
        packed
    }
}
