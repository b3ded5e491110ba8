//! Names and help texts for types of lower layers, which do not depend on clap.

use std::path::Path;

use clap::{
    ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};

use crate::{
    bench::{Card, Case},
    dataset::FileFormat,
    report::{embeddings::Branch, safetensors::Head},
};

/// A whole number from 1 to `most`.
pub fn whole(text: &str, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("expected a whole number from 1 to {most}"))
}

/// Refuses an output file whose name does not end in `.extension`, the only format.
pub fn ensure_ends_in(extension: &str, path: &Path) -> anyhow::Result<()> {
    let why = || format!("{}: the name must end in .{extension}, the only format", path.display());
    anyhow::ensure!(path.extension().is_some_and(|found| found == extension), why());
    Ok(())
}

/// A type of the engine whose values the command line accepts by name.
pub trait Choice: Copy + Send + Sync + 'static {
    const ALL: &'static [Self];

    /// The name on the command line, and its help.
    fn describe(self) -> (&'static str, &'static str);
}

/// A parser that takes a value by its name.
pub fn choice<T: Choice>() -> impl TypedValueParser<Value = T> {
    let named = T::ALL.iter().map(|value| {
        let (name, help) = value.describe();
        PossibleValue::new(name).help(help)
    });
    PossibleValuesParser::new(named).map(|name| {
        *T::ALL.iter().find(|value| value.describe().0 == name).expect("the parser lets only names of values through")
    })
}

impl Choice for Card {
    const ALL: &'static [Self] = &Card::ALL;

    fn describe(self) -> (&'static str, &'static str) {
        let help = match self {
            Card::H100 => "NVIDIA H100, SXM",
            Card::H200 => "NVIDIA H200, SXM",
            Card::A100 => "NVIDIA A100, SXM, 80 GB",
        };
        (self.name(), help)
    }
}

impl Choice for Case {
    const ALL: &'static [Self] = &Case::ALL;

    fn describe(self) -> (&'static str, &'static str) {
        let help = match self {
            Case::Small => "Pretraining step: ResNet-18 at a quarter of its width, 32x32, batch 128",
            Case::Resnet18 => "Pretraining step: ResNet-18, 32x32, batch 128",
            Case::Resnet50 => "Pretraining step: ResNet-50, 224x224, batch 8, queue 65536",
            Case::VitTiny => "Pretraining step: ViT-Tiny with patches of 4, 32x32, batch 128",
            Case::VitSmall => "Pretraining step: ViT-S/16, 224x224, batch 8",
            Case::Epoch => "Training as it runs: images from shards, augmentation, and the step of `small`",
            Case::EpochImagenet => {
                "Training as it runs: JPEG images from shards, ImageNet's augmentation, and the step of `resnet50`"
            }
            Case::Queue => "The exact K nearest rows of the queue to 256 queries",
            Case::AugmentCifar => "Both views of CIFAR-10's recipe from PNG bytes, one thread",
            Case::AugmentImagenet => "Both views of ImageNet's recipe from JPEG bytes, one thread",
            Case::Knn => "kNN classification: 10000 queries, a bank of 50000, 512 features",
            Case::Probe => "Linear probe: trained on 50000, scored on 10000, 512 features",
        };
        (self.name(), help)
    }
}

impl Choice for FileFormat {
    const ALL: &'static [Self] = &[
        FileFormat::ImageFolder,
        FileFormat::Parquet,
        FileFormat::Arrow,
        FileFormat::Webdataset,
        FileFormat::Cifar10,
        FileFormat::Idx,
    ];

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            FileFormat::ImageFolder => ("image_folder", "Images, or folders of images, in class folders or not"),
            FileFormat::Parquet => ("parquet", "Parquet files in the Hugging Face image schema, or folders of them"),
            FileFormat::Arrow => ("arrow", "Arrow IPC files in the same schema, or folders of them"),
            FileFormat::Webdataset => ("webdataset", "WebDataset: tar archives, or folders of them"),
            FileFormat::Cifar10 => {
                ("cifar10", "Binary batches of CIFAR-10, or the folder that holds the training batches")
            }
            FileFormat::Idx => ("idx", "An IDX file of images (the MNIST family), gzipped or plain"),
        }
    }
}

impl ValueEnum for Branch {
    fn value_variants<'a>() -> &'a [Self] {
        &[Branch::Online, Branch::Momentum]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Branch::Online => ("online", "The trained encoder, which the scores of the run are from"),
            Branch::Momentum => ("momentum", "The moving average of the encoder, if the method keeps one"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

impl ValueEnum for Head {
    fn value_variants<'a>() -> &'a [Self] {
        &[Head::Auto, Head::Zeros, Head::None]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Head::Auto => ("auto", "The linear probe, folded to classify raw features; zeros if the run has none"),
            Head::Zeros => ("zeros", "Zeros for 1000 classes, the default of torchvision and timm"),
            Head::None => ("none", "None: only the encoder"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}
