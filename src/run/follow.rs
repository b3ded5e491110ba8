//! Runs the ranks other than the first: they wait for its orders, and join its trainings.
//!
//! Only the first rank plans, writes artifacts, and talks to the user.

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

/// Options that several ranks do not support.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitRun {
    #[error("ranks work on one point at a time\n  help: leave out --jobs, or start one process")]
    Jobs,
}

/// An order of the first rank to the others.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Join the training of this experiment on the data of this key.
    Train { experiment: String, data: Key },
    /// End with this exit code.
    End(u8),
}

/// Whether the other ranks are in a training, during which they receive no orders.
static TRAINING: AtomicBool = AtomicBool::new(false);

/// Runs `train` on all ranks: a training of `experiment` on the data of the key `data`.
///
/// # Errors
/// When `train` fails, or the order to the other ranks cannot be written.
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
    // All ranks stop or finish a training at the same step. A failure may have happened on this rank only.
    if trained.as_ref().err().is_none_or(|error| error.downcast_ref::<Stopped>().is_some()) {
        TRAINING.store(false, Ordering::SeqCst);
    }
    trained
}

/// Orders the other ranks to end with this exit code. False if they cannot receive it, because a training failed on this rank
/// only.
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

/// Follows the orders of the first rank until it orders the end, and returns the exit code.
///
/// # Errors
/// When something fails on this rank.
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
                "{}: the data of the first rank is missing; all ranks need the same runs folder",
                store.root().display()
            ),
            Found::Damaged { what } => bail!("this rank finds the data of the first rank damaged: {what}"),
        };
        match pretrain::take_part(&experiment.pretrain(), &data, interrupt) {
            // The first rank reports a training that stopped.
            Err(error) if error.downcast_ref::<Stopped>().is_none() => return Err(error),
            _ => {}
        }
    }
}
