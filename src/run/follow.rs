//! What ranks other than the first do: they wait for its orders, and take part in its trainings.
//!
//! The first rank alone plans, keeps what stages make, and talks to the user.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Found, Key, Store},
    plan::Stage,
    ranks::Ranks,
    spec::Experiment,
    stage::{Interrupt, Stopped, pretrain},
};

/// What many ranks cannot do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitRun {
    #[error("ranks work on one point at a time\n  help: leave out --jobs, or start one process")]
    Jobs,
}

/// What the first rank tells the others.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// To take part in the training of this experiment on the data of this key.
    Train { experiment: String, data: Key },
    /// To end with this exit code.
    End(u8),
}

/// Whether the others are in a training, in which they hear no orders.
static TRAINING: AtomicBool = AtomicBool::new(false);

/// Has the other ranks take part in `train`, a training of `experiment` on the data of the key `data`.
///
/// # Errors
/// As of `train`.
pub fn with_others(
    experiment: &Experiment,
    data: &Key,
    train: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ranks = Ranks::chosen();
    if ranks.is_alone() {
        return train();
    }
    tell(&ranks, &Order::Train { experiment: serde_yaml::to_string(experiment)?, data: data.clone() })?;
    TRAINING.store(true, Ordering::SeqCst);
    let trained = train();
    // All ranks stop a training, or come to its end, at the same step. What failed may have failed here alone.
    if trained.as_ref().err().is_none_or(|error| error.downcast_ref::<Stopped>().is_some()) {
        TRAINING.store(false, Ordering::SeqCst);
    }
    trained
}

/// Lets the other ranks end with this exit code. False where they do not listen, as they are in a training that failed here.
///
/// # Errors
/// When the order cannot be written.
pub fn dismiss(code: u8) -> anyhow::Result<bool> {
    if TRAINING.load(Ordering::SeqCst) {
        return Ok(false);
    }
    tell(&Ranks::chosen(), &Order::End(code)).map(|()| true)
}

fn tell(ranks: &Ranks, order: &Order) -> anyhow::Result<()> {
    ranks.broadcast(serde_json::to_vec(order)?);
    Ok(())
}

/// Does what the first rank says, until it says to end; gives the exit code.
///
/// # Errors
/// What fails on this rank alone.
pub fn follow(store: &Store, interrupt: &Interrupt) -> anyhow::Result<u8> {
    let ranks = Ranks::chosen();
    loop {
        let order = serde_json::from_slice(&ranks.broadcast(Vec::new())).context("an order of the first rank")?;
        let (experiment, data) = match order {
            Order::End(code) => return Ok(code),
            Order::Train { experiment, data } => (serde_yaml::from_str::<Experiment>(&experiment)?, data),
        };
        let data = match store.find(Stage::Data.name(), &data) {
            Found::Hit(artifact) => Stage::Pretrain.readable(Stage::Data, &artifact),
            Found::Missing => bail!(
                "{}: the data of the first rank is not here; all ranks need the same runs folder",
                store.root().display()
            ),
            Found::Damaged { what } => bail!("the data of the first rank is damaged here: {what}"),
        };
        match pretrain::take_part(&experiment.pretrain(), &data, interrupt) {
            // The first rank says what becomes of a training that stopped.
            Err(error) if error.downcast_ref::<Stopped>().is_none() => return Err(error),
            _ => {}
        }
    }
}
