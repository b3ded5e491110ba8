//! Checks and measures everything on a GPU in one run.
//!
//! Run it by `cargo bench --features cuda --bench gpu [-- [checks|times|nccl] [OUT.json]]`; see `scripts/gpu-check.sh`. The part
//! `nccl` needs the feature of that name, and runs only when it is named.
//!
//! The checks come first: the exchange of tensors with dfdx, then the operations of dfdx and of this project on dfdx's tape
//! against the CPU, then resuming to the same bits. Then the cases of `snclr bench` are timed, and the floating-point speed of
//! the model is compared with the GPU's peak. The program prints a table row by row. It writes the whole JSON report again after
//! each row, so that the rows so far survive a time limit. It ends with exit code 1 if a check fails.

#![allow(clippy::disallowed_methods, reason = "made-up data, and dfdx's own operations are what is checked")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::Context;
use dfdx::{
    nn::{DeviceBuildExt, ModuleMut, builders as layers},
    optim::{Adam, AdamConfig},
    prelude::*,
};
use image::RgbImage;
use serde_json::{Value, json};
use snclr_engine::{
    backend::{Gpu, Host},
    bench::{self, Case as Timed, Measurement, Options},
    dataset::{
        Part,
        augment::{
            AugmentationsConfig, Pipeline,
            cuda::{Piece, Pieces},
            draw_all,
        },
    },
    ops::{
        contrast::Pairs,
        conv2d::cuda::Math,
        cuda::{Scalar, nvidia},
        named::{NamedTensor, Values},
        random::{Purpose, stream},
        sinkhorn::Sinkhorn,
        tensor::{GpuTensors, Matrix, Rows, TensorDevice, cuda, linear, normalize},
    },
    stage::Silent,
    train::{Batch, Crop, Device, Loaded, Precision, Sections, StepRow, Trainer, Trains},
};

/// A GPU backend that computes both the encoder and the losses' tensors on the GPU.
type OnCuda = Gpu<Cuda>;

/// The report: table rows of a name, a result and details, and the measurements.
struct Report {
    rows: Vec<Value>,
    cases: Vec<Measurement>,
    failed: bool,
    out: Option<PathBuf>,
}

impl Report {
    fn row(&mut self, what: &str, result: &str, detail: &str) {
        println!("{what:<44} {result:<14} {detail}");
        self.rows.push(json!({"what": what, "result": result, "detail": detail}));
        self.save();
    }

    fn save(&self) {
        if let Some(out) = &self.out {
            let text = format!("{:#}\n", json!({"ok": !self.failed, "rows": self.rows, "cases": self.cases}));
            std::fs::write(out, text).expect("the report can be written");
        }
    }

    /// Measures a case as `snclr bench` does.
    fn time(&mut self, case: Timed, options: &Options) {
        let mut measured = None;
        self.check(&format!("{case} ({})", options.precision_name()), || {
            let found = bench::measure(case, options, 7, &Silent).map_err(|error| format!("{error:#}"))?;
            let text = figures(&found);
            measured = Some(found);
            Ok(text)
        });
        self.cases.extend(measured);
        self.save();
    }

