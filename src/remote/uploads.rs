//! Uploads artifacts on a separate thread, one after the other. A file per artifact in `uploads/` marks a pending upload, so that
//! a later run finishes what a killed one left.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Failure, checkpoints, shared::Shared};
use crate::{
    artifact::{Key, Store},
    stage::{Interrupt, Progress},
};

/// Something to upload.
pub enum Job {
    /// An artifact of the store.
    Artifact { stage: String, key: Key },
    /// The newest checkpoints of stages that have one to upload.
    Checkpoints,
    /// A manifest that was used: it is written again, so that it counts as new.
    Refresh { name: String, text: String },
}

/// The queue of uploads, and the thread that works on it.
pub struct Uploads {
    shared: Arc<Shared>,
    state: Mutex<State>,
    count: Arc<Count>,
}

#[derive(Default)]
struct State {
    sender: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Count {
    sent: AtomicU64,
    done: AtomicU64,
    /// Stages whose newest checkpoint is still to be uploaded. If a stage saves another one before that, only the newer one is
    /// uploaded.
    due: Mutex<HashSet<(String, Key)>>,
}

/// Queues the checkpoints of a running stage for upload.
pub struct CheckpointSender {
    sender: mpsc::Sender<Job>,
    count: Arc<Count>,
}

impl CheckpointSender {
    /// Queues the newest checkpoint of the stage, unless the stage is already in the queue.
    pub fn checkpoint(&self, stage: &str, key: &Key) {
        if self.count.due().insert((stage.to_owned(), key.clone())) {
            self.count.sent.fetch_add(1, Ordering::Relaxed);
            let _ = self.sender.send(Job::Checkpoints);
        }
    }
}

impl Count {
    fn due(&self) -> std::sync::MutexGuard<'_, HashSet<(String, Key)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uploads {
    pub fn new(shared: Arc<Shared>) -> Uploads {
        Uploads { shared, state: Mutex::default(), count: Arc::default() }
    }

    /// Queues the uploads that earlier runs have left.
    pub fn catch_up(&self) {
        for entry in fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((stage, key)) = Key::parse_with_stage(&name) {
                self.send(Job::Artifact { stage: stage.to_owned(), key });
            }
        }
    }

    /// Notes that an artifact is to be uploaded, now or by a later run.
    pub fn mark(&self, stage: &str, key: &Key) {
        // Best effort: without the file, the artifact is uploaded all the same, unless this process is killed before.
        let _ = fs::create_dir_all(self.dir()).and_then(|()| File::create(self.dir().join(format!("{stage}-{key}"))));
    }

    /// Queues an upload.
    pub fn send(&self, job: Job) {
        self.count.sent.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender_of_jobs().send(job);
    }

    /// A sender for the checkpoints of a stage.
    pub fn sender(&self) -> CheckpointSender {
        CheckpointSender { sender: self.sender_of_jobs(), count: self.count.clone() }
    }

    /// Waits until all queued uploads are done or the user asks to stop.
    pub fn finish(&self, progress: &dyn Progress, interrupt: &Interrupt) {
        let State { sender, thread } = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        drop(sender);
        let Some(thread) = thread else { return };
        let asked_before = interrupt.requested();
        let (sent, mut shown) = (self.count.sent.load(Ordering::Relaxed), self.count.done.load(Ordering::Relaxed));
        if shown < sent && self.shared.health.writes() {
            progress.log(&format!("uploading what was made to {}", self.shared.options.address));
            progress.start(Some(sent - shown), "uploads");
        }
        while !thread.is_finished() && interrupt.requested() == asked_before {
            let done = self.count.done.load(Ordering::Relaxed);
            progress.advance(done - shown);
            shown = done;
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn dir(&self) -> PathBuf {
        self.shared.root.join("uploads")
    }

    /// The sender to the thread. The first call starts the thread.
    fn sender_of_jobs(&self) -> mpsc::Sender<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &state.sender {
            return sender.clone();
        }
        let (sender, jobs) = mpsc::channel();
        let worker = Worker {
            store: Store::open(&self.shared.root),
            dir: self.dir(),
            shared: self.shared.clone(),
            count: self.count.clone(),
        };
        state.thread = thread::Builder::new().name("uploads".into()).spawn(move || worker.run(&jobs)).ok();
        state.sender = Some(sender.clone());
        sender
    }
}

struct Worker {
    store: Store,
    dir: PathBuf,
    shared: Arc<Shared>,
    count: Arc<Count>,
}

impl Worker {
    fn run(&self, jobs: &mpsc::Receiver<Job>) {
        let mut checkpoints = checkpoints::Sent::default();
        for job in jobs {
            if self.shared.health.writes()
                && let Err(failure) = self.upload(&job, &mut checkpoints)
            {
                match failure {
                    // The file was removed, or the stage has moved on. A damaged file of the store is found when it is next read.
                    Failure::Local(_) => {}
                    failure => self.shared.health.writing_failed(&failure),
                }
            }
            self.count.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn upload(&self, job: &Job, checkpoints: &mut checkpoints::Sent) -> Result<(), Failure> {
        match job {
            Job::Artifact { stage, key } => {
                // If there is no artifact, the run that announced it was killed before making it.
                if let Some(artifact) = self.store.artifact(stage, key) {
                    // Uploading images may take hours, and the machine may be taken away in the meantime, so checkpoints are
                    // uploaded between tables.
                    self.shared.upload(&artifact, &mut || self.upload_due(checkpoints))?;
                    if self.shared.options.checkpoints {
                        checkpoints::remove(self.shared.objects()?, stage, key)?;
                    }
                }
                let _ = fs::remove_file(self.dir.join(format!("{stage}-{key}")));
                Ok(())
            }
            Job::Checkpoints => self.upload_due(checkpoints),
            Job::Refresh { name, text } => self.shared.objects()?.put(name, text.as_bytes(), false),
        }
    }

    fn upload_due(&self, checkpoints: &mut checkpoints::Sent) -> Result<(), Failure> {
        let due: Vec<_> = self.count.due().drain().collect();
        for (stage, key) in due {
            match checkpoints.upload(self.shared.objects()?, &self.store, &stage, &key) {
                // The stage has replaced this checkpoint, and the next one will be queued.
                Err(Failure::Local(_)) => {}
                uploaded => uploaded?,
            }
        }
        Ok(())
    }
}
