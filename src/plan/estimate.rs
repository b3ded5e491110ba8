//! Estimates the time of a stage and the size of its artifact, from an earlier artifact of the same kind of work.

use serde_json::Value;

use super::{Planned, Stage};
use crate::{
    artifact::{Components, Environment, Manifest, Store},
    stage::evaluation,
    tables::{self, FEATURES, Table},
};

/// The time in seconds and the bytes of tables that a stage will need.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    pub seconds: f64,
    pub bytes: f64,
    pub basis: Basis,
}

/// The earlier artifact that an estimate rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    /// First digits of its key.
    pub key: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Images that went through the earlier stage, all epochs counted.
    pub images: u64,
    /// Images that will go through the stage.
    pub will_be: u64,
    /// Set when it was made elsewhere: its CPU and threads.
    pub elsewhere: Option<String>,
}

/// Why there is no estimate.
pub const NOTHING_COMPARABLE: &str = "nothing comparable has run";
pub const IMAGES_UNKNOWN: &str = "the number of images is not known before the data stage has run";

/// Estimates stages from the artifacts of a store.
pub struct Estimator<'a> {
    past: Past<'a>,
    here: &'a Environment,
}

impl<'a> Estimator<'a> {
    /// Reads the manifests of all artifacts. `here` is where the stages will run.
    pub fn new(store: &'a Store, here: &'a Environment) -> Self {
        Estimator { past: Past::new(store), here }
    }

    /// An estimate for every stage that would run, or why there is none; None for cached stages.
    ///
    /// Times grow with the images that go through (for kNN with their square, for the linear probe also with its epochs), sizes
    /// with the images or steps that have rows. Among comparable artifacts, one made with the same CPU and number of threads is
    /// preferred, and then the newest.
    pub fn of(&self, stages: &[Planned]) -> Vec<Option<Result<Estimate, &'static str>>> {
        let data = &stages[0];
        let images = match data.artifact() {
            Some(artifact) => Some(Images::of_data(artifact.manifest())),
            None => Images::of_synthetic(&data.components),
        };
        let estimate = |planned: &Planned| (!planned.is_cached()).then(|| one(planned, images, &self.past, self.here));
        stages.iter().map(estimate).collect()
    }
}

fn one(of: &Planned, images: Option<Images>, past: &Past, here: &Environment) -> Result<Estimate, &'static str> {
    let cost = of.stage.descriptor().cost;
    let comparable = past.manifests(of.stage).iter().filter(|manifest| {
        let leaves = |components: &Components| {
            let leaves = components.0.iter().filter(|(leaf, _)| cost.is_of_an_image(leaf));
            leaves.map(|(leaf, value)| (leaf.clone(), value.clone())).collect::<Vec<_>>()
        };
        leaves(&manifest.components) == leaves(&of.components)
    });
    let measured = comparable.filter_map(|manifest| Some((manifest, past.images(of.stage, manifest)?)));
    let is_here = |manifest: &Manifest| {
        manifest.environment.as_ref().is_some_and(|there| (&there.cpu, there.threads) == (&here.cpu, here.threads))
    };
    let best = measured.max_by_key(|(manifest, _)| (is_here(manifest), manifest.created, manifest.key.clone()));
    let (manifest, were) = best.ok_or(NOTHING_COMPARABLE)?;
    let will_be = match of.stage {
        Stage::Pretrain => images.and_then(|images| images.trained(&of.components)),
        Stage::LinearProbe => {
            images.map(|images| images.all() * number(&of.components, "linear_probe.epochs").unwrap_or(1))
        }
        _ => images.map(Images::all),
    };
    let will_be = will_be.ok_or(IMAGES_UNKNOWN)?;
    let ratio = will_be as f64 / were.max(1) as f64;
    let seconds = past.seconds(of.stage, manifest);
    let bytes = manifest.files.iter().map(|file| {
        let growth = if cost.grows(&file.name) { ratio } else { 1.0 };
        file.size as f64 * growth
    });
    let elsewhere = match &manifest.environment {
        _ if is_here(manifest) => None,
        Some(there) => Some(format!("{}, {} threads", there.cpu, there.threads)),
        None => Some("an unknown machine".to_owned()),
    };
    let basis = Basis { key: manifest.key.short().to_owned(), seconds, images: were, will_be, elsewhere };
    let growth = if of.stage == Stage::Knn { ratio * ratio } else { ratio };
    Ok(Estimate { seconds: seconds * growth, bytes: bytes.sum(), basis })
}

