//! `snclr verify resume`: trains a few steps without kills and with them, and compares the states bit by bit.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::super::Global;
use crate::{
    artifact::Store,
    plan::{Against, Planner, Stage},
    run::{
        self, Reporter, duration,
        resume_check::{self, Digests},
    },
    spec::{self, Experiment},
    stage::{Interrupt, Silent, Stopped},
};

/// The fewest checkpoints that a training with the default number of steps saves.
const CHECKPOINTS: u64 = 3;
/// The smallest default number of steps, so that training lasts long enough to be killed.
const STEPS: u64 = 12;
/// How many times to try a training with kills. A try counts only if it was killed at least once.
const ATTEMPTS: usize = 5;

/// Prove that pretraining gives the same bits after kills and resumes as without
///
/// Works in a scratch folder (see TMPDIR), and does not touch the runs folder. Training saves a checkpoint after every update,
/// is killed with SIGKILL at random moments, and resumes. Then its weights, optimiser, momentum branch, running statistics,
/// queue and cursor are compared with those of an undisturbed training. Ends with exit code 1 if they differ.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Spec of the experiment
    pub spec: PathBuf,
    /// Override a key of the spec, e.g. `method.tau=0.1`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Steps to train [default: 12, or the steps of 3 updates if that is more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Number of kills, at random moments
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub kills: u64,
    /// Seed of the random moments [default: from the clock]
    #[arg(long, value_name = "SEED")]
    pub kill_seed: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Internal: be the training that is killed
    #[arg(long, hide = true)]
    pub child: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let experiment = spec::load(&args.spec, &args.set)?.experiment;
    let steps = args.steps.unwrap_or(STEPS.max(CHECKPOINTS * experiment.gradient_accumulation as u64));
    if args.child {
        let reporter = Arc::new(Reporter::new(global.verbosity()));
        resume_check::train(&Store::open(&global.runs), &experiment, steps, &reporter)?;
        return Ok(ExitCode::SUCCESS);
    }
    // On Ctrl-C the training process stops by itself. This process continues, to remove the scratch folder.
    let interrupt = Interrupt::default();
    run::watch(&interrupt)?;
    let scratch = tempfile::tempdir().context("creating a scratch folder (TMPDIR says where)")?;
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let trial = Trial {
        args: &args,
        global,
        experiment: &experiment,
        interrupt,
        steps,
        root: scratch.path().join("runs"),
        random: ChaCha8Rng::seed_from_u64(args.kill_seed.unwrap_or_else(clock)),
    };
    let verdict = trial.run()?;
    let text = if args.json { format!("{}\n", verdict.json()) } else { verdict.text() };
    write!(std::io::stdout(), "{text}")?;
    Ok(if verdict.is_equal() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs both trainings, one after the other, in the same runs folder, so that images are read once.
struct Trial<'a> {
    args: &'a Args,
    global: &'a Global,
    experiment: &'a Experiment,
    interrupt: Interrupt,
    steps: u64,
    root: PathBuf,
    random: ChaCha8Rng,
}

/// The result of the comparison.
struct Verdict {
    steps: u64,
    /// For each kill, the steps saved by then.
    kills: Vec<u64>,
    whole: Digests,
    resumed: Digests,
}

