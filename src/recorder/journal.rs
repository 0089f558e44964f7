//! The file that lines are appended to, one after the other.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::Recorder;
use super::names;
use super::scribe::Clock;

/// A file of whole lines, renamed and begun anew when it is large or old.
pub(super) struct Journal {
    path: PathBuf,
    rotate_at: Option<u64>,
    rotate_after: Option<Duration>,
    gzip: bool,
    open: Option<Open>,
    /// Files that are to be compressed.
    pub(super) rotated: VecDeque<PathBuf>,
    /// The stamp of the last of them: they sort as they were written though the clock is set back.
    stamp: SystemTime,
    has_tidied: bool,
}

struct Open {
    file: File,
    identity: Option<(u64, u64)>,
    size: u64,
    begun: Instant,
    clock: Clock,
}

impl Journal {
    pub(super) fn new(path: PathBuf, recorder: &Recorder) -> Self {
        let Recorder { rotate_at, rotate_after, gzip, .. } = *recorder;
        Self {
            path,
            rotate_at,
            rotate_after,
            gzip,
            open: None,
            rotated: VecDeque::new(),
            stamp: SystemTime::UNIX_EPOCH,
            has_tidied: false,
        }
    }

    /// Opens the file unless it is, after whatever it holds; also if another program has removed or replaced it. Returns the clock that
    /// its times are read from.
    pub(super) fn open(&mut self, now: Instant) -> io::Result<Clock> {
        self.leave_displaced();
        self.opened(now).map(|open| open.clock)
    }

    /// Writes lines, and removes from them what is written: all of it, unless an error is returned, then what is in the file whole.
    pub(super) fn write(&mut self, lines: &mut Vec<u8>, now: Instant) -> io::Result<()> {
        let mut written = 0;
        let result = self.write_counted(lines, &mut written, now);
        if result.is_err() {
            self.open = None;
            written = whole(lines, written);
        }
        lines.drain(..written);
        result
    }

