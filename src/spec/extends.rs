//! `extends: base.yaml`: reads a spec and its bases, and merges them into one document.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    describe::show,
    error::SpecError,
    locate::Place,
    merge::merge,
    problem::Problem,
    read::{self, Document},
};

/// The key that names the base.
pub const KEY: &str = "extends";

/// Reads a spec from `text`, the content of `path`, and all its bases, and merges each file into its base.
///
/// # Errors
/// When one of the files cannot be read, is not YAML, or extends itself. Errors about single values that were found before are
/// included.
pub fn document(path: &Path, text: &str) -> Result<Document, Vec<SpecError>> {
    let mut chain = Chain { files: vec![], documents: vec![] };
    let mut next = Some((path.to_owned(), text.to_owned()));
    while let Some((path, text)) = next {
        next = chain.read(path, &text).map_err(|fatal| {
            let earlier = chain.documents.iter_mut().flat_map(|document| std::mem::take(&mut document.errors));
            earlier.collect::<Vec<_>>().into_iter().chain(fatal).collect::<Vec<_>>()
        })?;
    }
    let mut documents = chain.documents.into_iter().rev();
    let root = documents.next().expect("the spec itself");
    Ok(documents.fold(root, merge))
}

/// The files read so far, and their documents. A base comes after the spec that extends it.
struct Chain {
    files: Vec<(PathBuf, Arc<Path>)>,
    documents: Vec<Document>,
}

impl Chain {
    /// Reads one file. Returns the path and the text of its base, if it has one.
    fn read(&mut self, path: PathBuf, text: &str) -> Result<Option<(PathBuf, String)>, Vec<SpecError>> {
        let file: Arc<Path> = path.as_path().into();
        let mut document = read::document(text, &file).map_err(|errors| located(errors, &file, self.files.len()))?;
        let given = document.value.as_object_mut().and_then(|map| map.shift_remove(KEY));
        let place = document.places.take_child(KEY).map(|node| node.value);
        // The canonical path identifies a file, whichever path leads to it. A text that was not read from a file keeps its given
        // path.
        self.files.push((fs::canonicalize(&path).unwrap_or(path.clone()), file.clone()));
        self.documents.push(document);
        let Some(given) = given else { return Ok(None) };
        let fail = |problem| vec![SpecError { place: place.clone(), key: KEY.to_owned(), problem }];
        let Value::String(name) = &given else {
            let allowed = "the path of a spec, relative to the folder of this file".to_owned();
            return Err(fail(Problem::WrongType { found: show(&given), allowed, hint: None }));
        };
        let base = path.parent().unwrap_or(Path::new("")).join(name);
        if let Some(found) = self.circle(&base) {
            return Err(fail(Problem::Circle { found }));
        }
        let text = read::text(&base).map_err(|errors| {
            let unreadable = errors.into_iter().find_map(|error| match error.problem {
                Problem::Unreadable { reason, nearest } => Some((reason, nearest)),
                _ => None,
            });
            let (reason, nearest) = unreadable.unwrap_or_default();
            // The suggestion is relative to the same folder as the given name.
            let nearest = nearest.and_then(|path| {
                let file = Path::new(&path).file_name()?;
                Some(Path::new(name).with_file_name(file).display().to_string())
            });
            fail(Problem::Base { found: format!("{} ({})", show(&given), base.display()), reason, nearest })
        })?;
        Ok(Some((base, text)))
    }

    /// The cycle of files from `base` back to `base`, if it has been read already.
    fn circle(&self, base: &Path) -> Option<String> {
        let real = fs::canonicalize(base).unwrap_or(base.to_owned());
        let from = self.files.iter().position(|(file, _)| *file == real)?;
        let names = self.files[from..].iter().chain([&self.files[from]]);
        Some(names.map(|(_, file)| file.display().to_string()).collect::<Vec<_>>().join(" -> "))
    }
}

/// Places errors about a base as a whole at its beginning. Errors about the spec itself need no place.
fn located(mut errors: Vec<SpecError>, file: &Arc<Path>, depth: usize) -> Vec<SpecError> {
    for error in errors.iter_mut().filter(|_| depth > 0) {
        error.place.get_or_insert_with(|| Place::start_of(file));
    }
    errors
}
