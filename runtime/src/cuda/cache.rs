//! A folder of compiled kernels, so that the driver compiles each once on a machine.
//!
//! An entry is a file named by a hash of all that it depends on. It appears whole or not at all (written beside, then
//! renamed), and begins with its length and a hash, so one that was cut off or changed is noticed, removed and made
//! again. Any number of threads and processes may use a folder. A disk that is full, or may not be written, costs time
//! and a warning, never a failure.

use sha2::{Digest, Sha256};
use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// The first bytes of an entry, the format's version among them.
const MAGIC: [u8; 8] = *b"evakrn\x00\x01";

/// Magic, length, hash.
const HEADER: usize = 8 + 8 + 32;

/// How many bytes the entries of a folder may have.
const LIMIT: u64 = 512 << 20;

/// A file being written that is older than this belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder of compiled kernels.
#[derive(Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    limit: u64,
    warned: AtomicBool,
    written: AtomicBool,
}

/// What an entry is found by: a hash of all that it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The hash of `parts`; each counts with its length, so that no two lists of parts run together.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    fn file_name(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".cubin"
    }
}

impl Cache {
    /// The user's: `EVA_CACHE_DIR`, or `eva` in the system's folder for caches.
    pub fn of_user() -> Self {
        let named = std::env::var_os("EVA_CACHE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let folder = named.or_else(|| Some(dirs::cache_dir()?.join("eva")));
        Self::new(folder.map(|folder| folder.join("kernels")), LIMIT)
    }

    /// In this folder, which is made when something is put into it.
    pub fn at(folder: &Path) -> Self {
        Self::new(Some(folder.into()), LIMIT)
    }

    /// One that keeps nothing.
    pub fn none() -> Self {
        Self::new(None, 0)
    }

    fn new(folder: Option<PathBuf>, limit: u64) -> Self {
        Self { folder, limit, warned: AtomicBool::new(false), written: AtomicBool::new(false) }
    }

    /// With room for `limit` bytes.
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// The folder, if it has one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// How many bytes the entries may have.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many entries there are, and their bytes; none where the folder cannot be read.
    pub fn size(&self) -> (usize, u64) {
        let files = self.folder.iter().flat_map(fs::read_dir).flatten().flatten();
        let entries = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "cubin"));
        let bytes = entries.filter_map(|file| Some(file.metadata().ok()?.len()));
        bytes.fold((0, 0), |(n, sum), bytes| (n + 1, sum + bytes))
    }

    /// The entry of `key`, made and kept if it is not there; and whether it was there.
    pub fn get_or_make<E>(
        &self,
        key: Key,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<(Vec<u8>, bool), E> {
        let Some(folder) = &self.folder else { return Ok((make()?, false)) };
        let path = folder.join(key.file_name());
        if let Some(bytes) = self.read(&path) {
            return Ok((bytes, true));
        }
        let bytes = make()?;
        match write(folder, &path, &bytes) {
            Ok(()) => self.written.store(true, Ordering::Relaxed),
            Err(e) => self.warn("compiled kernels are not kept", folder, &e),
        }
        Ok((bytes, false))
    }

    /// An entry's bytes; `None` if there is no whole one.
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                self.warn("a compiled kernel cannot be read", path, &e);
                return None;
            }
        };
        let mut bytes = Vec::new();
        let whole = file.read_to_end(&mut bytes).and_then(|_| payload(&bytes));
        match whole {
            Ok(payload) => {
                // The time of its last use, for `trim`; a disk that cannot be written is no reason to complain.
                let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
                Some(payload.to_vec())
            }
            Err(e) => {
                tracing::warn!(path = %path.display(), "a compiled kernel is damaged and is made again: {e}");
                let _ = fs::remove_file(path);
                None
            }
        }
    }

    /// Removes an entry.
    pub fn forget(&self, key: Key) {
        if let Some(folder) = &self.folder {
            // If that fails, it is found again, and forgotten again.
            let _ = fs::remove_file(folder.join(key.file_name()));
        }
    }

    /// Says once what is wrong with the folder.
    fn warn(&self, what: &str, path: &Path, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(path = %path.display(), "{what}, so the next start takes longer: {error}");
        }
    }

    /// If something was written, removes what has not been used for longest until the rest fits the limit.
    pub fn trim(&self) {
        if let Some(folder) = self.folder.as_ref().filter(|_| self.written.swap(false, Ordering::Relaxed))
            && let Err(e) = trim(folder, self.limit)
        {
            self.warn("old kernels cannot be removed", folder, &e);
        }
    }
}

/// The part of an entry behind its header, if that is right.
fn payload(bytes: &[u8]) -> io::Result<&[u8]> {
    let damaged = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
        return damaged("it is shorter than its header");
    };
    if header[..8] != MAGIC {
        return damaged("it has another format");
    }
    if header[8..16] != (payload.len() as u64).to_le_bytes() {
        return damaged("its length is not what its header says");
    }
    if header[16..] != Sha256::digest(payload)[..] {
        return damaged("its contents have changed");
    }
    Ok(payload)
}

/// Writes an entry, at once as others see it.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().suffix(".part").tempfile_in(folder)?;
    file.write_all(&MAGIC)?;
    file.write_all(&(bytes.len() as u64).to_le_bytes())?;
    file.write_all(&Sha256::digest(bytes))?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Removes entries, those used longest ago first, until the rest have `limit` bytes; and what writers that are gone
