//! The pretrain stage: trains the encoder on images, with metrics and checkpoints. A resume gives the same bits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use arrow::array::RecordBatch;

use super::{
    Cost, Depends, Descriptor, Input, Interrupt, Progress, Silent, Stage, StageContext, Stopped,
    evaluation::scores_rows,
    initial,
    metrics::{Timing, metrics_rows, neighbours_rows, positiveness_rows, timing_rows, watched},
    online_knn::OnlineKnn,
    tensors,
    weights::weights_batch,
};
pub use crate::train::PretrainConfig;
use crate::{
    artifact::{Artifact, ArtifactWriter, Checkpoints, Kind, hash},
    dataset::Split,
    encoder::Encoder,
    ops::named::NamedTensor,
    ranks::Ranks,
    tables::{self, Table, column},
    train::{
        Device, Health, Loader, OnDevice, Positiveness, StepRow, Trainer, Trains, Watched, Watcher, fit_batches,
        learning_rates,
    },
};

/// The descriptor of the stage. The key depends on the hashes and labels of images, but not on paths or unreadable images.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "pretrain",
    version: 14,
    inputs: &[
        Input { stage: Stage::Data, table: tables::TRAIN, depends: Depends::Column(column::CONTENT_HASH) },
        Input { stage: Stage::Data, table: tables::TEST, depends: Depends::Nothing },
    ],
    tables: &[
        tables::WEIGHTS,
        tables::HEADS,
        tables::MOMENTUM_BRANCH,
        tables::QUEUE,
        tables::METRICS,
        tables::POSITIVENESS,
        tables::NEIGHBOURS,
        tables::TIMING,
        tables::NOTES,
        tables::SUMMARY,
    ],
    cost: Cost {
        of_an_image: &[
            "encoder",
            "method.name",
            "precision",
            "augmentations.size",
            "augmentations.local_crops",
            "projector",
        ],
        grows: &[tables::METRICS, tables::TIMING, tables::POSITIVENESS],
    },
    figures: Some((tables::SUMMARY, "train/")),
};

/// Trains the encoder on the training split of `data`. Other ranks, if any, must [take part](take_part).
///
/// # Errors
/// [`Stopped::Interrupted`] on an interruption, [`Stopped::Diverged`] on NaN or collapse; then all ranks stop after the same
/// step. Any other failure may be on this rank only.
pub fn run(
    config: &PretrainConfig,
    data: &Artifact,
    out: &mut ArtifactWriter,
    context: &StageContext,
) -> anyhow::Result<()> {
    let StageContext { progress, interrupt, checkpoints, checkpoint_interval } = *context;
    let keeper = Keeper { out, checkpoints, interval: checkpoint_interval, log: Log::new(0) };
    train(config, data, progress, interrupt, Some(keeper))
}

/// Takes part in a training whose results the first rank writes.
///
/// # Errors
/// As [`run`].
pub fn take_part(config: &PretrainConfig, data: &Artifact, interrupt: &Interrupt) -> anyhow::Result<()> {
    train(config, data, &Silent, interrupt, None)
}

fn train(
    config: &PretrainConfig,
    data: &Artifact,
    progress: &dyn Progress,
    interrupt: &Interrupt,
    keeper: Option<Keeper>,
) -> anyhow::Result<()> {
    let split = Arc::new(Split::open(&data.files_of(&tables::TRAIN))?);
    let (images, batch, accumulation) = (split.len(), config.batch_size, config.gradient_accumulation);
    fit_batches(batch, accumulation, images)?;
    let per_update = batch * accumulation;
    let steps_per_epoch = (images / per_update * accumulation) as u64;
    let total = steps_per_epoch * config.epochs as u64;
    let training = Training { config, split, data, steps_per_epoch, total, progress, interrupt, keeper };
    Device::chosen().run(config.precision, training)?
}

/// A training in progress, on any device.
struct Training<'a> {
    config: &'a PretrainConfig<'a>,
    split: Arc<Split>,
    data: &'a Artifact,
    steps_per_epoch: u64,
    total: u64,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
    /// Where the first rank writes results; None on other ranks.
    keeper: Option<Keeper<'a>>,
}

