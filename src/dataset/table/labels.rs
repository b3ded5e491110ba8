//! Maps the labels of all files to the class numbers of the data set. Each file may number its classes in its own way.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use super::{
    Container, DataError, Outline, Row,
    columns::{Label, LabelKind},
    rows::{Value, texts},
};
use crate::dataset::{MOST_CLASSES, names::composed};

/// The classes of a data set.
///
/// Names from metadata are numbered as in the first file that has names; the numbers of other files are mapped by name. Text
/// labels that are no such names follow in sorted order: first those of the training split, then those that only the test split
/// has. Numbers without names stay as they are.
pub struct Classes {
    names: Vec<String>,
    by_name: HashMap<String, i64>,
    /// The file whose metadata define the numbers of the names.
    named: Option<PathBuf>,
    /// For each file whose numbers differ from those of the data set: the data set's number by the file's number.
    renumbered: HashMap<PathBuf, Vec<i64>>,
}

impl Classes {
    /// Collects the classes of the files of both splits.
    ///
    /// Errors: numbers without names, if other files number their classes differently or hold text.
    pub fn new(container: Container, train: &[Outline], test: &[Outline]) -> Result<Classes, DataError> {
        let mut classes =
            Classes { names: Vec::new(), by_name: HashMap::new(), named: None, renumbered: HashMap::new() };
        let labelled =
            || train.iter().chain(test).filter_map(|file| Some((file.path.as_path(), file.columns.label.as_ref()?)));
        let mut first: Option<(&Path, &[String])> = None;
        let mut differs: Option<(&Path, &Path)> = None;
        for (path, label) in labelled() {
            let Some(names) = label.classes.as_deref().filter(|_| label.kind == LabelKind::Number) else { continue };
            let numbers: Vec<i64> = names.iter().map(|name| classes.add(name)).collect();
            match first {
                // A file may list only the first of another file's classes.
                Some((other, all)) if !all.starts_with(names) && !names.starts_with(all) => {
                    differs = differs.or(Some((other, path)));
                    classes.renumbered.insert(path.to_owned(), numbers);
                }
                Some((_, all)) if all.len() >= names.len() => {}
                _ => first = Some((path, names)),
            }
        }
        classes.named = first.map(|(path, _)| path.to_owned());
        let mut text: Option<&Path> = None;
        for split in [train, test] {
            let mut found = BTreeSet::new();
            for file in split.iter().filter(|file| is_text(file.columns.label.as_ref())) {
                text = text.or(Some(&file.path));
                collect(container, file, &mut found)?;
            }
            for name in &found {
                classes.add(name);
            }
        }
        // A number without a name is unambiguous only if all files number their classes alike.
        let unnamed = labelled().find(|(_, label)| label.kind == LabelKind::Number && label.classes.is_none());
        if let Some((unnamed, _)) = unnamed {
            let unnamed = unnamed.to_owned();
            if let Some((first, second)) = differs {
                let (first, second) = (first.to_owned(), second.to_owned());
                return Err(DataError::ClassOrder { first, second, unnamed });
            }
            if let Some(text) = text {
                return Err(DataError::MixedLabels { numbers: unnamed, text: text.to_owned() });
            }
        }
        Ok(classes)
    }

    /// The number of a class; a new class gets the next number.
    fn add(&mut self, name: &str) -> i64 {
        let name = composed(name);
        let next = self.names.len() as i64;
        *self.by_name.entry(name).or_insert_with_key(|name| {
            self.names.push(name.clone());
            next
        })
    }

    /// The class of a row.
    ///
    /// Errors: a number that no class of its file has.
    pub fn number(&self, row: &Row) -> Result<Option<i64>, DataError> {
        let outside = |label, classes| DataError::LabelRange { name: row.name(), label, classes };
        match &row.label {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(self.by_name.get(&composed(text)).copied()),
            Some(Value::Number(label)) => match self.renumbered.get(&*row.file) {
                Some(numbers) => {
                    let number = usize::try_from(*label).ok().and_then(|label| numbers.get(label));
                    number.map(|number| Some(*number)).ok_or_else(|| outside(*label, numbers.len()))
                }
                None => {
                    let bound = if self.names.is_empty() { MOST_CLASSES } else { self.names.len() };
                    match &self.named {
                        _ if *label < bound as i64 => Ok(Some(*label)),
                        Some(named) if *named != *row.file => {
                            let (name, named) = (row.name(), named.clone());
                            Err(DataError::Unnamed { name, label: *label, named, classes: bound })
                        }
                        _ => Err(outside(*label, bound)),
                    }
                }
            },
        }
    }

    /// Class names by number, up to the largest label `most`; empty if no label was read (-1). Classes without names are called
    /// by their numbers.
    pub fn names(&self, most: i64) -> Vec<String> {
        match self.names.is_empty() || most < 0 {
            true => (0..=most).map(|label| label.to_string()).collect(),
            false => self.names.clone(),
        }
    }
}

fn is_text(label: Option<&Label>) -> bool {
    label.is_some_and(|label| label.kind == LabelKind::Text)
}

/// The different texts in the label column of a file.
fn collect(container: Container, file: &Outline, found: &mut BTreeSet<String>) -> Result<(), DataError> {
    let Some(label) = &file.columns.label else { return Ok(()) };
    for text in texts(container, &file.path, label)? {
        let text = text?;
        if !found.contains(&text) {
            found.insert(composed(&text));
        }
        if found.len() > MOST_CLASSES {
            return Err(DataError::TooManyLabels {
                path: file.path.clone(),
                column: label.name.clone(),
                most: MOST_CLASSES,
            });
        }
    }
    Ok(())
}
