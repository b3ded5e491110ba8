//! Reads Parquet and Arrow files of other origin: column shapes, labels, class names, and possible errors.

use std::{collections::HashMap, fs, sync::Arc};

use ::parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use ::parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float32Array, Int32Array, Int64Array, LargeBinaryArray,
        RecordBatch, StringArray, StructArray, UInt8Array,
    },
    datatypes::{DataType, Field, Int8Type, Schema},
    ipc::writer::{FileWriter, StreamWriter},
};

use super::*;
use crate::dataset::{
    DataConfig, OnError, Paths, count,
    decode::{
        decode,
        tests::{picture, png},
    },
    read, source_files,
};

fn batch(columns: Vec<(&str, ArrayRef)>, metadata: &[(&str, &str)]) -> RecordBatch {
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect()).unwrap()
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, metadata: &[(&str, &str)]) {
    write_as(path, &batch(columns, metadata), Compression::UNCOMPRESSED);
}

fn write_as(path: &Path, batch: &RecordBatch, codec: Compression) {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).set_compression(codec).build();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// A `struct<bytes, path>` column; None is a null in `bytes`.
fn images(bytes: Vec<Option<&[u8]>>) -> ArrayRef {
    let paths: StringArray = (0..bytes.len()).map(|i| (i % 2 == 0).then(|| format!("{i}.png"))).collect();
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    Arc::new(StructArray::new(fields.into(), vec![Arc::new(BinaryArray::from(bytes)), Arc::new(paths)], None))
}

fn config(path: &Path, on_error: OnError) -> TableConfig {
    TableConfig { train: Paths::One(path.into()), test: None, image_column: None, label_column: None, on_error }
}

type Rows = Vec<(Option<String>, Option<i64>)>;

fn run(config: TableConfig) -> anyhow::Result<(Rows, ReadSummary)> {
    let mut rows = Vec::new();
    let summary = read(&DataConfig::Parquet(config), SplitName::Train, &mut |sample| {
        assert_eq!(decode(&sample.bytes).unwrap(), picture(6, 5));
        rows.push((sample.path, sample.label));
        Ok(())
    })?;
    Ok((rows, summary))
}

fn fail(config: TableConfig, path: &Path) -> String {
    run(config).unwrap_err().to_string().replace(&path.display().to_string(), "FILE")
}

#[test]
fn image_structs_with_labels_and_class_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    let about = r#"{"info": {"features": {"label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}}}"#;
    let labels: ArrayRef = Arc::new(UInt8Array::from(vec![2, 0, 1, 2, 2]));
    write(&path, vec![("label", labels), ("img", images(vec![Some(&image); 5]))], &[("huggingface", about)]);
    let (rows, summary) = run(config(&path, OnError::Fail)).unwrap();
    assert_eq!(summary.classes, ["ant", "bee", "cow"]);
    assert_eq!(rows.iter().map(|r| r.1.unwrap()).collect::<Vec<_>>(), [2, 0, 1, 2, 2]);
    assert_eq!(
        (rows[0].0.as_deref(), rows[1].0.as_deref(), rows[4].0.as_deref()),
        (Some("0.png"), None, Some("4.png"))
    );

    // A folder of files; their rows follow each other in the order of the names.
    fs::copy(&path, dir.path().join("a.parquet")).unwrap();
    let folder = DataConfig::Parquet(config(dir.path(), OnError::Fail));
    assert_eq!(count(&folder, SplitName::Train).unwrap(), Some(10));
    let roles: Vec<_> = source_files(&folder, Path::new("")).unwrap().into_iter().map(|f| f.role).collect();
    assert_eq!(roles, ["train/00000.parquet", "train/00001.parquet"]);
}

