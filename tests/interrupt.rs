//! Runs that end early. After Ctrl-C (a checkpoint, exit code 130) the same command resumes; after divergence (exit code 4) the
//! program says what to try. Both kinds of runs stay listed.

mod common;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{Scratch, signal, text};
use serde_json::{Value, json};

/// The only run that `snclr runs` lists.
fn only_run(scratch: &Scratch) -> Value {
    let runs = scratch.json("runs --json");
    let [run] = runs["runs"].as_array().expect("runs").as_slice() else { panic!("{runs}") };
    run.clone()
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --runs whole --set epochs=60");
    let mut child =
        scratch.command("run tiny.yaml --set epochs=60").stderr(Stdio::piped()).spawn().expect("the program");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    // Blocks until the line that announces the training.
    lines
        .by_ref()
        .find(|line| line.as_ref().is_ok_and(|l| l.contains("learning rate")))
        .expect("training")
        .expect("a line");
    signal(child.id(), "INT");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest:?}");
    let last = rest.last().expect("a last line");
    let step = last.strip_prefix("interrupted in pretrain after step ");
    let step = step.and_then(|rest| rest.strip_suffix("; run the same command again to go on from there"));
    let step: u64 = step.and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{last}"));

    let listed = only_run(&scratch);
    let run = text(&listed["run"]);
    assert_eq!((&listed["state"], &listed["stage"]), (&json!("interrupted"), &json!("pretrain")));
    assert_eq!((&listed["steps"], &listed["why"], &listed["metrics"]), (&json!(step), &Value::Null, &json!({})));
    let plan = scratch.run("plan tiny.yaml --set epochs=60");
    let goes_on = format!(" no artifact yet; resumes after step {step}\n");
    assert!(
        plan.stdout.lines().nth(1).is_some_and(|line| goes_on.ends_with(&format!("{}\n", &line[37..]))),
        "{}",
        plan.stdout
    );
    let plan = scratch.json("plan tiny.yaml --set epochs=60 --json");
    assert_eq!(
        (&plan["stages"][1]["resumes_after"], &plan["stages"][2]["resumes_after"]),
        (&json!(step), &Value::Null)
    );
    let explained = scratch.run("explain tiny.yaml --set epochs=60").stdout;
    assert!(
        explained.contains(&format!("pretrain           runs; resumes after step {step}; no artifact yet\n")),
        "{explained}"
    );

    let steps = if step == 1 { "1 step".to_owned() } else { format!("{step} steps") };
    let told = format!("note: {run} has no results: interrupted at pretrain after {steps}\n");
    let report = scratch.run("report tiny.yaml");
    assert_eq!((report.code, &report.stderr), (0, &told));
    assert_eq!(report.stdout, format!("runs/unfinished/{run}/report.html\n"));
    let events = scratch.run("tensorboard tiny");
    assert_eq!((events.code, &events.stderr), (0, &told));
    let bytes = std::fs::read(scratch.path(events.stdout.trim_end())).expect("events");
    assert_eq!(bytes.windows(10).filter(|part| part == b"train/loss").count() as u64, step);
    let refused = scratch.run("compare tiny.yaml");
    let told =
        format!("error: run {run} has no results: interrupted at pretrain; `snclr report {run}` shows its curves\n");
    assert_eq!((refused.code, refused.stderr), (1, told));

    let resumed = scratch.run("run tiny.yaml --set epochs=60");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("resuming after step"), "{}", resumed.stderr);
    assert_eq!(scratch.contents("runs"), scratch.contents("whole"));
    assert_eq!(only_run(&scratch)["state"], "finished");
    assert_eq!(std::fs::read_dir(scratch.path("runs/unfinished")).expect("a folder").count(), 0);
}

