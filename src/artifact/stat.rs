//! A cache of file hashes, which are trusted as long as size, times and inode stay the same. It only saves time, and may be
//! deleted.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::atomic;

pub(super) const HEADER: &str = "snclr file hashes 1";

/// Nanoseconds that must lie between a file's last change and the recording of its hash before the hash is trusted. File systems
/// stamp changes with a clock that ticks every few milliseconds, so that a second change within one tick leaves no trace.
const TICK: i64 = 50_000_000;

/// Metadata that shows, without reading a file, that the file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    inode: u64,
    /// Nanoseconds since 1970 of the last change to the bytes, and of the last change to bytes or attributes. The second
    /// cannot be set back.
    modified: i64,
    changed: i64,
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Stamp {
            size: metadata.size(),
            inode: metadata.ino(),
            modified: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
            changed: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
        }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// The hash of a file, and the stamp of the file that was hashed.
pub struct Entry {
    stamp: Stamp,
    recorded: i64,
    pub hash: String,
}

impl Entry {
    /// The hash of a file. `stamp` was taken before the file was read.
    pub fn new(stamp: Stamp, hash: &str) -> Entry {
        let recorded = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64;
        Entry { stamp, recorded, hash: hash.to_owned() }
    }

    /// Whether the hash still holds for a file whose stamp is `stamp` now.
    pub(super) fn holds(&self, stamp: &Stamp) -> bool {
        self.stamp == *stamp && stamp.modified.max(stamp.changed) + TICK < self.recorded
    }

    /// Writes the entry as a line of a cache.
    pub(super) fn write(&self, name: &str, to: &mut impl Write) -> io::Result<()> {
        let Entry { stamp: Stamp { size, inode, modified, changed }, recorded, hash } = self;
        let name = serde_json::Value::from(name);
        writeln!(to, "{size} {inode} {modified} {changed} {recorded} {hash} {name}")
    }
}

/// Hashes by name.
pub struct StatCache {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    changed: bool,
}

impl StatCache {
    /// Reads the cache; one that is missing or unreadable is empty.
    pub fn open(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let known = lines.next() == Some(HEADER);
        let entries = if known { lines.filter_map(parse).collect() } else { BTreeMap::new() };
        StatCache { path, entries, changed: false }
    }

    /// The hash of a file, if it still holds for the file's current stamp `stamp`.
    pub fn lookup(&self, name: &str, stamp: &Stamp) -> Option<&str> {
        self.entries.get(name).filter(|entry| entry.holds(stamp)).map(|entry| entry.hash.as_str())
    }

    /// Records the hash of a file. `stamp` was taken before the file was read.
    pub fn record(&mut self, name: &str, stamp: Stamp, hash: &str) {
        self.entries.insert(name.to_owned(), Entry::new(stamp, hash));
        self.changed = true;
    }

    /// Records the hashes of files in `dir` that have just been written. Waits, if necessary, until the hashes can be trusted.
    pub fn record_written<'a>(&mut self, dir: &Path, files: impl Iterator<Item = (String, &'a str)>) {
        let stamp = |(name, hash): (String, &'a str)| {
            let stamp = Stamp::of(&fs::metadata(dir.join(&name)).ok()?);
            Some((name, stamp, hash))
        };
        let files: Vec<_> = files.filter_map(stamp).collect();
        if files.iter().any(|(_, stamp, hash)| !Entry::new(*stamp, hash).holds(stamp)) {
            thread::sleep(Duration::from_nanos(TICK as u64 + 1));
        }
        files.iter().for_each(|(name, stamp, hash)| self.record(name, *stamp, hash));
    }

    /// Writes the cache if it has changed. Best effort: without it the files are hashed again.
    pub fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut text = format!("{HEADER}\n").into_bytes();
        for (name, entry) in &self.entries {
            entry.write(name, &mut text).expect("memory takes all");
        }
        let Some(dir) = self.path.parent() else { return };
        let _ = atomic::create_dir(dir).and_then(|()| atomic::write(&self.path, &text));
    }

    /// The file in which the cache is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) fn parse(line: &str) -> Option<(String, Entry)> {
    let mut words = line.splitn(7, ' ');
    let mut next = || words.next();
    let size = next()?.parse().ok()?;
    let inode = next()?.parse().ok()?;
    let modified = next()?.parse().ok()?;
    let changed = next()?.parse().ok()?;
    let recorded = next()?.parse().ok()?;
    let hash = next()?.to_owned();
    let name = serde_json::from_str(next()?).ok()?;
    Some((name, Entry { stamp: Stamp { size, inode, modified, changed }, recorded, hash }))
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    fn stamp(path: &Path) -> Stamp {
        Stamp::of(&fs::metadata(path).unwrap())
    }

    #[test]
    fn a_hash_is_trusted_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, cache) = (dir.path().join("x"), dir.path().join("cache.tsv"));
        fs::write(&file, "one").unwrap();
        let mut first = StatCache::open(cache.clone());
        first.record("a \"name\"\n", stamp(&file), "h");
        assert_eq!(first.lookup("a \"name\"\n", &stamp(&file)), None, "changed too shortly before");
        sleep(Duration::from_millis(80));
        first.record("a \"name\"\n", stamp(&file), "h");
        first.save();
        let second = StatCache::open(cache.clone());
        assert_eq!(second.lookup("a \"name\"\n", &stamp(&file)), Some("h"));
        assert_eq!(second.lookup("b", &stamp(&file)), None);
        // The length is the same and the time of modification is set back, but the time of change reveals the write.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_eq!(second.lookup("a \"name\"\n", &stamp(&file)), None);
    }

    #[test]
    fn a_garbled_cache_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.tsv");
        for text in ["", "something else\n1 2 3 4 5 h \"x\"\n", "snclr file hashes 1\n1 2 x\n\u{0}\n"] {
            fs::write(&path, text).unwrap();
            assert!(StatCache::open(path.clone()).entries.is_empty());
        }
    }
}