/// Writes the results of a training.
struct Keeper<'a> {
    out: &'a mut ArtifactWriter,
    checkpoints: &'a Checkpoints,
    /// The longest time between two checkpoints.
    interval: Duration,
    log: Log,
}

impl OnDevice for Training<'_> {
    type Output = anyhow::Result<()>;

    fn run<B: Trains>(self, on: B) -> anyhow::Result<()> {
        let Self { config, split, data, steps_per_epoch, total, progress, interrupt, mut keeper } = self;
        let (images, batch) = (split.len(), config.batch_size);
        let ranks = on.ranks().clone();
        let mut trainer = Trainer::new(on, config, steps_per_epoch, images)?;
        announce(config, trainer.model().params.len(), images, total, progress);

        if let Some(state) = load_checkpoint(&ranks, keeper.as_ref())? {
            trainer.restore(&state)?;
            progress.log(&format!("resuming after step {} of {total}", trainer.steps()));
        } else if let Some(path) = config.encoder.init() {
            let ([params, buffers], prefix) = initial::load(&trainer.model().encoder, path)?;
            trainer.start_encoder_from([&params, &buffers])?;
            let of = prefix.map_or_else(String::new, |prefix| format!(" (the part `{prefix}`)"));
            progress.log(&format!("the encoder starts from {}{of}", path.display()));
        }
        let online_knn = match &keeper {
            Some(_) => OnlineKnn::new(config, &split, data, steps_per_epoch)?,
            None => None,
        };
        let steps = trainer.steps()..total;
        let loader =
            Loader::<B>::start(&ranks, split, &config.augmentations, config.seed, batch, steps_per_epoch, steps);
        if let Some(keeper) = &mut keeper {
            keeper.log = Log::new(trainer.steps());
        }
        let mut watcher = Watcher::new(config, steps_per_epoch);
        if trainer.steps() > 0 {
            look_back(&mut watcher, &ranks, keeper.as_ref(), trainer.steps())?;
        }
        progress.start(Some(total), "steps");
        progress.advance(trainer.steps());

        while trainer.steps() < total {
            let start = Instant::now();
            let prepared = loader.next()?;
            let waited = start.elapsed();
            let mut rows: Vec<StepRow> = trainer.step(&trainer.on().load(prepared)?)?.into_iter().collect();
            let elapsed = start.elapsed();
            progress.advance(1);
            // A GPU may not have finished the step yet. Its row then arrives during the next step, unless it is needed now.
            let knn = online_knn.as_ref().filter(|knn| knn.is_due(trainer.steps()));
            let last = trainer.steps() == total;
            // If one rank must stop, all stop after the same step.
            let due = keeper.as_ref().is_some_and(|keeper| keeper.log.saved.elapsed() >= keeper.interval);
            let [asked, due] = ranks.any([interrupt.requested(), due]);
            let saves = !last && trainer.between_updates() && (asked || due);
            if last || saves || knn.is_some() {
                rows.extend(trainer.settle()?);
            }
            if let Some(knn) = knn {
                let top1 = knn.top1(&trainer)?;
                rows.last_mut().expect("the step's row").knn_top1 = Some(top1);
                progress.value("kNN %", 100.0 * top1);
                progress.detail(&format!("after {} steps: kNN top-1 {:.1} %", trainer.steps(), 100.0 * top1));
            }
            progress.value("images/s", batch as f64 / elapsed.as_secs_f64());
            let taken = rows.iter().try_for_each(|row| record_row(row, &mut watcher, progress));
            let state = if saves && taken.is_ok() { Some(agreed_state(&ranks, &trainer)?) } else { None };
            if let Some(keeper) = &mut keeper {
                keeper.log.time(trainer.steps() - 1, elapsed, waited, batch);
                keeper.log.rows.extend(rows);
                if taken.is_err() {
                    // Save the curves, which show how the training failed. Save no state: a resume would fail in the same way.
                    keeper.log.flush(keeper.checkpoints, trainer.steps())?;
                } else if let Some(state) = &state {
                    keeper.log.save(trainer.steps(), state, keeper.checkpoints)?;
                }
            }
            taken?;
            if saves && asked {
                return Err(Stopped::Interrupted { stage: DESCRIPTOR.name, step: trainer.steps() }.into());
            }
        }
        if !ranks.is_alone() {
            agreed_state(&ranks, &trainer)?;
        }
        if let Some(scaling) = trainer.scaling()? {
            progress.log(&scaling.to_string());
        }
        let Some(Keeper { out, checkpoints, mut log, .. }) = keeper else { return Ok(()) };
        log.flush(checkpoints, total)?;
        // With a learning rate of 0 throughout, the encoder must not change. Batch norm's running statistics follow the images
        // at any rate, so they are restored.
        let (_, rate) = learning_rates(config.optimizer, batch * config.gradient_accumulation);
        let unmoved = if rate == 0.0 { Some(first_buffers(config, &trainer.model().encoder)?) } else { None };
        write(&trainer, unmoved.as_deref(), checkpoints, Watcher::new(config, steps_per_epoch), total, batch, out)
    }
}

