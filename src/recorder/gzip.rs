//! The compression of a file that was rotated, a slice at a time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::names::{compressed, temporary};

/// A compression that is under way.
pub(super) struct Gzip {
    source: PathBuf,
    input: File,
    output: GzEncoder<File>,
    slice: Vec<u8>,
    /// Slices since the last that was brought to the disk.
    unsynced: u32,
}

impl Gzip {
    pub(super) fn start(source: PathBuf) -> io::Result<Self> {
        let input = File::open(&source)?;
        let output = GzEncoder::new(File::create(temporary(&source))?, Compression::fast());
        Ok(Self { source, input, output, slice: vec![0; SLICE], unsynced: 0 })
    }

    /// Compresses a slice. Returns itself if there is more; else the compressed file has taken the place of the other.
    pub(super) fn step(mut self) -> io::Result<Option<Self>> {
        let result = match self.input.read(&mut self.slice) {
            Ok(0) => return self.finish().map(|()| None),
            Ok(count) => self.output.write_all(&self.slice[..count]).and_then(|()| self.sync()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => Ok(Some(self)),
            Err(error) => {
                let _ = fs::remove_file(temporary(&self.source));
                Err(error)
            }
        }
    }

    /// Brings what was written to the disk from time to time, so that the last time is as short.
    fn sync(&mut self) -> io::Result<()> {
        self.unsynced += 1;
        if self.unsynced < SLICES_SYNCED {
            return Ok(());
        }
        self.unsynced = 0;
        self.output.get_ref().sync_data()
    }

    fn finish(self) -> io::Result<()> {
        let temporary = temporary(&self.source);
        // On the disk before the other is gone, be the power cut between.
        let result = self.output.finish().and_then(|file| file.sync_all());
        if let Err(error) = result.and_then(|()| fs::rename(&temporary, compressed(&self.source))) {
            let _ = fs::remove_file(temporary);
            return Err(error);
        }
        fs::remove_file(self.source)
    }
}

/// About 2 ms of work, after which the queue is looked at.
const SLICE: usize = 256 << 10;

/// 8 MiB of lines, a few when compressed.
const SLICES_SYNCED: u32 = 32;

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn a_file_is_replaced_by_its_compressed_self_in_slices() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("feed.jsonl");
        let text = "a line of a feed\n".repeat(2 * SLICE / 17);
        fs::write(&source, &text).unwrap();
        let mut gzip = Gzip::start(source.clone()).unwrap();
        let mut steps = 1;
        while let Some(next) = gzip.step().unwrap() {
            assert!(source.exists(), "until it is compressed whole");
            gzip = next;
            steps += 1;
        }
        assert_eq!(steps, 3);
        assert!(!source.exists() && !temporary(&source).exists());
        let mut read = String::new();
        GzDecoder::new(File::open(compressed(&source)).unwrap()).read_to_string(&mut read).unwrap();
        assert!(read == text);
    }
}
