//! Compares training on a GPU (real or emulated) with training on the host.

use std::sync::Arc;

use dfdx::prelude::Cpu;
use image::RgbImage;
use parquet::arrow::ArrowWriter;
use rand::RngExt;
use serde_json::json;

use super::{
    tests::{Batches, by_a_rank, on_ranks, sweep_of_methods, sweep_of_methods_with_vit},
    *,
};
use crate::{
    backend::{Gpu, Host, gpu::Exchange},
    dataset::{
        Sample, Split,
        augment::AugmentationsConfig,
        shard::{Batcher, properties},
    },
    ops::{
        conv2d::cuda::Math,
        cuda::{Gpu as Device, GpuError, View, Wire, testing::one_gpu},
        named::Values,
        random::{Purpose, stream},
    },
    ranks::Ranks,
};

/// Number of images in a batch, and their height and width. Both are small, because an emulated step takes long.
const N: usize = 16;
const SIZE: usize = 8;

/// A batch of `n` images that depends on `step` alone.
fn batch(n: usize, step: usize) -> Batch<f32> {
    let mut random = stream(step as u64, Purpose::Queue, 0, 0, 0);
    let mut crop =
        || Crop { images: (0..n * SIZE * SIZE * 3).map(|_| random.random::<f32>() - 0.5).collect(), size: SIZE };
    let crops = vec![crop(), crop()];
    Batch { samples: (0..n).map(|i| (i + n * step) as i64).collect(), labels: vec![-1; n], crops }
}

/// A GPU whose losses are computed on dfdx's CPU.
fn gpu(precision: Precision) -> Option<Gpu<Cpu>> {
    one_gpu().map(|gpu| Gpu::new(gpu, Cpu::default(), math(precision)))
}

fn math(precision: Precision) -> Math {
    match precision {
        Precision::F16 => Math::F16,
        Precision::Bf16 => Math::Bf16,
        _ => Math::F32,
    }
}

fn trainer<B: Optimize>(on: &B, config: &PretrainConfig) -> Trainer<B> {
    Trainer::new(on.clone(), config, 3, 64).unwrap()
}

/// Compares two steps of every method with the CPU: both losses, and the parameters after the first step. A method knows of an
/// encoder only its features, so one of them trains with a vision transformer too.
#[test]
fn every_method_trains_as_on_the_cpu() {
    let Some(gpu) = gpu(Precision::F32) else { return };
    for sections in sweep_of_methods().into_iter().chain(sweep_of_methods_with_vit().pop()) {
        let config = sections.config();
        let mut cpu = trainer(&Host::<f32>::default(), &config);
        let mut ours = trainer(&gpu, &config);
        let start = cpu.online().unwrap().params;
        // In the first step, rounding errors of f32 pass through twenty batch norms. In the second, the loss also depends on
        // the first update, to which it is sensitive.
        for (step, tolerance) in [(0, 1e-4), (1, 1e-2)] {
            let batch = batch(N, step);
            let expected = cpu.step(&Loaded::new(cpu.on(), batch.clone()).unwrap()).unwrap().expect("a row at once");
            assert!(ours.step(&Loaded::new(&gpu, batch).unwrap()).unwrap().is_none());
            let found = ours.settle().unwrap().expect("the step's row");
            assert_eq!((found.step, found.momentum.to_bits()), (expected.step, expected.momentum.to_bits()));
            assert_eq!(found.neighbours.len(), expected.neighbours.len());
            assert_eq!(found.diagnosis.is_some(), expected.diagnosis.is_some());
            if let (Some((found, _)), Some((expected, _))) = (found.diagnosis, expected.diagnosis) {
                assert!((found.std - expected.std).abs() < 1e-3, "{found:?} not {expected:?}");
            }
            let (expected, found) = (expected.loss, found.loss);
            let method = &config.method;
            assert!(
                (expected - found).abs() < tolerance * expected.abs().max(1.0),
                "{method:?}: {found} not {expected}"
            );
            if step == 0 {
                let moved =
                    |params: &[f32]| params.iter().zip(&start).map(|(p, s)| f64::from(p - s)).collect::<Vec<_>>();
                let (a, b) = (moved(&cpu.online().unwrap().params), moved(&ours.online().unwrap().params));
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
                let longer = (dot(&b, &b) / dot(&a, &a)).sqrt();
                assert!(cosine > 0.999 && (longer - 1.0).abs() < 1e-2, "{method:?}: cosine {cosine}, {longer} as long");
            }
        }
    }
}

