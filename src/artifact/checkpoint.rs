//! Checkpoints of an unfinished stage. Each is written atomically, checked by hash, and belongs to the key of the stage.
//!
//! Two machines that do not see each other's locks may both run the stage. Each start has its own number, which is part of the
//! names of its files, so that no file is written twice. A resume takes the checkpoint with the most steps.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use anyhow::Context;
use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use super::{
    Key, atomic, hash,
    leftover::Leftovers,
    segment,
    table::{self, TableFile},
};

/// A saved state: the number of steps completed, and its tables.
pub type State = (u64, BTreeMap<String, RecordBatch>);

const MANIFEST: &str = "checkpoint.json";

/// Checkpoints and metric segments of one unfinished stage, bound to its key. The holder of the stage's lock uses them.
pub struct Checkpoints {
    dir: PathBuf,
    damaged: PathBuf,
    label: String,
    key: Key,
    /// The highest known number of an earlier start of the stage; 0 if there is none.
    earlier: u64,
    /// Number of this start, from 1; set by its first write.
    attempt: OnceLock<u64>,
    warn: Box<dyn Fn(&str) + Send + Sync>,
    /// Called after every saved state.
    saved: Option<Box<dyn Fn() + Send + Sync>>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    /// Segment files and the hashes of their bytes.
    segments: BTreeMap<String, String>,
    last_saved: Option<u64>,
}

/// `checkpoint.json`.
#[derive(Serialize, Deserialize)]
struct Manifest {
    key: Key,
    step: u64,
    /// Tables of the state -> hash of the file.
    tables: BTreeMap<String, String>,
    /// Segments written before it -> hash of the file: without their rows the metrics would have a gap.
    segments: BTreeMap<String, String>,
}

impl Checkpoints {
    /// Opens the checkpoints that earlier attempts left in `dir`. Damaged ones are later moved to `damaged` and reported to
    /// `warn`.
    pub(super) fn open(
        dir: PathBuf,
        damaged: PathBuf,
        label: String,
        key: Key,
        warn: Box<dyn Fn(&str) + Send + Sync>,
    ) -> anyhow::Result<Self> {
        let mut segments = BTreeMap::new();
        let mut attempt = 0;
        let names = names(&dir)?;
        if names.iter().any(|name| atomic::is_sibling(name)) {
            // A killed attempt was writing or removing these files.
            let removed = Leftovers::of(&dir).remove_siblings(&dir);
            removed.with_context(|| format!("removing what was left in {}", dir.display()))?;
        }
        for name in names {
            if let Some(parts) = segment::parse(&name) {
                attempt = attempt.max(parts.attempt);
                let path = dir.join(&name);
                match hash::file(&path, |_| ()) {
                    // Another machine has completed the stage and removed the file.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    hash => segments.insert(name, hash.with_context(|| format!("reading {}", path.display()))?),
                };
            } else if let Some((_, of)) = parse(&name) {
                attempt = attempt.max(of);
            }
        }
        let files = Mutex::new(Files { segments, last_saved: None });
        Ok(Checkpoints {
            dir,
            damaged,
            label,
            key,
            earlier: attempt,
            attempt: OnceLock::new(),
            warn,
            saved: None,
            files,
        })
    }

    /// Calls `saved` after every state that is saved from now on.
    pub fn when_saved(&mut self, saved: Box<dyn Fn() + Send + Sync>) {
        self.saved = Some(saved);
    }

