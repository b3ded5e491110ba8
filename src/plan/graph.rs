//! The stages and what each of them reads.

use std::fmt;

use super::key;

/// A stage of the pipeline, in an order in which each comes after its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Data,
    Pretrain,
    Embed,
    /// Control: the encoder as random initialisation leaves it.
    EmbedRandomInit,
    LinearProbe,
    Knn,
}

impl Stage {
    /// All stages, inputs first.
    pub const ALL: [Stage; 6] =
        [Stage::Data, Stage::Pretrain, Stage::Embed, Stage::EmbedRandomInit, Stage::LinearProbe, Stage::Knn];

    /// Stages that nothing reads: what an experiment is after.
    pub const LEAVES: [Stage; 2] = [Stage::LinearProbe, Stage::Knn];

    /// Name in the store, on the screen and in keys.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Data => "data",
            Stage::Pretrain => "pretrain",
            Stage::Embed => "embed",
            Stage::EmbedRandomInit => "embed_random_init",
            Stage::LinearProbe => "linear_probe",
            Stage::Knn => "knn",
        }
    }

    /// Version of what the stage computes and writes; raised when either changes, so that older artifacts no longer count.
    pub fn version(self) -> u64 {
        match self {
            Stage::Data => 4,
            Stage::Pretrain => 11,
            Stage::Embed => 5,
            Stage::EmbedRandomInit => 5,
            Stage::LinearProbe => 2,
            Stage::Knn => 3,
        }
    }

    /// Stages whose artifacts it reads.
    pub fn inputs(self) -> &'static [Stage] {
        match self {
            Stage::Data => &[],
            Stage::Pretrain | Stage::EmbedRandomInit => &[Stage::Data],
            Stage::Embed => &[Stage::Data, Stage::Pretrain],
            Stage::LinearProbe | Stage::Knn => &[Stage::Embed, Stage::EmbedRandomInit],
        }
    }

    /// Fields of the spec that it depends on: sections or single fields by their dotted names, and fields within them that
    /// it does not look at.
    pub fn fields(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Stage::Data => (&["data"], &[]),
            Stage::Pretrain => (
                &[
                    "seed",
                    "augmentations",
                    "encoder",
                    "projector",
                    "predictor",
                    "method",
                    "optimizer",
                    "schedule",
                    "epochs",
                    "batch_size",
                    "gradient_accumulation",
                    "precision",
                    "health",
                ],
                &["augmentations.eval"],
            ),
            Stage::Embed => (&EMBED, &ONLY_TRAINING),
            Stage::EmbedRandomInit => (&EMBED_RANDOM_INIT, &ONLY_TRAINING),
            Stage::LinearProbe => (&["linear_probe", "seed"], &[]),
            Stage::Knn => (&["knn", "seed"], &[]),
        }
    }
}

/// Fields that features do not depend on, or only by way of the trained weights. The control is the random initialisation
/// even where training starts from a file; embeddings are computed in f32 whatever training computes in.
const ONLY_TRAINING: [&str; 3] = [key::INIT, "encoder.stop_grad_patch_embed", key::UNIT];
const EMBED: [&str; 6] =
    ["augmentations.size", "augmentations.mean", "augmentations.std", "augmentations.eval", "encoder", "precision"];
const EMBED_RANDOM_INIT: [&str; 7] = [
    "seed",
    "augmentations.size",
    "augmentations.mean",
    "augmentations.std",
    "augmentations.eval",
    "encoder",
    "precision",
];

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_before_their_readers_and_everything_but_the_leaves_is_read() {
        for (i, stage) in Stage::ALL.into_iter().enumerate() {
            assert!(stage.inputs().iter().all(|input| Stage::ALL[..i].contains(input)), "{stage}");
            let read = Stage::ALL.iter().any(|other| other.inputs().contains(&stage));
            assert_ne!(read, Stage::LEAVES.contains(&stage), "{stage}");
        }
    }
}
