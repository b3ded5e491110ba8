//! Reading foreign Parquet: column shapes, labels, class names, and what can be wrong.

use std::{collections::HashMap, fs, sync::Arc};

use ::parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use arrow::{
    array::{
        BinaryArray, Float32Array, Int32Array, LargeBinaryArray, RecordBatch, StringArray, StructArray, UInt8Array,
    },
    datatypes::Field,
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

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, metadata: &[(&str, &str)]) {
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// `struct<bytes, path>`; None is a null in `bytes`.
fn images(bytes: Vec<Option<&[u8]>>) -> ArrayRef {
    let paths: StringArray = (0..bytes.len()).map(|i| (i % 2 == 0).then(|| format!("{i}.png"))).collect();
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    Arc::new(StructArray::new(fields.into(), vec![Arc::new(BinaryArray::from(bytes)), Arc::new(paths)], None))
}

fn config(path: &Path, on_error: OnError) -> ParquetConfig {
    ParquetConfig { train: Paths::One(path.into()), test: None, image_column: None, label_column: None, on_error }
}

type Rows = Vec<(Option<String>, Option<i64>)>;

fn run(config: ParquetConfig) -> anyhow::Result<(Rows, ReadSummary)> {
    let mut rows = Vec::new();
    let summary = read(&DataConfig::Parquet(config), SplitName::Train, &mut |sample| {
        assert_eq!(decode(&sample.bytes).unwrap(), picture(6, 5));
        rows.push((sample.path, sample.label));
        Ok(())
    })?;
    Ok((rows, summary))
}

fn fail(config: ParquetConfig, path: &Path) -> String {
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

    // Null and -1 are missing labels; without names, classes are called by their numbers.
    let labels: ArrayRef = Arc::new(Int32Array::from(vec![None, Some(-1), Some(3)]));
    write(&path, vec![("jpg", bytes), ("class", labels)], &[]);
    let named = ParquetConfig {
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
    let expected = "cannot read 3 images of data.train (`data.on_error: skip` leaves such images out):\n  `FILE row 1`: it holds no bytes\n";
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
    let named = ParquetConfig { image_column: Some("foto".into()), ..strict() };
    assert_eq!(fail(named, &path), "`FILE` has no column `foto`; its columns are `picture`, `label`");
    let named = ParquetConfig { image_column: Some("picture".into()), ..strict() };
    let kind = "column `picture` of `FILE` is of type Float32; struct<bytes: binary, path: string> or binary expected";
    assert_eq!(fail(named, &path), kind);

    let image = png(&picture(6, 5));
    write(&path, vec![("image", images(vec![Some(&image)])), ("label", floats)], &[]);
    assert_eq!(fail(strict(), &path), "column `label` of `FILE` is of type Float32; an integer type expected");
    let labels: ArrayRef = Arc::new(Int32Array::from(vec![7]));
    let about = r#"{"info": {"features": {"label": {"names": ["ant", "bee"]}}}}"#;
    write(&path, vec![("image", images(vec![Some(&image)])), ("label", labels)], &[("huggingface", about)]);
    assert_eq!(fail(strict(), &path), "label 7 of FILE row 0 is not in 0..2");

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    assert!(fail(strict(), &path).starts_with("cannot read `FILE`: "));
    fs::remove_file(&path).unwrap();
    assert_eq!(fail(strict(), &path), "data.train: no such file or folder: `FILE`");
    assert_eq!(fail(config(dir.path(), OnError::Fail), dir.path()), "data.train: no *.parquet in `FILE`");
}