impl Trial<'_> {
    fn run(mut self) -> anyhow::Result<Verdict> {
        lend_data(&self.global.runs, &self.root, self.experiment)?;
        self.say(&format!("training {} steps without a kill", self.steps));
        let begun = Instant::now();
        self.end(self.start()?)?;
        let took = begun.elapsed();
        let whole = resume_check::digests(&self.store(), self.experiment)?;
        let steps = self.saved()?;
        for _ in 0..ATTEMPTS {
            self.forget()?;
            let kills = self.disturb(took)?;
            if !kills.is_empty() {
                let resumed = resume_check::digests(&self.store(), self.experiment)?;
                return Ok(Verdict { steps, kills, whole, resumed });
            }
        }
        bail!(
            "{} steps end in {}, too fast to kill them in time; train more (--steps {})",
            self.steps,
            duration(took),
            10 * self.steps
        )
    }

    /// Trains with kills, and returns the steps saved at each.
    fn disturb(&mut self, took: Duration) -> anyhow::Result<Vec<u64>> {
        let mut kills = Vec::new();
        let longest = took.mul_f64(2.0 / (self.args.kills + 1) as f64);
        while (kills.len() as u64) < self.args.kills {
            let moment = longest.mul_f64(self.random.random_range(0.0..1.0));
            let mut child = self.start()?;
            sleep(moment);
            if child.try_wait().context("watching the training")?.is_some() {
                // The training finished first: nothing is left to kill.
                self.end(child)?;
                return Ok(kills);
            }
            child.kill().context("killing the training")?;
            child.wait().context("waiting for the killed training")?;
            kills.push(self.saved()?);
            self.say(&format!("killed after {}, {} steps saved", duration(moment), kills[kills.len() - 1]));
        }
        self.end(self.start()?)?;
        Ok(kills)
    }

    fn start(&self) -> anyhow::Result<Child> {
        self.stop_if_asked()?;
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.args(["--quiet", "--runs"]).arg(&self.root);
        command.args(["--device", &self.global.device.to_string()]);
        if let Some(threads) = self.global.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        command.args(["verify", "resume", "--child", "--steps", &self.steps.to_string()]);
        for set in &self.args.set {
            command.args(["--set", set]);
        }
        command.arg("--").arg(&self.args.spec);
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("starting the training")
    }

    /// Waits for a training to finish.
    fn end(&self, mut child: Child) -> anyhow::Result<()> {
        let status = child.wait().context("waiting for the training")?;
        self.stop_if_asked()?;
        // The training has printed its error.
        ensure!(status.success(), "the training ended with {status}; nothing was compared");
        Ok(())
    }

    fn stop_if_asked(&self) -> Result<(), Stopped> {
        match self.interrupt.requested() {
            true => Err(Stopped::InterruptedAt { stage: "verify resume" }),
            false => Ok(()),
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.root)
    }

    fn saved(&self) -> anyhow::Result<u64> {
        Ok(resume_check::progress_of(&self.store(), self.experiment)?.unwrap_or(0))
    }

    /// Removes the training, and keeps the images.
    fn forget(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.root.join("work")).context("listing checkpoints")?.flatten() {
            crate::artifact::atomic::remove_dir(&entry.path())?;
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        if !self.global.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

/// Links the images of the runs folder into the scratch folder, if they are whole, and the hashes of source files.
fn lend_data(from: &Path, to: &Path, experiment: &Experiment) -> anyhow::Result<()> {
    let named = || format!("preparing {}", to.display());
    let cache = to.join("cache");
    fs::create_dir_all(&cache).with_context(named)?;
    for entry in fs::read_dir(from.join("cache")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("sources-") {
            fs::copy(entry.path(), cache.join(entry.file_name())).with_context(named)?;
        }
    }
    let store = Store::open(to);
    let planner = Planner::new(&store, experiment, Path::new(""), &Silent, &Interrupt::default())?;
    let Some(key) = planner.resolve(Stage::Data, &Default::default(), Against::Nearest).key else { return Ok(()) };
    // Looks without hashing, since hashing would write into the runs folder. The scratch folder hashes the images.
    if let Some(artifact) = Store::open(from).artifact(Stage::Data.name(), &key) {
        let stage = to.join("store").join(Stage::Data.name());
        fs::create_dir_all(&stage).with_context(named)?;
        let dir = fs::canonicalize(artifact.dir()).with_context(named)?;
        std::os::unix::fs::symlink(dir, stage.join(key.as_str())).with_context(named)?;
    }
    Ok(())
}

impl Verdict {
    /// Each part with its digests in both states, in order.
    fn rows(&self) -> Vec<(&'static str, Option<&String>, Option<&String>)> {
        let mut parts: Vec<_> = self.whole.keys().chain(self.resumed.keys()).copied().collect();
        parts.sort_unstable();
        parts.dedup();
        parts.into_iter().map(|part| (part, self.whole.get(part), self.resumed.get(part))).collect()
    }

    fn is_equal(&self) -> bool {
        self.whole == self.resumed
    }

    fn json(&self) -> serde_json::Value {
        let row = |(part, whole, resumed): (&str, Option<&String>, Option<&String>)| json!({ "part": part, "whole": whole, "resumed": resumed, "equal": whole == resumed });
        json!({
            "equal": self.is_equal(),
            "steps": self.steps,
            "saved_steps_at_kills": self.kills,
            "parts": self.rows().into_iter().map(row).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["", "without kills", "killed and resumed", ""]);
        let short = |digest: Option<&String>| digest.map_or("-".to_owned(), |digest| digest[..16].to_owned());
        for (part, whole, resumed) in self.rows() {
            let same = if whole == resumed { "equal" } else { "different" };
            table.add_row([part.to_owned(), short(whole), short(resumed), same.to_owned()]);
        }
        let steps = self.kills.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let kills = super::count(self.kills.len(), "kill");
        let verdict = match self.is_equal() {
            true => "both states are the same, bit by bit",
            false => "the states differ: this spec does not resume exactly; please report it with the spec",
        };
        format!("{table}\n{} steps, {kills} (at step {steps}): {verdict}\n", self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_differs_or_is_missing_is_named() {
        let digests =
            |parts: &[(&'static str, &str)]| parts.iter().map(|(p, d)| (*p, d.repeat(64))).collect::<Digests>();
        let whole = digests(&[("cursor", "a"), ("queue", "b")]);
        let mut verdict = Verdict { steps: 12, kills: vec![0, 7], whole: whole.clone(), resumed: whole };
        assert!(verdict.is_equal());
        assert!(verdict.text().ends_with("12 steps, 2 kills (at step 0, 7): both states are the same, bit by bit\n"));
        verdict.resumed = digests(&[("cursor", "a")]);
        let text = verdict.text();
        assert!(text.contains("│ queue  ┆ bbbbbbbbbbbbbbbb ┆ -                  ┆ different │"), "{text}");
        assert!(text.contains("the states differ") && !verdict.is_equal());
        assert_eq!(verdict.json()["parts"][1]["equal"], false);
    }
}
