//! `rope_freqs`: how fast each rotary column turns.

use super::check::{self, Pairs};
use crate::attr::{Real, Word};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::Lowering;
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};
use std::f64::consts::PI;

op! {
    /// Row 0: the angle per position of each rotary column; row 1: the sign of the sine in it.
    ///
    /// The columns of a pair turn together: the first becomes `x₀ cos - x₁ sin`, the second `x₁ cos + x₀ sin`.
    /// Pair `i` of `p/2` turns by `theta^(-2i/p)`, which YaRN (Peng et al. 2023) divides by `factor` where fewer
    /// than `beta_slow` turns fit into the `original` length, keeps where more than `beta_fast` do, and blends between.
    /// Computed in `f32`, as the models' own code does: far out, the last bit matters.
    "rope_freqs" => RopeFreqs() {
        /// The number of rotary columns `p`, which must be fixed.
        width: Dim,
        /// The base of the frequencies.
        theta: Real,
        /// How columns are paired: `interleaved` or `halves`.
        pairs: Word,
        /// How many times longer than the original the context is; 1 for no scaling.
        factor: Real,
        /// Pairs that turn more often than this keep their frequency.
        beta_fast: Real,
        /// Pairs that turn less often than this are slowed by `factor`.
        beta_slow: Real,
        /// The context length before scaling.
        original: i64,
    }
}

impl RopeFreqs {
    /// The angle per position of each pair.
    fn pair_freqs(&self, width: usize) -> Vec<f32> {
        let (theta, factor) = (self.theta.get(), self.factor.get());
        // Through `f64`, whose last bits are the same everywhere once rounded.
        let power = |i: usize| theta.powf(f64::from((2 * i) as f32 / width as f32)) as f32;
        let powers = (0..width / 2).map(power);
        if factor == 1.0 {
            return powers.map(|p| 1.0 / p).collect();
        }
        // The pair that makes so many turns within the original length.
        let pair =
            |turns: f64| width as f64 * (self.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let low = pair(self.beta_fast.get()).floor().max(0.0);
        let mut high = pair(self.beta_slow.get()).ceil().min(width as f64 - 1.0);
        if low == high {
            high += 0.001;
        }
        let blend = |(i, power): (usize, f32)| {
            let kept = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            1.0 / (factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
        };
        powers.enumerate().map(blend).collect()
    }
}

impl OpDef for RopeFreqs {
    fn infer(&self, _: &[&TensorType]) -> Result<Type, TypeError> {
        Pairs::named(&self.pairs)?;
        check::even(&self.width)?;
        let above = |name: &str, x: f64, least: f64| {
            if x > least {
                Ok(())
            } else {
                Err(TypeError::new(format!("`{name}` is {x:?}, which is not above {least:?}")))
            }
        };
        above("theta", self.theta.get(), 1.0)?;
        if self.factor.get() != 1.0 {
            above("factor", self.factor.get(), 0.0)?;
            above("beta_fast", self.beta_fast.get(), 0.0)?;
            above("beta_slow", self.beta_slow.get(), 0.0)?;
            above("original", self.original as f64, 0.0)?;
        }
        Ok(TensorType::new(DType::F32, [Dim::from(2), self.width.clone()]).into())
    }

    fn eval(&self, sizes: &Sizes, _: &[&Array]) -> Vec<Array> {
        let pairs = Pairs::named(&self.pairs).expect("the type rule has checked it");
        let width = sizes.of(&self.width);
        let freqs = self.pair_freqs(width);
        vec![Array::from_fn(&[2, width], |index| {
            let (pair, first) = pairs.pair(index[1], width);
            match (index[0], first) {
                (0, _) => f64::from(freqs[pair]),
                (_, true) => -1.0,
                (_, false) => 1.0,
            }
        })]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Constant
    }
}
