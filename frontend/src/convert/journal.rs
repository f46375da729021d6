//! What of a conversion is finished: a file beside the output, which is there until all is.

use super::ConvertError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const NAME: &str = ".eva-convert.json";
const LOCK: &str = ".eva-convert.lock";

/// The journal of a conversion, which nobody else writes meanwhile.
pub struct Journal {
    folder: PathBuf,
    noted: Noted,
    /// Held as long as this lives.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Noted {
    /// Which conversion it is.
    conversion: String,
    /// The hash of each finished file.
    finished: BTreeMap<String, String>,
}

impl Journal {
    /// Begins a conversion in `folder`, which is made, or goes on with it.
    pub fn open(folder: &Path, conversion: &str) -> Result<Self, ConvertError> {
        let path = folder.join(NAME);
        let known = path.exists() || folder.join(LOCK).exists();
        let occupied =
            fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file();
        if occupied && !known {
            return Err(ConvertError::Exists { path: folder.into() });
        }
        fs::create_dir_all(folder).map_err(|error| ConvertError::io(folder, "create it", error))?;
        let lock = folder.join(LOCK);
        let open = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = open.map_err(|error| ConvertError::io(&lock, "create it", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ConvertError::Locked { path: folder.into() }),
            Err(TryLockError::Error(error)) => return Err(ConvertError::io(&lock, "lock it", error)),
        }
        remove_leftovers(folder)?;
        let noted = match fs::read(&path) {
            // A journal appears whole: what cannot be read is another program's.
            Ok(bytes) => match serde_json::from_slice::<Noted>(&bytes) {
                Ok(noted) if noted.conversion == conversion => noted,
                _ => return Err(ConvertError::Another { path: folder.into() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Noted { conversion: conversion.into(), finished: BTreeMap::new() }
            }
            Err(error) => return Err(ConvertError::io(&path, "read it", error)),
        };
        let journal = Self { folder: folder.into(), noted, _lock: file };
        journal.write()?;
        Ok(journal)
    }

    /// Whether this file is finished, and is what was written.
    pub fn has(&self, file: &Path) -> Result<bool, ConvertError> {
        let Some(expected) = self.noted.finished.get(&name(file)) else { return Ok(false) };
        if !file.exists() {
            return Ok(false);
        }
        Ok(hash(file)? == *expected)
    }

    /// Notes that this file is finished.
    pub fn finished(&mut self, file: &Path) -> Result<(), ConvertError> {
        sync_folder(&self.folder)?;
        let hash = hash(file)?;
        self.noted.finished.insert(name(file), hash);
        self.write()
    }

    /// Removes the journal: all is done.
    pub fn close(self) -> Result<(), ConvertError> {
        for name in [NAME, LOCK] {
            let path = self.folder.join(name);
            fs::remove_file(&path).map_err(|error| ConvertError::io(&path, "remove it", error))?;
        }
        sync_folder(&self.folder)
    }

    fn write(&self) -> Result<(), ConvertError> {
        let path = self.folder.join(NAME);
        let json = serde_json::to_vec(&self.noted);
        let json = json.map_err(|error| ConvertError::io(&path, "write it", error.into()))?;
        atomic_write(&path, &json)
    }
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The hash of what a file has now.
fn hash(path: &Path) -> Result<String, ConvertError> {
    let failed = |error| ConvertError::io(path, "read it", error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes what an interrupted run had not finished.
fn remove_leftovers(folder: &Path) -> Result<(), ConvertError> {
    let read = |error| ConvertError::io(folder, "list it", error);
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = name(&path);
        if name.starts_with('.') && name.ends_with(".tmp") {
            fs::remove_file(&path).map_err(|error| ConvertError::io(&path, "remove it", error))?;
        }
    }
    Ok(())
}

/// Writes a file that is there as a whole or not at all.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), ConvertError> {
    let temporary = path.with_file_name(format!(".{}.tmp", name(path)));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = done {
        // Nothing can be done about a failure here; the next run removes it.
        let _ = fs::remove_file(&temporary);
        return Err(ConvertError::io(path, "write it", error));
    }
    path.parent().map_or(Ok(()), sync_folder)
}

/// Has the names in a folder last.
fn sync_folder(folder: &Path) -> Result<(), ConvertError> {
    if cfg!(unix) {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| ConvertError::io(folder, "sync it", error))?;
    }
    Ok(())
}
