//! Exports the trained encoder of a run as safetensors, with torchvision's or timm's names, so that
//! `load_state_dict(..., strict=True)` loads it.

use std::collections::HashMap;

use anyhow::Context;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value};

use super::{Run, artifacts::stage};
use crate::{
    artifact::{Artifact, Store},
    stage::weights::{Tensor, read_weights, to_bytes},
    tables::{self, CLASSIFIER_CLASSES, column},
};

/// Number of classes of torchvision's and timm's own classifiers.
const CLASSES: usize = 1000;

/// The classifier to write. torchvision's and timm's networks have one, so strict loading needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// The linear probe, folded to classify raw features; zeros if the run has none
    #[default]
    Auto,
    /// Zeros for 1000 classes, the default of torchvision and timm
    Zeros,
    /// None: only the encoder
    None,
}

/// An exported encoder.
pub struct Exported {
    /// Content of the safetensors file.
    pub bytes: Vec<u8>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of classes of the classifier and where it comes from (`probe` or `zeros`).
    pub head: Option<(usize, &'static str)>,
}

/// The encoder of `run`.
///
/// Each batch norm also has `num_batches_tracked` (0, int64), as in torch, which does not read it
/// if the momentum of the norm is fixed. The header's metadata (all text) holds `format` = `pt`, the run, the encoder's
/// settings (`arch`, `width_multiplier`, `stem`, `patch_size`, `heads`, `image_size`), and how images have to be prepared
/// (`size`, `mean`, `std`).
///
/// # Errors
/// When artifacts of the run are missing or damaged.
pub fn export(store: &Store, run: &Run, head: Head) -> anyhow::Result<Exported> {
    let mut tensors = read_weights(stage(store, run, "pretrain")?.read(tables::WEIGHTS.name)?)?;
    let (mut fc, mut labels) = (None, Vec::new());
    if head == Head::Auto && run.record.stages.iter().any(|stage| stage.stage == "linear_probe") {
        let probe = stage(store, run, "linear_probe")?;
        if probe.has_table(tables::CLASSIFIER.name) {
            fc = Some((read_weights(probe.read(tables::CLASSIFIER.name)?)?, "probe"));
            labels = read_labels(&probe)?;
        }
    }
    if head != Head::None && fc.is_none() {
        fc = Some((zeros(&tensors)?, "zeros"));
    }
    let mut metadata = metadata(run);
    let mut origin = None;
    if let Some((fc, from)) = fc {
        let classes = fc.iter().find(|tensor| tensor.0 == "fc.bias").map_or(0, |bias| bias.2.len());
        origin = Some((classes, from));
        metadata.insert("head".into(), from.into());
        let head = head_name(&tensors);
        tensors.extend(fc.into_iter().map(|(name, shape, values)| (name.replacen("fc.", head, 1), shape, values)));
    }
    if !labels.is_empty() {
        metadata.insert("labels".into(), serde_json::to_string(&labels)?.into());
    }
    let (bytes, count) = serialize(&tensors, metadata)?;
    Ok(Exported { bytes, tensors: count, head: origin })
}

fn read_labels(probe: &Artifact) -> anyhow::Result<Vec<i64>> {
    let mut labels = Vec::new();
    for batch in probe.read(CLASSIFIER_CLASSES.name)? {
        labels.extend(CLASSIFIER_CLASSES.integers(&batch?, column::LABEL)?.values());
    }
    Ok(labels)
}

/// Prefix of the tensors of the classifier: `fc` in torchvision, or `head` in timm, whose networks end with a norm.
fn head_name(tensors: &[Tensor]) -> &'static str {
    if tensors.iter().any(|(name, ..)| name == "norm.weight") { "head." } else { "fc." }
}

/// A classifier of zeros. Its width is that of the last norm of the encoder.
fn zeros(tensors: &[Tensor]) -> anyhow::Result<Vec<Tensor>> {
    let is_last = |name: &str| name.starts_with("layer4.") || name == "norm.weight";
    let last = tensors.iter().rfind(|(name, shape, _)| is_last(name) && shape.len() == 1);
    let dim = last.context("the weights have neither layer4 nor a last norm")?.2.len();
    Ok(vec![
        ("fc.weight".into(), vec![CLASSES, dim], vec![0.0; CLASSES * dim]),
        ("fc.bias".into(), vec![CLASSES], vec![0.0; CLASSES]),
    ])
}

fn metadata(run: &Run) -> Map<String, Value> {
    let mut metadata = Map::new();
    let mut put = |key: &str, value: Option<&Value>| {
        if let Some(value) = value {
            metadata.insert(key.into(), crate::spec::plain(value).into());
        }
    };
    put("format", Some(&"pt".into()));
    put("run", Some(&run.record.run.as_str().into()));
    for key in ["arch", "width_multiplier", "stem", "patch_size", "heads", "image_size"] {
        put(key, run.spec["encoder"].get(key));
    }
    for key in ["size", "mean", "std"] {
        put(key, run.spec["augmentations"].get(key));
    }
    metadata
}

