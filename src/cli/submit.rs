//! `snclr submit`: hands the work of specs to a scheduler, each piece once.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Mutex, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};

use super::{Global, changes::Changes, show::count};
use crate::{
    artifact::Store,
    cluster::{Folder, Resources, State, Tasks, slurm},
    run::{self, Reporter, Setting},
    spec::Point,
    stage::Interrupt,
};

/// Submit the missing stages of specs to a scheduler; what points share is submitted once
///
/// Each stage becomes a job array behind those of the stages that it reads. What is there is not submitted again: after a failure, or
/// a crash of the scheduler, the same command submits what is missing, and says so when nothing is. `snclr status` shows how far it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Specs of experiments
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    #[command(flatten)]
    pub changes: Changes,
    /// What takes the work
    #[arg(long, value_enum, default_value_t = Executor::Slurm)]
    pub executor: Executor,
    /// YAML file of what stages ask for: partition, time, gpus, cpus, memory
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Print the scripts, and submit nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What takes the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Executor {
    /// Job arrays, by sbatch
    Slurm,
}

/// Runs the command.
///
/// # Errors
/// When a spec or the `cluster:` file is invalid, source files cannot be read, or the scheduler refuses.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let resources = args.cluster.as_deref().map(Resources::read).transpose()?.unwrap_or_default();
    let work = Work::of(&args.specs, &args.changes, global)?;
    let Executor::Slurm = args.executor;
    let arrays = slurm::arrays(&work.tasks, slurm::longest_array());
    let runs = std::path::absolute(&global.runs)?;
    let folder = Folder::new(&runs, &work.name, arrays.iter().flat_map(|array| array.tasks.iter().copied()));
    let site = slurm::Site {
        name: work.name.clone(),
        program: std::env::current_exe().context("finding this program")?,
        base: std::env::current_dir()?,
        runs,
        folder: folder.dir().to_owned(),
    };
    let mut text = String::new();
    let mut submitted: Vec<(&slurm::Array, String)> = Vec::new();
    for array in &arrays {
        let script = slurm::script(&site, array, &resources.of(array.stage));
        if args.dry_run {
            text += &format!("# {}.sh\n{script}\n", array.name);
            continue;
        }
        for task in &array.tasks {
            let experiment = &work.points[task.point].loaded.experiment;
            folder.write_point(task.point, &serde_yaml::to_string(experiment)?)?;
        }
        folder.write_tasks(&array.name, &array.tasks)?;
        let path = folder.write_script(&array.name, &script)?;
        let inputs = array.stage.inputs();
        let behind = submitted.iter().filter(|(other, _)| inputs.contains(&other.stage)).map(|(_, id)| id.clone());
        submitted.push((array, slurm::submit(&path, &behind.collect::<Vec<_>>())?));
    }
    for (array, id) in &submitted {
        text += &format!("{:<20} {} in job {id}\n", array.name, count(array.tasks.len(), "task"));
    }
    text += &fact(&work, &arrays, args.dry_run);
    let text = if args.json { format!("{}\n", to_json(&work, &submitted, &folder)) } else { text };
    write!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// The points of specs, and the work that they are.
pub struct Work {
    /// Of the first spec.
    pub name: String,
    pub points: Vec<Point>,
    pub tasks: Tasks,
}

impl Work {
    /// Reads the specs and looks into the store. Points that have all their artifacts and no results get them: where each stage was
    /// made by a task of its own, nobody else may have seen the last one.
    ///
    /// # Errors
    /// When a spec is invalid, source files cannot be read, or results cannot be written.
    pub fn of(specs: &[PathBuf], changes: &Changes, global: &Global) -> anyhow::Result<Work> {
        let mut points = Vec::new();
        for spec in specs {
            points.extend(changes.load(spec)?.points);
        }
        let interrupt = Interrupt::default();
        run::watch(&interrupt)?;
        let reporter = Reporter::new(global.verbosity());
        let store = Store::open(&global.runs);
        let experiments: Vec<_> = points.iter().map(|point| &point.loaded.experiment).collect();
        let tasks = Tasks::of(&store, &experiments, &reporter, &interrupt)?;
        reporter.stage_ends();
        let setting = Setting {
            store: &store,
            interrupt: &interrupt,
            checkpoint_interval: Duration::ZERO,
            threads: global.threads,
            planning: Mutex::default(),
            cache: None,
        };
        for (point, experiment) in experiments.iter().enumerate().filter(|(point, _)| tasks.is_done(*point)) {
            let artifacts = tasks.artifacts_of(point);
            if !run::is_recorded(&store, experiment, &artifacts) {
                setting.collect(experiment, &artifacts)?;
            }
        }
        let name = points.first().map_or(String::new(), |point| point.loaded.experiment.name.clone());
        Ok(Work { name, points, tasks })
    }

    /// Number of tasks that `is` true of.
    pub fn count(&self, is: impl Fn(&State) -> bool) -> usize {
        self.tasks.tasks.iter().filter(|task| is(&task.state)).count()
    }
}

fn fact(work: &Work, arrays: &[slurm::Array], dry_run: bool) -> String {
    let points = count(work.points.len(), "point");
    let tasks: usize = arrays.iter().map(|array| array.tasks.len()).sum();
    let (done, running) =
        (work.count(|state| *state == State::Done), work.count(|state| matches!(state, State::Running(_))));
    let hopeless = work.tasks.tasks.iter().filter(|task| work.tasks.is_hopeless(task)).count();
    let some = |number: usize, what: &str| if number > 0 { format!(", {number} {what}") } else { String::new() };
    let beside = some(running, "running") + &some(hopeless, "not to be had: their training diverged");
    match (tasks, dry_run) {
        (0, _) => format!("nothing to do: {} of {points} done{beside}\n", count(done, "stage")),
        (_, true) => {
            format!("would submit {} in {}; {done} done{beside}\n", count(tasks, "task"), count(arrays.len(), "array"))
        }
        (_, false) => {
            format!("submitted {} in {}; {done} done{beside}\n", count(tasks, "task"), count(arrays.len(), "array"))
        }
    }
}

fn to_json(work: &Work, submitted: &[(&slurm::Array, String)], folder: &Folder) -> Value {
    let array = |(array, id): &(&slurm::Array, String)| json!({ "array": array.name, "stage": array.stage.name(), "tasks": array.tasks.len(), "job": id });
    json!({
        "points": work.points.len(),
        "tasks": work.tasks.tasks.len(),
        "done": work.count(|state| *state == State::Done),
        "submitted": submitted.iter().map(array).collect::<Vec<_>>(),
        "folder": (!submitted.is_empty()).then(|| folder.dir().display().to_string()),
    })
}