#[test]
fn plain_bytes_and_missing_labels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    let bytes: ArrayRef = Arc::new(LargeBinaryArray::from(vec![&image[..]; 3]));
    write(&path, vec![("image", bytes.clone())], &[]);
    let (rows, summary) = run(config(&path, OnError::Fail)).unwrap();
    assert_eq!((rows, summary.classes.len()), (vec![(None, None); 3], 0));

    // Null and -1 are missing labels. Classes without names are called by their numbers.
    let labels: ArrayRef = Arc::new(Int32Array::from(vec![None, Some(-1), Some(3)]));
    write(&path, vec![("jpg", bytes), ("class", labels)], &[]);
    let named = TableConfig {
        image_column: Some("jpg".into()),
        label_column: Some("class".into()),
        ..config(&path, OnError::Fail)
    };
    let (rows, summary) = run(named).unwrap();
    assert_eq!(rows.iter().map(|r| r.1).collect::<Vec<_>>(), [None, None, Some(3)]);
    assert_eq!(summary.classes, ["0", "1", "2", "3"]);
}

#[test]
fn bad_rows_are_named_or_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    let rows = vec![Some(&image[..]), None, Some(b"no image"), Some(&image[..image.len() / 2]), Some(&image)];
    write(&path, vec![("image", images(rows))], &[]);
    let message = fail(config(&path, OnError::Fail), &path);
    let expected = "cannot read 3 images of data.train (`data.on_error: skip` leaves such images out):\n  `FILE row 1`: it holds neither bytes nor the path of an image\n";
    assert!(message.starts_with(expected), "{message}");
    let (rows, summary) = run(config(&path, OnError::Skip)).unwrap();
    assert_eq!(rows.len(), 2);
    let skipped: Vec<_> = summary.skipped.iter().map(|s| s.name.rsplit(' ').next().unwrap()).collect();
    assert_eq!(skipped, ["1", "2", "3"]);
}

#[test]
fn wrong_files_and_columns_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let strict = || config(&path, OnError::Fail);
    let floats: ArrayRef = Arc::new(Float32Array::from(vec![0.5]));
    write(&path, vec![("picture", floats.clone()), ("label", floats.clone())], &[]);
    assert_eq!(
        fail(strict(), &path),
        "`FILE` has no column `image` or `img` (`data.image_column` names another); its columns are `picture`, `label`"
    );
    let named = TableConfig { image_column: Some("foto".into()), ..strict() };
    assert_eq!(fail(named, &path), "`FILE` has no column `foto`; its columns are `picture`, `label`");
    let named = TableConfig { image_column: Some("picture".into()), ..strict() };
    let kind = "column `picture` of `FILE` is of type Float32; struct<bytes: binary, path: string>, binary (encoded images) or \
                string (paths of images) expected";
    assert_eq!(fail(named, &path), kind);

    let image = png(&picture(6, 5));
    write(&path, vec![("image", images(vec![Some(&image)])), ("label", floats)], &[]);
    let wrong = "integers or text expected (`data.label_column` names another column; `data.label_column: none` reads no labels)";
    assert_eq!(fail(strict(), &path), format!("column `label` of `FILE` is of type Float32; {wrong}"));
    let none = TableConfig { label_column: Some("none".into()), ..strict() };
    assert_eq!(run(none).unwrap().0, [(Some("0.png".into()), None)]);
    let labels: ArrayRef = Arc::new(Int32Array::from(vec![7]));
    let about = r#"{"info": {"features": {"label": {"names": ["ant", "bee"]}}}}"#;
    write(&path, vec![("image", images(vec![Some(&image)])), ("label", labels)], &[("huggingface", about)]);
    assert_eq!(fail(strict(), &path), "label 7 of FILE row 0 is not in 0..2");

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    let cut = "cannot read `FILE`: it begins as Parquet and its end is missing: the copy or download was cut off; fetch it again";
    assert_eq!(fail(strict(), &path), cut);
    fs::remove_file(&path).unwrap();
    assert_eq!(fail(strict(), &path), "data.train: no such file or folder: `FILE`");
    assert_eq!(fail(config(dir.path(), OnError::Fail), dir.path()), "data.train: no *.parquet in `FILE`");
}

fn names(names: &[&str]) -> String {
    serde_json::json!({ "info": { "features": { "label": { "names": names, "_type": "ClassLabel" } } } }).to_string()
}

