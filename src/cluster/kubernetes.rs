//! Writes the manifests of tasks as Indexed Jobs of Kubernetes (1.29 and later), one per array. Kubernetes does not order jobs.
//! So a task whose input is missing ends at once, and Kubernetes starts it again after a pause, which doubles each time up to ten
//! minutes. The manifest says after which exit codes a task starts again, and which exit codes are final failures.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Array, Kubernetes, Site, Wanted};

/// Most tasks of a job. For longer jobs, Kubernetes requires limits on failures and on parallel tasks.
pub const LONGEST: usize = 100_000;

/// Most characters of a job's name. The name of a pod adds `-` and the index (up to 5 digits), and must be a DNS label, of at
/// most 63 characters.
const LONGEST_NAME: usize = 57;

/// How many times a task is started again after a failure, such as a killed process. Exit codes for which the manifest has a rule
/// do not count.
const RETRIES: u32 = 3;

/// Seconds for which Kubernetes keeps a job after its end, so that it can be inspected.
const KEPT: u32 = 24 * 3600;

/// Why a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error(
        "Kubernetes has to know an image and a volume; give --cluster FILE with `kubernetes: {{image: …, claim: …, mount: /…}}`"
    )]
    NoSection,
    #[error(
        "{what} {} is not on the volume that is mounted at {}; pods see nothing else (kubernetes.mount)",
        path.display(),
        mount.display()
    )]
    Outside { what: &'static str, path: PathBuf, mount: PathBuf },
    #[error("time: {time:?} is no time; write minutes, H:M:S or D-H:M:S, e.g. 24:00:00")]
    Time { time: String },
}

/// Checks that pods will see the runs folder, and the folder that paths of specs are relative to.
///
/// # Errors
/// When one of them is outside the volume that pods mount.
pub fn check(site: &Site, cluster: &Kubernetes) -> Result<(), KubernetesError> {
    let outside =
        |what, path: &Path| KubernetesError::Outside { what, path: path.to_owned(), mount: cluster.mount.clone() };
    for (what, path) in
        [("the runs folder", &site.runs), ("the folder that paths of specs are relative to,", &site.base)]
    {
        if !path.starts_with(&cluster.mount) {
            return Err(outside(what, path));
        }
    }
    Ok(())
}

/// The manifest of a job. `number` is part of the job's name, so that it differs from jobs of other submissions that still exist.
///
/// # Errors
/// When the time limit is not a valid time.
pub fn manifest(
    site: &Site,
    array: &Array,
    wanted: &Wanted,
    cluster: &Kubernetes,
    number: u64,
) -> Result<Value, KubernetesError> {
    let setup = wanted.setup.as_ref().map_or(String::new(), |lines| format!("{}\n", lines.trim_end()));
    let text = format!("{setup}{}exec {}\n", site.point(array, "JOB_COMPLETION_INDEX"), site.command(array, wanted));
    let mut container = json!({
        "name": "snclr",
        "image": cluster.image,
        "workingDir": site.base,
        // Kubernetes expands $(NAME), and reads $$ as $.
        "command": ["/bin/sh", "-c", text.replace('$', "$$")],
        "volumeMounts": [{ "name": "team", "mountPath": cluster.mount }],
    });
    let mut resources = Map::new();
    for (name, amount) in [
        ("cpu", wanted.cpus.map(|cpus| cpus.to_string())),
        ("memory", wanted.memory.as_deref().map(quantity)),
        ("nvidia.com/gpu", wanted.gpus.filter(|gpus| *gpus > 0).map(|gpus| gpus.to_string())),
    ] {
        if let Some(amount) = amount {
            resources.insert(name.to_owned(), amount.into());
        }
    }
    if !resources.is_empty() {
        container["resources"] = json!({ "requests": resources.clone(), "limits": resources });
    }
    let mut pod = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": wanted.warning(),
        "containers": [container],
        "volumes": [{ "name": "team", "persistentVolumeClaim": { "claimName": cluster.claim } }],
    });
    if let Some(time) = &wanted.time {
        pod["activeDeadlineSeconds"] =
            seconds(time).ok_or_else(|| KubernetesError::Time { time: time.clone() })?.into();
    }
    for (field, value) in wanted.pod.iter().flatten() {
        pod[field] = value.clone();
    }
    let labels = json!({
        "app.kubernetes.io/name": "snclr",
        "app.kubernetes.io/part-of": label(&site.name, LONGEST_NAME),
    });
    let mut metadata = json!({ "name": name(&site.name, &array.name, number), "labels": labels });
    if let Some(namespace) = &cluster.namespace {
        metadata["namespace"] = json!(namespace);
    }
    let on_exit = |action: &str, codes: &[u8]| json!({ "action": action, "onExitCodes": { "containerName": "snclr", "operator": "In", "values": codes } });
    let tasks = array.tasks.len();
    Ok(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": tasks,
            "parallelism": wanted.at_once.map_or(tasks, |most| tasks.min(most as usize)),
            "backoffLimitPerIndex": RETRIES,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
                    // 3: an input is still missing. 130: interrupted, with a checkpoint.
                    on_exit("Ignore", &[3, 130]),
                    // 2: invalid usage or spec. 4: the training diverged. Another attempt would fail in the same way.
                    on_exit("FailIndex", &[2, 4]),
                ],
            },
            "ttlSecondsAfterFinished": KEPT,
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    }))
}

