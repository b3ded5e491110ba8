//! `snclr compare`: every output format, the Parquet file that it writes, and errors that suggest the nearest run.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use common::{Scratch, text};
use expect_test::expect;
use serde_json::{Value, json};

fn write_run(root: &Path, run: &str, name: &str, created: u64, tau: f64, top1: f64) {
    let dir = root.join("results").join(run);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("spec.yaml"), format!("name: {name}\nseed: 1\nmethod:\n  tau: {tau}\n")).unwrap();
    let record = json!({ "run": run, "name": name, "created": created, "stages": [], "metrics": { "knn/top1": top1 }, "notes": [] });
    fs::write(dir.join("run.json"), record.to_string()).unwrap();
}

fn runs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write_run(root.path(), "warm-00000001", "warm", 1, 0.2, 0.5);
    write_run(root.path(), "cold-00000002", "cold", 2, 0.1, 0.75);
    root
}

fn compare(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snclr"));
    command.args(["compare", "--runs", root.to_str().unwrap()]).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn the_table_shows_what_differs_and_where_the_parquet_file_is() {
    let root = runs();
    let output = compare(root.path(), &["warm", "cold-0"]);
    let expected = "\
┌────────────┬───────────────┬───────────────┐
│            ┆ warm-00000001 ┆ cold-00000002 │
╞════════════╪═══════════════╪═══════════════╡
│ method.tau ┆           0.2 ┆           0.1 │
│ knn/top1   ┆       50.00 % ┆     * 75.00 % │
└────────────┴───────────────┴───────────────┘
* best
";
    assert_eq!(stdout(&output), expected);
    let path = root.path().join("results/comparison.parquet");
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("comparison written to {}\n", path.display()));
    assert_eq!(&fs::read(&path).unwrap()[..4], b"PAR1");
}

#[test]
fn a_comparison_that_cannot_be_kept_is_printed() {
    let root = runs();
    // A folder takes the file's place, so that the file cannot be written.
    let path = root.path().join("results/comparison.parquet");
    fs::create_dir(&path).unwrap();
    let output = compare(root.path(), &["warm", "cold"]);
    assert!(stdout(&output).contains("│ knn/top1   ┆       50.00 % ┆     * 75.00 % │"));
    let told = String::from_utf8_lossy(&output.stderr);
    let begin = format!("note: the comparison was not saved as Parquet: writing {}: ", path.display());
    assert!(told.starts_with(&begin) && told.ends_with("; `--out FILE` saves it elsewhere\n"), "{told}");
}

