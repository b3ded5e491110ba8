//! Hashes source files, so that keys depend on the content of files outside the store.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc::channel,
};

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::{
    artifact::{Entry, HashList, Stamp, hash},
    dataset::{self, DataConfig, SourceFile},
    encoder::EncoderConfig,
    spec::Experiment,
    stage::{Interrupt, Progress, Stopped},
};

/// Takes the place of the hash of an unreadable file. The stage that reads the file reports this, or skips the file.
const UNREADABLE: &str = "unreadable";

/// Files are hashed in groups of this many.
const GROUP: usize = 64;

/// Up to this many source files each have their own leaf, so that an explanation can name the one that changed.
const NAMED: usize = 32;

/// The hashes of source files, as keys hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileHashes {
    /// Role -> hash of the bytes.
    Named(BTreeMap<String, String>),
    /// The number of files, and one hash over the roles and hashes of all of them.
    Many(usize, String),
}

/// Hashes of the files outside the store that an experiment reads.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Hashes of the data's source files.
    pub data: FileHashes,
    /// Hash of the file that the encoder starts from.
    pub init: Option<String>,
}

impl Sources {
    /// A name for the set of files: experiments with the same name read the same files.
    ///
    /// # Errors
    /// When a field cannot be represented in JSON.
    pub fn name(experiment: &Experiment) -> anyhow::Result<String> {
        Ok(serde_json::to_string(&(&experiment.data, experiment.encoder.init()))?)
    }

