//! The header of a safetensors file: eight bytes of little-endian length, JSON, then the data.
//!
//! Nothing in the header is believed: sizes are bounded before anything is allocated, every range is checked
//! against its shape and type, and the ranges must tile the data exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

use super::CheckpointDType;

/// Longest header accepted, in bytes; the public format has the same limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most extents a shape may have.
pub const MAX_RANK: usize = 16;

/// A header that was checked against the length of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Free text stored under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<TensorEntry>,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name, unique in its file.
    pub name: String,
    /// Element type.
    pub dtype: CheckpointDType,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where its bytes lie, counted from the start of the file.
    pub range: Range<usize>,
}

/// What is wrong with a header. The messages leave out the file, which the caller knows.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HeaderError {
    #[error("the file is empty; copy or download it again")]
    Empty,
    #[error(
        "the file has {len} bytes, too few for the 8 bytes that begin a safetensors file; copy or download it again"
    )]
    TooShort { len: u64 },
    #[error("this is a Git LFS pointer, not the file it stands for; run `git lfs pull` in its repository")]
    LfsPointer,
    #[error(
        "the first 8 bytes promise a header of {header} bytes, more than the {MAX_HEADER_BYTES} allowed; \
         this is not a safetensors file, or it is damaged"
    )]
    HeaderTooLong { header: u64 },
    #[error(
        "the first 8 bytes promise a header of {header} bytes, but only {rest} bytes follow; \
         the file is cut short or is not a safetensors file: copy or download it again"
    )]
    HeaderBeyondFile { header: u64, rest: u64 },
    #[error("the header is not the JSON of a safetensors file: {detail}; copy or download the file again")]
    Json { detail: String },
    #[error("tensor `{tensor}` has the unknown type `{found}`; known types: {}", known_types())]
    UnknownDType { tensor: String, found: String },
    #[error(
        "tensor `{tensor}` of shape {shape} and type {dtype} has more than 2^63 bytes; the header is damaged"
    )]
    Overflow { tensor: String, shape: Extents, dtype: CheckpointDType },
    #[error(
        "tensor `{tensor}` of shape {shape} and type {dtype} needs {expected} bytes, but its data_offsets \
         [{start}, {end}] span {}; the header is damaged", span(*.start, *.end)
    )]
    Size { tensor: String, shape: Extents, dtype: CheckpointDType, expected: u64, start: u64, end: u64 },
    #[error(
        "the data of tensor `{tensor}` end at byte {end}, but the file holds only {have} bytes of data; \
         the file is cut short: copy or download it again"
    )]
    BeyondFile { tensor: String, end: u64, have: u64 },
    #[error(
        "the data of tensors `{first}` and `{second}` overlap: the first ends at byte {end}, \
         the second starts at byte {start}; the header is damaged"
    )]
    Overlap { first: String, second: String, end: u64, start: u64 },
    #[error(
        "bytes {start} to {end} of the data, before tensor `{tensor}`, belong to no tensor; the header is damaged"
    )]
    Hole { tensor: String, start: u64, end: u64 },
    #[error(
        "the tensors end at byte {end} of the data, but the file holds {have} bytes of data; \
         the header is damaged or something was appended to the file"
    )]
    Trailing { end: u64, have: u64 },
}

fn known_types() -> String {
    CheckpointDType::ALL.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ")
}

fn span(start: u64, end: u64) -> String {
    match end.checked_sub(start) {
        Some(n) => format!("{n}"),
        None => "nothing (they run backwards)".into(),
    }
}

/// A shape as it is written in messages: `[3, 5]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents(pub Vec<usize>);

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A name from a file, cut to a length that fits a message.
pub(super) fn clip(name: &str) -> String {
    const LONGEST: usize = 200;
    match name.char_indices().nth(LONGEST) {
        None => name.escape_debug().to_string(),
        Some((at, _)) => format!("{}... ({} bytes)", name[..at].escape_debug(), name.len()),
    }
}

