//! `snclr explain`: says why stages would run, field by field, and how long they would take.

use std::{collections::HashSet, io::Write, path::Path, process::ExitCode, time::Duration};

use serde_json::{Value, json};

use super::{Global, changes::Specs, show};
use crate::{
    artifact::{Environment, Key, Store},
    plan::{
        Against, Difference, Planned, Planner, Verdict,
        estimate::{Estimate, Estimator},
    },
    report,
    run::{Reporter, duration},
    spec::{Point, Points},
    stage::Interrupt,
};

/// Explain why stages of specs would run, field by field, and how long they would take
///
/// Times and sizes are estimated from earlier artifacts of the same encoder, method and image size, scaled by the number of
/// images. Of several points, only the sums are shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub specs: Specs,
    /// Compare with the artifacts of this run, instead of the most similar ones
    #[arg(long, value_name = "RUN")]
    pub against: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The explanation of one point.
struct Explanation {
    /// The run to compare with.
    against: Option<String>,
    stages: Vec<Planned>,
    /// See [`Planner::prospects`].
    prospects: Vec<Key>,
    estimates: Vec<Option<Result<Estimate, &'static str>>>,
}

/// Runs the command.
///
/// # Errors
/// When a spec is invalid, its source files cannot be read, or there is no such run.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let Points { points, is_sweep } = args.specs.load()?;
    let against = args.against.as_ref().map(|run| report::find(&global.runs, run)).transpose()?;
    let store = Store::open(&global.runs);
    let mut here = Environment::here();
    if let Some(threads) = global.threads {
        here.threads = threads as u64;
    }
    let estimator = Estimator::new(&store, &here);
    let reporter = Reporter::new(global.verbosity());
    let mut told = Vec::new();
    for point in &points {
        let experiment = &point.loaded.experiment;
        let planner = Planner::new(&store, experiment, Path::new(""), &reporter, &Interrupt::default())?;
        reporter.stage_ends();
        let stages = planner.plan(against.as_ref().map_or(Against::Nearest, |run| Against::Run(&run.record)));
        let against = against.as_ref().map(|run| run.record.run.clone());
        let (prospects, estimates) = (planner.prospects(&stages), estimator.of(&stages));
        told.push(Explanation { against, stages, prospects, estimates });
    }
    let mut out = std::io::stdout().lock();
    match (args.json, is_sweep) {
        (true, false) => writeln!(out, "{}", told[0].json())?,
        (false, false) => write!(out, "{}", told[0].text())?,
        (true, true) => writeln!(out, "{}", points_json(&points, &told))?,
        (false, true) => write!(out, "{}", points_text(&points, &told))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn points_json(points: &[Point], told: &[Explanation]) -> Value {
    let point = |(point, explanation): (&Point, &Explanation)| {
        let mut json = explanation.json();
        json["values"] = point.object();
        json
    };
    let Total { stages, pending, seconds, bytes, unknown } = Total::of(told);
    json!({
        "points": points.iter().zip(told).map(point).collect::<Vec<_>>(),
        "total": {
            "stages": stages, "pending": pending, "cached": stages - pending,
            "seconds": seconds, "bytes": bytes.round(), "no_estimate": unknown,
        },
    })
}

fn points_text(points: &[Point], told: &[Explanation]) -> String {
    let mut text = String::new();
    for (i, (point, explanation)) in points.iter().zip(told).enumerate() {
        let total = Total::of(std::slice::from_ref(explanation));
        text += &format!("point {} of {}: {}: {}\n", i + 1, points.len(), point.label(), total.line());
    }
    text + &format!("{} in {} points; shared stages count once\n", Total::of(told).line(), points.len())
}

/// Numbers of stages, and the sums of their estimates. A stage that several points share counts once.
#[derive(Debug, Default, PartialEq)]
struct Total {
    stages: usize,
    pending: usize,
    seconds: f64,
    bytes: f64,
    /// Stages without an estimate.
    unknown: Vec<&'static str>,
}

impl Total {
    fn of(told: &[Explanation]) -> Total {
        let mut total = Total::default();
        let mut seen = HashSet::new();
        for explanation in told {
            let stages = explanation.stages.iter().zip(&explanation.prospects).zip(&explanation.estimates);
            for ((stage, _), estimate) in stages.filter(|((stage, key), _)| seen.insert((stage.stage, key.as_str()))) {
                total.stages += 1;
                total.pending += usize::from(!stage.is_cached());
                match estimate {
                    None => {}
                    Some(Ok(estimate)) => {
                        total.seconds += estimate.seconds;
                        total.bytes += estimate.bytes;
                    }
                    Some(Err(_)) if total.unknown.contains(&stage.stage.name()) => {}
                    Some(Err(_)) => total.unknown.push(stage.stage.name()),
                }
            }
        }
        total
    }

    fn line(&self) -> String {
        let mut line = show::to_do(self.pending, self.stages);
        if self.pending == 0 {
            return line;
        }
        if self.seconds > 0.0 {
            line += &format!("; about {} and {}", time(self.seconds), show::bytes(self.bytes));
        }
        if !self.unknown.is_empty() {
            line += &format!("; unknown for {}", self.unknown.join(", "));
        }
        line
    }
}

impl Explanation {
    fn json(&self) -> Value {
        let value = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let difference = |d: &Difference| json!({ "leaf": d.leaf, "old": value(&d.old), "new": value(&d.new) });
        let stage = |(stage, estimate): (&Planned, &Option<Result<Estimate, &'static str>>)| {
            let (status, damaged) = match &stage.verdict {
                Verdict::Cached(_) => ("cached", None),
                Verdict::Runs { damaged } => ("runs", damaged.clone()),
                Verdict::Depends => ("depends", None),
            };
            let (estimate, unknown) = match estimate {
                None => (None, None),
                Some(Err(why)) => (None, Some(*why)),
                Some(Ok(Estimate { seconds, bytes, basis })) => {
                    let basis = json!({
                        "key": basis.key, "seconds": basis.seconds, "images": basis.images, "images_now": basis.will_be,
                        "elsewhere": basis.elsewhere,
                    });
                    (Some(json!({ "seconds": seconds, "bytes": bytes.round(), "basis": basis })), None)
                }
            };
            json!({
                "stage": stage.stage.name(),
                "key": stage.key.as_ref().map(|key| key.as_str()),
                "status": status,
                "damaged": damaged,
                "resumes_after": stage.resumes_after,
                "kept": stage.kept,
                "waits_for": stage.waits_for.iter().map(|input| input.name()).collect::<Vec<_>>(),
                "compared_with": stage.compared.as_ref().map(|manifest| manifest.key.as_str()),
                "differences": stage.differences.iter().map(difference).collect::<Vec<_>>(),
                "estimate": estimate,
                "no_estimate": unknown,
            })
        };
        let Total { seconds, bytes, unknown, .. } = Total::of(std::slice::from_ref(self));
        json!({
            "against": self.against,
            "stages": self.stages.iter().zip(&self.estimates).map(stage).collect::<Vec<_>>(),
            "seconds": seconds,
            "bytes": bytes.round(),
            "no_estimate": unknown,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (stage, estimate) in self.stages.iter().zip(&self.estimates) {
            text += &format!("{:<18} {}\n", stage.stage.name(), self.verdict(stage));
            for difference in &stage.differences {
                text += &format!("    {difference}\n");
            }
            match estimate {
                None => {}
                Some(Err(why)) => text += &format!("    time and size unknown: {why}\n"),
                Some(Ok(estimate)) => text += &format!("    {}\n", foretell(estimate)),
            }
        }
        text + &Total::of(std::slice::from_ref(self)).line() + "\n"
    }

    fn verdict(&self, stage: &Planned) -> String {
        let list = |stages: &[crate::plan::Stage]| stages.iter().map(|s| s.name()).collect::<Vec<_>>().join(" and ");
        let mut text = match &stage.verdict {
            Verdict::Cached(_) => "cached".to_owned(),
            Verdict::Runs { damaged: Some(what) } => format!("runs: its artifact is damaged: {what}"),
            Verdict::Runs { damaged: None } if stage.waits_for.is_empty() => "runs".to_owned(),
            Verdict::Runs { damaged: None } => format!("runs after {}", list(&stage.waits_for)),
            Verdict::Depends => {
                let content = match stage.waits_for[..] {
                    [one] => format!("the content of {one}"),
                    _ => "their content".to_owned(),
                };
                return format!("runs after {}, unless {content} stays the same", list(&stage.waits_for));
            }
        };
        if let Some(kept) = &stage.kept {
            text += &format!("; {kept}");
        }
        text += &show::resumes(stage);
        match (&stage.compared, &self.against) {
            (None, None) => text += "; no artifact yet",
            (None, Some(run)) => text += &format!("; {run} has no such artifact any more"),
            (Some(_), Some(run)) if stage.differences.is_empty() => text += &format!("; as in {run}"),
            (Some(_), Some(run)) => text += &format!("; against {run}:"),
            (Some(_), None) => {}
        }
        text
    }
}

fn foretell(Estimate { seconds, bytes, basis }: &Estimate) -> String {
    let mut text = format!("about {} and {}: ", time(*seconds), show::bytes(*bytes));
    text += &format!("{} took {} for {} images", basis.key, time(basis.seconds), basis.images);
    match basis.will_be == basis.images {
        true => text += ", as many as now",
        false => text += &format!(", now {}", basis.will_be),
    }
    if let Some(elsewhere) = &basis.elsewhere {
        text += &format!("; measured on {elsewhere}");
    }
    text
}

fn time(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::estimate::Basis;

    #[test]
    fn an_estimate_says_what_it_rests_on() {
        let mut basis = Basis { key: "0123abcd".into(), seconds: 83.0, images: 64, will_be: 64, elsewhere: None };
        let estimate = |seconds, basis: &Basis| Estimate { seconds, bytes: 3_100_000.0, basis: basis.clone() };
        assert_eq!(
            foretell(&estimate(83.0, &basis)),
            "about 1 min 23 s and 3.1 MB: 0123abcd took 1 min 23 s for 64 images, as many as now"
        );
        basis.will_be = 128;
        basis.elsewhere = Some("an unknown machine".into());
        assert_eq!(
            foretell(&estimate(166.0, &basis)),
            "about 2 min 46 s and 3.1 MB: 0123abcd took 1 min 23 s for 64 images, now 128; measured on an unknown machine"
        );
    }
}
