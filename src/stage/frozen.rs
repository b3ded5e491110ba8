//! A frozen encoder: structure and weights, which are checked to fit each other exactly.

use std::{collections::BTreeMap, sync::OnceLock};

use dfdx::prelude::Cpu;
use sha2::{Digest, Sha256};

use super::weights::{Tensor, to_bytes};
use crate::{
    backend::{Backend, Branch, Gpu, Host, Memory, Statistics, gpu},
    encoder::{Encoder, EncoderConfig},
    ops::{
        arena::{Entry, Layout},
        buffers::Buffer,
        conv2d::{Size, cuda::Math},
        cuda,
    },
    train::Device,
};

/// An encoder that is no longer trained and always runs in eval mode (batch norm uses its running statistics).
pub struct Frozen {
    encoder: Encoder,
    params: Vec<f32>,
    buffers: Buffer<f32>,
    /// A copy on the GPU, made on first use; None on the CPU.
    on_gpu: OnceLock<Option<OnGpu>>,
}

/// The weights on a GPU.
struct OnGpu {
    on: Gpu<Cpu>,
    params: gpu::Params,
    buffers: cuda::Buffer,
}

/// An error for weights that do not fit the encoder exactly.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the weights do not fit the encoder; nothing was computed\n  missing ({}): {}\n  unexpected ({}): {}\n  of another shape ({}): {}",
    missing.len(), list(missing), unexpected.len(), list(unexpected), reshaped.len(), list(reshaped)
)]
pub struct CoverageError {
    /// Tensors of the encoder that the weights lack.
    pub missing: Vec<String>,
    /// Tensors of the weights that the encoder lacks, and repeated ones.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than in the encoder, with both shapes.
    pub reshaped: Vec<String>,
}

/// The most names to list of each kind: those of a different network would fill pages.
const LISTED: usize = 6;

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        few if few.len() <= LISTED => few.join(", "),
        many => many[..LISTED].join(", ") + ", …",
    }
}

impl Frozen {
    /// The encoder of `config` for images of `size` pixels with `weights`, which must hold each of its tensors once and no
    /// others.
    ///
    /// # Errors
    /// [`CoverageError`], or when `config` describes no encoder.
    pub fn load(config: &EncoderConfig, size: usize, weights: &[Tensor]) -> anyhow::Result<Self> {
        let encoder = Encoder::new(config, size)?;
        let [params, buffers] = place([encoder.params(), encoder.buffers()], weights)?;
        Ok(Frozen::of(encoder, params, buffers))
    }

    /// The encoder of `config` for images of `size` pixels, with random weights of `seed`.
    ///
    /// # Errors
    /// When `config` describes no encoder.
    pub fn random_init(config: &EncoderConfig, size: usize, seed: u64) -> anyhow::Result<Self> {
        let encoder = Encoder::new(config, size)?;
        let (params, buffers) = encoder.init(seed);
        Ok(Frozen::of(encoder, params, buffers))
    }

    /// `encoder` with these parameters and buffers, whose lengths must fit.
    pub(super) fn of(encoder: Encoder, params: Vec<f32>, buffers: Vec<f32>) -> Self {
        Frozen { encoder, params, buffers: buffers.into(), on_gpu: OnceLock::new() }
    }

    /// Width of the features.
    pub fn dim(&self) -> usize {
        self.encoder.feature_dim()
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.encoder.params().entries.len() + self.encoder.buffers().entries.len()
    }

    /// Features [n, dim] of normalised images [n, size, size, 3].
    pub fn features(&self, images: Vec<f32>, n: usize, size: usize) -> Vec<f32> {
        let Ok(features) = self.features_by(&Host::default(), &self.params, &self.buffers, images, n, size);
        features
    }

