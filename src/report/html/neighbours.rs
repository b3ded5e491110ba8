//! The nearest neighbours that a few images have in the queue, with their positiveness, early and late in training.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{curves::short, pictures::Sheet};
use crate::{dataset::Split, report::artifacts::Table, tables::column};

/// The number of neighbours to show per image: those of the largest weight.
const SHOWN: usize = 12;
/// The longest side of a picture in pixels.
const SIDE: u32 = 64;

/// One look-up of an image.
#[derive(Debug, PartialEq)]
struct Moment {
    step: i64,
    epoch: f64,
    /// Neighbours, the most similar first.
    neighbours: Vec<Neighbour>,
}

#[derive(Clone, Debug, PartialEq)]
struct Neighbour {
    /// None for one of the random vectors that fill the queue at the start of training.
    sample: Option<i64>,
    label: Option<i64>,
    weight: f64,
    similarity: f64,
}

/// The watched images with their neighbours, from the table of pretraining; no images if it is empty.
///
/// # Errors
/// When an image cannot be read, or the table lacks a column.
pub fn draw(table: &Table, train: &Split) -> anyhow::Result<Value> {
    let mut sheet: Option<Sheet> = None;
    let mut tiles = BTreeMap::new();
    let mut tile = |sample: i64| -> anyhow::Result<usize> {
        if let Some(tile) = tiles.get(&sample) {
            return Ok(*tile);
        }
        let image = train.image(sample as usize)?;
        let sheet = sheet.get_or_insert_with(|| Sheet::new(image.width().min(image.height()), SIDE));
        Ok(*tiles.entry(sample).or_insert(sheet.add(&image)))
    };
    let mut queries = Vec::new();
    for (query, moments) in by_query(table)? {
        let mut shown = Vec::new();
        for moment in early_and_late(&moments) {
            let mut neighbours = moment.neighbours.clone();
            neighbours.sort_by(|a, b| b.weight.total_cmp(&a.weight));
            let rest = neighbours.split_off(SHOWN.min(neighbours.len()));
            let mut cells = Vec::new();
            for neighbour in neighbours {
                cells.push(json!({
                    "sample": neighbour.sample,
                    "label": neighbour.label,
                    "weight": short(neighbour.weight),
                    "similarity": short(neighbour.similarity),
                    "tile": neighbour.sample.map(&mut tile).transpose()?,
                }));
            }
            let weight = short(rest.iter().map(|neighbour| neighbour.weight).sum());
            let rest = json!({ "count": rest.len(), "weight": weight });
            shown.push(json!({ "step": moment.step, "epoch": short(moment.epoch), "neighbours": cells, "rest": rest }));
        }
        let label = train.label(query as usize);
        queries.push(json!({ "sample": query, "label": label, "tile": tile(query)?, "moments": shown }));
    }
    Ok(json!({ "queries": queries, "sheet": sheet.map(|sheet| sheet.to_json()).transpose()? }))
}

/// The look-ups of each image, in order.
fn by_query(table: &Table) -> anyhow::Result<BTreeMap<i64, Vec<Moment>>> {
    let (steps, epochs) = (table.integers(column::STEP)?, table.reals(column::EPOCH)?);
    let queries = table.integers(column::QUERY_SAMPLE)?;
    let (samples, labels) = (table.integers(column::NEIGHBOUR_SAMPLE)?, table.integers(column::NEIGHBOUR_LABEL)?);
    let (weights, similarities) = (table.reals(column::WEIGHT)?, table.reals(column::SIMILARITY)?);
    let mut found: BTreeMap<i64, Vec<Moment>> = BTreeMap::new();
    for row in 0..table.len() {
        let (Some(step), Some(epoch), Some(query)) = (steps[row], epochs[row], queries[row]) else { continue };
        let moments = found.entry(query).or_default();
        if moments.last().is_none_or(|moment| moment.step != step) {
            moments.push(Moment { step, epoch, neighbours: Vec::new() });
        }
        let (weight, similarity) = (weights[row].unwrap_or(0.0), similarities[row].unwrap_or(0.0));
        let neighbour = Neighbour { sample: samples[row], label: labels[row], weight, similarity };
        moments.last_mut().expect("one was pushed").neighbours.push(neighbour);
    }
    Ok(found)
}

/// The first look-up that found only images (or else the very first), and the last one.
fn early_and_late(moments: &[Moment]) -> Vec<&Moment> {
    let only_images = |moment: &&Moment| moment.neighbours.iter().all(|neighbour| neighbour.sample.is_some());
    let early = moments.iter().find(only_images).or(moments.first());
    let late = moments.last().filter(|late| early.is_some_and(|early| early.step != late.step));
    early.into_iter().chain(late).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(step: i64, samples: &[Option<i64>]) -> Moment {
        let neighbour = |&sample| Neighbour { sample, label: None, weight: 0.5, similarity: 0.5 };
        Moment { step, epoch: 0.0, neighbours: samples.iter().map(neighbour).collect() }
    }

    #[test]
    fn early_is_the_first_look_up_without_random_vectors_and_late_the_last() {
        let steps = |moments: &[Moment]| early_and_late(moments).iter().map(|m| m.step).collect::<Vec<_>>();
        let random = moment(0, &[Some(1), None]);
        assert_eq!(steps(&[random.clone_of(0), moment(5, &[Some(1)]), moment(9, &[Some(2)])]), [5, 9]);
        assert_eq!(steps(&[random.clone_of(0), random.clone_of(3)]), [0, 3]);
        assert_eq!(steps(&[moment(4, &[Some(1)])]), [4]);
        assert!(steps(&[]).is_empty());
    }

    impl Moment {
        fn clone_of(&self, step: i64) -> Moment {
            Moment { step, epoch: self.epoch, neighbours: self.neighbours.clone() }
        }
    }
}
