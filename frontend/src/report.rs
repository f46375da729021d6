//! What a user sees when a program is wrong: the guilty lines, marked, and what to do about them.

use eva_ir::diag::{Diag, Diags, Loc};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::Path;

/// Source files longer than this are named, not shown.
const MAX_SOURCE: u64 = 16 << 20;

/// The diagnostics as plain text, one below the other, without colours.
///
/// `source` is the name and the text of the IR file that [`Loc::Text`] is about. Rust files are read now; a
/// file that cannot be read is named with line and column.
pub fn render(diags: &Diags, source: Option<(&str, &str)>) -> String {
    render_themed(diags, source, GraphicalTheme::unicode_nocolor())
}

/// Writes the diagnostics to standard error, in colour if that is a terminal and `NO_COLOR` is not set.
pub fn print(diags: &Diags, source: Option<(&str, &str)>) {
    let mut stderr = std::io::stderr().lock();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    // Nobody is left to hear that standard error cannot be written to.
    let _ = stderr.write_all(render_themed(diags, source, theme).as_bytes());
}

fn render_themed(diags: &Diags, source: Option<(&str, &str)>, theme: GraphicalTheme) -> String {
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100).with_links(false);
    let mut text = String::new();
    for (i, diag) in diags.0.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        let mut report = String::new();
        match handler.render_report(&mut report, &Report::new(diag, source)) {
            Ok(()) => text.push_str(&report),
            // A span that the renderer cannot place: better a bare message than none.
            Err(fmt::Error) => text.push_str(&format!("{}: {diag}\n", diag.code)),
        }
    }
    text
}

/// The labels of a [`Diag`] that lie in one file, with the file.
#[derive(Debug)]
struct Report {
    /// The diagnostic's own for the first file; of the others, only the labels are shown.
    code: Option<&'static str>,
    message: String,
    help: Option<String>,
    source: Option<NamedSource<String>>,
    spans: Vec<LabeledSpan>,
    others: Vec<Report>,
}

impl Report {
    fn new(diag: &Diag, source: Option<(&str, &str)>) -> Self {
        let mut report = Report {
            code: Some(diag.code),
            message: diag.message.clone(),
            help: diag.help.clone(),
            source: None,
            spans: Vec::new(),
            others: Vec::new(),
        };
        let mut files: Vec<Option<&'static str>> = Vec::new();
        for (loc, _) in &diag.labels {
            let file = file_of(*loc);
            if !files.contains(&file) {
                files.push(file);
            }
        }
        for (i, file) in files.into_iter().enumerate() {
            let labels: Vec<_> = diag.labels.iter().filter(|(loc, _)| file_of(*loc) == file).collect();
            let text = match file {
                Some(file) => read(file),
                None => source.map(|(_, text)| text.to_owned()),
            };
            let spans: Option<Vec<_>> = text.as_deref().and_then(|text| {
                let spans = labels.iter().map(|(loc, label)| {
                    let (start, len) = span(text, *loc)?;
                    let main = std::ptr::eq(loc, &diag.labels[0].0);
                    let new =
                        if main { LabeledSpan::new_primary_with_span } else { LabeledSpan::new_with_span };
                    Some(new(Some(label.clone()), (start, len)))
                });
                spans.collect()
            });
            let (Some(text), Some(spans)) = (text, spans) else {
                labels.iter().for_each(|(loc, label)| report.message += &place(*loc, source, label));
                continue;
            };
            let (name, language) = match file {
                Some(file) => (file, Some("Rust")),
                None => (source.map_or("", |(name, _)| name), None),
            };
            let named = NamedSource::new(name, text);
            let named = language.into_iter().fold(named, |named, language| named.with_language(language));
            if i == 0 {
                (report.source, report.spans) = (Some(named), spans);
            } else {
                let message = format!("see also {name}");
                report.others.push(Report { source: Some(named), spans, ..Report::note(message) });
            }
        }
        report
    }

    fn note(message: String) -> Self {
        Report { code: None, message, help: None, source: None, spans: Vec::new(), others: Vec::new() }
    }
}

/// One more line of a message, for a label whose file is not at hand.
fn place(loc: Loc, source: Option<(&str, &str)>, label: &str) -> String {
    match loc {
        Loc::Rust(at) => format!("\n{}:{}:{}: {label}", at.file(), at.line(), at.column()),
        Loc::Text { start, .. } => {
            format!("\n{}, byte {start}: {label}", source.map_or("the text", |(name, _)| name))
        }
    }
}

/// The Rust file; `None` for the IR text.
fn file_of(loc: Loc) -> Option<&'static str> {
    match loc {
        Loc::Rust(at) => Some(at.file()),
        Loc::Text { .. } => None,
    }
}

