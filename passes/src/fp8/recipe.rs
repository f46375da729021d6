//! What may be 8 bits, and how: a recipe, which is data.

use eva_ir::scales::{Block, Encoding, Scales};
use eva_ir::types::{DType, TensorType};

/// How a model is run with 8-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Its name, for people.
    pub name: String,
    /// How the activations of a product are quantized; none if they stay as they are and only weights are 8 bits.
    pub activations: Option<Casting>,
    /// How weights are quantized that are not stored so.
    pub weights: Casting,
    /// What becomes of the expansion of latents to keys and values (`kv_b_proj`).
    pub expansion: Expansion,
    /// Weights whose products stay as they are: the first that fits a weight's name decides.
    pub high: Vec<High>,
    /// Where activations have one scale: what it is made of, if not of the tensor itself.
    pub delayed: Option<Delayed>,
}

/// Scales made of what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// Of how many calls the largest magnitudes count.
    pub window: u32,
    /// How often what they give is doubled, so that what grows from call to call is not cut off.
    pub margin: i32,
}

/// How a tensor is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Casting {
    /// `f8e4m3` or `f8e5m2`.
    pub to: DType,
    /// Which neighbours share a scale.
    pub tiles: Tiles,
    /// How scales are written.
    pub encoding: Encoding,
    /// The least magnitude that a scale is made of; see [`eva_ir::ops::quantize::Quantize`].
    pub least: f64,
}

/// Which neighbours share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    /// All elements of a tensor (of each expert's, where there are experts).
    Tensor,
    /// All terms of a sum: a scale for each row of activations, and for each row of weights.
    Row,
    /// So many neighbours along the sum.
    Along(u32),
    /// Squares of so many.
    Square(u32),
}

/// What becomes of the product that makes keys and values of latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expansion {
    /// Its weights may be 8 bits and its other operand is not, so that they can be absorbed into queries and outputs.
    Free,
    /// Latents are quantized for it, too, so that nothing can be absorbed.
    Quantized,
    /// Like `Free`, and what is left after absorption is quantized where heads do not cut blocks.
    AbsorbedQuantized,
}

/// Weights whose products stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct High {
    /// A pattern for weights' names, `*` standing for anything.
    pub weights: String,
    /// Why.
    pub reason: String,
}

impl Recipe {
    /// The recipes that have names.
    pub const NAMES: [&str; 11] = [
        "dequant",
        "w8a8",
        "w8a8-ue8m0",
        "w8a8-absorb",
        "w8a8-absorb-ue8m0",
        "deepseek-v3",
        "deepseek-v3-ue8m0",
        "tensorwise-current",
        "tensorwise-delayed",
        "rowwise",
        "mxfp8",
    ];

