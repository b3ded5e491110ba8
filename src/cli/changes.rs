//! `--method`, `--set` and `--sweep`: the options by which commands change a spec.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::spec::{self, Points, SpecErrors};

/// Options that change a spec before it is checked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Changes {
    /// Use another method, e.g. `infonce`. Settings that it shares are kept; the others are dropped and listed
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// Override a key of the spec, e.g. `method.tau=0.1`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Vary a key, e.g. `seed=1,2,3`; repeatable, and every combination is a point. Replaces the sweep of this key in the spec
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub sweep: Vec<String>,
}

/// Specs, and the changes to each.
#[derive(Clone, Debug, clap::Args)]
pub struct Specs {
    /// Specs of the experiments
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    #[command(flatten)]
    pub changes: Changes,
}

impl Specs {
    /// The points of all specs, in order. With several specs it is a sweep, whose points have the name of their spec as first value.
    /// Lists on stderr the settings that a newly chosen method or variant does not accept.
    ///
    /// # Errors
    /// All errors of all points of the first spec that is invalid.
    pub fn load(&self) -> Result<Points, SpecErrors> {
        let points = self.read()?;
        for note in points.notes() {
            // A closed stderr is no reason to stop.
            let _ = writeln!(std::io::stderr(), "note: {note}");
        }
        Ok(points)
    }

    /// Like [`Specs::load`], but prints nothing.
    ///
    /// # Errors
    /// As [`Specs::load`].
    pub fn read(&self) -> Result<Points, SpecErrors> {
        let changes = self.changes.of_spec();
        let several = self.specs.len() > 1;
        let mut all = Points { points: vec![], is_sweep: several };
        for spec in &self.specs {
            let mut of_spec = spec::load_points(spec, &changes)?;
            for point in of_spec.points.iter_mut().filter(|_| several) {
                let name = point.loaded.experiment.name.clone();
                point.values.insert(0, ("name".to_owned(), name.into()));
            }
            all.is_sweep |= of_spec.is_sweep;
            all.points.append(&mut of_spec.points);
        }
        Ok(all)
    }
}

impl Changes {
    /// The points of the spec at `path`: one, unless the spec or the command line sweeps. Lists on stderr the settings that a
    /// newly chosen method or variant does not accept.
    ///
    /// # Errors
    /// All errors of all points, at once.
    pub fn load(&self, path: &Path) -> Result<Points, SpecErrors> {
        Specs { specs: vec![path.to_owned()], changes: self.clone() }.load()
    }

    /// The changes in the form that `spec` takes, without clap.
    pub fn of_spec(&self) -> spec::Changes {
        spec::Changes { method: self.method.clone(), set: self.set.clone(), sweep: self.sweep.clone() }
    }
}
