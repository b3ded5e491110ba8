//! The kNN stage: scores frozen features by a weighted nearest-neighbour classifier.

use serde::Serialize;

use super::{
    Cost, Descriptor, KnnConfig, Progress, StageContext, Stopped,
    evaluation::{Evaluation, INPUTS, Scored, predictions_rows},
    features::SplitFeatures,
    labelled::{Predictions, Task},
    nearest::Bank,
    votes::Vote,
};
use crate::{
    artifact::{Artifact, ArtifactWriter},
    ops::normalize::normalize_rows,
    tables,
    train::Device,
};

/// The descriptor of the stage.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "knn",
    version: 4,
    inputs: &INPUTS,
    tables: &[tables::SCORES, tables::NOTES, tables::VOTES, tables::INITIAL_VOTES],
    cost: Cost { of_an_image: &[], grows: &[tables::VOTES] },
    figures: Some((tables::SCORES, "")),
};

/// The fields of a spec that the kNN stage reads. The seed shuffles the labels of the control.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KnnSections<'a> {
    pub seed: u64,
    pub knn: &'a KnnConfig,
}

/// Scores the features of the trained encoder, and the controls: other features, and shuffled labels.
///
/// Writes `scores`, `notes` and `predictions` (for the trained features and every k). If training started from a file of weights,
/// also writes `initial_predictions` (for the features of these weights and the first k). Without labels or a test split,
/// `scores` is empty and a note says why.
///
/// # Errors
/// When the artifacts cannot be read or written, or the user interrupts.
pub fn run(
    config: &KnnConfig,
    seed: u64,
    inputs: Scored<&Artifact>,
    out: &mut ArtifactWriter,
    context: &StageContext,
) -> anyhow::Result<()> {
    let go_on = || !context.interrupt.requested();
    evaluate(config, seed, inputs.features()?, context.progress, &go_on)?.write(out)
}

fn evaluate(
    config: &KnnConfig,
    seed: u64,
    features: Scored<SplitFeatures>,
    progress: &dyn Progress,
    go_on: &dyn Fn() -> bool,
) -> anyhow::Result<Evaluation> {
    let (mut tasks, mut result) = match Evaluation::begin(DESCRIPTOR.name, features, progress)? {
        Ok(begun) => begun,
        Err(skipped) => return Ok(skipped),
    };
    for task in tasks.iter_mut() {
        normalize_rows(&mut task.train.rows, task.dim);
        normalize_rows(&mut task.test.rows, task.dim);
    }
    let Scored { trained, random_init, initial } = tasks;
    let available = trained.targets.len();
    let mut ks = config.k.clone();
    let mut seen = std::collections::HashSet::new();
    ks.retain(|&k| seen.insert(k));
    for &k in ks.iter().filter(|&&k| k > available) {
        result
            .note("clamped", format!("knn.k {k} exceeds the {available} labelled training samples; all of them vote"));
    }
    let clamped: Vec<usize> = ks.iter().map(|&k| k.min(available)).collect();

    let passes = 2 + u64::from(initial.is_some());
    progress.start(Some(passes * trained.test.ids.len() as u64), "images");
    let gpu = Device::chosen().gpu()?;
    let classify = |task: &Task, ks: &[usize], labellings: &[&[usize]]| -> anyhow::Result<Vec<Vec<Predictions>>> {
        let vote = Vote { ks, temperature: config.temperature, classes: task.classes.len() };
        let most = ks.iter().copied().max().unwrap_or(0);
        let bank = Bank::new(gpu.as_ref(), &task.train.rows, task.dim, most)?;
        let nearest = |queries: &[f32], k| bank.top_k(queries, k);
        let predicted = vote.classify(nearest, labellings, &task.test.rows, task.dim, |count| {
            progress.advance(count as u64);
            go_on()
        })?;
        Ok(predicted.ok_or(Stopped::InterruptedAt { stage: "knn" })?)
    };
    let top1 =
        |task: &Task, predicted: &[(usize, f64)]| task.accuracy(|i, label| task.classes[predicted[i].0] == label);

    let shuffled = trained.shuffled_targets(seed);
    let predicted = classify(&trained, &clamped, &[&trained.targets, &shuffled])?;
    let control = classify(&random_init, &clamped[..1], &[&random_init.targets])?;
    result.score("knn/top1", top1(&trained, &predicted[0][0]));
    for (k, predicted) in ks.iter().zip(&predicted[0]) {
        result.score(format!("knn/top1_k{k}"), top1(&trained, predicted));
    }
    result.score("knn/top1_random_init", top1(&random_init, &control[0][0]));
    if let Some(initial) = &initial {
        let control = classify(initial, &clamped[..1], &[&initial.targets])?;
        result.score("knn/top1_initial", top1(initial, &control[0][0]));
        let blocks = [(ks.first().copied(), &control[0][0])];
        result.tables.push(predictions_rows(tables::INITIAL_VOTES, initial, &blocks));
    }
    result.score("knn/top1_shuffled_labels", top1(&trained, &predicted[1][0]));

    let blocks: Vec<_> = ks.iter().copied().map(Some).zip(&predicted[0]).collect();
    result.tables.push(predictions_rows(tables::VOTES, &trained, &blocks));
    Ok(result)
}

