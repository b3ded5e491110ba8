//! What labels mean across files: classes have numbers, which each file may give in its own way.

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
/// Names in the metadata are numbered as the first file with names numbers them, and the numbers of other files are taken to
/// their names. Text that no metadata name follows, sorted: that of the training split, then what the test split alone has.
/// Numbers that nothing names stay as they are.
pub struct Classes {
    names: Vec<String>,
    by_name: HashMap<String, i64>,
    /// The file whose metadata number the names.
    named: Option<PathBuf>,
    /// Files whose numbers are not those of the data set: their number to ours.
    renumbered: HashMap<PathBuf, Vec<i64>>,
}

impl Classes {
    /// The classes that the files of both splits have.
    ///
    /// Errors: numbers without names beside files that number their classes differently or hold text.
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
                // A file may know fewer classes than the others.
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
        // A number without a name means one thing only where all files number alike.
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

    /// Number of a class, which is given one if it has none.
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

    /// Names by number, where there is a label (`most` is the largest); without names, numbers stand for themselves.
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
