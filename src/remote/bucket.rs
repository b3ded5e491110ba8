//! Reads and writes objects in a bucket or a folder, with the crate `object_store`.

use std::{
    fs::{self, File},
    future::Future,
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::StreamExt;
use object_store::{
    ClientConfigKey, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    path::Path as Name,
};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};

use super::{
    address::{Address, Scheme},
    objects::{Failure, Meta, Objects, Take},
};
use crate::artifact::hash::hex;

/// Longest time to wait for the start of an answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// Bytes per second below which an answer that has begun counts as stuck.
const SLOWEST: u64 = 100_000;

/// Bytes per second below which an upload counts as stuck. The limit applies to each part, because nothing is known of a part
/// before it has arrived as a whole.
const SLOWEST_SENT: u64 = 2_000_000;

/// Length of the parts of a large file: the smallest that S3 takes.
const PART: usize = 5 << 20;

/// Settings of the HTTP client. Its own timeout is long, because a large file may take an hour; stuck requests end by the limits
/// above.
const CLIENT: [(ClientConfigKey, &str); 2] =
    [(ClientConfigKey::Timeout, "1day"), (ClientConfigKey::ConnectTimeout, "2s")];

/// A bucket or folder. The first request opens the connection.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Name,
    /// Set until the drop.
    runtime: Option<Runtime>,
}

/// Opens a bucket or folder without sending a request. Keys and endpoints come from environment variables: `AWS_…`, `GOOGLE_…`,
/// `AZURE_…`.
///
/// # Errors
/// When the environment variables are not valid, or a folder cannot be created.
pub fn open(address: &Address) -> Result<Box<dyn Objects>, Failure> {
    // An error only means that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bucket = address.bucket();
    let retry = RetryConfig { max_retries: 2, retry_timeout: PATIENCE, ..RetryConfig::default() };
    let mut prefix = Name::from(address.prefix());
    let store: Arc<dyn ObjectStore> = match address.scheme() {
        Scheme::S3 => {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
            let set = |b: AmazonS3Builder, (key, value)| b.with_config(AmazonS3ConfigKey::Client(key), value);
            Arc::new(CLIENT.into_iter().fold(builder, set).with_checksum_algorithm(Checksum::SHA256).build()?)
        }
        Scheme::Google => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
            let set = |b: GoogleCloudStorageBuilder, (key, value)| b.with_config(GoogleConfigKey::Client(key), value);
            Arc::new(CLIENT.into_iter().fold(builder, set).build()?)
        }
        Scheme::Azure => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
            let set = |b: MicrosoftAzureBuilder, (key, value)| b.with_config(AzureConfigKey::Client(key), value);
            Arc::new(CLIENT.into_iter().fold(builder, set).build()?)
        }
        Scheme::Folder => {
            prefix = Name::default();
            let made = fs::create_dir_all(address.prefix());
            made.map_err(|error| Failure::Broken(format!("creating {}: {error}", address.prefix())))?;
            Arc::new(LocalFileSystem::new_with_prefix(address.prefix())?)
        }
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Broken(format!("starting a thread: {error}")))?;
    Ok(Box::new(Bucket { store, prefix, runtime: Some(runtime) }))
}

impl Objects for Bucket {
    fn read(&self, name: &str, take: &mut Take) -> Result<SystemTime, Failure> {
        self.wait(async {
            let object = in_time(PATIENCE, self.store.get(&self.name(name))).await?;
            let begun = Instant::now();
            let (modified, mut pieces, mut seen) = (object.meta.last_modified.into(), object.into_stream(), 0u64);
            while let Some(piece) = in_time(PATIENCE, async { pieces.next().await.transpose() }).await? {
                seen += piece.len() as u64;
                take(&piece)?;
                if begun.elapsed() > PATIENCE + Duration::from_secs(seen / SLOWEST) {
                    return Err(Failure::Broken(format!("{name}: comes too slowly")));
                }
            }
            Ok(modified)
        })
    }

    fn put(&self, name: &str, bytes: &[u8], new: bool) -> Result<(), Failure> {
        let mode = if new { PutMode::Create } else { PutMode::Overwrite };
        let name = self.name(name);
        let put = self.store.put_opts(&name, PutPayload::from(bytes.to_vec()), mode.into());
        self.wait(in_time(time_to_send(bytes.len()), put)).map(drop).map_err(no_bucket)
    }

