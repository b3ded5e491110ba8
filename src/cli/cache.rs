//! Finds the shared cache: from `--cache` and its options, from environment variables, or from a file.
//!
//! ```yaml
//! # .snclr.yaml in the current folder, or snclr/config.yaml in the user's settings
//! cache: {url: "s3://lab/snclr", mode: read, checkpoints: false}
//! ```

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use schemars::JsonSchema;
use serde::Deserialize;

use super::Global;
use crate::{
    remote::{self, Address, Cache, Options},
    run::Verbosity,
    spec::Format,
};

/// Name of the settings file in the current folder.
const FILE: &str = ".snclr.yaml";

/// Environment variable with the address of the cache.
const VARIABLE: &str = "SNCLR_CACHE";

/// Options of commands that use a shared cache.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Shared cache")]
pub struct CacheArgs {
    /// Shared cache: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER
    #[arg(long, env = VARIABLE, value_name = "URL")]
    pub cache: Option<Address>,
    /// How to use it: read takes artifacts, write also adds new ones, off does neither [default: write]
    #[arg(long, env = "SNCLR_CACHE_MODE", value_enum, value_name = "MODE", hide_possible_values = true)]
    pub cache_mode: Option<Mode>,
    /// Also upload checkpoints, so that another machine can resume an interrupted run
    #[arg(long, env = "SNCLR_CACHE_CHECKPOINTS")]
    pub cache_checkpoints: bool,
}

/// How the cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Read,
    Write,
    Off,
}

/// A settings file. Nothing in it is part of a key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    cache: Option<CacheConfig>,
}

/// The settings of the cache. Options and variables override them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CacheConfig {
    /// Address, in the form of `--cache`.
    url: String,
    mode: Option<Mode>,
    /// Whether to upload checkpoints too.
    #[serde(default)]
    checkpoints: bool,
}

/// Why the cache cannot be used or found.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(
        "this build cannot use a shared cache: build with --features remote, or remove the cache from --cache, {VARIABLE} and {FILE}"
    )]
    NotInThisBuild,
    #[error("no cache to clean: name it by --cache URL, {VARIABLE}, or cache: {{url: URL}} in {FILE}")]
    NotNamed,
    #[error("{}: cache.url: {what}", path.display())]
    BadAddress { path: PathBuf, what: String },
    #[error("{VARIABLE}: {what}")]
    BadVariable { what: String },
}

impl CacheArgs {
    /// The shared cache, if one is named and its mode is not off. Sends no request. Prints a line on stderr if a settings file
    /// names the cache.
    ///
    /// # Errors
    /// [`CacheError`], or the [`SpecErrors`](crate::spec::SpecErrors) of a settings file.
    pub fn open(&self, global: &Global) -> anyhow::Result<Option<Cache>> {
        let named = named()?.filter(|_| self.cache.is_none());
        let mode = match self.cache_mode.or(named.as_ref().and_then(|named| named.mode)).unwrap_or(Mode::Write) {
            Mode::Read => remote::Mode::Read,
            Mode::Write => remote::Mode::Write,
            Mode::Off => return Ok(None),
        };
        let checkpoints = self.cache_checkpoints || named.as_ref().is_some_and(|named| named.checkpoints);
        let address = match (&self.cache, named) {
            (Some(address), _) => address.clone(),
            (None, Some(named)) => {
                if global.verbosity() != Verbosity::Quiet {
                    let _ = writeln!(
                        std::io::stderr(),
                        "shared cache {}: named in {}",
                        named.address,
                        named.path.display()
                    );
                }
                named.address
            }
            (None, None) => return Ok(None),
        };
        check_available()?;
        Ok(Some(Cache::new(Options { address, mode, checkpoints }, &global.runs)))
    }
}

/// The cache to clean: the given one, or else the one that runs would use.
///
/// # Errors
/// [`CacheError`], or the [`SpecErrors`](crate::spec::SpecErrors) of a settings file.
pub fn to_clean(given: Option<Address>) -> anyhow::Result<Address> {
    check_available()?;
    match (given, env::var(VARIABLE)) {
        (Some(address), _) => Ok(address),
        (None, Ok(text)) => text.parse().map_err(|what| CacheError::BadVariable { what }.into()),
        (None, Err(_)) => named()?.map(|named| named.address).ok_or_else(|| CacheError::NotNamed.into()),
    }
}

/// The cache that a settings file names.
struct Named {
    address: Address,
    mode: Option<Mode>,
    checkpoints: bool,
    path: PathBuf,
}

/// The cache named in the current folder's file, or else in the user's settings; None where neither names one.
fn named() -> anyhow::Result<Option<Named>> {
    static FORMAT: LazyLock<Format<Config>> = LazyLock::new(Format::default);
    let settings = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let settings = settings.or_else(|| env::home_dir().map(|home| home.join(".config")));
    let of_user = settings.map(|dir| dir.join("snclr").join("config.yaml"));
    for path in [Some(Path::new(FILE).to_owned()), of_user].into_iter().flatten().filter(|path| path.is_file()) {
        let Some(CacheConfig { url, mode, checkpoints }) = FORMAT.read(&path)?.cache else { continue };
        let address = url.parse().map_err(|what| CacheError::BadAddress { path: path.clone(), what })?;
        return Ok(Some(Named { address, mode, checkpoints, path }));
    }
    Ok(None)
}

fn check_available() -> Result<(), CacheError> {
    if remote::AVAILABLE { Ok(()) } else { Err(CacheError::NotInThisBuild) }
}