/// The state of the trainer, after checking that all ranks agree on it.
fn agreed_state<B: Trains>(ranks: &Ranks, trainer: &Trainer<B>) -> anyhow::Result<Vec<NamedTensor<f32>>> {
    let state = trainer.state()?;
    if !ranks.is_alone() {
        ranks.agree(&[("what they have trained", hash::bytes(&tensors::to_bytes(&state)?))])?;
    }
    Ok(state)
}

/// The buffers of the encoder before training.
fn first_buffers(config: &PretrainConfig, encoder: &Encoder) -> anyhow::Result<Vec<f32>> {
    Ok(match config.encoder.init() {
        Some(path) => {
            let ([_, buffers], _) = initial::load(encoder, path)?;
            buffers
        }
        None => encoder.init(config.seed).1,
    })
}

/// Prints a summary of the training to come.
fn announce(config: &PretrainConfig, parameters: usize, images: usize, total: u64, progress: &dyn Progress) {
    let (base, effective) = learning_rates(config.optimizer, config.batch_size * config.gradient_accumulation);
    progress.log(&format!(
        "{images} images, {} epochs, {total} steps of {}; {parameters} parameters; learning rate {effective} (base {base})",
        config.epochs,
        config.batch_size,
    ));
}

/// Shows the row of a step with its warnings, and stops if training has failed.
fn record_row(row: &StepRow, watcher: &mut Watcher, progress: &dyn Progress) -> anyhow::Result<()> {
    progress.message(&format!("loss {:.4}", row.loss));
    progress.value("loss", row.loss);
    if let Some((health, positiveness)) = row.diagnosis.filter(|_| row.loss.is_finite()) {
        progress.detail(&details(row.step, &health, &positiveness));
    }
    let Some(warning) = watcher.look(Watched::of(row)) else { return Ok(()) };
    progress.warn(&warning.to_string());
    if warning.stops() { Err(Stopped::Diverged(warning.to_string()).into()) } else { Ok(()) }
}

/// Passes the `steps` before a resume to a watcher, so that it warns as in an uninterrupted training. The first rank reads these
/// steps for all ranks, which have to stop after the same step.
fn look_back(watcher: &mut Watcher, ranks: &Ranks, keeper: Option<&Keeper>, steps: u64) -> anyhow::Result<()> {
    let rows = keeper.map(|keeper| keeper.checkpoints.segments(tables::METRICS.name, steps)).transpose()?.flatten();
    if let Some(rows) = rows {
        for row in watched(&rows)? {
            watcher.look(row);
        }
    }
    let state = ranks.broadcast(bytemuck::bytes_of(&watcher.state()).to_vec());
    watcher.restore(bytemuck::pod_read_unaligned(&state));
    Ok(())
}

/// A line about the health of the embeddings and the positives.
fn details(step: u64, health: &Health, positiveness: &Positiveness) -> String {
    let Health { std, effective_rank, alignment, uniformity, .. } = health;
    let Positiveness { effective_positives, same_class_mass, .. } = positiveness;
    format!(
        "step {step}: spread {std:.3}, effective rank {effective_rank:.1}, alignment {alignment:.3}, uniformity \
         {uniformity:.3}, {effective_positives:.2} effective positives, {same_class_mass:.3} of their weight in the own class"
    )
}