fn number(components: &Components, leaf: &str) -> Option<u64> {
    serde_json::from_str::<Value>(components.0.get(leaf)?).ok()?.as_u64()
}

/// Numbers of images.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Images {
    train: u64,
    test: u64,
}

impl Images {
    fn of_data(manifest: &Manifest) -> Images {
        let rows = |table: Table| manifest.files.iter().filter(|file| table.is(&file.name)).map(|file| file.rows).sum();
        Images { train: rows(tables::TRAIN), test: rows(tables::TEST) }
    }

    /// The numbers of images of generated data, which its configuration gives; None for other data.
    fn of_synthetic(components: &Components) -> Option<Images> {
        let number = |leaf| number(components, leaf);
        Some(Images { train: number("data.train_images")?, test: number("data.test_images")? })
    }

    fn all(self) -> u64 {
        self.train + self.test
    }

    /// Images of all steps of a pretraining; an epoch consists of whole updates.
    fn trained(self, components: &Components) -> Option<u64> {
        let accumulation = number(components, "gradient_accumulation").unwrap_or(1);
        let per_update = number(components, "batch_size")? * accumulation;
        Some(number(components, "epochs")? * (self.train / per_update.max(1)) * per_update)
    }
}

/// The manifests of all earlier artifacts, by stage.
struct Past<'a> {
    store: &'a Store,
    manifests: Vec<Vec<Manifest>>,
}

impl<'a> Past<'a> {
    fn new(store: &'a Store) -> Self {
        Past { store, manifests: Stage::ALL.iter().map(|stage| store.manifests(stage.name())).collect() }
    }

    fn manifests(&self, stage: Stage) -> &[Manifest] {
        &self.manifests[stage as usize]
    }

    /// Images that went through a stage, all epochs counted; None when the artifact that they came from no longer exists.
    fn images(&self, stage: Stage, manifest: &Manifest) -> Option<u64> {
        let rows = |table: Table| manifest.files.iter().find(|file| table.is(&file.name)).map(|file| file.rows);
        let embedded = || {
            let content: String =
                serde_json::from_str(manifest.components.0.get(&evaluation::INPUTS[0].leaf()?)?).ok()?;
            let has_it =
                |embed: &&Manifest| embed.files.iter().any(|file| FEATURES.is(&file.name) && file.content == content);
            let embed = self.manifests(Stage::Embed).iter().find(has_it)?;
            self.images(Stage::Embed, embed)
        };
        match stage {
            Stage::Data => Some(Images::of_data(manifest).all()),
            Stage::Pretrain => Some(rows(tables::TIMING)? * number(&manifest.components, "batch_size")?),
            Stage::Embed | Stage::EmbedRandomInit | Stage::EmbedInitial => rows(FEATURES),
            Stage::LinearProbe => Some(embedded()? * number(&manifest.components, "linear_probe.epochs")?),
            Stage::Knn => embedded(),
        }
    }

    /// How long a stage took. For pretraining, this is the time of all its steps, because a manifest measures only the attempt
    /// that completed the stage.
    fn seconds(&self, stage: Stage, manifest: &Manifest) -> f64 {
        let measured = manifest.milliseconds as f64 / 1000.0;
        if stage != Stage::Pretrain {
            return measured;
        }
        let artifact = self.store.artifact(stage.name(), &manifest.key);
        let steps = artifact.and_then(|artifact| artifact.figure(&tables::SUMMARY, "train/seconds").ok().flatten());
        steps.map_or(measured, |steps| steps.max(measured))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::tests::components;

    #[test]
    fn images_of_a_pretraining_are_those_of_whole_updates() {
        let images = Images { train: 100, test: 20 };
        let leaves = [("epochs", json!(3)), ("batch_size", json!(16)), ("gradient_accumulation", json!(2))];
        assert_eq!(images.trained(&components(&leaves)), Some(3 * 96));
        assert_eq!(images.trained(&components(&leaves[..2])), Some(3 * 96));
        assert_eq!(images.trained(&components(&leaves[..1])), None);
        let data = [("data.train_images", json!(100)), ("data.test_images", json!(20))];
        assert_eq!(Images::of_synthetic(&components(&data)), Some(images));
        assert_eq!(Images::of_synthetic(&components(&[("data.format", json!("idx"))])), None);
    }
}
