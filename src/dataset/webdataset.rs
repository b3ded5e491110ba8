//! Reads WebDataset: tar archives whose members form samples by their names. `0001.jpg` and `0001.cls` are image and label of one
//! sample. Without such labels, folders within the archive are the classes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::mpsc::sync_channel,
    thread,
};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::{
    DataError, FilesConfig, LeftOut, MOST_CLASSES, ReadSummary, Sample, Skipped, SplitName,
    decode::{HEAD, Kind, Refusal, verify},
    image_folder::is_image_ending,
    ingest::{Sink, ingest},
    layout::{self, Files},
    names,
    paths::{resolve, unreadable},
};

/// Endings of archives within a folder.
pub const ENDINGS: [&str; 3] = ["tar", "tgz", "tar.gz"];
/// A member larger than this is not taken for an image.
const MOST_BYTES: u64 = 1 << 31;
/// Extensions of members that describe an image: its label, or JSON that may contain the label.
const LABEL: &str = "cls";
const JSON: &str = "json";
/// The most bytes that are read of a label or its JSON.
const MOST_TEXT: u64 = 1 << 20;
/// Number of samples that are read ahead of their use.
const AHEAD: usize = 8;

/// One sample: consecutive members whose names are equal up to the first dot.
struct Member {
    /// Path in the archive, without the endings.
    key: String,
    image: Option<(String, Vec<u8>)>,
    label: Option<String>,
    /// Extensions of the other files beside the image.
    others: Vec<String>,
    /// Path and size of an image file that is larger than [`MOST_BYTES`] and not read.
    too_large: Option<(String, u64)>,
}

/// What a first pass over an archive, or over all archives of a split, finds: the number of samples, and their labels.
#[derive(Default)]
struct Outline {
    samples: u64,
    /// Samples of each archive of the split, in order.
    each: Vec<u64>,
    labels: BTreeSet<String>,
    /// The folders of each image's path within the archive, from the outermost on.
    folders: BTreeSet<Vec<String>>,
}

pub(super) fn files(config: &FilesConfig, split: SplitName, base: &Path) -> Result<Files, DataError> {
    match config.of(split) {
        Some(paths) => layout::find(resolve(paths, split, base)?, split, &ENDINGS),
        None => Ok(Files::default()),
    }
}

/// The archives of both splits.
pub struct Archives<'a> {
    config: &'a FilesConfig,
    /// The training split, then the test split.
    splits: [(Files, Outline); 2],
    /// Both splits number their classes by the same names, whichever split is read.
    classes: Classes,
}

impl<'a> Archives<'a> {
    /// Scans the archives of both splits for their labels. `found` is called with the number of newly found samples.
    pub fn open(
        config: &'a FilesConfig,
        base: &Path,
        found: &mut dyn FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut of = |split| {
            let (files, mut whole) = (files(config, split, base)?, Outline::default());
            for path in &files.paths {
                let Outline { samples, labels, folders, .. } = outline(path, found)?;
                whole.samples += samples;
                whole.each.push(samples);
                whole.labels.extend(labels);
                whole.folders.extend(folders);
            }
            anyhow::Ok((files, whole))
        };
        let splits = [of(SplitName::Train)?, of(SplitName::Test)?];
        let classes = Classes::new([&splits[0].1, &splits[1].1]);
        Ok(Archives { config, splits, classes })
    }

    pub fn count(&self, split: SplitName) -> u64 {
        self.splits[split.index()].1.samples
    }

