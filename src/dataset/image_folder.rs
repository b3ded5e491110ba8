//! Reads class folders of images: `train/<class>/…/<image>`. A folder that holds images alone is a split without labels.

use std::{
    borrow::Cow,
    cell::RefCell,
    cmp::Ordering,
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use walkdir::{DirEntry, FilterEntry, WalkDir};

use super::{
    DataError, FilesConfig, LeftOut, ReadSummary, Sample, Skipped, SourceFile, SplitName,
    decode::{DECODED, HEAD, Kind, Refusal, verify},
    ingest::{Sink, ingest},
    layout::Named,
    names,
    paths::{resolve, unreadable},
};

/// Extensions of files that count as images without a look at the content. For other files the content decides.
const EXTENSIONS: [&str; 12] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];

/// A folder whose images share a label, or a single image file.
struct Group {
    dir: PathBuf,
    /// Start of the names of its images: empty or ending in a slash; the whole path if `dir` is an image file.
    prefix: String,
    label: Option<i64>,
}

/// Class names by label, and the folders with the images of a split.
struct Groups {
    classes: Vec<String>,
    /// In the order in which they are read.
    folders: Vec<Group>,
    /// Broken symbolic links in the place of class folders.
    dangling: Vec<Found>,
}

/// An image file, or an unreadable entry in the place of one.
struct Found {
    path: PathBuf,
    /// Path within the split: `cat/0001.png`.
    name: String,
    label: Option<i64>,
    bytes: u64,
}

/// Passes the files of a split to `take`, sorted by their roles as text.
pub(super) fn each_source_file(
    config: &FilesConfig,
    split: SplitName,
    base: &Path,
    take: &mut dyn FnMut(SourceFile) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Groups { mut folders, mut dangling, .. } = groups(config, split, base)?;
    folders.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    let left_out = RefCell::default();
    let in_folders = folders.iter().flat_map(|group| Images::new(group, split, Order::Roles, &left_out));
    dangling.sort_by(|a, b| a.name.cmp(&b.name));
    let mut dangling = dangling.into_iter().peekable();
    let mut take = |found: Found| take(SourceFile { role: format!("{split}/{}", found.name), path: found.path });
    for found in in_folders {
        let found = found?;
        while let Some(before) = dangling.next_if(|dangling| dangling.name < found.name) {
            take(before)?;
        }
        take(found)?;
    }
    dangling.try_for_each(take)
}

pub(super) fn count(config: &FilesConfig, split: SplitName, base: &Path) -> Result<u64, DataError> {
    let Groups { folders, dangling, .. } = groups(config, split, base)?;
    let left_out = RefCell::default();
    let mut in_folders = folders.iter().flat_map(|group| Images::new(group, split, Order::Names, &left_out));
    in_folders.try_fold(dangling.len() as u64, |sum, found| found.map(|_| sum + 1))
}

pub(super) fn read(
    config: &FilesConfig,
    split: SplitName,
    base: &Path,
    sink: &mut Sink,
) -> anyhow::Result<ReadSummary> {
    let Groups { classes, folders, dangling } = groups(config, split, base)?;
    let left_out = RefCell::default();
    let in_folders = folders.iter().flat_map(|group| Images::new(group, split, Order::Names, &left_out));
    let items = dangling.into_iter().map(Ok).chain(in_folders).map(|found| found.map(|found| (found.bytes, found)));
    let work = |found: Found| {
        let bytes = fs::read(&found.path)
            .map_err(|error| Refusal { kind: "unreadable", reason: why_unreadable(&found.path, &error) });
        match bytes.and_then(|bytes| verify(&bytes).map(|_| bytes)) {
            Ok(bytes) => Ok(Sample { bytes, path: Some(found.name), label: found.label }),
            Err(Refusal { kind, reason }) => {
                Err(Skipped { name: found.path.display().to_string(), kind: kind.into(), reason })
            }
        }
    };
    let summary = ingest(split, config.on_error, items, work, sink)?;
    let left_out = left_out.into_inner().into_iter().map(|(kind, files)| LeftOut { kind, files }).collect();
    Ok(ReadSummary { classes, left_out, ..summary })
}

