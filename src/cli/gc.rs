//! `snclr gc`: lists what no kept run needs, and removes it with `--yes`.

use std::{collections::BTreeSet, io::Write, process::ExitCode, time::Duration};

use super::{
    Global, cache,
    show::{self, count},
};
use crate::{
    artifact::{Cleaning, Item, Keep, Listed, RunRecord, Store},
    remote::{self, Address},
    report::{FindError, Runs},
};

/// List artifacts that no kept run needs; remove them with --yes
///
/// All finished runs are kept, unless --keep names the ones to keep. Artifacts of kept runs stay, and so do those of runs in
/// progress. Runs that ended without results are removed with their checkpoints, unless --keep names them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep only these runs: the name of a run or its beginning, its folder, or the name or path of a spec (its newest run)
    #[arg(long, value_name = "RUN", num_args = 1..)]
    pub keep: Vec<String>,
    /// Remove only what has not changed for this many days
    #[arg(long, value_name = "DAYS", value_parser = days)]
    pub older_than: Option<Duration>,
    /// Clean the shared cache instead: remove what has not been used for 30 days (or --older-than) and no run here needs
    #[arg(long, value_name = "URL", num_args = 0..=1, conflicts_with = "keep")]
    pub cache: Option<Option<Address>>,
    /// Only list (the default)
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
    if let Some(address) = &args.cache {
        return clean_cache(address.clone(), &args, global);
    }
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

/// Default time without use after which an object is removed from the shared cache.
const UNUSED: Duration = Duration::from_secs(30 * 86_400);

fn clean_cache(address: Option<Address>, args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let address = cache::to_clean(address)?;
    let records = RunRecord::list(&global.runs)?.into_iter().chain(RunRecord::unfinished(&global.runs)?);
    let needed = records.flat_map(|(_, record)| record.stages).map(|stage| (stage.stage, stage.key)).collect();
    let cleaned = remote::clean(&address, args.older_than.unwrap_or(UNUSED), &needed, args.yes);
    let cleaned = cleaned.map_err(anyhow::Error::msg)?;
    let bytes: u64 = cleaned.removed.iter().map(|(_, bytes)| bytes).sum();
    let text = match args.json {
        true => {
            let item = |(item, bytes): &(remote::Item, u64)| {
                let (kind, name) = describe_object(item);
                serde_json::json!({ "kind": kind, "name": name, "bytes": bytes })
            };
            let items: Vec<_> = cleaned.removed.iter().map(item).collect();
            let object = serde_json::json!({
                "removed": args.yes, "items": items, "bytes": bytes, "kept": cleaned.kept, "kept_bytes": cleaned.kept_bytes,
            });
            format!("{object}\n")
        }
        false => {
            let lines = cleaned.removed.iter().map(|(item, bytes)| {
                let (kind, name) = describe_object(item);
                format!("{kind:<12} {name:<34} {:>9}\n", show::bytes(*bytes as f64))
            });
            let stay = format!(
                "{} and {} of tables stay in {address}",
                count(cleaned.kept, "artifact"),
                show::bytes(cleaned.kept_bytes as f64)
            );
            lines.collect::<String>() + &conclusion(cleaned.removed.len(), bytes, &stay, args.yes)
        }
    };
    write!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Kind and name of an object in a shared cache.
fn describe_object(item: &remote::Item) -> (&'static str, String) {
    match item {
        remote::Item::Artifact(stage, key) => ("artifact", format!("{stage} {}", key.get(..8).unwrap_or(key))),
        remote::Item::Checkpoint(name) => ("checkpoint", name.clone()),
        remote::Item::Table(name) => ("table", name.clone()),
    }
}

/// The result of a cleaning, or what it would be.
fn conclusion(items: usize, size: u64, stay: &str, removed: bool) -> String {
    let what = format!("{}, {}; {stay}", count(items, "item"), show::bytes(size as f64));
    match (items, removed) {
        (0, _) => format!("nothing to remove; {stay}\n"),
        (_, true) => format!("removed {what}\n"),
        (_, false) => format!("would remove {what}\nnothing was removed; use --yes to remove it\n"),
    }
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
    cleaning.busy.iter().for_each(|listed| text += &line(listed, "  kept: in use"));
    let kept = format!(
        "{} and {} of artifacts stay",
        count(cleaning.kept_runs.len(), "run"),
        show::bytes(cleaning.kept_bytes as f64)
    );
    if let Some(shared) = &cleaning.shared {
        text += &format!("kept: all that changed in the last day, since other machines may be using it ({shared})\n");
    }
    text + &conclusion(cleaning.removed.len(), bytes(&cleaning.removed), &kept, removed)
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
damaged      knn-2                                    0 B  kept: in use
";
        let dry = "would remove 2 items, 1.2 kB; 1 run and 5.0 MB of artifacts stay\nnothing was removed; use --yes to remove it\n";
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
