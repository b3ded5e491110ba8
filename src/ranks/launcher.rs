//! Reads the environment variables of launchers: the rank of this process, the number of ranks, and the first rank's address.

/// The environment variables that a launcher sets.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    /// Variable with the number of ranks on this machine.
    local: &'static str,
    /// Variable with the number of this rank among those of this machine.
    local_rank: &'static str,
    /// Whether `rank` may be set without `size`. The process is then not one of several ranks.
    lone_rank: bool,
}

/// Name for any launcher that sets PyTorch's variables. Its ranks always communicate by TCP.
pub const TORCHRUN: &str = "torchrun";

const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: "mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: "OMPI_COMM_WORLD_LOCAL_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        lone_rank: false,
    },
    Launcher {
        name: "mpirun",
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: "MPI_LOCALNRANKS",
        local_rank: "MPI_LOCALRANKID",
        lone_rank: false,
    },
    // A batch script has a SLURM_PROCID too, but it is a single process, whatever the number of tasks of the job.
    Launcher {
        name: "srun",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local: "SLURM_STEP_TASKS_PER_NODE",
        local_rank: "SLURM_LOCALID",
        lone_rank: true,
    },
    Launcher {
        name: TORCHRUN,
        rank: "RANK",
        size: "WORLD_SIZE",
        local: "LOCAL_WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        lone_rank: false,
    },
];

/// Variable that Open MPI sets when it binds each rank to its own processors.
const BOUND: &str = "OMPI_MCA_orte_bound_at_launch";

/// The place of this process among several ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub launcher: &'static str,
    pub rank: usize,
    pub size: usize,
    /// Number of ranks that share this rank's processors; None if the launcher does not say.
    pub local: Option<usize>,
    /// Number of this rank among those of its machine, from 0; None if the launcher does not say.
    pub local_rank: Option<usize>,
}

/// The address where the first rank listens, for ranks that communicate by TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// A name or an address.
    pub host: String,
    pub port: u16,
}

impl Master {
    /// `host:port`
    pub fn text(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

const HOST: &str = "MASTER_ADDR";
const PORT: &str = "MASTER_PORT";
/// Variable that is `True` if torchrun itself listens on `MASTER_PORT`. The first rank then uses the next port.
const PORT_IN_USE: &str = "TORCHELASTIC_USE_AGENT_STORE";

/// Why this process cannot be one of several ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error(
        "{set} is set and {missing} is not: this looks like a process of {launcher}, but not how many there are\n  \
         help: set both, or none to run alone"
    )]
    HalfSet { launcher: &'static str, set: &'static str, missing: &'static str },
    #[error("{name}={value:?} is no number of {launcher}'s processes\n  help: {name} has to be {allowed}")]
    Number { launcher: &'static str, name: &'static str, value: String, allowed: String },
    #[error(
        "{launcher} has started {size} processes, and {missing} is not set: it says where the first one listens\n  \
         help: MASTER_ADDR is the first one's machine, MASTER_PORT a free port there (docs/how-to/many-ranks.md)"
    )]
    NoMaster { launcher: &'static str, size: usize, missing: &'static str },
    #[error(
        "{launcher} has started {size} processes, and this build has no MPI: each would do the whole work\n  \
         help: build with --features mpi, or set MASTER_ADDR and MASTER_PORT, with which ranks talk by TCP \
         (docs/how-to/many-ranks.md)"
    )]
    NoMpi { launcher: &'static str, size: usize },
    #[error("MPI cannot be started for the {size} processes of {launcher}: it wants all calls from one thread")]
    OneThread { launcher: &'static str, size: usize },
    #[error("{launcher} has started {size} processes, and MPI knows of {found}: the program was built for another MPI")]
    OtherMpi { launcher: &'static str, size: usize, found: usize },
    #[error(
        "the first rank cannot listen on port {port}: {why}\n  help: MASTER_PORT has to be a free port of this machine"
    )]
    Listen { port: u16, why: String },
    #[error("rank {rank} of {size} cannot listen for the other ranks: {why}")]
    NoPort { rank: usize, size: usize, why: String },
    #[error(
        "rank {rank} of {size} cannot reach rank {other} at {at}: {why}\n  \
         help: MASTER_ADDR and MASTER_PORT have to name a port of the first rank's machine that no firewall closes"
    )]
    Unreached { rank: usize, size: usize, other: usize, at: String, why: String },
    #[error(
        "rank {rank} of {size} has waited for ranks that have not come: {missing}\n  \
         help: start all ranks with the same MASTER_ADDR and MASTER_PORT; --collective-timeout SECONDS allows for more time"
    )]
    Missing { rank: usize, size: usize, missing: String },
    #[error("two processes say that they are rank {rank}\n  help: RANK has to differ")]
    Twice { rank: usize },
    #[error(
        "rank {rank} says that there are {size} ranks, and there are {own}\n  help: WORLD_SIZE has to be the same for all"
    )]
    OtherSize { rank: usize, size: usize, own: usize },
    #[error("the first rank has ended")]
    FirstGone,
}

