//! Class folders of images: `train/<class>/…/<image>`; a folder of images alone is a split without labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use super::{
    DataError, FilesConfig, LeftOut, ReadSummary, Sample, Skipped, SourceFile, SplitName,
    decode::{DECODED, HEAD, Kind, Refusal, verify},
    ingest::{Sink, ingest},
    paths::{name_of, resolve, unreadable},
};

/// Endings of files that are taken for images unseen; of others the content decides.
const EXTENSIONS: [&str; 12] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];

/// A folder whose images share a label.
struct Group {
    dir: PathBuf,
    /// Path of `dir` as the data set knows it, empty or with a slash at its end.
    prefix: String,
    label: Option<i64>,
}

/// An image file.
struct Found {
    path: PathBuf,
    /// Path within the split: `cat/0001.png`.
    name: String,
    label: Option<i64>,
    bytes: u64,
}

pub(super) fn source_files(
    config: &FilesConfig,
    split: SplitName,
    base: &Path,
    files: &mut Vec<SourceFile>,
) -> Result<(), DataError> {
    let (_, groups) = groups(config, split, base)?;
    for group in groups {
        let found = images(&group, split)?.images;
        files.extend(found.into_iter().map(|f| SourceFile { role: format!("{split}/{}", f.name), path: f.path }));
    }
    Ok(())
}

pub(super) fn count(config: &FilesConfig, split: SplitName, base: &Path) -> Result<u64, DataError> {
    let (_, groups) = groups(config, split, base)?;
    groups.iter().try_fold(0, |sum, group| Ok(sum + images(group, split)?.images.len() as u64))
}

pub(super) fn read(
    config: &FilesConfig,
    split: SplitName,
    base: &Path,
    sink: &mut Sink,
) -> anyhow::Result<ReadSummary> {
    let (classes, groups) = groups(config, split, base)?;
    let mut left_out = BTreeMap::<String, u64>::new();
    // One folder's listing at a time.
    let items = groups.iter().flat_map(|group| match images(group, split) {
        Ok(listing) => {
            for (kind, files) in listing.left_out {
                *left_out.entry(kind).or_default() += files;
            }
            listing.images.into_iter().map(|f| Ok((f.bytes, f))).collect()
        }
        Err(error) => vec![Err(error)],
    });
    let work = |found: Found| {
        let bytes = fs::read(&found.path).map_err(|e| Refusal { kind: "unreadable", reason: e.to_string() });
        match bytes.and_then(|bytes| verify(&bytes).map(|_| bytes)) {
            Ok(bytes) => Ok(Sample { bytes, path: Some(found.name), label: found.label }),
            Err(Refusal { kind, reason }) => Err(Skipped { name: found.path.display().to_string(), kind, reason }),
        }
    };
    let summary = ingest(split, config.on_error, items, work, sink)?;
    let left_out = left_out.into_iter().map(|(kind, files)| LeftOut { kind, files }).collect();
    Ok(ReadSummary { classes, left_out, ..summary })
}

/// Class names by label, and the folders of the split in the order in which they are read.
///
/// The training split names the classes, so that labels mean the same in both splits.
fn groups(config: &FilesConfig, split: SplitName, base: &Path) -> Result<(Vec<String>, Vec<Group>), DataError> {
    let Some(paths) = config.of(split) else { return Ok((vec![], vec![])) };
    let roots = resolve(paths, split, base)?;
    if let Some(path) = roots.iter().find(|root| !root.is_dir()) {
        return Err(DataError::WrongKind { split, path: path.clone(), expected: "folder" });
    }
    let own = classes(&roots)?;
    let classes = match split {
        SplitName::Train => own.clone(),
        SplitName::Test => match classes(&resolve(&config.train, SplitName::Train, base)?)? {
            train if train.is_empty() => own.clone(),
            train => train,
        },
    };
    let mut groups = Vec::new();
    for (number, root) in roots.iter().enumerate() {
        let prefix = if roots.len() > 1 { format!("{number}/") } else { String::new() };
        if own.is_empty() {
            groups.push(Group { dir: root.clone(), prefix, label: None });
            continue;
        }
        for name in own.iter().filter(|name| root.join(name).is_dir()) {
            let dir = root.join(name);
            let Ok(label) = classes.binary_search(name) else {
                return Err(DataError::UnknownClass { path: dir, known: classes });
            };
            groups.push(Group { dir, prefix: format!("{prefix}{name}/"), label: Some(label as i64) });
        }
    }
    Ok((classes, groups))
}

