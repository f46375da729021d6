//! Learning rates.
//!
//! A rate is `optimizer.lr` times a share that depends on the step, counted from 1, alone. In the first `warmup` steps it is
//! `step / warmup`. After that:
//!
//! | kind | share | source |
//! | --- | --- | --- |
//! | `constant` | 1 | |
//! | `cosine` | `floor + (1 - floor) (1 + cos πx) / 2`, where `x` goes from 0 after the warm-up to 1 at the last step | Loshchilov and Hutter, arXiv:1608.03983, without restarts |
//! | `deepseek-v3` | 1 up to `at[0]` of all steps, half a cosine down to `floor` at `at[1]`, `floor` up to `at[2]`, then `last` | DeepSeek-V3, arXiv:2412.19437, section 4.2 |
//! | `step` | `factor` for each of `milestones` that has been passed | DeepSeek-V2, arXiv:2405.04434, section 3.1.2 |

use super::config::{ScheduleConfig, ScheduleKind};

/// The rate of step `step`, counted from 1, of a run of `steps`, for the highest rate `lr`.
pub fn rate(schedule: &ScheduleConfig, lr: f64, step: u64, steps: u64) -> f64 {
    lr * share(schedule, step, steps)
}

fn share(schedule: &ScheduleConfig, step: u64, steps: u64) -> f64 {
    let ScheduleConfig { kind, warmup, floor, at, last, milestones, factor } = schedule;
    if step < *warmup {
        return step as f64 / *warmup as f64;
    }
    let cosine = |x: f64| floor + (1.0 - floor) * (1.0 + (std::f64::consts::PI * x).cos()) / 2.0;
    let done = step as f64 / steps.max(1) as f64;
    match kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Cosine => {
            let left = steps.saturating_sub(*warmup).max(1);
            cosine(((step - warmup) as f64 / left as f64).min(1.0))
        }
        ScheduleKind::DeepseekV3 => match *at {
            [begin, ..] if done <= begin => 1.0,
            [begin, end, _] if done < end => cosine((done - begin) / (end - begin)),
            [.., end] if done <= end => *floor,
            _ => *last,
        },
        ScheduleKind::Step => {
            let passed = milestones.iter().filter(|milestone| done > **milestone).count();
            factor.powi(i32::try_from(passed).unwrap_or(i32::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(schedule: &ScheduleConfig, steps: u64, at: &[u64]) -> Vec<f64> {
        at.iter().map(|&step| (share(schedule, step, steps) * 1e4).round() / 1e4).collect()
    }

    #[test]
    fn rates_are_those_of_the_formulas() {
        let of = |kind| ScheduleConfig { kind, warmup: 10, ..ScheduleConfig::default() };
        let constant = of(ScheduleKind::Constant);
        assert_eq!(shares(&constant, 110, &[1, 9, 10, 11, 110]), [0.1, 0.9, 1.0, 1.0, 1.0]);
        let cosine = of(ScheduleKind::Cosine);
        // At a third of the way the cosine is a half.
        assert_eq!(shares(&cosine, 130, &[5, 10, 50, 70, 130]), [0.5, 1.0, 0.775, 0.55, 0.1]);
        let v3 = ScheduleConfig { at: [0.5, 0.75, 0.875], last: 0.03, ..of(ScheduleKind::DeepseekV3) };
        let steps = [1, 400, 500, 600, 601, 700, 701, 800];
        assert_eq!(shares(&v3, 800, &steps), [0.1, 1.0, 0.55, 0.1, 0.1, 0.1, 0.03, 0.03]);
        let step = of(ScheduleKind::Step);
        assert_eq!(shares(&step, 100, &[60, 61, 90, 91]), [1.0, 0.316, 0.316, 0.0999]);
        let none = ScheduleConfig { warmup: 0, ..constant };
        assert_eq!(shares(&none, 7, &[1, 7]), [1.0, 1.0]);
        assert_eq!(rate(&cosine, 3.0, 5, 130), 1.5);
    }

    #[test]
    fn rates_of_deepseek_v3_are_the_reports() {
        let v3 = ScheduleConfig { kind: ScheduleKind::DeepseekV3, warmup: 2000, ..ScheduleConfig::default() };
        // Of 14.8 T tokens: after 10, 14.3, 14.5 and 14.7.
        let at = |t: f64| rate(&v3, 2.2e-4, (t / 14.8 * 1e6) as u64, 1_000_000);
        for (t, expected) in [(10.0, 2.2e-4), (14.3, 2.2e-5), (14.5, 2.2e-5), (14.7, 7.3e-6)] {
            assert!((at(t) - expected).abs() < 2e-3 * expected, "{t}: {} is not {expected}", at(t));
        }
    }
}
