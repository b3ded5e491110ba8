//! Experiments on many machines: which work there is, each piece once however many points share it, and how a scheduler is told of
//! it. The schedulers exist; nothing of theirs is done here, and all that is known of the work is what the store holds.

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
