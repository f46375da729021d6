//! `eva opt`: passes on an IR file.

use super::fp8::Fp8Args;
use super::input::Source;
use super::ui::{FormArg, NumericsArg, emit, numerics};
use anyhow::bail;
use clap::Args as ClapArgs;
use clap::builder::PossibleValuesParser;
use eva::prelude::Module;
use eva_ir::text;
use eva_passes::{Options, PASSES};
use std::path::PathBuf;

/// Arguments of `eva opt`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva opt layer.eva --passes form,attend --set s=1 --set t=4096
  eva print MODEL_DIR --block attention | eva opt - --passes form --form absorbed

Without passes the file is printed as eva writes it.")]
pub struct Args {
    /// IR file, or - for standard input
    #[arg(value_name = "FILE.eva")]
    file: PathBuf,
    /// Passes to run, in this order, separated by commas
    #[arg(long, value_name = "PASSES", value_delimiter = ',', value_parser = PossibleValuesParser::new(PASSES))]
    passes: Vec<String>,
    /// Give an extent that the file leaves open a value, as in s=1; can be repeated
    #[arg(long, value_name = "EXTENT=VALUE", value_parser = setting)]
    set: Vec<(String, i64)>,
    /// Form of attention that the pass `form` makes
    #[arg(long, value_enum, default_value_t = FormArg::Auto)]
    form: FormArg,
    /// How far rewriting may move results
    #[arg(long, value_enum, default_value_t = NumericsArg::Reassociates)]
    numerics: NumericsArg,
    #[command(flatten)]
    fp8: Fp8Args,
}

/// Reads, changes and prints.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let source = Source::read(&args.file)?;
    let mut module = source.module()?;
    for (name, value) in &args.set {
        fix(&mut module, name, *value)?;
    }
    source.verify(&module)?;
    let numerics = numerics(args.form, args.numerics)?;
    let fp8 = args.fp8.options(None);
    let tf32 = args.passes.iter().any(|pass| pass == "tf32");
    let options = Options { form: args.form.into(), numerics, tf32, fp8, ..Options::default() };
    let module = source.run(module, &args.passes, &options)?;
    emit(&text::print(&module))?;
    Ok(true)
}

/// A setting on the command line.
pub fn setting(text: &str) -> Result<(String, i64), String> {
    let (name, value) = text.split_once('=').ok_or("it must have the form EXTENT=VALUE, as in s=1")?;
    match value.trim().parse() {
        Ok(n) if n > 0 => Ok((name.trim().into(), n)),
        _ => Err(format!("`{value}` is not the size of an extent: it must be a whole number, 1 or more")),
    }
}

/// Gives an extent its value.
fn fix(module: &mut Module, name: &str, value: i64) -> anyhow::Result<()> {
    let Some((_, old)) = module.dims.iter_mut().find(|(sym, _)| sym.as_str() == name) else {
        let open: Vec<String> = module.dims.iter().map(|(sym, _)| format!("`{sym}`")).collect();
        let have = if open.is_empty() { "no extents".into() } else { open.join(", ") };
        bail!("--set {name}={value}: there is no extent `{name}`; the file has {have}");
    };
    match *old {
        Some(n) if n != value => bail!("--set {name}={value}: the file says that `{name}` is {n}"),
        _ => *old = Some(value),
    }
    Ok(())
}
