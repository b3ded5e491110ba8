//! Lists all stages and their descriptors.

use std::fmt;

use super::{
    data,
    descriptor::{Descriptor, Stage},
    embed, knn, linear_probe, pretrain,
};
use crate::artifact::Artifact;

impl Stage {
    /// All stages, inputs first.
    pub const ALL: [Stage; 7] = [
        Stage::Data,
        Stage::Pretrain,
        Stage::Embed,
        Stage::EmbedRandomInit,
        Stage::EmbedInitial,
        Stage::LinearProbe,
        Stage::Knn,
    ];

    /// The stages of an experiment, inputs first. `EmbedInitial` is one of them if the experiment starts from a file of
    /// weights.
    pub fn of_experiment(starts_from_weights: bool) -> Vec<Stage> {
        Self::ALL.into_iter().filter(|stage| starts_from_weights || *stage != Stage::EmbedInitial).collect()
    }

    /// The descriptor of the stage.
    pub fn descriptor(self) -> &'static Descriptor {
        match self {
            Stage::Data => &data::DESCRIPTOR,
            Stage::Pretrain => &pretrain::DESCRIPTOR,
            Stage::Embed => &embed::DESCRIPTOR,
            Stage::EmbedRandomInit => &embed::CONTROL,
            Stage::EmbedInitial => &embed::INITIAL,
            Stage::LinearProbe => &linear_probe::DESCRIPTOR,
            Stage::Knn => &knn::DESCRIPTOR,
        }
    }

    /// Name in the store, on the screen and in keys.
    pub fn name(self) -> &'static str {
        self.descriptor().name
    }

    /// Version of what the stage computes and writes.
    pub fn version(self) -> u64 {
        self.descriptor().version
    }

    /// The stages whose artifacts this stage reads, without repetitions. Some experiments lack one of them.
    pub fn inputs(self) -> Vec<Stage> {
        let mut stages: Vec<_> = self.descriptor().inputs.iter().map(|input| input.stage).collect();
        stages.dedup();
        stages
    }

    /// The part of an input's artifact that the stage may read. It hides all other tables.
    pub fn readable(self, input: Stage, artifact: &Artifact) -> Artifact {
        let of_it: Vec<_> = self.descriptor().inputs.iter().filter(|read| read.stage == input).collect();
        artifact.narrowed(|table| of_it.iter().any(|read| read.table.is(table)))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_before_their_readers_and_are_read_once() {
        for (i, stage) in Stage::ALL.into_iter().enumerate() {
            let inputs = stage.inputs();
            assert!(inputs.iter().all(|input| Stage::ALL[..i].contains(input)), "{stage}");
            assert!(inputs.windows(2).all(|pair| pair[0] < pair[1]), "{stage}: {inputs:?}");
        }
    }
}