/// The state to resume from. The first rank reads it for all ranks.
fn load_checkpoint(ranks: &Ranks, keeper: Option<&Keeper>) -> anyhow::Result<Option<Vec<NamedTensor<f32>>>> {
    let found = keeper.map(|keeper| keeper.checkpoints.load()).transpose()?.flatten();
    let state = found.map(|(_, tables)| tensors::of_checkpoint(&tables)).transpose()?;
    if ranks.is_alone() {
        return Ok(state);
    }
    let told = ranks.broadcast(state.as_deref().map(tensors::to_bytes).transpose()?.unwrap_or_default());
    if told.is_empty() { Ok(None) } else { tensors::from_bytes(&told).map(Some) }
}

/// The rows since the last checkpoint.
struct Log {
    first_step: u64,
    rows: Vec<StepRow>,
    timing: Vec<Timing>,
    saved: Instant,
}

impl Log {
    fn new(first_step: u64) -> Self {
        Self { first_step, rows: Vec::new(), timing: Vec::new(), saved: Instant::now() }
    }

    fn time(&mut self, step: u64, elapsed: Duration, waited: Duration, batch: usize) {
        let (seconds, waiting_seconds) = (elapsed.as_secs_f64(), waited.as_secs_f64());
        self.timing.push(Timing { step, seconds, waiting_seconds, images_per_second: batch as f64 / seconds });
    }

    /// Saves metrics first, then the state, so that a state never lacks the metrics before it.
    fn save(&mut self, step: u64, state: &[NamedTensor<f32>], checkpoints: &Checkpoints) -> anyhow::Result<()> {
        self.flush(checkpoints, step)?;
        checkpoints.save(step, &[(tables::STATE.name, tensors::to_rows(state))])
    }

    /// Appends the rows to the segments. `next_step` is the step of the next row.
    fn flush(&mut self, checkpoints: &Checkpoints, next_step: u64) -> anyhow::Result<()> {
        if !self.rows.is_empty() {
            for (table, rows) in [
                (tables::METRICS, metrics_rows(&self.rows)),
                (tables::POSITIVENESS, positiveness_rows(&self.rows)),
                (tables::NEIGHBOURS, neighbours_rows(&self.rows)),
                (tables::TIMING, timing_rows(&self.timing)),
            ] {
                checkpoints.append_segment(table.name, self.first_step, &rows)?;
            }
        }
        *self = Log::new(next_step);
        Ok(())
    }
}

