//! The forms of attention of a training step: which were compared, what each takes, and where the choice changes.

use super::Question;
use eva_passes::grad::forms::{self, Choice};
use eva_passes::rewrite;
use serde::Serialize;
use std::fmt::Write;

/// How keys and values are computed: `absorbed` or `expanded`; `null` for what has no latents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sides {
    /// The keys.
    pub key: Option<String>,
    /// The values.
    pub value: Option<String>,
}

/// A function with its gradients in one form.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// How the forward pass computes keys and values.
    pub forward: Sides,
    /// How what the gradients are of computes them.
    pub backward: Sides,
    /// Seconds that a call's forward pass takes, by the cost model.
    pub forward_seconds: f64,
    /// Seconds of what gradients need besides.
    pub backward_seconds: f64,
    /// Seconds of keeping values in between and of computing others again.
    pub kept_seconds: f64,
    /// Bytes that a call keeps.
    pub kept_bytes: f64,
}

/// What was compared for one function.
#[derive(Clone, Debug, Serialize)]
pub struct Forms {
    /// The function.
    pub function: String,
    /// How often it is called.
    pub calls: usize,
    /// What was compared; the form as written first.
    pub candidates: Vec<Candidate>,
    /// The number of the one that was chosen.
    pub chosen: usize,
    /// Whether the form was asked for, so that cost did not decide.
    pub forced: bool,
    /// What cost would choose from so many tokens a sequence on, in powers of two: the number of a candidate.
    pub from: Vec<(i64, usize)>,
}

/// The longest sequences that are said something of.
const LONGEST: i64 = 1 << 17;

impl Forms {
    /// What was decided for a function, called so often.
    pub fn of(choice: &Choice, calls: usize, question: &Question) -> Self {
        let mut from: Vec<(i64, usize)> = Vec::new();
        let mut tokens = 1;
        while tokens <= LONGEST {
            let at = choice.at(&[("b".into(), question.batch), ("s".into(), tokens)].into());
            if from.last().is_none_or(|(_, last)| *last != at) {
                from.push((tokens, at));
            }
            tokens *= 2;
        }
        Self {
            function: choice.function.clone(),
            calls,
            candidates: choice.candidates.iter().map(Candidate::of).collect(),
            chosen: choice.chosen,
            forced: question.form != eva_passes::Form::Auto,
            from,
        }
    }

    /// The same for people.
    pub fn text(&self, (batch, tokens): (i64, i64)) -> String {
        let times = if self.calls == 1 { "once".into() } else { format!("{} times", self.calls) };
        let mut out = format!(
            "\nAttention of @{}, called {times}, with {batch} × {tokens} tokens: estimates of a call, in ms\n",
            self.function
        );
        let head = ["forward", "backward", "forward", "backward", "between", "together"];
        let mut line = |mark: &str, [a, b, c, d, e, f]: [&str; 6]| {
            let _ = writeln!(out, "{mark} {a:36}  {b:36}  {c:>10}  {d:>10}  {e:>10}  {f:>10}");
        };
        line(" ", head);
        for (i, candidate) in self.candidates.iter().enumerate() {
            let Candidate { forward, backward, forward_seconds, backward_seconds, kept_seconds, .. } =
                candidate;
            let ms = |seconds: f64| format!("{:.3}", seconds * 1e3);
            let numbers = [*forward_seconds, *backward_seconds, *kept_seconds, candidate.seconds()].map(ms);
            let [a, b, c, d] = &numbers;
            let mark = if i == self.chosen { "*" } else { " " };
            line(mark, [&forward.text(), &backward.text(), a, b, c, d]);
        }
        let _ = writeln!(out, "  {}", self.why());
        if let [_, _, ..] = self.from[..] {
            let parts = self
                .from
                .iter()
                .map(|&(tokens, at)| format!("{} from {tokens} tokens on", self.candidates[at].text()));
            let _ = writeln!(out, "  cheapest: {}", parts.collect::<Vec<_>>().join("; "));
        }
        out
    }

    /// Why the form that was chosen was.
    fn why(&self) -> String {
        let chosen = &self.candidates[self.chosen];
        if self.forced {
            return format!("{}: as asked for", chosen.text());
        }
        // What comes next, or what was written.
        let mut others = self.candidates.iter().enumerate().filter(|(i, _)| *i != self.chosen);
        let other = match self.chosen {
            0 => others.map(|(_, other)| other).min_by(|a, b| a.seconds().total_cmp(&b.seconds())),
            _ => others.next().map(|(_, other)| other),
        };
        let Some(other) = other else { return chosen.text() };
        let less = |of: fn(&Candidate) -> f64| format!("{:.3}", (of(other) - of(chosen)) * 1e3);
        format!(
            "{}: {} ms less than {} ({} forward, {} backward, {} between)",
            chosen.text(),
            less(Candidate::seconds),
            other.text(),
            less(|candidate| candidate.forward_seconds),
            less(|candidate| candidate.backward_seconds),
            less(|candidate| candidate.kept_seconds),
        )
    }
}

impl Candidate {
    fn of(candidate: &forms::Candidate) -> Self {
        let forms::Candidate { forward_seconds, backward_seconds, kept_seconds, kept_bytes, .. } = *candidate;
        let (forward, backward) = (Sides::of(candidate.forward), Sides::of(candidate.backward));
        Self { forward, backward, forward_seconds, backward_seconds, kept_seconds, kept_bytes }
    }

    /// What both directions and what is between them take.
    pub fn seconds(&self) -> f64 {
        self.forward_seconds + self.backward_seconds + self.kept_seconds
    }

    fn text(&self) -> String {
        match self.forward == self.backward {
            true => self.forward.text(),
            false => format!("{} forwards and {} backwards", self.forward.text(), self.backward.text()),
        }
    }
}

impl Sides {
    fn of(sides: rewrite::Sides) -> Self {
        let name = |side: Option<rewrite::Side>| side.map(|side| side.to_string());
        Self { key: name(sides.key), value: name(sides.value) }
    }

    fn text(&self) -> String {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "as written".into());
        match self.key == self.value {
            true => side(&self.key),
            false => format!("keys {}, values {}", side(&self.key), side(&self.value)),
        }
    }
}
