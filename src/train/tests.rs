use dfdx::prelude::Cpu;
use rand::RngExt;
use serde_json::{Value, json};

use super::{schedule::StepPlan, *};
use crate::{
    backend::Host,
    method::MethodConfig,
    ops::{
        Real,
        golden::{Golden, assert_close, channels_last},
        named::{NamedTensor, Values},
        normalize::normalize_rows,
        random::{Purpose, stream},
        tensor::CpuTensors,
    },
    ranks::{Ranks, threads},
};

/// Number of prototypes in the reference's SwAV.
const PROTOTYPES: usize = 5;

/// The sections of the golden trajectories' spec.
impl Sections {
    /// The reference's settings with this `method:`.
    fn new(method: Value) -> Self {
        let view = json!({"random_resized_crop": {}});
        let sections = json!({
            "augmentations": {"size": 32, "view1": view, "view2": view},
            "encoder": {"arch": "resnet18", "width_multiplier": 0.125, "stem": "cifar"},
            "projector": {"layers": 3, "hidden": 32, "output": 16},
            "predictor": {"layers": 2, "hidden": 32, "output": 16},
            "method": method,
            "optimizer": {
                "name": "lars", "base_lr": 0.02, "lr_scaling": "none", "eta": 0.02, "weight_decay": 1e-4
            },
            "epochs": 1,
            "batch_size": 8,
        });
        serde_json::from_value(sections).unwrap()
    }

    /// SNCLR with these further settings.
    fn snclr(settings: Value) -> Self {
        let mut method = json!({
            "name": "snclr", "k": 3, "queue_length": 20, "tau": 0.2, "queue_overflow": "truncate",
            "exclude_self": false, "loss_scale": 0.4, "momentum": 0.9
        });
        method.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        Self::new(method)
    }

    fn nnclr() -> Self {
        Self::new(json!({
            "name": "nnclr", "queue_length": 20, "tau": 0.2, "queue_overflow": "truncate", "exclude_self": false,
            "loss_scale": 0.4, "momentum": 0.9, "anchor": "prediction", "look_up": "momentum"
        }))
    }

    fn swav(settings: Value) -> Self {
        let mut method = json!({"name": "swav", "prototypes": PROTOTYPES, "tau": 0.2, "freeze_prototypes_epochs": 0});
        method.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        Self { predictor: None, ..Self::new(method) }
    }

    fn infonce() -> Self {
        Self::new(json!({"name": "infonce", "tau": 0.2, "loss_scale": 0.4, "momentum": 0.9}))
    }

    pub(super) fn trainer<E: Real>(&self) -> Trainer<Host<E>>
    where
        Cpu: CpuTensors<E>,
    {
        Trainer::new(Host::default(), &self.config(), 3, 8).unwrap()
    }
}

/// One of each method.
pub(super) fn sweep_of_methods() -> Vec<Sections> {
    vec![Sections::infonce(), Sections::nnclr(), Sections::swav(json!({})), Sections::snclr(json!({}))]
}

/// The same with a vision transformer for images of 8 pixels.
pub(super) fn sweep_of_methods_with_vit() -> Vec<Sections> {
    let encoder = json!({"arch": "vit_tiny", "patch_size": 4, "image_size": 8});
    let with_vit = |sections| Sections { encoder: serde_json::from_value(encoder.clone()).unwrap(), ..sections };
    sweep_of_methods().into_iter().map(with_vit).collect()
}

/// The reference's name of one of our tensors.
fn reference_name(branch: &str, name: &str) -> String {
    match name.split_once('.').unwrap() {
        ("encoder", rest) => format!("{branch}.0.{rest}"),
        ("projector", rest) => format!("{branch}.1.{rest}"),
        ("predictor", _) => name.to_string(),
        ("attention", rest) => rest.to_string(),
        ("prototypes", _) => "protos".to_string(),
        other => panic!("{other:?}"),
    }
}

