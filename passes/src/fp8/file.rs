//! Recipes as TOML files.

use super::{Casting, Delayed, Expansion, High, Recipe, Tiles};
use eva_ir::scales::Encoding;
use eva_ir::types::DType;
use serde::{Deserialize, Serialize};

/// Why a file is no recipe. Every message is complete, but for the file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum RecipeError {
    #[error("not a recipe: {0}")]
    Syntax(String),
    #[error("`{key}` is {found}; expected {expected}")]
    Value { key: String, found: String, expected: String },
    #[error(
        "`weights` is missing: say how weights are quantized, or name a recipe to start from with `base`"
    )]
    Weights,
}

/// What a file says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expansion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activations: Option<Cast>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Cast>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed: Option<History>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<Vec<Kept>>,
}

/// A [`Delayed`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct History {
    window: u32,
    #[serde(default)]
    margin: i32,
}

/// A [`Casting`], of which what is left out is that of the recipe to start from.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cast {
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tiles: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scales: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    least: Option<f64>,
}

/// A [`High`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    weights: String,
    reason: String,
}

const EXPANSIONS: [(&str, Expansion); 3] = [
    ("free", Expansion::Free),
    ("quantized", Expansion::Quantized),
    ("absorbed-quantized", Expansion::AbsorbedQuantized),
];

impl Recipe {
    /// Reads a recipe from the text of a file, such as
    ///
    /// ```
    /// # let recipe = eva_passes::fp8::Recipe::from_toml(r#"
    /// name = "careful"
    /// base = "deepseek-v3"          # what is not said here is as in this one
    /// expansion = "free"            # or "quantized", "absorbed-quantized"
    ///
    /// [activations]                 # without `base` and without this table only weights are 8 bits
    /// to = "f8e4m3"                 # or "f8e5m2"
    /// tiles = "1x64"                # or "tensor", "row", "128x128"
    /// scales = "pow2"               # or "single", "e8m0"
    /// least = 1e-4                  # the least magnitude that a scale is made of
    ///
    /// ## [delayed]                   # where activations have one scale: it is made of the calls before
    /// ## window = 16                # of so many
    /// ## margin = 1                  # and doubled so often, for what grows
    ///
    /// [[high]]                      # weights whose products stay as they are: the base's are replaced
    /// weights = "*down_proj*"
    /// reason = "outliers"
    /// # "#).unwrap();
    /// # assert_eq!(recipe.keeps("mlp.down_proj.weight"), Some("outliers"));
    /// # assert_eq!(eva_passes::fp8::Recipe::from_toml(&recipe.to_toml()), Ok(recipe));
    /// ```
    pub fn from_toml(text: &str) -> Result<Recipe, RecipeError> {
        let file: File = toml::from_str(text).map_err(|e| RecipeError::Syntax(e.to_string()))?;
        let base = match &file.base {
            None => None,
            Some(name) => {
                let known = || wrong("base", name, &Recipe::NAMES);
                Some(Recipe::named(name).ok_or_else(known)?)
            }
        };
        if file.name.trim().is_empty() {
            return Err(wrong("name", &file.name, &["some text"]));
        }
        let usual =
            Casting { to: DType::F8E4M3, tiles: Tiles::Square(128), encoding: Encoding::F32, least: 1e-12 };
        let weights = match (&file.weights, &base) {
            (None, None) => return Err(RecipeError::Weights),
            (None, Some(base)) => base.weights,
            (Some(cast), base) => cast.over("weights", base.as_ref().map_or(usual, |base| base.weights))?,
        };
        let usual = Casting { tiles: Tiles::Along(128), least: 1e-4, ..usual };
        let before = base.as_ref().and_then(|base| base.activations);
        let activations = match &file.activations {
            None => before,
            Some(cast) => Some(cast.over("activations", before.unwrap_or(usual))?),
        };
        let expansion = match &file.expansion {
            None => base.as_ref().map_or(Expansion::Free, |base| base.expansion),
            Some(word) => chosen("expansion", word, &EXPANSIONS)?,
        };
        let delayed = match &file.delayed {
            None => base.as_ref().and_then(|base| base.delayed),
            Some(History { window, margin }) => {
                let number = |key: &str, found: String, expected: &str| RecipeError::Value {
                    key: format!("delayed.{key}"),
                    found,
                    expected: expected.into(),
                };
                if !(1..=65536).contains(window) {
                    return Err(number("window", window.to_string(), "a number from 1 to 65536"));
                }
                if !(-64..=64).contains(margin) {
                    return Err(number("margin", margin.to_string(), "a number from -64 to 64"));
                }
                Some(Delayed { window: *window, margin: *margin })
            }
        };
        let single = activations.is_some_and(|casting: Casting| {
            casting.tiles == Tiles::Tensor && casting.encoding == Encoding::F32
        });
        if delayed.is_some() && !single {
            return Err(RecipeError::Value {
                key: "delayed".into(),
                found: "there".into(),
                expected: "no such table, or activations with `tiles = \"tensor\"` and `scales = \"single\"`"
                    .into(),
            });
        }
        if delayed.is_some() && expansion == Expansion::AbsorbedQuantized {
            return Err(wrong("expansion", "absorbed-quantized", &["free", "quantized"]));
        }
        let mut high = base.map_or_else(Recipe::usual_high, |base| base.high);
        if let Some(kept) = file.high {
            if kept.iter().any(|kept| kept.weights.is_empty()) {
                return Err(wrong("high.weights", "", &["a pattern for names, as in *norm*"]));
            }
            high = kept.into_iter().map(|Kept { weights, reason }| High { weights, reason }).collect();
        }
        Ok(Recipe { name: file.name, activations, weights, expansion, high, delayed })
    }

