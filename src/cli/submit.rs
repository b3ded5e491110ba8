//! `snclr submit`: submits the missing stages of specs to a scheduler, each once.

use std::{
    collections::BTreeSet,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Global, changes::Specs, show::count, work::Work};
use crate::cluster::{
    Array, Folder, Kubernetes, Resources, Site, State, arrays,
    kubernetes::{self, KubernetesError},
    slurm,
};

/// Submit the missing stages of specs to a scheduler, each once however many points share it
///
/// Each stage becomes a job array, which waits for the arrays of the stages that it reads. Stages that are done are not
/// submitted again. So after a failure, or a crash of the scheduler, the same command submits what is missing. `snclr status`
/// shows the progress. For Kubernetes the manifests are printed, for `kubectl apply -f -`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub specs: Specs,
    /// Scheduler to submit to
    #[arg(long, value_enum, default_value_t = Executor::Slurm)]
    pub executor: Executor,
    /// YAML file with the resources of each stage: partition, time, gpus, cpus, memory
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Print the scripts or manifests, without submitting or writing anything
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Executor {
    /// Job arrays, by sbatch
    Slurm,
    /// Indexed Jobs, printed for kubectl
    Kubernetes,
}

/// Runs the command.
///
/// # Errors
/// When a spec or the file of `--cluster` is invalid, when source files cannot be read, or when the scheduler refuses.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let resources = args.cluster.as_deref().map(Resources::read).transpose()?.unwrap_or_default();
    let kubernetes = match args.executor {
        Executor::Slurm => None,
        Executor::Kubernetes => Some(resources.kubernetes.as_ref().ok_or(KubernetesError::NoSection)?),
    };
    let work = Work::of(&args.specs, global)?;
    let longest = kubernetes.map_or_else(slurm::longest_array, |_| kubernetes::LONGEST);
    let arrays = arrays(&work.tasks, longest);
    let runs = std::path::absolute(&global.runs)?;
    let folder = Folder::new(&runs, &work.name, arrays.iter().flat_map(|array| array.tasks.iter().copied()));
    let site = Site {
        name: work.name.clone(),
        program: std::env::current_exe().context("finding this program")?,
        base: std::env::current_dir()?,
        runs,
        folder: folder.dir().to_owned(),
    };
    if let Some(cluster) = kubernetes {
        kubernetes::check(&site, cluster)?;
    }
    let submission = Submission { work: &work, arrays: &arrays, folder: &folder, resources: &resources };
    if !args.dry_run {
        submission.write_points()?;
    }
    match kubernetes {
        None => submission.to_slurm(&site, args.dry_run, args.json)?,
        Some(cluster) => submission.to_kubernetes(cluster, site, args.dry_run, args.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The work to submit.
struct Submission<'a> {
    work: &'a Work,
    arrays: &'a [Array<'a>],
    folder: &'a Folder,
    resources: &'a Resources,
}

impl Submission<'_> {
    /// Submits the arrays by sbatch, each to wait for the arrays of its inputs.
    fn to_slurm(&self, site: &Site, dry_run: bool, json: bool) -> anyhow::Result<()> {
        let mut text = String::new();
        let mut submitted: Vec<(&Array, String)> = Vec::new();
        for array in self.arrays {
            let script = slurm::script(site, array, &self.resources.of(array.stage));
            if dry_run {
                text += &format!("# {}.sh\n{script}\n", array.name);
                continue;
            }
            self.folder.write_tasks(&array.name, &array.tasks)?;
            let path = self.folder.write_script(&array.name, &script)?;
            let inputs = array.stage.inputs();
            let behind = submitted.iter().filter(|(other, _)| inputs.contains(&other.stage)).map(|(_, id)| id.clone());
            submitted.push((array, slurm::submit(&path, &behind.collect::<Vec<_>>())?));
        }
        for (array, id) in &submitted {
            text += &format!("{:<20} {} in job {id}\n", array.name, count(array.tasks.len(), "task"));
        }
        text += &self.fact(if dry_run { "would submit" } else { "submitted" });
        if json {
            let array = |(array, id): &(&Array, String)| {
                let (stage, tasks) = (array.stage.name(), array.tasks.len());
                json!({ "array": array.name, "stage": stage, "tasks": tasks, "job": id })
            };
            let submitted: Vec<Value> = submitted.iter().map(array).collect();
            text = format!("{}\n", self.to_json("submitted", submitted, dry_run));
        }
        Ok(write!(std::io::stdout(), "{text}")?)
    }

    /// Prints the manifests of the arrays, and a summary on stderr.
    fn to_kubernetes(&self, cluster: &Kubernetes, site: Site, dry_run: bool, json: bool) -> anyhow::Result<()> {
        // Pods run the program of the image.
        let site = Site { program: "snclr".into(), ..site };
        let number = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut text = String::new();
        let mut manifests = Vec::new();
        for array in self.arrays {
            let manifest = kubernetes::manifest(&site, array, &self.resources.of(array.stage), cluster, number)?;
            let yaml = serde_yaml::to_string(&manifest)?;
            if !dry_run {
                self.folder.write_tasks(&array.name, &array.tasks)?;
                self.folder.write_manifest(&array.name, &yaml)?;
            }
            text += &format!("---\n{yaml}");
            manifests.push(manifest);
        }
        if json {
            text = format!("{}\n", self.to_json("manifests", manifests, dry_run));
        }
        write!(std::io::stdout(), "{text}")?;
        // A closed stderr is no reason to fail.
        let _ = write!(std::io::stderr(), "{}", self.fact("printed"));
        Ok(())
    }

    /// Writes the spec of each point, for the tasks to read.
    fn write_points(&self) -> anyhow::Result<()> {
        let points: BTreeSet<usize> =
            self.arrays.iter().flat_map(|array| &array.tasks).map(|task| task.point).collect();
        points.into_par_iter().try_for_each(|point| {
            let spec = serde_yaml::to_string(&self.work.points[point].loaded.experiment)?;
            self.folder.write_point(point, &spec)
        })
    }

    fn fact(&self, did: &str) -> String {
        let work = self.work;
        let points = count(work.points.len(), "point");
        let tasks: usize = self.arrays.iter().map(|array| array.tasks.len()).sum();
        let (done, running) =
            (work.count(|state| *state == State::Done), work.count(|state| matches!(state, State::Running(_))));
        let hopeless = work.tasks.tasks.iter().filter(|task| work.tasks.is_hopeless(task)).count();
        let some = |number: usize, what: &str| if number > 0 { format!(", {number} {what}") } else { String::new() };
        let beside = some(running, "running") + &some(hopeless, "impossible: their training diverged");
        match tasks {
            0 => format!("nothing to do: {} of {points} done{beside}\n", count(done, "stage")),
            _ => {
                let arrays = count(self.arrays.len(), "array");
                format!("{did} {} in {arrays}; {done} done{beside}\n", count(tasks, "task"))
            }
        }
    }

    /// The JSON object of the submission, with `list` under the key `name`.
    fn to_json(&self, name: &str, list: Vec<Value>, dry_run: bool) -> Value {
        let folder = (!dry_run && !list.is_empty()).then(|| self.folder.dir().display().to_string());
        json!({
            "points": self.work.points.len(),
            "tasks": self.work.tasks.tasks.len(),
            "done": self.work.count(|state| *state == State::Done),
            name: list,
            "folder": folder,
        })
    }
}