impl LaunchError {
    /// Whether the first rank fails with this error too. Only the first rank then prints it.
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::Unreached { .. } | Self::NoPort { .. } | Self::Missing { rank: 1.., .. })
    }
}

/// The place of this process among several ranks, from the environment variables that `variable` reads; None if the process is
/// alone.
///
/// # Errors
/// When a launcher's variables are incomplete, or are not valid numbers.
pub fn place(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Place>, LaunchError> {
    for Launcher { name: launcher, rank, size, local, local_rank, lone_rank } in LAUNCHERS {
        let number = |name, allowed: &dyn Fn(usize) -> bool, text: String| {
            let Some(value) = variable(name) else { return Ok(None) };
            match value.parse().ok().filter(|number| allowed(*number)) {
                Some(number) => Ok(Some(number)),
                None => Err(LaunchError::Number { launcher, name, value, allowed: text }),
            }
        };
        let of = number(size, &|size| size > 0, "1 or more".to_owned())?;
        let most = of.unwrap_or(usize::MAX);
        let below = if of.is_some() { format!("less than {size}={most}") } else { "0 or more".to_owned() };
        match (number(rank, &|rank| rank < most, below)?, of) {
            (Some(rank), Some(size)) if size > 1 => {
                let on_machine = variable(local).and_then(|text| text.split('(').next()?.parse().ok());
                let local = if variable(BOUND).is_some() { Some(1) } else { on_machine };
                let local_rank = variable(local_rank).and_then(|text| text.parse().ok());
                return Ok(Some(Place { launcher, rank, size, local, local_rank }));
            }
            (Some(_), None) if lone_rank => {}
            (Some(_), None) => return Err(LaunchError::HalfSet { launcher, set: rank, missing: size }),
            (None, Some(_)) => return Err(LaunchError::HalfSet { launcher, set: size, missing: rank }),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    Ok(None)
}

/// The address of the first rank, from the environment variables that `variable` reads; None if `MASTER_ADDR` is not set.
///
/// # Errors
/// When `MASTER_ADDR` is set without `MASTER_PORT`, when the launcher is torchrun and `MASTER_ADDR` is not set, or when the port
/// is invalid.
pub fn master(place: &Place, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Master>, LaunchError> {
    let Place { launcher, size, .. } = *place;
    let no_master = |missing| LaunchError::NoMaster { launcher, size, missing };
    match (variable(HOST), variable(PORT)) {
        (Some(host), Some(text)) => {
            let next = u16::from(variable(PORT_IN_USE).as_deref() == Some("True"));
            let Some(port) = text.parse().ok().filter(|port| *port > 0).and_then(|port: u16| port.checked_add(next))
            else {
                let allowed = "a port, from 1 to 65535".to_owned();
                return Err(LaunchError::Number { launcher, name: PORT, value: text, allowed });
            };
            Ok(Some(Master { host, port }))
        }
        (Some(_), None) => Err(no_master(PORT)),
        (None, _) if launcher == TORCHRUN => Err(no_master(HOST)),
        (None, _) => Ok(None),
    }
}

/// The address of the first rank, from the environment of this process.
///
/// # Errors
/// Those of [`master`].
pub fn master_here(place: &Place) -> Result<Option<Master>, LaunchError> {
    master(place, |name| std::env::var(name).ok())
}

/// The place of this process among several ranks, from its environment.
///
/// # Errors
/// Those of [`place`].
pub fn place_here() -> Result<Option<Place>, LaunchError> {
    place(|name| std::env::var(name).ok())
}

/// Whether the variables of any launcher say that this process is not the first rank. The first rank then prints shared errors.
pub fn is_other() -> bool {
    let ranks = LAUNCHERS.iter().filter_map(|launcher| std::env::var(launcher.rank).ok()?.parse::<usize>().ok());
    ranks.max().is_some_and(|rank| rank > 0)
}

/// Number of this rank among those of its machine, from 0; 0 if the process is alone or the launcher does not say.
pub fn local_rank_here() -> usize {
    place_here().ok().flatten().and_then(|place| place.local_rank).unwrap_or(0)
}

/// Number of worker threads for this rank, its part of the processors that several ranks share. None if the process is alone, or
/// if the launcher does not say how many ranks share them.
pub fn threads_here() -> Option<usize> {
    let ranks = place_here().ok()??.local?;
    let processors = std::thread::available_parallelism().ok()?.get();
    Some((processors / ranks).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Option<Place>, LaunchError> {
        place(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        let place = |launcher, rank, size, here: Option<[usize; 2]>| {
            let [local_rank, local] = [here.map(|here| here[0]), here.map(|here| here[1])];
            Ok(Some(Place { launcher, rank, size, local, local_rank }))
        };
        let ompi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        let ompi = [&ompi[..], &[("OMPI_COMM_WORLD_LOCAL_RANK", "0")]].concat();
        assert_eq!(of(&ompi), place("mpirun", 2, 4, Some([0, 2])));
        let bound = [&ompi[..], &[("OMPI_MCA_orte_bound_at_launch", "1")]].concat();
        assert_eq!(of(&bound), place("mpirun", 2, 4, Some([0, 1])), "it has processors of its own");
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2"), ("MPI_LOCALRANKID", "1")];
        assert_eq!(of(&mpich), place("mpirun", 1, 2, Some([1, 2])));
        assert_eq!(of(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), place("mpirun", 0, 2, None));
        let step = [("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_STEP_TASKS_PER_NODE", "2(x2)")];
        let step = [&step[..], &[("SLURM_LOCALID", "1")]].concat();
        assert_eq!(of(&step), place("srun", 3, 4, Some([1, 2])));
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "2")]), place("torchrun", 0, 2, None));
        let torchrun = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")];
        assert_eq!(of(&torchrun), place("torchrun", 5, 8, Some([1, 4])));
    }

    #[test]
    fn the_first_rank_is_where_pytorch_looks_for_it() {
        let variables = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let torchrun = Place { launcher: TORCHRUN, rank: 1, size: 2, local: None, local_rank: None };
        let at = |host: &str, port| Ok(Some(Master { host: host.to_owned(), port }));
        assert_eq!(master(&torchrun, variables(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "29500")])), at("a", 29500));
        let shared =
            variables(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "29500"), ("TORCHELASTIC_USE_AGENT_STORE", "True")]);
        assert_eq!(master(&torchrun, shared), at("a", 29501));
        let text = |set: &'static [(&str, &str)]| master(&torchrun, variables(set)).unwrap_err().to_string();
        let half = "torchrun has started 2 processes, and MASTER_PORT is not set: it says where the first one listens";
        assert_eq!(text(&[("MASTER_ADDR", "a")]).lines().next(), Some(half));
        assert!(text(&[]).contains("MASTER_ADDR is not set"));
        assert!(
            text(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "0")])
                .contains("MASTER_PORT has to be a port, from 1 to 65535")
        );
        let mpirun = Place { launcher: "mpirun", ..torchrun.clone() };
        assert_eq!(master(&mpirun, variables(&[("MASTER_PORT", "29500")])), Ok(None));
        assert!(master(&mpirun, variables(&[("MASTER_ADDR", "a")])).is_err());
    }

    #[test]
    fn one_process_is_alone() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]), Ok(None), "a batch script");
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]), Ok(None), "a submitted task");
    }

    #[test]
    fn what_is_incomplete_or_no_number_is_an_error() {
        let text = |set: &[(&str, &str)]| of(set).unwrap_err().to_string();
        assert_eq!(
            text(&[("RANK", "1")]),
            "RANK is set and WORLD_SIZE is not: this looks like a process of torchrun, but not how many there are\n  \
             help: set both, or none to run alone"
        );
        assert!(text(&[("PMI_SIZE", "2")]).starts_with("PMI_SIZE is set and PMI_RANK is not"));
        assert_eq!(
            text(&[("RANK", "2"), ("WORLD_SIZE", "2")]),
            "RANK=\"2\" is no number of torchrun's processes\n  help: RANK has to be less than WORLD_SIZE=2"
        );
        assert!(text(&[("RANK", "0"), ("WORLD_SIZE", "many")]).contains("WORLD_SIZE has to be 1 or more"));
    }
}
