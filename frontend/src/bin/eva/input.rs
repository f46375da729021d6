//! What commands read: models, and IR texts from files or standard input; and the passes that are run on them.

use super::ui::BadText;
use anyhow::{Context, bail};
use eva::model::config::Config;
use eva::prelude::Module;
use eva_ir::{text, verify};
use eva_passes::Options;
use eva_runtime::checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Longest IR text accepted, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Whether a path is that of a model: a directory, or a config.json.
pub fn is_model(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|e| e == "json")
}

/// A model's configuration and, if it has one, its checkpoint, which fits.
pub fn model(path: &Path) -> anyhow::Result<(Config, Option<Checkpoint>)> {
    let config = Config::load(path)?;
    let stored = path.is_dir() && [SINGLE_FILE, INDEX_FILE].iter().any(|file| path.join(file).exists());
    let checkpoint = if stored { Some(Checkpoint::open(path)?) } else { None };
    if let Some(checkpoint) = &checkpoint {
        config.check(checkpoint, false)?;
    }
    Ok((config, checkpoint))
}

/// An IR text and the name to call it by.
pub struct Source {
    /// The path, or `<stdin>`.
    pub name: String,
    /// The text.
    pub text: String,
}

impl Source {
    /// Reads a file, or standard input for `-`.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Self::from_reader("<stdin>".into(), io::stdin().lock());
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{name}: cannot open it"))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            bail!("{name}: this is a directory; give an IR file");
        }
        Self::from_reader(name, file)
    }

    fn from_reader(name: String, reader: impl Read) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        reader
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("{name}: cannot read it"))?;
        if bytes.len() as u64 > MAX_BYTES {
            bail!("{name}: it has more than {} MB; an IR text has at most that", MAX_BYTES >> 20);
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                bail!("{name}: not a text: byte {at} is not UTF-8")
            }
        }
    }

    /// The module that the text describes, verified.
    pub fn module(&self) -> anyhow::Result<Module> {
        let module = text::parse(&self.text).map_err(|diags| self.bad(diags))?;
        self.verify(&module)?;
        Ok(module)
    }

    /// Checks a module that was made of this text.
    pub fn verify(&self, module: &Module) -> anyhow::Result<()> {
        verify::verify(module).map_err(|diags| self.bad(diags).into())
    }

    /// Runs passes; mistakes that they find are shown in the text.
    pub fn run(&self, module: Module, passes: &[String], options: &Options) -> anyhow::Result<Module> {
        run_passes(module, passes, options).map_err(|error| match error.downcast() {
            Ok(error) => self.blame(error),
            Err(error) => error,
        })
    }

    /// An error of passes; one of mistakes shows them in the text.
    pub fn blame(&self, error: eva_passes::Error) -> anyhow::Error {
        match error {
            eva_passes::Error::Invalid(diags) => self.bad(diags).into(),
            error => error.into(),
        }
    }

    fn bad(&self, diags: eva::prelude::Diags) -> BadText {
        BadText { name: self.name.clone(), text: self.text.clone(), diags }
    }
}

/// Runs passes in the order given.
pub fn run_passes(mut module: Module, passes: &[String], options: &Options) -> anyhow::Result<Module> {
    for name in passes {
        let result = eva_passes::run_pass(name, &module, options);
        module = result.with_context(|| format!("there is no pass named `{name}`"))??;
    }
    Ok(module)
}
