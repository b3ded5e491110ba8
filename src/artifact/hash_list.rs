//! Hashes of any number of files, in the order of their names: read and written line by line, so that memory does not grow
//! with them. Like [`StatCache`](super::StatCache) an accelerator, in the same format, which may be deleted.

use std::{
    cmp::Ordering,
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Lines, Write},
    iter::Peekable,
    path::{Path, PathBuf},
};

use super::{
    lock::{Attempt, Lock},
    stat::{Entry, HEADER, Stamp, parse},
};

/// A list of hashes in a file, which need not be there yet.
pub struct HashList {
    path: PathBuf,
}

impl HashList {
    /// The list, with what a process that was killed has added.
    pub fn open(path: PathBuf) -> HashList {
        let list = HashList { path };
        if list.begun().exists()
            && let Some(_lock) = list.lock()
        {
            // Best effort: what is lost is hashed again.
            let _ = list.take_in();
        }
        list
    }

    /// None while someone else writes the list, and where nobody can.
    fn lock(&self) -> Option<Lock> {
        let (dir, name) = self.path.parent().zip(self.path.file_name())?;
        match Lock::attempt(dir, &name.to_string_lossy()) {
            Ok(Attempt::Held(lock)) => Some(lock),
            _ => None,
        }
    }

    /// What is written and not whole yet.
    fn begun(&self) -> PathBuf {
        self.path.with_extension("begun")
    }

    /// Puts what was begun in among the rest, before which it counts.
    fn take_in(&self) -> std::io::Result<()> {
        let (mut old, mut new) = (lines(&self.path), lines(&self.begun()));
        let merged = self.path.with_extension("merged");
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
        fs::remove_file(self.begun())
    }

    /// Looks hashes up, of names in their order.
    pub fn known(&self) -> Known {
        Known(lines(&self.path))
    }

    /// Writes the list anew, of names in their order. Best effort: without it files are hashed again.
    pub fn writer(&self) -> ListWriter {
        let lock = self.lock();
        let file = lock.as_ref().and_then(|_| {
            let mut file = BufWriter::new(File::create(self.begun()).ok()?);
            writeln!(file, "{HEADER}").ok()?;
            Some(file)
        });
        ListWriter { file, begun: self.begun(), path: self.path.clone(), _lock: lock }
    }
}

type Entries = Peekable<Box<dyn Iterator<Item = (String, Entry)>>>;

/// The entries of a file; none of one that is missing, and none behind what cannot be read.
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

/// Goes through a list beside names that come in their order; a name out of order is not found.
pub struct Known(Entries);

impl Known {
    /// What is known of a file whose stamp is `stamp` now.
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
    _lock: Option<Lock>,
}

impl ListWriter {
    /// Adds a name.
    pub fn add(&mut self, name: &str, entry: &Entry) {
        if self.file.as_mut().is_some_and(|file| entry.write(name, file).is_err()) {
            self.file = None;
        }
    }

    /// Puts the list in the place of the old one. One that is dropped before is taken in by the next process.
    pub fn finish(mut self) {
        if self.file.take().is_some_and(|mut file| file.flush().is_ok()) {
            let _ = fs::rename(&self.begun, &self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread::sleep, time::Duration};

    use super::*;

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
                writer.finish();
            }
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
        // Killed: what it has said of b and c counts, and what it has not come to.
        write(&[("b \"\n", "5"), ("c", "3")], false);
        assert_eq!(known(), hashes(["1", "5", "3", "4"]));
        // Whole: what is gone is forgotten.
        write(&[("c", "3")], true);
        assert_eq!(known(), hashes(["", "", "3", ""]));
        // Someone else writes meanwhile.
        let list = HashList::open(dir.path().join("list.txt"));
        let _first = list.writer();
        write(&[("a", "6")], true);
        assert_eq!(known(), hashes(["", "", "3", ""]));
    }
}