/// The file and its number of tensors. Equal weights give equal bytes.
fn serialize(tensors: &[Tensor], mut metadata: Map<String, Value>) -> anyhow::Result<(Vec<u8>, usize)> {
    let named = |name: &String| format!("tensor {name}");
    let data: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, values)| (name.clone(), shape.clone(), Dtype::F32, to_bytes(values)))
        .chain(tensors.iter().filter_map(|(name, ..)| {
            let norm = name.strip_suffix(".running_mean")?;
            Some((format!("{norm}.num_batches_tracked"), Vec::new(), Dtype::I64, 0i64.to_le_bytes().to_vec()))
        }))
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, dtype, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).with_context(|| named(name))?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, Some(HashMap::new()))?;

    // The library takes metadata as a hash map, whose order changes from run to run. So the header is rewritten in a fixed
    // order.
    let header_length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let (header, values) = bytes[8..].split_at(header_length);
    let mut header: Map<String, Value> = serde_json::from_slice(header)?;
    metadata.sort_keys();
    header.insert("__metadata__".into(), metadata.into());
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let bytes = [&(text.len() as u64).to_le_bytes(), text.as_slice(), values].concat();
    Ok((bytes, data.len()))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::{
        encoder::{Encoder, EncoderConfig, ResnetConfig, Stem},
        report::samples::run,
    };

    fn weights() -> Vec<Tensor> {
        vec![
            ("conv1.weight".into(), vec![2, 1, 1, 1], vec![1.5, -2.0]),
            ("layer4.0.bn1.weight".into(), vec![3], vec![1.0, 2.0, 3.0]),
            ("layer4.0.bn1.running_mean".into(), vec![3], vec![0.1, 0.2, 0.3]),
        ]
    }

    #[test]
    fn the_file_reads_back_with_torchs_extras_and_sorted_metadata() {
        let spec = "encoder: {arch: resnet18, width_multiplier: 0.25, stem: cifar}\naugmentations: {size: 32, mean: [0.5, 0.5, 0.5]}";
        let (bytes, count) = serialize(&weights(), metadata(&run("r-1", spec, &[]))).unwrap();
        assert_eq!(bytes, serialize(&weights(), metadata(&run("r-1", spec, &[]))).unwrap().0);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!((file.len(), count), (4, 4));
        let conv = file.tensor("conv1.weight").unwrap();
        assert_eq!(
            (conv.dtype(), conv.shape(), conv.data()),
            (Dtype::F32, &[2, 1, 1, 1][..], &to_bytes(&[1.5, -2.0])[..])
        );
        let tracked = file.tensor("layer4.0.bn1.num_batches_tracked").unwrap();
        assert_eq!((tracked.dtype(), tracked.shape(), tracked.data()), (Dtype::I64, &[][..], &[0; 8][..]));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut pairs: Vec<_> = header.metadata().clone().unwrap().into_iter().collect();
        pairs.sort();
        let expected = [
            ("arch", "resnet18"),
            ("format", "pt"),
            ("mean", "[0.5,0.5,0.5]"),
            ("run", "r-1"),
            ("size", "32"),
            ("stem", "cifar"),
            ("width_multiplier", "0.25"),
        ];
        assert!(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{pairs:?}");
    }

    #[test]
    fn names_types_and_shapes_are_those_of_a_state_dict_from_torchvision() {
        let bytes = std::fs::read("tests/golden/resnet18_w8_cifar_state.safetensors").unwrap();
        let torchvisions = SafeTensors::deserialize(&bytes).unwrap();
        let config = EncoderConfig::Resnet18(ResnetConfig { width_multiplier: 0.125, stem: Stem::Cifar, init: None });
        let encoder = Encoder::new(&config, 32).unwrap();
        let entries = encoder.params().entries.iter().chain(&encoder.buffers().entries);
        let mut weights: Vec<Tensor> =
            entries.map(|entry| (entry.name.clone(), entry.shape.clone(), vec![0.5; entry.len()])).collect();
        weights.push(("fc.weight".into(), vec![10, 64], vec![0.0; 640]));
        weights.push(("fc.bias".into(), vec![10], vec![0.0; 10]));
        let (bytes, _) = serialize(&weights, Map::new()).unwrap();
        let ours = SafeTensors::deserialize(&bytes).unwrap();
        let described = |file: &SafeTensors| {
            let mut all: Vec<_> =
                file.iter().map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec())).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(described(&ours), described(&torchvisions));
    }

    #[test]
    fn a_head_of_zeros_has_torchvisions_or_timms_shape_and_name() {
        let fc = zeros(&weights()).unwrap();
        assert_eq!((fc[0].1.as_slice(), fc[1].1.as_slice()), (&[1000, 3][..], &[1000][..]));
        assert_eq!(head_name(&weights()), "fc.");
        let vit: Vec<Tensor> = vec![
            ("blocks.0.norm1.weight".into(), vec![2], vec![1.0; 2]),
            ("norm.weight".into(), vec![2], vec![1.0; 2]),
            ("pos_embed".into(), vec![1, 5, 2], vec![0.0; 10]),
        ];
        assert_eq!((zeros(&vit).unwrap()[0].1.as_slice(), head_name(&vit)), (&[1000, 2][..], "head."));
    }
}
