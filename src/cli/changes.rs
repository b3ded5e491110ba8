//! `--set` and `--sweep`: what commands that take a spec change in it.

use std::path::Path;

use crate::spec::{self, Points, SpecErrors};

/// Options that change a spec before it is checked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Changes {
    /// Override a key of the spec, e.g. `method.tau=0.1`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Vary a key, e.g. `seed=1,2,3`; repeatable: every combination is a point. Replaces the spec's own sweep of the key
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub sweep: Vec<String>,
}

impl Changes {
    /// The points of the spec at `path`: one, unless it or the command line sweeps.
    ///
    /// # Errors
    /// Everything that is wrong with any point, at once.
    pub fn load(&self, path: &Path) -> Result<Points, SpecErrors> {
        spec::load_points(path, &spec::Changes { set: self.set.clone(), sweep: self.sweep.clone() })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.sweep.is_empty()
    }
}
