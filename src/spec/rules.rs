//! Rules between keys: values that are each valid and do not fit together. They hold for defaults too.

use serde_json::Value;

use super::{
    describe::show,
    error::SpecError,
    problem::Problem,
    read::Document,
    schema::shared,
    walk::{Walker, lookup},
};

/// Every rule that `document` breaks. Keys that have an error already (`bad`) are left out of consideration.
pub fn broken(document: &Document, bad: &[SpecError]) -> Vec<SpecError> {
    let mut facts = Facts { document, bad, errors: vec![] };
    for rule in
        [neighbours, batch, warmup, sizes, crops, blur, knn, width, patches, attention_heads, heads, local_crops]
    {
        rule(&mut facts);
    }
    facts.errors
}

/// What the rules look at, and what they find.
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

    fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        self.get(key)?.as_array()?.iter().map(Value::as_f64).collect()
    }

    /// Number of training images, where the spec itself says it.
    fn train_images(&self) -> Option<f64> {
        (self.get("data.format")? == "synthetic").then(|| self.number("data.train_images"))?
    }

    fn is_given(&self, key: &str) -> bool {
        lookup(&self.document.value, &split(key)).is_some()
    }

    /// Reports a broken rule between `keys`, at the first of them that the spec gives.
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

    /// Reports unless `low_key <= high_key`; `what` says why that cannot be.
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
    // SwAV's queue may be left out.
    if facts.number("method.queue_length").is_some_and(|length| length > 0.0) {
        facts.at_most("batch_size", "method.queue_length", |batch, length| {
            format!("a batch of {batch} does not fit into a queue of {length}")
        });
    }
}

fn batch(facts: &mut Facts) {
    if facts.train_images().is_none() {
        return;
    }
    facts.at_most("batch_size", "data.train_images", |batch, images| {
        format!("{images} training images do not fill a batch of {batch}")
    });
    let numbers = ["batch_size", "gradient_accumulation", "data.train_images"].map(|key| facts.number(key));
    let [Some(batch), Some(batches), Some(images)] = numbers else { return };
    if batches > 1.0 && batch <= images && batch * batches > images {
        facts.report(
            &["gradient_accumulation", "batch_size", "data.train_images"],
            format!("{images} training images do not fill {batches} batches of {batch}"),
            "gradient_accumulation * batch_size <= data.train_images",
            format!("lower `gradient_accumulation` to {} or less", (images / batch).floor()),
        );
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

/// A pair `[low, high]` with 0 < low <= high, and high <= `most`.
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

/// Channels of the first layers of a ResNet of usual width.
const CHANNELS: f64 = 64.0;

fn width(facts: &mut Facts) {
    let key = "encoder.width_multiplier";
    let Some(channels) = facts.number(key).map(|width| CHANNELS * width) else { return };
    if channels.fract() != 0.0 {
        let nearest = channels.round().max(1.0) / CHANNELS;
        let what = format!("{channels} is not a whole number of channels");
        facts.report(&[key], what, "multiples of 1/64", format!("the nearest width is {nearest}"));
    }
}

/// Patches tile the crops, and the images that the positions are laid out for.
fn patches(facts: &mut Facts) {
    let Some(patch) = facts.number("encoder.patch_size") else { return };
    for key in ["augmentations.size", "augmentations.local_crops.size", "encoder.image_size"] {
        let Some(size) = facts.number(key).filter(|size| size % patch != 0.0) else { continue };
        let nearest = ((size / patch).round() * patch).max(patch);
        facts.report(
            &[key, "encoder.patch_size"],
            format!("patches of {patch} pixels do not tile images of {size}"),
            &format!("{key} a multiple of encoder.patch_size"),
            format!("the nearest `{key}` is {nearest}"),
        );
    }
}

/// Widths of the vision transformers.
const WIDTHS: [(&str, usize); 3] = [("vit_tiny", 192), ("vit_small", 384), ("vit_base", 768)];

fn attention_heads(facts: &mut Facts) {
    let key = "encoder.heads";
    let Some(heads) = facts.get(key).and_then(Value::as_u64).map(|heads| heads as usize) else { return };
    let arch = facts.get("encoder.arch").and_then(Value::as_str);
    let Some((_, width)) = WIDTHS.into_iter().find(|(name, _)| arch == Some(name)) else { return };
    if width % heads != 0 {
        let nearest = (1..=width).filter(|n| width % n == 0).min_by_key(|n| n.abs_diff(heads)).unwrap_or(1);
        facts.report(
            &[key, "encoder.arch"],
            format!("{heads} heads do not divide a width of {width}"),
            &format!("a divisor of {width}"),
            format!("the nearest number of heads is {nearest}"),
        );
    }
}

/// Sections that a method has no use for: SimCLR and SwAV compare projections themselves, and SimCLR's loss is of two views.
pub fn not_taken(method: &str) -> &'static [&'static str] {
    match method {
        "simclr" => &["predictor", "augmentations.local_crops"],
        "swav" => &["predictor"],
        _ => &[],
    }
}

fn method_name<'d>(facts: &Facts<'d>) -> Option<&'d str> {
    facts.get("method.name")?.as_str()
}

fn heads(facts: &mut Facts) {
    let has_predictor = facts.get("predictor").is_some_and(Value::is_object);
    if let Some(name) = method_name(facts).filter(|name| has_predictor && not_taken(name).contains(&"predictor")) {
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
    if given && method_name(facts).is_some_and(|name| not_taken(name).contains(&"augmentations.local_crops")) {
        facts.report(
            &["augmentations.local_crops", "method.name"],
            "SimCLR's loss is defined for two views of each image".to_owned(),
            "no `local_crops` with simclr",
            "remove the section `augmentations.local_crops`, or use another method, such as infonce".to_owned(),
        );
    }
}
