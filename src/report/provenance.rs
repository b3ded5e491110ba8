//! Notes stages that ran on different devices or in different precisions.

use std::collections::{BTreeMap, BTreeSet};

use super::group::Group;
use crate::{
    artifact::{Manifest, Store},
    plan::UNIT,
};

/// A line for each difference in device or precision between the columns `labels`, with the stages that it concerns. Stages with
/// the same content in all runs are skipped, since the difference had no effect there.
pub fn notes(store: &Store, labels: &[String], groups: &[Group]) -> Vec<String> {
    // Stages by difference, in the order of the pipeline.
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    let stages = groups.iter().flat_map(|group| &group.runs).map(|run| &run.record.stages).max_by_key(|s| s.len());
    for stage in stages.into_iter().flatten().map(|stage| stage.stage.as_str()) {
        let mut contents = BTreeSet::new();
        // Columns by device and precision.
        let mut ways: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (label, group) in labels.iter().zip(groups) {
            let records = group.runs.iter().flat_map(|run| run.record.stages.iter().filter(|s| s.stage == stage));
            for record in records {
                let Some(way) = store.manifest(stage, &record.key).as_ref().and_then(way) else { continue };
                contents.insert(&record.content);
                let columns = ways.entry(way).or_default();
                if columns.last() != Some(&label.as_str()) {
                    columns.push(label);
                }
            }
        }
        if ways.len() < 2 || contents.len() < 2 {
            continue;
        }
        let ways: Vec<_> = ways.iter().map(|(way, columns)| format!("{way}: {}", columns.join(", "))).collect();
        let what = ways.join("; ");
        match found.iter_mut().find(|(other, _)| *other == what) {
            Some((_, stages)) => stages.push(stage),
            None => found.push((what, vec![stage])),
        }
    }
    let line = |(what, stages): (String, Vec<&str>)| format!("{} ran differently: {what}", stages.join(", "));
    found.into_iter().map(line).collect()
}

/// Device and, where the stage has one, precision, e.g. `cpu in bf16 (AMX-BF16)`. None if the manifest does not say.
fn way(manifest: &Manifest) -> Option<String> {
    let leaf = |name: &str| serde_json::from_str::<String>(manifest.components.0.get(name)?).ok();
    let device = &manifest.environment.as_ref()?.device;
    Some(match (leaf("precision"), leaf(UNIT)) {
        (None, _) => device.clone(),
        (Some(precision), None) => format!("{device} in {precision}"),
        (Some(precision), Some(unit)) => format!("{device} in {precision} ({unit})"),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::json;

    use super::*;
    use crate::{
        artifact::{Components, Environment, StageRecord},
        report::{Run, group, samples},
    };

    /// A run whose stages are made on `device`. The content of its `data` stage is the same for all runs.
    fn run(root: &Path, name: &str, device: &str, precision: &str) -> Run {
        let mut run = samples::run(name, "seed: 1", &[]);
        for stage in ["data", "pretrain", "embed"] {
            let mut components = Components::default();
            components.insert("of", &json!([name, stage]));
            if stage == "pretrain" {
                components.insert("precision", &precision.into());
            }
            let environment = Environment { device: device.to_owned(), ..Environment::here() };
            let manifest = Manifest::new(stage, components, vec![], 0, 0, Some(environment));
            let dir = root.join("store").join(stage).join(manifest.key.as_str());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("manifest.json"), manifest.text()).unwrap();
            let content = if stage == "data" { "same".to_owned() } else { format!("{device} {precision}") };
            run.record.stages.push(StageRecord { stage: stage.to_owned(), key: manifest.key, content, seconds: 0.0 });
        }
        run
    }

    #[test]
    fn other_devices_and_precisions_are_noted_where_they_made_a_difference() {
        let root = tempfile::tempdir().unwrap();
        let of = |name, device, precision| run(root.path(), name, device, precision);
        let found = |runs: &[Run]| {
            let groups = group::single(runs);
            let labels: Vec<String> = groups.iter().map(group::Group::label).collect();
            notes(&Store::open(root.path()), &labels, &groups)
        };
        let [a, b] = [of("a", "cpu", "f32"), of("b", "cpu", "f32")];
        assert_eq!(found(&[a.clone(), b.clone()]), [] as [&str; 0]);
        let [c, d] = [of("c", "cuda:0", "f32"), of("d", "cpu", "bf16")];
        assert_eq!(
            found(&[a.clone(), b, c]),
            [
                "pretrain ran differently: cpu in f32: a, b; cuda:0 in f32: c",
                "embed ran differently: cpu: a, b; cuda:0: c",
            ]
        );
        assert_eq!(found(&[a, d]), ["pretrain ran differently: cpu in bf16: d; cpu in f32: a"]);
    }
}