    /// [`Frozen::features`] on the process's device, in f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn features_on_device(&self, images: Vec<f32>, n: usize, size: usize) -> anyhow::Result<Vec<f32>> {
        if self.on_gpu.get().is_none() {
            let found = Device::chosen().gpu()?.map(|device| {
                let on = Gpu::new(device, Cpu::default(), Math::F32);
                let params = on.params(self.params.clone(), self.params.len())?;
                Ok::<_, cuda::GpuError>(OnGpu { params, buffers: on.buffer(self.buffers.to_vec())?, on })
            });
            let _ = self.on_gpu.set(found.transpose()?);
        }
        match self.on_gpu.get() {
            Some(Some(OnGpu { on, params, buffers })) => Ok(self.features_by(on, params, buffers, images, n, size)?),
            _ => Ok(self.features(images, n, size)),
        }
    }

    fn features_by<B: Backend<Real = f32>>(
        &self,
        on: &B,
        params: &B::Params,
        buffers: &B::Buffer,
        images: Vec<f32>,
        n: usize,
        size: usize,
    ) -> Result<Vec<f32>, B::Error> {
        let mut branch = Branch { params, statistics: Statistics::Running(buffers) };
        let (images, size) = (on.images(images)?, Size { n, h: size, w: size });
        let (features, _) = self.encoder.forward(on, &mut branch, &images, size, false)?;
        on.read(&features)
    }

    /// SHA-256, in hexadecimal, of the names, shapes and little-endian values of all tensors, with values in torch's order.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for (layout, values) in [(self.encoder.params(), &self.params[..]), (self.encoder.buffers(), &self.buffers)] {
            for entry in &layout.entries {
                hasher.update(format!("{}{:?}", entry.name, entry.shape));
                hasher.update(to_bytes(&entry.to_torch(&values[entry.range()])));
            }
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The buffers that `layouts` describe, filled from `weights`.
pub(super) fn place<const N: usize>(layouts: [&Layout; N], weights: &[Tensor]) -> Result<[Vec<f32>; N], CoverageError> {
    let mut buffers = layouts.map(|layout| vec![0.0; layout.len()]);
    let mut wanted: BTreeMap<&str, (usize, &Entry)> = BTreeMap::new();
    for (i, layout) in layouts.iter().enumerate() {
        wanted.extend(layout.entries.iter().map(|entry| (entry.name.as_str(), (i, entry))));
    }
    let (mut unexpected, mut reshaped) = (Vec::new(), Vec::new());
    for (name, shape, values) in weights {
        match wanted.remove(name.as_str()) {
            None => unexpected.push(name.clone()),
            Some((_, entry)) if entry.shape != *shape => {
                reshaped.push(format!("{name} {shape:?} instead of {:?}", entry.shape));
            }
            Some((i, entry)) => buffers[i][entry.range()].copy_from_slice(&entry.from_torch(values)),
        }
    }
    let missing: Vec<String> = layouts
        .iter()
        .flat_map(|layout| &layout.entries)
        .filter(|entry| wanted.contains_key(entry.name.as_str()))
        .map(|entry| entry.name.clone())
        .collect();
    if missing.is_empty() && unexpected.is_empty() && reshaped.is_empty() {
        Ok(buffers)
    } else {
        Err(CoverageError { missing, unexpected, reshaped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encoder::{ResnetConfig, Stem},
        ops::golden::{Golden, assert_close},
    };

    fn layouts() -> [Layout; 2] {
        let (mut params, mut buffers) = (Layout::default(), Layout::default());
        params.push("conv1.weight", &[1, 2, 1, 2]);
        params.push("bn1.weight", &[1]);
        buffers.push("bn1.running_mean", &[1]);
        [params, buffers]
    }

    fn tensor(name: &str, shape: &[usize], first: f32) -> Tensor {
        let n: usize = shape.iter().product();
        (name.into(), shape.to_vec(), (0..n).map(|i| first + i as f32).collect())
    }

    #[test]
    fn complete_weights_are_placed_whatever_their_order() {
        let [params, buffers] = &layouts();
        let weights = [
            tensor("bn1.running_mean", &[1], 9.0),
            tensor("conv1.weight", &[1, 2, 1, 2], 0.0),
            tensor("bn1.weight", &[1], 7.0),
        ];
        let placed = place([params, buffers], &weights).unwrap();
        assert_eq!(placed, [vec![0.0, 2.0, 1.0, 3.0, 7.0], vec![9.0]]);
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let [params, buffers] = &layouts();
        let weights = [
            tensor("bn1.weight", &[1], 0.0),
            tensor("bn1.weight", &[1], 0.0),
            tensor("conv1.weight", &[1, 2, 2, 1], 0.0),
            tensor("fc.weight", &[1, 1], 0.0),
        ];
        let error = place([params, buffers], &weights).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the weights do not fit the encoder; nothing was computed\n  \
             missing (1): bn1.running_mean\n  \
             unexpected (2): bn1.weight, fc.weight\n  \
             of another shape (1): conv1.weight [1, 2, 2, 1] instead of [1, 2, 1, 2]"
        );
    }

    #[test]
    fn torchvisions_weights_give_torchvisions_features() {
        let (golden, state) = (Golden::load("resnet18_w8_cifar"), Golden::load("resnet18_w8_cifar_state"));
        let config = EncoderConfig::Resnet18(ResnetConfig { width_multiplier: 0.125, stem: Stem::Cifar, init: None });
        let mut weights: Vec<Tensor> = Vec::new();
        for name in state.names() {
            if name.starts_with("fc.") || name.ends_with("num_batches_tracked") {
                continue;
            }
            // Eval-mode outputs of the golden follow a training step that moved the running statistics.
            let values = match name.contains(".running_") {
                true => golden.get::<f32>(&format!("after.{name}")),
                false => state.get::<f32>(&name),
            };
            weights.push((name.clone(), state.shape(&name), values));
        }
        let frozen = Frozen::load(&config, 32, &weights).unwrap();
        let before = frozen.digest();
        let images = golden.channels_last::<f32>("in.x");
        assert_close("features", &frozen.features(images, 4, 32), &golden.get("out.eval_features"), 2e-5);
        assert_eq!(before, frozen.digest());
        weights.rotate_left(5);
        assert_eq!(before, Frozen::load(&config, 32, &weights).unwrap().digest());
        weights[0].2[0] += 1.0;
        assert_ne!(before, Frozen::load(&config, 32, &weights).unwrap().digest());
    }
}