/// Writes a file with one image per label.
fn labelled(path: &Path, labels: ArrayRef, classes: Option<&[&str]>) {
    let image = png(&picture(6, 5));
    let about = classes.map(names);
    let metadata: Vec<_> = about.iter().map(|about| ("huggingface", about.as_str())).collect();
    let images = images(vec![Some(&image); labels.len()]);
    write_as(path, &batch(vec![("image", images), ("label", labels)], &metadata), Compression::SNAPPY);
}

fn numbers(labels: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(labels.to_vec()))
}

/// Class names, and labels of the split.
fn of_split(config: &TableConfig, split: SplitName) -> Result<(Vec<String>, Vec<Option<i64>>), String> {
    let mut labels = Vec::new();
    let summary = read(&DataConfig::Parquet(config.clone()), split, &mut |sample| {
        labels.push(sample.label);
        Ok(())
    });
    summary.map(|summary| (summary.classes, labels)).map_err(|error| error.to_string())
}

fn splits(dir: &Path, train: &str, test: &str) -> TableConfig {
    TableConfig { test: Some(Paths::One(dir.join(test))), ..config(&dir.join(train), OnError::Fail) }
}

#[test]
fn numbers_are_taken_to_their_names_whatever_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    labelled(&dir.join("train/a.parquet"), numbers(&[0, 1, -1]), Some(&["cat", "dog"]));
    labelled(&dir.join("train/b.parquet"), numbers(&[0, 1, 2]), Some(&["dog", "cat", "emu"]));
    labelled(&dir.join("test.parquet"), numbers(&[0, 1]), Some(&["emu", "dog"]));
    let both = splits(dir, "train", "test.parquet");
    let classes = ["cat", "dog", "emu"].map(str::to_owned).to_vec();
    let train = vec![Some(0), Some(1), None, Some(1), Some(0), Some(2)];
    assert_eq!(of_split(&both, SplitName::Train), Ok((classes.clone(), train)));
    assert_eq!(of_split(&both, SplitName::Test), Ok((classes, vec![Some(2), Some(1)])));

    labelled(&dir.join("train/c.parquet"), numbers(&[0]), None);
    let error = of_split(&both, SplitName::Train).unwrap_err().replace(&dir.display().to_string(), "DIR");
    let expected = "`DIR/train/a.parquet` and `DIR/train/b.parquet` number the classes in different orders, and \
                    `DIR/train/c.parquet` has numbers without names: ";
    assert!(error.starts_with(expected), "{error}");
    labelled(&dir.join("train/c.parquet"), numbers(&[0, 5]), Some(&["dog"]));
    let error = of_split(&both, SplitName::Train).unwrap_err().replace(&dir.display().to_string(), "DIR");
    assert_eq!(error, "label 5 of DIR/train/c.parquet row 1 is not in 0..1");
}

#[test]
fn names_in_the_test_split_alone_are_names_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    labelled(&dir.join("train.parquet"), numbers(&[0, 1]), None);
    labelled(&dir.join("test.parquet"), numbers(&[1]), Some(&["cat", "dog"]));
    let both = splits(dir, "train.parquet", "test.parquet");
    let classes = ["cat", "dog"].map(str::to_owned).to_vec();
    assert_eq!(of_split(&both, SplitName::Train), Ok((classes.clone(), vec![Some(0), Some(1)])));
    assert_eq!(of_split(&both, SplitName::Test), Ok((classes, vec![Some(1)])));
    labelled(&dir.join("train.parquet"), numbers(&[0, 2]), None);
    let error = of_split(&both, SplitName::Train).unwrap_err().replace(&dir.display().to_string(), "DIR");
    let expected = "label 2 of DIR/train.parquet row 1 has no name: the names in the metadata of `DIR/test.parquet` are those of \
                    0..2; complete them, or read no labels (`data.label_column: none`)";
    assert_eq!(error, expected);
}