    /// The number of this start, which no other start has: creating a folder reserves it, and of several processes only one can
    /// create the folder.
    fn attempt(&self) -> anyhow::Result<u64> {
        if let Some(&attempt) = self.attempt.get() {
            return Ok(attempt);
        }
        atomic::create_dir(&self.dir)?;
        for attempt in self.earlier + 1.. {
            let claim = self.dir.join(format!("attempt-{attempt:04}"));
            match fs::create_dir(&claim) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.with_context(|| format!("creating {}", claim.display()))?;
                    return Ok(*self.attempt.get_or_init(|| attempt));
                }
            }
        }
        anyhow::bail!("{}: no number is left", self.dir.display())
    }

    /// Saves the state after `step` steps, atomically. The two newest states are kept. Segments of earlier steps must be appended
    /// first.
    pub fn save(&self, step: u64, tables: &[(&str, RecordBatch)]) -> anyhow::Result<()> {
        let mut files = self.files.lock().expect("no panics while held");
        if files.last_saved == Some(step) {
            return Ok(());
        }
        let target = self.dir.join(format!("checkpoint-{step:012}-{:04}", self.attempt()?));
        atomic::create_dir(&self.dir)?;
        let temporary = atomic::sibling(&target);
        if let Err(error) = self.write(&temporary, step, tables, &files.segments) {
            // On a full disk, a half-written checkpoint takes space that everything else needs.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error.context(format!("saving the checkpoint after step {step}")));
        }
        atomic::rename(&temporary, &target)?;
        files.last_saved = Some(step);
        self.newest_first()?.into_iter().skip(2).try_for_each(|name| atomic::discard_dir(&self.dir.join(name)))?;
        if let Some(saved) = &self.saved {
            saved();
        }
        Ok(())
    }

    fn write(
        &self,
        dir: &Path,
        step: u64,
        tables: &[(&str, RecordBatch)],
        segments: &BTreeMap<String, String>,
    ) -> anyhow::Result<()> {
        atomic::create_dir(dir)?;
        let mut hashes = BTreeMap::new();
        for (name, batch) in tables {
            let path = dir.join(format!("{name}.parquet"));
            let mut file = TableFile::create(path, batch.schema(), table::uncompressed(&batch.schema()))?;
            file.write(batch)?;
            let twice = hashes.insert(name.to_string(), file.finish(|_| Vec::new())?.sha256).is_some();
            anyhow::ensure!(!twice, "table {name:?} is given twice");
        }
        let manifest = Manifest { key: self.key.clone(), step, tables: hashes, segments: segments.clone() };
        // The hash of the text goes in front, because the manifest can be damaged just like the files that it lists.
        let text = serde_json::to_string_pretty(&manifest)?;
        atomic::write(&dir.join(MANIFEST), format!("{}\n{text}\n", hash::bytes(text.as_bytes())).as_bytes())
    }

    /// Loads the newest intact state: its step and its tables. Damaged states are moved to `damaged/`, with a warning.
    pub fn load(&self) -> anyhow::Result<Option<State>> {
        let mut found = None;
        for name in self.newest_first()? {
            match self.read(&name) {
                Ok(state) => {
                    found = Some(state);
                    break;
                }
                Err(what) => {
                    let path = self.dir.join(&name);
                    // A checkpoint that is gone is not damaged: another machine removes those older than its own two newest.
                    let Some(moved) = atomic::set_aside(&self.damaged, &path, &format!("{}-{name}", self.label))?
                    else {
                        continue;
                    };
                    (self.warn)(&format!(
                        "damaged checkpoint of {}: {name}: {what}; moved to {}, going on from the one before",
                        self.label,
                        moved.display()
                    ));
                }
            }
        }
        // Damaged segments are moved only now: as long as a checkpoint refers to a segment, its loss must be noticed.
        self.drop_damaged_segments()?;
        Ok(found)
    }

    fn read(&self, name: &str) -> Result<State, String> {
        let dir = self.dir.join(name);
        let manifest = read_manifest(&dir)?;
        if manifest.key != self.key {
            return Err(format!("belongs to key {}, not {}", manifest.key.short(), self.key.short()));
        }
        let known = &self.files.lock().expect("no panics while held").segments;
        for (file, hash) in &manifest.segments {
            match known.get(file) {
                Some(found) if found == hash => {}
                Some(_) => return Err(format!("{file}, written before it, does not match its hash")),
                None => return Err(format!("{file}, written before it, is missing")),
            }
        }
        let mut tables = BTreeMap::new();
        for (name, hash) in manifest.tables {
            let path = dir.join(format!("{name}.parquet"));
            match hash::file(&path, |_| ()) {
                Ok(found) if found == hash => {}
                Ok(_) => return Err(format!("{name}.parquet: does not match its hash")),
                Err(error) => return Err(format!("{name}.parquet: {error}")),
            }
            let (batch, _) = table::read_whole(&path, "").map_err(|error| format!("{error:#}"))?;
            tables.insert(name, batch);
        }
        Ok((manifest.step, tables))
    }

    /// Checks every state and segment, and moves nothing. Returns the number of intact ones, and file and problem of each damaged
    /// one.
    pub(super) fn inspect(&self) -> anyhow::Result<(usize, Vec<(String, String)>)> {
        let segments: Vec<_> = self.files.lock().expect("no panics while held").segments.keys().cloned().collect();
        let states = self.newest_first()?.into_iter().map(|name| (self.read(&name).err(), name));
        let segments = segments.into_iter().map(|name| {
            (segment::read(&self.dir.join(&name), &self.key).err().map(|error| format!("{error:#}")), name)
        });
        let (mut whole, mut damaged) = (0, Vec::new());
        for (problem, name) in states.chain(segments) {
            match problem {
                None => whole += 1,
                Some(problem) => damaged.push((name, problem)),
            }
        }
        Ok((whole, damaged))
    }

    fn drop_damaged_segments(&self) -> anyhow::Result<()> {
        let mut files = self.files.lock().expect("no panics while held");
        for name in files.segments.keys().cloned().collect::<Vec<_>>() {
            let path = self.dir.join(&name);
            if let Err(error) = segment::read(&path, &self.key) {
                let moved = atomic::set_aside(&self.damaged, &path, &format!("{}-{name}", self.label))?;
                files.segments.remove(&name);
                let Some(moved) = moved else { continue };
                (self.warn)(&format!("damaged metrics of {}: {error:#}; moved to {}", self.label, moved.display()));
            }
        }
        Ok(())
    }

    /// Appends a segment of metric rows that starts at `first_step`, atomically. One int64 column is called `step`.
    pub fn append_segment(&self, name: &str, first_step: u64, rows: &RecordBatch) -> anyhow::Result<()> {
        let attempt = self.attempt()?;
        let file = segment::file_name(name, attempt, first_step);
        atomic::create_dir(&self.dir)?;
        let hash = segment::write(&self.dir.join(&file), &self.key, attempt, rows)?;
        self.files.lock().expect("no panics while held").segments.insert(file, hash);
        Ok(())
    }

    /// All rows of the segments called `name` with step < `until`, sorted by step; of each step only those of the newest attempt.
    /// None when there are none. Errors when a segment is damaged.
    pub fn segments(&self, name: &str, until: u64) -> anyhow::Result<Option<RecordBatch>> {
        let files = self.files.lock().expect("no panics while held");
        let wanted = files.segments.keys().filter(|file| segment::parse(file).is_some_and(|parts| parts.name == name));
        let batches = wanted.map(|file| segment::read(&self.dir.join(file), &self.key));
        segment::merge(batches.collect::<anyhow::Result<Vec<_>>>()?, until)
    }

    /// Folder that belongs to the stage key; it is created by the first write.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn newest_first(&self) -> anyhow::Result<Vec<String>> {
        newest_first(&self.dir)
    }
}

