//! The least time that a GPU needs for a training step: for each operation, the time of its products at the card's peak, or that
//! of what it moves at the memory's bandwidth, whichever is longer. No kernel can be faster, unless it joins several operations.

use serde::Serialize;

use super::{Card, Case, Options, Unfit, step::Network};
use crate::{
    backend::{
        Host,
        cost::{Operation, Pass},
    },
    train::{Model, Part, Precision},
};

/// The least time of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Roofline {
    pub case: Case,
    /// A description of the work, with its sizes.
    pub what: String,
    pub precision: String,
    pub card: &'static str,
    pub milliseconds: f64,
    /// In the order of the forward pass.
    pub layers: Vec<LayerTime>,
}

/// The least time of all layers of one shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerTime {
    pub layer: String,
    /// Number of such layers in a forward pass of all branches and views.
    pub count: usize,
    /// 10^9 floating-point operations in products.
    pub gflop: f64,
    /// 10^9 bytes read and written.
    pub gb: f64,
    pub forward_ms: f64,
    pub backward_ms: f64,
    /// Share of the time in which the memory is slower than the products.
    pub memory_bound: f64,
}

/// The least time of a step of `case` on a card.
///
/// # Errors
/// [`Unfit`] when the case is no training step or does not accept an option.
pub fn roofline(case: Case, options: &Options, card: Card) -> anyhow::Result<Roofline> {
    let network = Network::of(case).ok_or(Unfit::Roofline { case })?;
    options.check(case)?;
    let sections = network.sections(options);
    let config = sections.config();
    let model = Model::new(&Host::<f32>::default(), &config)?;
    let layers = times(&model.operations(&config), options.precision, card);
    Ok(Roofline {
        case,
        what: network.describe(options),
        precision: options.precision_name(),
        card: card.name(),
        milliseconds: layers.iter().map(|layer| layer.forward_ms + layer.backward_ms).sum(),
        layers,
    })
}

/// The time of operations, those of equal layers together.
fn times(operations: &[(Part, Operation)], precision: Precision, card: Card) -> Vec<LayerTime> {
    let mut layers: Vec<LayerTime> = Vec::new();
    for (part, Operation { layer, pass, multiply_adds, elements }) in operations {
        let (gflop, gb) = (2e-9 * *multiply_adds as f64, 1e-9 * (elements * bytes(*part, precision)) as f64);
        // GFLOP over TFLOP/s are milliseconds, and so are GB over TB/s.
        let products = gflop / card.dense_peak(arithmetic(*part, precision));
        let memory = gb / (1e-3 * card.bandwidth());
        let time = products.max(memory);
        let at = layers.iter().position(|found| found.layer == *layer).unwrap_or_else(|| {
            let (layer, count, zero) = (layer.clone(), 0, 0.0);
            let [gflop, gb, forward_ms, backward_ms, memory_bound] = [zero; 5];
            layers.push(LayerTime { layer, count, gflop, gb, forward_ms, backward_ms, memory_bound });
            layers.len() - 1
        });
        let found = &mut layers[at];
        found.gflop += gflop;
        found.gb += gb;
        match pass {
            Pass::Forward => {
                found.count += 1;
                found.forward_ms += time;
            }
            Pass::Backward => found.backward_ms += time,
        }
        // Milliseconds for now.
        found.memory_bound += if memory > products { time } else { 0.0 };
    }
    for layer in &mut layers {
        layer.memory_bound /= layer.forward_ms + layer.backward_ms;
    }
    layers
}

/// The arithmetic of a part's products.
fn arithmetic(part: Part, precision: Precision) -> Precision {
    match (part, precision) {
        (Part::Encoder, _) => precision,
        (Part::Heads, Precision::F32) | (Part::Queue | Part::Optimizer, _) => Precision::F32,
        (Part::Heads, _) => Precision::Tf32,
    }
}

/// Bytes of an element.
fn bytes(part: Part, precision: Precision) -> u64 {
    match (part, precision) {
        (Part::Encoder, Precision::F16 | Precision::Bf16) => 2,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(layer: &str, pass: Pass, multiply_adds: u64, elements: u64) -> Operation {
        Operation { layer: layer.into(), pass, multiply_adds, elements }
    }

    /// On an H200 in f16: 989.4 GFLOP or 4.8 GB take a millisecond.
    #[test]
    fn the_slower_of_products_and_memory_counts() {
        let operations = [
            (Part::Encoder, operation("conv", Pass::Forward, 989_400_000_000, 1_200_000_000)),
            (Part::Encoder, operation("conv", Pass::Backward, 989_400_000_000, 7_200_000_000)),
            (Part::Encoder, operation("norm", Pass::Forward, 0, 2_400_000_000)),
            (Part::Encoder, operation("conv", Pass::Forward, 989_400_000_000, 0)),
            (Part::Heads, operation("linear", Pass::Backward, 494_700_000_000, 0)),
            (Part::Queue, operation("search", Pass::Forward, 66_900_000_000, 1_200_000_000)),
        ];
        let found = times(&operations, Precision::F16, Card::H200);
        let rows = found.iter().map(|layer| {
            let LayerTime { layer, count, gflop, gb, forward_ms, backward_ms, memory_bound } = layer;
            let round = |value: &f64| (value * 1e6).round() / 1e6;
            (layer.as_str(), *count, [gflop, gb, forward_ms, backward_ms, memory_bound].map(round))
        });
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [
                ("conv", 2, [5936.4, 16.8, 4.0, 3.0, 0.428571]),
                ("norm", 1, [0.0, 4.8, 1.0, 0.0, 1.0]),
                ("linear", 0, [989.4, 0.0, 0.0, 2.0, 0.0]),
                ("search", 1, [133.8, 4.8, 2.0, 0.0, 0.0]),
            ]
        );
    }

    /// The step's operations are those of [`Model::flops_per_image`], and the search.
    #[test]
    fn a_step_multiplies_what_its_model_counts() {
        for case in [Case::Small, Case::VitTiny] {
            let options = Options { batch: Some(8), queue_length: Some(64), ..Options::default() };
            let found = roofline(case, &options, Card::H100).unwrap();
            let sections = Network::of(case).unwrap().sections(&options);
            let config = sections.config();
            let flops = 8 * Model::new(&Host::<f32>::default(), &config).unwrap().flops_per_image(&config);
            // In multiply-adds per image and view: the gradient of the images, which no step computes; and the weights of the
            // attention, which the backward pass computes again.
            let (of_images, again) = match case {
                Case::Small => (32 * 32 * 16 * 27, 0),
                _ => (64 * 192 * 48, 12 * 65 * 65 * 192),
            };
            let search = 64 * 128;
            let expected = flops + 2 * 2 * 8 * (again + search) - 2 * 2 * 8 * of_images;
            let gflop: f64 = found.layers.iter().map(|layer| layer.gflop).sum();
            assert_eq!((gflop * 1e9).round() as u64, expected, "{case}");
        }
    }

    #[test]
    fn only_training_steps_have_a_least_time() {
        let error = roofline(Case::Knn, &Options::default(), Card::H200).unwrap_err().to_string();
        assert_eq!(error, "--case knn is no training step; choose small, resnet18, resnet50, vit_tiny or vit_small");
    }
}
