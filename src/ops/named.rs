//! Named tensors on the host, as checkpoints and artifacts store them.

/// A tensor with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor<E> {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Values<E>,
}

/// Values in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Values<E> {
    Real(Vec<E>),
    Integer(Vec<i64>),
}

impl<E> NamedTensor<E> {
    /// A tensor of reals.
    pub fn real(name: impl Into<String>, shape: &[usize], values: Vec<E>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { name: name.into(), shape: shape.to_vec(), values: Values::Real(values) }
    }

    /// A tensor of integers.
    pub fn integer(name: impl Into<String>, shape: &[usize], values: Vec<i64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { name: name.into(), shape: shape.to_vec(), values: Values::Integer(values) }
    }
}
