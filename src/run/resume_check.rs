//! The resume check: a short pretraining that keeps its whole state, which `snclr verify resume` kills, resumes and compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use super::{Driver, Reporter, Work, stage_work};
use crate::{
    artifact::{Artifact, Store, content_of, hash},
    ops::named::{NamedTensor, Values},
    plan::{Against, Planner, Stage},
    spec::Experiment,
    stage::{Interrupt, Progress, Silent, StageContext, Stopped, tensors},
    tables::{METRICS, column},
};

/// Digest of the tensors of each part of a state.
pub type Digests = BTreeMap<&'static str, String>;

/// Runs or resumes data and pretraining in `store`, with a checkpoint after every update. Stops at the first update after
/// `steps` steps. Training must be longer than that.
///
/// # Errors
/// When a stage fails, or the training does not have more than `steps` steps.
pub fn train(store: &Store, experiment: &Experiment, steps: u64, reporter: &Arc<Reporter>) -> anyhow::Result<()> {
    let interrupt = Interrupt::default();
    let planner = Planner::new(store, experiment, Path::new(""), &**reporter, &interrupt)?;
    reporter.stage_ends();
    let stages = stage_work(experiment);
    let work: Box<Work> = Box::new(|stage, inputs, out, context| {
        if stage != Stage::Pretrain {
            return stages(stage, inputs, out, context);
        }
        if let Some((step, _)) = context.checkpoints.load()?
            && step >= steps
        {
            return Err(Stopped::Interrupted { stage: "pretrain", step }.into());
        }
        let stop = Interrupt::default();
        let counting = Counting { inner: context.progress, interrupt: &stop, done: AtomicU64::new(0), steps };
        stages(stage, inputs, out, &StageContext { progress: &counting, interrupt: &stop, ..*context })
    });
    let driver = Driver {
        store,
        planner: &planner,
        work: &*work,
        reporter: reporter.clone(),
        interrupt: &interrupt,
        checkpoint_interval: Duration::ZERO,
        attempt: None,
        cache: None,
    };
    match driver.run() {
        Err(error) if matches!(error.downcast_ref(), Some(Stopped::Interrupted { .. })) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            bail!("the training must have more than {steps} steps; use fewer (--steps) or more epochs (--set epochs=…)")
        }
    }
}

/// Progress that interrupts training after a number of steps.
struct Counting<'a> {
    inner: &'a dyn Progress,
    interrupt: &'a Interrupt,
    done: AtomicU64,
    steps: u64,
}

impl Progress for Counting<'_> {
    fn start(&self, total: Option<u64>, unit: &str) {
        self.inner.start(total.map(|total| total.min(self.steps)), unit);
    }

    fn advance(&self, count: u64) {
        self.inner.advance(count);
        if self.done.fetch_add(count, Ordering::SeqCst) + count >= self.steps {
            self.interrupt.request();
        }
    }

    fn message(&self, text: &str) {
        self.inner.message(text);
    }

    fn value(&self, name: &str, value: f64) {
        self.inner.value(name, value);
    }

    fn log(&self, text: &str) {
        self.inner.log(text);
    }

    fn detail(&self, text: &str) {
        self.inner.detail(text);
    }

    fn warn(&self, text: &str) {
        self.inner.warn(text);
    }
}

/// The step of the newest checkpoint of the training in `store`, if there is one.
///
/// # Errors
/// When the store cannot be read.
pub fn progress_of(store: &Store, experiment: &Experiment) -> anyhow::Result<Option<u64>> {
    Ok(checkpoint(store, experiment)?.map(|(step, ..)| step))
}

/// Digests of the state that a training left in `store`, by part.
///
/// # Errors
/// When there is no state, or it cannot be read.
pub fn digests(store: &Store, experiment: &Experiment) -> anyhow::Result<Digests> {
    let (_, state, losses) = checkpoint(store, experiment)?.context("the training left no checkpoint")?;
    let mut parts: BTreeMap<&'static str, Sha256> = BTreeMap::new();
    for NamedTensor { name, shape, values } in &state {
        let hasher = parts.entry(part(name)).or_default();
        hasher.update(format!("{name:?} {shape:?} "));
        match values {
            Values::Real(values) => values.iter().for_each(|value| hasher.update(value.to_le_bytes())),
            Values::Integer(values) => values.iter().for_each(|value| hasher.update(value.to_le_bytes())),
        }
    }
    let mut digests: Digests = parts.into_iter().map(|(part, hasher)| (part, hash::hex(&hasher.finalize()))).collect();
    digests.insert("metrics of every step", losses);
    Ok(digests)
}

/// The part of the state that a tensor belongs to.
fn part(name: &str) -> &'static str {
    match name {
        "step" => "cursor",
        "online.params" => "weights",
        "online.buffers" => "running statistics",
        "momentum.params" => "EMA branch",
        "momentum.buffers" => "EMA running statistics",
        _ if name.starts_with("optimizer.") => "optimiser",
        _ if name.starts_with("churn.") => "neighbour counters",
        // State of the method: queues and counters.
        _ => "queue",
    }
}

type State = (u64, Vec<NamedTensor<f32>>, String);

/// The newest checkpoint: its step, its tensors, and the content hash of its metrics.
fn checkpoint(store: &Store, experiment: &Experiment) -> anyhow::Result<Option<State>> {
    let planner = Planner::new(store, experiment, Path::new(""), &Silent, &Interrupt::default())?;
    let data = planner.resolve(Stage::Data, &BTreeMap::new(), Against::Nearest);
    let Some(data) = data.artifact() else { return Ok(None) };
    let inputs: BTreeMap<Stage, Artifact> = [(Stage::Data, data.clone())].into();
    let key = planner.resolve(Stage::Pretrain, &inputs, Against::Nearest).key.context("its input is there")?;
    let checkpoints = store.checkpoints(Stage::Pretrain.name(), &key, |_| ())?;
    let Some((step, tables)) = checkpoints.load()? else { return Ok(None) };
    let state = tensors::of_checkpoint(&tables)?;
    let metrics = checkpoints.segments(METRICS.name, step)?.context("the checkpoint has no metrics")?;
    let steps: BTreeSet<i64> = METRICS.integers(&metrics, column::STEP)?.values().iter().copied().collect();
    ensure!(steps.len() as u64 == step, "metrics of {} of {step} steps", steps.len());
    Ok(Some((step, state, content_of(&metrics)?)))
}