/// have left. Files that are neither stay.
fn trim(folder: &Path, limit: u64) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Others may remove a file meanwhile.
        let Ok((modified, len)) = fs::metadata(&path).and_then(|about| Ok((about.modified()?, about.len())))
        else {
            continue;
        };
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("cubin") => entries.push((modified, len, path)),
            Some("part") if modified.elapsed().is_ok_and(|age| age > ABANDONED) => {
                drop(fs::remove_file(&path))
            }
            _ => {}
        }
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, len, _)| len).sum();
    for (_, len, path) in entries {
        if total <= limit {
            break;
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => total -= len,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn key(n: u64) -> Key {
        Key::of(&[b"ptx", &n.to_le_bytes()])
    }

    /// An entry's bytes, pairwise different in length and contents.
    fn code(n: u64) -> Vec<u8> {
        (0..101 + 13 * n).map(|i| (i * i + n) as u8).collect()
    }

    /// Asks for an entry; whether it was there.
    fn get(cache: &Cache, n: u64) -> bool {
        let (bytes, there) = cache.get_or_make(key(n), || Ok::<_, Infallible>(code(n))).unwrap();
        assert_eq!(bytes, code(n));
        there
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn what_was_made_is_found_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        assert!(!get(&Cache::at(&folder), 1));
        let again = Cache::at(&folder);
        assert!(get(&again, 1) && !get(&again, 2));
        again.forget(key(1));
        assert!(!get(&again, 1) && get(&again, 1));
        let left = files(&folder);
        assert_eq!(left.len(), 2, "no file is left beside the entries");
        fs::write(folder.join("README"), "not an entry").unwrap();
        let bytes = left.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!((again.folder(), again.size()), (Some(&*folder), (2, bytes)));
        assert_eq!((Cache::none().folder(), Cache::none().size()), (None, (0, 0)));
    }

    #[test]
    fn keys_tell_lists_of_parts_apart() {
        let keys =
            [Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]), Key::of(&[b"abc"]), Key::of(&[b"abc", b""])];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b), "{i}");
        }
        assert_eq!(Key::of(&[b"abc"]), keys[2]);
    }

    #[test]
    fn an_error_is_handed_on_and_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        assert_eq!(cache.get_or_make(key(1), || Err("no")), Err("no"));
        assert!(files(dir.path()).is_empty() && !get(&cache, 1));
    }

    #[test]
    fn damaged_entries_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        get(&cache, 3);
        let path = files(dir.path()).pop().unwrap();
        let whole = fs::read(&path).unwrap();
        let changed = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            bytes
        };
        let longer = [&whole[..], b"x"].concat();
        let cut = |n: usize| whole[..n].to_vec();
        let damaged = [cut(0), cut(7), cut(HEADER), cut(whole.len() - 1), longer].into_iter().chain([
            changed(0),
            changed(9),
            changed(20),
            changed(HEADER),
            changed(whole.len() - 1),
        ]);
        for (i, bytes) in damaged.enumerate() {
            fs::write(&path, bytes).unwrap();
            assert!(!get(&cache, 3), "number {i} was noticed");
            assert_eq!(fs::read(&path).unwrap(), whole, "number {i} was made again");
            assert!(get(&cache, 3));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "not a folder").unwrap();
        let cache = Cache::at(&file.join("kernels"));
        assert!(!get(&cache, 1) && !get(&cache, 1));
        assert!(cache.warned.load(Ordering::Relaxed), "it was said");
        cache.trim();
        // Where an entry would lie is something else.
        let cache = Cache::at(dir.path());
        fs::create_dir(dir.path().join(key(1).file_name())).unwrap();
        assert!(!get(&cache, 1) && !get(&cache, 1) && !get(&cache, 2) && get(&cache, 2));
        assert!(cache.warned.load(Ordering::Relaxed));
        let none = Cache::none();
        assert!(!get(&none, 1) && !get(&none, 1) && !none.warned.load(Ordering::Relaxed));
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n| dir.path().join(key(n).file_name());
        let cache = Cache::at(dir.path());
        for n in 0..5 {
            get(&cache, n);
            let age = Duration::from_secs(1000 - 100 * n);
            let times = FileTimes::new().set_modified(SystemTime::now() - age);
            File::options().write(true).open(path(n)).unwrap().set_times(times).unwrap();
        }
        fs::write(dir.path().join("README"), vec![0; 5000]).unwrap();
        for (name, age) in [("gone.part", 4000), ("busy.part", 5)] {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_times(FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(age)))
                .unwrap();
        }
        // The oldest is used, so the next oldest are the ones to go.
        assert!(get(&cache, 0));
        let room = [0, 3, 4].map(|n| fs::metadata(path(n)).unwrap().len()).iter().sum::<u64>() + 1;
        cache.with_limit(room).trim();
        let left: Vec<u64> = (0..5).filter(|&n| path(n).exists()).collect();
        assert_eq!(left, [0, 3, 4]);
        let exists = |name: &str| dir.path().join(name).exists();
        assert!(exists("README") && exists("busy.part") && !exists("gone.part"));
        // Nothing was written since: nothing is looked at.
        let cache = Cache::at(dir.path()).with_limit(0);
        cache.trim();
        assert!(path(0).exists());
    }

    #[test]
    fn many_may_use_a_folder_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6u64 {
                let folder = dir.path();
                scope.spawn(move || {
                    let cache = Cache::at(folder).with_limit(if thread % 2 == 0 { 1200 } else { u64::MAX });
                    for i in 0..120 {
                        get(&cache, (i * (thread + 1)) % 17);
                        if i % 7 == thread {
                            cache.trim();
                        }
                    }
                });
            }
        });
        let left = files(dir.path());
        assert!(left.iter().all(|path| path.extension().is_some_and(|e| e == "cubin")), "{left:?}");
        for path in left {
            assert!(payload(&fs::read(&path).unwrap()).is_ok(), "{}", path.display());
        }
    }
}