/// A trainer in the reference's initial state.
fn reference_trainer<E: Real>(sections: &Sections, case: &Golden) -> Trainer<Host<E>>
where
    Cpu: CpuTensors<E>,
{
    let state = Golden::load("traj_soft_ce_state");
    let mut trainer = sections.trainer::<E>();
    let model = trainer.model();
    let values = |branch: &str, params: bool, len: usize| {
        let layout = if params { &model.params } else { &model.buffers };
        let mut values = vec![E::nan(); len];
        for entry in layout.entries.iter().filter(|e| e.range().end <= len) {
            let name = reference_name(branch, &entry.name);
            let torch = match name.as_str() {
                "f1.weight" | "f2.weight" | "protos" => case.get::<E>(&format!("in.{name}")),
                name => state.get::<E>(name),
            };
            values[entry.range()].copy_from_slice(&entry.from_torch(&torch));
        }
        values
    };
    let flat = |name: &str, values: Vec<E>| NamedTensor::real(name, &[values.len()], values);
    let online = trainer.online().unwrap();
    let mut tensors = vec![
        flat("online.params", values("online", true, online.params.len())),
        flat("online.buffers", values("online", false, online.buffers.len())),
    ];
    if let Some(momentum) = trainer.momentum().unwrap() {
        tensors.push(flat("momentum.params", values("momentum", true, momentum.params.len())));
        tensors.push(flat("momentum.buffers", values("momentum", false, momentum.buffers.len())));
    }
    // The reference keeps its rows at unit length in f32, and its losses normalise them again in their own precision.
    let mut bank = state.get::<E>("queue.bank");
    normalize_rows(&mut bank, 16);
    tensors.push(NamedTensor::real("queue.bank", &[20, 16], bank));
    trainer.restore(&tensors).unwrap();
    trainer
}

/// Learning rate and momentum of the reference's three steps.
const STEPS: [(f64, f64); 3] = [(0.02, 0.9), (0.015, 0.95), (0.01, 0.97)];

/// The step `due`, but at epoch 0 and with this learning rate and momentum.
fn at_start(due: StepPlan, learning_rate: f64, momentum: f64) -> StepPlan {
    StepPlan { epoch: 0.0, learning_rate, momentum, ..due }
}

/// The row of a step on the host, which returns it at once.
fn row(step: anyhow::Result<Option<StepRow>>) -> StepRow {
    step.unwrap().expect("the host waits for nothing")
}

/// Compares three whole steps with the reference: the losses, and the norm of every tensor afterwards.
fn trajectory(case: &str, sections: &Sections, tolerance: f64) {
    let golden = Golden::load(case);
    let mut trainer = reference_trainer::<f64>(sections, &golden);
    let mut losses = Vec::new();
    for (step, (lr, momentum)) in STEPS.into_iter().enumerate() {
        let due = at_start(trainer.due(), lr, momentum);
        losses.push(row(trainer.step_here(&reference_batch(step), due)).loss);
        trainer = restored(&trainer, sections);
    }
    assert_close(&format!("{case} losses"), &losses, &golden.get("out.losses"), tolerance);
    let mut checked = 0;
    let model = trainer.model();
    let branches = [("online", Some(trainer.online().unwrap())), ("momentum", trainer.momentum().unwrap())];
    for (name, branch) in branches.into_iter().filter_map(|(name, branch)| Some((name, branch?))) {
        for (layout, values) in [(&model.params, branch.params.as_slice()), (&model.buffers, &branch.buffers)] {
            for entry in layout.entries.iter().filter(|e| e.range().end <= values.len()) {
                let reference = reference_name(name, &entry.name);
                let expected = golden.scalar(&format!("final_norm.{reference}"));
                let actual = norm(&values[entry.range()]);
                let error = (actual - expected).abs();
                assert!(error <= tolerance * expected.max(1.0), "{case} {reference}: {actual} instead of {expected}");
                checked += 1;
            }
        }
    }
    let state = trainer.state().unwrap();
    if let Some(bank) = state.iter().find(|t| t.name == "queue.bank") {
        let Values::Real(bank) = &bank.values else { unreachable!() };
        assert!((norm(bank) - golden.scalar("final_norm.queue.bank")).abs() < tolerance * 10.0);
        let next = state.iter().find(|t| t.name == "queue.next").unwrap();
        assert_eq!(next.values, Values::Integer(vec![golden.integers("out.ptr")[0]]));
    }
    // The reference keeps parts that a method does not use.
    let unused = |name: &&String| {
        (trainer.momentum().unwrap().is_none() && name.contains(".momentum."))
            || (model.predictor.is_none() && name.contains(".predictor."))
            || name.contains("queue")
    };
    let names = golden.names();
    let expected = names.iter().filter(|name| name.starts_with("final_norm.") && !unused(name)).count();
    assert_eq!(checked, expected, "{case}");
}