/// The reason why a file cannot be read. A broken link is described as such, and not as a missing file.
fn why_unreadable(path: &Path, error: &io::Error) -> String {
    match fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            format!("it is a link to `{}`, which is not there", target.display())
        }
        _ => error.to_string(),
    }
}

/// Why a folder cannot be walked through, without its path.
fn why_unwalkable(error: &walkdir::Error) -> String {
    error.io_error().map_or_else(|| error.to_string(), io::Error::to_string)
}

/// The classes and folders of a split. The training split names the classes, so that labels mean the same in both splits.
fn groups(config: &FilesConfig, split: SplitName, base: &Path) -> Result<Groups, DataError> {
    let Some(paths) = config.of(split) else {
        return Ok(Groups { classes: vec![], folders: vec![], dangling: vec![] });
    };
    let roots = resolve(paths, split, base)?;
    let own = class_folders(&roots, split)?;
    let has_classes = own.roots.iter().any(|classes| !classes.is_empty());
    if let Some(path) = roots.iter().find(|root| has_classes && !root.is_dir()) {
        return Err(DataError::Stray { path: path.clone() });
    }
    let mut names: Vec<String> = own.roots.iter().flat_map(BTreeMap::keys).cloned().collect();
    if split == SplitName::Test {
        let train = class_folders(&resolve(&config.train, SplitName::Train, base)?, SplitName::Train)?;
        let train: Vec<String> = train.roots.iter().flat_map(BTreeMap::keys).cloned().collect();
        names = if train.is_empty() { names } else { train };
    }
    names.sort_unstable();
    names.dedup();
    let mut found = Groups { classes: names, folders: vec![], dangling: vec![] };
    let prefix = |number: usize| if roots.len() > 1 { format!("{number}/") } else { String::new() };
    for (number, (root, classes)) in roots.iter().zip(own.roots).enumerate() {
        // An image file as root is named by its whole path.
        let prefix = if root.is_dir() { prefix(number) } else { root.display().to_string() };
        if !has_classes {
            found.folders.push(Group { dir: root.clone(), prefix, label: None });
            continue;
        }
        for (name, dir) in classes {
            let Ok(label) = found.classes.binary_search(&name) else {
                return Err(DataError::UnknownClass { path: dir, known: found.classes });
            };
            found.folders.push(Group { dir, prefix: format!("{prefix}{name}/"), label: Some(label as i64) });
        }
    }
    // If there are no classes, the walk over the root folder finds the broken links itself.
    for (number, path) in own.dangling.into_iter().filter(|_| has_classes) {
        let name = format!("{}{}", prefix(number), last(&path));
        found.dangling.push(Found { path, name, label: None, bytes: 0 });
    }
    Ok(found)
}

/// The class folders in the roots of a split.
struct ClassFolders {
    /// Class name and folder, for each root. All maps are empty if the images are stored directly in the roots.
    roots: Vec<BTreeMap<String, PathBuf>>,
    /// Broken links in the place of class folders, each with the number of its root.
    dangling: Vec<(usize, PathBuf)>,
}

fn class_folders(roots: &[PathBuf], split: SplitName) -> Result<ClassFolders, DataError> {
    let mut found = ClassFolders { roots: vec![], dangling: vec![] };
    let mut stray = None;
    for (number, root) in roots.iter().enumerate() {
        let mut classes = BTreeMap::new();
        if !root.is_dir() {
            found.roots.push(classes);
            continue;
        }
        for entry in fs::read_dir(root).map_err(unreadable(root))? {
            let path = entry.map_err(unreadable(root))?.path();
            let name = names::composed(&last(&path));
            if name.starts_with('.') {
                continue;
            } else if path.is_dir() {
                if let Some(other) = classes.insert(name, path.clone()) {
                    let (first, second) = if other < path { (other, path) } else { (path, other) };
                    return Err(DataError::SameClass { first, second });
                }
            } else if is_image(&path) {
                stray = stray.min(Some(path.clone())).or(Some(path));
            } else if path.is_symlink() && path.extension().is_none() && fs::metadata(&path).is_err() {
                found.dangling.push((number, path));
            }
        }
        refuse_splits(root, split, &classes)?;
        found.roots.push(classes);
    }
    found.dangling.sort();
    match stray {
        Some(path) if found.roots.iter().any(|classes| !classes.is_empty()) => Err(DataError::Stray { path }),
        _ => Ok(found),
    }
}

