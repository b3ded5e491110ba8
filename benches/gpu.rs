//! What a GPU has to show, in one go: `cargo bench --features cuda --bench gpu [-- OUT.json]`; see `scripts/gpu-check.sh`.
//!
//! First the seam to dfdx and dfdx's own operations against the CPU, then ours on its tape, then resuming to the same
//! bits, then times. Prints a table as it goes, and writes all of it as JSON. Ends with 1 if a check fails.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use dfdx::{
    nn::{DeviceBuildExt, ModuleMut, builders as layers},
    optim::{Adam, AdamConfig},
    prelude::*,
};
use image::RgbImage;
use serde_json::{Value, json};
use snclr::{
    dataset::augment::{
        AugmentationsConfig, Pipeline,
        cuda::{Piece, Pieces},
    },
    ops::{
        batch_norm::{Running, batch_norm},
        contrast::{Pairs, contrast},
        cuda::{Bridge, Gpu, Scalar, address, backend, nvidia},
        linear::linear,
        named::{NamedTensor, Values},
        normalize::normalize,
        random::{Purpose, stream},
        seam::Matrix,
        topk::cuda::BankGpu,
    },
    spec::Experiment,
    train::{AnyTrainer, Batch, Crop, Device as Chosen},
};

/// Rows of the table: what, whether it is right or how long it took, and details.
struct Report {
    rows: Vec<Value>,
    failed: bool,
}

impl Report {
    fn row(&mut self, what: &str, result: &str, detail: &str) {
        println!("{what:<44} {result:<14} {detail}");
        self.rows.push(json!({"what": what, "result": result, "detail": detail}));
    }

    /// Runs a check, which gives a detail or says what is wrong. A panic is a failure of this check alone.
    fn check(&mut self, what: &str, check: impl FnOnce() -> Result<String, String>) {
        let outcome = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text
                .or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()))
                .unwrap_or_else(|| "panic".into()))
        });
        match outcome {
            Ok(detail) => self.row(what, "ok", &detail),
            Err(why) => {
                self.failed = true;
                self.row(what, "FAILED", &why);
            }
        }
    }
}