#[test]
fn names_by_number_are_names_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    let of = |names: &str| {
        let about = format!(r#"{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}"#);
        let columns = vec![("image", images(vec![Some(&image)])), ("label", numbers(&[1]))];
        write(&path, columns, &[("huggingface", &about)]);
        run(config(&path, OnError::Fail)).unwrap().1.classes
    };
    assert_eq!(of(r#"{"1": "bee", "0": "ant"}"#), ["ant", "bee"]);
    // Names that skip a number are ignored.
    assert_eq!(of(r#"{"1": "bee", "2": "cat"}"#), ["0", "1"]);
}

#[test]
fn text_and_dictionaries_are_classes_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = |labels: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(labels)) };
    labelled(&dir.join("train/a.parquet"), text(vec![Some("emu"), None, Some("A\u{308}ffin"), Some("")]), None);
    let coded: DictionaryArray<Int8Type> = ["cat", "emu", "cat"].into_iter().collect();
    labelled(&dir.join("train/b.parquet"), Arc::new(coded), None);
    labelled(&dir.join("test.parquet"), text(vec![Some("yak"), Some("cat"), Some("Äffin")]), None);
    let both = splits(dir, "train", "test.parquet");
    // Classes that only the test split has come last.
    let classes = ["cat", "emu", "Äffin", "yak"].map(str::to_owned).to_vec();
    let train = vec![Some(1), None, Some(2), None, Some(0), Some(1), Some(0)];
    assert_eq!(of_split(&both, SplitName::Train), Ok((classes.clone(), train)));
    assert_eq!(of_split(&both, SplitName::Test), Ok((classes, vec![Some(3), Some(0), Some(2)])));

    labelled(&dir.join("train/c.parquet"), numbers(&[0]), None);
    let error = of_split(&both, SplitName::Train).unwrap_err().replace(&dir.display().to_string(), "DIR");
    assert!(error.starts_with("the labels of `DIR/train/a.parquet` are text, those of `DIR/train/c.parquet` numbers"));
    for label in [Arc::new(BooleanArray::from(vec![true])) as ArrayRef, Arc::new(Float32Array::from(vec![1.0]))] {
        labelled(&dir.join("test.parquet"), label, None);
        let error = of_split(&both, SplitName::Test).unwrap_err();
        assert!(error.contains("`data.label_column: none` reads no labels"), "{error}");
    }
}

#[test]
fn columns_that_could_be_labels_are_pointed_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    let coarse: ArrayRef = Arc::new(Int32Array::from(vec![3, 70]));
    let score: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 1.0]));
    write(&path, vec![("img", images(vec![Some(&image); 2])), ("coarse_label", coarse), ("score", score)], &[]);
    let (_, summary) = run(config(&path, OnError::Fail)).unwrap();
    let note = "no column of data.train is called `label`, `labels` or `fine_label`, so that there are no labels; \
                `data.label_column` can name one of `coarse_label`";
    assert_eq!(summary.notes, [note]);
    let named = TableConfig { label_column: Some("coarse_label".into()), ..config(&path, OnError::Fail) };
    let (rows, summary) = run(named).unwrap();
    assert_eq!((rows[1].1, summary.classes.len(), summary.notes.len()), (Some(70), 71, 0));
    let none = TableConfig { label_column: Some("none".into()), ..config(&path, OnError::Fail) };
    assert!(run(none).unwrap().1.notes.is_empty());
    let nulls: ArrayRef = Arc::new(arrow::array::NullArray::new(2));
    write(&path, vec![("img", images(vec![Some(&image); 2])), ("label", nulls)], &[]);
    assert_eq!(run(config(&path, OnError::Fail)).unwrap().0[0].1, None);
}

