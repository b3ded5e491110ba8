//! Which of how many ranks this process is, as its launcher says in the environment.

/// Variables by which a launcher tells.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    /// How many ranks are on this machine.
    local: &'static str,
    /// Which of the ranks of this machine this one is.
    local_rank: &'static str,
    /// Whether `rank` may stand alone, and then says nothing.
    lone_rank: bool,
}

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
    // A batch script has a number too. It is one process, however many tasks the job has.
    Launcher {
        name: "srun",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local: "SLURM_STEP_TASKS_PER_NODE",
        local_rank: "SLURM_LOCALID",
        lone_rank: true,
    },
    Launcher {
        name: "torchrun",
        rank: "RANK",
        size: "WORLD_SIZE",
        local: "LOCAL_WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        lone_rank: false,
    },
];

/// Set by Open MPI where it gave each rank processors of its own.
const BOUND: &str = "OMPI_MCA_orte_bound_at_launch";

/// One of several ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub launcher: &'static str,
    pub rank: usize,
    pub size: usize,
    /// How many ranks share this one's processors, where the launcher says so.
    pub local: Option<usize>,
    /// Which of the ranks of this machine it is, from 0, where the launcher says so.
    pub local_rank: Option<usize>,
}

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
        "{launcher} has started {size} processes, and this build has no MPI: each would do the whole work\n  \
         help: build with --features mpi (docs/how-to/many-ranks.md), or start one process"
    )]
    NoMpi { launcher: &'static str, size: usize },
    #[error(
        "{launcher} has started {size} processes, which find each other by MPI alone\n  \
         help: start them by mpirun or srun instead (docs/how-to/many-ranks.md)"
    )]
    NoTransport { launcher: &'static str, size: usize },
    #[error("{launcher} has started {size} processes, and MPI knows of {found}: the program was built for another MPI")]
    OtherMpi { launcher: &'static str, size: usize, found: usize },
}

/// The place of this process among several ranks, by the environment that `variable` reads; None where it is alone.
///
/// # Errors
/// When a launcher's variables are incomplete or no numbers.
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

/// The place by this process's environment.
///
/// # Errors
/// As of [`place`].
pub fn place_here() -> Result<Option<Place>, LaunchError> {
    place(|name| std::env::var(name).ok())
}

/// Whether some launcher says that this process is not the first: then the first tells what is wrong.
pub fn is_other() -> bool {
    let ranks = LAUNCHERS.iter().filter_map(|launcher| std::env::var(launcher.rank).ok()?.parse::<usize>().ok());
    ranks.max().is_some_and(|rank| rank > 0)
}

/// Which of the ranks of this machine this one is, from 0; 0 where it is alone or the launcher does not say.
pub fn local_rank_here() -> usize {
    place_here().ok().flatten().and_then(|place| place.local_rank).unwrap_or(0)
}

/// Worker threads for each of the ranks that share processors; None where this process is alone.
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
