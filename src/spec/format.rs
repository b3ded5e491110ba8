//! Reads other YAML files in the same way as specs: all errors at once, each with its place and a suggestion.

use std::{marker::PhantomData, path::Path, sync::Arc};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    check::Form,
    error::{SpecError, SpecErrors},
    load::typed,
    locate::Node,
    problem::Problem,
    read::{self, Document},
    schema,
};

/// A kind of file that is read into a `T`.
pub struct Format<T> {
    form: Form,
    of: PhantomData<fn() -> T>,
}

impl<T: JsonSchema + DeserializeOwned> Default for Format<T> {
    fn default() -> Self {
        Format { form: Form::new(schema::of::<T>(), &[]), of: PhantomData }
    }
}

impl<T: JsonSchema + DeserializeOwned> Format<T> {
    /// Reads the file at `path`. In a file without keys, every key has its default.
    ///
    /// # Errors
    /// All problems of the file, at once.
    pub fn read(&'static self, path: &Path) -> Result<T, SpecErrors> {
        let file: Arc<Path> = path.into();
        let read = || {
            let mut document = match read::document(&read::text(path)?, &file) {
                Err(errors) if matches!(errors[..], [SpecError { problem: Problem::Empty, .. }]) => nothing(&file),
                read => read?,
            };
            typed(&self.form, &mut document, |_, _| vec![])
        };
        read().map_err(|errors| SpecErrors::new(path, errors))
    }
}

fn nothing(file: &Arc<Path>) -> Document {
    let value = Value::Object(Map::new());
    let places = Node::all_at(&value, &super::Place::start_of(file));
    Document { value, places, errors: vec![], left_out: vec![], notes: vec![] }
}
