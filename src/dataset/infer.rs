//! Infers a data section from files and folders on a command line, if their format is beyond doubt.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    DataConfig, DataError, FilesConfig, IdxConfig, OnError, Paths, SplitName, TableConfig,
    image_folder::is_image,
    layout::{self, Named},
    paths::{name_of, unreadable},
    table::Container,
    webdataset,
};

/// Depth of nested folders in which a format is searched.
const DEEPEST: usize = 4;

/// Formats that can be configured from paths alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileFormat {
    /// Images, or folders of images, in class folders or not
    ImageFolder,
    /// Parquet files in the Hugging Face image schema, or folders of them
    Parquet,
    /// Arrow IPC files in the same schema, or folders of them
    Arrow,
    /// WebDataset: tar archives, or folders of them
    Webdataset,
    /// Binary batches of CIFAR-10, or the folder that holds the training batches
    Cifar10,
    /// An IDX file of images (the MNIST family), gzipped or plain
    Idx,
}

/// The reasons why paths alone do not describe a data set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnclearData {
    #[error("no such file or folder: `{}`", .0.display())]
    Missing(PathBuf),
    #[error("cannot tell the format of `{}`: {found}; --format names it", path.display())]
    Format { path: PathBuf, found: &'static str },
    #[error("`{}` and `{}` are of different formats; give each a command and a file of its own", .0.display(), .1.display())]
    Mixed(PathBuf, PathBuf),
    #[error("an IDX file of images is read alone; give each a command and a file of its own")]
    SeveralIdx,
    #[error("labels in a file of their own go with IDX images alone")]
    LabelsApart,
}

impl FileFormat {
    /// Infers the format of `paths` from their names and first bytes.
    ///
    /// # Errors
    /// When a path does not exist, matches no format or several, or differs in format from the others.
    pub fn infer(paths: &[PathBuf]) -> anyhow::Result<FileFormat> {
        let mut found: Option<(FileFormat, &PathBuf)> = None;
        for path in paths {
            let format = match path.is_dir() {
                true => of_folder(path)?,
                false => of_file(path)?,
            };
            match found {
                Some((other, first)) if other != format => {
                    return Err(UnclearData::Mixed(first.clone(), path.clone()).into());
                }
                _ => found = found.or(Some((format, path))),
            }
        }
        let nothing = || UnclearData::Format { path: PathBuf::new(), found: "there is none" };
        Ok(found.ok_or_else(nothing)?.0)
    }

    /// If names below a folder of tables or archives indicate several splits: the folder and the names of the splits. Returns the
    /// first such folder of `paths`.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn splits(self, paths: &[PathBuf]) -> Result<Option<(PathBuf, Vec<String>)>, DataError> {
        let Some(endings) = self.endings() else { return Ok(None) };
        for path in paths.iter().filter(|path| path.is_dir()) {
            let said = layout::splits(path, endings)?;
            if !said.is_empty() {
                return Ok(Some((path.clone(), said.iter().map(Named::to_string).collect())));
            }
        }
        Ok(None)
    }

    /// The files of a split below `paths`. A validation split serves as the test split if there is no other. Paths of other
    /// formats than tables and archives are returned unchanged.
    ///
    /// # Errors
    /// When a folder has no files of the split, or several sets of them.
    pub fn files(self, paths: &[PathBuf], split: SplitName) -> Result<Vec<PathBuf>, DataError> {
        match self.endings() {
            Some(endings) => Ok(layout::find(paths.to_vec(), split, endings)?.paths),
            None => Ok(paths.to_vec()),
        }
    }

    /// File extensions of tables and archives; None for other formats.
    fn endings(self) -> Option<&'static [&'static str]> {
        match self {
            FileFormat::Parquet => Some(Container::Parquet.endings()),
            FileFormat::Arrow => Some(Container::Arrow.endings()),
            FileFormat::Webdataset => Some(&webdataset::ENDINGS),
            _ => None,
        }
    }

    /// A data section with `paths` as the training split. `labels` is the label file of IDX images.
    ///
    /// # Errors
    /// When `labels` is given for another format than IDX, or several paths are given for IDX.
    pub fn config(
        self,
        paths: &[PathBuf],
        labels: Option<PathBuf>,
        on_error: OnError,
    ) -> Result<DataConfig, UnclearData> {
        if labels.is_some() && self != FileFormat::Idx {
            return Err(UnclearData::LabelsApart);
        }
        let train = Paths::Many(paths.to_vec());
        Ok(match self {
            FileFormat::ImageFolder => DataConfig::ImageFolder(FilesConfig { train, test: None, on_error }),
            FileFormat::Webdataset => DataConfig::Webdataset(FilesConfig { train, test: None, on_error }),
            FileFormat::Cifar10 => DataConfig::Cifar10(FilesConfig { train, test: None, on_error }),
            FileFormat::Parquet => DataConfig::Parquet(table(train, on_error)),
            FileFormat::Arrow => DataConfig::Arrow(table(train, on_error)),
            FileFormat::Idx => {
                let [path] = paths else { return Err(UnclearData::SeveralIdx) };
                let train = path.clone();
                DataConfig::Idx(IdxConfig { train, train_labels: labels, test: None, test_labels: None })
            }
        })
    }
}

