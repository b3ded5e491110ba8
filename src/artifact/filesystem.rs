//! The kind of file system of a folder: whether other machines may see it, whether locks reach them, and whether folders can be
//! renamed in one step.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::statfs;

use super::atomic;

/// Which machines may see a folder, and whether locks reach all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine alone.
    Alone,
    /// Other machines too, and locks reach them.
    Locks,
    /// Other machines too, and locks do not reach them.
    NoLocks,
    /// Perhaps other machines too; whether locks reach them is not known.
    Unknown,
    /// A bucket of an object store behind FUSE: renaming a folder copies its files one by one.
    Bucket,
}

/// The file system of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// The system's name for this kind, e.g. `nfs4`.
    kind: String,
    reach: Reach,
    /// The mount option that decides `reach`, e.g. `local_lock=all`.
    option: Option<String>,
}

/// The error for a folder in which no store can be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} lies on {found}: {}", folder.display(), FileSystem::ELSEWHERE)]
pub struct UnfitFolder {
    pub folder: PathBuf,
    pub found: FileSystem,
}

/// Kinds that only one machine can see.
const ALONE: [&str; 24] = [
    "apfs",
    "bcachefs",
    "btrfs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fuse.fuse-overlayfs",
    "fuseblk",
    "hfs",
    "jfs",
    "msdos",
    "nilfs2",
    "ntfs",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "rootfs",
    "tmpfs",
    "vfat",
    "xfs",
    "zfs",
];

/// Kinds that many machines can see, with locks that reach all of them.
const WITH_LOCKS: [&str; 5] = ["ceph", "fuse.ceph-fuse", "fuse.juicefs", "gfs2", "ocfs2"];

/// Object stores behind FUSE, by the names of their programs.
const BUCKETS: [&str; 10] =
    ["blobfuse", "gcsfuse", "geesefs", "goofys", "mountpoint-s3", "ossfs", "rclone", "riofs", "s3fs", "s3ql"];

impl FileSystem {
    /// Why no store can be kept where folders cannot be renamed in one step, and what to do instead.
    pub const ELSEWHERE: &str =
        "an artifact could be seen half written; keep runs on a disk or a network file system (--runs)";

    /// The file system of `folder`, or of the nearest folder above it that exists.
    pub fn of(folder: &Path) -> FileSystem {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let there = absolute.ancestors().find_map(|path| path.canonicalize().ok()).unwrap_or(absolute);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        match mounts.lines().filter_map(Mount::parse).filter(|mount| there.starts_with(&mount.point)).reduce(deeper) {
            Some(mount) => mount.file_system(),
            None => by_number(&there),
        }
    }

    /// The file system of `folder`. Errors when no store can be kept there.
    pub fn check(folder: &Path) -> Result<FileSystem, UnfitFolder> {
        let found = FileSystem::of(folder);
        match found.reach {
            Reach::Bucket => Err(UnfitFolder { folder: folder.to_owned(), found }),
            _ => Ok(found),
        }
    }

    /// Which machines may see it, and whether locks reach all of them.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Whether other machines may see it.
    pub fn is_shared(&self) -> bool {
        self.reach != Reach::Alone
    }
}

/// Text for people, e.g. `nfs4 with local_lock=all, shared: locks do not reach other machines`.
impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let with = self.option.as_ref().map_or(String::new(), |option| format!(" with {option}"));
        let what = match self.reach {
            Reach::Alone => "of this machine alone",
            Reach::Locks => "shared: locks reach other machines",
            Reach::NoLocks => "shared: locks do not reach other machines",
            Reach::Unknown => "perhaps shared: whether locks reach other machines cannot be told",
            Reach::Bucket => "a bucket: folders cannot be renamed in one step",
        };
        write!(f, "{}{with}, {what}", self.kind)
    }
}

