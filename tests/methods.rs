//! Every method runs through all stages, and records the positives that it used in the same columns.

mod common;

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Float64Type, Int64Type},
};
use common::{Finished, METHODS, Scratch, tiny_with};
use expect_test::expect;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A table of the only pretrain artifact in `runs`.
fn table(scratch: &Scratch, runs: &str, name: &str) -> RecordBatch {
    let artifacts = std::fs::read_dir(scratch.path(runs).join("store/pretrain")).expect("artifacts");
    let artifact = artifacts.map(|entry| entry.expect("an entry").path()).next().expect("one");
    let file = std::fs::File::open(artifact.join(format!("{name}.parquet"))).expect("the table");
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
    let schema = builder.schema().clone();
    let batches: Vec<RecordBatch> = builder.build().expect("a reader").map(|batch| batch.expect("a batch")).collect();
    arrow::compute::concat_batches(&schema, &batches).expect("one table")
}

/// The last value of a column that is not null.
fn last(table: &RecordBatch, name: &str) -> Option<f64> {
    table.column_by_name(name).expect(name).as_primitive::<Float64Type>().iter().flatten().last()
}

#[test]
fn every_method_runs_and_tells_its_positives_in_one_form() {
    let scratch = Scratch::new();
    let mut schemas = Vec::new();
    for method in METHODS {
        let name = method.0;
        scratch.write("spec.yaml", tiny_with(method, true));
        let json = scratch.json(&format!("run spec.yaml --runs {name} --json"));
        let score = json["metrics"]["knn/top1"].as_f64().expect("a score");
        assert!((0.0..=1.0).contains(&score), "{name}");
        // Measured after the second and the fourth of five epochs.
        let online = json["metrics"]["train/knn_top1"].as_f64().expect("a score during training");
        assert!((0.0..=1.0).contains(&online), "{name}");
        let table = table(&scratch, name, "positiveness");
        assert!(table.num_rows() > 1, "{name}");
        let value = |column| last(&table, column);
        match name {
            "infonce" | "simclr" => {
                assert_eq!((value("positives"), value("effective_positives")), (Some(1.0), Some(1.0)), "{name}");
                assert_eq!((value("queue_age"), value("churn")), (None, None), "{name}");
            }
            "nnclr" => assert_eq!((value("positives"), value("own_share")), (Some(1.0), Some(0.0))),
            "swav" => {
                let effective = value("effective_positives").unwrap();
                assert!((1.0..=16.0).contains(&effective), "{effective}");
                assert!(value("churn").is_some() && value("queue_age").is_none());
            }
            _ => {
                // With gamma 1 the image's own view has the same weight as all K neighbours together.
                assert_eq!(value("positives"), Some(4.0), "{name}");
                assert!((value("own_share").unwrap() - 0.5).abs() < 1e-6, "{name}");
                assert!(value("queue_age").unwrap() >= 1.0, "{name}");
                assert!((0.0..=1.0).contains(&value("churn").unwrap()), "{name}");
            }
        }
        assert!((0.0..=1.0).contains(&value("same_class_mass").unwrap()), "{name}");
        schemas.push(table.schema());
    }
    assert!(schemas.iter().all(|schema| *schema == schemas[0]));
}

#[test]
fn neighbours_of_eight_images_are_told_every_time_they_are_trained_on() {
    let scratch = Scratch::new();
    for (method, k) in [(0, 3), (1, 0), (3, 1), (4, 0)] {
        let name = METHODS[method].0;
        scratch.write("spec.yaml", tiny_with(METHODS[method], false));
        scratch.json(&format!("run spec.yaml --runs {name} --json"));
        let table = table(&scratch, name, "neighbours");
        // Eight watched images with k neighbours, in each of five epochs.
        assert_eq!(table.num_rows(), 5 * 8 * k, "{name}");
        let integers = |column: &str| table.column_by_name(column).expect(column).as_primitive::<Int64Type>().clone();
        let (queries, samples, ranks) = (integers("query_sample"), integers("neighbour_sample"), integers("rank"));
        assert!(
            queries.iter().zip(&samples).all(|(query, sample)| query != sample),
            "{name}: an image is its own neighbour"
        );
        assert!(ranks.values().iter().enumerate().all(|(row, rank)| *rank == (row % k) as i64), "{name}");
        let weights = table.column_by_name("weight").expect("weights").as_primitive::<Float64Type>().clone();
        let totals = weights.values().chunks(k.max(1)).map(|weights| weights.iter().sum::<f64>());
        assert!(
            totals.into_iter().all(|total| (total - 1.0).abs() < 1e-5),
            "{name}: with gamma 1 the weights add up to 1"
        );
    }
}

#[test]
fn what_a_method_cannot_have_is_refused_with_a_reason() {
    let scratch = Scratch::new();
    let simclr = METHODS[2];
    scratch.write("a.yaml", tiny_with((simclr.0, simclr.1, true, ""), false));
    let finished = scratch.run("run a.yaml");
    assert_eq!(finished.code, 2);
    expect![[r#"
        error: a.yaml:16:12: predictor: simclr has no predictor: it compares projections
          found:   predictor: a section with the keys layers, hidden, output, method.name: "simclr"
          allowed: no `predictor` with simclr and swav
          help:    remove the section `predictor`

        a.yaml: 1 error
    "#]]
    .assert_eq(&finished.stderr);
    let crops = "augmentations.local_crops={count: 1, size: 8, view: {random_resized_crop: {}}}";
    scratch.write("b.yaml", tiny_with(simclr, false));
    let output = scratch.command("validate b.yaml --set").arg(crops).output().expect("the program");
    expect![[r#"
        error: --set augmentations.local_crops={count: 1, size: 8, view: {random_resized_crop: {}}}: augmentations.local_crops: SimCLR's loss is defined for two views of each image
          found:   augmentations.local_crops: a section with the keys count, size, view, method.name: "simclr"
          allowed: no `local_crops` with simclr
          help:    remove the section `augmentations.local_crops`, or use another method, such as infonce

        b.yaml: 1 error
    "#]]
    .assert_eq(&Finished::of(output).stderr);
}

/// A projection of one number has an effective rank of 1, which counts as a collapse.
#[test]
fn a_collapse_stops_training_at_its_third_row_unless_the_spec_says_otherwise() {
    let scratch = Scratch::new();
    let line = "run tiny.yaml --set projector.output=1 --set predictor.output=1 --set health.every=4";
    let stopped = scratch.run(line);
    assert_eq!(stopped.code, 4, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("the embeddings collapsed: at step 8 their spread is "), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("their effective rank 1.00\n"), "{}", stopped.stderr);
    let finished = scratch.run(&format!("{line} --set health.stop_on_collapse=false"));
    assert_eq!(finished.code, 0, "{}", finished.stderr);
}
