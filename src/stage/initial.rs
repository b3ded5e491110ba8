//! Weights that training starts from: a safetensors file of torch's names, checked to be exactly the encoder's.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors};

use super::{
    frozen::{Frozen, place},
    weights::Tensor,
};
use crate::encoder::{Encoder, EncoderConfig};

/// Parameters and buffers of `encoder` from the file at `path`. A classifier (`fc.*`, `head.*`) and batch norm's
/// `num_batches_tracked`, which are no part of an encoder, are passed over.
///
/// # Errors
/// When the file cannot be read, is damaged, holds numbers other than f32 or not finite, or is not exactly the encoder
/// ([`super::frozen::CoverageError`]).
pub fn load(encoder: &Encoder, path: &Path) -> anyhow::Result<[Vec<f32>; 2]> {
    let at = || format!("encoder.init: {}", path.display());
    let weights = read(path).with_context(at)?;
    place([encoder.params(), encoder.buffers()], &weights).with_context(at)
}

/// The encoder of `config` for images of `size` pixels with the weights in the file at `path`.
///
/// # Errors
/// As [`load`], or when `config` describes no encoder.
pub fn frozen(config: &EncoderConfig, size: usize, path: &Path) -> anyhow::Result<Frozen> {
    let encoder = Encoder::new(config, size)?;
    let [params, buffers] = load(&encoder, path)?;
    Ok(Frozen::of(encoder, params, buffers))
}

fn read(path: &Path) -> anyhow::Result<Vec<Tensor>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).context("not a complete safetensors file")?;
    let mut weights = Vec::new();
    for (name, view) in file.iter().filter(|(name, _)| !is_passed_over(name)) {
        ensure!(view.dtype() == Dtype::F32, "tensor {name} has dtype {:?}, expected F32", view.dtype());
        let (values, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!("tensor {name} holds {} at index {at}", values[at]);
        }
        weights.push((name.to_owned(), view.shape().to_vec(), values));
    }
    // The library's order changes from run to run, and messages name tensors in the order they come in.
    weights.sort_by(|a: &Tensor, b: &Tensor| a.0.cmp(&b.0));
    Ok(weights)
}

fn is_passed_over(name: &str) -> bool {
    name.starts_with("fc.") || name.starts_with("head.") || name.ends_with(".num_batches_tracked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encoder::{ResnetConfig, Stem},
        ops::golden::Golden,
    };

    const STATE: &str = "tests/golden/resnet18_w8_cifar_state.safetensors";

    fn encoder(width_multiplier: f32, stem: Stem) -> Encoder {
        Encoder::new(&EncoderConfig::Resnet18(ResnetConfig { width_multiplier, stem, init: None }), 32).unwrap()
    }

    #[test]
    fn a_state_dict_from_torchvision_is_taken_without_its_classifier() {
        let encoder = encoder(0.125, Stem::Cifar);
        let [params, buffers] = load(&encoder, Path::new(STATE)).unwrap();
        let state = Golden::load("resnet18_w8_cifar_state");
        for (layout, values) in [(encoder.params(), &params), (encoder.buffers(), &buffers)] {
            for entry in &layout.entries {
                assert_eq!(entry.to_torch(&values[entry.range()]), state.get::<f32>(&entry.name), "{}", entry.name);
            }
        }
    }

    #[test]
    fn another_networks_file_is_refused_by_name() {
        let error = load(&encoder(0.125, Stem::Imagenet), Path::new(STATE)).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "encoder.init: tests/golden/resnet18_w8_cifar_state.safetensors: the weights do not fit the encoder; nothing was \
             computed\n  missing (0): none\n  unexpected (0): none\n  of another shape (1): conv1.weight [8, 3, 3, 3] instead \
             of [8, 3, 7, 7]"
        );
        let error =
            load(&encoder(0.125, Stem::Cifar), Path::new("tests/golden/vit_w16_state.safetensors")).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("missing (100): conv1.weight, bn1.weight, "), "{message}");
        assert!(message.contains("unexpected (30): blocks.0.attn.proj.bias, "), "{message}");
    }

    #[test]
    fn what_is_no_file_of_weights_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let message = || format!("{:#}", load(&encoder(0.125, Stem::Cifar), &path).unwrap_err());
        assert!(message().starts_with(&format!("encoder.init: {}: No such file", path.display())), "{}", message());
        let mut bytes = std::fs::read(STATE).unwrap();
        bytes.truncate(bytes.len() / 2);
        std::fs::write(&path, bytes).unwrap();
        assert!(message().contains("w.safetensors: not a complete safetensors file"), "{}", message());
        std::fs::copy("tests/golden/traj_soft_ce.safetensors", &path).unwrap();
        assert!(message().contains("has dtype"), "{}", message());
    }
}
