//! Attributes: the compile-time arguments of an op.

use crate::dim::{Dim, Sym};
use crate::types::DType;
use std::fmt;
use std::str::FromStr;

/// One attribute value. `Display` and `FromStr` are its spelling in the IR text
/// and, with no change, in a rewrite pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attr {
    /// An integer, such as `3`.
    Int(i64),
    /// A number with a point or an exponent, such as `1e-6` or `2.0`.
    Real(Real),
    /// `true` or `false`.
    Bool(bool),
    /// Positions along an axis, such as `0..n`.
    Range(Range),
    /// Extents, such as `[b, s, h*n]`.
    Dims(Dims),
    /// The axes of a contraction, such as `"bsm,rm->bsr"`.
    Spec(Spec),
    /// An element type, such as `bf16`.
    DType(DType),
    /// One of an op's named choices, such as `interleaved`.
    Word(Word),
}

macro_rules! attr_kinds {
    ($($Kind:ident($ty:ty)),*) => {$(
        impl From<$ty> for Attr {
            fn from(value: $ty) -> Self { Attr::$Kind(value) }
        }
        impl TryFrom<Attr> for $ty {
            type Error = Attr;
            fn try_from(attr: Attr) -> Result<Self, Attr> {
                match attr { Attr::$Kind(value) => Ok(value), other => Err(other) }
            }
        }
    )*};
}
attr_kinds!(Int(i64), Real(Real), Bool(bool), Range(Range), Dims(Dims), Spec(Spec), DType(DType), Word(Word));

/// An extent as an attribute is written `[n]`, like a list of one.
impl From<Dim> for Attr {
    fn from(dim: Dim) -> Self {
        Attr::Dims(Dims(vec![dim]))
    }
}

impl TryFrom<Attr> for Dim {
    type Error = Attr;
    fn try_from(attr: Attr) -> Result<Self, Attr> {
        match attr {
            Attr::Dims(Dims(dims)) if dims.len() == 1 => Ok(dims.into_iter().next().expect("there is one")),
            other => Err(other),
        }
    }
}

/// A float that can be compared and hashed, by its bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Real(u64);

impl Real {
    /// The attribute with this value.
    pub fn new(value: f64) -> Self {
        Self(value.to_bits())
    }
    /// The value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

/// A named choice: lower-case letters, digits and `_`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(Sym);

impl Word {
    /// The choice's name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl From<&str> for Word {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Positions `start..end` along an axis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The first position.
    pub start: Dim,
    /// One past the last.
    pub end: Dim,
}

/// A list of extents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dims(pub Vec<Dim>);

/// Which axes of some operands are multiplied together, and which are summed.
///
/// Letters mean nothing beyond being the same or not, so axes are numbered in
/// order of appearance, and specs that mean the same are equal. The letters that
/// the author chose are kept for printing only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spec {
    /// The axes of each operand.
    pub inputs: Vec<Vec<Axis>>,
    /// The axes of the result; those of the operands that are missing here are summed.
    pub out: Vec<Axis>,
    letters: Unseen<Vec<char>>,
}

/// An axis of a [`Spec`], numbered in order of appearance.
pub type Axis = u8;

impl Spec {
    /// From axes named in any way, with a letter for each name.
    pub fn new<T: PartialEq + Copy>(inputs: &[&[T]], out: &[T], letter: impl Fn(T) -> char) -> Self {
        let (mut names, mut letters) = (Vec::new(), Vec::new());
        let mut number = |axes: &[T]| -> Vec<Axis> {
            let number = |&axis: &T| {
                let i = names.iter().position(|&name| name == axis).unwrap_or_else(|| {
                    names.push(axis);
                    letters.push(pick(letter(axis), &letters));
                    names.len() - 1
                });
                i as Axis
            };
            axes.iter().map(number).collect()
        };
        let inputs = inputs.iter().map(|axes| number(axes)).collect();
        let out = number(out);
        Self { inputs, out, letters: Unseen(letters) }
    }

