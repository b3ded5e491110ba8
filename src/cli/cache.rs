//! `--cache`, `--cache-mode` and `--cache-checkpoints`: the cache that machines share.

use std::path::Path;

use crate::remote::{self, Address, Cache, Options};

/// Environment variable with the address of the cache.
pub const CACHE_VARIABLE: &str = "SNCLR_CACHE";

/// Options of commands that use a shared cache.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Shared cache")]
pub struct CacheArgs {
    /// Cache that machines share: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER
    #[arg(long, env = CACHE_VARIABLE, value_name = "URL")]
    pub cache: Option<Address>,
    /// What is done with it: take what is there (read), and add what is made here (write), or nothing (off) [default: write]
    #[arg(long, env = "SNCLR_CACHE_MODE", value_enum, value_name = "MODE", hide_possible_values = true)]
    pub cache_mode: Option<Mode>,
    /// Upload checkpoints too, so that an interrupted run goes on on another machine
    #[arg(long, env = "SNCLR_CACHE_CHECKPOINTS")]
    pub cache_checkpoints: bool,
}

/// What is done with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Read,
    Write,
    Off,
}

/// This build has no cache, and one is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this build cannot use a shared cache: build it with --features remote, or leave --cache and SNCLR_CACHE out")]
pub struct NoCache;

impl CacheArgs {
    /// The cache beside the runs folder `root`, if one is named and not off. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`NoCache`].
    pub fn open(&self, root: &Path) -> Result<Option<Cache>, NoCache> {
        let mode = match self.cache_mode.unwrap_or(Mode::Write) {
            Mode::Read => remote::Mode::Read,
            Mode::Write => remote::Mode::Write,
            Mode::Off => return Ok(None),
        };
        let Some(address) = self.cache.clone() else { return Ok(None) };
        check_available()?;
        let options = Options { address, mode, checkpoints: self.cache_checkpoints };
        Ok(Some(Cache::new(options, root)))
    }
}

/// Whether this build can use a cache.
///
/// # Errors
/// [`NoCache`] when it cannot.
pub fn check_available() -> Result<(), NoCache> {
    if remote::AVAILABLE { Ok(()) } else { Err(NoCache) }
}