    /// Runs a check, which returns a detail or what is wrong. A panic fails only this check.
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

/// Compares arrays: the largest difference, as a share of the largest expected magnitude in its array (at least 1). A share above
/// `tolerance` is an error.
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

/// This project's operations on dfdx's tape: values and gradients.
macro_rules! our_operations {
    ($device:expr) => {{
        let device = $device;
        let (n, input, out) = (96, 72, 40);
        let rows = |step: f32, n: usize| Rows::of(device.tensor_from_vec(ramp(n * input, step), (n, input)));
        let (x, w) = (rows(0.37, n).expect("rows"), rows(0.11, out).expect("rows"));
        let y = linear(x.clone().traced(), w.clone().traced()).expect("linear");
        let y = normalize(y).expect("normalize").into_tensor();
        let cot: Matrix<f32, _> = device.tensor_from_vec(ramp(n * out, 0.23), (n, out));
        let values = y.as_vec();
        let gradients = (y * cot).sum::<Rank0, _>().backward();
        vec![values, gradients.get(x.tensor()).as_vec(), gradients.get(w.tensor()).as_vec()]
    }};
}

/// Contrastive logits of both layouts: values and gradients.
macro_rules! contrastive_logits {
    ($device:expr) => {{
        let device = $device;
        let (n, own, dim) = (96, 31, 40);
        let rows = |rows: usize, step: f32| {
            let rows = Rows::of(device.tensor_from_vec(ramp(rows * dim, step), (rows, dim))).expect("rows");
            normalize(rows).expect("normalize")
        };
        let mut found = Vec::new();
        for (candidates, pairs) in
            [(rows(n * own, 0.011), Pairs::grouped(own)), (rows(n, 0.37), Pairs::of_views(n / 2))]
        {
            let anchors = rows(n, 0.37);
            let (all, own) = TensorDevice::contrast(anchors.clone().traced(), candidates.clone().traced(), pairs, 0.2)
                .expect("contrastive logits");
            found.extend([all.as_vec(), own.as_vec()]);
            let loss = all.sum::<Rank0, _>() - own.square().sum::<Rank0, _>();
            let gradients = loss.backward();
            found.extend([gradients.get(anchors.tensor()).as_vec(), gradients.get(candidates.tensor()).as_vec()]);
        }
        found
    }};
}

/// Sinkhorn codes of scores, once without and once with the scores of a queue.
macro_rules! codes {
    ($device:expr) => {{
        let device = $device;
        let (n, queued, prototypes) = (96, 200, 300);
        let rows = |n: usize, step: f32| Rows::of(device.tensor_from_vec(ramp(n * prototypes, step), (n, prototypes)));
        let (own, beside) = (rows(n, 0.7).expect("rows"), rows(queued, 0.3).expect("rows"));
        let settings = Sinkhorn { epsilon: 0.05, iterations: 3 };
        [None, Some(&beside)].map(|beside| TensorDevice::assign(&own, beside, settings).expect("codes").as_vec())
    }};
}

/// The network and sizes of a trainer.
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
    fn sections(&self, precision: &str) -> Sections {
        let view = json!({"random_resized_crop": {}});
        serde_json::from_value(json!({
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
        .expect("the case is one that a spec may ask for")
    }

    fn trainer<B: Trains>(&self, precision: &str, on: &B) -> anyhow::Result<Trainer<B>> {
        Trainer::new(on.clone(), &self.sections(precision).config(), 100, 200_000)
    }

    fn batch<B: Trains>(&self, step: usize, on: &B) -> Result<Loaded<B>, B::Error> {
        let n = self.batch;
        let crop = |phase: f32| {
            let images =
                (0..n * self.size * self.size * 3).map(|i| ((i % 1_000_003) as f32 * 0.7 + phase).sin()).collect();
            Crop { images, size: self.size }
        };
        let samples = (0..n as i64).map(|i| i + (step * n) as i64).collect();
        let crops = vec![crop(step as f32), crop(0.5 + step as f32)];
        Loaded::new(on, Batch { samples, labels: vec![-1; n], crops })
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

/// Trains four steps, once in one trainer and once restoring the state into a new trainer after each step. Both must end in the
/// same state.
fn resumes(case: &Case, precision: &str, on: &OnCuda) -> anyhow::Result<String> {
    let (mut straight, mut broken) = (case.trainer(precision, on)?, case.trainer(precision, on)?);
    for step in 0..4 {
        let batch = case.batch(step, on)?;
        straight.step(&batch)?;
        broken.step(&batch)?;
        broken.settle()?;
        let state = broken.state()?;
        broken = case.trainer(precision, on)?;
        broken.restore(&state)?;
    }
    straight.settle()?;
    let (a, b) = (bits(&straight.state()?), bits(&broken.state()?));
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    anyhow::ensure!(a.len() == b.len() && differ == 0, "{differ} of {} values differ", a.len());
    Ok(format!("{} values, the same bits", a.len()))
}

/// Trains four steps on one rank, once with all exchanges by NCCL and once without. Both must end in the same state.
#[cfg(feature = "nccl")]
fn nccl_changes_nothing(case: &Case, precision: &str, on: &OnCuda, wire: &Wired) -> anyhow::Result<String> {
    use snclr_engine::{backend::gpu::Exchange, ranks::Ranks};
    let by_nccl = on.clone().among(Exchange::by(Ranks::default(), wire.clone()));
    let state = |on: &OnCuda| {
        let mut trainer = case.trainer(precision, on)?;
        for step in 0..4 {
            trainer.step(&case.batch(step, on)?)?;
        }
        trainer.settle()?;
        anyhow::Ok(bits(&trainer.state()?))
    };
    let (a, b) = (state(on)?, state(&by_nccl)?);
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    anyhow::ensure!(a.len() == b.len() && differ == 0, "{differ} of {} values differ", a.len());
    Ok(format!("{} values, the same bits", a.len()))
}

#[cfg(feature = "nccl")]
type Wired = std::sync::Arc<dyn snclr_engine::ops::cuda::Wire>;

#[cfg(feature = "nccl")]
fn nccl(report: &mut Report) {
    let opened = || -> anyhow::Result<_> {
        let cuda = cuda::open(0)?;
        let wire = cuda::join_by_nccl(&cuda, [0, 1], nvidia::nccl::id()?)?;
        Ok((cuda::gpu(&cuda)?, cuda, wire))
    };
    let (gpu, cuda, wire) = match opened() {
        Ok(opened) => opened,
        Err(error) => return report.check("NCCL on cuda:0", || Err(format!("{error:#}"))),
    };
    for case in small_cases() {
        for (precision, math) in MATHS {
            report.check(&format!("a {} of one rank with NCCL as without ({precision})", case.name), || {
                let on = Gpu::new(gpu.clone(), cuda.clone(), math);
                nccl_changes_nothing(&case, precision, &on, &wire).map_err(|error| format!("{error:#}"))
            });
        }
    }
}

#[cfg(not(feature = "nccl"))]
fn nccl(report: &mut Report) {
    report.check("NCCL", || Err("this build has no feature `nccl`".into()));
}

/// The precisions of encoders, by name.
const MATHS: [(&str, Math); 3] = [("f32", Math::F32), ("tf32", Math::Tf32), ("f16", Math::F16)];

/// A small network of each kind.
fn small_cases() -> [Case; 2] {
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
    [small("small ResNet", resnet), small("small ViT", vit)]
}

/// The loss of a first step.
fn first_loss<B: Trains>(case: &Case, on: &B) -> anyhow::Result<f32> {
    let mut trainer = case.trainer("f32", on)?;
    let row: Option<StepRow> = trainer.step(&case.batch(0, on)?)?;
    let row = row.or(trainer.settle()?).context("a row is missing")?;
    Ok(row.loss as f32)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// A measurement as text: milliseconds, images per second, and floating-point speed of the model.
fn figures(found: &Measurement) -> String {
    let mut text = format!("{:.2} ms", found.milliseconds.median);
    if let (Some(rate), Some(flops)) = (&found.images_per_second, &found.flops) {
        text += &format!(", {:.0} images/s, {:.1} GFLOP per image, ", rate.median, flops.gflop_per_image);
        text += &format!("{:.1} TFLOP/s", flops.tflops);
        if let Some(share) = flops.utilisation {
            text += &format!(", MFU {:.1} %", 100.0 * share);
        }
    }
    format!("{text}: {}", found.what)
}

/// Measures the milliseconds from decoded images to both views in f16, uploading included. Checks that the views equal the CPU's.
fn augmentation(gpu: &snclr_engine::ops::cuda::Gpu) -> Result<String, String> {
    let view = json!({
        "random_resized_crop": {"scale": [0.2, 1.0]},
        "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
        "grayscale": {"p": 0.2},
        "gaussian_blur": {"p": 0.5},
        "horizontal_flip": {"p": 0.5},
    });
    let config = json!({"size": 224, "view1": view, "view2": view});
    let config: AugmentationsConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
    let pipelines = [&config.view1, &config.view2].map(|view| Pipeline::new(view, 224, [&config.mean, &config.std]));
    let image = RgbImage::from_fn(500, 375, |x, y| {
        let noise = (x * 7919 + y * 104_729) % 65_537;
        image::Rgb([noise as u8, (x / 2) as u8, (y / 2) as u8])
    });
    let random = |sample: u64, view: usize| stream(1, Purpose::Augment, 0, sample, view as u32);
    let image = Part::from(image);
    let piece = |i: u64| {
        let (views, around) = draw_all(pipelines.iter(), image.size(), |view| random(i, view));
        Piece::new(&image, views, around)
    };
    let pieces: Vec<Piece> = (0..256).map(piece).collect();
    let (pieces, mut seconds) = (Pieces::new(&pipelines, &pieces), Vec::new());
    let text = |error: snclr_engine::ops::cuda::GpuError| error.to_string();
    for _ in 0..7 {
        let start = Instant::now();
        let views = pieces.augment(gpu, Scalar::F16).map_err(text)?;
        gpu.read::<half::f16>(views[1].view().part(0..1)).map_err(text)?; // waits
        seconds.push(start.elapsed().as_secs_f64());
    }
    let (views, len) = (pieces.augment(gpu, Scalar::F32).map_err(text)?, 224 * 224 * 3);
    for (view, pipeline) in pipelines.iter().enumerate() {
        let found: Vec<f32> = views[view].read().map_err(text)?;
        let mut expected = vec![0.0; len];
        for (i, found) in found.chunks_exact(len).enumerate().step_by(16) {
            let drawn = pipeline.draw(image.size(), &mut random(i as u64, view));
            pipeline.make(&drawn, &image, &mut expected);
            if found != expected {
                return Err(format!("view {view} of image {i} is not the CPU's"));
            }
        }
    }
    Ok(format!("{:.2} ms; the views are the CPU's", median(seconds) * 1e3))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let asks = |part: &str| words.iter().any(|word| word == part);
    let out = words.iter().find(|word| !["checks", "times", "nccl"].contains(&word.as_str()));
    let mut report = Report { rows: Vec::new(), cases: Vec::new(), failed: false, out: out.map(PathBuf::from) };
    let found = nvidia::devices();
    report.check("devices", || found.map(|d| format!("{d:?}")).map_err(|error| error.to_string()));
    let found = !report.failed;
    if found && asks("nccl") {
        nccl(&mut report);
    } else if found {
        if !asks("times") {
            checks(&mut report);
        }
        if !asks("checks") {
            times(&mut report);
        }
    }
    if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn checks(report: &mut Report) {
    let cuda = match cuda::open(0) {
        Ok(cuda) => cuda,
        Err(error) => return report.check("open cuda:0", || Err(error.to_string())),
    };
    let cpu = Cpu::default();
    let gpu = match cuda::gpu(&cuda) {
        Ok(gpu) => gpu,
        Err(error) => return report.check("our side of cuda:0", || Err(error.to_string())),
    };
    report.check("values of a tensor, and a tensor of values", || {
        let sought = vec![1.0, 2.0, 3.0, 4.0, 5.5, -6.0];
        let rows = Rows::of(cuda.tensor_from_vec(sought.clone(), (2, 3))).map_err(|error| error.to_string())?;
        let text = |error: snclr_engine::ops::cuda::GpuError| error.to_string();
        let lent = Cuda::lend(&gpu, &rows).map_err(text)?;
        let read: Vec<f32> = gpu.read(lent.view()).map_err(text)?;
        let back = cuda.rows_at(&gpu, lent.view(), (2, 3)).map_err(text)?.tensor().as_vec();
        if read == sought && back == sought { Ok("the same".into()) } else { Err(format!("{read:?}, {back:?}")) }
    });
    // The tolerance allows for f32 sums of a hundred terms in another order.
    report.check("dfdx: matmul, softmax, logsumexp, gather", || {
        close(&stock_operations!(&cuda), &stock_operations!(&cpu), 1e-5)
    });
    report.check("dfdx: Linear, BatchNorm1D, Adam, 5 steps", || {
        close(&stock_training!(&cuda), &stock_training!(&cpu), 1e-4)
    });
    report.check("ours: linear, normalise", || close(&our_operations!(&cuda), &our_operations!(&cpu), 1e-5));
    // Sums have terms up to e^5, and gradients are divided by tau.
    report.check("ours: contrastive logits", || close(&contrastive_logits!(&cuda), &contrastive_logits!(&cpu), 1e-4));
    // exp has arguments down to -40, whose rounding differs.
    report.check("ours: Sinkhorn's codes", || close(&codes!(&cuda), &codes!(&cpu), 1e-5));

    for case in small_cases() {
        report.check(&format!("a step of a {} as on the CPU (f32)", case.name), || {
            let on = Gpu::new(gpu.clone(), cuda.clone(), Math::F32);
            let text = |error: anyhow::Error| format!("{error:#}");
            let found = first_loss(&case, &on).map_err(text)?;
            let expected = first_loss(&case, &Host::<f32>::default()).map_err(text)?;
            close(&[vec![found]], &[vec![expected]], 1e-4)
        });
        for (precision, math) in MATHS {
            report.check(&format!("a {} resumes to the same bits ({precision})", case.name), || {
                let on = Gpu::new(gpu.clone(), cuda.clone(), math);
                resumes(&case, precision, &on).map_err(|error| format!("{error:#}"))
            });
        }
    }
}

/// Measures the times. The cases that have a performance target come first.
fn times(report: &mut Report) {
    if let Err(error) = Device::Cuda(0).choose() {
        return report.check("choose cuda:0", || Err(error.to_string()));
    }
    let sized = |case, batch| (case, Options { batch: Some(batch), ..Options::default() });
    let steps = [sized(Timed::Resnet50, 256), sized(Timed::Resnet18, 512), sized(Timed::VitSmall, 256)];
    let step = |report: &mut Report, precision: Precision| {
        for (case, options) in &steps {
            report.time(*case, &Options { precision, ..options.clone() });
        }
    };
    step(report, Precision::F16);
    report.time(Timed::Queue, &Options { queries: Some(1024), ..Options::default() });
    report.check("augment 256 of 500x375 to 2 x 224x224", || {
        let cuda = cuda::open(0).map_err(|error| error.to_string())?;
        augmentation(&cuda::gpu(&cuda).map_err(|error| error.to_string())?)
    });
    step(report, Precision::Tf32);
    step(report, Precision::F32);
}