/// The name of a job, a DNS label.
fn name(spec: &str, array: &str, number: u64) -> String {
    let end = format!("{}-{number:x}", array.replace('_', "-"));
    format!("{}-{end}", label(spec, LONGEST_NAME - end.len() - 1))
}

/// The name of a spec as a DNS label of at most `most` characters.
fn label(name: &str, most: usize) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = name.chars().map(plain).take(most).collect();
    // The name of a spec starts with a letter or a digit, and so does the label.
    text.trim_end_matches('-').to_owned()
}

/// Converts memory from Slurm's notation (K, M, G, T; M without a letter) to that of Kubernetes.
fn quantity(memory: &str) -> String {
    match memory.chars().last() {
        Some('0'..='9') => format!("{memory}Mi"),
        Some('K' | 'M' | 'G' | 'T') => format!("{memory}i"),
        _ => memory.to_owned(),
    }
}

/// Seconds of a time in Slurm's notation: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. None if it is invalid or zero.
fn seconds(time: &str) -> Option<u64> {
    let (days, rest) = match time.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u64>().ok()?), rest),
        None => (None, time),
    };
    let parts: Vec<u64> = rest.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = match (days, &parts[..]) {
        (None, [minutes]) => [0, *minutes, 0],
        (None, [minutes, seconds]) => [0, *minutes, *seconds],
        (Some(_), [hours]) => [*hours, 0, 0],
        (Some(_), [hours, minutes]) => [*hours, *minutes, 0],
        (_, [hours, minutes, seconds]) => [*hours, *minutes, *seconds],
        _ => return None,
    };
    let units = [(days.unwrap_or(0), 86_400), (hours, 3600), (minutes, 60), (seconds, 1)];
    units.iter().try_fold(0u64, |sum, (count, unit)| sum.checked_add(count.checked_mul(*unit)?)).filter(|&sum| sum > 0)
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

    fn cluster() -> Kubernetes {
        Kubernetes { image: "lab/snclr:1".into(), claim: "team".into(), mount: "/team's".into(), namespace: None }
    }

    #[test]
    fn a_manifest_says_all_that_kubernetes_and_the_task_need() {
        let tasks = [task(Stage::EmbedRandomInit, 0, State::Waiting), task(Stage::EmbedRandomInit, 3, State::Waiting)];
        let array =
            Array { name: "embed_random_init-0".into(), stage: Stage::EmbedRandomInit, tasks: tasks.iter().collect() };
        let pod = json!({ "nodeSelector": { "gpu": "h100" } });
        let wanted = Wanted {
            cpus: Some(4),
            gpus: Some(1),
            memory: Some("32G".into()),
            at_once: Some(8),
            device: Some("cuda:0".into()),
            time: Some("1-0".into()),
            setup: Some("ulimit -n 4096".into()),
            pod: pod.as_object().cloned(),
            ..Wanted::default()
        };
        let expected = r#"apiVersion: batch/v1
kind: Job
metadata:
  name: sweep-embed-random-init-0-1f
  labels:
    app.kubernetes.io/name: snclr
    app.kubernetes.io/part-of: sweep
spec:
  completionMode: Indexed
  completions: 2
  parallelism: 2
  backoffLimitPerIndex: 3
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
    - action: Ignore
      onPodConditions:
      - type: DisruptionTarget
        status: 'True'
    - action: Ignore
      onExitCodes:
        containerName: snclr
        operator: In
        values:
        - 3
        - 130
    - action: FailIndex
      onExitCodes:
        containerName: snclr
        operator: In
        values:
        - 2
        - 4
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels:
        app.kubernetes.io/name: snclr
        app.kubernetes.io/part-of: sweep
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      containers:
      - name: snclr
        image: lab/snclr:1
        workingDir: /home/a b
        command:
        - /bin/sh
        - -c
        - |
          ulimit -n 4096
          point=$$(sed -n "$$((JOB_COMPLETION_INDEX + 1))s/ .*//p" '/team'\''s/runs/cluster/sweep-1/embed_random_init-0.tasks')
          exec /opt/snclr run '/team'\''s/runs/cluster/sweep-1/points'/"$$point".yaml --only embed_random_init --runs '/team'\''s/runs' --threads 4 --device cuda:0
        volumeMounts:
        - name: team
          mountPath: /team's
        resources:
          requests:
            cpu: '4'
            memory: 32Gi
            nvidia.com/gpu: '1'
          limits:
            cpu: '4'
            memory: 32Gi
            nvidia.com/gpu: '1'
      volumes:
      - name: team
        persistentVolumeClaim:
          claimName: team
      activeDeadlineSeconds: 86400
      nodeSelector:
        gpu: h100
"#;
        let manifest = manifest(&site(), &array, &wanted, &cluster(), 31).unwrap();
        assert_eq!(serde_yaml::to_string(&manifest).unwrap(), expected);
    }

    #[test]
    fn names_are_dns_labels_whatever_specs_are_called() {
        let long = "A.Long_name".repeat(18);
        let name = name(&long, "embed_random_init-9", u64::MAX >> 28);
        assert_eq!(name, "a-long-namea-long-namea-lon-embed-random-init-9-fffffffff");
        assert!(name.len() <= LONGEST_NAME);
        assert_eq!(label("X_", 20), "x");
    }

    #[test]
    fn what_pods_do_not_see_is_refused() {
        let told = check(&site(), &cluster()).unwrap_err().to_string();
        let expected = "the folder that paths of specs are relative to, /home/a b is not on the volume that is mounted at \
                        /team's; pods see nothing else (kubernetes.mount)";
        assert_eq!(told, expected);
        assert!(check(&Site { base: "/team's/specs".into(), ..site() }, &cluster()).is_ok());
        assert!(check(&Site { runs: "/team".into(), ..site() }, &cluster()).is_err());
    }

    #[test]
    fn times_and_memory_are_written_as_for_slurm() {
        let times = ["90", "1:30", "4:00:00", "2-0", "1-2:30", "1-2:30:01", "0", "soon", "1:2:3:4", "1-"];
        let day = 86_400;
        let expected = [5400, 90, 14_400, 2 * day, day + 9000, day + 9001].map(Some);
        assert_eq!(times.map(seconds)[..6], expected);
        assert_eq!(times.map(seconds)[6..], [None; 4]);
        assert_eq!(["32G", "4000", "1.5Gi", "512M"].map(quantity), ["32Gi", "4000Mi", "1.5Gi", "512Mi"]);
    }
}
