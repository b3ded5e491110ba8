//! `--method`, `--set` and `--sweep`: what commands that take a spec change in it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::spec::{self, Points, SpecErrors};

/// Options that change a spec before it is checked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Changes {
    /// Use another method, e.g. `infonce`: settings that it has too are kept, the others are dropped and named
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// Override a key of the spec, e.g. `method.tau=0.1`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Vary a key, e.g. `seed=1,2,3`; repeatable: every combination is a point. Replaces the spec's own sweep of the key
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub sweep: Vec<String>,
}

/// Specs, and what is changed in each.
#[derive(Clone, Debug, clap::Args)]
pub struct Specs {
    /// Specs of experiments
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    #[command(flatten)]
    pub changes: Changes,
}

impl Changes {
    /// The points of the spec at `path`: one, unless it or the command line sweeps. Says on stderr what a method or another variant
    /// that was chosen does not take.
    ///
    /// # Errors
    /// Everything that is wrong with any point, at once.
    pub fn load(&self, path: &Path) -> Result<Points, SpecErrors> {
        let points = spec::load_points(path, &self.of_spec())?;
        for note in points.notes() {
            // A closed stderr is no reason to stop.
            let _ = writeln!(std::io::stderr(), "note: {note}");
        }
        Ok(points)
    }

    /// The same, for those who know no command line.
    pub fn of_spec(&self) -> spec::Changes {
        spec::Changes { method: self.method.clone(), set: self.set.clone(), sweep: self.sweep.clone() }
    }
}
