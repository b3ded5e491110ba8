//! Errors in a user's images. Each variant names the file, the image or the row.

use std::path::PathBuf;

use super::{SplitName, decode::DECODED};

/// A reason why an image source cannot be ingested.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A path of the spec does not exist.
    #[error("data.{split}: no such file or folder: `{}`", path.display())]
    Missing { split: SplitName, path: PathBuf },
    /// A file or folder cannot be read.
    #[error("cannot read `{}`: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    /// A folder where a file is expected, or a file where a folder is expected.
    #[error("data.{split}: `{}` is not a {expected}", path.display())]
    WrongKind { split: SplitName, path: PathBuf, expected: &'static str },
    /// A folder without any file of the format.
    #[error("data.{split}: no {what} in `{}`", path.display())]
    NothingFound { split: SplitName, path: PathBuf, what: String },
    /// A folder with several sets of files below it.
    #[error("data.{split}: `{}` holds several sets of files, in `{}` and `{}`: name one of them", path.display(), first.display(), second.display())]
    SeveralFolders { split: SplitName, path: PathBuf, first: PathBuf, second: PathBuf },
    /// A folder whose names indicate splits, but not the wanted one.
    #[error("data.{split}: by their names the files in `{}` are of other splits, such as `{}` and `{}`: name the files that are meant", path.display(), first.display(), second.display())]
    OtherSplits { split: SplitName, path: PathBuf, first: PathBuf, second: PathBuf },
    /// A pattern that fits nothing.
    #[error("data.{split}: no file or folder fits `{}`", pattern.display())]
    NoMatch { split: SplitName, pattern: PathBuf },
    /// Braces that expand to more paths than any real data set has.
    #[error("data.{split}: the braces in `{}` stand for more than {most} paths; name the folder instead", path.display())]
    TooManyPaths { split: SplitName, path: PathBuf, most: usize },
    /// Tables without any row.
    #[error("data.{split}: `{}` has no rows", path.display())]
    NoRows { split: SplitName, path: PathBuf },
    /// Numeric labels without names, beside files that number their classes in different orders.
    #[error("`{}` and `{}` number the classes in different orders, and `{}` has numbers without names: which classes it means cannot be told; write the names into its metadata, or leave it out", first.display(), second.display(), unnamed.display())]
    ClassOrder { first: PathBuf, second: PathBuf, unnamed: PathBuf },
    /// Labels of two kinds: text in one file, numbers without names in another.
    #[error("the labels of `{}` are text, those of `{}` numbers without names: which numbers mean which names cannot be told", text.display(), numbers.display())]
    MixedLabels { numbers: PathBuf, text: PathBuf },
    /// A label column with too many different values to be classes.
    #[error("column `{column}` of `{}` has more than {most} different values: it holds no classes (`data.label_column` names another column; `none` reads no labels)", path.display())]
    TooManyLabels { path: PathBuf, column: String, most: usize },
    /// A split that yields no image at all.
    #[error("data.{split}: no images")]
    NoImages { split: SplitName },
    /// Every image of a split was skipped.
    #[error("data.{split}: all {count} images were skipped; the first one was `{name}`: {reason}")]
    AllSkipped { split: SplitName, count: usize, name: String, reason: String },
    /// A class folder without images.
    #[error("class folder `{}` holds no image ({}); remove it or fill it", path.display(), DECODED)]
    EmptyClass { path: PathBuf },
    /// Two class folders whose names are two Unicode forms of the same name.
    #[error("class folders `{}` and `{}` have one name in two forms: put their images into one folder", first.display(), second.display())]
    SameClass { first: PathBuf, second: PathBuf },
    /// Folders of splits where class folders are expected.
    #[error("data.{split}: `{}` holds splits ({found}), and not classes{meant}", path.display())]
    SplitRoot { split: SplitName, path: PathBuf, found: String, meant: String },
    /// A class folder of the test split that the training split lacks.
    #[error("class folder `{}` has no counterpart in the training split; its classes are {}", path.display(), known.join(", "))]
    UnknownClass { path: PathBuf, known: Vec<String> },
    /// An image beside class folders.
    #[error("`{}` lies beside class folders: put it into one of them, or keep all images in one folder for data without labels", path.display())]
    Stray { path: PathBuf },
    /// An image that does not decode.
    #[error("cannot read image `{name}`: {reason} (`data.on_error: skip` leaves such images out)")]
    Image { name: String, reason: String },
    /// Several images that do not decode.
    #[error("cannot read {count} images of data.{split} (`data.on_error: skip` leaves such images out):{first}")]
    Images {
        split: SplitName,
        count: usize,
        /// The first of the images, one per line with its reason.
        first: String,
    },
    /// A file that is too short or too long.
    #[error("`{}` is {}: {expected} bytes expected, {found} found", path.display(), if found < expected { "truncated" } else { "too long" })]
    Length { path: PathBuf, expected: u64, found: u64 },
    /// A file of another format than the spec says.
    #[error("`{}` is not {expected}: it begins with {found}", path.display())]
    WrongMagic { path: PathBuf, expected: &'static str, found: String },
    /// The numbers of labels and of images differ.
    #[error("`{}` holds {labels} labels, `{}` {images} images", label_path.display(), image_path.display())]
    LabelCount { image_path: PathBuf, images: u64, label_path: PathBuf, labels: u64 },
    /// A label outside the range of classes.
    #[error("label {label} of {name} is not in 0..{classes}")]
    LabelRange { name: String, label: i64, classes: usize },
    /// A label in a file without names, beyond the names in another file's metadata.
    #[error("label {label} of {name} has no name: the names in the metadata of `{}` are those of 0..{classes}; complete them, or read no labels (`data.label_column: none`)", named.display())]
    Unnamed { name: String, label: i64, named: PathBuf, classes: usize },
    /// A table without a required column.
    #[error("`{}` has no column {wanted}; its columns are {}", path.display(), available.join(", "))]
    MissingColumn { path: PathBuf, wanted: String, available: Vec<String> },
    /// A table column of a type that is not accepted.
    #[error("column `{column}` of `{}` is of type {found}; {expected}", path.display())]
    ColumnType { path: PathBuf, column: String, found: String, expected: &'static str },
    /// The two splits number their classes differently.
    #[error("the splits disagree on class {label}: `{train}` in data.train, `{test}` in data.test")]
    ClassesDiffer { label: usize, train: String, test: String },
    /// More generated classes than there are combinations of shapes and textures, or fewer than two.
    #[error("data.classes is {found}; the generator can tell 2 to {most} classes apart")]
    TooManyClasses { found: u32, most: u32 },
}