    /// The recipe as the text of a file.
    pub fn to_toml(&self) -> String {
        let expansion = EXPANSIONS.iter().find(|(_, expansion)| *expansion == self.expansion);
        let kept = self
            .high
            .iter()
            .map(|High { weights, reason }| Kept { weights: weights.clone(), reason: reason.clone() });
        let file = File {
            name: self.name.clone(),
            base: None,
            expansion: expansion.map(|(word, _)| word.to_string()),
            activations: self.activations.map(Cast::of),
            weights: Some(Cast::of(self.weights)),
            delayed: self.delayed.map(|Delayed { window, margin }| History { window, margin }),
            high: Some(kept.collect()),
        };
        toml::to_string(&file).expect("tables of words and numbers can be written")
    }
}

impl Cast {
    fn of(casting: Casting) -> Self {
        let tiles = match casting.tiles {
            Tiles::Tensor => "tensor".into(),
            Tiles::Row => "row".into(),
            Tiles::Along(n) => format!("1x{n}"),
            Tiles::Square(n) => format!("{n}x{n}"),
        };
        Self {
            to: Some(casting.to.name().into()),
            tiles: Some(tiles),
            scales: Some(casting.encoding.name().into()),
            least: Some(casting.least),
        }
    }

    /// The casting that this table of the file changes `base` to.
    fn over(&self, table: &str, base: Casting) -> Result<Casting, RecipeError> {
        let key = |key: &str| format!("{table}.{key}");
        let mut casting = base;
        if let Some(word) = &self.to {
            let types = [DType::F8E4M3, DType::F8E5M2].map(|dtype| (dtype.name(), dtype));
            casting.to = chosen(&key("to"), word, &types)?;
        }
        if let Some(word) = &self.tiles {
            let expected = ["tensor", "row", "1xN", "NxN with N from 2 to 65536"];
            casting.tiles = tiles(word).ok_or_else(|| wrong(&key("tiles"), word, &expected))?;
        }
        if let Some(word) = &self.scales {
            casting.encoding = chosen(&key("scales"), word, &Encoding::ALL.map(|e| (e.name(), e)))?;
        }
        if let Some(least) = self.least {
            if !(least.is_finite() && least as f32 > 0.0) {
                let expected = "a positive number that an f32 can be".into();
                return Err(RecipeError::Value { key: key("least"), found: least.to_string(), expected });
            }
            casting.least = least;
        }
        Ok(casting)
    }
}

