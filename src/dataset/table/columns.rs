//! Finds the columns of a table that hold the images and the labels.

use arrow::datatypes::{DataType, Schema};

use super::{DataError, SplitName, Table, TableConfig};

/// Column names that are searched by default.
const IMAGES: [&str; 2] = ["image", "img"];
const LABELS: [&str; 3] = ["label", "labels", "fine_label"];
/// Fields of a column of images that is a struct, as `datasets` writes it.
pub const BYTES: &str = "bytes";
pub const PATH: &str = "path";
/// Value of `label_column` that turns labels off.
const NO_LABELS: &str = "none";

/// The columns of images and labels.
#[derive(Clone)]
pub struct Columns {
    pub image: ImageColumn,
    pub label: Option<Label>,
    /// Columns that could hold labels, if no column has one of the usual names.
    others: Vec<String>,
}

/// The column of images.
#[derive(Clone)]
pub struct ImageColumn {
    pub name: String,
    /// Whether it holds encoded images.
    pub bytes: bool,
    /// Whether it holds paths.
    pub paths: bool,
}

/// The column of labels.
#[derive(Clone)]
pub struct Label {
    pub name: String,
    pub kind: LabelKind,
    /// Class names from the metadata, by number.
    pub classes: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelKind {
    Number,
    Text,
}

impl Columns {
    /// Finds the columns that the configuration names or, by default, those with the usual names.
    ///
    /// Errors: a column that is missing, or of a type that is not accepted.
    pub fn find(table: &Table, config: &TableConfig) -> Result<Columns, DataError> {
        let schema = &*table.schema;
        let has = |name: &&str| schema.field_with_name(name).is_ok();
        let missing = |wanted: &str| DataError::MissingColumn {
            path: table.path.clone(),
            wanted: wanted.into(),
            available: schema.fields().iter().map(|field| format!("`{}`", field.name())).collect(),
        };
        let image = match &config.image_column {
            Some(name) => Some(name.as_str()).filter(has).ok_or_else(|| missing(&format!("`{name}`")))?,
            None => IMAGES
                .into_iter()
                .find(has)
                .ok_or_else(|| missing("`image` or `img` (`data.image_column` names another)"))?,
        };
        let wrong = |column: &str, expected: &'static str| DataError::ColumnType {
            path: table.path.clone(),
            column: column.to_owned(),
            found: kind(schema, column).to_string(),
            expected,
        };
        let image = image_column(image, kind(schema, image)).ok_or_else(|| {
            wrong(
                image,
                "struct<bytes: binary, path: string>, binary (encoded images) or string (paths of images) expected",
            )
        })?;
        let label = match config.label_column.as_deref() {
            Some(NO_LABELS) if !has(&NO_LABELS) => None,
            Some(name) => Some(Some(name).filter(has).ok_or_else(|| missing(&format!("`{name}`")))?),
            None => LABELS.into_iter().find(has),
        };
        // A column that holds only nulls has no type, and no labels.
        let label = label.filter(|name| *kind(schema, name) != DataType::Null);
        let label = label.map(|name| match label_kind(kind(schema, name)) {
            Some(kind) => Ok(Label { name: name.to_owned(), kind, classes: class_names(schema, name) }),
            None => Err(wrong(
                name,
                "integers or text expected (`data.label_column` names another column; `data.label_column: none` reads no labels)",
            )),
        });
        let label = label.transpose()?;
        let could_be =
            |name: &str| name != image.name && !name.starts_with("__") && label_kind(kind(schema, name)).is_some();
        let others = match (&label, &config.label_column) {
            (None, None) => {
                schema.fields().iter().map(|field| field.name()).filter(|name| could_be(name)).cloned().collect()
            }
            _ => Vec::new(),
        };
        Ok(Columns { image, label, others })
    }

    /// The same columns without the label.
    pub fn without_label(&self) -> Columns {
        Columns { label: None, ..self.clone() }
    }

    /// A note for the user if no column has a usual name for labels although other columns could be labels.
    pub fn other_labels(&self, split: SplitName) -> Option<String> {
        let list: Vec<_> = self.others.iter().map(|name| format!("`{name}`")).collect();
        let [usual @ .., last] = LABELS;
        let usual: Vec<_> = usual.iter().map(|name| format!("`{name}`")).collect();
        let usual = format!("{} or `{last}`", usual.join(", "));
        (!list.is_empty()).then(|| {
            format!(
                "no column of data.{split} is called {usual}, so that there are no labels; `data.label_column` can name one of {}",
                list.join(", ")
            )
        })
    }
}

fn kind<'a>(schema: &'a Schema, name: &str) -> &'a DataType {
    schema.field_with_name(name).map_or(&DataType::Null, |field| field.data_type())
}

fn image_column(name: &str, kind: &DataType) -> Option<ImageColumn> {
    let column = |bytes, paths| Some(ImageColumn { name: name.to_owned(), bytes, paths });
    match kind {
        DataType::Struct(fields) => {
            let field = |name| fields.find(name).map(|(_, field)| field.data_type());
            let (bytes, paths) = (field(BYTES), field(PATH).is_some_and(is_text));
            match bytes {
                Some(kind) if is_binary(kind) => column(true, paths),
                // A field that holds only nulls has no type of its own.
                None | Some(DataType::Null) if paths => column(false, true),
                _ => None,
            }
        }
        kind if is_binary(kind) => column(true, false),
        kind if is_text(kind) => column(false, true),
        _ => None,
    }
}

fn label_kind(kind: &DataType) -> Option<LabelKind> {
    match kind {
        kind if is_text(kind) => Some(LabelKind::Text),
        DataType::Dictionary(_, values) => values.is_integer().then_some(LabelKind::Number),
        kind => kind.is_integer().then_some(LabelKind::Number),
    }
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => values.is_string(),
        kind => kind.is_string(),
    }
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Class names that `datasets` leaves in the schema's metadata.
fn class_names(schema: &Schema, label: &str) -> Option<Vec<String>> {
    let about: serde_json::Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let text = |name: &serde_json::Value| Some(name.as_str()?.to_owned());
    match &about["info"]["features"][label]["names"] {
        serde_json::Value::Array(names) => names.iter().map(text).collect(),
        // An object keyed by number, as data set cards write it.
        serde_json::Value::Object(names) => {
            (0..names.len()).map(|number| text(names.get(&number.to_string())?)).collect()
        }
        _ => None,
    }
}
