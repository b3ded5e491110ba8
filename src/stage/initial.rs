//! Reads the weights of `encoder.init`: a safetensors file with torch's names, which must fit the encoder exactly.

use std::path::Path;

use anyhow::Context;

use super::{
    frozen::{CoverageError, Frozen, place},
    state_dict::{self, StateDict},
    weights::Tensor,
};
use crate::encoder::{Encoder, EncoderConfig};

/// Parameters and buffers of `encoder` from the file at `path`, and the prefix that was removed from its names
/// ([`state_dict::read`]).
///
/// # Errors
/// When the file cannot be read ([`state_dict::read`]), or does not fit the encoder exactly ([`CoverageError`]).
pub fn load(encoder: &Encoder, path: &Path) -> anyhow::Result<([Vec<f32>; 2], Option<String>)> {
    let at = || format!("encoder.init: {}", path.display());
    let entries = encoder.params().entries.iter().chain(&encoder.buffers().entries);
    let wanted = entries.map(|entry| entry.name.as_str()).collect();
    let StateDict { tensors, prefix } = state_dict::read(path, &wanted).with_context(at)?;
    let placed = place([encoder.params(), encoder.buffers()], &tensors);
    let hint = |error: CoverageError| match size_of_positions(&tensors) {
        Some(size) if error.missing.is_empty() && error.unexpected.is_empty() && error.reshaped.len() == 1 => {
            let said =
                format!("its positions are for images of {size} pixels: `encoder.image_size: {size}` keeps them");
            anyhow::Error::from(error).context(said)
        }
        _ => error.into(),
    };
    Ok((placed.map_err(hint).with_context(at)?, prefix))
}

/// The encoder of `config` for images of `size` pixels with the weights in the file at `path`.
///
/// # Errors
/// As [`load`], or when `config` describes no encoder.
pub fn frozen(config: &EncoderConfig, size: usize, path: &Path) -> anyhow::Result<Frozen> {
    let encoder = Encoder::new(config, size)?;
    let ([params, buffers], _) = load(&encoder, path)?;
    Ok(Frozen::of(encoder, params, buffers))
}

/// The image size in pixels that a transformer's positions are for; None without positions of square images.
fn size_of_positions(tensors: &[Tensor]) -> Option<usize> {
    let shape = |name: &str| tensors.iter().find(|(own, ..)| own == name).map(|(_, shape, _)| shape.as_slice());
    let ([_, positions, _], [_, _, patch, _]) = (shape("pos_embed")?, shape("patch_embed.proj.weight")?) else {
        return None;
    };
    let side = positions.checked_sub(1)?.isqrt();
    (side > 0 && side * side + 1 == *positions).then_some(side * patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encoder::{EncoderConfig, ResnetConfig, Stem, VitConfig},
        ops::golden::Golden,
    };
    use safetensors::{Dtype, serialize, tensor::TensorView};

    const STATE: &str = "../tests/golden/resnet18_w8_cifar_state.safetensors";

    fn encoder(width_multiplier: f32, stem: Stem) -> Encoder {
        Encoder::new(&EncoderConfig::Resnet18(ResnetConfig { width_multiplier, stem, init: None }), 32).unwrap()
    }

    #[test]
    fn a_state_dict_from_torchvision_is_taken_without_its_classifier() {
        let encoder = encoder(0.125, Stem::Cifar);
        let ([params, buffers], prefix) = load(&encoder, Path::new(STATE)).unwrap();
        assert_eq!(prefix, None);
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
            "encoder.init: ../tests/golden/resnet18_w8_cifar_state.safetensors: the weights do not fit the encoder; nothing was \
             computed\n  missing (0): none\n  unexpected (0): none\n  of another shape (1): conv1.weight [8, 3, 3, 3] instead \
             of [8, 3, 7, 7]"
        );
        let error =
            load(&encoder(0.125, Stem::Cifar), Path::new("../tests/golden/vit_w16_state.safetensors")).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("missing (100): conv1.weight, bn1.weight, "), "{message}");
        assert!(message.contains("unexpected (30): blocks.0.attn.proj.bias, "), "{message}");
        assert!(message.len() < 800, "{message}");
    }

    #[test]
    fn positions_for_other_sizes_name_the_key_that_keeps_them() {
        let vit = |size| {
            let config = VitConfig { patch_size: 8, ..VitConfig::default() };
            Encoder::new(&EncoderConfig::VitTiny(config), size).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vit.safetensors");
        let large = vit(48);
        let entries = large.params().entries.iter().chain(&large.buffers().entries);
        let zeros: Vec<_> = entries
            .map(|entry| (format!("model.{}", entry.name), entry.shape.clone(), vec![0; 4 * entry.len()]))
            .collect();
        let views =
            zeros.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        assert_eq!(load(&vit(48), &path).unwrap().1.as_deref(), Some("model."));
        let message = format!("{:#}", load(&vit(16), &path).unwrap_err());
        let expected = format!(
            "encoder.init: {}: its positions are for images of 48 pixels: `encoder.image_size: 48` keeps them: the weights do \
             not fit the encoder; nothing was computed\n  missing (0): none\n  unexpected (0): none\n  of another shape (1): \
             pos_embed [1, 37, 192] instead of [1, 5, 192]",
            path.display()
        );
        assert_eq!(message, expected);
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
    }
}
