//! The names of files that were rotated: `feed.jsonl` becomes `feed.<stamp>.jsonl`, and `feed.<stamp>.jsonl.gz` when it is compressed.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a file is called that is rotated at this time. The names of one path sort by time.
pub(crate) fn rotated(path: &Path, stamp: SystemTime) -> PathBuf {
    let (mut name, extension) = parts(path);
    name.push(humantime::format_rfc3339_micros(stamp).to_string().replace(['-', ':'], ""));
    name.push(extension);
    path.with_file_name(name)
}

/// Whether a file of this name was rotated away from the path: the stamp, which sorts by time, and whether it is compressed.
pub(crate) fn stamp_of(path: &Path, name: &OsStr) -> Option<(String, bool)> {
    let (stamp, is_compressed) = stamp_in(path, name.as_encoded_bytes())?;
    Some((String::from_utf8_lossy(stamp).into_owned(), is_compressed))
}

/// What a rotated file is called when it is compressed.
pub(crate) fn compressed(path: &Path) -> PathBuf {
    with_suffix(path, ".gz")
}

/// What the compressed file is called until it is whole.
pub(super) fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, TEMPORARY)
}

/// Whether a file of this name was to become the compressed form of one that was rotated away from the path.
pub(super) fn is_temporary(path: &Path, name: &OsStr) -> bool {
    let rotated = name.as_encoded_bytes().strip_suffix(TEMPORARY.as_bytes()).and_then(|name| stamp_in(path, name));
    rotated.is_some_and(|(_, is_compressed)| !is_compressed)
}

fn stamp_in<'a>(path: &Path, name: &'a [u8]) -> Option<(&'a [u8], bool)> {
    let (stem, extension) = parts(path);
    let (stamp, rest) = name.strip_prefix(stem.as_encoded_bytes())?.split_at_checked(STAMP.len())?;
    let is_compressed = match rest.strip_prefix(extension.as_encoded_bytes())? {
        b"" => false,
        b".gz" => true,
        _ => return None,
    };
    let is_like = |(byte, like): (&u8, &u8)| if like.is_ascii_digit() { byte.is_ascii_digit() } else { byte == like };
    stamp.iter().zip(STAMP).all(is_like).then_some((stamp, is_compressed))
}

/// What stands before and after the stamp.
fn parts(path: &Path) -> (OsString, OsString) {
    let mut stem = path.file_stem().unwrap_or_default().to_owned();
    stem.push(".");
    let mut extension = OsString::new();
    if let Some(written) = path.extension() {
        extension.push(".");
        extension.push(written);
    }
    (stem, extension)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

const TEMPORARY: &str = ".gz.tmp";

/// A stamp: digits, and what stands between them.
const STAMP: &[u8; 23] = b"00000000T000000.000000Z";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NAME: &str = "20231114T221320.000001Z";

    fn stamp() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001)
    }

    #[test]
    fn names_that_are_made_are_recognised() {
        for path in ["feed.jsonl", "feed", "feed.gz", "feed.eu.jsonl", ".feed"].map(|name| Path::new("/data").join(name)) {
            let rotated = rotated(&path, stamp());
            assert_eq!(stamp_of(&path, rotated.file_name().unwrap()), Some((NAME.into(), false)));
            assert_eq!(stamp_of(&path, compressed(&rotated).file_name().unwrap()), Some((NAME.into(), true)));
            assert!(is_temporary(&path, temporary(&rotated).file_name().unwrap()));
        }
        assert_eq!(rotated(Path::new("/data/feed.jsonl"), stamp()), Path::new("/data/feed.20231114T221320.000001Z.jsonl"));
    }

    #[test]
    #[cfg(unix)]
    fn names_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(OsStr::from_bytes(b"f\xffd.j\xfe"));
        let rotated = rotated(path, stamp());
        assert_eq!(rotated.as_os_str().as_bytes(), [b"f\xffd.", NAME.as_bytes(), b".j\xfe"].concat());
        assert_eq!(stamp_of(path, rotated.as_os_str()), Some((NAME.into(), false)));
        assert_eq!(stamp_of(path, compressed(&rotated).as_os_str()), Some((NAME.into(), true)));
    }

    #[test]
    fn other_names_are_not_recognised() {
        let path = Path::new("feed.jsonl");
        let others = [
            "feed.jsonl",
            "feed.jsonl.gz",
            "feed.20231114T221320.000001Z",
            "feed.20231114T221320.000001Z.json",
            "feed.20231114T221320.000001Z.jsonl.gz.tmp",
            "feed.20231114.221320T000001Z.jsonl",
            "feed.eu.20231114T221320.000001Z.jsonl",
            "food.20231114T221320.000001Z.jsonl",
        ];
        assert_eq!(others.map(|name| stamp_of(path, OsStr::new(name))), [const { None }; 8]);
        assert!(!is_temporary(path, OsStr::new("feed.jsonl.gz.tmp")));
        assert!(!is_temporary(path, OsStr::new("feed.20231114T221320.000001Z.jsonl.gz")));
    }
}
