//! Tensor operations that dfdx lacks, or that are slow in dfdx. The module [`tensor`] connects them to dfdx's autograd tape.

pub mod arena;
pub mod attention;
pub mod batch_norm;
pub mod buffers;
pub mod contrast;
pub mod conv2d;
pub mod cuda;
pub mod gelu;
pub mod gemm;
#[cfg(test)]
pub mod golden;
pub mod group_dots;
pub mod layer_norm;
pub mod linear;
mod math;
pub mod matmul;
pub mod matrix;
pub mod named;
pub mod normalize;
mod number;
pub mod parts;
pub mod pca;
pub mod pending;
pub mod pool;
pub mod random;
mod real;
pub mod reductions;
pub mod scratch;
pub mod simd;
pub mod sinkhorn;
pub mod softmax;
pub mod tensor;
pub mod tokens;
pub mod topk;
pub mod tsne;
pub mod vector;

pub use math::MathFunctions;
pub use number::Number;
pub use real::Real;
