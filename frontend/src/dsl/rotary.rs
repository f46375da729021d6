//! The parameters of a rotary position embedding.

use eva_ir::attr::Word;

/// Which columns a rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Columns `2i` and `2i + 1`.
    Interleaved,
    /// Columns `i` and `i + width/2`.
    Halves,
}

impl Pairs {
    /// The word in the op's attributes.
    pub fn word(self) -> Word {
        match self {
            Pairs::Interleaved => "interleaved".into(),
            Pairs::Halves => "halves".into(),
        }
    }
}

/// A rotary position embedding (Su et al. 2021): pair `i` of `width/2` turns by `theta^(-2i/width)` radians a position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// The base of the frequencies, such as 10000.
    pub theta: f64,
    /// Which columns are a pair.
    pub pairs: Pairs,
    /// How the frequencies are stretched for longer sequences, if they are.
    pub yarn: Option<Yarn>,
}

/// YaRN (Peng et al. 2023): slow frequencies are divided by `factor`, fast ones kept, with a ramp between.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer sequences may be.
    pub factor: f64,
    /// Pairs that turn more often than this over the original length keep their frequency.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are divided by the factor.
    pub beta_slow: f64,
    /// The length the model was first trained for, in tokens.
    pub original: i64,
}
