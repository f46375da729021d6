//! 8-bit floats by recipe: which products have operands of 8 bits, and the casts that make them so.
//!
//! A directed pass: a product of 8-bit operands is another number, so it is no equality that an e-graph could hold. It runs
//! before forms of attention are chosen, so that what it converts is left alone by rewriting; the expansion of latents
//! (`kv_b_proj`) it leaves to attention, unless the recipe says otherwise ([`Expansion`]).
//!
//! After it every product is one of three things ([`Outcome`]): 8 bits, kept by the recipe for a reason, or a fallback, which
//! is reported, and a mistake where fallbacks are denied.

pub mod accumulate;
mod contraction;
mod convert;
mod delayed;
mod file;
mod gradient;
pub mod observe;
mod recipe;
mod whole;

use contraction::{Fate, fate};
pub use convert::convert;
pub use delayed::delay;
use eva_ir::diag::{Diag, Diags, Loc};
use eva_ir::graph::{Def, Function, Module, Value};
pub use file::RecipeError;
pub use recipe::{Casting, Delayed, Expansion, High, Recipe, Tiles};

/// What a compilation is told of 8-bit floats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The recipe; without one nothing is quantized, and weights that are stored as 8 bits are read as numbers.
    pub recipe: Option<Recipe>,
    /// Whether a product that the recipe wants in 8 bits and that cannot be is a mistake.
    pub deny_fallback: bool,
    /// Whether functions give statistics of what they quantize among their results ([`observe`]).
    pub observe: bool,
    /// What the sums of the target's 8-bit products are multiples of; 0 if they are of any length. Compiling fills it in.
    pub multiple: i64,
    /// Whether the target's 8-bit products sum neighbours in memory, so that other weights are turned. Compiling fills it in.
    pub neighbours: bool,
}

impl Options {
    /// What sums must be a multiple of.
    fn multiple(&self) -> i64 {
        self.multiple.max(1)
    }
}

/// A product, and what it is computed in.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Its value.
    pub value: Value,
    /// Its name.
    pub name: String,
    /// The weight that it multiplies with, if it is one.
    pub weight: Option<String>,
    /// Its line.
    pub loc: Option<Loc>,
    /// What it is computed in.
    pub outcome: Outcome,
}

/// What a product is computed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both operands are 8 bits.
    Eight,
    /// Operands have more bits, and this is why.
    High(String),
    /// The recipe wants 8 bits, and this is why that cannot be.
    Fallback(String),
}

/// The products of a body of a function that the passes have left, in order; none without a recipe.
pub fn products(module: &Module, f: &Function, options: &Options) -> Vec<Product> {
    let Some(recipe) = &options.recipe else { return Vec::new() };
    let product = |value: Value| {
        let outcome = match fate(module, f, value, recipe, true, options.multiple())? {
            Fate::Eight => Outcome::Eight,
            Fate::High(why) => Outcome::High(why),
            Fate::Fallback(why) => Outcome::Fallback(why),
            fate @ (Fate::Convert(_) | Fate::Gradient(_) | Fate::Experts(_)) => {
                let activations = recipe.activations.unwrap_or(recipe.weights);
                let why = convert::refusal(module, f, value, &fate, options, [activations, recipe.weights]);
                Outcome::Fallback(why.unwrap_or_else(|| "it was made after the pass `fp8`".into()))
            }
        };
        let data = &f.values[value];
        let weight = contraction::weight_name(module, f, value);
        Some(Product { value, name: data.name.clone(), weight, loc: data.loc, outcome })
    };
    f.values.keys().filter_map(product).collect()
}

/// Reports the products that the recipe wants in 8 bits and that are not: as mistakes, if fallbacks are denied.
pub fn report(module: &Module, options: &Options) -> Result<(), Diags> {
    let mut mistakes = Vec::new();
    for (_, f) in module.funcs.iter() {
        // What prepares weights computes nothing in 8 bits.
        for (body, _) in f.bodies().filter(|_| f.prepares.is_none()) {
            for Product { value, name, weight, loc, outcome } in products(module, body, options) {
                let Outcome::Fallback(why) = outcome else { continue };
                let Def::Op(op, _) = &body.values[value].def else { continue };
                let of = weight.map_or(String::new(), |weight| format!(" (with `{weight}`)"));
                let message = format!(
                    "the `{}` `{name}`{of} of @{} is not computed in 8 bits: {why}",
                    op.kind().name(),
                    f.name
                );
                tracing::warn!("{message}");
                let diag = Diag::new("eva::fp8_fallback", message).label(loc, "this product");
                mistakes.push(diag.help("keep it by the recipe, or allow fallbacks"));
            }
        }
    }
    if options.deny_fallback && !mistakes.is_empty() { Err(Diags(mistakes)) } else { Ok(()) }
}
