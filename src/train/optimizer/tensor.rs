//! Division of flat buffers into tensors, for the optimisers on the host.

use crate::ops::{
    Real,
    arena::{Entry, Layout},
};

/// One tensor's share of the flat buffers.
pub struct TensorStep<'a, E> {
    pub entry: &'a Entry,
    pub params: &'a mut [E],
    pub gradients: &'a [E],
    pub moments: Vec<&'a mut [E]>,
}

impl<E> TensorStep<'_, E> {
    /// Whether the tensor is a weight. Weights have two axes or more; biases and batch norm's parameters have one.
    pub fn is_weight(&self) -> bool {
        self.entry.shape.len() > 1
    }
}

/// Divides the flat buffers into tensors.
pub fn by_tensor<'a, E: Real>(
    layout: &'a Layout,
    mut params: &'a mut [E],
    gradients: &'a [E],
    moments: &'a mut [Vec<E>],
) -> Vec<TensorStep<'a, E>> {
    let mut moments: Vec<&mut [E]> = moments.iter_mut().map(Vec::as_mut_slice).collect();
    let mut steps = Vec::with_capacity(layout.entries.len());
    for entry in &layout.entries {
        let own = params.split_off_mut(..entry.len()).expect("params cover the layout");
        let own_moments =
            moments.iter_mut().map(|m| m.split_off_mut(..entry.len()).expect("moments cover the layout")).collect();
        steps.push(TensorStep { entry, params: own, gradients: &gradients[entry.range()], moments: own_moments });
    }
    steps
}
