//! Hashes of source files, by which keys depend on files outside the store.

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

/// Stands for the hash of a file that cannot be read: the stage that reads it says so, or skips it.
const UNREADABLE: &str = "unreadable";

/// Files are hashed in groups of this many.
const GROUP: usize = 64;

/// Up to so many source files have a hash of their own, so that an explanation can name the one that changed.
const NAMED: usize = 32;

/// What a key holds of source files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileHashes {
    /// Role -> hash of the bytes.
    Named(BTreeMap<String, String>),
    /// How many there are, and a hash of the roles and hashes of all.
    Many(usize, String),
}

/// Hashes of the files that lie outside the store and that an experiment reads.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Those of the data.
    pub data: FileHashes,
    /// The file that the encoder starts from.
    pub init: Option<String>,
}

impl Sources {
    /// Stands for the files: experiments of one name read the same ones.
    ///
    /// # Errors
    /// When a field has no place in JSON.
    pub fn name(experiment: &Experiment) -> anyhow::Result<String> {
        Ok(serde_json::to_string(&(&experiment.data, experiment.encoder.init()))?)
    }

    /// Those of an experiment, whose relative paths are relative to `base`. Files are read where their hash is not known yet.
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

/// What is done with each file.
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

/// Roles and hashes come together, in the order of the files.
struct Collected {
    files: usize,
    /// Those up to [`NAMED`].
    named: BTreeMap<String, String>,
    /// Over the JSON of an object of all of them.
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

/// A file under a role of its own.
struct File {
    role: String,
    path: PathBuf,
    /// None of one that cannot be read.
    stamp: Option<Stamp>,
    /// If it need not be read again.
    known: Option<Entry>,
}

/// The hashes of files, which `each` hands on in the order of their roles. Files whose size, times and inode are those of an
/// earlier look are not read again. Memory does not grow with the files.
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
    // What there is to read, which is nothing as a rule.
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
        // What was cut short has no hash.
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

/// Gives files that are called alike, as in two folders that are both given, roles of their own.
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

/// One file on the calling thread, several on threads of their own: the pool starts with the work of the first stage, with as
/// many threads as were asked for. `read` hears of each piece that has been read; an interruption ends it early.
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

/// One cache per data section or file and folder it is relative to: a look at a small data set does not read the hashes of a
/// large one.
fn cache_path(what: &str, base: &Path, root: &Path) -> anyhow::Result<PathBuf> {
    let base = std::env::current_dir()?.join(base);
    let name = hash::bytes(format!("{} {what}", base.display()).as_bytes());
    Ok(root.join("cache").join(format!("sources-{}.txt", &name[..16])))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Keeps how much was told at a time, and stops at once where that is asked for.
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
            // Of two, the other may be through before the first is heard of.
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
