//! Frequencies and factors of the rotary embedding, to the rounding of the reference implementation.

use super::{Config, Yarn};

impl Yarn {
    /// `m(s, μ) = 0.1 μ ln s + 1` for a factor `s > 1`, else 1 (YaRN, arXiv:2309.00071, as DeepSeek uses it).
    fn m(&self, mscale: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 }
    }

    /// The fractional pair index at which a frequency makes `rotations` turns over the original length:
    /// `r ln(L0 / (2π β)) / (2 ln base)`.
    fn correction_dim(&self, rotations: f64, width: usize, theta: f64) -> f64 {
        let turns = self.original_max_position as f64 / (rotations * 2.0 * std::f64::consts::PI);
        width as f64 * turns.ln() / (2.0 * theta.ln())
    }
}

impl Config {
    /// Factor of the attention scores: `(qk_nope + qk_rope)^(-1/2) · m(factor, mscale_all_dim)²`, the second part
    /// only with YaRN. (The square because m scales queries and keys alike; DeepSeek-V3's `inference/model.py`.)
    pub fn softmax_scale(&self) -> f64 {
        let m = self.rope.scaling.as_ref().map_or(1.0, |y| y.m(y.mscale_all_dim));
        (self.qk_head() as f64).powf(-0.5) * m * m
    }

    /// Factor on cosine and sine: `m(factor, mscale) / m(factor, mscale_all_dim)`, which is 1 in every public model.
    /// If either mscale is absent or 0, transformers uses `m(factor, 1)`, and so does this.
    pub fn rope_attention_factor(&self) -> f64 {
        match &self.rope.scaling {
            None => 1.0,
            Some(Yarn { attention_factor: Some(factor), .. }) => *factor,
            Some(y) if y.mscale != 0.0 && y.mscale_all_dim != 0.0 => y.m(y.mscale) / y.m(y.mscale_all_dim),
            Some(y) => y.m(1.0),
        }
    }

    /// Radians per position of the `qk_rope / 2` pairs: `θ_i = theta^(-2i / qk_rope)`, with YaRN
    /// `θ_i (1 - γ_i) + (θ_i / factor) γ_i`, where γ rises from 0 to 1 between the pairs that make `beta_fast` and
    /// `beta_slow` turns over the original length.
    ///
    /// In f32, in the order of operations of transformers' `_compute_yarn_parameters`.
    pub fn inv_freq(&self) -> Vec<f32> {
        let (width, theta) = (self.qk_rope, self.rope.theta);
        let power = |i: usize| {
            let exponent = (2 * i) as f32 / width as f32;
            f64::from(theta as f32).powf(f64::from(exponent)) as f32
        };
        let Some(yarn) = &self.rope.scaling else {
            return (0..width / 2).map(|i| 1.0 / power(i)).collect();
        };
        let low = yarn.correction_dim(yarn.beta_fast, width, theta).floor().max(0.0);
        // The bound is width - 1, not width / 2 - 1, in every implementation.
        let mut high = yarn.correction_dim(yarn.beta_slow, width, theta).ceil().min(width as f64 - 1.0);
        if low == high {
            high += 0.001;
        }
        let pair = |i: usize| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            let (kept, divided) = (1.0 / power(i), 1.0 / (yarn.factor as f32 * power(i)));
            divided * (1.0 - keep) + kept * keep
        };
        (0..width / 2).map(pair).collect()
    }
}
