//! The sources keep to the floors that lib.rs describes: names go downward only, and the session stays pure.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules, floor by floor; `lib` may name all.
const FLOORS: [(&str, &[&str]); 4] = [
    (
        "floor 0",
        &[
            "error",
            "event",
            "config",
            "socket",
            "target",
            "metrics",
            "latency",
            "telemetry",
            "recorder",
            "dialect",
            "governor",
            "reply",
            "ticket",
        ],
    ),
    ("floor 1", &["session", "wire"]),
    ("floor 2", &["reactor"]),
    ("floor 3", &["client", "guide", "inbox", "recording", "rpc"]),
];

/// Modules of one floor that may not name each other.
const APART: [(&str, &str); 2] = [("session", "wire"), ("wire", "session")];

/// What a session may not name, and what it uses instead.
const IMPURE: [(&str, &str); 16] = [
    ("Instant::now", "the `now` of the input"),
    ("SystemTime", "a stamp as an argument"),
    ("std::net", "an action for the reactor"),
    ("socket2", "an action for the reactor"),
    ("mio", "an action for the reactor"),
    ("rustls", "an action for the reactor"),
    ("std::thread", "an action for the reactor"),
    ("thread::", "an action for the reactor"),
    ("std::io", "an action for the reactor"),
    ("mpsc", "an action for the reactor"),
    ("crossbeam_channel", "an action for the reactor"),
    ("parking_lot", "`&mut self`"),
    ("rand", "the seed"),
    ("HashMap", "a BTreeMap or a Vec, whose order is the same in every run"),
    ("HashSet", "a BTreeSet or a Vec, whose order is the same in every run"),
    ("thread_local", "a field"),
];

#[test]
fn names_go_downward_only() {
    let sources = sources();
    let exports = exports(&sources);
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !matches!(source.module(), "lib" | "testkit")) {
        let Some(floor) = floor_of(source.module()) else {
            complaints.push(format!("{}: `{}` is on no floor; give it one in tests/floors.rs", source.path, source.module()));
            continue;
        };
        for (line, name) in source.crate_names() {
            let module = exports.get(&name).unwrap_or(&name);
            let is_upward = floor_of(module).is_none_or(|other| other > floor);
            if is_upward || APART.contains(&(source.module(), module)) {
                let (floor, floors) = (FLOORS[floor].0, lower(floor, source.module()));
                complaints.push(format!("{}:{line} names {module}; {floor} may not; use {floors}", source.path));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_session_names_no_clock_no_socket_no_thread_and_no_chance() {
    let sources = sources();
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.module() == "session") {
        for (line, text) in source.lines() {
            for (name, instead) in IMPURE.iter().filter(|(name, _)| names(text, name)) {
                complaints.push(format!("{}:{line} names {name}; the session may not; use {instead}", source.path));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_test_kit_stands_alone() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| source.module() == "testkit") {
        // A playback reads what a recorder wrote.
        let is_playback = source.path.ends_with("/playback.rs");
        let inside: &[_] = if is_playback { &["testkit", "error", "event", "recorder", "recording"] } else { &["testkit"] };
        let outside = source.crate_names().into_iter().filter(|(_, name)| !inside.contains(&name.as_str()));
        for (line, name) in outside {
            complaints.push(format!("{}:{line} names {name}; the test kit may not; use what is in testkit", source.path));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn comments_texts_and_tests_do_not_count() {
    let text = r##"
        use crate::error::{Error, Result}; // crate::client
        /* crate::client
           crate::client */ use crate::{config::Config, event, wire::{frame, out}};
        const TEXT: &str = "crate::client \" crate::client";
        const RAW: &str = r#"crate::client " crate::client"#;
        const QUOTE: char = '"'; fn f<'a>(x: &'a str) { crate::target::f('\'') }
        #[cfg(test)]
        mod tests { use crate::client; fn f() { "}" } }
        use super::super::stats;
        use super::out;
    "##;
    let source = Source::new("src/wire/tls.rs".into(), text);
    let expected = [(2, "error"), (4, "config"), (4, "event"), (4, "wire"), (7, "target"), (10, "stats"), (11, "wire")];
    assert_eq!(source.crate_names(), expected.map(|(line, name)| (line, name.to_owned())));
    assert!(names("a rand::random()", "rand") && !names("self.random operand rand_x", "rand"));
    assert!(names("thread::spawn", "thread::") && !names("my_thread::spawn", "thread::"));
}

/// A source file without its comments, its texts and its tests.
struct Source {
    /// From the crate's root on.
    path: String,
    code: String,
}

impl Source {
    fn new(path: String, text: &str) -> Self {
        Self { path, code: without_tests(&blanked(text)) }
    }

    /// The module at the root that the file belongs to.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").expect("sources lie in src");
        inside.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// How many `super` lead to the root of the crate.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count() - 1;
        if self.path.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.code.lines())
    }

    /// Every name at the root of the crate that is used, with its line.
    fn crate_names(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("crate::").filter(|(at, _)| starts_word(&self.code, *at)) {
            self.names_after(at + "crate::".len(), &mut found);
        }
        for (at, _) in self.code.match_indices("super::").filter(|(at, _)| starts_word(&self.code, *at)) {
            let mut end = at + "super::".len();
            if self.code[..at].ends_with("super::") {
                continue;
            }
            let mut climbed = 1;
            while self.code[end..].starts_with("super::") {
                climbed += 1;
                end += "super::".len();
            }
            match climbed.cmp(&self.depth()) {
                std::cmp::Ordering::Less => found.push((self.line_of(at), self.module().to_owned())),
                std::cmp::Ordering::Equal => self.names_after(end, &mut found),
                std::cmp::Ordering::Greater => {}
            }
        }
        found.sort();
        found
    }

    /// The first name of each path that begins at `start`: of several, if a brace opens there.
    fn names_after(&self, start: usize, found: &mut Vec<(usize, String)>) {
        let rest = &self.code[start..];
        if !rest.starts_with('{') {
            found.push((self.line_of(start), word(rest).to_owned()));
            return;
        }
        let (mut depth, mut is_first) = (0, false);
        for (offset, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' => {
                    depth += 1;
                    is_first = depth == 1;
                }
                b'}' => depth -= 1,
                b',' => is_first = depth == 1,
                _ if is_first && !byte.is_ascii_whitespace() => {
                    is_first = false;
                    found.push((self.line_of(start + offset), word(&rest[offset..]).to_owned()));
                }
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders = vec![root.join("src")];
    let mut tests = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder of the sources can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source can be read");
                tests.extend(test_files(&path, &text));
                let inside = path.strip_prefix(root).expect("it lies below").to_string_lossy().replace('\\', "/");
                sources.push((path, Source::new(inside, &text)));
            }
        }
    }
    sources.retain(|(path, _)| !tests.contains(path));
    let mut sources: Vec<_> = sources.into_iter().map(|(_, source)| source).collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 20, "only {} sources", sources.len());
    sources
}

/// The files of modules that exist in tests only.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs") => path.parent().expect("a file lies in a folder").to_owned(),
        _ => path.with_extension(""),
    };
    let modules = text.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.split_once(';'));
    modules.filter(|(name, _)| word(name).len() == name.len()).map(|(name, _)| folder.join(name).with_extension("rs")).collect()
}

