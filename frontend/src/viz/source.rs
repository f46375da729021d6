//! The lines that values come from.

use eva_ir::diag::Loc;
use serde::Serialize;
use std::collections::BTreeMap;

/// Where something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, by its number in [`super::View::files`].
    pub file: usize,
    /// The line, from 1.
    pub line: usize,
}

/// A text that values come from.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Its name.
    pub name: String,
    /// Whether all its lines are here.
    pub whole: bool,
    /// Its lines; of a program's, those that values come from, as far as they can be read.
    pub lines: Vec<Line>,
}

/// A line of a text.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// What it says.
    pub text: String,
}

/// The texts met so far.
pub(super) struct Sources {
    files: Vec<File>,
    /// Where the lines of the IR text start.
    starts: Vec<usize>,
    /// The lines of the other files that values come from.
    wanted: BTreeMap<&'static str, (usize, BTreeMap<usize, ()>)>,
}

impl Sources {
    pub fn new(text: Option<&(String, String)>) -> Self {
        let mut this = Self { files: Vec::new(), starts: Vec::new(), wanted: BTreeMap::new() };
        if let Some((name, text)) = text {
            this.starts.push(0);
            this.starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
            let line = |(i, text): (usize, &str)| Line { number: i + 1, text: text.trim_end().into() };
            let lines = text.lines().enumerate().map(line).collect();
            this.files.push(File { name: name.clone(), whole: true, lines });
        }
        this
    }

    /// The place that `loc` is.
    pub fn place(&mut self, loc: Loc) -> Option<Place> {
        match loc {
            Loc::Text { start, .. } if self.starts.is_empty() => {
                let _ = start;
                None
            }
            Loc::Text { start, .. } => {
                Some(Place { file: 0, line: self.starts.partition_point(|&line| line <= start) })
            }
            Loc::Rust(at) => {
                let next = self.files.len();
                let (file, lines) = self.wanted.entry(at.file()).or_insert((next, BTreeMap::new()));
                if *file == next {
                    self.files.push(File { name: at.file().into(), whole: false, lines: Vec::new() });
                }
                lines.insert(at.line() as usize, ());
                Some(Place { file: *file, line: at.line() as usize })
            }
        }
    }

    /// The texts, with the lines that are wanted where the files can be read.
    pub fn finish(mut self) -> Vec<File> {
        for (name, (file, lines)) in self.wanted {
            let text = std::fs::read_to_string(name).unwrap_or_default();
            let all: Vec<&str> = text.lines().collect();
            let line = |&number: &usize| {
                let text = all.get(number.wrapping_sub(1)).map_or("", |line| line.trim_end());
                Line { number, text: text.into() }
            };
            self.files[file].lines = lines.keys().map(line).collect();
        }
        self.files
    }
}
