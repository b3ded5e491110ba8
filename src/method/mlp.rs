//! Projector and predictor: perceptrons of linear layers, batch norm and ReLU.

use rand::RngExt;

use super::MlpConfig;
use crate::{
    backend::{
        Backend, Branch, Learned, Passed,
        cost::{Operation, Operations},
        layers::{BatchNorm, Dense},
    },
    ops::{
        Real,
        arena::Layout,
        random::{Purpose, stream},
    },
};

/// A multi-layer perceptron.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// Each layer, with the index of its weight in the parameters.
    layers: Vec<(usize, Dense)>,
}

/// The results that the backward pass needs: input and saved values of each layer.
pub struct SavedMlp<B: Backend>(Vec<(B::Buffer, B::KeptDense)>);

impl Mlp {
    /// Lays out the tensors. Their names are `prefix` and numbers as in torch's `Sequential`.
    pub fn new(prefix: &str, input: usize, config: &MlpConfig, params: &mut Layout, buffers: &mut Layout) -> Self {
        let place = |layout: &mut Layout, name: String, shape: &[usize]| {
            let entry = layout.push(name, shape);
            layout.entries[entry].range()
        };
        let mut layers = Vec::new();
        let (mut index, mut width) = (0, input);
        for i in 0..config.layers {
            let last = i + 1 == config.layers;
            let output = if last { config.output } else { config.hidden };
            let entry = params.push(format!("{prefix}{index}.weight"), &[output, width]);
            let bias = config.bias.then(|| place(params, format!("{prefix}{index}.bias"), &[output]));
            let (has_norm, affine) = match last {
                false => (config.hidden_batch_norm, true),
                true => (config.last_batch_norm, config.last_affine),
            };
            let norm = has_norm.then(|| {
                index += 1;
                let name = format!("{prefix}{index}");
                let affine =
                    affine.then(|| ["weight", "bias"].map(|part| place(params, format!("{name}.{part}"), &[output])));
                let running = ["mean", "var"].map(|part| place(buffers, format!("{name}.running_{part}"), &[output]));
                BatchNorm { affine, running }
            });
            let weight = params.entries[entry].range();
            layers.push((entry, Dense { input: width, output, weight, bias, norm, relu: !last }));
            index += 2;
            width = output;
        }
        Self { layers }
    }

    /// Width of the output.
    pub fn output(&self) -> usize {
        self.layers.last().expect("there are layers").1.output
    }

    /// Multiply-adds per row, without norms.
    pub fn multiply_adds(&self) -> u64 {
        self.layers.iter().map(|(_, layer)| layer.weight.len() as u64).sum()
    }

    /// The operations of a forward pass of `n` rows, and of the backward pass after it; without norms, whose rows are few.
    pub fn operations(&self, n: usize) -> Vec<Operation> {
        let mut all = Operations::default();
        self.layers.iter().for_each(|(_, layer)| all.linear([layer.input, layer.output], n, 0));
        all.into_vec()
    }

    /// Initial values: linear layers uniform in +-1/sqrt(inputs) (torch's default), biases zero, batch norm at the identity.
    pub fn init<E: Real>(&self, seed: u64, layout: &Layout, params: &mut [E], buffers: &mut [E]) {
        for (entry, layer) in &self.layers {
            init_linear(seed, layout, *entry, params);
            if let Some(norm) = &layer.norm {
                if let Some([weight, _]) = &norm.affine {
                    params[weight.clone()].fill(E::one());
                }
                let [_, var] = &norm.running;
                buffers[var.clone()].fill(E::one());
            }
        }
    }