fn norm<E: Real>(values: &[E]) -> f64 {
    values.iter().map(|v| v.as_f64().powi(2)).sum::<f64>().sqrt()
}

/// The images of one of the reference's three steps.
fn reference_batch<E: Real>(step: usize) -> Loaded<Host<E>>
where
    Cpu: CpuTensors<E>,
{
    let pixels = Golden::load("traj_soft_ce").get::<E>("in.x");
    let crop = |view: usize| {
        let len = 8 * 3 * 32 * 32;
        Crop { images: channels_last(&pixels[(step * 2 + view) * len..][..len], [8, 3, 32, 32]), size: 32 }
    };
    let batch = Batch { samples: (0..8).collect(), labels: vec![-1; 8], crops: vec![crop(0), crop(1)] };
    let Ok(batch) = Loaded::new(&Host::default(), batch);
    batch
}

/// A fresh trainer with the restored state must continue as if nothing had happened.
fn restored<E: Real>(trainer: &Trainer<Host<E>>, sections: &Sections) -> Trainer<Host<E>>
where
    Cpu: CpuTensors<E>,
{
    let mut fresh = sections.trainer::<E>();
    fresh.restore(&trainer.state().unwrap()).unwrap();
    fresh
}

#[test]
fn trajectories_agree_with_the_reference() {
    for (case, sections) in [
        ("traj_paper", Sections::snclr(json!({}))),
        ("traj_soft_ce", Sections::snclr(json!({"objective": "soft_ce", "attention": "cosine"}))),
        ("traj_infonce", Sections::snclr(json!({"k": 0}))),
        ("traj_infonce", Sections::infonce()),
        ("traj_nnclr", Sections::nnclr()),
        ("traj_swav", Sections::swav(json!({}))),
    ] {
        trajectory(case, &sections, 1e-9);
    }
}

/// Rounds a state to f32.
fn rounded(state: Vec<NamedTensor<f64>>) -> Vec<NamedTensor<f32>> {
    let round = |tensor: NamedTensor<f64>| match tensor.values {
        Values::Real(values) => {
            NamedTensor::real(tensor.name, &tensor.shape, values.into_iter().map(|v| v as f32).collect())
        }
        Values::Integer(values) => NamedTensor::integer(tensor.name, &tensor.shape, values),
    };
    state.into_iter().map(round).collect()
}

/// Each step starts from the f64 state, because whole trajectories diverge. In the reference one output of the last block is
/// 7e-7, and f32 is off by 6e-6. So rounding decides whether its ReLU passes a gradient, and batch norm over 8 samples amplifies
/// the difference.
#[test]
fn every_step_of_the_trajectories_agrees_in_f32() {
    for (case, sections) in [
        ("traj_paper", Sections::snclr(json!({}))),
        ("traj_infonce", Sections::infonce()),
        ("traj_nnclr", Sections::nnclr()),
        ("traj_swav", Sections::swav(json!({}))),
    ] {
        let mut exact = reference_trainer::<f64>(&sections, &Golden::load(case));
        for (step, (lr, momentum)) in STEPS.into_iter().enumerate() {
            let mut trainer = sections.trainer::<f32>();
            trainer.restore(&rounded(exact.state().unwrap())).unwrap();
            let due = at_start(exact.due(), lr, momentum);
            let loss = row(trainer.step_here(&reference_batch(step), due)).loss;
            let expected = row(exact.step_here(&reference_batch(step), due)).loss;
            assert_close(&format!("{case} loss of step {step}"), &[loss], &[expected], 2e-5);
            let (found, sought) = (trainer.online().unwrap().params, exact.online().unwrap().params);
            for entry in &exact.model().params.entries {
                let (actual, expected) = (&found[entry.range()], &sought[entry.range()]);
                let difference: Vec<f64> = actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - e).collect();
                let error = norm(&difference) / norm(expected).max(1.0);
                assert!(error < 1e-3, "{case} step {step} {}: off by {error:e}", entry.name);
            }
        }
    }
}

