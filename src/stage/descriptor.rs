//! What a stage is, said once in the stage's own file: name, version, what it reads of other artifacts, what its time and size
//! go by, and its figures. What it reads of a spec is the struct that it runs from, whose serialisation is in its key.

use sha2::{Digest, Sha256};

use crate::{
    artifact::{Artifact, hash},
    tables::{Table, column::Column},
};

/// A stage of the pipeline, in an order in which each comes after its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Data,
    Pretrain,
    Embed,
    /// Control: the encoder as random initialisation leaves it.
    EmbedRandomInit,
    /// Control: the encoder with the weights that training starts from, where a file gives them.
    EmbedInitial,
    LinearProbe,
    Knn,
}

/// What a stage is.
#[derive(Debug)]
pub struct Descriptor {
    /// Name in the store, on the screen and in keys.
    pub name: &'static str,
    /// Version of what the stage computes and writes; raised when either changes, so that older artifacts no longer count.
    pub version: u64,
    /// All that it can read of other artifacts.
    pub inputs: &'static [Input],
    /// All that it writes; some artifacts do not have all of them.
    pub tables: &'static [Table],
    pub cost: Cost,
    /// The table of its figures, and what their names begin with.
    pub figures: Option<(Table, &'static str)>,
}

/// Tables of another stage's artifact.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub stage: Stage,
    pub table: Table,
    pub depends: Depends,
}

/// What a result depends on in the tables that a stage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depends {
    /// Everything in them.
    All,
    /// One column, which stands for what else is read.
    Column(Column),
    /// Nothing: diagnostics alone read them.
    Nothing,
}

/// What a stage's time and size go by.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Leaves that must be equal for times to compare: the cost of one image. A section stands for all of its leaves.
    pub of_an_image: &'static [&'static str],
    /// Tables that grow with what goes through.
    pub grows: &'static [Table],
}

impl Input {
    /// The leaf of a key that holds what is read; None where no result depends on it.
    pub fn leaf(&self) -> Option<String> {
        let tables = format!("inputs.{}.{}", self.stage, self.table.name.trim_end_matches(['*', '-']));
        match self.depends {
            Depends::All => Some(tables),
            Depends::Column(column) => Some(format!("{tables}.{}", column.name)),
            Depends::Nothing => None,
        }
    }

    /// The value of the leaf: a hash of what is read in `artifact`.
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
    /// Whether a leaf says what an image costs.
    pub fn is_of_an_image(&self, leaf: &str) -> bool {
        self.of_an_image.iter().any(|section| is_inside(leaf, section))
    }

    /// Whether a table grows with what goes through.
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
