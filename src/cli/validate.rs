//! `snclr validate`: checks specs and prints every error at once, for people or as JSON.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use serde_json::{Value, json};

use super::changes::Specs;
use crate::spec::{self, Loaded, Place, Points, SpecError, SpecErrors};

/// Exit code of an invalid spec.
const INVALID: u8 = 2;

/// Checks specs and prints every error at once.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub specs: Specs,
    /// Print every value with its source, including defaults
    #[arg(long)]
    pub resolved: bool,
    /// Print one JSON object per spec on stdout
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// When stdout cannot be written; invalid specs are exit code 2.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut is_valid = true;
    let mut stdout = io::stdout().lock();
    for path in &args.specs.specs {
        let result = args.specs.changes.load(path);
        is_valid &= result.is_ok();
        if args.json {
            let mut report = report(path, result.as_ref().err());
            if let (true, Ok(points)) = (args.resolved, &result) {
                add_resolved(&mut report, points);
            }
            writeln!(stdout, "{report}").context("cannot write to stdout")?;
            continue;
        }
        match result {
            Ok(points) if args.resolved => write!(stdout, "{}", resolved(&points)).context("cannot write to stdout")?,
            Ok(points) => {
                let count = if points.is_sweep { format!(", {} points", points.points.len()) } else { String::new() };
                writeln!(stdout, "{}: ok{count}", path.display()).context("cannot write to stdout")?;
            }
            // A closed stderr is no reason to panic.
            Err(errors) => drop(writeln!(std::io::stderr(), "{errors}")),
        }
    }
    Ok(if is_valid { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
}

/// The resolved spec of each point as a YAML document.
fn resolved(points: &Points) -> String {
    let all = &points.points;
    let head = |i: usize| match points.is_sweep {
        true => format!("---\n# point {} of {}: {}\n", i + 1, all.len(), all[i].label()),
        false => String::new(),
    };
    all.iter().enumerate().map(|(i, point)| head(i) + &spec::resolved_text(&point.loaded)).collect()
}

/// Adds `resolved`, a list of key, value and source; for a sweep it adds `points`, each with its values and such a list.
fn add_resolved(report: &mut Value, points: &Points) {
    let list = |loaded: &Loaded| -> Value {
        let leaves = spec::leaves(loaded).into_iter();
        leaves.map(|leaf| json!({"key": leaf.key, "value": leaf.value, "source": leaf.source})).collect()
    };
    match &points.points[..] {
        [point] if !points.is_sweep => report["resolved"] = list(&point.loaded),
        points => {
            let point = |point: &spec::Point| json!({"values": point.object(), "resolved": list(&point.loaded)});
            report["points"] = points.iter().map(point).collect();
        }
    }
}

/// The JSON object about one spec.
fn report(path: &Path, errors: Option<&SpecErrors>) -> Value {
    let list: Vec<Value> = errors.iter().flat_map(|e| &e.errors).map(|error| entry(path, error)).collect();
    json!({"spec": path.display().to_string(), "valid": errors.is_none(), "errors": list})
}

/// The JSON object of one error. For an error in `--set`, `--method` or `--sweep`, `override` holds the text of the option, and
/// `line` and `column` are null.
fn entry(path: &Path, error: &SpecError) -> Value {
    let (line, column, text) = match &error.place {
        Some(Place::File { line, column, .. }) => (Some(line), Some(column), None),
        Some(Place::Set(text) | Place::Method(text) | Place::Sweep(text)) => (None, None, Some(&**text)),
        None => (None, None, None),
    };
    let file = match &error.place {
        Some(Place::File { file, .. }) => file,
        _ => path,
    };
    json!({
        "file": file.display().to_string(),
        "line": line,
        "column": column,
        "override": text,
        "key": error.key,
        "message": error.problem.to_string(),
        "found": error.problem.found(),
        "allowed": error.problem.allowed(),
        "suggestion": error.problem.suggestion(),
        "help": error.problem.help(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::changes::Changes;

    #[test]
    fn json_has_every_error_with_its_place() {
        let path = Path::new("a.yaml");
        let text = "name: a\nepochs: 0\n";
        let errors = spec::load_text(path, text, &["seed=x".to_owned()]).unwrap_err();
        let report = report(path, Some(&errors));
        assert_eq!(report["spec"], "a.yaml");
        assert_eq!(report["valid"], false);
        let list = report["errors"].as_array().unwrap();
        let find = |key: &str| list.iter().find(|entry| entry["key"] == key).unwrap();
        assert_eq!(
            *find("epochs"),
            json!({
                "file": "a.yaml", "line": 2, "column": 9, "override": null, "key": "epochs", "message": "out of range",
                "found": "0", "allowed": ["a whole number, at least 1"], "suggestion": "1",
                "help": "the nearest allowed value is 1",
            })
        );
        assert_eq!(
            *find("seed"),
            json!({
                "file": "a.yaml", "line": null, "column": null, "override": "seed=x", "key": "seed",
                "message": "wrong type", "found": "\"x\"", "allowed": ["a whole number, at least 0"],
                "suggestion": null, "help": null,
            })
        );
        assert_eq!(find("encoder")["message"], "required key is missing");
    }

    #[test]
    fn exit_codes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, "name: a\n").unwrap();
        let run_on = |path: &str| {
            run(Args {
                specs: Specs { specs: vec![path.into()], changes: Changes::default() },
                resolved: false,
                json: true,
            })
            .map(|code| code == ExitCode::SUCCESS)
            .unwrap()
        };
        assert!(run_on(concat!(env!("CARGO_MANIFEST_DIR"), "/specs/quickstart.yaml")));
        assert!(!run_on(path.to_str().unwrap()));
        assert!(!run_on("no such file"));
    }
}
