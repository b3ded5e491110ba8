//! Projector and predictor: linear layers (without bias), batch norm and ReLU, on dfdx tensors.

use dfdx::prelude::*;
use rand::RngExt;

use super::MlpConfig;
use crate::ops::{
    Real,
    arena::Layout,
    backend::Backend,
    batch_norm::{RunningStatistics, batch_norm},
    leaves::Leaves,
    linear::linear,
    random::{Purpose, stream},
    seam::Matrix,
};

/// A multi-layer perceptron; numbers are entries of the layouts of parameters and of buffers.
#[derive(Clone, Debug)]
pub struct Mlp {
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    weight: usize,
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
            let has_norm = !last || config.last_batch_norm;
            let norm = has_norm.then(|| {
                let name = format!("{prefix}{}", index + 1);
                let weight_bias = (!last).then(|| {
                    (params.push(format!("{name}.weight"), &[output]), params.push(format!("{name}.bias"), &[output]))
                });
                let running_mean = buffers.push(format!("{name}.running_mean"), &[output]);
                let running_var = buffers.push(format!("{name}.running_var"), &[output]);
                Norm { weight_bias, running_mean, running_var }
            });
            layers.push(Layer { weight, norm, relu: !last });
            index += 3;
            width = output;
        }
        Self { layers }
    }

    /// Initial values: linear layers uniform in +-1/sqrt(inputs) (torch's default), batch norm at the identity.
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
        buffers: &mut [E],
    ) -> Result<Matrix<E, D, T>, D::Err> {
        for layer in &self.layers {
            x = linear(x, leaves.matrix(layer.weight).put_tape(T::default()))?;
            if let Some(norm) = &layer.norm {
                let weight_bias = norm.weight_bias.map(|(w, b)| (leaves.vector(w), leaves.vector(b)));
                let ranges = [norm.running_mean, norm.running_var].map(|i| layout.entries[i].range());
                let [mean, var] = buffers.get_disjoint_mut(ranges).expect("buffers do not overlap");
                x = batch_norm(x, weight_bias, RunningStatistics { mean, var })?;
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
        let config = MlpConfig { layers: 3, hidden: 16, output: 8, last_batch_norm: true };
        let mlp = Mlp::new("", 12, &config, &mut params, &mut buffers);
        let load = |layout: &Layout| layout.entries.iter().flat_map(|e| state.get::<f64>(&e.name)).collect::<Vec<_>>();
        let (values, mut statistics) = (load(&params), load(&buffers));
        let device = Cpu::default();
        let leaves = Leaves::new(&device, &params, &values, 0..params.entries.len()).unwrap();
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
        let mut totals = vec![0.0; values.len()];
        leaves.add_gradients(&params, &mut gradients, &mut totals).unwrap();
        for entry in &params.entries {
            let expected = golden.get(&format!("grad.{}", entry.name));
            assert_close(&entry.name, &totals[entry.range()], &expected, 1e-10);
        }
    }
}
