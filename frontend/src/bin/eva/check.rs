//! `eva check`: whether an IR file is well-formed.

use super::input::Source;
use super::ui::{BadText, emit};
use clap::Args as ClapArgs;
use eva_ir::diag::{Diag, Loc};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `eva check`.
#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  eva check layer.eva\n  eva print MODEL_DIR | eva check -")]
pub struct Args {
    /// IR file, or - for standard input
    #[arg(value_name = "FILE.eva")]
    file: PathBuf,
    /// Print the result, mistakes included, as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Checks and says so; false if there are mistakes, which have been shown.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let source = Source::read(&args.file)?;
    let checked = source.module();
    match (checked, args.json) {
        (Ok(module), json) => {
            let n = module.funcs.len();
            let text = match json {
                true => format!("{}\n", json!({"ok": true, "functions": n, "mistakes": []})),
                false => format!("ok: {n} function{}\n", if n == 1 { "" } else { "s" }),
            };
            emit(&text)?;
            Ok(true)
        }
        (Err(error), true) => {
            let bad: BadText = error.downcast()?;
            let mistakes: Vec<Value> = bad.diags.0.iter().map(|diag| mistake(diag, &source.text)).collect();
            emit(&format!("{}\n", json!({"ok": false, "mistakes": mistakes})))?;
            Ok(false)
        }
        (Err(error), false) => Err(error),
    }
}

fn mistake(diag: &Diag, text: &str) -> Value {
    let labels = diag.labels.iter().filter_map(|(loc, label)| match loc {
        Loc::Text { start, .. } => {
            let (line, column) = place(text, *start);
            Some(json!({"line": line, "column": column, "text": label}))
        }
        Loc::Rust(_) => None,
    });
    let labels: Vec<Value> = labels.collect();
    json!({"code": diag.code, "message": diag.message, "help": diag.help, "labels": labels})
}

/// Line and column, both from 1, of a byte of `text`; columns are characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}