    pub fn read(&self, split: SplitName, sink: &mut Sink) -> anyhow::Result<ReadSummary> {
        let Archives { config, splits, classes } = self;
        let (found, Outline { each, .. }) = &splits[split.index()];
        let mut left_out = BTreeMap::<String, u64>::new();
        let (mut most, mut unread) = (-1, sink.from);
        let samples = found.paths.iter().zip(each).flat_map(|(path, count)| {
            let name = path.display().to_string();
            let members = members(path, unread);
            unread = unread.saturating_sub(*count);
            members.map(move |member| member.map(|member| (name.clone(), member)))
        });
        let items = samples.filter_map(|member| {
            let (archive, member) = match member {
                Ok(member) => member,
                Err(error) => return Some(Err(error)),
            };
            if member.image.is_none() && member.too_large.is_none() {
                for ending in member.others {
                    *left_out.entry(format!("*.{ending}")).or_default() += 1;
                }
                return None;
            }
            let label = match classes.number(split, &member) {
                Ok(label) => label,
                Err(label) => {
                    let name = format!("{archive}: {}", member.key);
                    return Some(Err(DataError::LabelRange { name, label, classes: MOST_CLASSES }));
                }
            };
            most = most.max(label.unwrap_or(-1));
            let size = member.image.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
            Some(Ok((size, (archive, member, label))))
        });
        let work = |(archive, member, label): (String, Member, Option<i64>)| {
            let skipped = |path: &str, kind: &'static str, reason| {
                let name = format!("{archive}: {path}");
                Skipped { name, kind: kind.into(), reason }
            };
            match (member.image, member.too_large) {
                (Some((path, bytes)), _) => match verify(&bytes) {
                    Ok(()) => Ok(Sample { bytes, path: Some(path), label }),
                    Err(Refusal { kind, reason }) => Err(skipped(&path, kind, reason)),
                },
                (None, Some((path, size))) => Err(skipped(&path, "too large", format!("{size} bytes are no image"))),
                (None, None) => Err(skipped(&member.key, "no image", "no member of it is an image".into())),
            }
        };
        let summary = ingest(split, config.on_error, items, work, sink)?;
        let left_out = left_out.into_iter().map(|(kind, files)| LeftOut { kind, files }).collect();
        let taken = found.note.iter().cloned().collect();
        Ok(ReadSummary { classes: classes.names(most), left_out, taken, ..summary })
    }
}

/// Where labels come from, and the classes' names by number.
enum Classes {
    /// The labels are whole numbers, which stand for themselves.
    Numbers,
    /// The labels are texts in members.
    Texts(Vec<String>),
    /// The labels are folders. The two lengths count the leading folders that all paths of the training and of the test split
    /// share; the folder behind them is the class.
    Folders([usize; 2], Vec<String>),
}

impl Classes {
    /// Numbers the names of the training split first, then those that only the test split has.
    fn new(outlines: [&Outline; 2]) -> Classes {
        let mut names: Vec<String> = Vec::new();
        let mut add = |found: BTreeSet<String>| {
            let new: Vec<_> = found.into_iter().filter(|name| !names.contains(name)).collect();
            names.extend(new);
        };
        let labelled = outlines.iter().any(|outline| !outline.labels.is_empty());
        let is_number = |label: &String| label.parse::<i64>().is_ok();
        if labelled && outlines.iter().flat_map(|outline| &outline.labels).all(is_number) {
            return Classes::Numbers;
        }
        if labelled {
            outlines.iter().for_each(|outline| add(outline.labels.clone()));
            return Classes::Texts(names);
        }
        let mut shared = [0; 2];
        for (shared, Outline { folders, .. }) in shared.iter_mut().zip(outlines) {
            *shared = shared_parts(folders);
            add(folders.iter().filter_map(|folders| folders.get(*shared).cloned()).collect());
        }
        Classes::Folders(shared, names)
    }

    /// The class of a sample. Err holds a number that is too large for a class.
    fn number(&self, split: SplitName, member: &Member) -> Result<Option<i64>, i64> {
        let of = |names: &[String], name: &str| names.iter().position(|known| known == name).map(|at| at as i64);
        match self {
            Classes::Numbers => match member.label.as_ref().and_then(|label| label.parse().ok()) {
                Some(label) if label >= MOST_CLASSES as i64 => Err(label),
                // -1 marks a withheld label.
                label => Ok(label.filter(|label| *label >= 0)),
            },
            Classes::Texts(names) => Ok(member.label.as_ref().and_then(|label| of(names, label))),
            Classes::Folders(shared, names) => {
                let shared = shared[split.index()];
                Ok(folders_of(&member.key).get(shared).and_then(|name| of(names, name)))
            }
        }
    }

    fn names(&self, most: i64) -> Vec<String> {
        match self {
            Classes::Numbers => (0..=most).map(|label| label.to_string()).collect(),
            Classes::Texts(names) | Classes::Folders(_, names) => names.clone(),
        }
    }
}