/// Names of the class folders in all of `roots`, sorted; empty when the images lie in the roots themselves.
fn classes(roots: &[PathBuf]) -> Result<Vec<String>, DataError> {
    let (mut classes, mut stray) = (BTreeSet::new(), None);
    for root in roots {
        for entry in fs::read_dir(root).map_err(unreadable(root))? {
            let path = entry.map_err(unreadable(root))?.path();
            let name = name_of(&path);
            if name.starts_with('.') {
                continue;
            } else if path.is_dir() {
                classes.insert(name);
            } else if is_image(&path) {
                stray = stray.min(Some(path.clone())).or(Some(path));
            }
        }
    }
    match stray {
        Some(path) if !classes.is_empty() => Err(DataError::Stray { path }),
        _ => Ok(classes.into_iter().collect()),
    }
}

/// What lies below a folder; hidden files do not count.
struct Listing {
    /// By path.
    images: Vec<Found>,
    /// How many files are no images, by their ending.
    left_out: BTreeMap<String, u64>,
}

/// Lists a folder, in which there must be an image.
fn images(group: &Group, split: SplitName) -> Result<Listing, DataError> {
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    let walk = WalkDir::new(&group.dir).follow_links(true).sort_by_file_name().into_iter();
    let (mut found, mut left_out) = (Vec::new(), BTreeMap::<String, u64>::new());
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name())) {
        let entry = entry.map_err(unreadable(&group.dir))?;
        if entry.file_type().is_dir() {
            continue;
        }
        if !is_image(entry.path()) {
            *left_out.entry(ending(entry.path())).or_default() += 1;
            continue;
        }
        let bytes = entry.metadata().map_err(unreadable(entry.path()))?.len();
        let below = entry.path().strip_prefix(&group.dir).unwrap_or(entry.path());
        let below: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        let name = format!("{}{}", group.prefix, below.join("/"));
        found.push(Found { path: entry.into_path(), name, label: group.label, bytes });
    }
    match found.is_empty() {
        false => Ok(Listing { images: found, left_out }),
        true if group.label.is_some() => Err(DataError::EmptyClass { path: group.dir.clone() }),
        true => Err(DataError::NothingFound { split, path: group.dir.clone(), what: DECODED }),
    }
}

/// Whether a file is to be read as an image: by its ending, or else by its first bytes, since names lie.
///
/// Pictures that are not decoded count too: they are refused with their format's name rather than left out.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if EXTENSIONS.contains(&extension.as_str()) {
        return true;
    }
    let mut head = Vec::with_capacity(HEAD);
    // What cannot be opened is left out by its ending.
    let read = path.is_file().then(|| File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head)));
    matches!(read, Some(Ok(_))) && Kind::of(&head).is_picture()
}

/// What a file that is no image is counted as.
fn ending(path: &Path) -> String {
    match path.extension() {
        Some(extension) => format!("*.{}", extension.to_string_lossy().to_lowercase()),
        None => "without an ending".into(),
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(roles, ["train/cat/2.png", "train/dog/b.JPG", "train/dog/deep/a.jpeg", "test/dog/x.png"]);
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
        let [Skipped { kind: "HEIC", reason, .. }] = &summary.skipped[..] else { panic!("{summary:?}") };
        assert!(reason.starts_with("HEIC, which is not decoded: convert it"), "{reason}");
        let left_out: Vec<_> = summary.left_out.iter().map(|left| (left.kind.as_str(), left.files)).collect();
        assert_eq!(left_out, [("*.txt", 1), ("without an ending", 1)]);
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
        let kinds: Vec<_> = summary.skipped.iter().map(|skipped| skipped.kind).collect();
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
