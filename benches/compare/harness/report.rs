//! Tables: on stdout as they come, in the end as JSON, pictures and a page of the guide.

use std::env;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::harness::goal::Verdict;
use crate::harness::machine;
use crate::harness::plot;
use crate::harness::rounds::{Cell, Column, SIZES, Series};

/// What was measured.
#[derive(Default)]
pub(crate) struct Report {
    cells: Vec<Cell>,
}

impl Report {
    /// Prints a table and keeps it.
    #[expect(clippy::print_stdout, reason = "the tables are what this program is for")]
    pub(crate) fn add(&mut self, cell: Cell) {
        if cell.series.is_empty() {
            return;
        }
        println!("\n{} ({})", cell.title, rounds(&cell));
        print!("{}", aligned(&rows(&cell)));
        for verdict in verdicts(&cell) {
            println!("  {verdict}");
        }
        self.cells.push(cell);
    }

    /// Adds the tables of [`SIZES`] of the same contenders, and one with what they compare side by side.
    pub(crate) fn add_by_size(&mut self, id: String, title: String, columns: &'static [Column], cells: [Cell; SIZES.len()]) {
        let all = Cell::side_by_side(id, title, columns, &cells);
        cells.into_iter().chain([all]).for_each(|cell| self.add(cell));
    }

    /// Writes the files.
    #[expect(clippy::print_stdout, reason = "says where to find the rest")]
    pub(crate) fn finish(&self, write_guide: bool) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/compare");
        self.write(&folder).expect("the target folder can be written");
        println!("\nsee {}", folder.display());
        if write_guide {
            let path = guide();
            fs::create_dir_all(path.parent().expect("a folder"))
                .and_then(|()| fs::write(&path, self.markdown()))
                .expect("written");
            println!("see {}", path.display());
        }
        let verdicts: Vec<bool> = self.cells.iter().flat_map(verdicts).map(|verdict| verdict.is_reached()).collect();
        println!("{} of {} targets reached", verdicts.iter().filter(|reached| **reached).count(), verdicts.len());
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("results.json"), format!("{:#}", self.json()))?;
        for cell in &self.cells {
            plot::draw(cell, &folder.join(format!("{}.svg", cell.id))).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let cells: Vec<Value> = self.cells.iter().map(cell_json).collect();
        json!({ "machine": machine::describe(), "date": date(), "command": command(), "tables": cells })
    }

    /// The page of the guide.
    fn markdown(&self) -> String {
        let mut page = String::new();
        let _ = writeln!(page, "Machine: {}. Date: {}. Command: `{}`.", machine::describe(), date(), command());
        for cell in self.cells.iter().filter(|cell| cell.is_headline) {
            let _ = writeln!(page, "\n## {}\n\nMedians of {}.\n", cell.title, rounds(cell));
            let rows = rows(cell);
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            page.push_str(&line(&rows[0]));
            let rule = rows[0].iter().enumerate().map(|(index, _)| if index == 0 { "---" } else { "---:" }.to_owned());
            page.push_str(&line(&rule.collect::<Vec<String>>()));
            page.extend(rows[1..].iter().map(|row| line(row)));
            let verdicts: Vec<String> = verdicts(cell).map(|verdict| format!("- {verdict}\n")).collect();
            if !verdicts.is_empty() {
                let _ = write!(page, "\n{}", verdicts.concat());
            }
        }
        page
    }
}

/// The title row, and one row per contender. Comparisons that nobody has are left out.
fn rows(cell: &Cell) -> Vec<Vec<String>> {
    let mut columns: Vec<Vec<String>> = vec![column("contender", cell, |series| series.name.to_owned())];
    for (index, Column { name, unit }) in cell.columns.iter().enumerate() {
        columns.push(column(name, cell, |series| unit.format(series.figure(index))));
    }
    let compared = cell.column(cell.compared);
    let ratio = |series: &Series, other: Option<&Series>| {
        let other = other.filter(|other| other.name != series.name);
        other.map_or_else(String::new, |other| series.ratio(other, compared).format(|ratio| format!("{ratio:.2}")))
    };
    let title = |other| format!("{} / {other}", cell.compared);
    columns.push(column(&title("floor"), cell, |series| ratio(series, cell.floor(series.style))));
    columns.push(column(&title("best peer"), cell, |series| ratio(series, cell.best_peer(series.style, compared))));
    columns.retain(|column| column[1..].iter().any(|text| !text.is_empty()));
    (0..=cell.series.len()).map(|row| columns.iter().map(|column| column[row].clone()).collect()).collect()
}

fn column(title: &str, cell: &Cell, text: impl Fn(&Series) -> String) -> Vec<String> {
    [title.to_owned()].into_iter().chain(cell.series.iter().map(text)).collect()
}

/// Columns padded with spaces: the first on the right, the others on the left.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if index == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn verdicts(cell: &Cell) -> impl Iterator<Item = Verdict> {
    cell.goals.iter().filter_map(|goal| goal.judge(cell))
}

fn rounds(cell: &Cell) -> String {
    let rounds = cell.series.iter().map(|series| series.rounds.len()).max().unwrap_or_default();
    if rounds == 1 { "1 round".to_owned() } else { format!("{rounds} rounds") }
}

fn cell_json(cell: &Cell) -> Value {
    let compared = cell.column(cell.compared);
    let ratio = |series: &Series, other: Option<&Series>| {
        other.map(|other| {
            let ratio = series.ratio(other, compared);
            json!({ "other": other.name, "low": ratio.low, "middle": ratio.middle, "high": ratio.high })
        })
    };
    let contender = |series: &Series| {
        json!({
            "name": series.name,
            "style": format!("{:?}", series.style),
            "medians": (0..cell.columns.len()).map(|column| series.figure(column)).collect::<Vec<f64>>(),
            "rounds": series.rounds,
            "to_floor": ratio(series, cell.floor(series.style)),
            "to_best_peer": ratio(series, cell.best_peer(series.style, compared)),
        })
    };
    let verdict = |verdict: Verdict| json!({ "target": verdict.to_string(), "is_reached": verdict.is_reached() });
    json!({
        "id": cell.id,
        "title": cell.title,
        "columns": cell.columns.iter().map(|column| json!({ "name": column.name, "unit": format!("{:?}", column.unit) })).collect::<Vec<Value>>(),
        "compared": cell.compared,
        "contenders": cell.series.iter().map(contender).collect::<Vec<Value>>(),
        "targets": verdicts(cell).map(verdict).collect::<Vec<Value>>(),
    })
}

/// The page of the guide in the crate that is compared, which may not be the package that this was built for.
fn guide() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|folder| folder.join("benches/compare").is_dir());
    root.expect("this file is somewhere below").join("src/guide/figures.md")
}

/// What was typed, but for the flags that change no figure.
fn command() -> String {
    let run = match env!("CARGO_CRATE_NAME") {
        "compare" => "cargo bench --bench compare --",
        _ => "cargo run --release --manifest-path benches/peers/Cargo.toml --",
    };
    let arguments = env::args().skip(1).filter(|argument| !["--bench", "--write-guide"].contains(&argument.as_str()));
    let words: Vec<String> = [run.to_owned()].into_iter().chain(arguments).collect();
    words.join(" ").trim_end_matches(" --").to_owned()
}

/// Today in UTC, as in `21 Nov 2026`.
fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())[5..16].to_owned()
}