/// Number of leading folders that all paths share. If all images are in one folder, all of its parts are shared.
fn shared_parts(folders: &BTreeSet<Vec<String>>) -> usize {
    // The set is sorted, so parts that the first and the last path share are shared by all.
    match (folders.first(), folders.last()) {
        (Some(first), Some(last)) => first.iter().zip(last).take_while(|(a, b)| a == b).count(),
        _ => 0,
    }
}

/// Folders of a path within an archive.
fn folders_of(path: &str) -> Vec<String> {
    let mut parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).map(names::composed).collect();
    parts.pop();
    parts
}

/// Scans an archive for its labels. Only the first bytes of each image are read; in a plain archive the rest is skipped by
/// seeking.
fn outline(path: &Path, found: &mut dyn FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<Outline> {
    let (mut outline, mut told) = (Outline::default(), Ok(()));
    visit(path, u64::MAX, &mut |member| {
        if member.image.is_some() || member.too_large.is_some() {
            outline.samples += 1;
            outline.labels.extend(member.label);
            outline.folders.insert(folders_of(&member.key));
            told = found(1);
        }
        told.is_ok()
    })?;
    told.map(|()| outline)
}

/// The samples of an archive. A thread reads a few of them ahead. Of the images of the first `unread` samples, only the first
/// bytes are read.
fn members(path: &Path, unread: u64) -> impl Iterator<Item = Result<Member, DataError>> + use<> {
    let (sender, receiver) = sync_channel(AHEAD);
    let path = path.to_owned();
    // The thread ends at the latest when the receiver is dropped.
    thread::spawn(move || {
        let result = visit(&path, unread, &mut |member| sender.send(Ok(member)).is_ok());
        if let Err(error) = result {
            let _ = sender.send(Err(error));
        }
    });
    receiver.into_iter()
}

/// Passes the samples of an archive to `sink` until it returns false. Of the images of the first `unread` samples, only the first
/// bytes are read.
///
/// Errors: a file that is not an archive, or is truncated.
fn visit(path: &Path, unread: u64, sink: &mut dyn FnMut(Member) -> bool) -> Result<(), DataError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let mut magic = [0; 2];
    let gzipped = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.seek(SeekFrom::Start(0)).map_err(unreadable(path))?;
    let broken = |error: io::Error| unreadable(path)(format!("as a tar archive: {error}"));
    match gzipped {
        true => {
            let mut archive = Archive::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file)));
            gather(archive.entries().map_err(broken)?, unread, sink).map_err(broken)
        }
        false => {
            let mut archive = Archive::new(BufReader::new(file));
            gather(archive.entries_with_seek().map_err(broken)?, unread, sink).map_err(broken)
        }
    }
}

/// Groups the members of an archive into samples.
fn gather<'a, R: Read + 'a>(
    entries: impl Iterator<Item = io::Result<Entry<'a, R>>>,
    unread: u64,
    sink: &mut dyn FnMut(Member) -> bool,
) -> io::Result<()> {
    let mut sample: Option<Member> = None;
    let mut with_image = 0;
    for entry in entries {
        let mut entry = entry?;
        if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous) {
            continue;
        }
        let path = names::of_file(OsStr::from_bytes(&entry.path_bytes()));
        let path = path.strip_prefix("./").unwrap_or(&path).to_owned();
        let (folder, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(folder, name)| (folder, name));
        let Some((stem, ending)) = name.split_once('.').or(Some((name, ""))).filter(|(stem, _)| !stem.is_empty())
        else {
            continue;
        };
        let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
        if let Some(done) = sample.take_if(|sample| sample.key != key) {
            with_image += u64::from(done.image.is_some() || done.too_large.is_some());
            if !sink(done) {
                return Ok(());
            }
        }
        let sample = sample.get_or_insert_with(|| Member::new(key));
        sample.add(&path, &ending.to_lowercase(), &mut entry, with_image >= unread)?;
    }
    if let Some(last) = sample {
        sink(last);
    }
    Ok(())
}

impl Member {
    fn new(key: String) -> Member {
        Member { key, image: None, label: None, others: vec![], too_large: None }
    }

