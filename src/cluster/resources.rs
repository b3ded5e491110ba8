//! Reads the file of `--cluster`: the resources that each stage requests. Nothing in it is part of an artifact's key.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    spec::{Format, ONE_LINE, SpecErrors},
    stage::Stage,
};

/// Default number of seconds between the signal to save a checkpoint and the end of a task's time.
const WARNING: u32 = 120;

/// What tasks ask for, and what those of some stages ask for instead.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Of every stage.
    #[serde(default)]
    all: Wanted,
    /// Of stages by their names.
    #[serde(default)]
    #[schemars(schema_with = "of_stages")]
    stages: BTreeMap<String, Wanted>,
    /// What Kubernetes starts, and where it finds the runs folder.
    pub kubernetes: Option<Kubernetes>,
}

/// What a task asks for. What is not said is the cluster's own default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Partition of Slurm, its queue.
    #[schemars(regex(pattern = ONE_LINE))]
    pub partition: Option<String>,
    /// Longest time, as Slurm writes it, e.g. `24:00:00`.
    #[schemars(regex(pattern = ONE_LINE))]
    pub time: Option<String>,
    /// GPUs.
    pub gpus: Option<u32>,
    /// CPUs; worker threads are as many.
    #[schemars(range(min = 1))]
    pub cpus: Option<u32>,
    /// Memory, as Slurm writes it, e.g. `32G`.
    #[schemars(regex(pattern = ONE_LINE))]
    pub memory: Option<String>,
    /// Most tasks of the stage at once.
    #[schemars(range(min = 1))]
    pub at_once: Option<u32>,
    /// Device that computes, e.g. `cuda:0`.
    #[schemars(regex(pattern = ONE_LINE))]
    pub device: Option<String>,
    /// Seconds between the signal to save a checkpoint and the end of the time; 120 by default.
    pub warning: Option<u32>,
    /// Other options of sbatch, each as it would stand on its command line.
    #[schemars(inner(regex(pattern = ONE_LINE)))]
    pub options: Option<Vec<String>>,
    /// Lines of shell before the program, e.g. `module load cuda`.
    pub setup: Option<String>,
    /// Other fields of the pod's spec in Kubernetes, e.g. `nodeSelector`.
    pub pod: Option<Map<String, Value>>,
}

/// What Kubernetes has to know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// Image that has `snclr` among its programs.
    pub image: String,
    /// Claim to the volume that holds the runs folder and the data.
    pub claim: String,
    /// Folder where that volume is mounted: on this machine, and in pods.
    pub mount: PathBuf,
    /// Namespace of the jobs; that of kubectl by default.
    pub namespace: Option<String>,
}

fn of_stages(generator: &mut SchemaGenerator) -> Schema {
    let wanted = generator.subschema_for::<Wanted>();
    let properties: Map<String, Value> =
        Stage::ALL.iter().map(|stage| (stage.name().to_owned(), wanted.clone().to_value())).collect();
    json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
}

impl Resources {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// All errors in the file, at once.
    pub fn read(path: &Path) -> Result<Resources, SpecErrors> {
        static FORMAT: LazyLock<Format<Resources>> = LazyLock::new(Format::default);
        FORMAT.read(path)
    }

    /// The resources of a stage: its own settings, or else those of all stages.
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
            pod: own.pod.or(all.pod),
        }
    }
}

impl Wanted {
    /// Seconds between the signal to save a checkpoint and the end of the time.
    pub fn warning(&self) -> u32 {
        self.warning.unwrap_or(WARNING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Resources, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.yaml");
        std::fs::write(&path, text).unwrap();
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
        assert_eq!(read("# nothing\n").unwrap(), Resources::default());
    }

    #[test]
    fn all_that_is_wrong_is_told_with_its_place_and_what_goes() {
        let text =
            "all: {gpu: 1, cpus: 0}\nstages:\n  pretrian: {gpus: 1}\n  knn: {partition: \"a\\nb\", options: [1]}\n";
        let wanted = "partition, time, gpus, cpus, memory, at_once, device, warning, options, setup, pod";
        let expected = format!(
            "\
error: DIR/cluster.yaml:1:7: all.gpu: unknown key
  found:   gpu: 1
  allowed: {wanted}
  help:    did you mean `gpus`?

error: DIR/cluster.yaml:1:21: all.cpus: out of range
  found:   0
  allowed: a whole number, at least 1
  help:    the nearest allowed value is 1

error: DIR/cluster.yaml:3:3: stages.pretrian: unknown key
  found:   pretrian: a section with the keys gpus
  allowed: data, pretrain, embed, embed_random_init, embed_initial, linear_probe, knn
  help:    did you mean `pretrain`?

error: DIR/cluster.yaml:4:20: stages.knn.partition: wrong type
  found:   \"a\\nb\"
  allowed: text without a line break
  help:    it becomes part of a line: write it in one

error: DIR/cluster.yaml:4:38: stages.knn.options.0: wrong type
  found:   1
  allowed: text

DIR/cluster.yaml: 5 errors"
        );
        assert_eq!(read(text).unwrap_err(), expected);
        assert!(read("kubernetes: {image: a}").unwrap_err().contains("kubernetes.claim: required key is missing"));
    }
}