#[test]
fn paths_in_place_of_bytes_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    fs::create_dir(dir.path().join("images")).unwrap();
    fs::write(dir.path().join("images/0.png"), &image).unwrap();
    let bytes = BinaryArray::from(vec![None, Some(&image[..]), None]);
    let paths = StringArray::from(vec!["images/0.png", "1.png", "images/2.png"]);
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    let columns: Vec<ArrayRef> = vec![Arc::new(bytes), Arc::new(paths.clone())];
    write(&path, vec![("image", Arc::new(StructArray::new(fields.into(), columns, None)))], &[]);
    let lost = "it holds the path `images/2.png` in place of bytes, and there is no such file beside the table or in the \
                current folder (`data.on_error: skip` leaves such images out)";
    assert_eq!(fail(config(&path, OnError::Fail), &path), format!("cannot read image `FILE row 2`: {lost}"));
    let (rows, summary) = run(config(&path, OnError::Skip)).unwrap();
    assert_eq!((rows.len(), &*summary.skipped[0].kind), (2, "no bytes"));
    // Image files that a table names are files of the source, so that their content is part of its key.
    let files = source_files(&DataConfig::Parquet(config(&path, OnError::Skip)), Path::new("")).unwrap();
    let named: Vec<_> = files.iter().map(|f| f.path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
    assert_eq!(named, ["x.parquet", "images/0.png"]);

    write(&path, vec![("image", Arc::new(paths.slice(0, 1)))], &[]);
    assert_eq!(run(config(&path, OnError::Fail)).unwrap().0, [(Some("images/0.png".into()), None)]);
}

#[test]
fn every_codec_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let image = png(&picture(6, 5));
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for codec in codecs {
        write_as(&path, &batch(vec![("image", images(vec![Some(&image); 5]))], &[]), codec);
        assert_eq!(run(config(&path, OnError::Fail)).unwrap().0.len(), 5, "{codec}");
    }
}

#[test]
fn what_lies_in_a_tables_place_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let cases: [(&[u8], &str); 7] = [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a Git LFS pointer (`git lfs pull` fetches the file), and not Parquet",
        ),
        (b"image,label\na.png,3\n", "it is a text file that begins with `image,label`, and not Parquet"),
        (b"<!DOCTYPE html><html>", "it is an HTML page, and not Parquet"),
        (b"", "the file is empty"),
        (&[0x1f, 0x8b, 8, 0], "it is compressed by gzip (`gunzip` unpacks it), and not Parquet"),
        (&tar, "it is a tar archive (`format: webdataset`), and not Parquet"),
        (b"ARROW1\0\0\xff\xff\xff\xff", "it is an Arrow file (`format: arrow`), and not Parquet"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        assert_eq!(fail(config(&path, OnError::Fail), &path), format!("cannot read `FILE`: {expected}"));
    }
    write(&path, vec![("image", images(vec![]))], &[]);
    assert_eq!(fail(config(&path, OnError::Fail), &path), "data.train: `FILE` has no rows");
}

#[test]
fn arrow_files_and_streams_are_read_as_parquet_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = png(&picture(6, 5));
    let about = names(&["ant", "bee"]);
    let labels: ArrayRef = numbers(&[1, 0, 1]);
    let rows = batch(vec![("label", labels), ("image", images(vec![Some(&image); 3]))], &[("huggingface", &about)]);
    let (file, stream) = (dir.path().join("a.arrow"), dir.path().join("b.arrow"));
    let mut writer = FileWriter::try_new(fs::File::create(&file).unwrap(), &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    let mut writer = StreamWriter::try_new(fs::File::create(&stream).unwrap(), &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    let folder = DataConfig::Arrow(config(dir.path(), OnError::Fail));
    assert_eq!(count(&folder, SplitName::Train).unwrap(), Some(9));
    let mut labels = Vec::new();
    let summary = read(&folder, SplitName::Train, &mut |sample| {
        labels.push(sample.label.unwrap());
        Ok(())
    });
    assert_eq!((summary.unwrap().classes, labels), (vec!["ant".into(), "bee".into()], [1, 0, 1].repeat(3)));

    let refused = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let config = DataConfig::Arrow(config(&file, OnError::Fail));
        let error = read(&config, SplitName::Train, &mut |_| Ok(())).unwrap_err();
        error.to_string().replace(&file.display().to_string(), "FILE")
    };
    let whole = fs::read(&stream).unwrap();
    assert!(refused(&whole[..whole.len() / 2]).starts_with("cannot read `FILE`: "));
    // A message length of two gigabytes, for which no memory is allocated.
    assert!(refused(b"\xff\xff\xff\xff\xff\xff\xff\x7f").starts_with("cannot read `FILE`: "));
    assert_eq!(refused(b"PAR1...."), "cannot read `FILE`: it is a Parquet file (`format: parquet`), and not Arrow");
}