/// What `lib.rs` re-exports, and from which module.
fn exports(sources: &[Source]) -> BTreeMap<String, String> {
    let lib = sources.iter().find(|source| source.path == "src/lib.rs").expect("a crate has a lib.rs");
    let mut exports = BTreeMap::new();
    for path in lib.code.split("pub use crate::").skip(1) {
        let path = &path[..path.find(';').unwrap_or(path.len())];
        let module = word(path).to_owned();
        for name in path.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|name| !name.is_empty() && **name != module) {
            exports.insert(name.to_owned(), module.clone());
        }
    }
    assert!(exports.len() > 10, "what lib.rs exports was not found: {exports:?}");
    exports
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|(_, modules)| modules.contains(&module))
}

fn lower(floor: usize, module: &str) -> String {
    let below = FLOORS[..=floor].iter().flat_map(|(_, modules)| *modules);
    let names: Vec<_> = below.filter(|other| !APART.contains(&(module, other))).copied().collect();
    names.join(", ")
}

/// Whether a line names something, as a word of its own.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let after = line[at + name.len()..].chars().next();
        starts_word(line, at) && (name.ends_with(':') || after.is_none_or(|c| !is_word(c)))
    })
}

fn starts_word(text: &str, at: usize) -> bool {
    text[..at].chars().next_back().is_none_or(|c| !is_word(c))
}

fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with comments and the insides of literals blanked, line for line.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            text_end(rest)
        } else if first == 'r' && starts_raw(rest) && !code.chars().next_back().is_some_and(is_word) {
            raw_end(rest)
        } else if first == '\'' {
            char_end(rest)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..skip].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[skip..];
    }
    code
}

/// Where the string at the front ends.
fn text_end(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn starts_raw(text: &str) -> bool {
    text[1..].trim_start_matches('#').starts_with('"') && text[1..].starts_with(['#', '"'])
}

fn raw_end(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 2 + hashes;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// Where the character at the front ends; a lifetime's tick ends at once.
fn char_end(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(1, |(at, _)| 2 + at + 1),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// Blanks the modules inside that exist in tests only.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(at);
        kept.push_str(before);
        let mut depth = 0;
        let end = item.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            (*c == '}' || *c == ';') && depth == 0
        });
        let end = end.map_or(item.len(), |(at, _)| at + 1);
        kept.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    kept + rest
}
