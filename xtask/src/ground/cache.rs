//! Files of the cache that are whole or absent.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

use anyhow::{Context, Result};

/// Writes through a temporary file, so that an interruption leaves the old content.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    replace(path, |new| fs::write(new, content.as_ref()))
}

/// Copies a file so, with its permissions.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    replace(to, |new| fs::copy(from, new).map(|_length| ()))
        .with_context(|| format!("cannot copy {}", from.display()))
}

fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let attempt = || -> Result<()> {
        let dir = path.parent().context("the path has no directory")?;
        fs::create_dir_all(dir)?;
        let mut name = path.file_name().context("the path has no name")?.to_owned();
        name.push(".new");
        let new = dir.join(name);
        let made = make(&new).and_then(|()| fs::rename(&new, path));
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        Ok(made?)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

/// As `write`, but leaves a file alone that has that content already, and with it its time.
pub fn update(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    write(path, content)?;
    Ok(true)
}

/// Removes a file or directory that may be absent.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Names things by their content; another hash in another Rust only means doing a step again.
pub fn fingerprint(of: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_copy_replaces_the_file_and_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("a/to"));
        write(&from, "new").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).unwrap();
        write(&to, "old").unwrap();
        let open = fs::File::open(&to).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&to).unwrap().permissions().mode() & 0o777,
            0o755
        );
        // Whoever runs the old one keeps it.
        assert_eq!(std::io::read_to_string(open).unwrap(), "old");
        assert!(copy(&dir.path().join("absent"), &to).is_err());
    }

    #[test]
    fn unchanged_content_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        assert!(update(&path, b"1").unwrap());
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!update(&path, b"1").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
        assert!(update(&path, b"2").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"2");
        remove(&path).unwrap();
        remove(&path).unwrap();
        remove(dir.path().join("a").as_path()).unwrap();
    }
}