/// Writes the artifact: weights, heads, queue, metrics, timing, summary. If `unmoved` is given, it replaces the encoder's
/// buffers.
fn write<B: Trains>(
    trainer: &Trainer<B>,
    unmoved: Option<&[f32]>,
    checkpoints: &Checkpoints,
    watcher: Watcher,
    total: u64,
    batch: usize,
    out: &mut ArtifactWriter,
) -> anyhow::Result<()> {
    let (model, online) = (trainer.model(), trainer.online()?);
    // The entries of the encoder come first.
    let put_back = |buffers: &[f32]| {
        let unmoved = unmoved.unwrap_or(&[]);
        [unmoved, &buffers[unmoved.len()..]].concat()
    };
    let mut encoder = Vec::new();
    let mut heads = Vec::new();
    for (layout, values) in [(&model.params, online.params.as_slice()), (&model.buffers, &put_back(&online.buffers))] {
        for entry in &layout.entries {
            let values = entry.to_torch(&values[entry.range()]);
            match entry.name.strip_prefix("encoder.") {
                Some(name) => encoder.push((name.to_string(), entry.shape.clone(), values)),
                None => heads.push((entry.name.clone(), entry.shape.clone(), values)),
            }
        }
    }
    let mut networks = vec![(tables::WEIGHTS, encoder), (tables::HEADS, heads)];
    if let Some(branch) = trainer.momentum()? {
        let mut momentum = Vec::new();
        for (layout, values) in
            [(&model.params, branch.params.as_slice()), (&model.buffers, &put_back(&branch.buffers))]
        {
            for entry in layout.entries.iter().filter(|e| e.range().end <= values.len()) {
                let values = entry.to_torch(&values[entry.range()]);
                momentum.push((entry.name.clone(), entry.shape.clone(), values));
            }
        }
        networks.push((tables::MOMENTUM_BRANCH, momentum));
    }
    for (table, tensors) in &networks {
        out.whole(table, Kind::Content, &weights_batch(tensors))?;
    }
    let queues = model.method.queues().iter().map(|queue| queue.state(trainer.on()));
    let queue: Vec<_> = queues.collect::<Result<Vec<_>, _>>()?.concat();
    // Empty for methods without a queue.
    out.whole(&tables::QUEUE, Kind::Content, &tensors::to_rows(&queue))?;

    let segments = |table: Table| -> anyhow::Result<RecordBatch> {
        let rows = checkpoints.segments(table.name, total)?;
        table.select(&rows.with_context(|| format!("no rows of {}", table.name))?)
    };
    let [metrics, positiveness] = [segments(tables::METRICS)?, segments(tables::POSITIVENESS)?];
    let timing = segments(tables::TIMING)?;
    let neighbours = checkpoints.segments(tables::NEIGHBOURS.name, total)?;
    let neighbours = tables::NEIGHBOURS.select(&neighbours.unwrap_or_else(|| neighbours_rows(&[])))?;
    out.whole(&tables::METRICS, Kind::Content, &metrics)?;
    out.whole(&tables::POSITIVENESS, Kind::Content, &positiveness)?;
    out.whole(&tables::NEIGHBOURS, Kind::Content, &neighbours)?;
    out.whole(&tables::TIMING, Kind::Measurement, &timing)?;
    out.whole(&tables::NOTES, Kind::Measurement, &notes(watcher, &metrics)?)?;
    write_summary([&metrics, &positiveness], &timing, batch, out)
}

/// The warnings of a training. They may have been overlooked when they were printed, and a resumed training does not repeat them.
fn notes(mut watcher: Watcher, metrics: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let warnings = watched(metrics)?.into_iter().filter_map(|row| watcher.look(row));
    let notes: Vec<_> = warnings.map(|warning| ("warning".to_owned(), warning.to_string())).collect();
    Ok(tables::NOTES.texts_of(&notes))
}

/// Writes the summary of the training for reports.
fn write_summary(
    [metrics, positiveness]: [&RecordBatch; 2],
    timing: &RecordBatch,
    batch: usize,
    out: &mut ArtifactWriter,
) -> anyhow::Result<()> {
    let mut seconds: Vec<f64> = tables::TIMING.reals(timing, column::SECONDS)?.values().to_vec();
    let total: f64 = seconds.iter().sum();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let waiting: f64 = tables::TIMING.reals(timing, column::WAITING_SECONDS)?.values().iter().sum();
    let losses = tables::METRICS.reals(metrics, column::LOSS)?;
    let mut rows = vec![
        ("train/images_per_second".to_string(), batch as f64 / median),
        ("train/seconds".to_string(), total),
        ("train/waiting_share".to_string(), waiting / total),
        ("train/loss".to_string(), *losses.values().last().expect("a run has steps")),
    ];
    for (table, rows_of, columns) in [
        (
            tables::METRICS,
            metrics,
            &[
                column::STD,
                column::EFFECTIVE_RANK,
                column::ALIGNMENT,
                column::UNIFORMITY,
                column::NEIGHBOUR_AGREEMENT,
                column::KNN_TOP1,
            ][..],
        ),
        (
            tables::POSITIVENESS,
            positiveness,
            &[column::EFFECTIVE_POSITIVES, column::SAME_CLASS_MASS, column::QUEUE_AGE, column::CHURN][..],
        ),
    ] {
        for column in columns {
            if let Some(value) = table.reals(rows_of, *column)?.iter().flatten().last() {
                rows.push((format!("train/{}", column.name), value));
            }
        }
    }
    out.whole(&tables::SUMMARY, Kind::Measurement, &scores_rows(&rows))
}