    /// Hashes the source files of an experiment, whose relative paths are relative to `base`. Only files whose hash is not known
    /// yet are read.
    ///
    /// # Errors
    /// When they cannot be listed, or the user interrupts.
    pub fn of(
        experiment: &Experiment,
        base: &Path,
        root: &Path,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Sources> {
        Ok(Sources {
            data: hashes(&experiment.data, base, root, progress, interrupt)?,
            init: init_hash(&experiment.encoder, base, root, progress, interrupt)?,
        })
    }
}

/// The hashes of the source files of the data; none of generated data.
fn hashes(
    config: &DataConfig,
    base: &Path,
    root: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<FileHashes> {
    let each = |take: &mut Take| dataset::each_source_file(config, base, take);
    hash_files(each, cache_path(&serde_json::to_string(config)?, base, root)?, progress, interrupt)
}

/// A function that is called with each file.
type Take<'a> = dyn FnMut(SourceFile) -> anyhow::Result<()> + 'a;

/// Hash of the bytes of the file of weights that the encoder starts from.
fn init_hash(
    config: &EncoderConfig,
    base: &Path,
    root: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<String>> {
    let Some(path) = config.init() else { return Ok(None) };
    let file = SourceFile { role: "init".to_owned(), path: base.join(path) };
    let cache = cache_path(&format!("encoder.init {}", path.display()), base, root)?;
    fs::metadata(&file.path).with_context(|| format!("encoder.init: cannot read {}", file.path.display()))?;
    let sources = hash_files(|take| take(file.clone()), cache, progress, interrupt)?;
    let FileHashes::Named(hashes) = sources else { unreachable!("it is one file") };
    Ok(hashes.into_values().next())
}

/// Collects roles and hashes, in the order of the files.
struct Collected {
    files: usize,
    /// The first [`NAMED`] files: role -> hash.
    named: BTreeMap<String, String>,
    /// Hash over the JSON of an object with the roles and hashes of all files.
    all: Sha256,
}

impl Collected {
    fn add(&mut self, role: &str, hash: &str) {
        self.files += 1;
        if self.files <= NAMED {
            self.named.insert(role.to_owned(), hash.to_owned());
        }
        let before = if self.files == 1 { "{" } else { "," };
        self.all.update(format!("{before}{}:\"{hash}\"", serde_json::Value::from(role)));
    }

    fn finish(mut self) -> FileHashes {
        if self.files <= NAMED {
            return FileHashes::Named(self.named);
        }
        self.all.update("}");
        FileHashes::Many(self.files, hash::hex(&self.all.finalize()))
    }
}

/// A source file with a role that no other file has.
struct File {
    role: String,
    path: PathBuf,
    /// None if the file's metadata cannot be read.
    stamp: Option<Stamp>,
    /// The file's known hash, if the file need not be read again.
    known: Option<Entry>,
}

/// Hashes the files that `each` passes in the order of their roles. Files whose size, times and inode have not changed since they
/// were last hashed are not read again. Memory does not grow with the number of files.
fn hash_files(
    each: impl Fn(&mut Take) -> anyhow::Result<()>,
    cache: PathBuf,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<FileHashes> {
    let list = HashList::open(cache);
    let stop_if_asked = || match interrupt.requested() {
        true => Err(Stopped::InterruptedAt { stage: "data" }),
        false => Ok(()),
    };
    let look = |take: &mut dyn FnMut(File) -> anyhow::Result<()>| {
        let (mut known, mut roles) = (list.known(), Roles::default());
        each(&mut |SourceFile { role, path }| {
            stop_if_asked()?;
            let role = roles.own(role);
            let stamp = fs::metadata(&path).ok().map(|metadata| Stamp::of(&metadata));
            let known = stamp.and_then(|stamp| known.lookup(&role, &stamp));
            take(File { role, path, stamp, known })
        })
    };
    let collected = || Collected { files: 0, named: BTreeMap::new(), all: Sha256::new() };
    // The first pass counts what has to be read, which is usually nothing.
    let (mut all, mut unknown, mut bytes) = (collected(), 0u64, 0);
    look(&mut |file| {
        match (&file.known, file.stamp) {
            (Some(known), _) => all.add(&file.role, &known.hash),
            (None, None) => all.add(&file.role, UNREADABLE),
            (None, Some(stamp)) => (unknown, bytes) = (unknown + 1, bytes + stamp.size()),
        }
        Ok(())
    })?;
    if unknown == 0 {
        return Ok(all.finish());
    }
    progress.start(Some(bytes >> 20), "MiB of source files hashed");
    let (mut all, mut writer, mut done) = (collected(), list.writer(), 0);
    let mut group = Vec::with_capacity(GROUP);
    let mut take = |group: &mut Vec<File>| {
        let hashes = hash_group(group, interrupt, &mut |bytes| {
            progress.advance(((done + bytes) >> 20) - (done >> 20));
            done += bytes;
        });
        // A file whose hashing was interrupted has no hash.
        stop_if_asked()?;
        for (File { role, stamp, known, .. }, hash) in group.iter().zip(hashes) {
            if let (Some(stamp), true) = (*stamp, hash != UNREADABLE) {
                match known {
                    Some(known) => writer.add(role, known),
                    None => writer.add(role, &Entry::new(stamp, &hash)),
                }
            }
            all.add(role, &hash);
        }
        group.clear();
        Ok::<_, Stopped>(())
    };
    look(&mut |file| {
        group.push(file);
        if group.len() == GROUP {
            take(&mut group)?;
        }
        Ok(())
    })?;
    take(&mut group)?;
    writer.finish();
    Ok(all.finish())
}

/// Gives files of the same role, e.g. from two source folders, different roles. Files of the same role must directly follow one
/// another.
#[derive(Default)]
struct Roles {
    last: String,
    alike: usize,
}

impl Roles {
    fn own(&mut self, role: String) -> String {
        if role == self.last {
            self.alike += 1;
            return format!("{role}#{}", self.alike);
        }
        (self.last, self.alike) = (role.clone(), 1);
        role
    }
}

/// Hashes the files of a group: a single file on the calling thread, several on new threads. The thread pool is not used, because
/// it starts with the work of the first stage, with as many threads as the user asked for. `read` is called with the length of
/// each piece that has been read. An interruption ends the hashing early.
fn hash_group(group: &[File], interrupt: &Interrupt, read: &mut dyn FnMut(u64)) -> Vec<String> {
    let hash = |file: &File, read: &mut dyn FnMut(u64)| match (&file.known, file.stamp) {
        (Some(known), _) => known.hash.clone(),
        (None, None) => UNREADABLE.to_owned(),
        (None, Some(_)) => {
            let hash = hash::file_while(&file.path, |bytes| {
                read(bytes);
                !interrupt.requested()
            });
            hash.ok().flatten().unwrap_or(UNREADABLE.to_owned())
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let unknown = group.iter().filter(|file| file.known.is_none()).count();
    if threads.min(unknown) < 2 {
        return group.iter().map(|file| hash(file, read)).collect();
    }
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let hash = &hash;
        let parts = group.chunks(group.len().div_ceil(threads));
        let threads: Vec<_> = parts
            .map(|part| {
                let sender = sender.clone();
                let mut send = move |bytes| sender.send(bytes).unwrap_or_default();
                scope.spawn(move || part.iter().map(|file| hash(file, &mut send)).collect::<Vec<_>>())
            })
            .collect();
        drop(sender);
        receiver.into_iter().for_each(read);
        let results = threads.into_iter();
        results.flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Path of the list of known hashes. There is one list for each `what` (a data section or a file) and folder `base`, so that
/// planning with a small data set does not read the hashes of a large one.
fn cache_path(what: &str, base: &Path, root: &Path) -> anyhow::Result<PathBuf> {
    let base = std::env::current_dir()?.join(base);
    let name = hash::bytes(format!("{} {what}", base.display()).as_bytes());
    Ok(root.join("cache").join(format!("sources-{}.txt", &name[..16])))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Records each reported amount, and requests an interruption at the first report if an `Interrupt` is given.
    struct Reported<'a>(RefCell<Vec<u64>>, Option<&'a Interrupt>);

    impl Progress for Reported<'_> {
        fn advance(&self, count: u64) {
            self.0.borrow_mut().push(count);
            self.1.inspect(|interrupt| interrupt.request());
        }
        fn start(&self, _total: Option<u64>, _unit: &str) {}
        fn message(&self, _text: &str) {}
        fn value(&self, _name: &str, _value: f64) {}
        fn log(&self, _text: &str) {}
        fn detail(&self, _text: &str) {}
        fn warn(&self, _text: &str) {}
    }

    #[test]
    fn a_large_file_tells_how_far_it_is_and_stops_within_it() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..5u32 << 20).map(|i| (i >> 7) as u8).collect();
        for files in [1, 2] {
            let each = |take: &mut Take| {
                (0..files).try_for_each(|file| {
                    take(SourceFile { role: format!("{file}"), path: dir.path().join(format!("{file}")) })
                })
            };
            (0..files).for_each(|file| fs::write(dir.path().join(format!("{file}")), &bytes).unwrap());
            let look = |progress: &Reported, interrupt| {
                hash_files(each, dir.path().join(format!("cache{files}")), progress, interrupt)
            };
            let interrupt = Interrupt::default();
            let stopped = Reported(RefCell::default(), Some(&interrupt));
            let error = look(&stopped, &interrupt).unwrap_err();
            assert_eq!(error.downcast_ref(), Some(&Stopped::InterruptedAt { stage: "data" }));
            // With two files, the second may be complete before the first is reported.
            assert!(files > 1 || stopped.0.borrow().iter().sum::<u64>() < 5);
            let whole = Reported(RefCell::default(), None);
            let hashes = look(&whole, &Interrupt::default()).unwrap();
            let expected = (0..files).map(|file| (format!("{file}"), hash::bytes(&bytes))).collect();
            assert_eq!(hashes, FileHashes::Named(expected), "nothing is kept of what was cut short");
            let told = whole.0.into_inner();
            assert_eq!((told.iter().sum::<u64>(), told.iter().max()), (5 * files, Some(&1)));
        }
    }
}