/// The file's text. The compiler names files relative to the workspace it was started in, which is the
/// current folder or one above it.
fn read(file: &str) -> Option<String> {
    let here = std::env::current_dir().ok()?;
    let path = here.ancestors().map(|folder| folder.join(Path::new(file))).find(|path| path.is_file())?;
    if path.metadata().ok()?.len() > MAX_SOURCE {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// The bytes of `text` to mark; `None` if `text` is not what `loc` was taken from.
fn span(text: &str, loc: Loc) -> Option<(usize, usize)> {
    match loc {
        Loc::Text { start, len } => text.get(start..start.checked_add(len)?).map(|_| (start, len)),
        Loc::Rust(at) => call_at(text, at.line() as usize, at.column() as usize),
    }
}

/// The expression that starts at `line` and `column` (both from 1, columns in characters): a call up to its
/// closing parenthesis, or what ends with the line or with the brackets around it.
fn call_at(text: &str, line: usize, column: usize) -> Option<(usize, usize)> {
    let before: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let rest = text.get(before..)?.lines().next()?;
    let start = before + rest.char_indices().nth(column.checked_sub(1)?)?.0;
    let (mut depth, mut quoted, mut escaped, mut comment, mut end) = (0, false, false, false, None);
    for (i, c) in text[start..].char_indices() {
        comment = (comment || text[start + i..].starts_with("//")) && c != '\n';
        if comment && !quoted {
            continue;
        }
        if quoted {
            comment = false;
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '"' => quoted = true,
            '(' | '[' => depth += 1,
            ')' if depth == 1 => end = Some(i + 1),
            ')' | ']' if depth == 0 => end = Some(i),
            ')' | ']' => depth -= 1,
            '\n' | ';' | ',' | '{' if depth == 0 => end = Some(i),
            _ => {}
        }
        if end.is_some() {
            break;
        }
    }
    let expression = text[start..start + end.unwrap_or(rest.len() - (start - before))].trim_end();
    Some((start, expression.len().max(1)))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.code.map(|code| Box::new(code) as _)
    }
    fn severity(&self) -> Option<Severity> {
        Some(if self.code.is_some() { Severity::Error } else { Severity::Advice })
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.source.as_ref().map(|source| source as _)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        if self.spans.is_empty() { None } else { Some(Box::new(self.spans.iter().cloned())) }
    }
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.others.is_empty() {
            return None;
        }
        Some(Box::new(self.others.iter().map(|other| other as &dyn Diagnostic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eva_ir::text::parse;
    use std::panic::Location;

    fn of_text(text: &str) -> String {
        render(&parse(text).expect_err("the text is wrong"), Some(("layer.eva", text)))
    }

    #[track_caller]
    fn here() -> Loc {
        Loc::Rust(Location::caller())
    }

    #[track_caller]
    fn located(_: &str) -> Loc {
        Loc::Rust(Location::caller())
    }

    /// `text` with each digit replaced, since lines of this file move.
    fn without_numbers(text: &str) -> String {
        text.replace(|c: char| c.is_ascii_digit(), "#")
    }

    #[test]
    fn a_text_is_shown_with_its_operands() {
        insta::assert_snapshot!(of_text(
            "dim b\ndim m = 7\ndim n = 7\n\nfn @f(\n  %x: f32[b, m],\n  weight %gain: f32[n],\n) -> f32[b, m] {\n  \
             %y = rms_norm %x, %gain {eps = 1e-6} : f32[b, m]\n  return %y\n}\n"
        ));
    }

    #[test]
    fn several_mistakes_follow_each_other() {
        insta::assert_snapshot!(of_text(
            "dim b\nfn @f(%x: f32[b], %x: bf16[q]) -> f32[b] {\n  %y = sofmax %x : f32[b]\n  %z = exp %x\n  \
             return %z\n}\n"
        ));
    }

    #[test]
    fn what_is_missing_at_the_end_is_shown() {
        insta::assert_snapshot!(of_text("dim b\nfn @f(%x: f32[b]) -> f32[b] {\n  return %x"));
    }

    #[test]
    fn rust_is_shown_with_the_whole_call() {
        let weight = here();
        let product = located(
            "x", // )
        );
        let diag = Diag::new("eva::type_mismatch", "the last axis is m on the left but n on the right")
            .label(Some(product), "this is f32[b, n]")
            .label(Some(weight), "made here")
            .help("transpose it");
        insta::assert_snapshot!(without_numbers(&render(&diag.into(), None)));
    }

    #[test]
    fn calls_end_where_they_close() {
        let mark = |text: &str, line, column| {
            call_at(text, line, column).map(|(start, len)| text[start..start + len].to_owned())
        };
        assert_eq!(mark("let y = x.mul(f(a, \")\"), b) + z;", 1, 11).as_deref(), Some("mul(f(a, \")\"), b)"));
        assert_eq!(mark("let y = f(x + y, z);", 1, 11).as_deref(), Some("x + y"));
        assert_eq!(mark("let y = (x + y) * z;", 1, 10).as_deref(), Some("x + y"));
        assert_eq!(mark("é.mul(\n  y,\n)\n", 1, 3).as_deref(), Some("mul(\n  y,\n)"));
        assert_eq!(mark("x + y", 1, 1).as_deref(), Some("x + y"));
        assert_eq!(mark("x.mul(y", 1, 3).as_deref(), Some("mul(y"));
        assert_eq!(mark("x", 2, 1), None);
        assert_eq!(mark("x", 1, 5), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let start = Loc::Text { start: 700, len: 3 };
        let diag = Diag::new("eva::undefined", "`%y` is not defined")
            .label(Some(start), "used here")
            .help("define it");
        insta::assert_snapshot!(render(&diag.clone().into(), None));
        insta::assert_snapshot!(render(&diag.into(), Some(("short.eva", "dim b\n"))));
    }

    #[test]
    fn two_sources_are_both_shown() {
        let text = "dim b\ndim m = 7\n";
        let diag = Diag::new("eva::duplicate", "the extent `m` is declared twice")
            .label(Some(Loc::Text { start: 10, len: 1 }), "here")
            .label(Some(here()), "and here");
        let text = render(&diag.into(), Some(("layer.eva", text)));
        assert!(text.contains("layer.eva:2:5") && text.contains("see also frontend/src/report.rs"), "{text}");
        assert!(text.contains(".label(Some(here()), \"and here\");"), "{text}");
    }

    #[test]
    fn a_message_without_a_place_is_shown() {
        insta::assert_snapshot!(render(&Diag::new("eva::result", "@f returns nothing").into(), None));
    }
}
