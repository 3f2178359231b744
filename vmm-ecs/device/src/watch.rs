//! A directory in which each `NAME.toml` stands for a VM.
//!
//! An operator creates `NAME.toml` (its content is the daemon's business: weight, enabled, ...) and
//! the daemon binds a socket for it; removing the file takes the VM away. This module only says
//! which names there are. The caller asks again, once a second say, and compares.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Longest name, bytes.
pub const MAX_NAME: usize = 64;
/// VMs in one directory at most.
pub const MAX_VMS: usize = 1024;

/// Why a directory or a name is refused.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The directory cannot be read.
    #[error("Cannot read the directory of VMs {path}: create it and let the daemon read it")]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// More definitions than [`MAX_VMS`].
    #[error("More than {MAX_VMS} VMs are defined in {0}")]
    TooMany(PathBuf),
    /// The name could be mistaken for a path, an option or something hidden.
    #[error(
        "VM name {0:?}: use 1 to {MAX_NAME} of a-z A-Z 0-9 . _ - and begin with a letter or digit"
    )]
    Name(String),
}

/// What a directory holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Names of VMs, sorted.
    pub names: Vec<String>,
    /// Files ending in `.toml` whose names cannot be used, sorted.
    pub refused: Vec<String>,
}

/// Checks that a name can be part of a file name without surprises.
///
/// # Errors
/// [`WatchError::Name`].
pub fn check_name(name: &str) -> Result<(), WatchError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain);
    if good {
        Ok(())
    } else {
        Err(WatchError::Name(name.to_owned()))
    }
}

/// Lists the VMs a directory defines. Links are followed; what is not a file in the end is left
/// out, as is what disappears meanwhile.
///
/// # Errors
/// [`WatchError::Read`] and [`WatchError::TooMany`].
pub fn scan(dir: &Path) -> Result<Scan, WatchError> {
    let error = |source| WatchError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut found = Scan::default();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        match std::fs::metadata(&path) {
            Ok(kind) if kind.is_file() => {}
            Ok(_) => continue,
            Err(gone) if gone.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(error(source)),
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let list = match check_name(&stem) {
            Ok(()) => &mut found.names,
            Err(_) => &mut found.refused,
        };
        list.push(stem.into_owned());
        if found.names.len() + found.refused.len() > MAX_VMS {
            return Err(WatchError::TooMany(dir.to_owned()));
        }
    }
    found.names.sort_unstable();
    found.refused.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn names_without_tricks_only() {
        let longest = "a".repeat(MAX_NAME);
        for good in ["a", "0", "web-1", "db_2.prod", longest.as_str()] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in [
            "",
            ".",
            "..",
            ".x",
            "-x",
            "a/b",
            "a b",
            "a\0",
            "ä",
            "a\n",
            long.as_str(),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn finds_definitions_and_names_what_it_refuses() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "b.toml",
            "a.toml",
            "a b.toml",
            "notes.txt",
            "c.toml~",
            ".toml",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("d.toml")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("b.toml"), dir.path().join("e.toml")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("f.toml")).unwrap();
        let found = scan(dir.path()).unwrap();
        assert_eq!(found.names, ["a", "b", "e"]);
        assert_eq!(found.refused, ["a b"]);
        let missing = scan(&dir.path().join("missing"));
        assert!(matches!(missing, Err(WatchError::Read { .. })));
    }

    #[test]
    fn a_directory_with_too_many_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=MAX_VMS {
            fs::write(dir.path().join(format!("{n}.toml")), "").unwrap();
        }
        assert!(matches!(scan(dir.path()), Err(WatchError::TooMany(_))));
    }
}
