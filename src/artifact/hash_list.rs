//! A list of hashes for any number of files, sorted by name. It is read and written line by line, so that memory does not grow.
//! Like [`StatCache`](super::StatCache), which has the same format, it only saves time and may be deleted.

use std::{
    cmp::Ordering,
    fs::{self, DirEntry, File},
    io::{self, BufRead, BufReader, BufWriter, Lines, Write},
    iter::Peekable,
    path::{Path, PathBuf},
};

use super::{
    atomic,
    leftover::Leftovers,
    stat::{Entry, HEADER, Stamp, parse},
};

/// A list of hashes in a file, which need not exist yet.
pub struct HashList {
    path: PathBuf,
}

/// Suffix of a list that is still being written.
const BEGUN: &str = "begun";

impl HashList {
    /// Opens the list, and merges the unfinished lists of killed processes into it.
    pub fn open(path: PathBuf) -> HashList {
        let list = HashList { path };
        let dir = list.path.parent().unwrap_or(Path::new("."));
        let is_begun = |entry: io::Result<DirEntry>| {
            entry.is_ok_and(|entry| atomic::parse_unique(&entry.file_name().to_string_lossy(), BEGUN).is_some())
        };
        // Reading the clock of the file system writes a file. It is done only if there is an unfinished list, so that a caller
        // that only reads leaves no trace.
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.any(is_begun)) {
            let own = list.path.file_name().unwrap_or_default().to_string_lossy();
            let left = Leftovers::of(dir).in_dir(dir, BEGUN).into_iter();
            for (_, begun) in left.filter(|(name, _)| *name == own) {
                // Best effort: files whose hashes are lost are hashed again.
                let _ = list.take_in(&begun);
            }
        }
        list
    }

    /// Merges the unfinished list `begun` into the list. Where both have a name, the entry of `begun` is kept.
    fn take_in(&self, begun: &Path) -> io::Result<()> {
        let (mut old, mut new) = (lines(&self.path), lines(begun));
        let merged = atomic::sibling(&self.path);
        let mut file = BufWriter::new(File::create(&merged)?);
        writeln!(file, "{HEADER}")?;
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            if order == Ordering::Equal {
                old.next();
            }
            let next = if order == Ordering::Less { old.next() } else { new.next() };
            if let Some((name, entry)) = next {
                entry.write(&name, &mut file)?;
            }
        }
        file.flush()?;
        fs::rename(merged, &self.path)?;
        fs::remove_file(begun)
    }

    /// Starts a pass of lookups, for names in sorted order.
    pub fn known(&self) -> Known {
        Known(lines(&self.path))
    }

    /// Starts a new list, which takes names in sorted order and replaces the old list. Best effort: if writing fails, files are
    /// hashed again.
    pub fn writer(&self) -> ListWriter {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let begun = self.path.with_file_name(atomic::unique(&name, BEGUN));
        let create = || {
            atomic::create_dir(self.path.parent()?).ok()?;
            let mut file = BufWriter::new(File::create(&begun).ok()?);
            writeln!(file, "{HEADER}").ok()?;
            Some(file)
        };
        ListWriter { file: create(), begun, path: self.path.clone() }
    }
}

type Entries = Peekable<Box<dyn Iterator<Item = (String, Entry)>>>;

/// The entries of a file up to the first line that cannot be read; none if the file is missing.
fn lines(path: &Path) -> Entries {
    let read = || {
        let mut lines: Lines<_> = BufReader::new(File::open(path).ok()?).lines();
        (lines.next()?.ok()? == HEADER).then_some(lines)
    };
    let entries: Box<dyn Iterator<Item = (String, Entry)>> = match read() {
        Some(lines) => Box::new(lines.map_while(Result::ok).filter_map(|line| parse(&line))),
        None => Box::new(std::iter::empty()),
    };
    entries.peekable()
}

/// Looks names up in one pass through a list. Names must come in sorted order; a name out of order is not found.
pub struct Known(Entries);

impl Known {
    /// The entry of a file, if it still holds for the file's current stamp `stamp`.
    pub fn lookup(&mut self, name: &str, stamp: &Stamp) -> Option<Entry> {
        while self.0.next_if(|(known, _)| known.as_str() < name).is_some() {}
        let (_, entry) = self.0.next_if(|(known, _)| known == name)?;
        entry.holds(stamp).then_some(entry)
    }
}

/// Writes a list.
pub struct ListWriter {
    file: Option<BufWriter<File>>,
    begun: PathBuf,
    path: PathBuf,
}

impl ListWriter {
    /// Adds a name.
    pub fn add(&mut self, name: &str, entry: &Entry) {
        if self.file.as_mut().is_some_and(|file| entry.write(name, file).is_err()) {
            self.file = None;
        }
    }

    /// Replaces the old list. If the writer is dropped without this, a later process merges what was written.
    pub fn finish(mut self) {
        if self.file.take().is_some_and(|mut file| file.flush().is_ok()) {
            let _ = fs::rename(&self.begun, &self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread::sleep, time::Duration};

    use super::{super::Process, *};

    #[test]
    fn what_a_killed_process_has_hashed_is_known_beside_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(&file, "one").unwrap();
        let stamp = Stamp::of(&fs::metadata(&file).unwrap());
        sleep(Duration::from_millis(80));
        let write = |names: &[(&str, &str)], whole: bool| {
            let list = HashList::open(dir.path().join("list.txt"));
            let mut writer = list.writer();
            names.iter().for_each(|(name, hash)| writer.add(name, &Entry::new(stamp, hash)));
            if whole {
                return writer.finish();
            }
            // As if another process had been killed.
            let begun = writer.begun.clone();
            drop(writer);
            fs::rename(begun, dir.path().join(format!(".list.txt.{}-0.{BEGUN}", Process::dead()))).unwrap();
        };
        let known = || {
            let list = HashList::open(dir.path().join("list.txt"));
            let mut known = list.known();
            ["a", "b \"\n", "c", "d"].map(|name| known.lookup(name, &stamp).map(|entry| entry.hash))
        };
        let hashes = |all: [&str; 4]| all.map(|hash| (!hash.is_empty()).then(|| hash.to_owned()));
        assert_eq!(known(), [const { None }; 4]);
        write(&[("a", "1"), ("b \"\n", "2"), ("d", "4")], true);
        assert_eq!(known(), hashes(["1", "2", "", "4"]));
        // Killed: its entries of b and c count, and so do the old entries of names that it did not reach.
        write(&[("b \"\n", "5"), ("c", "3")], false);
        assert_eq!(known(), hashes(["1", "5", "3", "4"]));
        // Complete: names that are no longer in the list are forgotten.
        write(&[("c", "3")], true);
        assert_eq!(known(), hashes(["", "", "3", ""]));
        // A list that another writer has started is left alone until it is finished.
        let list = HashList::open(dir.path().join("list.txt"));
        let mut other = list.writer();
        other.add("a", &Entry::new(stamp, "6"));
        assert_eq!(known(), hashes(["", "", "3", ""]));
        other.finish();
        assert_eq!(known(), hashes(["6", "", "", ""]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left");
    }
}