/// A trainer after three steps from the initial state.
fn three_steps(sections: &Sections) -> Trainer<Host<f32>> {
    let mut trainer = sections.trainer::<f32>();
    for step in 0..3 {
        trainer.step(&reference_batch(step)).unwrap();
    }
    trainer
}

#[test]
fn snclr_without_neighbours_is_infonce_to_the_last_bit() {
    for settings in [json!({"k": 0}), json!({"k": 0, "objective": "soft_ce", "attention": "cosine", "gamma": 2.0})] {
        let (snclr, infonce) = (three_steps(&Sections::snclr(settings)), three_steps(&Sections::infonce()));
        assert_eq!(snclr.online().unwrap(), infonce.online().unwrap());
        assert_eq!(snclr.momentum().unwrap(), infonce.momentum().unwrap());
    }
}

/// Every method with its options, such as a queue that fills up, a momentum branch, or accumulation.
fn every_method() -> Vec<Sections> {
    let mut all = vec![
        Sections::snclr(json!({})),
        Sections::infonce(),
        Sections::nnclr(),
        Sections::new(json!({"name": "nnclr", "queue_length": 20, "tau": 0.1})),
        Sections::swav(json!({})),
        Sections::swav(json!({"queue_length": 16, "freeze_prototypes_epochs": 0.4})),
        Sections { predictor: None, ..Sections::new(json!({"name": "simclr", "tau": 0.2})) },
    ];
    all.push(Sections { gradient_accumulation: 3, ..Sections::snclr(json!({})) });
    all.push(Sections::snclr(json!({"detach_w": "projection"})));
    all
}

#[test]
fn every_method_goes_on_from_its_state_to_the_same_bits() {
    for sections in every_method() {
        let whole = three_steps(&sections);
        let mut parts = sections.trainer::<f32>();
        for step in 0..3 {
            parts.step(&reference_batch(step)).unwrap();
            if parts.between_updates() {
                parts = restored(&parts, &sections);
            }
        }
        assert!(whole.online().unwrap().params.iter().all(|p| p.is_finite()), "{:?}", sections.method);
        assert_eq!(whole.state().unwrap(), parts.state().unwrap(), "{:?}", sections.method);
    }
}

/// A step in bf16 moves the parameters in nearly the same direction as in f32, with the same bits after a restart and with any
/// number of threads.
#[test]
fn bf16_takes_the_steps_of_f32_within_its_mantissa() {
    for (sections, rounded) in sweep_of_methods().into_iter().zip(sweep_of_methods()) {
        let rounded = Sections { precision: Precision::Bf16, ..rounded };
        let update = |sections: &Sections| {
            let mut trainer = sections.trainer::<f32>();
            let before = trainer.online().unwrap().params;
            let row = row(trainer.step(&reference_batch(0)));
            let after = trainer.online().unwrap().params;
            (row.loss, after.iter().zip(&before).map(|(a, b)| f64::from(a - b)).collect::<Vec<f64>>())
        };
        let ((loss, full), (rounded_loss, short)) = (update(&sections), update(&rounded));
        let along = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = along(&full, &short) / (along(&full, &full) * along(&short, &short)).sqrt();
        assert!(full != short, "{:?}: nothing was rounded", sections.method);
        // The bounds are loose. Batch norms of an untrained network amplify the small differences between eight images, and all
        // rounding errors with them; docs/benchmarks.md compares whole trainings. Other methods than InfoNCE may choose other
        // neighbours, so they have no bounds.
        if matches!(sections.method, MethodConfig::Infonce(_)) {
            assert!((loss - rounded_loss).abs() < 0.05 * loss, "{loss}, {rounded_loss}");
            assert!(cosine > 0.4, "{cosine}");
        }

        let whole = three_steps(&rounded).state().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(whole, pool.install(|| three_steps(&rounded)).state().unwrap(), "{:?}", sections.method);
        let mut parts = rounded.trainer::<f32>();
        for step in 0..3 {
            parts.step(&reference_batch(step)).unwrap();
            if parts.between_updates() {
                parts = restored(&parts, &rounded);
            }
        }
        assert_eq!(whole, parts.state().unwrap(), "{:?}", sections.method);
    }
}

