//! Initial weights of a vision transformer, as in MoCo-v3.

use rand::RngExt;

use super::Vit;
use crate::ops::{
    Real,
    arena::Entry,
    random::{Normals, Purpose, stream},
    tokens::positions,
};

/// Standard deviation of the class token.
const CLS_TOKEN_STD: f64 = 1e-6;

impl Vit {
    /// Initial parameters and buffers. Linear layers are drawn from Xavier's uniform distribution; queries, keys and values
    /// count as separate matrices, and the patch embedding as a linear layer on patches. The class token is drawn from
    /// N(0, 1e-12). Biases are zero, and norms are the identity.
    pub fn init<E: Real>(&self, seed: u64) -> (Vec<E>, Vec<E>) {
        let mut params = vec![E::zero(); self.params.len()];
        for (i, entry) in self.params.entries.iter().enumerate() {
            let values = &mut params[entry.range()];
            let mut random = stream(seed, Purpose::Init, i as u64, 0, 0);
            if entry.name == "cls_token" {
                let mut normals = Normals::of(random);
                values.fill_with(|| E::of(normals.draw() * CLS_TOKEN_STD));
            } else if let Some(fans) = fans(entry) {
                let bound = (6.0 / fans as f64).sqrt();
                values.fill_with(|| E::of((2.0 * random.random::<f64>() - 1.0) * bound));
            } else if entry.name.ends_with(".weight") {
                values.fill(E::one());
            }
        }
        (params, positions::sin_cos(self.embedding.grid, self.shape.width))
    }
}

/// The sum of fan-in and fan-out of a linear layer's weight; None for other tensors.
fn fans(entry: &Entry) -> Option<usize> {
    match entry.shape[..] {
        [output, input] if entry.name.ends_with(".qkv.weight") => Some(output / 3 + input),
        [output, input] => Some(output + input),
        [output, input, height, width] => Some(output + input * height * width),
        _ => None,
    }
}
