//! Measures the linear probe: standardised features, SGD with default settings, predictions on the test split.

use super::{
    Workload,
    rows::{self, CLASSES, DIM, SPLITS},
};
use crate::stage::{
    LinearProbeConfig, Silent,
    linear_probe::{Probe, predict, top},
};

pub(super) fn prepare() -> anyhow::Result<Workload> {
    let config = LinearProbeConfig::default();
    let mut task = rows::classes();
    let what = format!(
        "{} rows, scored on {}, width {DIM}, {CLASSES} classes, {} epochs of batches of {}",
        SPLITS[0], SPLITS[1], config.epochs, config.batch_size
    );
    Ok(Workload::new(what, None, move || {
        let probe = Probe { config: &config, seed: 0, progress: &Silent, go_on: &|| true };
        probe.standardize(&mut task);
        let (classifier, _) = probe.fit("made-up", &task, &task.targets)?;
        let top1 = top(1, &predict(&classifier, &task));
        anyhow::ensure!(top1 > 0.9, "the probe has learned next to nothing: top-1 {top1}");
        Ok(())
    }))
}
