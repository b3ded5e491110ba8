//! The scalar trait that networks and losses are generic over.

use super::{matmul::Factor, number::Number};

/// A number with all of our operations.
pub trait Real: Number + Factor {}

impl<E: Number + Factor> Real for E {}
