//! The `cluster:` file: what each stage asks of a cluster. Operational: nothing of it is part of a key.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::stage::Stage;

/// What tasks ask for, and what those of some stages ask for instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Of every stage.
    #[serde(default)]
    all: Wanted,
    /// Of stages by their names.
    #[serde(default)]
    stages: BTreeMap<String, Wanted>,
}

/// What a task asks for. What is not said is the cluster's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Partition, or queue.
    pub partition: Option<String>,
    /// Longest time, as the scheduler writes it, e.g. `24:00:00`.
    pub time: Option<String>,
    /// GPUs.
    pub gpus: Option<u32>,
    /// CPUs; worker threads are as many.
    pub cpus: Option<u32>,
    /// Memory, as the scheduler writes it, e.g. `32G`.
    pub memory: Option<String>,
    /// Most tasks of the stage at once.
    pub at_once: Option<u32>,
    /// Device that computes, e.g. `cuda:0`.
    pub device: Option<String>,
    /// Seconds between the signal to save a checkpoint and the end of the time; 120 by default.
    pub warning: Option<u32>,
    /// Other options of the scheduler, each as it would stand on its command line.
    pub options: Option<Vec<String>>,
    /// Lines of shell before the program, e.g. `module load cuda`.
    pub setup: Option<String>,
}

/// What is wrong with a `cluster:` file.
#[derive(Debug, thiserror::Error)]
pub enum ResourcesError {
    #[error("reading {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {what}; it holds `all:` and `stages:`, each stage with any of partition, time, gpus, cpus, memory, at_once, device, warning, options, setup", path.display())]
    Invalid { path: PathBuf, what: String },
    #[error("{}: there is no stage {stage:?}; there are {}", path.display(), Stage::ALL.map(Stage::name).join(", "))]
    NoStage { path: PathBuf, stage: String },
    #[error("{}: {what} has a line break in it", path.display())]
    LineBreak { path: PathBuf, what: String },
}

impl Resources {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ResourcesError`].
    pub fn read(path: &Path) -> Result<Resources, ResourcesError> {
        let owned = path.to_owned();
        let text =
            fs::read_to_string(path).map_err(|source| ResourcesError::Unreadable { path: owned.clone(), source })?;
        let resources: Resources = serde_yaml::from_str(&text)
            .map_err(|error| ResourcesError::Invalid { path: owned.clone(), what: error.to_string() })?;
        if let Some(stage) = resources.stages.keys().find(|name| Stage::ALL.iter().all(|stage| stage.name() != *name)) {
            return Err(ResourcesError::NoStage { path: owned, stage: stage.clone() });
        }
        // They become lines of a script.
        for wanted in resources.stages.values().chain([&resources.all]) {
            let texts = [&wanted.partition, &wanted.time, &wanted.memory, &wanted.device].into_iter().flatten();
            if let Some(text) = texts.chain(wanted.options.iter().flatten()).find(|text| text.contains('\n')) {
                return Err(ResourcesError::LineBreak { path: owned, what: format!("{text:?}") });
            }
        }
        Ok(resources)
    }

    /// What a stage asks for.
    pub fn of(&self, stage: Stage) -> Wanted {
        let (all, own) = (self.all.clone(), self.stages.get(stage.name()).cloned().unwrap_or_default());
        Wanted {
            partition: own.partition.or(all.partition),
            time: own.time.or(all.time),
            gpus: own.gpus.or(all.gpus),
            cpus: own.cpus.or(all.cpus),
            memory: own.memory.or(all.memory),
            at_once: own.at_once.or(all.at_once),
            device: own.device.or(all.device),
            warning: own.warning.or(all.warning),
            options: own.options.or(all.options),
            setup: own.setup.or(all.setup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Resources, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.yaml");
        fs::write(&path, text).unwrap();
        Resources::read(&path).map_err(|error| error.to_string().replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn a_stage_asks_for_its_own_and_else_for_what_all_ask() {
        let resources =
            read("all: {partition: cpu, cpus: 4, time: '1:00:00'}\nstages: {pretrain: {partition: gpu, gpus: 1}}")
                .unwrap();
        let pretrain = resources.of(Stage::Pretrain);
        assert_eq!((pretrain.partition.as_deref(), pretrain.gpus, pretrain.cpus), (Some("gpu"), Some(1), Some(4)));
        let knn = resources.of(Stage::Knn);
        assert_eq!((knn.partition.as_deref(), knn.gpus, knn.time.as_deref()), (Some("cpu"), None, Some("1:00:00")));
        assert_eq!(Resources::default().of(Stage::Knn), Wanted::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_what_goes() {
        let error = |text: &str| read(text).unwrap_err();
        assert!(error("all: {gpu: 1}").starts_with("DIR/cluster.yaml: all: unknown field `gpu`, expected one of"));
        assert_eq!(
            error("stages: {train: {gpus: 1}}"),
            "DIR/cluster.yaml: there is no stage \"train\"; there are data, pretrain, embed, embed_random_init, embed_initial, \
             linear_probe, knn"
        );
        assert_eq!(error("all: {partition: \"a\\nb\"}"), "DIR/cluster.yaml: \"a\\nb\" has a line break in it");
    }
}
