//! What this program's speed is measured by: cases that `snclr bench` and `cargo bench` share. Unaware of the command line.

mod augment;
mod case;
mod epoch;
mod images;
mod knn;
mod machine;
mod measure;
mod options;
mod probe;
mod queue;
mod rows;
mod scaling;
mod step;

pub use case::Case;
pub use machine::Machine;
pub use measure::{Measurement, Rate, Time, measure};
pub use options::{Options, Unfit};
pub use scaling::{Point, Series, points};

/// A case that is ready to be measured.
pub struct Workload {
    /// What is done, with its sizes, for people.
    pub what: String,
    /// Images that one repetition goes through, where it is images that count.
    pub images: Option<usize>,
    once: Box<dyn FnMut() -> anyhow::Result<()>>,
}

impl Workload {
    fn new(what: String, images: Option<usize>, once: impl FnMut() -> anyhow::Result<()> + 'static) -> Self {
        Workload { what, images, once: Box::new(once) }
    }

    /// One repetition.
    ///
    /// # Errors
    /// When what is measured fails.
    pub fn once(&mut self) -> anyhow::Result<()> {
        (self.once)()
    }
}
