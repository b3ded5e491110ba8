//! The committed specs load and have the required content, and the committed schema matches the types.

use std::{
    fs,
    path::{Path, PathBuf},
};

use snclr::{
    dataset::DataConfig,
    method::MethodConfig,
    spec::{self, Changes, Loaded},
    train::OptimizerConfig,
};

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The paths of all specs, including those in folders.
fn specs() -> Vec<PathBuf> {
    let files =
        walkdir::WalkDir::new(root("specs")).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

/// The experiment of a spec; for a sweep, the first point's.
fn first_point(path: &Path) -> Loaded {
    let points = spec::load_points(path, &Changes::default()).unwrap_or_else(|errors| panic!("{errors}"));
    points.points.into_iter().next().expect("never empty").loaded
}

fn load(name: &str, overrides: &[&str]) -> Loaded {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    spec::load(&root("specs").join(name), &overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_spec_loads_and_opens_with_its_facts() {
    assert!(specs().len() >= 20);
    for path in specs() {
        let loaded = first_point(&path);
        // The name of a spec in a folder starts with the folder's name.
        let inside = path.strip_prefix(root("specs")).unwrap().with_extension("");
        let parts: Vec<&str> = inside.iter().map(|part| part.to_str().unwrap()).collect();
        assert_eq!(loaded.experiment.name, parts.join("-"));
        let text = fs::read_to_string(&path).unwrap();
        let schema =
            format!("# yaml-language-server: $schema={}schemas/experiment.schema.json", "../".repeat(parts.len()));
        assert_eq!(text.lines().next(), Some(schema.as_str()), "{path:?}");
        for fact in ["question", "source", "command", "expected", "time", "hardware"] {
            assert!(text.contains(&format!("\n# {fact} ")), "{path:?} does not say its {fact}");
        }
    }
}

#[test]
fn the_committed_schema_is_the_one_of_the_types() {
    let kept = fs::read_to_string(root("schemas/experiment.schema.json")).unwrap().replace("\r\n", "\n");
    assert!(
        kept == spec::schema_text(),
        "schemas/experiment.schema.json is out of date: run `snclr schema > schemas/experiment.schema.json`"
    );
}

#[test]
fn the_committed_reference_is_the_one_of_the_schema() {
    let kept = fs::read_to_string(root("docs/reference.md")).unwrap().replace("\r\n", "\n");
    assert!(
        kept == spec::reference(),
        "docs/reference.md is out of date: run `snclr schema --markdown > docs/reference.md`"
    );
}

#[test]
fn the_large_spec_has_the_papers_scale() {
    let experiment = load("resnet50.yaml", &[]).experiment;
    let MethodConfig::Snclr(method) = &experiment.method else { panic!("the method is SNCLR") };
    assert_eq!((method.k, method.queue_length, method.tau, method.gamma), (30, 128_000, 0.2, 1.0));
    assert_eq!((experiment.batch_size, experiment.epochs, experiment.augmentations.size), (4096, 300, 224));
    assert!(
        matches!(&experiment.optimizer, OptimizerConfig::Lars(lars) if lars.base_lr == 0.3 && lars.weight_decay == 1e-6)
    );
    let [first, second] = [&experiment.augmentations.view1, &experiment.augmentations.view2];
    assert!(first.solarize.is_none() && first.gaussian_blur.as_ref().unwrap().p == 1.0);
    assert!(second.solarize.as_ref().unwrap().p == 0.2 && second.gaussian_blur.as_ref().unwrap().p == 0.1);
}

#[test]
fn overrides_reach_paths_lists_and_missing_keys() {
    let overrides =
        ["data.train=[a.parquet, b.parquet]", "data.test=c.parquet", "knn.k=[5]", "health.every=3", "seed=7"];
    let loaded = load("cifar10-small.yaml", &overrides);
    let DataConfig::Parquet(data) = &loaded.experiment.data else { panic!("not parquet") };
    assert_eq!(data.train.as_slice(), [PathBuf::from("a.parquet"), PathBuf::from("b.parquet")]);
    assert_eq!(loaded.experiment.knn.k, [5]);
    assert_eq!(loaded.experiment.health.every, 3);
    assert_eq!(loaded.value()["seed"], 7);
}

#[test]
fn the_resolved_value_has_defaults_and_plain_digits_and_loads_again() {
    for path in specs() {
        let loaded = first_point(&path);
        assert_eq!(loaded.value()["precision"], "f32");
        if loaded.value()["method"]["name"] == "snclr" {
            assert!(loaded.value()["method"]["attention"].is_string(), "{}", path.display());
        }
        // A number such as 0.1 is written with its own digits, not with those of the nearest f32.
        assert_eq!(loaded.value()["augmentations"]["view1"]["color_jitter"]["hue"].to_string().len(), 3);
        let text = serde_yaml::to_string(&loaded.value()).unwrap();
        let again = spec::load_text(&path, &text, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(again.value(), loaded.value());
        assert_eq!(again.experiment, loaded.experiment);
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let loaded = load("quickstart.yaml", &["method.queue_length=2e3", "seed=3.0", "method.tau=1"]);
    let MethodConfig::Snclr(method) = &loaded.experiment.method else { panic!("the method is SNCLR") };
    assert_eq!(method.queue_length, 2000);
    assert_eq!(loaded.value()["seed"].to_string(), "3");
    assert_eq!(loaded.value()["method"]["tau"].to_string(), "1.0");
}

#[test]
fn what_is_semantic() {
    let full = load("cifar10-small.yaml", &[]);
    let semantic = spec::semantic(full.value());
    for gone in ["/name", "/description", "/data/train", "/data/test"] {
        assert!(full.value().pointer(gone).is_some() && semantic.pointer(gone).is_none(), "{gone}");
    }
    for kept in ["/method/tau", "/data/format", "/data/on_error", "/seed", "/knn/k", "/encoder/arch"] {
        assert!(semantic.pointer(kept).is_some(), "{kept}");
        assert_eq!(semantic.pointer(kept), full.value().pointer(kept));
    }
    let moved = load("cifar10-small.yaml", &["data.train=/elsewhere/x.parquet", "name=other"]);
    assert_eq!(spec::semantic(moved.value()), semantic);
    let warmer = load("cifar10-small.yaml", &["method.tau=0.3"]);
    assert_ne!(spec::semantic(warmer.value()), semantic);
}