#[test]
fn a_run_at_work_is_listed_and_a_killed_one_counts_as_interrupted() {
    let scratch = Scratch::new();
    let mut command = scratch.command("run tiny.yaml --set epochs=2000 --checkpoint-every 0");
    let mut child = command.stderr(Stdio::null()).spawn().expect("the program");
    let steps = |run: &Value| run["steps"].as_u64().unwrap_or(0);
    let running = loop {
        let runs = scratch.json("runs --json");
        match runs["runs"].as_array().expect("runs").first() {
            Some(run) if steps(run) > 1 => break run.clone(),
            _ => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    assert_eq!((&running["state"], &running["stage"]), (&json!("running"), &json!("pretrain")));
    child.kill().expect("SIGKILL");
    child.wait().expect("an end");
    let killed = only_run(&scratch);
    assert_eq!((&killed["state"], &killed["run"]), (&json!("interrupted"), &running["run"]));
    assert!(steps(&killed) >= steps(&running), "{killed}");
    let plan = scratch.json("plan tiny.yaml --set epochs=2000 --json");
    assert!(plan["stages"][1]["resumes_after"].as_u64() > Some(0), "{plan}");
}

#[test]
fn divergence_says_what_to_try() {
    let scratch = Scratch::new();
    let finished = scratch.run("run tiny.yaml --set optimizer.base_lr=1e30 --set schedule.warmup_epochs=0");
    assert_eq!(finished.code, 4, "{}", finished.stderr);
    assert!(finished.stderr.contains("training diverged"), "{}", finished.stderr);
    assert!(finished.stderr.contains("what to try: a lower optimizer.base_lr"), "{}", finished.stderr);

    let listed = only_run(&scratch);
    let (run, steps) = (text(&listed["run"]), listed["steps"].as_u64().expect("steps"));
    assert_eq!((&listed["state"], &listed["stage"]), (&json!("diverged"), &json!("pretrain")));
    let first = format!("training diverged: the loss is NaN at step {} (learning rate ", steps - 1);
    assert!(text(&listed["why"]).starts_with(&first), "{listed}");
    let table = scratch.run("runs").stdout;
    let counted = if steps == 1 { "1 step".to_owned() } else { format!("{steps} steps") };
    assert!(table.contains(&format!("┆ diverged at pretrain after {counted} ┆")), "{table}");
    assert!(table.lines().last().is_some_and(|line| line.starts_with(&format!("{run}: {first}"))), "{table}");
    let report = scratch.run(&format!("report {run}"));
    assert_eq!(report.stdout, format!("runs/unfinished/{run}/report.html\n"));
    let page = std::fs::read_to_string(scratch.path(report.stdout.trim_end())).expect("the page");
    assert!(page.contains("what to try: a lower optimizer.base_lr") && page.contains("\"id\":\"loss\""));

    // If the page cannot be written, the error says how to choose another file.
    let page = scratch.path(report.stdout.trim_end());
    std::fs::remove_file(&page).expect("the page");
    std::fs::create_dir(&page).expect("a folder in its place");
    let refused = scratch.run(&format!("report {run}"));
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.ends_with("; use `--output FILE.html` to write it elsewhere\n"), "{}", refused.stderr);

    // The same spec with a sane learning rate is another run. The diverged run stays listed.
    assert_eq!(scratch.run("run tiny.yaml").code, 0);
    let runs = scratch.json("runs --json");
    let states = runs["runs"].as_array().expect("runs").iter().map(|run| text(&run["state"]));
    assert_eq!(states.collect::<BTreeSet<_>>(), ["diverged", "finished"].map(str::to_owned).into());
    assert_eq!(scratch.run("audit tiny.yaml").stderr, "");
}

#[test]
fn a_training_that_learns_nothing_is_warned_of_once_and_its_run_keeps_the_warning() {
    const WARNING: &str = "the loss tells nothing: at step ";
    // At this temperature all candidates are about equally likely.
    let args = "run tiny.yaml --method infonce --set method.tau=1000 --set epochs=40";
    let scratch = Scratch::new();
    let mut child = scratch.command(args).stderr(Stdio::piped()).spawn().expect("the program");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    lines.find(|line| line.contains(WARNING)).expect("a warning");
    signal(child.id(), "INT");
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest:?}");

    let resumed = scratch.run(args);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("resuming after step") && !resumed.stderr.contains(WARNING), "{}", resumed.stderr);
    assert!(resumed.stdout.contains(&format!("warning: pretrain: {WARNING}")), "{}", resumed.stdout);
    let [again, whole] = ["runs", "whole"].map(|runs| scratch.json(&format!("{args} --json --runs {runs}")));
    assert_eq!(again["notes"], whole["notes"], "the interrupted run is warned of as the other one is");
    let [note] = again["notes"].as_array().expect("notes").as_slice() else { panic!("{again}") };
    assert!(text(note).starts_with(&format!("pretrain: {WARNING}")), "{note}");
    let report = scratch.run("report tiny");
    let page = std::fs::read_to_string(scratch.path(report.stdout.trim_end())).expect("the page");
    assert!(page.contains(WARNING));
}