/// Compares a trainer that runs through, with rows one step late, with one that settles after every step and is restored from
/// its state after every update. Rows and bits agree after two updates.
fn restored_trainer_continues(
    n: usize,
    mut methods: Vec<Sections>,
    precision: Precision,
    gradient_accumulation: usize,
) {
    let Some(gpu) = gpu(precision) else { return };
    let sections = methods.pop().expect("SNCLR is the last");
    let config = PretrainConfig { precision, gradient_accumulation, ..sections.config() };
    let steps = 2 * gradient_accumulation;
    let mut straight = trainer(&gpu, &config);
    let mut broken = trainer(&gpu, &config);
    let mut rows = [Vec::new(), Vec::new()];
    for step in 0..steps {
        let batch = Loaded::new(&gpu, batch(n, step)).unwrap();
        rows[0].extend(straight.step(&batch).unwrap());
        assert_eq!(rows[0].len(), step);
        rows[1].extend(broken.step(&batch).unwrap());
        rows[1].extend(broken.settle().unwrap());
        if broken.between_updates() {
            let state = broken.state().unwrap();
            broken = trainer(&gpu, &config);
            broken.restore(&state).unwrap();
        }
    }
    rows[0].extend(straight.settle().unwrap());
    // Rows are compared as text, because values such as churn are NaN.
    assert_eq!(format!("{:?}", rows[0]), format!("{:?}", rows[1]), "{precision:?}");
    assert!(rows[0].iter().any(|row| row.diagnosis.is_some()) && rows[0].len() == steps);
    let bits = |trainer: &Trainer<Gpu<Cpu>>| -> Vec<(String, Vec<u64>)> {
        let values = |values: &Values<f32>| match values {
            Values::Real(values) => values.iter().map(|v| u64::from(v.to_bits())).collect(),
            Values::Integer(values) => values.iter().map(|v| *v as u64).collect(),
        };
        trainer.state().unwrap().iter().map(|t| (t.name.clone(), values(&t.values))).collect()
    };
    assert!(bits(&straight) == bits(&broken), "{precision:?}");
    assert_eq!((straight.steps(), straight.between_updates()), (steps as u64, true));
    let shared = straight.momentum().unwrap().expect("SNCLR has a momentum branch").params.len();
    assert!(shared < straight.model().params.len());
    let scaling = straight.scaling().unwrap();
    assert_eq!(scaling.map(|s| s.taken + s.skipped), (precision == Precision::F16).then_some(2));
}

#[test]
fn a_restored_trainer_goes_on_to_the_same_bits() {
    restored_trainer_continues(N, sweep_of_methods(), Precision::F32, 2);
}

#[test]
fn a_restored_trainer_in_f16_goes_on_to_the_same_bits() {
    restored_trainer_continues(N, sweep_of_methods(), Precision::F16, 1);
}

#[test]
fn a_restored_transformer_in_bf16_goes_on_to_the_same_bits() {
    // Fewer images, since the few tokens of each fill a whole tile of the attention.
    restored_trainer_continues(N / 4, sweep_of_methods_with_vit(), Precision::Bf16, 1);
}

#[test]
fn training_starts_from_given_values_in_both_branches() {
    let Some(gpu) = gpu(Precision::F32) else { return };
    let sections = sweep_of_methods().remove(0);
    let mut trainer = trainer(&gpu, &sections.config());
    let (params, buffers) = trainer.model().encoder_len();
    trainer.start_encoder_from([&vec![0.5; params], &vec![2.0; buffers]]).unwrap();
    let (online, momentum) = (trainer.online().unwrap(), trainer.momentum().unwrap().expect("InfoNCE has one"));
    for branch in [online, momentum] {
        assert!(
            branch.params[..params].iter().all(|p| *p == 0.5) && branch.buffers[..buffers].iter().all(|b| *b == 2.0)
        );
        assert!(branch.params[params..].iter().any(|p| *p != 0.5));
    }
}

