//! Runs experiments on many machines: lists the missing tasks, each once however many points share it, and writes them for a
//! scheduler. Slurm or Kubernetes does the scheduling. The state of the work is read from the store.

mod array;
mod folder;
pub mod kubernetes;
mod resources;
pub mod slurm;
mod tasks;

pub use array::{Array, Site, arrays};
pub use folder::Folder;
pub use resources::{Kubernetes, Resources, Wanted};
pub use tasks::{State, Task, Tasks};