    /// The recipe with this name.
    ///
    /// `dequant` reads 8-bit weights as numbers. `w8a8` quantizes activations of all products with 8-bit weights in tiles of
    /// 1×128 (that of `kv_b_proj`, too), `w8a8-ue8m0` with powers of two as scales, `w8a8-absorb` all but `kv_b_proj`'s,
    /// and `w8a8-absorb-ue8m0` so with powers of two.
    /// `deepseek-v3` is `w8a8-absorb` for weights of any type (arXiv 2412.19437, section 3.3), `deepseek-v3-ue8m0` its form
    /// with powers of two; `tensorwise-current` has a scale a tensor, `tensorwise-delayed` one made of the largest magnitudes
    /// in the 16 calls before (of the call itself in the first), `rowwise` one a row, `mxfp8` tiles of 1×32 with `e8m0`
    /// scales on both sides (OCP microscaling formats).
    pub fn named(name: &str) -> Option<Recipe> {
        let activations =
            |encoding| Casting { to: DType::F8E4M3, tiles: Tiles::Along(128), encoding, least: 1e-4 };
        let weights = |encoding| Casting { tiles: Tiles::Square(128), least: 1e-12, ..activations(encoding) };
        let whole = |tiles| {
            let casting = Casting { tiles, least: 1e-12, ..activations(Encoding::F32) };
            (Some(casting), casting)
        };
        let v3 = (Some(activations(Encoding::F32)), weights(Encoding::F32));
        let pow2 = |of: Encoding| (Some(activations(Encoding::Pow2)), weights(of));
        let small = Casting { tiles: Tiles::Along(32), least: 1e-30, ..activations(Encoding::E8M0) };
        let ((activations, weights), expansion) = match name {
            "dequant" => ((None, v3.1), Expansion::Free),
            "w8a8" => (v3, Expansion::Quantized),
            "w8a8-ue8m0" => (pow2(Encoding::F32), Expansion::Quantized),
            "w8a8-absorb" | "deepseek-v3" => (v3, Expansion::Free),
            "w8a8-absorb-ue8m0" => (pow2(Encoding::F32), Expansion::Free),
            "deepseek-v3-ue8m0" => (pow2(Encoding::Pow2), Expansion::Free),
            "tensorwise-current" | "tensorwise-delayed" => (whole(Tiles::Tensor), Expansion::Free),
            "rowwise" => (whole(Tiles::Row), Expansion::Free),
            "mxfp8" => ((Some(small), small), Expansion::Free),
            _ => return None,
        };
        // What is named for how it runs takes 8-bit weights as they are stored, and makes no others so.
        let stored_only = name.starts_with("w8a8") || name == "dequant";
        let mut high = Recipe::usual_high();
        if stored_only {
            high.push(High { weights: "*".into(), reason: "it is stored with more than 8 bits".into() });
        }
        let delayed = (name == "tensorwise-delayed").then_some(Delayed { window: 16, margin: 0 });
        Some(Recipe { name: name.into(), activations, weights, expansion, high, delayed })
    }

    /// What DeepSeek-V3 keeps: embedding and head, routers, norms and biases; the projection of its next-token module.
    pub fn usual_high() -> Vec<High> {
        let high = |weights: &str, reason: &str| High { weights: weights.into(), reason: reason.into() };
        vec![
            high("*embed_tokens*", "the embedding is kept"),
            high("*lm_head*", "the output head is kept"),
            high("*shared_head*", "the output head is kept"),
            high("*mlp.gate.weight", "the router is kept: a rounding can change a choice"),
            high("*eh_proj*", "the projection into the next-token module is kept"),
            high("*norm*", "norms are kept"),
        ]
    }

    /// Why products with a weight of this name, which is not stored as 8 bits, stay as they are; none if they do not.
    pub fn keeps(&self, weight: &str) -> Option<&str> {
        self.high.iter().find(|high| fits(&high.weights, weight)).map(|high| high.reason.as_str())
    }
}

impl Casting {
    /// The scales of `ty` where what is summed is `summed`; `each` are axes whose indices are tensors of their own.
    pub fn scales(&self, ty: &TensorType, summed: usize, each: &[usize]) -> Scales {
        let rank = ty.rank();
        let block = |axis: usize| match self.tiles {
            _ if each.contains(&axis) => Block::Each,
            Tiles::Tensor => Block::Whole,
            Tiles::Row if axis == summed => Block::Whole,
            Tiles::Along(n) if axis == summed => Block::Of(n),
            Tiles::Square(n) if axis == summed || axis + 2 >= rank => Block::Of(n),
            Tiles::Row | Tiles::Along(_) | Tiles::Square(_) => Block::Each,
        };
        Scales { blocks: (0..rank).map(block).collect(), encoding: self.encoding }
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(first) else { return false };
    if !rest.contains('*') {
        return name.ends_with(rest);
    }
    // Wherever what follows the next star's text may begin.
    (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(|at| fits(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name) in
            [("*norm*", "a.norm.weight"), ("*", ""), ("a*c", "abbc"), ("*gate.weight", "mlp.gate.weight")]
        {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a*c", "abcd"), ("x", "xx"), ("*mlp.gate.weight", "mlp.gate_proj.weight")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn every_name_is_a_recipe() {
        for name in Recipe::NAMES {
            assert_eq!(Recipe::named(name).unwrap().name, name);
        }
        assert_eq!(Recipe::named("fp4"), None);
    }
}
