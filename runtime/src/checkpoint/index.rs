//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::header::clip;

/// Reads an index: the file of every tensor. The message of an error leaves out the index's own path.
pub fn parse_index(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let index: Index = serde_json::from_slice(json).map_err(|e| clip(&e.to_string()))?;
    Ok(index.weight_map.0)
}

/// Whether `file` names an entry of the index's own directory and nothing else.
pub fn is_plain_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let one = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
    one && !file.contains(['/', '\\', '\0'])
}

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "metadata", default)]
    _metadata: IgnoredAny,
    weight_map: WeightMap,
}

struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut files = BTreeMap::new();
                while let Some(tensor) = map.next_key::<String>()? {
                    let file: String = map.next_value().map_err(|e| {
                        de::Error::custom(format!("the file of tensor `{}`: {e}", clip(&tensor)))
                    })?;
                    if files.contains_key(&tensor) {
                        return Err(de::Error::custom(format!("tensor `{}` occurs twice", clip(&tensor))));
                    }
                    files.insert(tensor, file);
                }
                Ok(WeightMap(files))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}