fn ramp(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

/// The largest difference, as a share of the largest value; an error above `tolerance`.
fn close(actual: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) -> Result<String, String> {
    let mut most = 0.0f32;
    for (a, e) in actual.iter().zip(expected) {
        let scale = e.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let off = a
            .iter()
            .zip(e)
            .map(|(a, e)| (a - e).abs() / scale)
            .fold(0.0, |m: f32, v| if v > m || v.is_nan() { v } else { m });
        most = if off > most || off.is_nan() { off } else { most };
    }
    let text = format!("off by {most:.1e}, allowed {tolerance:.0e}");
    if most <= tolerance { Ok(text) } else { Err(text) }
}

/// dfdx's own operations: values and gradients.
macro_rules! stock_operations {
    ($device:expr) => {{
        let device = $device;
        let x: Tensor<Rank2<12, 8>, f32, _> = device.tensor_from_vec(ramp(96, 0.7), (Const, Const));
        let w: Tensor<Rank2<8, 5>, f32, _> = device.tensor_from_vec(ramp(40, 0.3), (Const, Const));
        let columns: Tensor<Rank2<12, 2>, usize, _> =
            device.tensor_from_vec((0..24).map(|i| i % 5).collect(), (Const, Const));
        let s = x.leaky_trace().matmul(w.clone()).relu() * 1.5;
        let (s, tape) = s.split_tape();
        let all = s.clone().put_tape(tape).logsumexp::<Rank1<12>, _>();
        let own: Tensor<Rank2<12, 2>, f32, _, _> = s.leaky_trace().gather(columns);
        let soft = s.leaky_trace().softmax::<Axis<1>>();
        let log = s.leaky_trace().log_softmax::<Axis<1>>().exp();
        let total = all.sum::<Rank0, _>() + own.square().sum::<Rank0, _>() + (soft.ln() * log).mean::<Rank0, _>();
        let value = total.as_vec();
        let gradients = total.backward();
        vec![value, gradients.get(&s).as_vec()]
    }};
}

/// Five steps of dfdx's Linear, BatchNorm1D, ReLU and Adam, from the same initial values.
macro_rules! stock_training {
    ($device:expr) => {{
        let device = $device;
        type Net = (layers::Linear<8, 16>, layers::BatchNorm1D<16>, layers::ReLU, layers::Linear<16, 4>);
        let mut net = device.build_module::<Net, f32>();
        net.0.weight.copy_from(&ramp(128, 0.9));
        net.0.bias.copy_from(&ramp(16, 0.4));
        net.3.weight.copy_from(&ramp(64, 0.2));
        net.3.bias.copy_from(&ramp(4, 0.8));
        let mut adam = Adam::new(&net, AdamConfig { lr: 1e-2, ..AdamConfig::default() });
        let x: Tensor<Rank2<12, 8>, f32, _> = device.tensor_from_vec(ramp(96, 0.7), (Const, Const));
        let mut losses = Vec::new();
        let mut gradients = net.alloc_grads();
        for _ in 0..5 {
            let loss = net.forward_mut(x.trace(gradients)).square().mean();
            losses.push(loss.as_vec()[0]);
            gradients = loss.backward();
            adam.update(&mut net, &gradients).expect("an update");
            net.zero_grads(&mut gradients);
        }
        vec![losses, net.0.weight.as_vec()]
    }};
}

fn running<D: Bridge<f32>>(_: &D, gpu: &Gpu, values: &[f32]) -> D::Running {
    D::running(gpu, values).expect("memory")
}

fn running_values<D: Bridge<f32>>(_: &D, running: &D::Running) -> Vec<f32> {
    D::running_values(running).expect("a device that works")
}

/// Our operations on dfdx's tape: values and gradients.
macro_rules! our_operations {
    ($device:expr, $gpu:expr) => {{
        let device = $device;
        let (n, input, out) = (96, 72, 40);
        let x: Matrix<f32, _> = device.tensor_from_vec(ramp(n * input, 0.37), (n, input));
        let w: Matrix<f32, _> = device.tensor_from_vec(ramp(out * input, 0.11), (out, input));
        let weight = device.tensor_from_vec(ramp(out, 0.5), (out,));
        let bias = device.tensor_from_vec(ramp(out, 0.6), (out,));
        let mut statistics = running(device, $gpu, &[vec![0.0; out], vec![1.0; out]].concat());
        let y = linear(x.leaky_trace(), w.leaky_trace()).expect("linear");
        let running = Running { all: &mut statistics, mean: 0..out, var: out..2 * out };
        let y = batch_norm(y, Some((weight.clone(), bias.clone())), running).expect("batch norm");
        let y = normalize(y).expect("normalize");
        let cot: Matrix<f32, _> = device.tensor_from_vec(ramp(n * out, 0.23), (n, out));
        let values = y.as_vec();
        let gradients = (y * cot).sum::<Rank0, _>().backward();
        vec![
            values,
            running_values(device, &statistics),
            gradients.get(&x).as_vec(),
            gradients.get(&w).as_vec(),
            gradients.get(&weight).as_vec(),
            gradients.get(&bias).as_vec(),
        ]
    }};
}

/// Contrastive logits of both layouts: values and gradients.
macro_rules! contrastive_logits {
    ($device:expr) => {{
        let device = $device;
        let (n, own, dim) = (96, 31, 40);
        let rows = |rows: usize, step: f32| -> Matrix<f32, _> {
            normalize(device.tensor_from_vec(ramp(rows * dim, step), (rows, dim))).expect("normalize")
        };
        let mut found = Vec::new();
        for (candidates, pairs) in
            [(rows(n * own, 0.011), Pairs::grouped(own)), (rows(n, 0.37), Pairs::of_views(n / 2))]
        {
            let anchors = rows(n, 0.37);
            let (all, own) =
                contrast(anchors.leaky_trace(), candidates.leaky_trace(), pairs, 0.2).expect("contrastive logits");
            found.extend([all.as_vec(), own.as_vec()]);
            let loss = all.sum::<Rank0, _>() - own.square().sum::<Rank0, _>();
            let gradients = loss.backward();
            found.extend([gradients.get(&anchors).as_vec(), gradients.get(&candidates).as_vec()]);
        }
        found
    }};
}

/// A trainer's case.
struct Case {
    name: &'static str,
    encoder: Value,
    size: usize,
    batch: usize,
    queue: usize,
    dim: usize,
    hidden: usize,
}

impl Case {
    fn spec(&self, precision: &str) -> Experiment {
        let view = json!({"random_resized_crop": {}});
        serde_json::from_value(json!({
            "name": self.name,
            "data": {"format": "synthetic", "classes": 2, "train_images": 1, "test_images": 1, "image_size": self.size},
            "augmentations": {"size": self.size, "view1": view, "view2": view},
            "encoder": self.encoder,
            "projector": {"layers": 3, "hidden": self.hidden, "output": self.dim},
            "predictor": {"layers": 2, "hidden": self.hidden, "output": self.dim},
            "method": {"name": "snclr", "k": 30, "queue_length": self.queue, "tau": 0.2, "exclude_self": false},
            "optimizer": {"name": "lars", "base_lr": 0.1, "weight_decay": 1e-6},
            "epochs": 100,
            "batch_size": self.batch,
            "precision": precision,
            "health": {"every": 1000},
        }))
        .expect("the case is a spec")
    }

    fn trainer(&self, precision: &str, device: Chosen) -> Result<AnyTrainer, String> {
        let spec = self.spec(precision);
        AnyTrainer::new(device, &spec.pretrain(), 100, 200_000).map_err(|error| format!("{error:#}"))
    }

    fn batch(&self, step: usize) -> Batch<f32> {
        let n = self.batch;
        let crop = |phase: f32| {
            let images =
                (0..n * self.size * self.size * 3).map(|i| ((i % 1_000_003) as f32 * 0.7 + phase).sin()).collect();
            Crop { images, size: self.size }
        };
        let samples = (0..n as i64).map(|i| i + (step * n) as i64).collect();
        Batch { samples, labels: vec![-1; n], crops: vec![crop(step as f32), crop(0.5 + step as f32)] }
    }
}

fn bits(state: &[NamedTensor<f32>]) -> Vec<u64> {
    let values = |tensor: &NamedTensor<f32>| -> Vec<u64> {
        match &tensor.values {
            Values::Real(values) => values.iter().map(|v| u64::from(v.to_bits())).collect(),
            Values::Integer(values) => values.iter().map(|v| *v as u64).collect(),
        }
    };
    state.iter().flat_map(values).collect()
}

/// Four steps, with and without a fresh trainer in between.
fn resumes(case: &Case, precision: &str) -> Result<String, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let mut straight = case.trainer(precision, Chosen::Cuda(0))?;
    let mut broken = case.trainer(precision, Chosen::Cuda(0))?;
    for step in 0..4 {
        straight.step(&case.batch(step)).map_err(text)?;
        broken.step(&case.batch(step)).map_err(text)?;
        broken.settle().map_err(text)?;
        let state = broken.state().map_err(text)?;
        broken = case.trainer(precision, Chosen::Cuda(0))?;
        broken.restore(&state).map_err(text)?;
    }
    straight.settle().map_err(text)?;
    let (a, b) = (bits(&straight.state().map_err(text)?), bits(&broken.state().map_err(text)?));
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    if a.len() == b.len() && differ == 0 {
        Ok(format!("{} values, the same bits", a.len()))
    } else {
        Err(format!("{differ} of {} values differ", a.len()))
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Milliseconds of a step and images per second.
fn steps(case: &Case, precision: &str) -> Result<String, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let mut trainer = case.trainer(precision, Chosen::Cuda(0))?;
    let batch = case.batch(0);
    for _ in 0..2 {
        trainer.step(&batch).map_err(text)?;
    }
    let mut seconds = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        // Returns when the step before has come to its loss; from then on the device is busy with this one.
        let row = trainer.step(&batch).map_err(text)?.ok_or("a row is missing")?;
        if !row.loss.is_finite() {
            return Err(format!("the loss is {}", row.loss));
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    trainer.settle().map_err(text)?;
    let seconds = median(seconds);
    Ok(format!("{:.1} ms per step, {:.0} images/s", seconds * 1e3, case.batch as f64 / seconds))
}

/// Milliseconds from decoded images to both views in f16, uploading included; and whether views are the CPU's.
fn augmentation(gpu: &Gpu) -> Result<String, String> {
    let view = json!({
        "random_resized_crop": {"scale": [0.2, 1.0]},
        "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
        "grayscale": {"p": 0.2},
        "gaussian_blur": {"p": 0.5},
        "horizontal_flip": {"p": 0.5},
    });
    let config = json!({"size": 224, "view1": view, "view2": view});
    let config: AugmentationsConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
    let pipelines = [&config.view1, &config.view2].map(|view| Pipeline::new(view, 224, &config));
    let image = RgbImage::from_fn(500, 375, |x, y| {
        let noise = (x * 7919 + y * 104_729) % 65_537;
        image::Rgb([noise as u8, (x / 2) as u8, (y / 2) as u8])
    });
    let random = |sample: u64, view: usize| stream(1, Purpose::Augment, 0, sample, view as u32);
    let pieces: Vec<Piece> = (0..256).map(|i| Piece::new(&image, &pipelines, |view| random(i, view))).collect();
    let (pieces, mut seconds) = (Pieces::new(&pipelines, &pieces), Vec::new());
    let text = |error: snclr::ops::cuda::GpuError| error.to_string();
    for _ in 0..7 {
        let start = Instant::now();
        let views = pieces.augment(gpu, Scalar::F16).map_err(text)?;
        gpu.read::<u16>(views[1].at(), 1).map_err(text)?; // waits
        seconds.push(start.elapsed().as_secs_f64());
    }
    let (views, len) = (pieces.augment(gpu, Scalar::F32).map_err(text)?, 224 * 224 * 3);
    for (view, pipeline) in pipelines.iter().enumerate() {
        let found: Vec<f32> = gpu.read(views[view].at(), 256 * len).map_err(text)?;
        let mut expected = vec![0.0; len];
        for (i, found) in found.chunks_exact(len).enumerate().step_by(16) {
            pipeline.apply(&image, &mut random(i as u64, view), &mut expected);
            if found != expected {
                return Err(format!("view {view} of image {i} is not the CPU's"));
            }
        }
    }
    Ok(format!("{:.2} ms; the views are the CPU's", median(seconds) * 1e3))
}

fn main() -> ExitCode {
    let out = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let mut report = Report { rows: Vec::new(), failed: false };
    let found = nvidia::devices();
    report.check("devices", || found.map(|d| format!("{d:?}")).map_err(|error| error.to_string()));
    if !report.failed {
        all(&mut report);
    }
    if let Some(out) = out {
        let text = format!("{:#}\n", json!({"ok": !report.failed, "rows": report.rows}));
        std::fs::write(&out, text).expect("the report can be written");
    }
    if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn all(report: &mut Report) {
    let cuda = match nvidia::open(0) {
        Ok(cuda) => cuda,
        Err(error) => return report.check("open cuda:0", || Err(error.to_string())),
    };
    let cpu = Cpu::default();
    let gpu = match backend::gpu(&cuda) {
        Ok(gpu) => gpu,
        Err(error) => return report.check("our side of cuda:0", || Err(format!("{error:?}"))),
    };
    report.check("address of a tensor", || {
        let tensor: Tensor<Rank1<5>, f32, _> = cuda.tensor([1.0, 2.0, 3.0, 4.0, 5.0]);
        let read: Vec<f32> = gpu.read(address(&tensor), 5).map_err(|error| error.to_string())?;
        if read == [1.0, 2.0, 3.0, 4.0, 5.0] { Ok("reads back".into()) } else { Err(format!("{read:?}")) }
    });
    // f32 sums of a hundred terms in another order.
    report.check("dfdx: matmul, softmax, logsumexp, gather", || {
        close(&stock_operations!(&cuda), &stock_operations!(&cpu), 1e-5)
    });
    report.check("dfdx: Linear, BatchNorm1D, Adam, 5 steps", || {
        close(&stock_training!(&cuda), &stock_training!(&cpu), 1e-4)
    });
    report.check("ours: linear, batch norm, normalise (f32)", || {
        backend::allow_tf32(false);
        close(&our_operations!(&cuda, &gpu), &our_operations!(&cpu, &gpu), 1e-5)
    });
    report.check("ours: linear, batch norm, normalise (tf32)", || {
        backend::allow_tf32(true);
        close(&our_operations!(&cuda, &gpu), &our_operations!(&cpu, &gpu), 2e-2)
    });
    // Sums of e^5; slopes over tau.
    report.check("ours: contrastive logits (f32)", || {
        backend::allow_tf32(false);
        close(&contrastive_logits!(&cuda), &contrastive_logits!(&cpu), 1e-4)
    });
    report.check("ours: contrastive logits (tf32)", || {
        backend::allow_tf32(true);
        close(&contrastive_logits!(&cuda), &contrastive_logits!(&cpu), 5e-2)
    });

    let small = |name: &'static str, encoder: Value| Case {
        name,
        encoder,
        size: 32,
        batch: 64,
        queue: 1024,
        dim: 64,
        hidden: 128,
    };
    let resnet = json!({"arch": "resnet18", "width_multiplier": 0.25, "stem": "cifar"});
    let vit = json!({"arch": "vit_tiny", "patch_size": 4});
    for case in [small("small ResNet", resnet), small("small ViT", vit)] {
        report.check(&format!("a step of a {} as on the CPU (f32)", case.name), || {
            let text = |error: anyhow::Error| format!("{error:#}");
            let mut losses = Vec::new();
            for device in [Chosen::Cuda(0), Chosen::Cpu] {
                let mut trainer = case.trainer("f32", device)?;
                let row = trainer.step(&case.batch(0)).map_err(text)?;
                let row = row.or(trainer.settle().map_err(text)?).ok_or("a row is missing")?;
                losses.push(vec![row.loss as f32]);
            }
            close(&losses[..1], &losses[1..], 1e-4)
        });
        for precision in ["f32", "tf32", "f16"] {
            report.check(&format!("a {} resumes to the same bits ({precision})", case.name), || {
                resumes(&case, precision)
            });
        }
    }

    let resnet18 = Case {
        name: "ResNet-18, 32x32, batch 512",
        encoder: json!({"arch": "resnet18", "stem": "cifar"}),
        size: 32,
        batch: 512,
        queue: 16384,
        dim: 128,
        hidden: 512,
    };
    let resnet50 = Case {
        name: "ResNet-50, 224x224, batch 256",
        encoder: json!({"arch": "resnet50"}),
        size: 224,
        batch: 256,
        queue: 65536,
        dim: 256,
        hidden: 4096,
    };
    let vit = Case {
        name: "ViT-S/16, 224x224, batch 256",
        encoder: json!({"arch": "vit_small"}),
        size: 224,
        batch: 256,
        queue: 65536,
        dim: 256,
        hidden: 4096,
    };
    for case in [&resnet18, &resnet50, &vit] {
        for precision in ["f16", "tf32", "f32"] {
            report.check(&format!("{} ({precision})", case.name), || steps(case, precision));
        }
    }
    report.check("augment 256 of 500x375 to 2 x 224x224", || augmentation(&gpu));
    report.check("search 1024 x 131072 x 256, K 30 (f32)", || {
        let text = |error: snclr::ops::cuda::GpuError| error.to_string();
        let (n, m, dim) = (1024, 131_072, 256);
        let rows: Vec<f32> = (0..m * dim).map(|i| ((i % 1_000_003) as f32 * 0.37).sin()).collect();
        let none = vec![-1; m];
        let bank = BankGpu::new(&gpu, dim, &rows, &vec![1.0; m], [&none; 3]).map_err(text)?;
        let queries = gpu.upload(&ramp(n * dim, 0.11)).map_err(text)?;
        let search = || bank.search(queries.at(), n, 30, None)?.read(); // reading it waits for it
        search().map_err(text)?;
        let mut seconds = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            search().map_err(text)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(format!("{:.2} ms", median(seconds) * 1e3))
    });
}