#[test]
fn swav_moves_its_prototypes_once_they_are_free() {
    let sections = Sections::swav(json!({"freeze_prototypes_epochs": 0.5}));
    let mut trainer = sections.trainer::<f32>();
    let prototypes = |trainer: &Trainer<Host<f32>>| {
        let entry = trainer.model().params.entries.iter().find(|e| e.name == "prototypes.weight").unwrap();
        trainer.online().unwrap().params[entry.range()].to_vec()
    };
    // Each step is a third of the epoch. Without a warm-up, the learning rate of the first step is not 0.
    let before = prototypes(&trainer);
    trainer.step(&reference_batch(0)).unwrap();
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(same(&prototypes(&trainer), &before));
    trainer.step(&reference_batch(1)).unwrap();
    assert!(same(&prototypes(&trainer), &before));
    trainer.step(&reference_batch(2)).unwrap();
    assert!(!same(&prototypes(&trainer), &before));
}

#[test]
fn accumulated_batches_move_the_weights_by_their_mean_gradient() {
    // Plain SGD without momentum: one update from two batches is the mean of the updates from each.
    let sgd = json!({"name": "sgd", "base_lr": 0.1, "lr_scaling": "none", "momentum": 0.0});
    let optimizer = || serde_json::from_value(sgd.clone()).unwrap();
    let one = Sections { optimizer: optimizer(), ..Sections::infonce() };
    let two = Sections { optimizer: optimizer(), gradient_accumulation: 2, ..Sections::infonce() };
    let update = |sections: &Sections, steps: &[usize]| {
        let mut trainer = sections.trainer::<f64>();
        let before = trainer.online().unwrap().params;
        for step in steps {
            let due = at_start(trainer.due(), 0.1, 0.9);
            trainer.step_here(&reference_batch(*step), due).unwrap();
        }
        let after = trainer.online().unwrap().params;
        after.iter().zip(&before).map(|(after, before)| after - before).collect::<Vec<f64>>()
    };
    let (first, second) = (update(&one, &[0]), update(&one, &[1]));
    let mean: Vec<f64> = first.iter().zip(&second).map(|(a, b)| (a + b) / 2.0).collect();
    assert_close("update", &update(&two, &[0, 1]), &mean, 1e-9);
    assert!(update(&two, &[0]).iter().all(|moved| *moved == 0.0));
}

#[test]
fn a_frozen_patch_embedding_stays_while_the_rest_of_the_transformer_moves() {
    let encoder = json!({"arch": "vit_tiny", "patch_size": 16, "image_size": 32, "stop_grad_patch_embed": true});
    let sections = Sections { encoder: serde_json::from_value(encoder).unwrap(), ..Sections::infonce() };
    let mut trainer = sections.trainer::<f32>();
    let before = trainer.online().unwrap().params;
    trainer.step(&reference_batch(0)).unwrap();
    let after = trainer.online().unwrap().params;
    for entry in &trainer.model().params.entries {
        let (now, then) = (&after[entry.range()], &before[entry.range()]);
        let stays = entry.name.starts_with("encoder.patch_embed.");
        // Biases are not checked: the gradient of the keys' bias is zero, since it changes all scores of a row equally.
        if stays || entry.name.ends_with(".weight") {
            assert_eq!(now == then, stays, "{}", entry.name);
        }
    }
}

