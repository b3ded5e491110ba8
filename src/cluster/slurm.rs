//! Submits tasks as job arrays of Slurm: one per stage, or several if a site limits their length. Each array waits for the arrays
//! of its input stages. Slurm only starts tasks; the state of the work is in the store.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Array, Site, Wanted};

/// Slurm's default of `MaxArraySize`, which is the longest array plus one. It is used if `scontrol` does not report the value.
const MAX_ARRAY_SIZE: usize = 1001;

/// Why a script was not submitted.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    #[error("sbatch cannot be started: {0}; submit on a machine that has Slurm, or print the scripts with --dry-run")]
    NoSbatch(std::io::Error),
    #[error("sbatch refused {}: {text}", script.display())]
    Refused { script: PathBuf, text: String },
}

/// The script of an array.
pub fn script(site: &Site, array: &Array, wanted: &Wanted) -> String {
    let Array { name, tasks, .. } = array;
    let mut text = String::from("#!/bin/sh\n");
    let mut option = |name: &str, value: &str| {
        let _ = writeln!(text, "#SBATCH --{name}={}", double_quoted(value));
    };
    let at_once = wanted.at_once.map_or(String::new(), |most| format!("%{most}"));
    option("job-name", &format!("{}-{name}", site.name));
    option("array", &format!("0-{}{at_once}", tasks.len() - 1));
    option("chdir", &site.base.display().to_string());
    option("output", &site.folder.join("logs").join(format!("{name}-%a.log")).display().to_string());
    option("open-mode", "append");
    option("signal", &format!("TERM@{}", wanted.warning()));
    let number = |value: &Option<u32>| value.as_ref().map(ToString::to_string);
    for (name, value) in [
        ("partition", wanted.partition.clone()),
        ("time", wanted.time.clone()),
        ("gpus", number(&wanted.gpus)),
        ("cpus-per-task", number(&wanted.cpus)),
        ("mem", wanted.memory.clone()),
    ] {
        if let Some(value) = value {
            option(name, &value);
        }
    }
    text += "#SBATCH --requeue\n";
    wanted.options.iter().flatten().for_each(|line| text += &format!("#SBATCH {line}\n"));
    wanted.setup.iter().for_each(|lines| text += &format!("{}\n", lines.trim_end()));

    text += &site.point(array, "SLURM_ARRAY_TASK_ID");
    // A step does not get the CPUs of its job unless it asks for them.
    let cpus = wanted.cpus.map_or(String::new(), |cpus| format!(" --cpus-per-task={cpus}"));
    let _ = write!(
        text,
        "\
srun{cpus} {}
code=$?
# 130: interrupted, with a checkpoint. It goes on from there, on whichever machine.
if [ \"$code\" -eq 130 ]; then scontrol requeue \"$SLURM_JOB_ID\"; fi
exit \"$code\"
",
        site.command(array, wanted),
    );
    text
}

/// The most tasks that an array may have on this site.
pub fn longest_array() -> usize {
    let output = Command::new("scontrol").args(["show", "config"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("MaxArraySize"));
    // The numbers of tasks must be below `MaxArraySize`.
    line.and_then(|line| line.trim_start_matches([' ', '=']).trim().parse().ok()).unwrap_or(MAX_ARRAY_SIZE) - 1
}

/// Submits a script that starts when the jobs `after` have ended, successfully or not. Then tasks whose inputs exist run, and
/// tasks with a missing input end at once. Returns the id of the job.
///
/// # Errors
/// [`SlurmError`].
pub fn submit(script: &Path, after: &[String]) -> Result<String, SlurmError> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable");
    if !after.is_empty() {
        command.arg(format!("--dependency=afterany:{}", after.join(":")));
    }
    let output = command.arg(script).output().map_err(SlurmError::NoSbatch)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // `ID`, or `ID;CLUSTER`.
    let id = stdout.trim().split(';').next().unwrap_or_default();
    match output.status.success() && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) {
        true => Ok(id.to_owned()),
        false => {
            Err(SlurmError::Refused { script: script.to_owned(), text: format!("{}{}", stdout.trim(), stderr.trim()) })
        }
    }
}

/// The value of an `#SBATCH` option, in quotes if needed.
fn double_quoted(text: &str) -> String {
    match text.contains(|c: char| c.is_whitespace() || "\"'\\".contains(c)) {
        true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{
            State,
            array::tests::{site, task},
        },
        stage::Stage,
    };

    #[test]
    fn a_script_says_all_that_slurm_and_the_task_need() {
        let tasks = [task(Stage::Pretrain, 0, State::Waiting), task(Stage::Pretrain, 3, State::Waiting)];
        let array = Array { name: "pretrain-0".into(), stage: Stage::Pretrain, tasks: tasks.iter().collect() };
        let wanted = Wanted {
            partition: Some("gpu".into()),
            cpus: Some(4),
            gpus: Some(1),
            at_once: Some(8),
            device: Some("cuda:0".into()),
            options: Some(vec!["--account=lab".into()]),
            setup: Some("module load cuda\n".into()),
            ..Wanted::default()
        };
        let expected = r#"#!/bin/sh
#SBATCH --job-name=sweep-pretrain-0
#SBATCH --array=0-1%8
#SBATCH --chdir="/home/a b"
#SBATCH --output="/team's/runs/cluster/sweep-1/logs/pretrain-0-%a.log"
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --partition=gpu
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --account=lab
module load cuda
point=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))s/ .*//p" '/team'\''s/runs/cluster/sweep-1/pretrain-0.tasks')
srun --cpus-per-task=4 /opt/snclr run '/team'\''s/runs/cluster/sweep-1/points'/"$point".yaml --only pretrain --runs '/team'\''s/runs' --threads 4 --device cuda:0
code=$?
# 130: interrupted, with a checkpoint. It goes on from there, on whichever machine.
if [ "$code" -eq 130 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"#;
        assert_eq!(script(&site(), &array, &wanted), expected);
    }
}
