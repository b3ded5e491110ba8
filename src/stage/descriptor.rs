//! The descriptor of a stage: name, version, input tables, output tables, cost, metrics. Each stage declares its descriptor in
//! its own file. A stage runs from a struct with the fields of a spec that it reads, and its key includes this struct.

use sha2::{Digest, Sha256};

use crate::{
    artifact::{Artifact, hash},
    tables::{Table, column::Column},
};

/// A stage of the pipeline. The order puts each one after its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Data,
    Pretrain,
    Embed,
    /// Control: the encoder with random weights.
    EmbedRandomInit,
    /// Control: the encoder with the weights of `encoder.init`, before training.
    EmbedInitial,
    LinearProbe,
    Knn,
}

/// The declaration of a stage.
#[derive(Debug)]
pub struct Descriptor {
    /// Name in the store, on the screen and in keys.
    pub name: &'static str,
    /// Version of the stage's computation and output. Raise it when either changes, so that older artifacts are no longer used.
    pub version: u64,
    /// The tables of other artifacts that the stage may read.
    pub inputs: &'static [Input],
    /// The tables that the stage writes; some artifacts lack some of them.
    pub tables: &'static [Table],
    pub cost: Cost,
    /// The table of the stage's metrics, and the prefix of their names.
    pub figures: Option<(Table, &'static str)>,
}

/// Tables of another stage's artifact.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub stage: Stage,
    pub table: Table,
    pub depends: Depends,
}

/// The part of an input table that a result depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depends {
    /// All of it.
    All,
    /// One column, which stands for the others.
    Column(Column),
    /// Nothing: only diagnostics read the table.
    Nothing,
}

/// What determines the time and size of a stage, for estimates.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Leaves that must be equal for times to be comparable: they set the cost of one image. A section stands for all its
    /// leaves.
    pub of_an_image: &'static [&'static str],
    /// Tables that grow with the number of images.
    pub grows: &'static [Table],
}

impl Input {
    /// The leaf of the key for this input; None if no result depends on it.
    pub fn leaf(&self) -> Option<String> {
        let tables = format!("inputs.{}.{}", self.stage, self.table.name.trim_end_matches(['*', '-']));
        match self.depends {
            Depends::All => Some(tables),
            Depends::Column(column) => Some(format!("{tables}.{}", column.name)),
            Depends::Nothing => None,
        }
    }

    /// The value of the leaf: a hash of the input in `artifact`.
    pub fn content(&self, artifact: &Artifact) -> String {
        let files = artifact.manifest().files.iter().filter(|file| self.table.is(&file.name));
        let mut contents = files.map(|file| match self.depends {
            Depends::Column(column) => file.columns.get(column.name).unwrap_or(&file.content),
            Depends::All | Depends::Nothing => &file.content,
        });
        if !self.table.name.ends_with('*') {
            return contents.next().cloned().unwrap_or_default();
        }
        let mut hasher = Sha256::new();
        contents.for_each(|content| hasher.update(content));
        hash::hex(&hasher.finalize())
    }
}

impl Cost {
    /// Whether a leaf affects the cost of an image.
    pub fn is_of_an_image(&self, leaf: &str) -> bool {
        self.of_an_image.iter().any(|section| is_inside(leaf, section))
    }

    /// Whether a table grows with the number of images.
    pub fn grows(&self, table: &str) -> bool {
        self.grows.iter().any(|growing| growing.is(table))
    }
}

/// Whether the dotted key `key` is `section` or inside it.
pub fn is_inside(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{CLASSES, CURVE, TEST, TRAIN, column::CONTENT_HASH};

    #[test]
    fn a_section_holds_its_leaves_and_no_other_words_that_begin_alike() {
        let cost = Cost { of_an_image: &["encoder", "precision"], grows: &[TRAIN, CURVE] };
        assert!(cost.is_of_an_image("encoder.arch") && cost.is_of_an_image("precision"));
        assert!(!cost.is_of_an_image("encoders"));
        assert!(cost.grows("train-00001") && cost.grows("curve") && !cost.grows("curves"));
    }

    #[test]
    fn a_leaf_says_what_is_read() {
        let input = |table, depends| Input { stage: Stage::Data, table, depends }.leaf();
        assert_eq!(input(TRAIN, Depends::Column(CONTENT_HASH)).as_deref(), Some("inputs.data.train.content_hash"));
        assert_eq!(input(CLASSES, Depends::All).as_deref(), Some("inputs.data.classes"));
        assert_eq!(input(TEST, Depends::Nothing), None);
    }
}