#[test]
fn a_step_costs_three_passes_per_crop_and_one_per_view_of_the_momentum_branch() {
    let cost = |sections: &Sections, crops: u64| {
        let config = sections.config();
        let model = Model::new(&Host::<f64>::default(), &config).unwrap();
        let encoder = model.encoder.multiply_adds(32);
        // The projector has three layers from 64 features, the predictor two. Hidden layers have width 32, outputs 16.
        let (projector, predictor) = (64 * 32 + 32 * 32 + 32 * 16, 16 * 32 + 32 * 16);
        let (predictor, momentum) = match config.predictor {
            Some(_) => (predictor, 2),
            None => (0, 0),
        };
        let expected = 2 * (3 * crops * (encoder + projector + predictor) + momentum * (encoder + projector));
        (model.flops_per_image(&config), expected)
    };
    for sections in [Sections::snclr(json!({})), Sections::swav(json!({}))] {
        let (found, expected) = cost(&sections, 2);
        assert_eq!(found, expected, "{:?}", sections.method);
    }
}

/// Number of images in a batch, sizes of their crops, and number of batches.
pub(super) type Batches<'a> = (usize, &'a [usize], usize);

/// Trains on `count` batches as one of `ranks`, on its device. Returns the rows of all steps and the final state as text that
/// shows every bit. A batch has `n` images, with a crop of each size in `crops`.
pub(super) fn by_a_rank<B: Optimize<Real = f32>>(
    ranks: &Ranks,
    on: &B,
    sections: &Sections,
    (n, crops, count): Batches,
) -> String {
    let own = ranks.share(n);
    let batch = |step: usize| {
        let mut random = stream(step as u64, Purpose::Queue, 0, 0, 0);
        let crop = |size: &usize| {
            let image = size * size * 3;
            let all: Vec<f32> = (0..n * image).map(|_| random.random::<f32>() - 0.5).collect();
            Crop { images: all[own.start * image..own.end * image].to_vec(), size: *size }
        };
        let crops = crops.iter().map(crop).collect();
        Batch { samples: (0..n).map(|i| (i + n * step) as i64).collect(), labels: vec![-1; n], crops }
    };
    let mut trainer = Trainer::new(on.clone(), &sections.config(), 2, 2 * n).unwrap();
    let mut rows = Vec::new();
    for step in 0..count {
        let loaded = Loaded::new(on, batch(step)).unwrap();
        let images: usize = loaded.crops.iter().map(|(_, size)| size.n).sum();
        assert_eq!(images, crops.len() * own.len(), "a rank's encoder sees its share");
        rows.extend(trainer.step(&loaded).unwrap());
    }
    rows.extend(trainer.settle().unwrap());
    assert_eq!(rows.len(), count);
    format!("{rows:?}\n{:?}", trainer.state().unwrap())
}

/// The result of [`by_a_rank`] on `size` ranks, which must all agree. `on` makes the device of a rank.
pub(super) fn on_ranks<B: Optimize<Real = f32>>(
    size: usize,
    sections: &Sections,
    batches: Batches,
    on: impl Fn(Ranks) -> B + Sync,
) -> String {
    let ended = threads::run(size, |ranks| by_a_rank(&ranks, &on(ranks.clone()), sections, batches));
    assert!(ended.iter().all(|end| *end == ended[0]), "{size} ranks do not agree");
    ended.into_iter().next().unwrap()
}

