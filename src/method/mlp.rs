//! Projector and predictor: linear layers, batch norm and ReLU, on dfdx tensors.

use dfdx::prelude::*;
use rand::RngExt;

use super::MlpConfig;
use crate::ops::{
    Real,
    arena::Layout,
    backend::Backend,
    batch_norm::{Running, batch_norm},
    leaves::Leaves,
    over_batch::add_bias,
    random::{Purpose, stream},
    seam::Matrix,
    weight::layer as linear_layer,
};

/// A multi-layer perceptron; numbers are entries of the layouts of parameters and of buffers.
#[derive(Clone, Debug)]
pub struct Mlp {
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    weight: usize,
    bias: Option<usize>,
    norm: Option<Norm>,
    relu: bool,
}

/// Batch norm behind a linear layer.
#[derive(Clone, Debug)]
struct Norm {
    weight_bias: Option<(usize, usize)>,
    running_mean: usize,
    running_var: usize,
}

impl Mlp {
    /// Lays out the tensors behind `prefix`, numbered as in torch's `Sequential`.
    pub fn new(prefix: &str, input: usize, config: &MlpConfig, params: &mut Layout, buffers: &mut Layout) -> Self {
        let mut layers = Vec::new();
        let (mut index, mut width) = (0, input);
        for i in 0..config.layers {
            let last = i + 1 == config.layers;
            let output = if last { config.output } else { config.hidden };
            let weight = params.push(format!("{prefix}{index}.weight"), &[output, width]);
            let bias = config.bias.then(|| params.push(format!("{prefix}{index}.bias"), &[output]));
            let (has_norm, affine) = match last {
                false => (config.hidden_batch_norm, true),
                true => (config.last_batch_norm, config.last_affine),
            };
            let norm = has_norm.then(|| {
                index += 1;
                let name = format!("{prefix}{index}");
                let weight_bias = affine.then(|| {
                    (params.push(format!("{name}.weight"), &[output]), params.push(format!("{name}.bias"), &[output]))
                });
                let running_mean = buffers.push(format!("{name}.running_mean"), &[output]);
                let running_var = buffers.push(format!("{name}.running_var"), &[output]);
                Norm { weight_bias, running_mean, running_var }
            });
            layers.push(Layer { weight, bias, norm, relu: !last });
            index += 2;
            width = output;
        }
        Self { layers }
    }

    /// Multiply-adds of one row; norms are left out.
    pub fn multiply_adds(&self, layout: &Layout) -> u64 {
        self.layers.iter().map(|layer| layout.entries[layer.weight].len() as u64).sum()
    }

    /// Initial values: linear layers uniform in +-1/sqrt(inputs) (torch's default), biases zero, batch norm at the identity.
    pub fn init<E: Real>(&self, seed: u64, layouts: (&Layout, &Layout), params: &mut [E], buffers: &mut [E]) {
        for layer in &self.layers {
            init_linear(seed, layouts.0, layer.weight, params);
            if let Some(norm) = &layer.norm {
                if let Some((weight, _)) = norm.weight_bias {
                    params[layouts.0.entries[weight].range()].fill(E::one());
                }
                buffers[layouts.1.entries[norm.running_var].range()].fill(E::one());
            }
        }
    }

    /// Output [n, output] of x [n, input] in training mode; running statistics move.
    ///
    /// # Errors
    /// The device's, when memory runs out.
    pub fn forward<E: Real, D: Backend<E>, T: Tape<E, D> + Merge<T>>(
        &self,
        mut x: Matrix<E, D, T>,
        leaves: &Leaves<E, D>,
        layout: &Layout,
        buffers: &mut D::Running,
    ) -> Result<Matrix<E, D, T>, D::Err> {
        for layer in &self.layers {
            x = linear_layer(x, leaves.weight(layer.weight))?;
            if let Some(bias) = layer.bias {
                x = add_bias(x, leaves.vector(bias).put_tape(T::default()))?;
            }
            if let Some(norm) = &layer.norm {
                let weight_bias = norm.weight_bias.map(|(w, b)| (leaves.vector(w), leaves.vector(b)));
                let [mean, var] = [norm.running_mean, norm.running_var].map(|i| layout.entries[i].range());
                x = batch_norm(x, weight_bias, Running { all: &mut *buffers, mean, var })?;
            }
            if layer.relu {
                x = x.try_relu()?;
            }
        }
        Ok(x)
    }
}