    fn write_counted(&mut self, lines: &[u8], written: &mut usize, now: Instant) -> io::Result<()> {
        while *written < lines.len() {
            let (rotate_at, rotate_after) = (self.rotate_at, self.rotate_after);
            let open = self.opened(now)?;
            let is_old = rotate_after.is_some_and(|age| now.saturating_duration_since(open.begun) >= age);
            let mut fitting = fitting(&lines[*written..], rotate_at.map(|size| size.saturating_sub(open.size)));
            if open.size > 0 && (is_old || fitting == 0) {
                self.rotate(now);
                continue;
            }
            if fitting == 0 {
                fitting = line(&lines[*written..]);
            }
            let end = *written + fitting;
            while *written < end {
                match open.file.write(&lines[*written..end]) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        *written += count;
                        open.size += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn opened(&mut self, now: Instant) -> io::Result<&mut Open> {
        if self.open.is_none() {
            self.open = Some(Open::new(&self.path, now)?);
            if !self.has_tidied {
                self.has_tidied = true;
                self.remove_leftovers();
            }
        }
        Ok(self.open.as_mut().expect("it was opened above"))
    }

    /// Closes a file that the path does not lead to any longer: what is written to it, nobody finds.
    fn leave_displaced(&mut self) {
        self.open.take_if(|open| open.is_displaced(&self.path));
    }

    /// Renames the file, so that the next line begins a new one. Where that fails the file grows on, until it is too large or old again.
    fn rotate(&mut self, now: Instant) {
        self.leave_displaced();
        if self.open.is_none() {
            return;
        }
        let target = self.rotated_path(SystemTime::now());
        match fs::rename(&self.path, &target) {
            Ok(()) => {
                self.open = None;
                if self.gzip {
                    self.rotated.push_back(target);
                }
            }
            Err(error) => {
                log::error!("{} cannot be rotated, it grows on: {error}", self.path.display());
                if let Some(open) = &mut self.open {
                    open.size = 0;
                    open.begun = now;
                }
            }
        }
    }

    /// A name that no file has, after those of the files before.
    fn rotated_path(&mut self, now: SystemTime) -> PathBuf {
        self.stamp = now.max(self.stamp + MICROSECOND);
        loop {
            let path = names::rotated(&self.path, self.stamp);
            if !path.exists() && !names::compressed(&path).exists() {
                return path;
            }
            self.stamp += MICROSECOND;
        }
    }

    /// Removes what a compression left behind that the end of a program interrupted; what it was made of is still there.
    fn remove_leftovers(&self) {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            if names::is_temporary(&self.path, &file.file_name())
                && let Err(error) = fs::remove_file(file.path())
            {
                log::warn!("{} is of no use and cannot be removed: {error}", file.path().display());
            }
        }
    }
}

impl Open {
    fn new(path: &Path, now: Instant) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let metadata = file.metadata()?;
        let mut size = metadata.len();
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        let age = metadata.created().ok().and_then(|made| SystemTime::now().duration_since(made).ok()).unwrap_or_default();
        let identity = identity(&metadata);
        Ok(Self { file, identity, size, begun: now.checked_sub(age).unwrap_or(now), clock: Clock::new() })
    }

    /// Whether the path leads to nothing or to another file.
    fn is_displaced(&self, path: &Path) -> bool {
        match fs::metadata(path) {
            Ok(metadata) => identity(&metadata) != self.identity,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// How many bytes of these the whole lines have that fit into the room.
fn fitting(lines: &[u8], room: Option<u64>) -> usize {
    match room.and_then(|room| usize::try_from(room).ok()) {
        Some(room) if room < lines.len() => memchr::memrchr(b'\n', &lines[..room]).map_or(0, |end| end + 1),
        _ => lines.len(),
    }
}

/// How many bytes the lines have of which so much is in the file that they are whole when it is opened again, which ends the last.
fn whole(lines: &[u8], written: usize) -> usize {
    match lines.get(written) {
        Some(b'\n') => written + 1,
        _ => memchr::memrchr(b'\n', &lines[..written]).map_or(0, |end| end + 1),
    }
}

/// The length of the first line.
fn line(lines: &[u8]) -> usize {
    memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1)
}

/// What tells a file from others, where the system says.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// What names of rotated files differ by at least.
const MICROSECOND: Duration = Duration::from_micros(1);

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn journal(recorder: impl FnOnce(Recorder) -> Recorder) -> (TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("feed.jsonl");
        let journal = Journal::new(path.clone(), &recorder(Recorder::new(path)));
        (directory, journal)
    }

    /// The contents of all files, by name, the one that is being written last.
    fn contents(directory: &TempDir) -> Vec<String> {
        let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    #[test]
    fn a_line_that_was_cut_off_is_ended_first() {
        let (directory, mut journal) = journal(|recorder| recorder);
        fs::write(&journal.path, "one\ntw").unwrap();
        journal.write(&mut b"three\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\ntw\nthree\n"]);
    }

    #[test]
    fn a_file_ends_before_the_line_that_would_make_it_too_large() {
        let (directory, mut journal) = journal(|recorder| recorder.rotate_at(8));
        let mut lines = b"one\ntwo\nthree\nfour\nlonger than eight\nx\n".to_vec();
        journal.write(&mut lines, Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\ntwo\n", "three\n", "four\n", "longer than eight\n", "x\n"]);
        assert_eq!(lines, b"");
    }

    #[test]
    fn a_file_counts_what_it_held_before() {
        let (directory, mut journal) = journal(|recorder| recorder.rotate_at(7));
        fs::write(&journal.path, "one").unwrap();
        journal.write(&mut b"two\nthree\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\n", "two\n", "three\n"]);
    }

    #[test]
    fn an_old_file_ends_before_the_next_line_and_an_empty_one_never() {
        let (directory, mut journal) = journal(|recorder| recorder.rotate_after(Duration::from_secs(3600)));
        let hour = |count: u32| Instant::now() + count * Duration::from_secs(3600);
        journal.open(hour(0)).unwrap();
        journal.write(&mut b"one\n".to_vec(), hour(1)).unwrap();
        journal.write(&mut b"two\n".to_vec(), hour(2)).unwrap();
        journal.write(&mut b"three\n".to_vec(), hour(2)).unwrap();
        assert_eq!(contents(&directory), ["one\n", "two\nthree\n"]);
    }

    #[test]
    fn names_of_rotated_files_are_never_taken() {
        let (directory, mut journal) = journal(|recorder| recorder);
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let path = |name: &str| directory.path().join(name);
        fs::write(path("feed.20231114T221320.000001Z.jsonl"), "").unwrap();
        fs::write(path("feed.20231114T221320.000002Z.jsonl.gz"), "").unwrap();
        assert_eq!(journal.rotated_path(at), path("feed.20231114T221320.000003Z.jsonl"));
    }

    #[test]
    fn names_of_rotated_files_sort_as_written_though_the_clock_is_set_back() {
        let (directory, mut journal) = journal(|recorder| recorder);
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let path = |name: &str| directory.path().join(name);
        assert_eq!(journal.rotated_path(at), path("feed.20231114T221320.000001Z.jsonl"));
        assert_eq!(journal.rotated_path(SystemTime::UNIX_EPOCH), path("feed.20231114T221320.000002Z.jsonl"));
        assert_eq!(journal.rotated_path(at + 9 * MICROSECOND), path("feed.20231114T221320.000010Z.jsonl"));
    }

    #[test]
    fn a_file_that_cannot_be_renamed_grows_on() {
        let (directory, mut journal) = journal(|recorder| recorder.rotate_at(4));
        // There is no room in it for a stamp.
        journal.path.set_file_name("f".repeat(250));
        journal.write(&mut b"one\ntwo\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\ntwo\n"]);
        assert_eq!(journal.open.unwrap().size, 4);
    }

    #[test]
    fn a_file_that_was_removed_is_made_again() {
        let (directory, mut journal) = journal(|recorder| recorder);
        journal.write(&mut b"one\n".to_vec(), Instant::now()).unwrap();
        fs::remove_file(&journal.path).unwrap();
        journal.open(Instant::now()).unwrap();
        journal.write(&mut b"two\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["two\n"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_in_the_place_of_another_is_continued() {
        let (directory, mut journal) = journal(|recorder| recorder);
        journal.write(&mut b"one\n".to_vec(), Instant::now()).unwrap();
        fs::rename(&journal.path, directory.path().join("a")).unwrap();
        fs::write(&journal.path, "theirs").unwrap();
        journal.open(Instant::now()).unwrap();
        journal.write(&mut b"two\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\n", "theirs\ntwo\n"]);
    }

    #[test]
    fn a_file_that_was_removed_is_made_again_instead_of_rotated() {
        let (directory, mut journal) = journal(|recorder| recorder.rotate_at(4));
        journal.write(&mut b"one\n".to_vec(), Instant::now()).unwrap();
        fs::remove_file(&journal.path).unwrap();
        journal.write(&mut b"two\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["two\n"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_of_somebody_else_is_not_rotated() {
        let (directory, mut journal) = journal(|recorder| recorder.rotate_at(8));
        journal.write(&mut b"one\ntwo\n".to_vec(), Instant::now()).unwrap();
        fs::rename(&journal.path, directory.path().join("a")).unwrap();
        fs::write(&journal.path, "our\n").unwrap();
        journal.write(&mut b"six\n".to_vec(), Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\ntwo\n", "our\nsix\n"]);
    }

    #[test]
    fn what_was_not_written_stays() {
        let (directory, mut journal) = journal(|recorder| recorder);
        fs::create_dir(&journal.path).unwrap();
        let mut lines = b"one\n".to_vec();
        assert!(journal.write(&mut lines, Instant::now()).is_err());
        assert_eq!(lines, b"one\n");
        fs::remove_dir(&journal.path).unwrap();
        journal.write(&mut lines, Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\n"]);
    }

    #[test]
    fn a_line_that_lacks_its_end_only_is_not_written_again() {
        let lines = b"one\ntwo\n";
        let wholes: Vec<_> = (0..=lines.len()).map(|written| whole(lines, written)).collect();
        assert_eq!(wholes, [0, 0, 0, 4, 4, 4, 4, 8, 8]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_failed_is_opened_again() {
        let (directory, mut journal) = journal(|recorder| recorder);
        std::os::unix::fs::symlink("/dev/full", &journal.path).unwrap();
        let mut lines = b"one\n".to_vec();
        assert_eq!(journal.write(&mut lines, Instant::now()).unwrap_err().kind(), io::ErrorKind::StorageFull);
        fs::remove_file(&journal.path).unwrap();
        journal.write(&mut lines, Instant::now()).unwrap();
        assert_eq!(contents(&directory), ["one\n"]);
    }

    #[test]
    fn only_leftovers_of_this_file_are_removed() {
        let (directory, mut journal) = journal(|recorder| recorder);
        let leftover = "feed.20261121T145135.000250Z.jsonl.gz.tmp";
        let others =
            ["feed.20261121T145135.000250Z.jsonl.gz", "feed.eu.20261121T145135.000250Z.jsonl.gz.tmp", "feed.jsonl.gz.tmp"];
        for name in others.into_iter().chain([leftover]) {
            fs::write(directory.path().join(name), "").unwrap();
        }
        journal.open(Instant::now()).unwrap();
        assert!(others.iter().all(|name| directory.path().join(name).exists()));
        assert!(!directory.path().join(leftover).exists());
    }
}
