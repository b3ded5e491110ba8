//! The columns of the program's own tables: a name and a type each, which writers and readers share.

use std::{fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, StringArray},
    datatypes::{DataType, Field, Fields},
};

/// A column: its name, what it holds, and whether a row may have no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub holds: Holds,
    pub nullable: bool,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Integer,
    Real,
    Text,
    Unsigned,
    /// A number of bytes.
    Size,
    /// A SHA-256.
    Hash,
    /// A tensor's values.
    Bytes,
    /// A tensor's shape.
    Shape,
    /// Vectors of float32, all of one width, which is known only from a table's rows.
    Vector,
    /// [`BYTES`] of an encoded image and its [`PATH`]: Hugging Face's image schema.
    Image,
}

const fn integer(name: &'static str) -> Column {
    Column { name, holds: Holds::Integer, nullable: false }
}

const fn real(name: &'static str) -> Column {
    integer(name).holding(Holds::Real)
}

const fn text(name: &'static str) -> Column {
    integer(name).holding(Holds::Text)
}

// Samples.
pub const SAMPLE_ID: Column = integer("sample_id");
pub const SPLIT: Column = text("split");
pub const LABEL: Column = integer("label");
pub const IMAGE: Column = integer("image").holding(Holds::Image);
pub const BYTES: Column = integer("bytes").holding(Holds::Bytes);
pub const PATH: Column = text("path").or_null();
pub const BYTES_SIZE: Column = integer("bytes_size").holding(Holds::Size);
pub const CONTENT_HASH: Column = integer("content_hash").holding(Holds::Hash);
pub const IMAGE_SHA256: Column = text("image_sha256");
pub const EMBEDDING: Column = integer("embedding").holding(Holds::Vector);
pub const PREDICTED: Column = integer("predicted");
pub const SCORE: Column = real("score");
pub const K: Column = integer("k");

// Reports on the data.
pub const NAME: Column = text("name");
pub const KIND: Column = text("kind");
pub const REASON: Column = text("reason");
pub const FILES: Column = integer("files");
pub const FIRST_SPLIT: Column = text("first_split");
pub const FIRST_SAMPLE_ID: Column = integer("first_sample_id");
pub const FIRST_LABEL: Column = integer("first_label").or_null();

// Figures and notes.
pub const METRIC: Column = text("metric");
pub const VALUE: Column = real("value");
pub const KEY: Column = text("key");
pub const TEXT: Column = text("text");
pub const STAGE: Column = text("stage");
pub const RUN: Column = text("run");
pub const SEED: Column = integer("seed").holding(Holds::Unsigned);
pub const NUMBER: Column = real("number").or_null();

// Runs.
pub const CREATED: Column = integer("created");
pub const RECORD: Column = text("record");
pub const SPEC: Column = text("spec");
pub const RECORD_SHA256: Column = text("record_sha256");
pub const SPEC_SHA256: Column = text("spec_sha256");

// Tensors.
pub const SHAPE: Column = integer("shape").holding(Holds::Shape);
pub const DTYPE: Column = text("dtype");

// Training.
pub const ATTEMPT: Column = integer("attempt");
pub const STEP: Column = integer("step");
pub const EPOCH: Column = real("epoch");
pub const LOSS: Column = real("loss");
pub const LEARNING_RATE: Column = real("learning_rate");
pub const MOMENTUM: Column = real("momentum").or_null();
pub const STD: Column = real("std").or_null();
pub const EFFECTIVE_RANK: Column = real("effective_rank").or_null();
pub const ALIGNMENT: Column = real("alignment").or_null();
pub const UNIFORMITY: Column = real("uniformity").or_null();
pub const MEAN_POSITIVENESS: Column = real("mean_positiveness").or_null();
pub const MAX_POSITIVENESS: Column = real("max_positiveness").or_null();
pub const NEIGHBOUR_AGREEMENT: Column = real("neighbour_agreement").or_null();
pub const KNN_TOP1: Column = real("knn_top1").or_null();
pub const POSITIVES: Column = real("positives").or_null();
pub const EFFECTIVE_POSITIVES: Column = real("effective_positives").or_null();
pub const OWN_SHARE: Column = real("own_share").or_null();
pub const SAME_CLASS_MASS: Column = real("same_class_mass").or_null();
pub const NEIGHBOUR_SAME_CLASS_MASS: Column = real("neighbour_same_class_mass").or_null();
pub const LABEL_AGREEMENT: Column = real("label_agreement").or_null();
pub const QUEUE_AGE: Column = real("queue_age").or_null();
pub const CHURN: Column = real("churn").or_null();
pub const QUERY_SAMPLE: Column = integer("query_sample");
pub const QUERY_LABEL: Column = integer("query_label").or_null();
pub const RANK: Column = integer("rank");
pub const NEIGHBOUR_SAMPLE: Column = integer("neighbour_sample").or_null();
pub const NEIGHBOUR_LABEL: Column = integer("neighbour_label").or_null();
pub const WEIGHT: Column = real("weight");
pub const SIMILARITY: Column = real("similarity");
pub const SECONDS: Column = real("seconds");
pub const WAITING_SECONDS: Column = real("waiting_seconds");
pub const IMAGES_PER_SECOND: Column = real("images_per_second");
pub const TRAIN_TOP1: Column = real("train_top1");

