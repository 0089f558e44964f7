//! A recording as a stream of entries.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::iter::FusedIterator;
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::recorder::Entry;
use crate::recorder::names::compressed;
use crate::recording::{Filter, failed};

/// The entries of a recording, in the order they were written; made by [`Recording::entries`](crate::Recording::entries).
///
/// What is no entry is skipped and counted: lines that are blank, torn or malformed, those that are not UTF-8 and those longer than
/// 64 MiB.
///
/// A file that cannot be read on, or a gzip stream that is truncated or damaged, makes an item: an [`Error::Config`] that names the path.
/// The next item is of the next file.
pub struct Entries {
    parts: Arc<[PathBuf]>,
    /// How many of them have been begun.
    begun: usize,
    reader: Option<Box<dyn BufRead + Send>>,
    filter: Option<Arc<Filter>>,
    line: Vec<u8>,
    skipped: u64,
}

impl Entries {
    pub(super) fn new(parts: Arc<[PathBuf]>, filter: Option<Arc<Filter>>) -> Self {
        Self { parts, begun: 0, reader: None, filter, line: Vec::new(), skipped: 0 }
    }

    /// How many lines were no entries, so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Reads the next line of all files; `None` after the last.
    fn read_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(reader) = &mut self.reader {
                if let Some(line) = read_line(reader, &mut self.line)? {
                    return Ok(Some(line));
                }
                self.reader = None;
            }
            let Some(path) = self.parts.get(self.begun) else { return Ok(None) };
            self.begun += 1;
            self.reader = Some(open(path)?);
        }
    }

    /// Ends the file that is read.
    fn fail(&mut self, error: &io::Error) -> Error {
        self.reader = None;
        failed(&self.parts[self.begun - 1], error)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let entry = match self.read_line() {
                Ok(Some(Line::Whole)) => str::from_utf8(&self.line).ok().and_then(|line| Entry::parse(line).ok()),
                Ok(Some(Line::TooLong)) => None,
                Ok(None) => return None,
                Err(error) => return Some(Err(self.fail(&error))),
            };
            match entry {
                Some(entry) if self.filter.as_ref().is_none_or(|passes| passes(&entry)) => return Some(Ok(entry)),
                Some(_) => {}
                None => self.skipped += 1,
            }
        }
    }
}

impl FusedIterator for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("parts", &self.parts).field("skipped", &self.skipped).finish_non_exhaustive()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// It is in the buffer, without its end.
    Whole,
    TooLong,
}

/// Reads a line into the buffer; `None` if there is none. The last one need not end.
fn read_line(reader: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Option<Line>> {
    line.clear();
    let mut size = 0;
    loop {
        let bytes = match reader.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        let is_over = bytes.is_empty();
        let end = memchr::memchr(b'\n', bytes);
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        if size == line.len() && size + piece.len() <= LINE_MAX {
            line.extend_from_slice(piece);
        }
        size += piece.len();
        let used = piece.len() + usize::from(end.is_some());
        reader.consume(used);
        if is_over && size == 0 {
            return Ok(None);
        }
        if is_over || end.is_some() {
            return Ok(Some(if size == line.len() { Line::Whole } else { Line::TooLong }));
        }
    }
}

/// Opens a file, plain or compressed.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    let file = match File::open(path) {
        // A recorder that is at work may have compressed it meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => File::open(compressed(path)).map_err(|_| error)?,
        opened => opened?,
    };
    let mut file = BufReader::with_capacity(BUFFER, file);
    let is_gzip = file.fill_buf()?.starts_with(&GZIP);
    if is_gzip { Ok(Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file)))) } else { Ok(Box::new(file)) }
}

/// What every gzip stream begins with (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const BUFFER: usize = 64 * 1024;
const LINE_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_beyond_the_bound_is_passed_over_and_the_next_one_read() {
        let long = [vec![b'x'; LINE_MAX + 1], b"\nnext".to_vec()].concat();
        let (mut reader, mut line) = (BufReader::new(long.as_slice()), Vec::new());
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), Some(Line::TooLong));
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), Some(Line::Whole));
        assert_eq!(line, b"next");
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), None);
    }

    #[test]
    fn a_line_that_reaches_over_many_reads_is_whole() {
        let mut reader = BufReader::with_capacity(3, &b"a long line\n\nlast"[..]);
        let mut line = Vec::new();
        for expected in ["a long line", "", "last"] {
            assert_eq!(read_line(&mut reader, &mut line).unwrap(), Some(Line::Whole));
            assert_eq!(line, expected.as_bytes());
        }
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), None);
    }
}