/// Reads the header at the start of `bytes`, the beginning of a file of `file_len` bytes.
///
/// `bytes` must reach at least to the end of the header; what follows is not looked at, so a caller may pass the
/// whole file. Time and memory are bounded by the length of the header. Never panics.
pub fn parse_header(bytes: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    if file_len == 0 {
        return Err(HeaderError::Empty);
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(HeaderError::LfsPointer);
    }
    let Some((first, rest)) = bytes.split_first_chunk::<8>().filter(|_| file_len >= 8) else {
        return Err(HeaderError::TooShort { len: file_len.min(bytes.len() as u64) });
    };
    let header = u64::from_le_bytes(*first);
    if header > MAX_HEADER_BYTES {
        return Err(HeaderError::HeaderTooLong { header });
    }
    let available = (file_len - 8).min(rest.len() as u64);
    if header > available {
        return Err(HeaderError::HeaderBeyondFile { header, rest: available });
    }
    let json = &rest[..header as usize];
    if json.first() != Some(&b'{') {
        let detail = match json.first() {
            None => "it has no bytes".into(),
            Some(byte) => format!("it begins with byte 0x{byte:02x} instead of `{{`"),
        };
        return Err(HeaderError::Json { detail });
    }
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|e| HeaderError::Json { detail: clip(&e.to_string()) })?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        tensors.push(check_tensor(name, tensor)?);
    }
    check_tiling(&mut tensors, header, file_len)?;
    Ok(Header { metadata: raw.metadata, tensors })
}

/// Checks one tensor by itself; its range still counts from the start of the data.
fn check_tensor(name: String, raw: RawTensor) -> Result<TensorEntry, HeaderError> {
    let Some(dtype) = CheckpointDType::from_name(&raw.dtype) else {
        return Err(HeaderError::UnknownDType { tensor: clip(&name), found: clip(&raw.dtype) });
    };
    let RawShape(shape) = raw.shape;
    let (start, end) = raw.data_offsets;
    let Some(expected) = dtype.bytes_of(&shape) else {
        return Err(HeaderError::Overflow { tensor: clip(&name), shape: Extents(shape), dtype });
    };
    if end.checked_sub(start) != Some(expected) {
        let shape = Extents(shape);
        return Err(HeaderError::Size { tensor: clip(&name), shape, dtype, expected, start, end });
    }
    let beyond = || HeaderError::BeyondFile { tensor: clip(&name), end, have: 0 };
    let range = usize::try_from(start).map_err(|_| beyond())?..usize::try_from(end).map_err(|_| beyond())?;
    Ok(TensorEntry { name, dtype, shape, range })
}

/// Sorts the tensors by position, checks that they tile the data, and moves their ranges to count from the start
/// of the file.
fn check_tiling(tensors: &mut [TensorEntry], header: u64, file_len: u64) -> Result<(), HeaderError> {
    let have = file_len - 8 - header;
    tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    if let Some(last) = tensors.iter().max_by_key(|t| t.range.end)
        && last.range.end as u64 > have
    {
        return Err(HeaderError::BeyondFile { tensor: clip(&last.name), end: last.range.end as u64, have });
    }
    let mut end = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let start = tensor.range.start;
        if start < end {
            let (first, second) = (clip(&tensors[i - 1].name), clip(&tensor.name));
            return Err(HeaderError::Overlap { first, second, end: end as u64, start: start as u64 });
        }
        if start > end {
            let tensor = clip(&tensor.name);
            return Err(HeaderError::Hole { tensor, start: end as u64, end: start as u64 });
        }
        end = tensor.range.end;
    }
    if (end as u64) < have {
        return Err(HeaderError::Trailing { end: end as u64, have });
    }
    let base = 8 + header as usize;
    for tensor in tensors {
        tensor.range = tensor.range.start + base..tensor.range.end + base;
    }
    Ok(())
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object of dtype, shape and data_offsets")]
struct RawTensor {
    dtype: String,
    shape: RawShape,
    data_offsets: (u64, u64),
}

/// A shape whose rank is bounded while it is read.
struct RawShape(Vec<usize>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut metadata = None;
                let mut tensors: Vec<(String, RawTensor)> = Vec::new();
                let mut seen = BTreeSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        if metadata.is_some() {
                            return Err(de::Error::custom("`__metadata__` occurs twice"));
                        }
                        metadata = Some(map.next_value().map_err(|e| at("`__metadata__`", e))?);
                        continue;
                    }
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format!("tensor `{}` occurs twice", clip(&key))));
                    }
                    let tensor = map.next_value().map_err(|e| at(&format!("tensor `{}`", clip(&key)), e))?;
                    tensors.push((key, tensor));
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

fn at<E: de::Error>(what: &str, error: E) -> E {
    E::custom(format!("{what}: {error}"))
}

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = RawShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawShape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = seq.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(de::Error::custom(format!("a shape of more than {MAX_RANK} extents")));
                    }
                    shape.push(extent);
                }
                Ok(RawShape(shape))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}
