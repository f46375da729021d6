//! 8-bit floats by recipe: which products have operands of 8 bits, and the casts that make them so.

mod recipe;

pub use recipe::{Casting, Expansion, High, Recipe, Tiles};

/// What a compilation is told of 8-bit floats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The recipe; without one nothing is quantized, and weights that are stored as 8 bits are read as numbers.
    pub recipe: Option<Recipe>,
    /// Whether a product that the recipe wants in 8 bits and that cannot be is a mistake.
    pub deny_fallback: bool,
}
