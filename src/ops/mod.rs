//! Tensor operations that dfdx lacks or does slowly; the only place that knows dfdx's seam.

pub mod arena;
pub mod gemm;
pub mod random;
mod real;

pub use real::Real;