/// Refuses a root whose subfolders are splits and not classes.
fn refuse_splits(root: &Path, split: SplitName, classes: &BTreeMap<String, PathBuf>) -> Result<(), DataError> {
    let has_folders =
        |dir: &Path| fs::read_dir(dir).is_ok_and(|mut all| all.any(|e| e.is_ok_and(|e| e.path().is_dir())));
    let named: Vec<_> = classes.iter().filter_map(|(name, dir)| Some((Named::of(name)?, dir))).collect();
    let of = |wanted| named.iter().find(|(name, _)| *name == wanted).map(|(_, dir)| *dir);
    let (train, other) = (of(Named::Train), of(Named::Test).or(of(Named::Validation)));
    let are_splits = match (train, other) {
        (Some(train), Some(other)) => named.len() == classes.len() || (has_folders(train) && has_folders(other)),
        // A class may be called like a split. But if it is the only class and contains folders, it is a split.
        (Some(only), None) | (None, Some(only)) => classes.len() == 1 && has_folders(only),
        (None, None) => false,
    };
    let meant = match split {
        SplitName::Train => train,
        SplitName::Test => other,
    };
    match are_splits {
        false => Ok(()),
        true => Err(DataError::SplitRoot {
            split,
            path: root.to_owned(),
            found: named.iter().map(|(_, dir)| format!("`{}`", last(dir))).collect::<Vec<_>>().join(", "),
            meant: meant.map(|dir| format!("; `data.{split}: {}` is meant", dir.display())).unwrap_or_default(),
        }),
    }
}

/// The order in which a folder is walked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// By names within each folder: the order in which samples are numbered.
    Names,
    /// By whole paths as text, where a folder's name ends in a slash.
    Roles,
}

/// Iterates over the images below a folder. Hidden files are ignored. A folder without any image is an error.
struct Images<'a> {
    group: &'a Group,
    split: SplitName,
    walk: FilterEntry<walkdir::IntoIter, fn(&DirEntry) -> bool>,
    /// Number of files that are not images, by extension.
    left_out: &'a RefCell<BTreeMap<String, u64>>,
    found: bool,
}

impl<'a> Images<'a> {
    fn new(
        group: &'a Group,
        split: SplitName,
        order: Order,
        left_out: &'a RefCell<BTreeMap<String, u64>>,
    ) -> Images<'a> {
        let walk = WalkDir::new(&group.dir).follow_links(true);
        let walk = match order {
            Order::Names => walk.sort_by_file_name(),
            Order::Roles => walk.sort_by(by_role),
        };
        let seen: fn(&DirEntry) -> bool = |entry| entry.depth() == 0 || !hidden(entry.file_name());
        Images { group, split, walk: walk.into_iter().filter_entry(seen), left_out, found: false }
    }
}

/// Compares names as text, with a slash behind the names of folders.
fn by_role(a: &DirEntry, b: &DirEntry) -> Ordering {
    fn text(entry: &DirEntry) -> Cow<'_, str> {
        let name = entry.file_name();
        name.to_str().map_or_else(|| names::of_file(name).into(), Cow::Borrowed)
    }
    let slash = |entry: &DirEntry| if entry.file_type().is_dir() { "/" } else { "" };
    let (name_a, name_b) = (text(a), text(b));
    name_a.bytes().chain(slash(a).bytes()).cmp(name_b.bytes().chain(slash(b).bytes()))
}

fn hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