    /// Adds a member of the archive to the sample. `images` says whether to read an image's bytes beyond the first few.
    fn add<R: Read>(&mut self, path: &str, ending: &str, entry: &mut Entry<R>, images: bool) -> io::Result<()> {
        let text = |entry: &mut Entry<R>| {
            let mut bytes = Vec::new();
            entry.take(MOST_TEXT).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        match ending {
            LABEL => self.label = Some(names::composed(text(entry)?.trim())).filter(|label| !label.is_empty()),
            JSON => {
                let about = serde_json::from_str::<serde_json::Value>(&text(entry)?).unwrap_or_default();
                let label = match &about["label"] {
                    serde_json::Value::String(text) => Some(names::composed(text)),
                    number => number.as_i64().map(|number| number.to_string()),
                };
                self.label = self.label.take().or(label);
            }
            _ => {
                let size = entry.size();
                let mut bytes = Vec::new();
                entry.by_ref().take(HEAD as u64).read_to_end(&mut bytes)?;
                let named = is_image_ending(ending.rsplit('.').next().unwrap_or_default());
                if self.image.is_some() || !(named || Kind::of(&bytes).is_picture()) {
                    self.others.push(ending.to_owned());
                } else if size > MOST_BYTES {
                    self.too_large = Some((path.to_owned(), size));
                } else {
                    if images {
                        entry.read_to_end(&mut bytes)?;
                        if bytes.len() as u64 != size {
                            return Err(io::Error::new(
                                io::ErrorKind::UnexpectedEof,
                                format!("it breaks off within `{path}`"),
                            ));
                        }
                    }
                    self.image = Some((path.to_owned(), bytes));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use flate2::{Compression, write::GzEncoder};
    use tar::{Builder, Header};

    use super::*;
    use crate::dataset::{
        DataConfig, Item, OnError, Paths, Source, count,
        decode::tests::{picture, png},
        read, source_files,
    };

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn config(train: &Path, test: Option<&Path>, on_error: OnError) -> DataConfig {
        let one = |path: &Path| Paths::One(path.to_owned());
        DataConfig::Webdataset(FilesConfig { train: one(train), test: test.map(one), on_error })
    }

    type Rows = Vec<(String, Option<i64>)>;

    fn all(config: &DataConfig, split: SplitName) -> Result<(Rows, ReadSummary), String> {
        let mut rows = Vec::new();
        let summary = read(config, split, &mut |sample| {
            rows.push((sample.path.unwrap(), sample.label));
            Ok(())
        });
        summary.map(|summary| (rows, summary)).map_err(|error| error.to_string())
    }

    fn row(path: &str, label: Option<i64>) -> (String, Option<i64>) {
        (path.to_owned(), label)
    }

    #[test]
    fn members_of_one_name_are_a_sample() {
        let dir = tempfile::tempdir().unwrap();
        let image = png(&picture(6, 5));
        let bytes = archive(&[
            ("./000.jpg", &image),
            ("./000.cls", b"3"),
            ("./000.txt", b"a caption"),
            ("001.cls", b"0\n"),
            ("001.seg.png", &image),
            ("002.json", br#"{"label": 1}"#),
            ("002.PNG", &image),
            ("003.image", &image),
            ("._004.jpg", b"hidden"),
            ("005.txt", b"no image"),
        ]);
        let plain = dir.path().join("a.tar");
        fs::write(&plain, &bytes).unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&bytes).unwrap();
        fs::write(dir.path().join("b.tar.gz"), gzip.finish().unwrap()).unwrap();
        let expected =
            [row("000.jpg", Some(3)), row("001.seg.png", Some(0)), row("002.PNG", Some(1)), row("003.image", None)];
        for (path, times) in [(plain.as_path(), 1), (dir.path(), 2)] {
            let config = config(path, None, OnError::Fail);
            let (rows, summary) = all(&config, SplitName::Train).unwrap();
            assert_eq!(rows, std::iter::repeat_n(expected.clone(), times).flatten().collect::<Vec<_>>());
            assert_eq!(summary.classes, ["0", "1", "2", "3"]);
            assert_eq!(summary.left_out, [LeftOut { kind: "*.txt".into(), files: times as u64 }]);
            assert_eq!(count(&config, SplitName::Train).unwrap(), Some(4 * times as u64));
            let mut found = 0;
            let counted = Source::open(&config, &mut |samples| {
                found += samples;
                anyhow::ensure!(found < 4 * times as u64, "stopped");
                Ok(())
            });
            assert_eq!(counted.err().map(|error| error.to_string()).as_deref(), Some("stopped"), "at the last sample");
            // Samples of an earlier reading are passed over, but still count in the summary of the split.
            for from in 0..=rows.len() {
                let mut rest = Vec::new();
                let source = Source::open(&config, &mut |_| Ok(())).unwrap();
                let again = source.read_from(SplitName::Train, from as u64, &mut |item| {
                    let Item::Sample(sample) = item else { panic!("{item:?}") };
                    sample.image().unwrap();
                    rest.push((sample.path.unwrap(), sample.label));
                    Ok(())
                });
                assert_eq!((&rest[..], again.unwrap()), (&rows[from..], summary.clone()));
            }
            assert_eq!(source_files(&config, Path::new("")).unwrap().len(), times);
        }
    }

    #[test]
    fn texts_are_classes_and_so_are_folders_without_labels() {
        let dir = tempfile::tempdir().unwrap();
        let image = png(&picture(6, 5));
        let put = |name: &str, files: &[(&str, &[u8])]| {
            let path = dir.path().join(name);
            fs::write(&path, archive(files)).unwrap();
            path
        };
        let train = put("a.tar", &[("0.cls", b"emu"), ("0.png", &image), ("1.png", &image), ("1.cls", b"cat")]);
        let test = put("b.tar", &[("0.cls", b"yak"), ("0.png", &image), ("1.cls", b"cat"), ("1.png", &image)]);
        let both = config(&train, Some(&test), OnError::Fail);
        let (rows, summary) = all(&both, SplitName::Train).unwrap();
        assert_eq!(
            (summary.classes, rows),
            (vec!["cat".into(), "emu".into(), "yak".into()], vec![row("0.png", Some(1)), row("1.png", Some(0))])
        );
        assert_eq!(all(&both, SplitName::Test).unwrap().0, [row("0.png", Some(2)), row("1.png", Some(0))]);

        let train = put("c.tar", &[("train/dog/a.png", &image), ("train/cat/b.png", &image)]);
        let test = put("d.tar", &[("./dog/c.png", &image), ("./cat/d.png", &image)]);
        let both = config(&train, Some(&test), OnError::Fail);
        let (rows, summary) = all(&both, SplitName::Train).unwrap();
        assert_eq!(summary.classes, ["cat", "dog"]);
        assert_eq!(rows, [row("train/dog/a.png", Some(1)), row("train/cat/b.png", Some(0))]);
        assert_eq!(all(&both, SplitName::Test).unwrap().0[0], row("dog/c.png", Some(1)));
        let flat = put("e.tar", &[("x/a.png", &image), ("x/b.png", &image)]);
        assert_eq!(all(&config(&flat, None, OnError::Fail), SplitName::Train).unwrap().0[1], row("x/b.png", None));
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let image = png(&picture(40, 40));
        let error = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = all(&config(&path, None, OnError::Fail), SplitName::Train).unwrap_err();
            error.replace(&path.display().to_string(), "FILE")
        };
        let whole = archive(&[("0.png", &image), ("1.jpg", b"no image")]);
        assert!(error(&whole).starts_with("cannot read image `FILE: 1.jpg`: it is of an unknown format"));
        let cut = error(&whole[..600]);
        assert_eq!(cut, "cannot read `FILE`: as a tar archive: it breaks off within `0.png`");
        assert!(error(&[7; 1024]).starts_with("cannot read `FILE`: as a tar archive: "));
        assert_eq!(error(b""), "data.train: no images");
        let (rows, summary) = {
            fs::write(&path, &whole).unwrap();
            all(&config(&path, None, OnError::Skip), SplitName::Train).unwrap()
        };
        assert_eq!((rows.len(), &*summary.skipped[0].kind), (1, "no image"));
    }
}
