//! Benchmarks: the cases that `snclr bench` and `cargo bench` share.

#![allow(clippy::disallowed_methods, reason = "made-up data, of which nothing but the speed is a result")]

mod augment;
mod card;
mod case;
mod epoch;
mod images;
mod knn;
mod machine;
mod measure;
mod options;
mod probe;
mod queue;
mod roofline;
mod rows;
mod scaling;
mod step;

use std::{cell::Cell, rc::Rc, time::Duration};

pub use augment::Recipe;
pub use card::Card;
pub use case::Case;
pub use machine::{GpuUse, Machine};
pub use measure::{Flops, Measurement, Rate, Time, measure};
pub use options::{Options, Unfit};
pub use roofline::{LayerTime, Roofline, roofline};
pub use scaling::{Point, Series, points};

/// A case that is ready to be measured.
pub struct Workload {
    /// A description of the work with its sizes, for people.
    pub what: String,
    /// Number of images that one repetition processes; None for cases that do not process images.
    pub images: Option<usize>,
    /// Floating-point operations of the model per image, if the case trains one.
    flops_per_image: Option<u64>,
    /// Time that the repetitions have waited for data so far, if the case loads data in parallel.
    waited: Option<Rc<Cell<Duration>>>,
    once: Box<dyn FnMut() -> anyhow::Result<()>>,
}

impl Workload {
    fn new(what: String, images: Option<usize>, once: impl FnMut() -> anyhow::Result<()> + 'static) -> Self {
        Workload { what, images, flops_per_image: None, waited: None, once: Box::new(once) }
    }

    fn training(self, flops_per_image: u64) -> Self {
        Workload { flops_per_image: Some(flops_per_image), ..self }
    }

    fn waiting(self, waited: Rc<Cell<Duration>>) -> Self {
        Workload { waited: Some(waited), ..self }
    }

    /// Runs one repetition.
    ///
    /// # Errors
    /// When the repetition fails.
    pub fn once(&mut self) -> anyhow::Result<()> {
        (self.once)()
    }
}