    /// Output [n, output] of x [n, input] in training mode, and the results that the backward pass needs. Updates the running
    /// statistics.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward<B: Backend>(
        &self,
        on: &B,
        branch: &mut Branch<B>,
        mut x: B::Buffer,
    ) -> Result<(B::Buffer, SavedMlp<B>), B::Error> {
        let mut saved = Vec::new();
        for (_, layer) in &self.layers {
            let (y, kept) = on.dense(layer, branch, &x)?;
            saved.push((std::mem::replace(&mut x, y), kept));
        }
        Ok((x, SavedMlp(saved)))
    }

    /// The gradient of x, from the gradient `g` of the output; added to `onto` if given. Adds to the gradients of the parameters.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward<B: Backend>(
        &self,
        on: &B,
        learned: &mut Learned<B>,
        saved: SavedMlp<B>,
        mut g: B::Buffer,
        mut onto: Option<B::Buffer>,
    ) -> Result<B::Buffer, B::Error> {
        let mut output = None;
        for (i, ((_, layer), (x, kept))) in self.layers.iter().zip(saved.0).enumerate().rev() {
            let onto = if i == 0 { onto.take() } else { None };
            let passed = Passed { x: &x, kept, output: output.as_ref() };
            g = on.dense_backward(layer, learned, passed, g, onto)?;
            // A layer's input is the output of the previous layer, which ends with a ReLU.
            output = Some(x);
        }
        Ok(g)
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
    use dfdx::prelude::Cpu;

    use super::*;
    use crate::{
        backend::{Gpu, Host, Statistics},
        ops::{
            Number,
            conv2d::cuda::Math,
            cuda::testing::on_every_gpu,
            golden::{Golden, assert_close, tolerance},
        },
    };

    /// The results of a step: output, statistics, gradients of the parameters, and gradient of the input.
    fn step<B: Backend>(
        on: &B,
        mlp: &Mlp,
        [params, buffers]: [&[B::Real]; 2],
        [x, cot]: [&[B::Real]; 2],
    ) -> [Vec<B::Real>; 4] {
        let mut statistics = on.buffer(buffers.to_vec()).unwrap();
        let (len, params) = (params.len(), on.params(params.to_vec(), 0).unwrap());
        let mut branch = Branch { params: &params, statistics: Statistics::Batch(&mut statistics) };
        let (y, saved) = mlp.forward(on, &mut branch, on.buffer(x.to_vec()).unwrap()).unwrap();
        let mut gradients = on.zeros(len).unwrap();
        let mut learned = Learned { params: &params, gradients: &mut gradients };
        let g = on.buffer(cot.to_vec()).unwrap();
        // Starts the gradient of x from ones, to test that the backward pass adds to it.
        let onto = on.buffer(vec![B::Real::of(1.0); x.len()]).unwrap();
        let gx = mlp.backward(on, &mut learned, saved, g, Some(onto)).unwrap();
        let mut gx = on.read(&gx).unwrap();
        gx.iter_mut().for_each(|g| *g -= B::Real::of(1.0));
        [on.read(&y).unwrap(), on.read(&statistics).unwrap(), on.read(&gradients).unwrap(), gx]
    }

    fn reference<B: Backend>(on: &B, f32_tolerance: f64) -> [Vec<B::Real>; 4] {
        let (golden, state) = (Golden::load("projector_mlp"), Golden::load("projector_mlp_state"));
        let (mut params, mut buffers) = (Layout::default(), Layout::default());
        let mlp = Mlp::new("", 12, &MlpConfig::of_sizes(3, 16, 8), &mut params, &mut buffers);
        let load = |layout: &Layout| layout.entries.iter().flat_map(|e| state.get(&e.name)).collect::<Vec<B::Real>>();
        let values = [&load(&params)[..], &load(&buffers)];
        let found = step(on, &mlp, values, [&golden.get("in.x"), &golden.get("in.cot")]);
        let close = |what: &str, actual: &[B::Real], expected: &[B::Real]| {
            assert_close(what, actual, expected, tolerance::<B::Real>(f32_tolerance));
        };
        close("y", &found[0], &golden.get("out.y"));
        for entry in &buffers.entries {
            close(&entry.name, &found[1][entry.range()], &golden.get(&format!("after.{}", entry.name)));
        }
        for entry in &params.entries {
            close(&entry.name, &found[2][entry.range()], &golden.get(&format!("grad.{}", entry.name)));
        }
        close("grad.x", &found[3], &golden.get("grad.x"));
        found
    }

    #[test]
    fn agrees_with_the_reference() {
        reference(&Host::<f64>::default(), 0.0);
        reference(&Host::<f32>::default(), 1e-4);
        on_every_gpu(|gpu| reference(&Gpu::new(gpu.clone(), Cpu::default(), Math::F32), 1e-4));
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

    /// Covers layers with and without each of bias, batch norm and its affine map.
    #[test]
    fn gradients_of_every_kind_of_layer_agree_with_finite_differences() {
        let usual = MlpConfig::of_sizes(2, 5, 3);
        let biased = MlpConfig { bias: true, hidden_batch_norm: false, last_affine: true, ..usual.clone() };
        let plain = MlpConfig { last_batch_norm: false, ..usual.clone() };
        for config in [usual, biased, plain] {
            let (mut params, mut buffers) = (Layout::default(), Layout::default());
            let mlp = Mlp::new("", 4, &config, &mut params, &mut buffers);
            let (mut values, mut statistics) = (vec![0.1; params.len()], vec![0.0; buffers.len()]);
            mlp.init(3, &params, &mut values, &mut statistics);
            let x: Vec<f64> = (0..24).map(|i| (i as f64 * 0.9).sin()).collect();
            let cot: Vec<f64> = (0..18).map(|i| (i as f64).cos()).collect();
            let run = |values: &[f64], x: &[f64]| step(&Host::default(), &mlp, [values, &statistics], [x, &cot]);
            let loss = |y: &[f64]| y.iter().zip(&cot).map(|(y, c)| y * c).sum::<f64>();
            let [_, _, gradients, gx] = run(&values, &x);
            let all = [values, x].concat();
            for (i, gradient) in [gradients, gx].concat().iter().enumerate() {
                let at = |step: f64| {
                    let mut moved = all.clone();
                    moved[i] += step;
                    let (values, x) = moved.split_at(params.len());
                    loss(&run(values, x)[0])
                };
                let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((gradient - difference).abs() < 1e-7, "{i}: {gradient} instead of {difference}");
            }

            let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
            let (values, x) = all.split_at(params.len());
            let expected = run(values, x);
            let (values, statistics, x, cot) = (narrow(values), narrow(&statistics), narrow(x), narrow(&cot));
            on_every_gpu(|gpu| {
                let gpu = Gpu::new(gpu.clone(), Cpu::default(), Math::F32);
                let found = step(&gpu, &mlp, [&values, &statistics], [&x, &cot]);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_close(&format!("{config:?}"), found, &narrow(expected), 1e-4);
                }
                found
            });
        }
    }
}
