//! `snclr schema`: prints the JSON Schema of specs, or checks that a copy is up to date.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;

use crate::spec;

/// Prints the JSON Schema of specs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare the schema with this file instead, and end with exit code 1 if they differ
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
    /// Print the reference of all keys as Markdown instead
    #[arg(long, conflicts_with = "check")]
    pub markdown: bool,
}

/// Runs the command.
///
/// # Errors
/// When the copy differs or cannot be read, or stdout cannot be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.markdown {
        io::stdout().write_all(spec::reference().as_bytes()).context("cannot write the reference to stdout")?;
        return Ok(ExitCode::SUCCESS);
    }
    let current = spec::schema_text();
    let Some(path) = args.check else {
        io::stdout().write_all(current.as_bytes()).context("cannot write the schema to stdout")?;
        return Ok(ExitCode::SUCCESS);
    };
    let file = path.display();
    let kept = fs::read_to_string(&path).with_context(|| format!("cannot read the schema {file}"))?;
    if let Some(line) = first_difference(&kept, &current) {
        anyhow::bail!(
            "{file}:{line}: the schema is not that of the program\n  help:    run `snclr schema > {file}` and commit the result"
        );
    }
    println!("{file}: up to date");
    Ok(ExitCode::SUCCESS)
}

/// Number of the first line, from 1, in which the texts differ. Line ends do not count: a checkout may change them.
fn first_difference(kept: &str, current: &str) -> Option<usize> {
    let (mut kept, mut current) = (kept.lines(), current.lines());
    let mut line = 1;
    loop {
        match (kept.next(), current.next()) {
            (None, None) => return None,
            (a, b) if a == b => line += 1,
            _ => return Some(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_with_its_line() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\r\nb\r\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nx\n", "a\nb\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    }

    #[test]
    fn drift_names_the_file_the_line_and_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old.json");
        fs::write(&path, spec::schema_text().replacen("snclr experiment", "old", 1)).unwrap();
        let error = run(Args { check: Some(path.clone()), markdown: false }).unwrap_err();
        let file = path.display();
        assert_eq!(
            error.to_string(),
            format!(
                "{file}:3: the schema is not that of the program\n  help:    run `snclr schema > {file}` and commit the result"
            )
        );
    }
}
