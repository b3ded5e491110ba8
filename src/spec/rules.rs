//! Checks rules between keys: values that are each valid but do not fit together. Rules hold for defaults, too.

use serde_json::Value;

use super::{
    describe::show,
    error::SpecError,
    problem::Problem,
    read::Document,
    schema::shared,
    walk::{Walker, lookup},
};
use crate::{
    encoder::{ResnetConfig, VITS, VitConfig},
    method::MethodConfig,
    rule::Broken,
    train::{fit_batches, fit_groups},
};

/// Every rule that `document` breaks. Keys that already have an error (`bad`) are ignored.
pub fn broken(document: &Document, bad: &[SpecError]) -> Vec<SpecError> {
    let mut facts = Facts { document, bad, errors: vec![] };
    for rule in [
        neighbours,
        batch,
        groups,
        warmup,
        sizes,
        crops,
        blur,
        knn,
        width,
        patches,
        attention_heads,
        heads,
        local_crops,
    ] {
        rule(&mut facts);
    }
    facts.errors
}

/// The document that the rules examine, and the errors that they find.
struct Facts<'d> {
    document: &'d Document,
    bad: &'d [SpecError],
    errors: Vec<SpecError>,
}

impl<'d> Facts<'d> {
    /// The value of a key, or its default.
    fn get(&self, key: &str) -> Option<&'d Value> {
        let is_bad = |error: &SpecError| key == error.key || key.starts_with(&format!("{}.", error.key));
        if self.bad.iter().any(is_bad) {
            return None;
        }
        let path = split(key);
        lookup(&self.document.value, &path).or_else(|| {
            let part: &'static Value = Walker { root: shared() }.at(&path, &self.document.value)?;
            part.get("default")
        })
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    fn whole(&self, key: &str) -> Option<usize> {
        usize::try_from(self.get(key)?.as_u64()?).ok()
    }

    fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        self.get(key)?.as_array()?.iter().map(Value::as_f64).collect()
    }

    /// Number of training images, if the spec itself gives it.
    fn train_images(&self) -> Option<f64> {
        (self.get("data.format")? == "synthetic").then(|| self.number("data.train_images"))?
    }

    fn is_given(&self, key: &str) -> bool {
        lookup(&self.document.value, &split(key)).is_some()
    }

    /// Reports a broken rule between `keys`. The error is placed at the first of the keys that the spec gives.
    fn report(&mut self, keys: &[&str], what: String, allowed: &str, hint: String) {
        let at = keys.iter().find(|key| self.is_given(key)).unwrap_or(&keys[0]);
        let found: Vec<String> = keys
            .iter()
            .filter_map(|key| {
                let default = if self.is_given(key) { "" } else { " (the default)" };
                Some(format!("{key}: {}{default}", show(self.get(key)?)))
            })
            .collect();
        self.errors.push(SpecError {
            place: Some(self.document.places.closest(&split(at)).value.clone()),
            key: (*at).to_owned(),
            problem: Problem::Rule { what, found: found.join(", "), allowed: allowed.to_owned(), hint },
        });
    }

    /// Reports a broken rule, if a check has found one.
    fn judge<T>(&mut self, judged: Result<T, Broken>) {
        if let Err(Broken { keys, what, allowed, hint }) = judged {
            self.report(&keys, what, &allowed, hint);
        }
    }

    /// Reports an error unless the value of `low_key` is at most that of `high_key`. `what` explains the error.
    fn at_most(&mut self, low_key: &str, high_key: &str, what: impl Fn(f64, f64) -> String) {
        let (Some(low), Some(high)) = (self.number(low_key), self.number(high_key)) else { return };
        if low > high {
            let hint = format!("lower `{low_key}` to {high} or less, or raise `{high_key}` to {low} or more");
            self.report(&[low_key, high_key], what(low, high), &format!("{low_key} <= {high_key}"), hint);
        }
    }
}

fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

fn neighbours(facts: &mut Facts) {
    facts.at_most("method.k", "method.queue_length", |k, length| format!("a queue of {length} has no {k} neighbours"));
    // SwAV's queue is optional: its length may be 0.
    if facts.number("method.queue_length").is_some_and(|length| length > 0.0) {
        facts.at_most("batch_size", "method.queue_length", |batch, length| {
            format!("a batch of {batch} does not fit into a queue of {length}")
        });
    }
}

fn batch(facts: &mut Facts) {
    let Some(images) = facts.train_images() else { return };
    // Assume 1 if `gradient_accumulation` itself has an error.
    let accumulation = facts.whole("gradient_accumulation").unwrap_or(1);
    let Some(batch) = facts.whole("batch_size") else { return };
    facts.judge(fit_batches(batch, accumulation, images as usize).map_err(|broken| match broken.keys[0] {
        "batch_size" => {
            Broken { hint: format!("{}, or raise `data.train_images` to {batch} or more", broken.hint), ..broken }
        }
        _ => broken,
    }));
}

fn groups(facts: &mut Facts) {
    if let (Some(group), Some(batch)) = (facts.whole("batch_norm.group"), facts.whole("batch_size")) {
        facts.judge(fit_groups(group, batch));
    }
}

fn warmup(facts: &mut Facts) {
    facts.at_most("schedule.warmup_epochs", "epochs", |warmup, epochs| {
        format!("a warm-up of {warmup} epochs does not end within {epochs}")
    });
}

