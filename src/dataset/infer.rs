//! Files and folders on a command line to a data section: which format they are of, where that is beyond doubt.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    DataConfig, FilesConfig, IdxConfig, OnError, Paths, TableConfig,
    image_folder::is_image,
    paths::{name_of, unreadable},
};

/// Formats that paths alone describe.
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

/// Paths that describe no data by themselves.
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
    /// The format of `paths`, by their names and first bytes.
    ///
    /// # Errors
    /// When a path is not there, fits no format or several, or not all are of one.
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

    /// `paths` as a training split; `labels` is the label file of IDX images.
    ///
    /// # Errors
    /// When the format has no such labels, or takes one path.
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

/// Tables whose columns are found by their names.
fn table(train: Paths, on_error: OnError) -> TableConfig {
    TableConfig { train, test: None, image_column: None, label_column: None, on_error }
}

fn of_folder(path: &Path) -> anyhow::Result<FileFormat> {
    let (mut images, mut batches) = (false, false);
    let mut others = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(unreadable(path))? {
        let entry = entry.map_err(unreadable(path))?.path();
        let name = name_of(&entry);
        if name.starts_with('.') {
            continue;
        }
        images |= entry.is_dir() || is_image(&entry);
        others.extend(of_ending(&name));
        batches |= name.starts_with("data_batch") && name.ends_with(".bin");
    }
    let unclear = |found| Err(UnclearData::Format { path: path.to_owned(), found }.into());
    others.extend(batches.then_some(FileFormat::Cifar10));
    others.extend(images.then_some(FileFormat::ImageFolder));
    match others.len() {
        0 => unclear("neither images, folders, *.parquet, *.arrow, *.tar nor data_batch_*.bin are in it"),
        1 => Ok(others.pop_first().unwrap_or(FileFormat::ImageFolder)),
        _ => unclear("files of several formats are in it"),
    }
}

/// The format of tables and archives with this name.
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