/// A file that a checkpoint needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// Path in the folder of checkpoints, e.g. `checkpoint-000000000012-0001/model.parquet`.
    pub path: String,
    pub size: u64,
    pub sha256: String,
}

/// The newest checkpoint of `key` in `dir`: its step, and all files that it needs, including the segments before it. None when
/// there is none.
pub(super) fn newest_files(dir: &Path, key: &Key) -> anyhow::Result<Option<(u64, Vec<CheckpointFile>)>> {
    for name in newest_first(dir)? {
        let Some(manifest) = read_manifest(&dir.join(&name)).ok().filter(|manifest| manifest.key == *key) else {
            continue;
        };
        let own = dir.join(&name).join(MANIFEST);
        let sha256 = hash::file(&own, |_| ()).with_context(|| format!("reading {}", own.display()))?;
        let tables = manifest.tables.into_iter().map(|(table, hash)| (format!("{name}/{table}.parquet"), hash));
        let files = tables.chain(manifest.segments).chain([(format!("{name}/{MANIFEST}"), sha256)]);
        let file = |(path, sha256): (String, String)| {
            let size = fs::metadata(dir.join(&path)).with_context(|| format!("reading {path}"))?.len();
            Ok(CheckpointFile { path, size, sha256 })
        };
        return Ok(Some((manifest.step, files.map(file).collect::<anyhow::Result<_>>()?)));
    }
    Ok(None)
}

/// Names of the checkpoints in a folder, newest first.
fn newest_first(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut found: Vec<_> =
        names(dir)?.into_iter().filter_map(|name| parse(&name).map(|order| (order, name))).collect();
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// The step of the newest checkpoint of `key` in `dir`, according to its manifest alone. Nothing is moved or removed, so the
/// caller need not hold the lock of the stage.
pub(super) fn newest_step(dir: &Path, key: &Key) -> Option<u64> {
    newest_first(dir).ok()?.into_iter().find_map(|name| {
        let manifest = read_manifest(&dir.join(name)).ok()?;
        (manifest.key == *key).then_some(manifest.step)
    })
}

/// All rows of the segments called `name` in `dir`, merged as by [`Checkpoints::segments`], for callers that do not hold the lock
/// of the stage. None when there are none.
pub(super) fn rows(dir: &Path, key: &Key, name: &str) -> anyhow::Result<Option<RecordBatch>> {
    let mut batches = Vec::new();
    for file in names(dir)?.into_iter().filter(|file| segment::parse(file).is_some_and(|parts| parts.name == name)) {
        let path = dir.join(file);
        match segment::read(&path, key) {
            // The stage has just ended and removed the file.
            Err(_) if !path.exists() => {}
            read => batches.push(read?),
        }
    }
    segment::merge(batches, u64::MAX)
}

fn read_manifest(dir: &Path) -> Result<Manifest, String> {
    let text = fs::read_to_string(dir.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let (sum, body) = text.split_once('\n').unwrap_or_default();
    if hash::bytes(body.trim_end_matches('\n').as_bytes()) != sum {
        return Err(format!("{MANIFEST}: does not match its checksum"));
    }
    serde_json::from_str(body).map_err(|error| format!("{MANIFEST}: {error}"))
}

/// Step and attempt of a checkpoint's folder.
fn parse(name: &str) -> Option<(u64, u64)> {
    let (step, attempt) = name.strip_prefix("checkpoint-")?.split_once('-')?;
    Some((step.parse().ok()?, attempt.parse().ok()?))
}

/// Names in a folder; none when there is no folder.
fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let named = || format!("listing {}", dir.display());
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let names = entries.with_context(named)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<std::io::Result<_>>().with_context(named)
        }
    }
}