fn sizes(facts: &mut Facts) {
    if facts.get("data.format").is_some_and(|format| format == "synthetic") {
        facts.at_most("augmentations.size", "data.image_size", |size, image| {
            format!("crops of {size} pixels cannot be taken from images of {image}")
        });
    }
    facts.at_most("augmentations.size", "augmentations.eval.resize", |size, resize| {
        format!("a centre crop of {size} pixels cannot be taken from a shorter side of {resize}")
    });
}

const VIEWS: [&str; 3] = ["augmentations.view1", "augmentations.view2", "augmentations.local_crops.view"];

fn crops(facts: &mut Facts) {
    for view in VIEWS {
        interval(facts, &format!("{view}.random_resized_crop.scale"), "a share of the image's area", Some(1.0));
        interval(facts, &format!("{view}.random_resized_crop.ratio"), "a ratio of width to height", None);
    }
}

fn blur(facts: &mut Facts) {
    for view in VIEWS {
        if facts.is_given(&format!("{view}.gaussian_blur")) {
            interval(facts, &format!("{view}.gaussian_blur.sigma"), "a standard deviation in pixels", None);
        }
    }
}

/// Checks a pair `[low, high]`: 0 < low <= high, and high <= `most`.
fn interval(facts: &mut Facts, key: &str, noun: &str, most: Option<f64>) {
    let Some(&[low, high]) = facts.numbers(key).as_deref() else { return };
    let allowed = match most {
        Some(most) => format!("[low, high] with 0 < low <= high <= {most}"),
        None => "[low, high] with 0 < low <= high".to_owned(),
    };
    if low > high {
        let hint = format!("swap them: [{high}, {low}]");
        facts.report(&[key], format!("the range begins at {low}, above its end {high}"), &allowed, hint);
    } else if low <= 0.0 {
        let hint = "raise the lower end above 0".to_owned();
        facts.report(&[key], format!("{noun} is greater than 0"), &allowed, hint);
    } else if let Some(most) = most.filter(|&most| high > most) {
        facts.report(&[key], format!("{noun} is at most {most}"), &allowed, format!("lower the upper end to {most}"));
    }
}

fn knn(facts: &mut Facts) {
    let (Some(ks), Some(images)) = (facts.numbers("knn.k"), facts.train_images()) else { return };
    if let Some(most) = ks.into_iter().reduce(f64::max).filter(|&most| most > images) {
        let what = format!("{images} training images have no {most} neighbours");
        let hint = format!("give numbers up to {images} in `knn.k`, or raise `data.train_images` to {most} or more");
        facts.report(&["knn.k", "data.train_images"], what, "each item of knn.k <= data.train_images", hint);
    }
}

fn width(facts: &mut Facts) {
    let Some(width) = facts.number("encoder.width_multiplier") else { return };
    facts.judge(ResnetConfig::channels(width as f32));
}

/// Checks that whole patches fill the crops, and the images that the positions are laid out for.
fn patches(facts: &mut Facts) {
    let Some(patch) = facts.whole("encoder.patch_size") else { return };
    for key in ["augmentations.size", "augmentations.local_crops.size", "encoder.image_size"] {
        if let Some(size) = facts.whole(key) {
            facts.judge(VitConfig::fit_patches(patch, key, size));
        }
    }
}

fn attention_heads(facts: &mut Facts) {
    let arch = facts.get("encoder.arch").and_then(Value::as_str);
    let vit = VITS.into_iter().find(|(name, ..)| arch == Some(name));
    if let (Some(heads), Some((_, width, _))) = (facts.whole("encoder.heads"), vit) {
        facts.judge(VitConfig::fit_heads(heads, width));
    }
}

fn method_name<'d>(facts: &Facts<'d>) -> Option<&'d str> {
    facts.get("method.name")?.as_str()
}

fn heads(facts: &mut Facts) {
    let has_predictor = facts.get("predictor").is_some_and(Value::is_object);
    if let Some(name) =
        method_name(facts).filter(|name| has_predictor && MethodConfig::not_taken(name).contains(&"predictor"))
    {
        facts.report(
            &["predictor", "method.name"],
            format!("{name} has no predictor: it compares projections"),
            "no `predictor` with simclr and swav",
            "remove the section `predictor`".to_owned(),
        );
        return;
    }
    let (Some(projection), Some(prediction)) = (facts.number("projector.output"), facts.number("predictor.output"))
    else {
        return;
    };
    if projection != prediction {
        facts.report(
            &["predictor.output", "projector.output"],
            format!("predictions of width {prediction} cannot be compared with projections of width {projection}"),
            "predictor.output == projector.output",
            format!("set `predictor.output` to {projection}"),
        );
    }
}

fn local_crops(facts: &mut Facts) {
    let given = facts.get("augmentations.local_crops").is_some_and(Value::is_object);
    if given
        && method_name(facts).is_some_and(|name| MethodConfig::not_taken(name).contains(&"augmentations.local_crops"))
    {
        facts.report(
            &["augmentations.local_crops", "method.name"],
            "SimCLR's loss is defined for two views of each image".to_owned(),
            "no `local_crops` with simclr",
            "remove the section `augmentations.local_crops`, or use another method, such as infonce".to_owned(),
        );
    }
}
