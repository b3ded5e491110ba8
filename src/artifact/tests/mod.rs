//! Tests of the store as its users see it, also with damaged files and killed processes.

mod checkpoints;
mod gc;
mod store;

use std::{path::Path, sync::Arc};

use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeBinaryArray, RecordBatch, StringArray};

use super::*;

/// Components that differ by `seed`.
fn components(seed: u64) -> Components {
    let mut components = Components::default();
    components.insert("stage", &"knn".into());
    components.insert("seed", &seed.into());
    components
}

fn numbers(values: &[i64]) -> RecordBatch {
    RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from(values.to_vec())) as ArrayRef)]).unwrap()
}

fn metrics(steps: std::ops::Range<i64>, offset: f64) -> RecordBatch {
    let values: Float64Array = steps.clone().map(|step| Some(step as f64 + offset)).collect();
    RecordBatch::try_from_iter([
        ("step", Arc::new(steps.map(Some).collect::<Int64Array>()) as ArrayRef),
        ("loss", Arc::new(values) as ArrayRef),
    ])
    .unwrap()
}

/// A state as training saves it: named byte strings.
fn weights(step: u64) -> RecordBatch {
    let bytes: Vec<u8> = (0..5000).map(|i| (i * (step + 3)) as u8).collect();
    RecordBatch::try_from_iter([
        ("name", Arc::new(StringArray::from(vec!["conv1.weight", "queue"])) as ArrayRef),
        ("bytes", Arc::new(LargeBinaryArray::from(vec![&bytes[..100], &bytes[..]])) as ArrayRef),
    ])
    .unwrap()
}

fn write_table(writer: &mut ArtifactWriter, name: &str, kind: Kind, batches: &[RecordBatch]) -> anyhow::Result<()> {
    let mut table = writer.table(name, batches[0].schema(), kind)?;
    batches.iter().try_for_each(|batch| table.write(batch))?;
    table.finish()
}

/// A temporary name as a dead process would have made it.
fn left(name: &str, suffix: &str) -> String {
    format!(".{name}.{}-0.{suffix}", Process::dead())
}

/// A temporary name as a process of another machine would have made it.
fn elsewhere(name: &str, suffix: &str) -> String {
    format!(".{name}.{}-0.{suffix}", Process::elsewhere())
}

/// Sets the modification times of a file or folder, and of everything in it, back by `hours`.
fn age(path: &Path, hours: u64) {
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(3600 * hours);
    let entries = walkdir::WalkDir::new(path).contents_first(true).into_iter();
    entries.for_each(|entry| std::fs::File::open(entry.unwrap().path()).unwrap().set_modified(then).unwrap());
}

/// All files under a folder, relative, sorted.
fn files(dir: &Path) -> Vec<String> {
    let mut found: Vec<_> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| entry.path().strip_prefix(dir).unwrap().display().to_string())
        .collect();
    found.sort();
    found
}

fn flip_a_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(&file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), target).unwrap();
    }
}
