//! Shares the checkpoints of running stages, so that another machine can resume a run whose machine was taken away.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
};

use serde::{Deserialize, Serialize};

use super::{CHECKPOINTS, Failure, Objects, objects};
use crate::artifact::{CheckpointFile, Key, Lock, Store, atomic, hash, incoming};

/// Size in bytes of the largest list of files that is read.
const LONGEST_LIST: usize = 16 << 20;

/// The JSON text of `<step>.json`, where a line with the hash of this text precedes it.
#[derive(Serialize, Deserialize)]
struct List {
    key: Key,
    step: u64,
    files: Vec<CheckpointFile>,
}

fn folder(stage: &str, key: &Key) -> String {
    format!("{CHECKPOINTS}/{stage}/{key}")
}

fn list_name(stage: &str, key: &Key, step: u64) -> String {
    format!("{}/{step:012}.json", folder(stage, key))
}

/// Steps of the checkpoints of a stage, in descending order.
fn steps(objects: &dyn Objects, stage: &str, key: &Key) -> Result<Vec<u64>, Failure> {
    let mut steps = Vec::new();
    objects.list(&folder(stage, key), &mut |meta| {
        let file = meta.name.rsplit('/').next().unwrap_or_default();
        steps.extend(file.strip_suffix(".json").and_then(|step| step.parse::<u64>().ok()));
    })?;
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// The last checkpoint of each stage that this process has uploaded: its step, and the hashes of its files.
#[derive(Default)]
pub struct Sent(HashMap<(String, Key), (u64, BTreeSet<String>)>);

impl Sent {
    /// Uploads the newest checkpoint of a stage, and removes the one that this process uploaded before.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Local`] when the stage has removed it in the meantime.
    pub fn upload(&mut self, objects: &dyn Objects, store: &Store, stage: &str, key: &Key) -> Result<(), Failure> {
        let newest = store.newest_checkpoint(stage, key).map_err(|error| Failure::Local(format!("{error:#}")))?;
        let Some((step, files)) = newest else { return Ok(()) };
        let (dir, folder) = (store.work_dir(stage, key), folder(stage, key));
        let (before, known) = self.0.remove(&(stage.to_owned(), key.clone())).unwrap_or_default();
        let hashes: BTreeSet<String> = files.iter().map(|file| file.sha256.clone()).collect();
        for file in files.iter().filter(|file| !known.contains(&file.sha256)) {
            objects.upload(&format!("{folder}/{}", file.sha256), &dir.join(&file.path), file.size, &file.sha256)?;
        }
        let text = serde_json::to_string(&List { key: key.clone(), step, files }).expect("strings and whole numbers");
        let text = format!("{}\n{text}\n", hash::bytes(text.as_bytes()));
        objects.put(&list_name(stage, key, step), text.as_bytes(), false)?;
        if before > 0 && before != step {
            objects.remove(&list_name(stage, key, before))?;
            known.difference(&hashes).try_for_each(|hash| objects.remove(&format!("{folder}/{hash}")))?;
        }
        self.0.insert((stage.to_owned(), key.clone()), (step, hashes));
        Ok(())
    }
}

/// Puts the checkpoint of a stage with the most steps into the store, if the store's own has fewer steps, and returns its step.
///
/// # Errors
/// [`Failure`].
pub fn fetch(
    objects: &dyn Objects,
    store: &Store,
    lock: &Lock,
    stage: &str,
    key: &Key,
) -> Result<Option<u64>, Failure> {
    let here = store.newest_step(stage, key);
    for step in steps(objects, stage, key)?.into_iter().filter(|step| Some(*step) > here) {
        match fetch_step(objects, store, lock, stage, key, step) {
            Ok(()) => return Ok(Some(step)),
            // Another machine has replaced this checkpoint, or it is damaged: tries the next one.
            Err(Failure::Missing | Failure::Wrong(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

fn fetch_step(
    objects: &dyn Objects,
    store: &Store,
    lock: &Lock,
    stage: &str,
    key: &Key,
    step: u64,
) -> Result<(), Failure> {
    let name = list_name(stage, key, step);
    let (text, _) = objects::get(objects, &name, LONGEST_LIST)?;
    let list = read(&text).filter(|list| list.key == *key && list.step == step);
    let list = list.ok_or_else(|| Failure::Wrong(format!("{name} is damaged")))?;
    let local = |error: anyhow::Error| Failure::Local(format!("{error:#}"));
    let target = store.work_dir(stage, key);
    let dir = atomic::sibling(&target);
    let fetched = (|| {
        for file in &list.files {
            let path = dir.join(&file.path);
            atomic::create_dir(path.parent().unwrap_or(&dir)).map_err(local)?;
            let object = format!("{}/{}", folder(stage, key), file.sha256);
            incoming::take(&path, file.size, &file.sha256, |write| objects.read(&object, write).map(drop))?;
        }
        store.replace_work(lock, stage, key, &dir).map_err(local)
    })();
    if fetched.is_err() {
        let _ = fs::remove_dir_all(&dir);
    }
    fetched
}

/// Reads a list; None when it is damaged, or names a file outside the folder.
fn read(text: &[u8]) -> Option<List> {
    let (sum, body) = std::str::from_utf8(text).ok()?.split_once('\n')?;
    let body = body.strip_suffix('\n')?;
    let list: List = (hash::bytes(body.as_bytes()) == sum).then(|| serde_json::from_str(body).ok())??;
    let plain = |part: &str| !part.starts_with('.') && !part.is_empty() && !part.contains('\\');
    let is_within = |file: &CheckpointFile| file.path.split('/').all(plain) && Key::parse(&file.sha256).is_some();
    list.files.iter().all(is_within).then_some(list)
}

/// Removes all checkpoints of a stage that has its artifact.
///
/// # Errors
/// [`Failure`].
pub fn remove(objects: &dyn Objects, stage: &str, key: &Key) -> Result<(), Failure> {
    let mut names = Vec::new();
    objects.list(&folder(stage, key), &mut |meta| names.push(meta.name))?;
    // Lists are removed first, because the files are of no use without them.
    names.sort_by_key(|name| !name.ends_with(".json"));
    names.iter().try_for_each(|name| objects.remove(name))
}
