//! What the loss is multiplied with for the backward pass, so that small gradients do not vanish in narrow types; gradients
//! are divided by it before anything else is done with them (Micikevicius et al., 2018, arXiv:1710.03740).
//!
//! A dynamic factor begins at 2^16. A step whose gradients are not finite changes nothing but the factor, which is halved; after
//! [`PrecisionConfig::scale_steps`] steps with finite ones it is doubled. It is a power of two, so that it rounds nothing.

use super::config::{GradientScale, PrecisionConfig};
use serde::{Deserialize, Serialize};

/// Where a dynamic factor begins.
const FIRST: f64 = 65536.0;

/// The factor of a run, and what it depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The factor.
    pub scale: f64,
    /// Steps with finite gradients since it changed.
    pub good: u64,
    /// Steps in which parameters did not change, since gradients were not finite.
    pub skipped: u64,
}

impl Scaling {
    /// That of a run that begins.
    pub fn new(precision: &PrecisionConfig) -> Self {
        let scale = match precision.gradient_scale {
            GradientScale::Fixed(scale) => scale,
            GradientScale::Dynamic => FIRST,
        };
        Self { scale, good: 0, skipped: 0 }
    }

    /// That of a run that goes on from one with `self`.
    pub fn resumed(self, precision: &PrecisionConfig) -> Self {
        match precision.gradient_scale {
            GradientScale::Dynamic if self.scale > 0.0 => self,
            _ => Self { skipped: self.skipped, ..Self::new(precision) },
        }
    }

    /// After a step with finite gradients.
    pub fn grow(&mut self, precision: &PrecisionConfig) {
        if precision.gradient_scale != GradientScale::Dynamic {
            return;
        }
        self.good += 1;
        if self.good >= precision.scale_steps {
            (self.scale, self.good) = (self.scale * 2.0, 0);
        }
    }

    /// After a step whose gradients were not finite: whether a smaller factor may help, which is then there. One below 1 is
    /// not tried: gradients are too large by themselves then.
    pub fn shrink(&mut self, precision: &PrecisionConfig) -> bool {
        let may = precision.gradient_scale == GradientScale::Dynamic && self.scale > 1.0;
        if may {
            *self = Self { scale: self.scale / 2.0, good: 0, skipped: self.skipped + 1 };
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_after_a_while_and_halves_at_once() {
        let precision = PrecisionConfig {
            gradient_scale: GradientScale::Dynamic,
            scale_steps: 3,
            ..PrecisionConfig::default()
        };
        let mut scaling = Scaling::new(&precision);
        assert_eq!(scaling.scale, 65536.0);
        (0..5).for_each(|_| scaling.grow(&precision));
        assert_eq!((scaling.scale, scaling.good), (131072.0, 2));
        assert!(scaling.shrink(&precision));
        assert_eq!(scaling, Scaling { scale: 65536.0, good: 0, skipped: 1 });
        assert_eq!(scaling.resumed(&precision), scaling);
        // From a checkpoint that has none.
        assert_eq!(Scaling::default().resumed(&precision), Scaling::new(&precision));
        while scaling.shrink(&precision) {}
        assert_eq!((scaling.scale, scaling.skipped), (1.0, 17));

        let fixed = PrecisionConfig { gradient_scale: GradientScale::Fixed(64.0), ..precision };
        let mut scaling = scaling.resumed(&fixed);
        assert_eq!(scaling, Scaling { scale: 64.0, good: 0, skipped: 17 });
        scaling.grow(&fixed);
        assert!(!scaling.shrink(&fixed));
        assert_eq!(scaling.scale, 64.0);
    }
}
