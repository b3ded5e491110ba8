//! The options of a case, and which cases accept them.

use std::path::PathBuf;

use super::Case;
use crate::train::{Device, Precision};

/// The options of a case. None keeps the case's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Precision of the arithmetic.
    pub precision: Precision,
    /// Rows in the queue.
    pub queue_length: Option<usize>,
    /// Neighbours to search for.
    pub k: Option<usize>,
    /// Images per training step.
    pub batch: Option<usize>,
    /// Queries per search.
    pub queries: Option<usize>,
    /// Images to augment or train on.
    pub images: Option<usize>,
    /// Folder into which to write the encoded images, so that other programs can be measured on the same images.
    pub save_images: Option<PathBuf>,
}

/// Why a case cannot be measured with these options.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("--case {case} cannot be measured: {why}")]
    Training { case: Case, why: String },
    #[error(
        "--case {case} is measured in f32 only, not in {precision}; leave --precision out, or choose a case that trains \
         (small, resnet18, resnet50, vit_tiny, vit_small, epoch, epoch-imagenet; of the others queue knows bf16)"
    )]
    Precision { case: Case, precision: String },
    #[error(
        "--case {case} is measured on the CPU only, not on {device}; leave --device out, or choose a case that trains \
         (small, resnet18, resnet50, vit_tiny, vit_small, epoch, epoch-imagenet), or queue in f32"
    )]
    Device { case: Case, device: Device },
    #[error("--case {case} is no training step; choose small, resnet18, resnet50, vit_tiny or vit_small")]
    Roofline { case: Case },
    #[error("--case {case} has no {option}; leave it out, or choose a case that has it ({cases})")]
    Option { case: Case, option: &'static str, cases: String },
}

/// An option that only some cases have.
#[derive(Clone, Copy)]
enum Varied {
    QueueLength,
    K,
    Batch,
    Queries,
    Images,
    SaveImages,
}

impl Varied {
    fn name(self) -> &'static str {
        match self {
            Varied::QueueLength => "--queue-length",
            Varied::K => "-k",
            Varied::Batch => "--batch",
            Varied::Queries => "--queries",
            Varied::Images => "--images",
            Varied::SaveImages => "--save-images",
        }
    }

    fn suits(self, case: Case) -> bool {
        let searches = case.trains() || case == Case::Queue;
        match self {
            Varied::QueueLength => searches,
            Varied::K => searches || case == Case::Knn,
            Varied::Batch => case.trains(),
            Varied::Queries => case == Case::Queue,
            Varied::Images | Varied::SaveImages => case.augments() || case.loads(),
        }
    }
}

impl Options {
    /// Checks that `case` accepts all options that are set. A trainer checks its own options when it is created.
    ///
    /// # Errors
    /// The first option that `case` does not accept.
    pub fn check(&self, case: Case) -> Result<(), Unfit> {
        if !case.trains() {
            let known = self.precision == Precision::F32 || (case == Case::Queue && self.precision == Precision::Bf16);
            if !known {
                return Err(Unfit::Precision { case, precision: self.precision_name() });
            }
            if Device::chosen() != Device::Cpu && (case, self.precision) != (Case::Queue, Precision::F32) {
                return Err(Unfit::Device { case, device: Device::chosen() });
            }
        }
        let options = [
            (self.queue_length.is_some(), Varied::QueueLength),
            (self.k.is_some(), Varied::K),
            (self.batch.is_some(), Varied::Batch),
            (self.queries.is_some(), Varied::Queries),
            (self.images.is_some(), Varied::Images),
            (self.save_images.is_some(), Varied::SaveImages),
        ];
        for (asked, option) in options {
            if asked && !option.suits(case) {
                let cases: Vec<_> = Case::ALL.into_iter().filter(|case| option.suits(*case)).map(Case::name).collect();
                return Err(Unfit::Option { case, option: option.name(), cases: cases.join(", ") });
            }
        }
        Ok(())
    }

    /// The name of the precision in specs.
    pub fn precision_name(&self) -> String {
        match serde_json::to_value(self.precision) {
            Ok(serde_json::Value::String(name)) => name,
            other => unreachable!("a precision is a name, not {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_case_does_not_know_is_refused_with_those_that_do() {
        let refused = |options: &Options, case| options.check(case).unwrap_err().to_string();
        let queue = Options { queue_length: Some(10), ..Options::default() };
        assert!(queue.check(Case::Queue).is_ok() && queue.check(Case::Resnet50).is_ok());
        assert_eq!(
            refused(&queue, Case::Knn),
            "--case knn has no --queue-length; leave it out, or choose a case that has it \
             (small, resnet18, resnet50, vit_tiny, vit_small, epoch, epoch-imagenet, queue)"
        );
        let rounded = Options { precision: Precision::Bf16, ..Options::default() };
        assert!(rounded.check(Case::Queue).is_ok() && rounded.check(Case::Knn).is_err());
        let half = Options { precision: Precision::F16, ..Options::default() };
        assert!(half.check(Case::Small).is_ok(), "the trainer decides");
        assert!(refused(&half, Case::Probe).starts_with("--case probe is measured in f32 only, not in f16; leave"));
    }
}