/// Initialises one linear layer's weight [out, in] uniformly in +-1/sqrt(in).
pub fn init_linear<E: Real>(seed: u64, layout: &Layout, entry: usize, params: &mut [E]) {
    let tensor = &layout.entries[entry];
    let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
    let mut random = stream(seed, Purpose::Init, entry as u64, 1, 0);
    params[tensor.range()].fill_with(|| E::of(random.random_range(-bound..bound)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    #[test]
    fn agrees_with_the_reference() {
        let (golden, state) = (Golden::load("projector_mlp"), Golden::load("projector_mlp_state"));
        let (mut params, mut buffers) = (Layout::default(), Layout::default());
        let config = MlpConfig::of_sizes(3, 16, 8);
        let mlp = Mlp::new("", 12, &config, &mut params, &mut buffers);
        let load = |layout: &Layout| layout.entries.iter().flat_map(|e| state.get::<f64>(&e.name)).collect::<Vec<_>>();
        let (values, mut statistics) = (load(&params), load(&buffers));
        let device = Cpu::default();
        let (leaves, totals) = Leaves::all(&params, &values);
        let x: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.x"), (6, 12));
        let y = mlp.forward(x.leaky_trace(), &leaves, &buffers, &mut statistics).unwrap();
        assert_close("y", &y.as_vec(), &golden.get("out.y"), 1e-10);
        for entry in &buffers.entries {
            let expected = golden.get(&format!("after.{}", entry.name));
            assert_close(&entry.name, &statistics[entry.range()], &expected, 1e-10);
        }
        let cot: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.cot"), (6, 8));
        let mut gradients = (y * cot).sum::<Rank0, _>().backward();
        assert_close("grad.x", &gradients.get(&x).as_vec(), &golden.get("grad.x"), 1e-10);
        leaves.add_gradients(&params, &mut gradients, &totals).unwrap();
        let totals = totals.lock().clone();
        for entry in &params.entries {
            let expected = golden.get(&format!("grad.{}", entry.name));
            assert_close(&entry.name, &totals[entry.range()], &expected, 1e-10);
        }
    }

    #[test]
    fn options_add_and_leave_out_layers_as_in_torchs_sequential() {
        let names = |config: MlpConfig| {
            let mut params = Layout::default();
            Mlp::new("", 4, &config, &mut params, &mut Layout::default());
            params.entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
        };
        let usual = MlpConfig::of_sizes(2, 8, 4);
        assert_eq!(names(usual.clone()), ["0.weight", "1.weight", "1.bias", "3.weight"]);
        let plain = MlpConfig { bias: true, hidden_batch_norm: false, last_batch_norm: false, ..usual.clone() };
        assert_eq!(names(plain), ["0.weight", "0.bias", "2.weight", "2.bias"]);
        let affine = MlpConfig { last_affine: true, ..usual };
        assert_eq!(names(affine), ["0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias"]);
    }

    #[test]
    fn gradients_of_biases_agree_with_finite_differences() {
        let (mut params, mut buffers) = (Layout::default(), Layout::default());
        let config =
            MlpConfig { bias: true, hidden_batch_norm: false, last_affine: true, ..MlpConfig::of_sizes(2, 5, 3) };
        let mlp = Mlp::new("", 4, &config, &mut params, &mut buffers);
        let (mut values, mut statistics) = (vec![0.1; params.len()], vec![0.0; buffers.len()]);
        mlp.init(3, (&params, &buffers), &mut values, &mut statistics);
        let device = Cpu::default();
        let x: Vec<f64> = (0..24).map(|i| (i as f64 * 0.9).sin()).collect();
        let mut run = |values: &[f64]| {
            let (leaves, totals) = Leaves::all(&params, values);
            let x: Matrix<f64, Cpu> = device.tensor_from_vec(x.clone(), (6, 4));
            let y = mlp.forward(x.leaky_trace(), &leaves, &buffers, &mut statistics).unwrap();
            let cot: Matrix<f64, Cpu> = device.tensor_from_vec((0..18).map(|i| (i as f64).cos()).collect(), (6, 3));
            let loss = (y * cot).sum::<Rank0, _>();
            let value = loss.array();
            leaves.add_gradients(&params, &mut loss.backward(), &totals).unwrap();
            let totals = totals.lock().clone();
            (value, totals)
        };
        let (_, gradients) = run(&values);
        for (i, gradient) in gradients.iter().enumerate() {
            let mut at = |step: f64| {
                let mut moved = values.clone();
                moved[i] += step;
                run(&moved).0
            };
            let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((gradient - difference).abs() < 1e-7, "{i}: {gradient} instead of {difference}");
        }
    }
}
