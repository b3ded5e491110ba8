//! Runs the stages of a plan in order. A cached artifact is used, a damaged one is made again, and a stage that another process
//! runs is waited for.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::progress::Reporter;
use crate::{
    artifact::{
        Artifact, ArtifactWriter, Attempt, Components, Environment, Found, Key, Lock, Process, RunAttempt, StageRecord,
        Store,
    },
    plan::{Against, Planner, Stage, Verdict},
    remote::Cache,
    stage::{Interrupt, Progress, StageContext, Stopped},
};

/// The longest pause between two attempts at a lock that another process holds.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The work of a stage: reads the artifacts of its input stages, and writes tables.
pub type Work<'a> =
    dyn Fn(Stage, &BTreeMap<Stage, Artifact>, &mut ArtifactWriter, &StageContext) -> anyhow::Result<()> + 'a;

/// Runs the stages of one plan.
pub struct Driver<'a> {
    pub store: &'a Store,
    pub planner: &'a Planner<'a>,
    pub work: &'a Work<'a>,
    pub reporter: Arc<Reporter>,
    pub interrupt: &'a Interrupt,
    pub checkpoint_interval: Duration,
    /// The record of the run, which notes every stage that runs; None where no run is recorded.
    pub attempt: Option<&'a RunAttempt<'a>>,
    /// The shared cache, if there is one.
    pub cache: Option<&'a Cache>,
}

/// How a stage came by its artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was in the store.
    Cached,
    /// It was in the shared cache.
    Fetched,
    /// The stage ran.
    Ran,
}

/// The artifact of a stage, and how it was found or made.
#[derive(Clone, Debug)]
pub struct StageOutcome {
    pub stage: Stage,
    pub how: How,
    /// Wall-clock seconds of the stage, including waits; close to 0 if it was cached.
    pub seconds: f64,
    pub artifact: Artifact,
}

/// The entry of a stage in the record of a run.
pub fn stage_record(stage: Stage, artifact: &Artifact) -> StageRecord {
    StageRecord {
        stage: stage.name().to_owned(),
        key: artifact.stage_key().clone(),
        content: artifact.content().to_owned(),
        seconds: artifact.manifest().milliseconds as f64 / 1000.0,
    }
}

impl How {
    /// The name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            How::Cached => "cached",
            How::Fetched => "fetched",
            How::Ran => "ran",
        }
    }
}