/// A table section whose columns are found by their usual names.
fn table(train: Paths, on_error: OnError) -> TableConfig {
    TableConfig { train, test: None, image_column: None, label_column: None, on_error }
}

/// The format of the files in a folder. If none of them has a known format, the folders below are searched: repositories of data
/// hubs keep tables in subfolders, just as classes are kept.
fn of_folder(path: &Path) -> anyhow::Result<FileFormat> {
    let unclear = |found| Err(UnclearData::Format { path: path.to_owned(), found }.into());
    let (mut found, folders) = formats_in(path, false)?;
    let has_folders = !folders.is_empty();
    if found.is_empty() {
        found = formats_below(folders, DEEPEST)?;
    }
    match found.len() {
        // Folders without an image are still taken for classes. Reading them reports what is missing.
        0 if has_folders => Ok(FileFormat::ImageFolder),
        0 => unclear("neither images, folders, *.parquet, *.arrow, *.tar nor data_batch_*.bin are in it"),
        1 => Ok(found.pop_first().unwrap_or(FileFormat::ImageFolder)),
        _ => unclear("files of several formats are in it"),
    }
}

/// The formats of the files in a folder, and its subfolders. Hidden entries are ignored. With `first`, the search stops at the
/// first known format, which is enough for one of many folders.
fn formats_in(path: &Path, first: bool) -> Result<(BTreeSet<FileFormat>, Vec<PathBuf>), DataError> {
    let (mut found, mut folders) = (BTreeSet::new(), Vec::new());
    for entry in fs::read_dir(path).map_err(unreadable(path))? {
        let entry = entry.map_err(unreadable(path))?.path();
        let name = name_of(&entry);
        if name.starts_with('.') {
            continue;
        }
        if entry.is_dir() {
            folders.push(entry);
            continue;
        }
        let is_batch = name.starts_with("data_batch") && name.ends_with(".bin");
        found.extend(of_ending(&name).or(is_batch.then_some(FileFormat::Cifar10)));
        if !found.contains(&FileFormat::ImageFolder) && is_image(&entry) {
            found.insert(FileFormat::ImageFolder);
        }
        if first && !found.is_empty() {
            break;
        }
    }
    Ok((found, folders))
}

/// The format of the first file with a known format in each folder; if a folder has none, the formats below it, down to `depth`.
fn formats_below(folders: Vec<PathBuf>, depth: usize) -> Result<BTreeSet<FileFormat>, DataError> {
    let mut all = BTreeSet::new();
    for folder in folders {
        let (found, below) = formats_in(&folder, true)?;
        match found.is_empty() && depth > 1 {
            true => all.extend(formats_below(below, depth - 1)?),
            false => all.extend(found),
        }
    }
    Ok(all)
}

/// The format of a table or archive, by its name.
fn of_ending(name: &str) -> Option<FileFormat> {
    let name = name.to_lowercase();
    match name.rsplit_once('.')?.1 {
        "parquet" | "parq" | "pq" => Some(FileFormat::Parquet),
        "arrow" | "feather" => Some(FileFormat::Arrow),
        "tar" | "tgz" => Some(FileFormat::Webdataset),
        "gz" if name.ends_with(".tar.gz") => Some(FileFormat::Webdataset),
        _ => None,
    }
}