#[cfg(test)]
mod tests {
    use arrow::{array::AsArray, datatypes::Int64Type};

    use super::*;
    use crate::stage::probe_data::{Heard, blobs, noise, unlabelled};

    fn config(k: &[usize]) -> KnnConfig {
        KnnConfig { k: k.to_vec(), temperature: 0.07 }
    }

    fn scored(trained: SplitFeatures, random_init: SplitFeatures) -> Scored<SplitFeatures> {
        Scored { trained, random_init, initial: None }
    }

    /// Weights that training started from are a control with their own predictions, and change nothing else.
    #[test]
    fn initial_weights_are_scored_beside_the_others() {
        let of = |initial| {
            let features = Scored { initial, ..scored(blobs(4, 400, 100), noise(4, 400, 100)) };
            super::evaluate(&config(&[5, 10]), 3, features, &Heard::default(), &|| true).unwrap()
        };
        let [without, with] = [of(None), of(Some(blobs(4, 400, 100)))];
        assert_eq!(with.get("knn/top1_initial"), with.get("knn/top1"));
        assert_eq!(without.get("knn/top1_initial"), None);
        for (metric, value) in &without.scores {
            assert_eq!(with.get(metric), Some(*value), "{metric}");
        }
        let names: Vec<_> = with.tables.iter().map(|(table, _)| table.name).collect();
        assert_eq!(names, ["initial_predictions", "predictions"]);
        assert_eq!(with.tables[0].1, with.tables[1].1.slice(0, 100), "those of the first k");
        let of_others = Scored { initial: Some(blobs(4, 400, 90)), ..scored(blobs(4, 400, 100), noise(4, 400, 100)) };
        let error = super::evaluate(&config(&[5]), 3, of_others, &Heard::default(), &|| true).unwrap_err();
        assert!(error.to_string().ends_with("are for different samples"), "{error}");
    }

    fn evaluate(k: &[usize], trained: SplitFeatures, control: SplitFeatures, progress: &Heard) -> Evaluation {
        super::evaluate(&config(k), 3, scored(trained, control), progress, &|| true).unwrap()
    }

    #[test]
    fn separable_features_score_and_both_controls_are_near_chance() {
        let progress = Heard::default();
        let result = evaluate(&[5, 10], blobs(4, 400, 100), noise(4, 400, 100), &progress);
        assert!(result.get("knn/top1").unwrap() > 0.95);
        assert_eq!(result.get("knn/top1"), result.get("knn/top1_k5"));
        assert!(result.get("knn/top1_k10").unwrap() > 0.95);
        for control in ["knn/top1_random_init", "knn/top1_shuffled_labels"] {
            assert!((0.1..0.45).contains(&result.get(control).unwrap()), "{control}: {:?}", result.scores);
        }
        assert_eq!(result.scores.len(), 5);
        assert!(progress.lines().is_empty());

        let (table, predictions) = &result.tables[0];
        assert_eq!((table.name, predictions.num_rows()), ("predictions", 200));
        let column = |name| predictions.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec();
        let right = column("label").iter().zip(column("predicted")).take(100).filter(|(l, p)| **l == *p).count();
        assert_eq!(right as f64 / 100.0, result.get("knn/top1").unwrap());
        assert_eq!(column("k")[..100], [5; 100]);
        assert_eq!(column("sample_id")[100..], (0..100).collect::<Vec<i64>>());
    }

    #[test]
    fn more_neighbours_than_samples_are_clamped_with_a_note() {
        let progress = Heard::default();
        let result = evaluate(&[200, 20, 200], blobs(2, 20, 10), noise(2, 20, 10), &progress);
        let text = "knn.k 200 exceeds the 20 labelled training samples; all of them vote";
        assert!(progress.lines().is_empty(), "it is noted once, beside the scores");
        assert_eq!(result.notes, [("clamped".to_owned(), text.to_owned())]);
        assert_eq!(result.get("knn/top1_k200"), result.get("knn/top1_k20"));
    }

    #[test]
    fn without_labels_there_are_no_scores_but_a_reason() {
        let progress = Heard::default();
        let result = evaluate(&[5], unlabelled(blobs(2, 20, 10)), noise(2, 20, 10), &progress);
        assert_eq!(result, Evaluation::skipped("the train split has no labels".into()));
        assert_eq!(progress.lines(), ["knn: skipped, the train split has no labels"]);
    }

    #[test]
    fn an_interruption_stops() {
        let error =
            super::evaluate(&config(&[5]), 3, scored(blobs(2, 20, 10), noise(2, 20, 10)), &Heard::default(), &|| false);
        assert!(error.unwrap_err().is::<Stopped>());
    }
}