/// One, two and four ranks compute the same bits. Covers every method with a ResNet, whose batch norms depend on all images, one
/// method with a transformer, and one in bf16.
#[test]
fn bits_do_not_depend_on_the_number_of_ranks() {
    let [mut vits, resnets] = [sweep_of_methods_with_vit(), sweep_of_methods()];
    let bf16 = Sections { precision: Precision::Bf16, ..Sections::snclr(json!({})) };
    let cases = resnets.into_iter().chain([bf16]).map(|sections| (sections, [16, 16, 8]));
    for (sections, crops) in cases.chain([(vits.remove(0), [8, 8, 4])]) {
        let sections = Sections { gradient_accumulation: 2, ..sections };
        let alone = on_ranks(1, &sections, (32, &crops, 2), Host::<f32>::among);
        for size in [2, 4] {
            let among = on_ranks(size, &sections, (32, &crops, 2), Host::<f32>::among);
            assert!(among == alone, "{size} ranks, {:?}, {:?}", sections.method, sections.precision);
        }
    }
}

/// A batch of one group trains as without groups. Several groups change the bits, but the number of ranks does not.
#[test]
fn groups_of_batch_norm_do_not_depend_on_the_number_of_ranks() {
    let of = |group| Sections { batch_norm: BatchNormConfig { group }, ..Sections::snclr(json!({})) };
    let on_ranks = |size, sections| on_ranks(size, &sections, (32, &[16, 16, 8], 2), Host::<f32>::among);
    let whole = on_ranks(1, of(None));
    assert_eq!(on_ranks(1, of(Some(32))), whole);
    // With 4 ranks, these are a group on two ranks, a group on each rank, and two groups on each rank.
    for group in [16, 8, 4] {
        let alone = on_ranks(1, of(Some(group)));
        assert!(alone != whole, "{group}");
        for size in [2, 4] {
            assert!(on_ranks(size, of(Some(group))) == alone, "groups of {group}, {size} ranks");
        }
    }
}

/// Search and loss are divided among ranks too, here among more ranks than most machines have processors.
#[test]
fn sixteen_ranks_come_to_the_bits_of_one() {
    let sections = Sections::snclr(json!({"exclude_self": true, "queue_length": 160}));
    let on_ranks = |size| on_ranks(size, &sections, (128, &[8, 8], 2), Host::<f32>::among);
    assert!(on_ranks(16) == on_ranks(1));
}

#[test]
fn gradients_through_groups_agree_with_finite_differences() {
    let sgd = json!({"name": "sgd", "base_lr": 1.0, "lr_scaling": "none", "momentum": 0.0});
    let sections = Sections {
        predictor: None,
        optimizer: serde_json::from_value(sgd).unwrap(),
        batch_norm: BatchNormConfig { group: Some(4) },
        ..Sections::new(json!({"name": "simclr", "tau": 0.5}))
    };
    let mut random = stream(5, Purpose::Queue, 0, 0, 0);
    let mut crop = || Crop { images: (0..8 * 16 * 16 * 3).map(|_| random.random::<f64>() - 0.5).collect(), size: 16 };
    let batch = Batch { samples: (0..8).collect(), labels: vec![-1; 8], crops: vec![crop(), crop()] };
    // Takes one step from the initial values, of which one may be changed first. Returns the loss, the values before the step,
    // and values and statistics after it.
    let step = |moved: Option<(usize, f64)>| {
        let mut trainer = sections.trainer::<f64>();
        let BranchValues { mut params, buffers } = trainer.online().unwrap();
        if let Some((at, by)) = moved {
            params[at] += by;
        }
        let (encoder, statistics) = trainer.model().encoder_len();
        trainer.start_encoder_from([&params[..encoder], &buffers[..statistics]]).unwrap();
        let loaded = Loaded::new(trainer.on(), batch.clone()).unwrap();
        let loss = row(trainer.step(&loaded)).loss;
        (loss, params, trainer.online().unwrap())
    };
    let (_, before, after) = step(None);
    let encoder = sections.trainer::<f64>().model().encoder_len().0;
    // The differences are so small that hardly any ReLU changes sides.
    for at in (0..encoder).step_by(encoder / 12) {
        let gradient = before[at] - after.params[at];
        let difference = (step(Some((at, 1e-8))).0 - step(Some((at, -1e-8))).0) / 2e-8;
        assert!((gradient - difference).abs() < 2e-5 * (1.0 + difference.abs()), "{at}: {gradient}, not {difference}");
    }
}