fn of_file(path: &Path) -> anyhow::Result<FileFormat> {
    let mut magic = Vec::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(UnclearData::Missing(path.to_owned()).into());
        }
        file => file.map_err(unreadable(path))?,
    };
    file.take(4).read_to_end(&mut magic).map_err(unreadable(path))?;
    let name = name_of(path);
    if let Some(format) = of_ending(&name) {
        return Ok(format);
    }
    match &magic[..] {
        b"PAR1" => Ok(FileFormat::Parquet),
        b"ARRO" => Ok(FileFormat::Arrow),
        [0, 0, 8, 3] => Ok(FileFormat::Idx),
        [0x1f, 0x8b, ..] if name.contains("idx") || name.contains("ubyte") => Ok(FileFormat::Idx),
        _ if name.ends_with(".bin") => Ok(FileFormat::Cifar10),
        _ if is_image(path) => Ok(FileFormat::ImageFolder),
        _ => {
            Err(UnclearData::Format { path: path.to_owned(), found: "neither its name nor its beginning is known" }
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn formats_show_in_names_and_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        put(dir, "flat/a.png", b"");
        put(dir, "classes/cat/a.png", b"");
        put(dir, "many/00.parquet", b"PAR1");
        put(dir, "cifar/data_batch_1.bin", b"");
        let cases = [
            (dir.join("flat"), FileFormat::ImageFolder),
            (dir.join("classes"), FileFormat::ImageFolder),
            (dir.join("many"), FileFormat::Parquet),
            (dir.join("cifar"), FileFormat::Cifar10),
            (put(dir, "a.jpg", b""), FileFormat::ImageFolder),
            (put(dir, "no-ending", b"PAR1"), FileFormat::Parquet),
            (put(dir, "upper/A.PARQUET", b"PAR1"), FileFormat::Parquet),
            (dir.join("upper"), FileFormat::Parquet),
            (put(dir, "tars/0.tar", b""), FileFormat::Webdataset),
            (put(dir, "tars/1.tar.gz", b""), FileFormat::Webdataset),
            (dir.join("tars"), FileFormat::Webdataset),
            (put(dir, "saved/data-00000-of-00001.arrow", b"\xff\xff\xff\xff"), FileFormat::Arrow),
            (dir.join("saved"), FileFormat::Arrow),
            (put(dir, "test_batch.bin", b"\x03"), FileFormat::Cifar10),
            (put(dir, "t10k-images", &[0, 0, 8, 3, 0]), FileFormat::Idx),
            (put(dir, "t10k-images-idx3-ubyte.gz", &[0x1f, 0x8b, 8]), FileFormat::Idx),
        ];
        for (path, format) in cases {
            assert_eq!(FileFormat::infer(std::slice::from_ref(&path)).unwrap(), format, "{}", path.display());
        }
    }

    #[test]
    fn a_hubs_folder_is_known_by_what_lies_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for name in [
            "hub/README.md",
            "hub/data/train-00000-of-00001.parquet",
            "hub/data/test-00000-of-00001.parquet",
            "flat/train-0.parquet",
            "flat/validation-0.parquet",
            "flat/extra/notes.txt",
            "deep/plain_text/train/0.arrow",
            "deep/plain_text/test/0.arrow",
            "one/data/0.tar",
            "classes/cat/a.png",
        ] {
            put(dir, name, b"");
        }
        let splits = |name: &str| {
            let paths = [dir.join(name)];
            let format = FileFormat::infer(&paths).unwrap();
            (format, format.splits(&paths).unwrap().map_or(String::new(), |(_, names)| names.join(" ")))
        };
        assert_eq!(splits("hub"), (FileFormat::Parquet, "train test".into()));
        assert_eq!(splits("flat"), (FileFormat::Parquet, "train validation".into()));
        assert_eq!(splits("deep"), (FileFormat::Arrow, "train test".into()));
        assert_eq!(splits("one"), (FileFormat::Webdataset, String::new()));
        assert_eq!(splits("classes"), (FileFormat::ImageFolder, String::new()));
        let files = FileFormat::Parquet.files(&[dir.join("flat")], SplitName::Test).unwrap();
        assert_eq!(files, [dir.join("flat/validation-0.parquet")]);
        put(dir, "mixed/a/0.parquet", b"");
        put(dir, "mixed/b/0.png", b"");
        let error = FileFormat::infer(&[dir.join("mixed")]).unwrap_err().to_string();
        assert!(error.ends_with("mixed`: files of several formats are in it; --format names it"), "{error}");
    }

    #[test]
    fn what_is_unclear_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        put(dir, "a.png", b"png");
        let parquet = put(dir, "a.parquet", b"PAR1");
        put(dir, "empty/readme.txt", b"");
        let error = |paths: &[PathBuf]| {
            FileFormat::infer(paths).unwrap_err().to_string().replace(&dir.display().to_string(), "DIR")
        };
        let unclear = "cannot tell the format of `DIR";
        assert_eq!(error(&[dir.join("x")]), "no such file or folder: `DIR/x`");
        assert_eq!(
            error(&[dir.to_owned()]),
            format!("{unclear}`: files of several formats are in it; --format names it")
        );
        assert!(error(&[dir.join("empty")]).starts_with(&format!("{unclear}/empty`: neither images, folders")));
        assert!(
            error(&[dir.join("empty/readme.txt")]).starts_with(&format!("{unclear}/empty/readme.txt`: neither its"))
        );
        put(dir, "flat/a.png", b"");
        assert!(error(&[parquet, dir.join("flat")]).contains("are of different formats"));
        let two = [dir.join("a"), dir.join("b")];
        assert_eq!(FileFormat::Idx.config(&two, None, OnError::Fail).unwrap_err(), UnclearData::SeveralIdx);
        let labels = Some(dir.join("labels"));
        assert_eq!(FileFormat::Parquet.config(&two, labels, OnError::Fail).unwrap_err(), UnclearData::LabelsApart);
    }
}
