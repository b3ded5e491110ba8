//! Starts ranks over MPI. With `SNCLR_REQUIRE_MPI` a missing launcher is a failure. `SNCLR_MPIRUN` names a launcher other than
//! `mpirun`.

use std::process::Command;

/// The launcher and its arguments for `ranks` ranks on this machine. None if no launcher can be started.
pub fn launcher(ranks: usize) -> Option<Command> {
    let line = std::env::var("SNCLR_MPIRUN").unwrap_or_else(|_| "mpirun".to_owned());
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    let version = Command::new(command.get_program()).arg("--version").output();
    let Ok(version) = version else {
        assert!(std::env::var_os("SNCLR_REQUIRE_MPI").is_none(), "{line} cannot be started");
        eprintln!("skipped: {line} cannot be started");
        return None;
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if ["Open MPI", "OpenRTE"].iter().any(|name| version.contains(name)) {
        // Allow more ranks than processors, do not bind them, and allow root, the user of most containers.
        command.args(["--oversubscribe", "--bind-to", "none"]);
        command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    }
    command.args(["-np", &ranks.to_string()]);
    Some(command)
}