impl Column {
    /// The same column, but nullable.
    pub const fn or_null(self) -> Column {
        Column { nullable: true, ..self }
    }

    /// The same column, but with values of another type.
    pub const fn holding(self, holds: Holds) -> Column {
        Column { holds, ..self }
    }

    /// The column with its values.
    pub fn of<V: Value>(self, values: impl IntoIterator<Item = V>) -> (Column, ArrayRef) {
        (self, V::array(values.into_iter()))
    }

    /// The column with vectors of `width` values each.
    ///
    /// # Panics
    /// When the number of `values` is not a multiple of `width`.
    pub fn of_vectors(self, values: Vec<f32>, width: usize) -> (Column, ArrayRef) {
        let values = Arc::new(Float32Array::from(values));
        self.array(FixedSizeListArray::new(item(DataType::Float32), width as i32, values, None))
    }

    /// The column with an array, for types that do not implement [`Value`].
    pub fn array(self, values: impl Array + 'static) -> (Column, ArrayRef) {
        (self, Arc::new(values))
    }

    /// Whether the type `kind` fits the column. The names of list items do not matter, and an image may lack parts.
    pub fn is_of(self, kind: &DataType) -> bool {
        match (self.holds, kind) {
            (Holds::Vector, DataType::FixedSizeList(item, _)) => *item.data_type() == DataType::Float32,
            (Holds::Shape, DataType::List(item)) => *item.data_type() == DataType::Int64,
            (Holds::Image, DataType::Struct(_)) => true,
            _ => self.data_type(0) == *kind,
        }
    }

    /// Its field in a table whose vectors have `width` values.
    pub fn field(self, width: usize) -> Field {
        Field::new(self.name, self.data_type(width), self.nullable)
    }

    fn data_type(self, width: usize) -> DataType {
        match self.holds {
            Holds::Integer => DataType::Int64,
            Holds::Real => DataType::Float64,
            Holds::Text => DataType::Utf8,
            Holds::Unsigned => DataType::UInt64,
            Holds::Size => DataType::Int32,
            Holds::Hash => DataType::FixedSizeBinary(32),
            Holds::Bytes => DataType::LargeBinary,
            Holds::Shape => DataType::List(item(DataType::Int64)),
            Holds::Vector => DataType::FixedSizeList(item(DataType::Float32), width as i32),
            Holds::Image => DataType::Struct(image_fields()),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.holds {
            Holds::Vector => write!(f, "{}: FixedSizeList(Float32)", self.name),
            _ => write!(f, "{}: {}", self.name, self.data_type(0)),
        }
    }
}

/// The field of a list's items.
pub fn item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind, false))
}

/// The parts of [`IMAGE`].
pub fn image_fields() -> Fields {
    Fields::from(vec![Field::new(BYTES.name, DataType::Binary, false), PATH.field(0)])
}

/// Types of values from which arrays can be made.
pub trait Value: Sized {
    /// An array of the values.
    fn array(values: impl Iterator<Item = Self>) -> ArrayRef;
}

macro_rules! values {
    ($($value:ty: $array:ident::$from:ident),*) => {
        $(impl Value for $value {
            fn array(values: impl Iterator<Item = Self>) -> ArrayRef {
                Arc::new($array::$from(values))
            }
        })*
    };
}

values!(
    i64: Int64Array::from_iter_values,
    Option<i64>: Int64Array::from_iter,
    f64: Float64Array::from_iter_values,
    Option<f64>: Float64Array::from_iter,
    &str: StringArray::from_iter_values,
    &String: StringArray::from_iter_values,
    String: StringArray::from_iter_values,
    Option<&str>: StringArray::from_iter
);
