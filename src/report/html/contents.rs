//! The HTML page of a data set: facts, pictures of its classes, and duplicates.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{page, pictures::Sheet};
use crate::{
    artifact::Artifact,
    dataset::{Split, shard},
    report::{
        contents::{Contents, SplitContents, worst_first},
        duplicates::Image,
    },
    stage::duplicates::Place,
};

/// The most pairs of each kind to show.
const PAIRS: usize = 60;
/// The most classes to show, and pictures per class.
const CLASSES: usize = 24;
const EXAMPLES: usize = 6;
/// Side of a picture in pixels.
const SIDE: u32 = 96;

/// The page of `contents`, which were read from `data`. Each row of `facts` is a label followed by one value per split.
///
/// # Errors
/// When an image cannot be read.
pub fn render(title: &str, contents: &Contents, data: &Artifact, facts: &[Vec<String>]) -> anyhow::Result<String> {
    let mut pictures = Pictures { sheet: Sheet::new(SIDE, SIDE), splits: BTreeMap::new(), tiles: BTreeMap::new() };
    for SplitContents { split, .. } in &contents.splits {
        let shards = data.files_of(&shard::table(*split));
        pictures.splits.insert(split.to_string(), Split::open(&shards)?);
    }
    let mut lists = Vec::new();
    for (name, mut pairs) in contents.lists() {
        worst_first(&mut pairs);
        let mut shown = Vec::new();
        for (twice, likeness) in pairs.iter().take(PAIRS) {
            let mut side = |place: Place, image: &Image| -> anyhow::Result<Value> {
                let tile = pictures.tile(place.split.as_str(), place.id as usize)?;
                Ok(json!({ "split": image.split.as_str(), "name": image.name, "class": image.class, "tile": tile }))
            };
            let [again, first] = &twice.places;
            shown.push(json!({ "places": [side(twice.duplicate.first, first)?, side(twice.duplicate.again, again)?], "likeness": likeness }));
        }
        lists.push(json!({ "name": name, "pairs": pairs.len(), "shown": shown }));
    }
    let examples = match contents.splits.first() {
        Some(split) => examples(split, &mut pictures)?,
        None => Vec::new(),
    };
    let data = json!({ "contents": {
        "title": title,
        "key": data.stage_key().short(),
        "facts": facts,
        "classes": contents.splits.iter().map(|split| json!({ "split": split.split.as_str(), "images": split.classes })).collect::<Vec<_>>(),
        "lists": lists,
        "examples": examples,
        "notes": contents.notes,
        "sheet": pictures.sheet.to_json()?,
    }});
    page::fill(&format!("{title} · snclr data"), &data)
}

/// A few images of each of the first classes, spread over the split; of the whole split if there are no classes.
fn examples(contents: &SplitContents, pictures: &mut Pictures) -> anyhow::Result<Vec<Value>> {
    let name = contents.split.as_str();
    let Some(split) = pictures.splits.get(name) else { return Ok(Vec::new()) };
    let classes: Vec<(Option<i64>, &str, u64)> = match contents.classes.len() {
        0 => vec![(None, "no label", contents.unlabelled)],
        _ => {
            (0..).map(Some).zip(&contents.classes).map(|(l, (name, n))| (l, name.as_str(), *n)).take(CLASSES).collect()
        }
    };
    let mut chosen: BTreeMap<Option<i64>, (u64, Vec<usize>)> = BTreeMap::new();
    for i in 0..split.len() {
        let label = split.label(i);
        let Some((_, _, images)) = classes.iter().find(|(of, ..)| *of == label) else { continue };
        let (seen, places) = chosen.entry(label).or_default();
        if places.len() < EXAMPLES && *seen * EXAMPLES as u64 >= places.len() as u64 * images {
            places.push(i);
        }
        *seen += 1;
    }
    let mut rows = Vec::new();
    for (label, class, _) in classes {
        let (_, places) = chosen.remove(&label).unwrap_or_default();
        let tiles = places.into_iter().map(|i| pictures.tile(name, i)).collect::<anyhow::Result<Vec<_>>>()?;
        rows.push(json!({ "class": class, "tiles": tiles }));
    }
    Ok(rows)
}

/// The pictures of the page, without repetitions.
struct Pictures {
    sheet: Sheet,
    splits: BTreeMap<String, Split>,
    tiles: BTreeMap<(String, usize), usize>,
}

impl Pictures {
    fn tile(&mut self, split: &str, sample: usize) -> anyhow::Result<usize> {
        let key = (split.to_owned(), sample);
        if let Some(tile) = self.tiles.get(&key) {
            return Ok(*tile);
        }
        let tile = self.sheet.add(&self.splits[split].image(sample)?);
        self.tiles.insert(key, tile);
        Ok(tile)
    }
}