impl Driver<'_> {
    /// Finds or makes the artifact of every stage, in order.
    pub fn run(&self) -> anyhow::Result<Vec<StageOutcome>> {
        self.run_of(self.planner.stages())
    }

    /// Finds or makes the artifacts of these stages. The inputs of a stage come before it.
    pub fn run_of(&self, stages: &[Stage]) -> anyhow::Result<Vec<StageOutcome>> {
        let mut come_by = BTreeMap::new();
        'pass: loop {
            let mut artifacts = BTreeMap::new();
            let mut outcomes = Vec::new();
            for &stage in stages {
                let begun = Instant::now();
                let Some((artifact, how)) = self.stage(stage, &artifacts)? else {
                    // An input was damaged and has been moved away, or an artifact has been removed: start again.
                    continue 'pass;
                };
                let passed = (how, begun.elapsed().as_secs_f64());
                if how != How::Cached {
                    come_by.insert(stage, passed);
                }
                artifacts.insert(stage, artifact.clone());
                let (how, seconds) = come_by.get(&stage).copied().unwrap_or(passed);
                outcomes.push(StageOutcome { stage, how, seconds, artifact });
            }
            return Ok(outcomes);
        }
    }

    /// Finds or makes the artifact of one stage. None when an input was damaged and has been moved away, or when another
    /// process removed the artifact just now.
    fn stage(&self, stage: Stage, inputs: &BTreeMap<Stage, Artifact>) -> anyhow::Result<Option<(Artifact, How)>> {
        let planned = self.planner.resolve(stage, inputs, Against::Nearest);
        let reason = planned.reason();
        let key = planned.key.context("inputs come first")?;
        self.store.count_on(stage.name(), &key)?;
        if let Verdict::Cached(artifact) = planned.verdict {
            if !artifact.dir().exists() {
                // `snclr gc` removed the artifact between our look and our lease: look again.
                return Ok(None);
            }
            self.store.tidy(&artifact)?;
            self.reporter.stage_cached(stage.name(), key.short());
            if let Some(kept) = planned.kept {
                self.reporter.log(&format!("{stage} was {kept}"));
            }
            return Ok(Some((artifact, How::Cached)));
        }
        self.stop_if_asked(stage)?;
        if let Some(artifact) = self.fetch(stage, &key)? {
            return Ok(Some((artifact, How::Fetched)));
        }
        let read = stage.inputs().into_iter().filter_map(|input| Some((input, inputs.get(&input)?)));
        for (input, artifact) in read {
            if let Err(what) = self.verify(artifact) {
                let lock = self.lock(input, artifact.stage_key())?;
                self.discard(&lock, input, artifact.stage_key(), &what)?;
                return Ok(None);
            }
        }
        let lock = self.lock(stage, &key)?;
        match self.store.find(stage.name(), &key) {
            Found::Hit(artifact) => {
                // The process that held the lock has made the artifact.
                self.reporter.stage_cached(stage.name(), key.short());
                if let Some(kept) = planned.kept {
                    self.reporter.log(&format!("{stage} was {kept}"));
                }
                return Ok(Some((artifact, How::Cached)));
            }
            Found::Damaged { what } => self.discard(&lock, stage, &key, &what)?,
            Found::Missing => {}
        }
        if let Some(attempt) = self.attempt {
            let done = inputs.iter().map(|(stage, artifact)| stage_record(*stage, artifact)).collect();
            attempt.at(stage.name(), &key, done)?;
        }
        self.reporter.stage_begins(stage.name(), &reason);
        let begun = Instant::now();
        let artifact = self.make(&lock, stage, &key, planned.components, inputs);
        self.reporter.stage_ends();
        let artifact = artifact?;
        self.reporter.stage_ran(stage.name(), key.short(), begun.elapsed());
        Ok(Some((artifact, How::Ran)))
    }

    /// Fetches the missing artifact of a stage from the shared cache, if the cache has it.
    fn fetch(&self, stage: Stage, key: &Key) -> anyhow::Result<Option<Artifact>> {
        let Some(cache) = self.cache.filter(|cache| cache.reads()) else { return Ok(None) };
        let lock = self.lock(stage, key)?;
        match self.store.find(stage.name(), key) {
            Found::Hit(_) => return Ok(None),
            Found::Damaged { what } => self.discard(&lock, stage, key, &what)?,
            Found::Missing => {}
        }
        self.reporter.stage_fetches(stage.name());
        let fetched = cache.fetch(self.store, &lock, stage.name(), key, &*self.reporter);
        self.reporter.stage_ends();
        if let Some(artifact) = &fetched {
            let made = artifact.manifest().environment.as_ref();
            let made = made.map_or("another machine".to_owned(), Environment::describe);
            self.reporter.stage_fetched(stage.name(), key.short(), &made);
        }
        Ok(fetched)
    }

    /// Fetches those missing artifacts of these stages that the shared cache has.
    pub fn fetch_of(&self, stages: &[Stage]) -> anyhow::Result<()> {
        let mut artifacts = BTreeMap::new();
        for &stage in stages {
            let planned = self.planner.resolve(stage, &artifacts, Against::Nothing);
            let Some(key) = planned.key else { continue };
            let artifact = match planned.verdict {
                Verdict::Cached(artifact) => Some(artifact),
                _ => {
                    self.store.count_on(stage.name(), &key)?;
                    self.fetch(stage, &key)?
                }
            };
            artifacts.extend(artifact.map(|artifact| (stage, artifact)));
        }
        Ok(())
    }

    fn make(
        &self,
        lock: &Lock,
        stage: Stage,
        key: &Key,
        components: Components,
        inputs: &BTreeMap<Stage, Artifact>,
    ) -> anyhow::Result<Artifact> {
        // Remove leftovers only now, so that a run with nothing to do lists no folders.
        self.store.sweep()?;
        let reporter = self.reporter.clone();
        if let Some(cache) = self.cache {
            cache.announce(stage.name(), key);
            if let Some(step) = cache.fetch_checkpoint(self.store, lock, stage.name(), key, &*self.reporter) {
                self.reporter.log(&format!("{stage}: took the checkpoint after step {step} from the shared cache"));
            }
        }
        let mut checkpoints = self.store.checkpoints(stage.name(), key, move |text| reporter.warn(text))?;
        if let Some(hook) = self.cache.and_then(|cache| cache.checkpoint_hook(stage.name(), key)) {
            checkpoints.when_saved(hook);
        }
        let context = StageContext {
            progress: &*self.reporter,
            interrupt: self.interrupt,
            checkpoints: &checkpoints,
            checkpoint_interval: self.checkpoint_interval,
        };
        let made = (|| {
            let mut writer = self.store.begin(lock, stage.name(), components)?;
            (self.work)(stage, inputs, &mut writer, &context).with_context(|| format!("stage {stage}"))?;
            self.store.commit(lock, writer)
        })();
        let artifact = made.or_else(|error| self.made_elsewhere(stage, key, error))?;
        if let Some(cache) = self.cache {
            cache.offer(&artifact);
        }
        Ok(artifact)
    }

    /// Uses the artifact of another machine if this one failed meanwhile. Where locks do not reach other machines, two may run
    /// the same stage. The first to finish removes the checkpoints, which may make the other fail.
    fn made_elsewhere(&self, stage: Stage, key: &Key, error: anyhow::Error) -> anyhow::Result<Artifact> {
        match self.store.find(stage.name(), key) {
            Found::Hit(artifact) if error.downcast_ref::<Stopped>().is_none() => {
                // Remove the checkpoints that we wrote after the other machine had removed them.
                self.store.remove_work(stage.name(), key)?;
                self.reporter
                    .log(&format!("{stage}: another process has made it meanwhile; this one failed: {error:#}"));
                Ok(artifact)
            }
            _ => Err(error),
        }
    }

    fn verify(&self, artifact: &Artifact) -> Result<(), String> {
        if self.store.is_verified(artifact) {
            return Ok(());
        }
        self.reporter.stage_begins(artifact.stage(), "checking its hashes before reading");
        self.reporter.start(Some(artifact.size() >> 20), "MiB");
        let mut done = 0;
        let result = self.store.verify(artifact, &mut |n| {
            self.reporter.advance(((done + n) >> 20) - (done >> 20));
            done += n;
        });
        self.reporter.stage_ends();
        result
    }

    fn discard(&self, lock: &Lock, stage: Stage, key: &Key, what: &str) -> anyhow::Result<()> {
        let Some(moved) = self.store.set_aside(lock, stage.name(), key)? else { return Ok(()) };
        self.reporter.warn(&format!(
            "damaged {stage} artifact {}: {what}; moved to {}, making it again",
            key.short(),
            moved.display()
        ));
        Ok(())
    }

    /// Takes the lock of a stage, and waits while another process holds it.
    fn lock(&self, stage: Stage, key: &Key) -> anyhow::Result<Lock> {
        let (mut told, mut pause) = (None, Duration::from_millis(50));
        loop {
            match self.store.lock(stage.name(), key)? {
                Attempt::Held(lock) => return Ok(lock),
                Attempt::Busy(holder) => {
                    if told.as_ref() != Some(&holder) && (told.is_none() || holder.is_some()) {
                        let who = match &holder {
                            None => "another process".to_owned(),
                            Some(process) if process == Process::here() => "another point".to_owned(),
                            Some(process) => process.describe(),
                        };
                        self.reporter.log(&format!("{stage}: waiting for {who}, which runs the same stage"));
                        told = Some(holder);
                    }
                    self.stop_if_asked(stage)?;
                    // Pauses grow, so that a long wait does not load a network file system.
                    sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn stop_if_asked(&self, stage: Stage) -> anyhow::Result<()> {
        match self.interrupt.requested() {
            true => Err(Stopped::InterruptedAt { stage: stage.name() }.into()),
            false => Ok(()),
        }
    }
}
