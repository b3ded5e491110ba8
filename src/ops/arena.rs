//! Layout of a flat buffer of named tensors, so that optimisers, averages and checkpoints are single passes over one buffer.

use super::Real;

/// One tensor in the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name in torch's convention, e.g. `layer1.0.conv1.weight`.
    pub name: String,
    /// Shape in torch's convention; convolutions are [out, in, height, width].
    pub shape: Vec<usize>,
    /// Index of the first element in the buffer.
    pub offset: usize,
}

impl Entry {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Range of the tensor's elements in the buffer.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// The tensor's values in torch's order. In the buffer convolutions are [out, height, width, in], the order that the
    /// channels-last kernels read; everything else is in torch's order already.
    pub fn to_torch<E: Real>(&self, values: &[E]) -> Vec<E> {
        match self.shape[..] {
            [out, input, height, width] => permute(values, [out, height * width, input]),
            _ => values.to_vec(),
        }
    }

    /// The inverse of [`Entry::to_torch`].
    pub fn from_torch<E: Real>(&self, values: &[E]) -> Vec<E> {
        match self.shape[..] {
            [out, input, height, width] => permute(values, [out, input, height * width]),
            _ => values.to_vec(),
        }
    }
}

/// Swaps the last two of three axes.
fn permute<E: Copy>(values: &[E], [a, b, c]: [usize; 3]) -> Vec<E> {
    assert_eq!(values.len(), a * b * c);
    let mut out = Vec::with_capacity(values.len());
    for block in values.chunks_exact(b * c) {
        for j in 0..c {
            out.extend((0..b).map(|i| block[i * c + j]));
        }
    }
    out
}

/// The tensors of a buffer, stored one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub entries: Vec<Entry>,
}

impl Layout {
    /// Appends a tensor and returns its index.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) -> usize {
        let offset = self.len();
        self.entries.push(Entry { name: name.into(), shape: shape.to_vec(), offset });
        self.entries.len() - 1
    }

    /// Appends all tensors of `other`, with `prefix` in front of their names.
    pub fn extend(&mut self, prefix: &str, other: &Layout) {
        for entry in &other.entries {
            self.push(format!("{prefix}{}", entry.name), &entry.shape);
        }
    }

    /// Number of elements of the whole buffer.
    pub fn len(&self) -> usize {
        self.entries.last().map_or(0, |last| last.range().end)
    }

    /// Whether the buffer has no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_are_kept_channels_last_and_come_back_in_torch_order() {
        let mut layout = Layout::default();
        layout.push("bias", &[3]);
        let conv = layout.push("conv.weight", &[1, 2, 1, 3]);
        let entry = &layout.entries[conv];
        assert_eq!(entry.range(), 3..9);
        let torch = [0.0f32, 1.0, 2.0, 10.0, 11.0, 12.0];
        let kept = entry.from_torch(&torch);
        assert_eq!(kept, [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        assert_eq!(entry.to_torch(&kept), torch);
    }
}