#[test]
fn formats_for_programs_and_documents() {
    let root = runs();
    let out = root.path().join("a/b.parquet");
    let with = |format: &str| compare(root.path(), &["warm", "cold", format, "--out", out.to_str().unwrap()]);
    let value: Value = serde_json::from_str(stdout(&with("--json"))).unwrap();
    assert_eq!(value["scores"][0]["best"], json!(["cold-00000002"]));
    assert_eq!(
        stdout(&with("--csv")),
        "kind,key,warm-00000001,cold-00000002\nspec,method.tau,0.2,0.1\nscore,knn/top1,0.5,0.75\n"
    );
    expect![[r#"
        |  | warm-00000001 | cold-00000002 |
        |---|---:|---:|
        | method.tau | 0.2 | 0.1 |
        | knn/top1 | 50.00 % | **75.00 %** |
    "#]]
    .assert_eq(stdout(&with("--md")));
    assert!(out.exists() && !root.path().join("results/comparison.parquet").exists());
    assert_eq!(compare(root.path(), &["warm", "--csv", "--md"]).status.code(), Some(2));
}

#[test]
fn runs_that_differ_in_their_seed_alone_are_one_column() {
    let root = tempfile::tempdir().unwrap();
    for (i, (tau, top1)) in [(0.1, 0.5), (0.2, 0.75), (0.1, 0.6)].into_iter().enumerate() {
        let run = format!("r{i}");
        write_run(root.path(), &run, "r", i as u64, tau, top1);
        let spec = format!("name: {run}\nseed: {i}\nmethod:\n  tau: {tau}\n");
        fs::write(root.path().join("results").join(run).join("spec.yaml"), spec).unwrap();
    }
    let all = ["r0", "r1", "r2"];
    let expected = "\
┌────────────┬────────────────┬───────────┐
│            ┆       r0 (n=2) ┆        r1 │
╞════════════╪════════════════╪═══════════╡
│ seed       ┆          [0,2] ┆         1 │
│ method.tau ┆            0.1 ┆       0.2 │
│ knn/top1   ┆ 55.00 ± 7.07 % ┆ * 75.00 % │
└────────────┴────────────────┴───────────┘
* best
± sample standard deviation over seeds
";
    assert_eq!(stdout(&compare(root.path(), &all)), expected);
    let with = |option| [&all[..], &[option]].concat();
    assert_eq!(
        stdout(&compare(root.path(), &with("--csv"))),
        "kind,key,r0 (n=2),r1\nspec,seed,\"[0,2]\",1\nspec,method.tau,0.1,0.2\nscore,knn/top1,0.55,0.75\n\
         deviation,knn/top1,0.07071067811865474,\nn,knn/top1,2,1\n"
    );
    let value: Value = serde_json::from_str(stdout(&compare(root.path(), &with("--json")))).unwrap();
    assert_eq!(value["groups"][0], json!({"label": "r0 (n=2)", "runs": ["r0", "r2"], "seeds": [0, 2]}));
    assert_eq!(value["scores"][0]["groups"]["r0 (n=2)"]["values"], json!({"r0": 0.5, "r2": 0.6}));
    expect![[r#"
        |  | r0 (n=2) | r1 |
        |---|---:|---:|
        | seed | [0,2] | 1 |
        | method.tau | 0.1 | 0.2 |
        | knn/top1 | 55.00 ± 7.07 % | **75.00 %** |

        ± sample standard deviation over seeds
    "#]]
    .assert_eq(stdout(&compare(root.path(), &with("--md"))));
    expect![[r#"
        ┌────────────┬─────────┬───────────┬─────────┐
        │            ┆      r0 ┆        r1 ┆      r2 │
        ╞════════════╪═════════╪═══════════╪═════════╡
        │ seed       ┆       0 ┆         1 ┆       2 │
        │ method.tau ┆     0.1 ┆       0.2 ┆     0.1 │
        │ knn/top1   ┆ 50.00 % ┆ * 75.00 % ┆ 60.00 % │
        └────────────┴─────────┴───────────┴─────────┘
        * best
    "#]]
    .assert_eq(stdout(&compare(root.path(), &with("--no-group"))));

    let other = compare(root.path(), &["r0", "r1", "--baseline", "r2"]);
    assert_eq!(String::from_utf8_lossy(&other.stderr), "error: --baseline r2 is not among the compared runs\n");
    let changed = compare(root.path(), &["r0", "--sweep", "seed=1,2"]);
    let told = "error: --method, --set and --sweep change a spec: give the path of one\n";
    assert_eq!(String::from_utf8_lossy(&changed.stderr), told);
}

#[test]
fn an_unknown_run_is_an_error_that_names_the_nearest() {
    let root = runs();
    let output = compare(root.path(), &["warm", "clod"]);
    assert_eq!(output.status.code(), Some(1));
    let results = root.path().join("results");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "error: \"clod\" is not the name of a run or its beginning, the name of a spec, or a path (runs in {}); did you mean \"cold\"?\n",
            results.display()
        )
    );
    assert!(output.stdout.is_empty() && !results.join("comparison.parquet").exists());
}

#[test]
fn other_test_images_and_other_precisions_are_said_and_the_former_leave_no_best() {
    let scratch = Scratch::new();
    let run = |set: &str| text(&scratch.json(&format!("run tiny.yaml --json {set}"))["run"]);
    let (base, narrow) = (run(""), run("--set precision=bf16"));
    let other = run("--set data.test_images=20 --set data.seed=3");
    let marked = |arguments: &str| {
        let json = scratch.json(&format!("compare {arguments} --json"));
        let scores = json["scores"].as_array().expect("scores").iter();
        let marked = scores.filter(|row| row["best"] != json!([])).map(|row| text(&row["metric"]));
        let kind = |metric: String| metric.split('/').next().expect("a part").to_owned();
        let kinds: std::collections::BTreeSet<String> = marked.map(kind).collect();
        let notes = json["notes"].as_array().expect("notes").iter().map(text).collect::<Vec<_>>();
        (kinds.into_iter().collect::<Vec<_>>(), notes)
    };

    let (kinds, notes) = marked(&format!("{base} {narrow}"));
    assert_eq!(kinds, ["knn", "linear", "train"]);
    let [note] = &notes[..] else { panic!("{notes:?}") };
    assert!(note.starts_with("pretrain ran differently: cpu in bf16 ("), "{note}");
    assert!(note.ends_with(&format!("): {narrow}; cpu in f32: {base}")), "{note}");

    let (kinds, notes) = marked(&format!("{base} {other}"));
    assert_eq!(kinds, ["train"]);
    let told = format!("no score is marked as best: the test images of {other} are not all those of {base}");
    assert_eq!(notes, std::slice::from_ref(&told));
    let shown = scratch.run(&format!("compare {base} {other}"));
    assert!(shown.stdout.contains(&format!("* best\n{told}\n")), "{}", shown.stdout);
    let page = scratch.run(&format!("report {base} {other} -o page.html"));
    assert_eq!(page.code, 0, "{}", page.stderr);
    assert!(fs::read_to_string(scratch.path("page.html")).expect("the page").contains(&told));

    // A folder in place of the file cannot be replaced. This stands for a runs folder that is read-only.
    let file = scratch.path("runs/results/comparison.parquet");
    fs::remove_file(&file).expect("the comparison");
    fs::create_dir_all(file.join("in the way")).expect("a folder");
    let shown = scratch.run(&format!("compare {base} {narrow}"));
    assert!(shown.code == 0 && shown.stdout.contains("* best\n"), "{shown:?}");
    let told = "note: the comparison was not saved as Parquet: writing runs/results/comparison.parquet: ";
    assert!(
        shown.stderr.starts_with(told) && shown.stderr.ends_with("; `--out FILE` saves it elsewhere\n"),
        "{shown:?}"
    );
    let asked = scratch.run(&format!("compare {base} {narrow} --out runs/results/comparison.parquet"));
    assert_eq!(asked.code, 1, "{asked:?}");
}