    fn upload(&self, name: &str, path: &Path, size: u64, sha256: &str) -> Result<(), Failure> {
        let mut file = Source::open(path)?;
        if size <= PART as u64 {
            // Asks for one byte more: if there is one, the file has changed, and the check fails.
            let bytes = file.part(size as usize + 1)?;
            file.check(size, sha256)?;
            return self.put(name, &bytes, false);
        }
        self.wait(async {
            let name = self.name(name);
            let mut upload = in_time(PATIENCE, self.store.put_multipart(&name)).await?;
            let sent = async {
                loop {
                    let bytes = file.part(PART)?;
                    if bytes.is_empty() {
                        break;
                    }
                    in_time(time_to_send(bytes.len()), upload.put_part(PutPayload::from(bytes))).await?;
                }
                file.check(size, sha256)?;
                in_time(PATIENCE, upload.complete()).await
            };
            let sent = sent.await;
            if sent.is_err() {
                let _ = in_time(PATIENCE / 6, upload.abort()).await;
            }
            sent.map(drop)
        })
        .map_err(no_bucket)
    }

    fn look(&self, name: &str) -> Result<Option<Meta>, Failure> {
        match self.wait(in_time(PATIENCE, self.store.head(&self.name(name)))) {
            Ok(meta) => Ok(Some(self.meta(&meta))),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Meta)) -> Result<(), Failure> {
        let folder = self.name(folder);
        self.wait(async {
            let mut objects = self.store.list(Some(&folder));
            while let Some(object) = in_time(PATIENCE, async { objects.next().await.transpose() }).await? {
                each(self.meta(&object));
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<(), Failure> {
        match self.wait(in_time(PATIENCE, self.store.delete(&self.name(name)))) {
            Err(Failure::Missing) => Ok(()),
            deleted => deleted,
        }
    }
}

impl Bucket {
    fn name(&self, name: &str) -> Name {
        self.prefix.parts().chain(Name::from(name).parts()).collect()
    }

    fn meta(&self, meta: &ObjectMeta) -> Meta {
        let parts = meta.location.parts().skip(self.prefix.parts().count());
        let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
        Meta { name, size: meta.size, modified: meta.last_modified.into() }
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("set until the drop").block_on(future)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // Does not wait for requests that hang.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A file that is uploaded, and the hash of the bytes read from it so far.
struct Source<'a> {
    path: &'a Path,
    file: File,
    hasher: Sha256,
    seen: u64,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Source { path, file, hasher: Sha256::new(), seen: 0 })
    }

    /// Reads the next `length` bytes, or fewer if the file ends before.
    fn part(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::with_capacity(length);
        let read = self.file.by_ref().take(length as u64).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(self.path, &error))?;
        self.hasher.update(&bytes);
        self.seen += bytes.len() as u64;
        Ok(bytes)
    }

    /// Checks that the bytes read have the announced size and hash.
    fn check(&self, size: u64, sha256: &str) -> Result<(), Failure> {
        match self.seen == size && hex(&self.hasher.clone().finalize()) == sha256 {
            true => Ok(()),
            false => Err(Failure::Local(format!("{}: does not match its hash", self.path.display()))),
        }
    }
}

/// Explains a missing object after a write: only the bucket itself can be missing then.
fn no_bucket(failure: Failure) -> Failure {
    match failure {
        Failure::Missing => Failure::Broken("it cannot be written to: there is no such bucket".to_owned()),
        failure => failure,
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Local(format!("reading {}: {error}", path.display()))
}

async fn in_time<T, E: Into<Failure>>(
    limit: Duration,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, future).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Failure::Broken(format!("no answer within {} s", limit.as_secs()))),
    }
}

fn time_to_send(bytes: usize) -> Duration {
    PATIENCE + Duration::from_secs(bytes as u64 / SLOWEST_SENT)
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        use object_store::Error;
        match error {
            Error::NotFound { .. } => Failure::Missing,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Failure::Exists,
            error => {
                // The text contains the server's whole answer with its XML, so only the start of its first line is kept.
                let text = error.to_string();
                Failure::Broken(text.lines().next().unwrap_or_default().chars().take(300).collect())
            }
        }
    }
}
