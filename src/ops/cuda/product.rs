//! Matrix products that a device's library may compute in place of our kernels.

use super::{Gpu, GpuError, Kind, View};

/// Products D = op(A) op(B) of matrices in column-major order, which libraries of linear algebra expect. A sum of products is taken
/// in f32, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of D.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// Products per sum.
    pub k: usize,
    /// Whether A is stored as [k, m] instead of [m, k], and B as [n, k] instead of [k, n].
    pub transposed: [bool; 2],
    /// Type of the elements of A and B. f32 is read as tf32.
    pub factors: Kind,
    /// Type of the elements of D.
    pub result: Kind,
    /// Number of products. The matrices of one follow those of the one before.
    pub count: usize,
    /// The columns and the number of products that the algorithm is chosen for. The same algorithm gives an element of D the same
    /// bits, however many columns and products there are beside it.
    pub chosen_for: [usize; 2],
}

/// The matrices of products.
#[derive(Clone, Copy, Debug)]
pub struct Matrices<T> {
    pub a: T,
    pub b: T,
    /// A value per row of D, of D's type. Added to the product if given.
    pub bias: Option<T>,
    /// A matrix like D, which may be D's own memory. Added to the product if given.
    pub added: Option<T>,
    pub d: T,
}

impl Gpu {
    /// Computes products with the device's library.
    ///
    /// # Errors
    /// When the device has no library ([`Traits::library`](super::Traits::library)), or fails.
    ///
    /// # Panics
    /// When a view is of another kind, has fewer elements, or does not begin at a multiple of 16 bytes.
    pub fn multiply(&self, product: Product, of: Matrices<View>) -> Result<(), GpuError> {
        let Product { m, n, k, factors, result, count, .. } = product;
        let at = |view: View, kind: Kind, len: usize| {
            let fits = view.kind() == kind && len <= view.len() && view.is_aligned(16);
            assert!(fits, "{len} {kind:?} wanted, {view:?} given");
            view.address()
        };
        let of = Matrices {
            a: at(of.a, factors, count * m * k),
            b: at(of.b, factors, count * k * n),
            bias: of.bias.map(|bias| at(bias, result, m)),
            added: of.added.map(|added| at(added, result, count * m * n)),
            d: at(of.d, result, count * m * n),
        };
        // SAFETY: each view has the elements that the product reads or writes.
        unsafe { self.driver().multiply(product, of) }
    }
}
