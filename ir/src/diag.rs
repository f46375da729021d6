//! Diagnostics: a mistake in a program, and the lines of Rust or of IR text that show it.

use std::fmt;
use std::panic::Location;

/// Where something was said: a line of Rust, or a part of an IR text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loc {
    /// The caller of a DSL method.
    Rust(&'static Location<'static>),
    /// Bytes `start .. start + len` of the text being read.
    Text {
        /// Offset of the first byte.
        start: usize,
        /// Number of bytes.
        len: usize,
    },
}

/// One mistake in a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Diag {
    /// A stable name for the kind of mistake, such as `eva::type_mismatch`.
    pub code: &'static str,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// The places that show it, each with what is to be seen there; the first is the main one.
    pub labels: Vec<(Loc, String)>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diag {
    /// A mistake without a place.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), labels: Vec::new(), help: None }
    }

    /// The mistake, shown at one more place.
    pub fn label(mut self, loc: Option<Loc>, text: impl Into<String>) -> Self {
        self.labels.extend(loc.map(|loc| (loc, text.into())));
        self
    }

    /// The mistake, with advice.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diag {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diag {}

/// All the mistakes that were found in a program; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Diags(pub Vec<Diag>);

impl fmt::Display for Diags {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, diag) in self.0.iter().enumerate() {
            write!(f, "{}{diag}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Diags {}

impl From<Diag> for Diags {
    fn from(diag: Diag) -> Self {
        Diags(vec![diag])
    }
}