/// A split of pictures of different sizes, in a shard.
fn split(dir: &std::path::Path) -> Split {
    let mut batcher = Batcher::default();
    for i in 0..3 * N as u32 {
        let picture = RgbImage::from_fn(9 + i % 7, 30 - i % 11, |x, y| {
            image::Rgb([(x * 29 + i) as u8, (y * 31) as u8, (x * y * 3 + i * 5) as u8])
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let sample = Sample { bytes: bytes.into_inner(), path: None, label: Some(i64::from(i % 3)) };
        assert!(batcher.push(sample).unwrap().is_none());
    }
    let path = dir.join("train-00000.parquet");
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, crate::tables::TRAIN.schema(), Some(properties())).unwrap();
    writer.write(&batcher.finish().unwrap().expect("images")).unwrap();
    writer.close().unwrap();
    Split::open(&[path]).unwrap()
}

/// Images have the same bits whether the GPU or the CPU augments them, and so has the training on them.
#[test]
fn training_is_the_same_wherever_images_are_augmented() {
    let Some(gpu) = gpu(Precision::F32) else { return };
    let dir = tempfile::tempdir().unwrap();
    let split = Arc::new(split(dir.path()));
    let view = json!({
        "random_resized_crop": {},
        "color_jitter": { "p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1 },
        "grayscale": { "p": 0.2 },
        "gaussian_blur": { "p": 0.5 },
        "solarize": { "p": 0.2 },
        "horizontal_flip": { "p": 0.5 }
    });
    let local = json!({ "count": 1, "size": 8, "view": view });
    let augmentations = json!({ "size": 8, "view1": view, "view2": view, "local_crops": local });
    let augmentations: AugmentationsConfig = serde_json::from_value(augmentations).unwrap();
    let sections = sweep_of_methods().remove(0);
    // The first batch of the second epoch.
    let here =
        Loader::<Host<f32>>::start(&Ranks::default(), split.clone(), &augmentations.of_training(), 5, N, 3, 3..4)
            .next()
            .unwrap();
    let there = Loader::<Gpu<Cpu>>::start(&Ranks::default(), split, &augmentations.of_training(), 5, N, 3, 3..4)
        .next()
        .unwrap();
    let [here, there] = [Loaded::new(&gpu, here), gpu.load(there)].map(|batch| {
        let mut trainer = trainer(&gpu, &sections.config());
        assert!(trainer.step(&batch.unwrap()).unwrap().is_none(), "a row comes with the next step");
        let row = trainer.settle().unwrap().expect("the step's row");
        (row.loss.to_bits(), trainer.online().unwrap())
    });
    assert!(here == there);
}

/// The trainings for several ranks with a GPU each. All are of SNCLR, which uses every feature of a method. The gate has time for
/// three: a ResNet in f32 with batch norm over groups, a ResNet in f16 with batch norm over the whole batch, and a vision
/// transformer in f32. The soak adds a ResNet in f32 with batch norm over the whole batch, and the transformer in f16.
fn cases_of_ranks() -> [Sections; 5] {
    let of = |mut sections: Vec<Sections>, precision, group| {
        let mut snclr = sections.pop().expect("SNCLR is the last");
        (snclr.precision, snclr.batch_norm) = (precision, BatchNormConfig { group });
        snclr
    };
    [
        of(sweep_of_methods(), Precision::F32, Some(N)),
        of(sweep_of_methods(), Precision::F16, None),
        of(sweep_of_methods_with_vit(), Precision::F32, None),
        of(sweep_of_methods(), Precision::F32, None),
        of(sweep_of_methods_with_vit(), Precision::F16, None),
    ]
}

/// The batches of these trainings. They are few and small, because an emulated step takes long.
const BATCHES: Batches = (N, &[SIZE, SIZE], 1);

/// The device of one of `ranks`.
fn among(ranks: Ranks, precision: Precision) -> Option<Gpu<Cpu>> {
    gpu(precision).map(|gpu| gpu.among(Exchange::through_hosts(ranks)))
}

/// Checks that one rank and several ranks compute the same bits.
fn bits_do_not_depend_on_ranks(of: &str, sections: &Sections, sizes: &[usize], batches: Batches) {
    if gpu(sections.precision).is_none() {
        return;
    }
    let by = |size: usize| {
        on_ranks(size, sections, batches, |ranks| among(ranks, sections.precision).expect("there is one"))
    };
    let alone = by(1);
    for size in sizes {
        assert!(by(*size) == alone, "{of}: {size} ranks");
    }
}

/// With groups of batch norm, two of four ranks share a group.
#[test]
fn bits_do_not_depend_on_the_number_of_ranks_with_a_gpu() {
    let [groups, f16, vit, ..] = cases_of_ranks();
    bits_do_not_depend_on_ranks("groups of batch norm", &groups, &[2, 4], (2 * N, BATCHES.1, 1));
    bits_do_not_depend_on_ranks("f16", &f16, &[2], BATCHES);
    bits_do_not_depend_on_ranks("transformer", &vit, &[2], BATCHES);
}

/// Takes two steps, so that the second depends on the queue and the moments of the first.
#[test]
#[ignore = "minutes: scripts/soak.sh runs it"]
fn soak_more_ranks_with_a_gpu() {
    let [.., whole, vit] = cases_of_ranks();
    bits_do_not_depend_on_ranks("batch norm of the whole batch", &whole, &[2, 4], (2 * N, BATCHES.1, 2));
    bits_do_not_depend_on_ranks("transformer in f16", &vit, &[2], (N, BATCHES.1, 2));
}

/// A wire like NCCL with one rank: it returns what was sent.
#[derive(Debug)]
struct Back;

impl Wire for Back {
    fn all_gather(&self, gpu: &Device, own: View, all: View) -> Result<(), GpuError> {
        gpu.copy(own, all)
    }

    fn all_to_all(&self, gpu: &Device, send: View, receive: View) -> Result<(), GpuError> {
        gpu.copy(send, receive)
    }
}

/// One rank that exchanges everything computes the same bits as one that exchanges nothing.
#[test]
fn exchanging_with_nobody_changes_nothing() {
    let sections = &cases_of_ranks()[0];
    let Some(on) = gpu(sections.precision) else { return };
    let alone = by_a_rank(&Ranks::default(), &on, sections, BATCHES);
    let exchanging = on.among(Exchange::by(Ranks::default(), Arc::new(Back)));
    assert!(by_a_rank(&Ranks::default(), &exchanging, sections, BATCHES) == alone);
}

#[cfg(feature = "mpi")]
#[path = "../../tests/common/mpirun.rs"]
mod mpirun;

/// Tests with ranks as separate processes, over MPI.
#[cfg(feature = "mpi")]
mod over_mpi {
    use std::time::Duration;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::ranks;

    /// The line in which a rank reports its bits.
    fn said(by: &str) -> String {
        format!("bits of the training: {:x?}", Sha256::digest(by.as_bytes()))
    }

    /// Two processes with an emulated GPU each compute the same bits as one.
    #[test]
    fn a_gpu_trains_with_two_ranks_over_mpi() {
        let (sections, Some(mut command)) = (cases_of_ranks(), mpirun::launcher(2)) else { return };
        if gpu(Precision::F16).is_none() {
            return;
        }
        let this = std::env::current_exe().unwrap();
        let one = "train::gpu_tests::over_mpi::one_of_the_ranks";
        let ended = command.arg(this).args(["--exact", one, "--ignored", "--nocapture"]).output().unwrap();
        let text = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success(), "{text}\n{}", String::from_utf8_lossy(&ended.stderr));
        for sections in &sections[..2] {
            let on = gpu(sections.precision).expect("there is one");
            let alone = by_a_rank(&Ranks::default(), &on, sections, BATCHES);
            assert_eq!(text.matches(&said(&alone)).count(), 2, "{text}");
        }
    }

    #[test]
    #[ignore = "one of the processes that the test above starts"]
    fn one_of_the_ranks() {
        let ranks = ranks::open(Duration::from_secs(600)).unwrap().expect("a launcher has started it");
        assert_eq!(ranks.size(), 2);
        let cases = cases_of_ranks();
        for sections in &cases[..2] {
            let on = among(ranks.clone(), sections.precision).expect("there is one");
            println!("{}", said(&by_a_rank(&ranks, &on, sections, BATCHES)));
        }
        ranks.end();
    }
}
