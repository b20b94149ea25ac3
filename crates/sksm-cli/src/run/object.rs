//! The preload object: where it was installed, or else where a copy of this command's own is put.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use twox_hash::XxHash3_64;

use super::program;

const NAME: &str = "libsksm_preload.so";

/// What build.rs made. Empty for machines that it cannot be loaded on.
static OWN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libsksm_preload.so"));

/// Where SKSM_PRELOAD says, beside this program, where it is installed, or where programs keep what they can make again.
pub fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SKSM_PRELOAD") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("SKSM_PRELOAD names {}, which is no file", path.display());
        }
        // Not resolved: it may be a link for the sake of its path.
        return Ok(std::path::absolute(path)?);
    }
    let own = env::current_exe()?.canonicalize()?;
    let dir = own.parent().context("this program has no directory")?;
    let places = ["", "../lib/sksm", "../lib"].map(|place| dir.join(place).join(NAME));
    for place in &places {
        // A build of the whole workspace leaves one with std beside the command, which costs every process more than it may save.
        if place.is_file() && !program::needs_unwinder(place).unwrap_or(false) {
            return Ok(place.canonicalize()?);
        }
    }
    if OWN.is_empty() {
        bail!(
            "cannot find {NAME} in {}; SKSM_PRELOAD can name it",
            places.map(|place| place.display().to_string()).join(", ")
        );
    }
    // SAFETY: this only reads.
    let root = unsafe { libc::geteuid() } == 0;
    let dir = directory(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"), root);
    let dir = dir.context(
        "there is no directory for the preload object: set XDG_CACHE_HOME, or SKSM_PRELOAD to its path",
    )?;
    put(&dir, OWN).with_context(|| {
        format!(
            "cannot keep the preload object in {}; XDG_CACHE_HOME can name another place, SKSM_PRELOAD an object",
            dir.display()
        )
    })
}

/// A file that stays, as programs load it whenever they start others: no memory of this process, nothing that a logout removes.
fn directory(cache: Option<OsString>, home: Option<OsString>, root: bool) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let cache = match cache.and_then(absolute) {
        Some(cache) => cache,
        // Root's programs go on as other users, who may see nothing of its home.
        None if root => "/var/cache".into(),
        None => home.and_then(absolute)?.join(".cache"),
    };
    Some(cache.join("sksm-preload"))
}

/// Puts the object there, or finds that it is there; and that nobody else can change it, as whoever can has it run in every program
/// that is started with it.
fn put(dir: &Path, object: &[u8]) -> Result<PathBuf> {
    let new = !dir.exists();
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    // Links are followed once and for all.
    let dir = dir.canonicalize()?;
    check(&dir)?;
    if new {
        // Whatever the umask: others may have to load it.
        fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
    }
    // Another version has another name: what was started with that goes on loading it.
    let path = dir.join(format!(
        "libsksm_preload-{:016x}.so",
        XxHash3_64::oneshot(object)
    ));
    if !holds(&path, object).unwrap_or(false) {
        let mut file = tempfile::NamedTempFile::new_in(&dir)?;
        file.write_all(object)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        // At once: others may be looking.
        file.persist(&path)?;
    }
    Ok(path)
}

/// Fails if somebody but this user and root can change what is in this directory, or which one has its name.
fn check(dir: &Path) -> Result<()> {
    // SAFETY: this only reads.
    let user = unsafe { libc::geteuid() };
    for dir in dir.ancestors() {
        let data = fs::symlink_metadata(dir)?;
        // In a directory with the sticky bit others leave alone what is not theirs.
        let writable = data.mode() & 0o022 != 0 && data.mode() & libc::S_ISVTX == 0;
        if writable || ![0, user].contains(&data.uid()) {
            bail!(
                "{} is another user's, or others may write to it",
                dir.display()
            );
        }
    }
    Ok(())
}

/// Whether the file has this content, and is this user's.
fn holds(path: &Path, object: &[u8]) -> io::Result<bool> {
    let mut options = File::options();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let data = file.metadata()?;
    // SAFETY: this only reads.
    let own = data.uid() == unsafe { libc::geteuid() };
    if !own || !data.is_file() || data.mode() & 0o777 != 0o644 || data.len() != object.len() as u64
    {
        return Ok(false);
    }
    let mut found = Vec::with_capacity(object.len());
    file.read_to_end(&mut found)?;
    Ok(found == object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_user_has_it() {
        let some = |path: &str| Some(OsString::from(path));
        for (cache, home, root, found) in [
            (some("/c"), some("/h"), false, Some("/c/sksm-preload")),
            (some("/c"), some("/h"), true, Some("/c/sksm-preload")),
            (None, some("/h"), false, Some("/h/.cache/sksm-preload")),
            (None, some("/root"), true, Some("/var/cache/sksm-preload")),
            // As the specification says.
            (some("c"), some("/h"), false, Some("/h/.cache/sksm-preload")),
            (some(""), some(""), false, None),
            (None, None, false, None),
        ] {
            assert_eq!(
                directory(cache, home, root).as_deref(),
                found.map(Path::new)
            );
        }
    }

    #[test]
    fn it_is_put_there_once_and_mended() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("a/sksm-preload");
        let path = put(&dir, b"object").unwrap();
        let number = |path: &Path| fs::metadata(path).unwrap().ino();
        let first = number(&path);
        assert_eq!(put(&dir, b"object").unwrap(), path);
        assert_eq!(number(&path), first);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        let other = put(&dir, b"another").unwrap();
        assert_ne!(other, path);
        // Cut off, replaced by a link, or for others to write to.
        let wrong: [&dyn Fn(); 3] = [
            &|| fs::write(&path, b"obj").unwrap(),
            &|| {
                fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink(&other, &path).unwrap();
            },
            &|| fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap(),
        ];
        for wrong in wrong {
            wrong();
            assert_eq!(put(&dir, b"object").unwrap(), path);
            let data = fs::symlink_metadata(&path).unwrap();
            assert!(data.is_file() && data.mode() & 0o7777 == 0o644);
            assert_eq!(fs::read(&path).unwrap(), b"object");
        }
        assert_eq!(fs::read(&other).unwrap(), b"another");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn where_others_may_write_it_is_not_put() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("sksm");
        for mode in [0o777, 0o775] {
            put(&dir, b"object").unwrap();
            for open in [cache.path(), &dir] {
                let before = fs::metadata(open).unwrap().permissions();
                fs::set_permissions(open, Permissions::from_mode(mode)).unwrap();
                let error = put(&dir, b"object").unwrap_err().to_string();
                assert!(error.contains(open.to_str().unwrap()), "{error}");
                fs::set_permissions(open, before).unwrap();
            }
        }
        // As /tmp is.
        fs::set_permissions(cache.path(), Permissions::from_mode(0o1777)).unwrap();
        put(&dir, b"object").unwrap();
    }
}
