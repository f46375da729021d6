//! A decoder layer with experts, token by token in `f64`, from its formulas: latent attention in the absorbed form, and
//! the router of DeepSeek-V3.

use super::super::lab::Lab;
use super::super::numbers::Elements;
use super::super::reference::{attend, dot};
use super::exponent_of;
use crate::model::config::{Config, LATENT_NORM_EPS, Moe};
use std::collections::HashMap;

/// The layer.
pub struct Reference<'a> {
    pub config: &'a Config,
    moe: &'a Moe,
    /// Each weight's elements and shape.
    weights: HashMap<String, (Elements<'a>, Vec<usize>)>,
}

/// What the layer makes of a token.
pub struct Token {
    /// What is cached: the latent, then the rotary key.
    pub cached: Vec<f64>,
    /// What the layer adds to the residual stream.
    pub added: Vec<f64>,
    /// By how much the chosen experts, and groups of them, are better than those that are not: where it is little,
    /// rounding may choose others, and so give another result that is as good.
    pub margin: f64,
}

impl<'a> Reference<'a> {
    /// With the random weights of these names and shapes, as [`super::random_weights`] makes them.
    pub fn new(lab: &'a Lab, config: &'a Config, moe: &'a Moe, shapes: Vec<(String, Vec<usize>)>) -> Self {
        let weight = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
            let elements = lab.elements(0, i, exponent_of(&name, &shape));
            (name, (elements, shape))
        };
        Self { config, moe, weights: shapes.into_iter().enumerate().map(weight).collect() }
    }

    /// The token at `position` whose residual stream is `x`, where `before` has what is cached for each token before.
    pub fn token(&self, x: &[f64], position: usize, before: &[Vec<f64>]) -> Token {
        let hidden = self.norm("input_layernorm", x, self.config.rms_eps);
        let (attended, cached) = self.attention(&hidden, position, before);
        let middle: Vec<f64> = x.iter().zip(attended).map(|(x, y)| x + y).collect();
        let hidden = self.norm("post_attention_layernorm", &middle, self.config.rms_eps);
        let (fed, margin) = self.experts(&hidden);
        let added = middle.iter().zip(fed).zip(x).map(|((mid, y), x)| mid + y - x).collect();
        Token { cached, added, margin }
    }

    /// Rows `rows` of a weight's matrix times `x`. A weight of three axes is one matrix under the other.
    fn product(&self, name: &str, rows: std::ops::Range<usize>, x: &[f64]) -> Vec<f64> {
        let (elements, _) = &self.weights[name];
        parallel(rows.len(), |i| dot(&elements.row((rows.start + i) * x.len(), x.len()), x))
    }

    /// A whole weight times `x`.
    pub fn all(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (_, shape) = &self.weights[name];
        self.product(name, 0..shape[..shape.len() - 1].iter().product(), x)
    }

    fn norm(&self, name: &str, x: &[f64], eps: f64) -> Vec<f64> {
        let (gain, _) = &self.weights[&format!("{name}.weight")];
        let mean = dot(x, x) / x.len() as f64;
        x.iter().zip(gain.row(0, x.len())).map(|(x, gain)| x / (mean + eps).sqrt() * gain).collect()
    }

    /// Neighbouring columns turned by their angles.
    pub fn rope(&self, x: &[f64], position: usize) -> Vec<f64> {
        let turn = |j: usize| {
            let speed = self.config.rope.theta.powf(-((j / 2 * 2) as f64) / x.len() as f64);
            let (sin, cos) = (position as f64 * speed).sin_cos();
            if j.is_multiple_of(2) { x[j] * cos - x[j + 1] * sin } else { x[j - 1] * sin + x[j] * cos }
        };
        (0..x.len()).map(turn).collect()
    }

    /// What attention gives, and what is cached for the token.
    pub fn attention(&self, x: &[f64], position: usize, before: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let Config { heads, kv_lora: c, qk_nope: n, qk_rope: p, v_head: v, .. } = *self.config;
        let w = |name: &str| format!("self_attn.{name}");
        let latent = self.all(&w("q_a_proj.weight"), x);
        let latent = self.norm(&w("q_a_layernorm"), &latent, LATENT_NORM_EPS);
        let queries = self.all(&w("q_b_proj.weight"), &latent);
        let down = self.all(&w("kv_a_proj_with_mqa.weight"), x);
        let mut cached = self.norm(&w("kv_a_layernorm"), &down[..c], LATENT_NORM_EPS);
        cached.extend(self.rope(&down[c..], position));

        let (expansion, _) = &self.weights[&w("kv_b_proj.weight")];
        let seen: Vec<&[f64]> = before.iter().chain([&cached]).map(Vec::as_slice).collect();
        let values = parallel(heads, |head| {
            let (query, query_rope) = queries[head * (n + p)..][..n + p].split_at(n);
            let mut absorbed = vec![0.0; c];
            for (i, q) in query.iter().enumerate() {
                let row = expansion.row((head * (n + v) + i) * c, c);
                absorbed.iter_mut().zip(row).for_each(|(sum, w)| *sum += q * w);
            }
            absorbed.extend(self.rope(query_rope, position));
            let scale = ((n + p) as f64).sqrt().recip();
            let scores: Vec<f64> = seen.iter().map(|key| dot(&absorbed, key) * scale).collect();
            let latent = attend(&scores, c, |j| seen[j][..c].to_vec());
            let value = |i: usize| dot(&expansion.row((head * (n + v) + n + i) * c, c), &latent);
            (0..v).map(value).collect::<Vec<f64>>()
        });
        (self.all(&w("o_proj.weight"), &values.concat()), cached)
    }

    /// What the experts give, and the margin of their choice.
    pub fn experts(&self, x: &[f64]) -> (Vec<f64>, f64) {
        let Moe { per_token, groups, groups_kept, routed, intermediate: f, .. } = *self.moe;
        let logits = self.all("mlp.gate.weight", x);
        let score: Vec<f64> = logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
        let bias = self.weights["mlp.gate.e_score_correction_bias"].0.row(0, routed);
        let choice: Vec<f64> = score.iter().zip(&bias).map(|(score, bias)| score + bias).collect();
        let size = routed / groups;
        let group = |g: usize| {
            let mut best = choice[g * size..][..size].to_vec();
            best.sort_by(|a, b| b.total_cmp(a));
            best.iter().take(2).sum::<f64>()
        };
        let (kept, group_margin) = best(&(0..groups).map(|g| (group(g), g)).collect::<Vec<_>>(), groups_kept);
        let inside: Vec<(f64, usize)> =
            (0..routed).filter(|e| kept.contains(&(e / size))).map(|e| (choice[e], e)).collect();
        let (chosen, margin) = best(&inside, per_token);

        let total = if self.moe.norm_topk { chosen.iter().map(|&e| score[e]).sum() } else { 1.0 };
        let mut sum = self.swiglu("mlp.shared_experts", x, 0, f * self.moe.shared);
        for e in chosen {
            let weight = score[e] / total * self.moe.scale;
            let y = self.swiglu("mlp.experts", x, e, f);
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
        }
        (sum, margin.min(group_margin))
    }

    /// Block number `e` of those of inner width `f` that lie one after the other.
    fn swiglu(&self, name: &str, x: &[f64], e: usize, f: usize) -> Vec<f64> {
        let gate = self.product(&format!("{name}.gate_proj.weight"), e * f..(e + 1) * f, x);
        let up = self.product(&format!("{name}.up_proj.weight"), e * f..(e + 1) * f, x);
        let inner: Vec<f64> = gate.iter().zip(up).map(|(z, up)| z / (1.0 + (-z).exp()) * up).collect();
        self.product(&format!("{name}.down_proj.weight"), e * x.len()..(e + 1) * x.len(), &inner)
    }
}

/// The numbers of the `k` best, and by how much the worst of them is better than the best other.
fn best(scores: &[(f64, usize)], k: usize) -> (Vec<usize>, f64) {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let margin = sorted.get(k).map_or(f64::INFINITY, |next| sorted[k - 1].0 - next.0);
    (sorted.into_iter().take(k).map(|(_, i)| i).collect(), margin)
}

/// `of(0), …, of(n - 1)`, on all the machine's threads.
pub fn parallel<T: Send>(n: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let part = n.div_ceil(eva_runtime::pool::default_threads().max(1)).max(1);
    let of = &of;
    std::thread::scope(|scope| {
        let parts = (0..n)
            .step_by(part)
            .map(|first| scope.spawn(move || (first..n.min(first + part)).map(of).collect::<Vec<T>>()));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().flat_map(|part| part.join().expect("a thread that only computes")).collect()
    })
}
