//! The map of the test images: their embeddings in the plane by PCA and t-SNE, with labels, predictions and pictures.

use arrow::compute::filter_record_batch;
use serde_json::{Value, json};

use super::{classes::Evaluation, pictures::Sheet};
use crate::{
    artifact::Artifact,
    dataset::{Split, SplitName},
    ops::{normalize::normalize_rows, pca, tsne},
    stage::features::{self, Features},
    tables::{FEATURES, column::SPLIT},
};

/// The most images on the map.
const POINTS: usize = 1000;
/// Coordinates range from 0 to this.
const EXTENT: f64 = 1000.0;
/// The longest side of a picture in pixels.
const SIDE: u32 = 48;

/// The map; null if there are no embeddings of test images.
///
/// # Errors
/// When embeddings or images cannot be read.
pub fn draw(embed: &Artifact, test: &Split, evaluations: &[Evaluation]) -> anyhow::Result<Value> {
    let features = subsample(test_features(embed)?);
    if features.is_empty() {
        return Ok(Value::Null);
    }
    let mut rows = features.rows.clone();
    normalize_rows(&mut rows, features.dim);
    let principal = pca::project(&rows, features.dim);
    let mut projections = vec![json!({ "name": "PCA", "points": place(&principal) })];
    if let Some(points) = tsne::project(&rows, features.dim, &principal) {
        projections.insert(0, json!({ "name": "t-SNE", "points": place(&points) }));
    }
    let mut sheet = None;
    for id in &features.ids {
        let image = test.image(*id as usize)?;
        sheet.get_or_insert_with(|| Sheet::new(image.width().min(image.height()), SIDE)).add(&image);
    }
    let guesses = |evaluation: &Evaluation| -> Vec<Option<i64>> {
        features.ids.iter().map(|id| evaluation.predictions.get(id).map(|(_, guess)| *guess)).collect()
    };
    Ok(json!({
        "images": test.len(),
        "samples": features.ids,
        "labels": features.labels,
        "predicted": evaluations.iter().map(guesses).collect::<Vec<_>>(),
        "projections": projections,
        "extent": EXTENT,
        "sheet": sheet.expect("there is an image").to_json()?,
    }))
}

/// Features of the test split only; those of the training split may not fit in memory.
fn test_features(embed: &Artifact) -> anyhow::Result<Features> {
    let of_test = embed.read(FEATURES.name)?.map(|batch| {
        let batch = batch?;
        let splits = FEATURES.texts(&batch, SPLIT)?;
        let keep = splits.iter().map(|split| Some(split == Some(SplitName::Test.as_str()))).collect();
        Ok(filter_record_batch(&batch, &keep)?)
    });
    Ok(features::read(of_test)?.test)
}

/// At most [`POINTS`] of the samples, evenly spaced: splits are often sorted by class.
fn subsample(features: Features) -> Features {
    let (n, dim) = (features.len(), features.dim);
    if n <= POINTS {
        return features;
    }
    let chosen: Vec<usize> = (0..POINTS).map(|i| i * n / POINTS).collect();
    Features {
        dim,
        ids: chosen.iter().map(|i| features.ids[*i]).collect(),
        labels: chosen.iter().map(|i| features.labels[*i]).collect(),
        rows: chosen.iter().flat_map(|i| &features.rows[i * dim..(i + 1) * dim]).copied().collect(),
    }
}

/// Rounds coordinates to whole numbers, centred in the square, with one scale for both axes.
fn place(points: &[[f64; 2]]) -> Vec<[i64; 2]> {
    let range = [0, 1].map(|axis| {
        let values = || points.iter().map(|point| point[axis]);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    });
    let widest = range.iter().map(|(low, high)| high - low).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64, (low, high): (f64, f64)| {
        ((value - (low + high) / 2.0) / widest * EXTENT + EXTENT / 2.0).round() as i64
    };
    points.iter().map(|point| [at(point[0], range[0]), at(point[1], range[1])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_fill_the_square_without_a_change_of_shape() {
        assert_eq!(place(&[[-1.0, 2.0], [3.0, 2.0], [1.0, 3.0]]), [[0, 375], [1000, 375], [500, 625]]);
        assert_eq!(place(&[[7.0, 7.0]]), [[500, 500]]);
    }

    #[test]
    fn a_subsample_covers_the_split_evenly() {
        let n = 2500;
        let ids: Vec<i64> = (0..n as i64).collect();
        let rows: Vec<f32> = (0..n).flat_map(|i| [i as f32, 0.5]).collect();
        let features = Features { dim: 2, labels: vec![None; n], rows, ids };
        let few = subsample(features);
        assert_eq!((few.len(), few.rows.len(), few.ids[1], few.ids[999]), (1000, 2000, 2, 2497));
        assert_eq!(few.rows[2 * 999], 2497.0);
    }
}