fn tiles(word: &str) -> Option<Tiles> {
    let (rows, columns) = match word {
        "tensor" => return Some(Tiles::Tensor),
        "row" => return Some(Tiles::Row),
        _ => word.split_once('x')?,
    };
    let n: u32 = columns.parse().ok().filter(|n| (2..=65536).contains(n))?;
    match rows {
        "1" => Some(Tiles::Along(n)),
        _ => (rows == columns).then_some(Tiles::Square(n)),
    }
}

fn chosen<T: Copy>(key: &str, word: &str, known: &[(&str, T)]) -> Result<T, RecipeError> {
    let found = known.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        wrong(key, word, &names)
    })
}

fn wrong(key: &str, found: &str, expected: &[&str]) -> RecipeError {
    let expected = match expected {
        [one] => one.to_string(),
        several => format!("one of {}", several.join(", ")),
    };
    RecipeError::Value { key: key.into(), found: format!("\"{found}\""), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_recipe_is_a_file() {
        for name in Recipe::NAMES {
            let recipe = Recipe::named(name).unwrap();
            assert_eq!(Recipe::from_toml(&recipe.to_toml()), Ok(recipe), "{name}");
        }
    }

    #[test]
    fn what_is_not_said_is_the_bases() {
        let recipe =
            Recipe::from_toml("name = 'a'\nbase = 'rowwise'\n[activations]\nscales = 'pow2'\n").unwrap();
        let base = Recipe::named("rowwise").unwrap();
        let activations = Casting { encoding: Encoding::Pow2, ..base.activations.unwrap() };
        assert_eq!(recipe, Recipe { name: "a".into(), activations: Some(activations), ..base });
        let weights = Recipe::from_toml("name = 'b'\n[weights]\nto = 'f8e5m2'\n").unwrap();
        assert_eq!((weights.activations, weights.weights.to), (None, DType::F8E5M2));
        assert_eq!(weights.high, Recipe::usual_high());
    }

    #[test]
    fn mistakes_are_named() {
        let refusal = |text: &str| Recipe::from_toml(text).unwrap_err().to_string();
        for (text, message) in [
            (
                "name = 'a'",
                "`weights` is missing: say how weights are quantized, or name a recipe to start from with `base`",
            ),
            ("name = ''\nbase = 'w8a8'", "`name` is \"\"; expected some text"),
            (
                "name = 'a'\nbase = 'w8a8'\nexpansion = 'no'",
                "`expansion` is \"no\"; expected one of free, quantized, absorbed-quantized",
            ),
            (
                "name = 'a'\nbase = 'w8a8'\n[weights]\nto = 'f16'",
                "`weights.to` is \"f16\"; expected one of f8e4m3, f8e5m2",
            ),
            (
                "name = 'a'\nbase = 'w8a8'\n[weights]\ntiles = '32x64'",
                "`weights.tiles` is \"32x64\"; expected one of tensor, row, 1xN, NxN with N from 2 to 65536",
            ),
            (
                "name = 'a'\nbase = 'w8a8'\n[activations]\nscales = 'f32'",
                "`activations.scales` is \"f32\"; expected one of single, pow2, e8m0",
            ),
            (
                "name = 'a'\nbase = 'w8a8'\n[activations]\nleast = 0",
                "`activations.least` is 0; expected a positive number that an f32 can be",
            ),
            (
                "name = 'a'\nbase = 'tensorwise-delayed'\n[delayed]\nwindow = 0",
                "`delayed.window` is 0; expected a number from 1 to 65536",
            ),
            (
                "name = 'a'\nbase = 'rowwise'\n[delayed]\nwindow = 4",
                "`delayed` is there; expected no such table, or activations with `tiles = \"tensor\"` and `scales = \"single\"`",
            ),
        ] {
            assert_eq!(refusal(text), message, "{text}");
        }
        assert!(refusal("name = 'a'\nbase = 'x'").starts_with("`base` is \"x\"; expected one of dequant, "));
        let unknown = refusal("name = 'a'\nbase = 'w8a8'\ntile = 3");
        assert!(unknown.contains("line 3") && unknown.contains("`tile`"), "{unknown}");
    }
}
