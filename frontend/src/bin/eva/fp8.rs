//! The options about 8-bit floats.

use clap::{Args as ClapArgs, ValueEnum};
use eva::engine::default_recipe;
use eva::model::config::Config;
use eva_passes::fp8::{Options, Recipe};

/// Which products are computed in 8 bits.
#[derive(ClapArgs, Clone, Debug, Default)]
pub struct Fp8Args {
    /// Which products have 8-bit operands, and how those are made: the name of a recipe, or a TOML file [default:
    /// w8a8-absorb for a checkpoint of 8-bit weights]
    #[arg(long, value_name = "RECIPE|FILE.toml", value_parser = recipe)]
    fp8: Option<Recipe>,
    /// What is otherwise only noted, and is to be an error
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    deny: Vec<Deny>,
}

/// What can be denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Deny {
    /// A product that the recipe wants in 8 bits and that cannot be
    Fp8Fallback,
}

impl Fp8Args {
    /// The recipe that was asked for.
    pub fn recipe(&self) -> Option<Recipe> {
        self.fp8.clone()
    }

    /// Whether falling back is an error.
    pub fn deny_fallback(&self) -> bool {
        self.deny.contains(&Deny::Fp8Fallback)
    }

    /// What the passes are told, of a model with its configuration or of an IR text without.
    pub fn options(&self, config: Option<&Config>) -> Options {
        let recipe = self.recipe().or_else(|| default_recipe(config?));
        Options { recipe, deny_fallback: self.deny_fallback(), ..Options::default() }
    }
}

/// A recipe on the command line.
pub fn recipe(text: &str) -> Result<Recipe, String> {
    if let Some(recipe) = Recipe::named(text) {
        return Ok(recipe);
    }
    let file = std::path::Path::new(text);
    if file.extension().is_none_or(|end| end != "toml") && !file.is_file() {
        return Err(format!("there are {}, and files that end in .toml", Recipe::NAMES.join(", ")));
    }
    let content = std::fs::read_to_string(file).map_err(|error| format!("cannot read it: {error}"))?;
    Recipe::from_toml(&content).map_err(|error| error.to_string())
}
