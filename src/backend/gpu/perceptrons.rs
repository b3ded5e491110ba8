//! Linear layers of projectors and predictors on a GPU. Values are f32. Every rank computes all rows of the batch.

use super::{
    Gpu,
    convolutions::{affine_of, gradients_of},
    head,
};
use crate::{
    backend::{Branch, Learned, Passed, Perceptrons, layers::Dense},
    ops::{
        batch_norm::cuda::{ALL_HERE, MomentsGpu, Normalised, ResidualGpu, Rows},
        conv2d::cuda::{Added, Bias},
        cuda::{Buffer, GpuError, Scalar},
        reductions::cuda::add_column_sums,
        tensor::GpuTensors,
    },
};

/// A norm's input, and the batch's statistics; None for a layer without a norm.
type KeptNorm = Option<(Buffer, MomentsGpu)>;

impl<D: GpuTensors> Perceptrons for Gpu<D> {
    type KeptDense = KeptNorm;

    fn dense(&self, layer: &Dense, branch: &mut Branch<Self>, x: &Buffer) -> Result<(Buffer, KeptNorm), GpuError> {
        let (n, params) = (x.view().len() / layer.input, branch.params);
        let raw = self.take_reals(n * layer.output)?;
        let (conv, on) = head(self, n, [layer.input, layer.output]);
        let bias = layer.bias.as_ref().map(|bias| params.of(bias)).map(|bias| Bias { exact: bias, stored: bias });
        let added = Added { bias, tensor: None };
        conv.forward_added_gpu(on, x.view(), params.of(&layer.weight), added, raw.view())?;
        let rows = Rows { gpu: self.device(), scalar: Scalar::F32, rows: n, channels: layer.output, parts: 1 };
        let Some(norm) = &layer.norm else {
            if layer.relu {
                // The ReLU's backward pass sets its second argument to zero where the first is not positive. For a tensor and
                // itself, that is the ReLU in place.
                rows.relu_backward(raw.view(), raw.view())?;
            }
            return Ok((raw, None));
        };
        let running = norm.running.clone().map(|range| branch.statistics.all().view().part(range));
        let moments = rows.moments(raw.view(), None, affine_of(norm, params), Some(running), ALL_HERE)?;
        let y = raw.take_alike()?;
        rows.apply(raw.view(), moments.affine.view(), ResidualGpu::None, layer.relu, y.view())?;
        Ok((y, Some((raw, moments))))
    }

    fn dense_backward(
        &self,
        layer: &Dense,
        learned: &mut Learned<Self>,
        passed: Passed<Self>,
        g: Buffer,
        onto: Option<Buffer>,
    ) -> Result<Buffer, GpuError> {
        let (Passed { x, kept, output }, n) = (passed, g.view().len() / layer.output);
        let rows = Rows { gpu: self.device(), scalar: Scalar::F32, rows: n, channels: layer.output, parts: 1 };
        match (&layer.norm, kept) {
            (Some(norm), Some((raw, moments))) => {
                let of = Normalised { x: raw.view(), moments: &moments, output: output.map(Buffer::view) };
                let (params, gradients) = (affine_of(norm, learned.params), gradients_of(norm, learned.gradients));
                rows.backward(of, params, gradients, g.view(), None, (g.view(), false), ALL_HERE)?;
            }
            _ => {
                if let Some(output) = output {
                    rows.relu_backward(output.view(), g.view())?;
                }
            }
        }
        let gradient = |range: &std::ops::Range<usize>| learned.gradients.view().part(range.clone());
        if let Some(bias) = &layer.bias {
            add_column_sums(self.device(), Scalar::F32, g.view(), [n, layer.output], 1, gradient(bias))?;
        }
        let (accumulate, (conv, on)) = (onto.is_some(), head(self, n, [layer.input, layer.output]));
        let gx = onto.map_or_else(|| x.take_alike(), Ok)?;
        conv.backward_data_gpu(on, g.view(), learned.params.of(&layer.weight), gx.view(), accumulate)?;
        conv.backward_weight_gpu(on, x.view(), g.view(), gradient(&layer.weight))?;
        Ok(gx)
    }
}