impl Iterator for Images<'_> {
    type Item = Result<Found, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Group { dir, prefix, label } = self.group;
        for entry in &mut self.walk {
            // A broken link or an unreadable folder hides data. It is yielded as an image, so that reading it reports the reason.
            let (path, bytes) = match entry {
                Ok(entry) if entry.file_type().is_dir() => continue,
                Ok(entry) => {
                    let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
                    (entry.into_path(), bytes)
                }
                Err(error) => match error.path() {
                    Some(path) if error.depth() > 0 => (path.to_owned(), 0),
                    _ => {
                        self.found = true;
                        return Some(Err(unreadable(dir)(why_unwalkable(&error))));
                    }
                },
            };
            if hidden(path.file_name().unwrap_or_default()) {
                continue;
            }
            let lost = bytes == 0 && path.extension().is_none() && fs::read(&path).is_err();
            // A file that the spec names directly is always read; decoding refuses it if it is not an image.
            if !lost && path != *dir && !is_image(&path) {
                *self.left_out.borrow_mut().entry(ending(&path)).or_default() += 1;
                continue;
            }
            let below = path.strip_prefix(dir).unwrap_or(&path);
            let below: Vec<_> = below.iter().map(names::of_file).collect();
            let name = format!("{prefix}{}", below.join("/"));
            self.found = true;
            return Some(Ok(Found { path, name, label: *label, bytes }));
        }
        let nothing = match label {
            Some(_) => DataError::EmptyClass { path: dir.clone() },
            None => DataError::NothingFound { split: self.split, path: dir.clone(), what: DECODED.to_owned() },
        };
        (!std::mem::replace(&mut self.found, true)).then_some(Err(nothing))
    }
}

fn last(path: &Path) -> String {
    names::of_file(path.file_name().unwrap_or_default())
}

/// Whether a file is to be read as an image: by its extension or, failing that, by its first bytes, since extensions may be wrong
/// or missing.
///
/// Pictures in formats that are not decoded count too, so that they are refused by their format's name and not left out silently.
pub(super) fn is_image(path: &Path) -> bool {
    if is_image_ending(&path.extension().unwrap_or_default().to_string_lossy().to_lowercase()) {
        return true;
    }
    let mut head = Vec::with_capacity(HEAD);
    // A file that cannot be opened is left out, counted by its extension.
    let read = path.is_file().then(|| File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head)));
    matches!(read, Some(Ok(_))) && Kind::of(&head).is_picture()
}

/// Whether files with this extension count as images without a look at the content.
pub(super) fn is_image_ending(ending: &str) -> bool {
    EXTENSIONS.contains(&ending)
}