    /// How many axes there are in all.
    pub fn axes(&self) -> usize {
        self.letters.0.len()
    }

    /// The letter that the author gave `axis`.
    pub fn letter(&self, axis: Axis) -> char {
        self.letters.0[axis as usize]
    }

    /// The same spec with each axis spelled by `letter`, where that is free.
    pub fn spelled(&self, letter: impl Fn(Axis) -> char) -> Spec {
        let inputs: Vec<&[Axis]> = self.inputs.iter().map(Vec::as_slice).collect();
        Spec::new(&inputs, &self.out, letter)
    }
}

/// `want`, or the first letter not in `taken`.
fn pick(want: char, taken: &[char]) -> char {
    let letters = [want].into_iter().chain('a'..='z').chain('A'..='Z');
    letters.into_iter().find(|c| !taken.contains(c)).unwrap_or('?')
}

/// A value that comparisons and hashes do not see.
#[derive(Clone, Debug)]
struct Unseen<T>(T);

impl<T> PartialEq for Unseen<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<T> Eq for Unseen<T> {}
impl<T> PartialOrd for Unseen<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Unseen<T> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}
impl<T> std::hash::Hash for Unseen<T> {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl FromStr for Spec {
    type Err = ();
    /// Reads `"ab,bc->ac"`: lower-case or upper-case letters only.
    fn from_str(s: &str) -> Result<Self, ()> {
        let (inputs, out) = s.split_once("->").ok_or(())?;
        let letters = |s: &str| -> Result<Vec<char>, ()> {
            s.trim().chars().map(|c| c.is_ascii_alphabetic().then_some(c).ok_or(())).collect()
        };
        let inputs = inputs.split(',').map(letters).collect::<Result<Vec<_>, _>>()?;
        let inputs: Vec<&[char]> = inputs.iter().map(Vec::as_slice).collect();
        Ok(Self::new(&inputs, &letters(out)?, |c| c))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let s = |axes: &[Axis]| axes.iter().map(|&axis| self.letter(axis)).collect::<String>();
        let inputs: Vec<_> = self.inputs.iter().map(|axes| s(axes)).collect();
        write!(f, "{}->{}", inputs.join(","), s(&self.out))
    }
}

impl FromStr for Attr {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        if s.contains("->") {
            return s.parse().map(Attr::Spec);
        }
        if let Some(list) = s.strip_prefix('[') {
            let list = list.strip_suffix(']').ok_or(())?;
            let dims = list.split(',').map(str::trim).filter(|d| !d.is_empty());
            return Ok(Attr::Dims(Dims(dims.map(str::parse).collect::<Result<_, _>>()?)));
        }
        if let Some((start, end)) = s.split_once("..") {
            return Ok(Attr::Range(Range { start: start.parse()?, end: end.parse()? }));
        }
        match s {
            "true" => return Ok(Attr::Bool(true)),
            "false" => return Ok(Attr::Bool(false)),
            _ => {}
        }
        if let Some(dtype) = DType::by_name(s) {
            return Ok(Attr::DType(dtype));
        }
        if let Ok(n) = s.parse() {
            return Ok(Attr::Int(n));
        }
        if s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !matches!(s, "inf" | "nan")
        {
            return Ok(Attr::Word(s.into()));
        }
        s.parse().map(|x| Attr::Real(Real::new(x))).map_err(drop)
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Attr::Int(n) => write!(f, "{n}"),
            Attr::Real(x) => write!(f, "{x:?}"),
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::Range(r) => write!(f, "{}..{}", r.start, r.end),
            Attr::Dims(Dims(dims)) => {
                let dims: Vec<_> = dims.iter().map(|d| d.to_string()).collect();
                write!(f, "[{}]", dims.join(", "))
            }
            Attr::Spec(spec) => write!(f, "{spec}"),
            Attr::DType(dtype) => write!(f, "{dtype}"),
            Attr::Word(word) => write!(f, "{}", word.as_str()),
        }
    }
}