/// A line of the table of mounts.
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
    options: Vec<String>,
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo`.
    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(4);
        let (point, own) = (before.next()?, before.next()?);
        let mut after = after.splitn(3, ' ');
        let (kind, source, shared) = (after.next()?, after.next()?, after.next().unwrap_or_default());
        let options = own.split(',').chain(shared.trim().split(',')).map(str::to_owned).collect();
        Some(Mount { point: unescape(point).into(), kind: kind.to_owned(), source: unescape(source), options })
    }

    fn file_system(self) -> FileSystem {
        let Mount { kind, source, options, .. } = self;
        let given = |wanted: &[&str]| options.iter().find(|option| wanted.contains(&option.as_str())).cloned();
        let is_bucket = |name: &str| BUCKETS.iter().any(|program| name.starts_with(program));
        let (reach, option) = match kind.as_str() {
            kind if ALONE.contains(&kind) => (Reach::Alone, None),
            kind if WITH_LOCKS.contains(&kind) => (Reach::Locks, None),
            "nfs" | "nfs4" => match given(&["nolock", "local_lock=all", "local_lock=flock"]) {
                None => (Reach::Locks, None),
                option => (Reach::NoLocks, option),
            },
            "lustre" => match given(&["flock"]) {
                // Without either option there are no locks at all.
                None => (Reach::NoLocks, Some(given(&["localflock"]).unwrap_or("no option flock".to_owned()))),
                option => (Reach::Locks, option),
            },
            "cifs" | "smb3" => match given(&["nobrl"]) {
                None => (Reach::Locks, None),
                option => (Reach::NoLocks, option),
            },
            "fuse" if is_bucket(&source) => return FileSystem { kind: source, reach: Reach::Bucket, option: None },
            kind if kind.strip_prefix("fuse.").is_some_and(is_bucket) => (Reach::Bucket, None),
            _ => (Reach::Unknown, None),
        };
        FileSystem { kind, reach, option }
    }
}

/// Of two mounts above a path, the one that the path is on: the deeper one, and of two on the same folder the later one.
fn deeper(a: Mount, b: Mount) -> Mount {
    if b.point.components().count() >= a.point.components().count() { b } else { a }
}

/// Decodes blanks and similar bytes, which the table of mounts writes as a backslash and an octal number.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let code = others.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[3..];
            }
            None => {
                bytes.push(first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Recognises a file system without a table of mounts, by the number that `statfs` gives its kind.
#[cfg(target_os = "linux")]
fn by_number(path: &Path) -> FileSystem {
    let (kind, reach) = match statfs(path).map(|found| found.f_type as u32) {
        Ok(0xEF53) => ("ext4", Reach::Alone),
        Ok(0x5846_5342) => ("xfs", Reach::Alone),
        Ok(0x9123_683E) => ("btrfs", Reach::Alone),
        Ok(0x0102_1994) => ("tmpfs", Reach::Alone),
        Ok(0x794C_7630) => ("overlay", Reach::Alone),
        Ok(0x6969) => ("nfs", Reach::Unknown),
        Ok(0x0BD0_0BD0) => ("lustre", Reach::Unknown),
        Ok(0x6573_5546) => ("fuse", Reach::Unknown),
        Ok(0x00C3_6400) => ("ceph", Reach::Locks),
        _ => ("a file system of unknown kind", Reach::Unknown),
    };
    FileSystem { kind: kind.to_owned(), reach, option: None }
}

/// Without a table of mounts, nothing is known about a file system here.
#[cfg(not(target_os = "linux"))]
fn by_number(path: &Path) -> FileSystem {
    let _ = statfs(path);
    FileSystem { kind: "a file system of unknown kind".to_owned(), reach: Reach::Unknown, option: None }
}

/// The current time by the clock of the file system of `dir`, which may be another machine's. It is read from a temporary file in
/// `dir`. If none can be written there, it is the time of our own clock.
pub fn now(dir: &Path) -> SystemTime {
    let path = dir.join(atomic::unique("clock", "tmp"));
    let written = || -> io::Result<SystemTime> {
        fs::File::create_new(&path)?;
        fs::metadata(&path)?.modified()
    };
    let time = written();
    let _ = fs::remove_file(&path);
    time.unwrap_or_else(|_| SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str, path: &str) -> String {
        let mounts = lines.lines().filter_map(Mount::parse).filter(|mount| Path::new(path).starts_with(&mount.point));
        mounts.reduce(deeper).expect("a mount").file_system().to_string()
    }

    #[test]
    fn the_deepest_mount_and_its_options_decide() {
        let lines = r"
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:44 / /nfs rw,relatime - nfs4 server:/x rw,vers=4.2,local_lock=none,clientaddr=10.0.0.1
31 22 0:45 / /old rw - nfs server:/y rw,vers=3,nolock,local_lock=all
32 22 0:46 / /lustre rw - lustre mds@tcp:/z rw,flock,lazystatfs
33 22 0:47 / /lustre/local rw - lustre mds@tcp:/z rw,localflock
34 22 0:48 / /lustre/none rw - lustre mds@tcp:/z rw
35 22 0:49 / /with\040blank rw,nosuid - fuse /data rw,user_id=0
36 22 0:50 / /bucket rw - fuse.gcsfuse my-bucket rw
37 22 0:51 / /s3 rw - fuse mountpoint-s3 rw
38 22 0:52 / /smb rw - cifs //server/share rw,nobrl
39 22 0:53 / /gpfs rw - gpfs fs1 rw
";
        let reach = "shared: locks reach other machines";
        let no_reach = "shared: locks do not reach other machines";
        let unknown = "perhaps shared: whether locks reach other machines cannot be told";
        for (path, expected) in [
            ("/home/runs", "ext4, of this machine alone".to_owned()),
            ("/nfsx", "ext4, of this machine alone".to_owned()),
            ("/nfs/team/runs", format!("nfs4, {reach}")),
            ("/old/runs", format!("nfs with nolock, {no_reach}")),
            ("/lustre/runs", format!("lustre with flock, {reach}")),
            ("/lustre/local/runs", format!("lustre with localflock, {no_reach}")),
            ("/lustre/none/runs", format!("lustre with no option flock, {no_reach}")),
            ("/with blank/runs", format!("fuse, {unknown}")),
            ("/bucket/runs", "fuse.gcsfuse, a bucket: folders cannot be renamed in one step".to_owned()),
            ("/s3/runs", "mountpoint-s3, a bucket: folders cannot be renamed in one step".to_owned()),
            ("/smb/runs", format!("cifs with nobrl, {no_reach}")),
            ("/gpfs/runs", format!("gpfs, {unknown}")),
        ] {
            assert_eq!(of(lines, path), expected, "{path}");
        }
    }

    #[test]
    fn the_clock_is_that_of_the_files_and_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let before = SystemTime::now();
        assert!(now(dir.path()).duration_since(before).unwrap_or_else(|e| e.duration()).as_secs() < 60);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(now(&dir.path().join("not/there")) >= before);
    }
}
