//! `snclr gc`: lists what no kept run needs, and removes it when told to.

use std::{collections::BTreeSet, io::Write, process::ExitCode, time::Duration};

use super::{
    Global,
    show::{self, count},
};
use crate::{
    artifact::{Cleaning, Item, Keep, Listed, Store},
    report::{FindError, Runs},
};

/// List what no kept run needs; with --yes, remove it
///
/// Every finished run is kept unless --keep names those to keep. Artifacts that a kept run shares with others stay, and so does
/// everything that a run at work counts on. Runs that ended without results are listed with their checkpoints, and go, unless
/// --keep names them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs to keep, all others go: a run's name or its beginning, its folder, or a spec's name or path (its newest run)
    #[arg(long, value_name = "RUN", num_args = 1..)]
    pub keep: Vec<String>,
    /// Remove only what has not changed for so many days
    #[arg(long, value_name = "DAYS", value_parser = days)]
    pub older_than: Option<Duration>,
    /// Only list; this is the default
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Remove what is listed
    #[arg(long)]
    pub yes: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn days(text: &str) -> Result<Duration, String> {
    let days: Option<f64> = text.parse().ok().filter(|days| *days >= 0.0);
    let duration = days.and_then(|days| Duration::try_from_secs_f64(days * 86_400.0).ok());
    duration.ok_or_else(|| "expected a number of days, 0 or more".into())
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let known = Runs::new(&global.runs);
    let find = |run: &String| match known.find(run) {
        Ok(run) => Ok(run.record.run),
        Err(error) => match error.downcast_ref() {
            Some(FindError::Unfinished { run, .. }) => Ok(run.clone()),
            _ => Err(error),
        },
    };
    let runs = args.keep.iter().map(find).collect::<anyhow::Result<BTreeSet<_>>>()?;
    let keep = Keep { runs: (!runs.is_empty()).then_some(runs), younger_than: args.older_than };
    let store = Store::open(&global.runs);
    let cleaning = if args.yes { store.clean(&keep)? } else { store.cleaning(&keep)? };
    let text = match args.json {
        true => format!("{}\n", to_json(&cleaning, args.yes)),
        false => to_text(&cleaning, args.yes),
    };
    write!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Kind and name of an item.
fn describe(item: &Item) -> (&'static str, String) {
    match item {
        Item::Run(run) => ("run", run.clone()),
        Item::Attempt(run) => ("attempt", run.clone()),
        Item::Artifact(stage, key) => ("artifact", format!("{stage} {}", key.short())),
        Item::Checkpoints(stage, key) => ("checkpoints", format!("{stage} {}", key.short())),
        Item::Unfinished(stage, key) => ("unfinished", format!("{stage} {}", key.short())),
        Item::Leftover(name) => ("leftover", name.clone()),
        Item::Damaged(name) => ("damaged", name.clone()),
    }
}

fn bytes(items: &[Listed]) -> u64 {
    items.iter().map(|listed| listed.bytes).sum()
}

fn to_json(cleaning: &Cleaning, removed: bool) -> serde_json::Value {
    let list = |items: &[Listed]| -> Vec<serde_json::Value> {
        let object = |listed: &Listed| {
            let (kind, name) = describe(&listed.item);
            serde_json::json!({ "kind": kind, "name": name, "path": listed.path.display().to_string(), "bytes": listed.bytes })
        };
        items.iter().map(object).collect()
    };
    serde_json::json!({
        "removed": removed,
        "items": list(&cleaning.removed),
        "bytes": bytes(&cleaning.removed),
        "busy": list(&cleaning.busy),
        "kept_runs": cleaning.kept_runs,
        "kept_bytes": cleaning.kept_bytes,
        "shared": cleaning.shared.as_ref().map(ToString::to_string),
    })
}

fn to_text(cleaning: &Cleaning, removed: bool) -> String {
    let mut text = String::new();
    let line = |listed: &Listed, more: &str| {
        let (kind, name) = describe(&listed.item);
        format!("{kind:<12} {name:<34} {:>9}{more}\n", show::bytes(listed.bytes as f64))
    };
    cleaning.removed.iter().for_each(|listed| text += &line(listed, ""));
    cleaning.busy.iter().for_each(|listed| text += &line(listed, "  stays: somebody works on it"));
    let kept = format!(
        "{} and {} of artifacts stay",
        count(cleaning.kept_runs.len(), "run"),
        show::bytes(cleaning.kept_bytes as f64)
    );
    if let Some(shared) = &cleaning.shared {
        text += &format!("what changed in the last day stays, as other machines may count on it ({shared})\n");
    }
    let (items, size) = (count(cleaning.removed.len(), "item"), show::bytes(bytes(&cleaning.removed) as f64));
    text + &match (cleaning.removed.is_empty(), removed) {
        (true, _) => format!("nothing to remove; {kept}\n"),
        (false, true) => format!("removed {items}, {size}; {kept}\n"),
        (false, false) => format!("would remove {items}, {size}; {kept}\nnothing was removed: --yes removes it\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_comes_first_and_then_what_it_comes_to() {
        let listed = |item, bytes| Listed { item, path: "x".into(), bytes };
        let mut cleaning = Cleaning {
            removed: vec![listed(Item::Run("a-0123".into()), 1200), listed(Item::Damaged("knn-1".into()), 10)],
            busy: vec![listed(Item::Damaged("knn-2".into()), 0)],
            kept_runs: vec!["b".into()],
            kept_bytes: 5_000_000,
            shared: None,
        };
        let lines = "\
run          a-0123                                1.2 kB
damaged      knn-1                                   10 B
damaged      knn-2                                    0 B  stays: somebody works on it
";
        let dry =
            "would remove 2 items, 1.2 kB; 1 run and 5.0 MB of artifacts stay\nnothing was removed: --yes removes it\n";
        assert_eq!(to_text(&cleaning, false), format!("{lines}{dry}"));
        let done = "removed 2 items, 1.2 kB; 1 run and 5.0 MB of artifacts stay\n";
        assert_eq!(to_text(&cleaning, true), format!("{lines}{done}"));
        (cleaning.removed, cleaning.busy) = (vec![], vec![]);
        assert_eq!(to_text(&cleaning, true), "nothing to remove; 1 run and 5.0 MB of artifacts stay\n");
    }

    #[test]
    fn days_may_be_fractions() {
        assert_eq!(days("0.5"), Ok(Duration::from_secs(43_200)));
        assert!(days("-1").is_err() && days("soon").is_err() && days("nan").is_err());
    }
}