/// The kind under which a file that is not an image is counted.
fn ending(path: &Path) -> String {
    match path.extension() {
        Some(extension) => format!("*.{}", extension.to_string_lossy().to_lowercase()),
        None => "without an ending".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};

    use super::*;
    use crate::dataset::{
        DataConfig, OnError, Paths, count,
        decode::tests::{jpeg, picture, png},
        read, source_files,
    };

    fn put(root: &Path, name: &str, bytes: &[u8]) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Two classes in train, one of them in test.
    fn folders() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let image = picture(9, 8);
        for name in ["train/dog/b.JPG", "train/dog/deep/a.jpeg", "train/cat/2.png", "test/dog/x.png"] {
            let bytes = if name.ends_with("png") { png(&image) } else { jpeg(&image) };
            put(dir.path(), name, &bytes);
        }
        put(dir.path(), "train/cat/notes.txt", b"not an image");
        put(dir.path(), "train/.cache/x.png", b"hidden");
        put(dir.path(), "train/cat/.hidden.png", b"hidden");
        put(dir.path(), "train/README.md", b"beside the classes");
        dir
    }

    fn config(dir: &Path, on_error: OnError) -> DataConfig {
        let path = |name| Paths::One(dir.join(name));
        DataConfig::ImageFolder(FilesConfig { train: path("train"), test: Some(path("test")), on_error })
    }

    fn all(config: &DataConfig, split: SplitName) -> anyhow::Result<(Vec<Sample>, ReadSummary)> {
        let mut samples = Vec::new();
        let summary = read(config, split, &mut |sample| {
            samples.push(sample);
            Ok(())
        })?;
        Ok((samples, summary))
    }

    fn error(config: &DataConfig, split: SplitName, dir: &Path) -> String {
        let error = all(config, split).unwrap_err().to_string();
        error.replace(&dir.display().to_string(), "DIR")
    }

    #[test]
    fn class_folders_become_labels_in_the_order_of_their_names() {
        let dir = folders();
        let config = config(dir.path(), OnError::Fail);
        let (samples, summary) = all(&config, SplitName::Train).unwrap();
        assert_eq!(summary.classes, ["cat", "dog"]);
        let rows: Vec<_> = samples.iter().map(|s| (s.path.as_deref().unwrap(), s.label.unwrap())).collect();
        assert_eq!(rows, [("cat/2.png", 0), ("dog/b.JPG", 1), ("dog/deep/a.jpeg", 1)]);
        // The test split lacks `cat`; its `dog` is still class 1.
        let (samples, summary) = all(&config, SplitName::Test).unwrap();
        assert_eq!((samples[0].label, summary.classes.len()), (Some(1), 2));
        assert_eq!(count(&config, SplitName::Train).unwrap(), Some(3));
        let roles: Vec<_> = source_files(&config, Path::new("")).unwrap().into_iter().map(|f| f.role).collect();
        assert_eq!(roles, ["test/dog/x.png", "train/cat/2.png", "train/dog/b.JPG", "train/dog/deep/a.jpeg"]);
    }

    #[test]
    fn roles_come_in_their_order_as_text() {
        let dir = tempfile::tempdir().unwrap();
        // A folder sorts by its name and the slash behind it, between these two files.
        for name in ["a/a-b.png", "a/a/z.png", "a/a.png", "a/a0.png", "b/x.png", "b-c/y.png"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, png(&picture(3, 3))).unwrap();
        }
        symlink("nowhere", dir.path().join("aa")).unwrap();
        let config = FilesConfig { train: Paths::One(dir.path().into()), test: None, on_error: OnError::Skip };
        let files = source_files(&DataConfig::ImageFolder(config), Path::new("")).unwrap();
        let roles: Vec<_> = files.into_iter().map(|file| file.role).collect();
        assert!(roles.is_sorted(), "{roles:?}");
        assert_eq!(roles.len(), 7);
    }

    #[test]
    fn content_decides_where_the_ending_is_unknown() {
        let dir = folders();
        let dir = dir.path();
        let image = picture(9, 8);
        for name in ["a.jfif", "b.jpg_large", "c", "d.JPE"] {
            put(dir, &format!("train/cat/{name}"), &jpeg(&image));
        }
        put(dir, "train/cat/lies.jpg", &png(&image));
        let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
        put(dir, "train/cat/x.heic", heic);
        put(dir, "train/cat/Makefile", b"all: nothing");
        let (samples, summary) = all(&config(dir, OnError::Skip), SplitName::Train).unwrap();
        assert_eq!(samples.len(), 3 + 5);
        let [Skipped { kind, reason, .. }] = &summary.skipped[..] else { panic!("{summary:?}") };
        assert_eq!(kind, "HEIC");
        assert!(reason.starts_with("HEIC, which is not decoded: convert it"), "{reason}");
        let left_out: Vec<_> = summary.left_out.iter().map(|left| (left.kind.as_str(), left.files)).collect();
        assert_eq!(left_out, [("*.txt", 1), ("without an ending", 1)]);
    }

    #[test]
    fn class_names_are_never_lost_or_merged() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let image = png(&picture(9, 8));
        for name in [b"train/caf\xe9".as_slice(), b"train/caf\xe8", b"test/caf\xe9"] {
            let folder = dir.join(OsStr::from_bytes(name));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(OsStr::from_bytes(b"\xff.png")), &image).unwrap();
        }
        // The composed form in one split, the decomposed one in the other.
        put(dir, "train/Äpfel/1.png", &image);
        put(dir, "test/A\u{308}pfel/1.png", &image);
        let both = config(dir, OnError::Fail);
        let (samples, summary) = all(&both, SplitName::Train).unwrap();
        assert_eq!(summary.classes, ["caf\\xE8", "caf\\xE9", "Äpfel"]);
        assert_eq!(samples[0].path.as_deref(), Some("caf\\xE8/\\xFF.png"));
        let (samples, _) = all(&both, SplitName::Test).unwrap();
        assert_eq!(samples.iter().map(|s| s.label).collect::<Vec<_>>(), [Some(1), Some(2)]);
        put(dir, "train/A\u{308}pfel/2.png", &image);
        let expected = "class folders `DIR/train/A\u{308}pfel` and `DIR/train/Äpfel` have one name in two forms: put their \
                        images into one folder";
        assert_eq!(error(&both, SplitName::Train, dir), expected);
    }

    #[test]
    fn links_that_lead_nowhere_are_unreadable_images() {
        let dir = folders();
        let dir = dir.path();
        symlink("gone.png", dir.join("train/cat/1.png")).unwrap();
        symlink("gone", dir.join("train/emu")).unwrap();
        symlink("gone", dir.join("train/dog/deep/more")).unwrap();
        let message = error(&config(dir, OnError::Fail), SplitName::Train, dir);
        let expected = "cannot read 3 images of data.train (`data.on_error: skip` leaves such images out):
  `DIR/train/emu`: it is a link to `gone`, which is not there
  `DIR/train/cat/1.png`: it is a link to `gone.png`, which is not there
  `DIR/train/dog/deep/more`: it is a link to `gone`, which is not there";
        assert_eq!(message, expected);
        let skip = config(dir, OnError::Skip);
        let (samples, summary) = all(&skip, SplitName::Train).unwrap();
        assert_eq!((samples.len(), summary.skipped.len(), summary.classes.len()), (3, 3, 2));
        assert!(summary.skipped.iter().all(|skipped| skipped.kind == "unreadable"));
        assert_eq!(count(&skip, SplitName::Train).unwrap(), Some(6));
    }

    #[test]
    fn a_folder_that_cannot_be_walked_through_is_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = WalkDir::new(dir.path().join("gone")).into_iter().find_map(Result::err).unwrap();
        assert_eq!(why_unwalkable(&error), io::Error::from_raw_os_error(2).to_string());
    }

    #[test]
    fn splits_in_the_place_of_classes_are_refused() {
        let dir = folders();
        let dir = dir.path();
        let of = |name: &str| {
            let train = Paths::One(dir.join(name));
            let test = Some(Paths::One(dir.join(name)));
            DataConfig::ImageFolder(FilesConfig { train, test, on_error: OnError::Skip })
        };
        let root = "`DIR` holds splits (`test`, `train`), and not classes";
        let train = format!("data.train: {root}; `data.train: DIR/train` is meant");
        assert_eq!(error(&of(""), SplitName::Train, dir).replace("DIR/`", "DIR`"), train.replace("DIR/`", "DIR`"));
        // Other folders beside the splits change nothing; a class may be called `train` if it has classes beside it.
        put(dir, "notes/a.txt", b"");
        assert!(error(&of(""), SplitName::Train, dir).contains("holds splits"));
        put(dir, "vehicles/train/1.png", &png(&picture(9, 8)));
        put(dir, "vehicles/car/1.png", &png(&picture(9, 8)));
        assert_eq!(all(&of("vehicles"), SplitName::Train).unwrap().1.classes, ["car", "train"]);
        put(dir, "alone/Validation/cat/1.png", &png(&picture(9, 8)));
        let alone = error(&of("alone"), SplitName::Train, dir);
        assert_eq!(alone, "data.train: `DIR/alone` holds splits (`Validation`), and not classes");
    }

    #[test]
    fn relative_paths_start_at_the_base() {
        let dir = folders();
        let path = |name: &str| Paths::One(name.into());
        let config = FilesConfig { train: path("train"), test: None, on_error: OnError::Fail };
        let files = source_files(&DataConfig::ImageFolder(config), dir.path()).unwrap();
        assert_eq!(files[0].path, dir.path().join("train/cat/2.png"));
    }

    #[test]
    fn a_folder_of_images_alone_has_no_labels() {
        let dir = folders();
        let image = Paths::One(dir.path().join("train/cat"));
        let config = DataConfig::ImageFolder(FilesConfig { train: image, test: None, on_error: OnError::Fail });
        let (samples, summary) = all(&config, SplitName::Train).unwrap();
        assert_eq!((samples.len(), samples[0].label, summary.classes.len()), (1, None, 0));
        assert_eq!(count(&config, SplitName::Test).unwrap(), None);
        assert_eq!(all(&config, SplitName::Test).unwrap(), (vec![], ReadSummary::default()));
    }

    #[test]
    fn files_are_a_split_without_labels() {
        let dir = folders();
        let files = vec![
            dir.path().join("train/dog/b.JPG"),
            dir.path().join("train/cat/notes.txt"),
            dir.path().join("train/cat"),
        ];
        let of = |paths: &[PathBuf], on_error| {
            let train = Paths::Many(paths.to_vec());
            DataConfig::ImageFolder(FilesConfig { train, test: None, on_error })
        };
        let (samples, summary) = all(&of(&files, OnError::Skip), SplitName::Train).unwrap();
        let names: Vec<_> = samples.iter().map(|s| (s.path.as_deref().unwrap(), s.label)).collect();
        assert_eq!(names, [(files[0].to_str().unwrap(), None), ("2/2.png", None)]);
        assert_eq!((summary.skipped.len(), &*summary.skipped[0].kind), (1, "no image"));
        let mixed = of(&[files[0].clone(), dir.path().join("test")], OnError::Fail);
        assert!(
            error(&mixed, SplitName::Train, dir.path()).starts_with("`DIR/train/dog/b.JPG` lies beside class folders")
        );
        let pattern = Paths::One(dir.path().join("train/*/*.[Jp]?[Gg]"));
        let config = DataConfig::ImageFolder(FilesConfig { train: pattern, test: None, on_error: OnError::Fail });
        assert_eq!(count(&config, SplitName::Train).unwrap(), Some(2));
        let nothing = Paths::One(dir.path().join("train/*.webp"));
        let config = DataConfig::ImageFolder(FilesConfig { train: nothing, test: None, on_error: OnError::Fail });
        assert_eq!(
            error(&config, SplitName::Train, dir.path()),
            "data.train: no file or folder fits `DIR/train/*.webp`"
        );
    }

    #[test]
    fn several_folders_are_one_split() {
        let dir = folders();
        let both = Paths::Many(vec![dir.path().join("test"), dir.path().join("train")]);
        let config = DataConfig::ImageFolder(FilesConfig { train: both, test: None, on_error: OnError::Fail });
        let (samples, _) = all(&config, SplitName::Train).unwrap();
        let rows: Vec<_> = samples.iter().map(|s| (s.path.as_deref().unwrap(), s.label.unwrap())).collect();
        assert_eq!(rows, [("0/dog/x.png", 1), ("1/cat/2.png", 0), ("1/dog/b.JPG", 1), ("1/dog/deep/a.jpeg", 1)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = folders();
        let dir = dir.path();
        let strict = config(dir, OnError::Fail);
        put(dir, "train/cat/3.png", b"no image");
        put(dir, "train/cat/4.webp", b"RIFF\x10\0\0\0WEBPVP8 ");
        let broken = error(&strict, SplitName::Train, dir);
        let lines: Vec<_> = broken.lines().collect();
        assert_eq!(lines[0], "cannot read 2 images of data.train (`data.on_error: skip` leaves such images out):");
        assert_eq!(lines[1], format!("  `DIR/train/cat/3.png`: it is of an unknown format, and not {DECODED}"));
        assert!(lines[2].starts_with("  `DIR/train/cat/4.webp`: WebP: "), "{broken}");
        let (samples, summary) = all(&config(dir, OnError::Skip), SplitName::Train).unwrap();
        let kinds: Vec<_> = summary.skipped.iter().map(|skipped| &*skipped.kind).collect();
        assert_eq!((samples.len(), &kinds[..]), (3, &["no image", "WebP"][..]));
        assert_eq!(summary.left_out, [LeftOut { kind: "*.txt".into(), files: 1 }]);
        assert!(summary.skipped[1].name.ends_with("cat/4.webp"), "{summary:?}");

        fs::create_dir(dir.join("train/emu")).unwrap();
        let empty = format!("class folder `DIR/train/emu` holds no image ({DECODED}); remove it or fill it");
        assert_eq!(error(&config(dir, OnError::Skip), SplitName::Train, dir), empty);
        put(dir, "test/yak/1.png", b"");
        let unknown =
            "class folder `DIR/test/yak` has no counterpart in the training split; its classes are cat, dog, emu";
        assert_eq!(error(&strict, SplitName::Test, dir), unknown);
        put(dir, "train/stray.png", b"");
        assert!(error(&strict, SplitName::Train, dir).starts_with("`DIR/train/stray.png` lies beside class folders"));
        fs::remove_dir_all(dir.join("train")).unwrap();
        assert_eq!(error(&strict, SplitName::Train, dir), "data.train: no such file or folder: `DIR/train`");
        fs::create_dir(dir.join("train")).unwrap();
        assert_eq!(error(&strict, SplitName::Train, dir), format!("data.train: no {DECODED} in `DIR/train`"));
    }
}
