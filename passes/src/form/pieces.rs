//! One function, chosen for at many lengths: which forms are worth having, and what each takes.

use crate::cost::{Cost, CostOptions, Lengths};
use crate::rebuild::free_name;
use crate::rewrite::extract::Selection;
use crate::rewrite::rules::Rule;
use crate::rewrite::{Choose, Rewriting, Saturated, Side, Sides, saturate_by};
use eva_ir::diag::Diag;
use eva_ir::dim::Sym;
use eva_ir::estimate::Estimate;
use eva_ir::graph::{Alternative, Function, Module};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The numbers of sequences that forms are chosen for.
const BATCH: [i64; 2] = [1, 64];
/// The numbers of tokens attended to.
const CACHED: [i64; 4] = [128, 1024, 4096, 32768];
/// The most bodies of one function.
const BODIES: usize = 4;
/// How much less than all others a body must take at some lengths to be kept.
const WORTH: f64 = 0.98;

/// The lengths that forms are chosen for, as far as the module leaves them open: a grid.
pub struct Lattice {
    lengths: Lengths,
    batch: Vec<i64>,
    cached: Vec<i64>,
    /// The most new tokens, if it does not depend on the cached ones; the number itself if it is fixed.
    new: New,
}

/// How many new tokens there may be.
enum New {
    /// It is known, or there are none.
    Fixed(i64),
    /// Powers of two up to the number attended to.
    UpToCached,
}

impl Lattice {
    /// For `module`; what `costs` has values for is not open.
    pub fn of(module: &Module, costs: &CostOptions) -> Self {
        let lengths = Lengths::of(module);
        let fixed = |sym: &Option<Sym>| match sym {
            None => Some(1),
            Some(sym) => module.size_of(sym).or_else(|| costs.sizes.get(sym).copied()),
        };
        let some = |sym: &Option<Sym>, open: &[i64]| fixed(sym).map_or_else(|| open.to_vec(), |n| vec![n]);
        let (batch, cached) = (some(&lengths.batch, &BATCH), some(&lengths.cached, &CACHED));
        let new = match fixed(&lengths.new) {
            Some(n) => New::Fixed(n),
            // A prompt that attends to itself alone.
            None if lengths.new == lengths.cached => New::Fixed(1),
            None => New::UpToCached,
        };
        Self { lengths, batch, cached, new }
    }

    /// Whether there is nothing to choose between.
    pub fn is_one(&self) -> bool {
        self.batch.len() == 1 && self.cached.len() == 1 && matches!(self.new, New::Fixed(_))
    }

    /// The numbers of new tokens for so many cached ones, ascending.
    fn new_tokens(&self, cached: i64) -> Vec<i64> {
        match self.new {
            New::Fixed(n) => vec![n],
            New::UpToCached => {
                let powers = (0..).map(|i| 1i64 << i).take_while(|&n| n < cached);
                powers.chain([cached]).collect()
            }
        }
    }

    fn sizes(&self, (batch, new, cached): (i64, i64, i64)) -> BTreeMap<Sym, i64> {
        self.lengths.sizes(batch, new, cached)
    }
}

/// A body of a function that has several.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// The function's name.
    pub function: String,
    /// The body's; the function's own has the function's.
    pub name: String,
    /// How it computes keys and values.
    pub sides: Sides,
    /// What it takes, beside the others.
    pub estimate: Estimate,
}

/// A function with everything that it could be.
pub struct Search<'a> {
    /// The function.
    pub f: &'a Function,
    /// The rules that were applied.
    pub rules: &'a [Rule],
    /// What they found.
    pub s: Saturated,
    /// What ops cost, at representative extents.
    pub cost: Cost,
}

/// A body in the making.
struct Piece {
    /// The function, unless it is as it was.
    function: Option<Function>,
    rewriting: Rewriting,
    estimate: Estimate,
    /// What it takes at each point of the grid.
    at: Vec<f64>,
}

impl<'a> Search<'a> {
    /// Applies the rules.
    pub fn new(f: &'a Function, rules: &'a [Rule], cost: Cost) -> Result<Self, Diag> {
        let s = saturate_by(f, rules)?;
        Ok(Self { f, rules, s, cost })
    }

    /// What is cheapest at these extents.
    pub fn cheapest(&self, sizes: &BTreeMap<Sym, i64>) -> Result<Selection, Diag> {
        self.s.cheapest(self.f, &self.cost.at(sizes), Choose::Cheapest)
    }

    /// The function with a body for each part of the grid that is worth one; what was done for the first, which is the one
    /// for representative extents, and all of them if there are several. No function if `f` is best as it is.
    pub fn pieces(&self, lattice: &Lattice) -> Result<(Option<Function>, Rewriting, Vec<Body>), Diag> {
        let mut found = vec![self.cheapest(&BTreeMap::new())?];
        let mut points = Vec::new();
        for (i, &batch) in lattice.batch.iter().enumerate() {
            for &cached in &lattice.cached {
                let new = lattice.new_tokens(cached);
                self.look(&|new| lattice.sizes((batch, new, cached)), &new, i == 0, &mut found)?;
                points.extend(new.into_iter().map(|new| (batch, new, cached)));
            }
        }
        let sizes: Vec<_> = points.into_iter().map(|point| lattice.sizes(point)).collect();
        let pieces: Vec<Piece> =
            found.iter().map(|selection| self.piece(selection, &sizes)).collect::<Result<_, _>>()?;
        Ok(self.join(worth(pieces)))
    }

    /// Chooses for the fewest and the most new tokens; and between two numbers where the choices differ, if that is asked
    /// for or one of them has not been seen before. `found` has all different choices.
    fn look(
        &self,
        sizes: &dyn Fn(i64) -> BTreeMap<Sym, i64>,
        new: &[i64],
        between: bool,
        found: &mut Vec<Selection>,
    ) -> Result<(), Diag> {
        let known = found.len();
        let mut chosen: Vec<Option<usize>> = vec![None; new.len()];
        let mut ranges = vec![(0, new.len() - 1)];
        while let Some((low, high)) = ranges.pop() {
            for at in [low, high] {
                if chosen[at].is_none() {
                    let selection = self.cheapest(&sizes(new[at]))?;
                    let same = found.iter().position(|have| *have == selection);
                    chosen[at] = same.or(Some(found.len()));
                    found.extend(same.is_none().then_some(selection));
                }
            }
            if chosen[low] != chosen[high] && high - low > 1 && (between || found.len() > known) {
                let middle = (low + high) / 2;
                ranges.extend([(middle, high), (low, middle)]);
            }
        }
        Ok(())
    }

    fn piece(&self, selection: &Selection, sizes: &[BTreeMap<Sym, i64>]) -> Result<Piece, Diag> {
        let (function, rewriting) = self.s.take(self.f, self.rules, &self.cost, selection)?;
        let estimate = self.cost.estimate(function.as_ref().unwrap_or(self.f));
        // An extent that is none of the lengths is as in `representative`.
        let at = |sizes: &BTreeMap<Sym, i64>| {
            estimate
                .eval(&|sym| sizes.get(sym).copied().or_else(|| self.cost.size_of(sym)))
                .unwrap_or(f64::INFINITY)
        };
        let at = sizes.iter().map(at).collect();
        Ok(Piece { function, rewriting, estimate, at })
    }

    /// One function of several bodies.
    fn join(&self, pieces: Vec<Piece>) -> (Option<Function>, Rewriting, Vec<Body>) {
        if let [only] = &pieces[..] {
            return (only.function.clone(), only.rewriting.clone(), Vec::new());
        }
        let mut estimates: Vec<Estimate> = pieces.iter().map(|piece| piece.estimate.clone()).collect();
        Estimate::cancel(&mut estimates);
        let mut all = pieces.into_iter().zip(estimates);
        let (first, estimate) = all.next().expect("there is one at least, the first");
        let of = |piece: Option<Function>| piece.unwrap_or_else(|| self.f.clone());
        let mut function = of(first.function);
        let mut bodies = vec![Body {
            function: function.name.clone(),
            name: function.name.clone(),
            sides: first.rewriting.sides,
            estimate: estimate.clone(),
        }];
        for (piece, estimate) in all {
            let kind = name(piece.rewriting.sides);
            let taken = |name: &str| bodies.iter().any(|body| body.name == name);
            let name = free_name(kind, 2, |name| !taken(name));
            let function_name = function.name.clone();
            bodies.push(Body {
                function: function_name,
                name: name.clone(),
                sides: piece.rewriting.sides,
                estimate: estimate.clone(),
            });
            let body = Arc::new(Function { name, ..of(piece.function) });
            function.alternatives.push(Alternative { body, estimate });
        }
        function.estimate = estimate;
        (Some(function), first.rewriting, bodies)
    }
}

/// The first, and those that take less than all before them somewhere, the most useful first.
fn worth(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut rest = pieces.into_iter();
    let mut kept: Vec<Piece> = rest.by_ref().take(1).collect();
    let mut rest: Vec<Piece> = rest.collect();
    while kept.len() < BODIES && !rest.is_empty() {
        let best = |at: usize| kept.iter().map(|piece| piece.at[at]).fold(f64::INFINITY, f64::min);
        let gain = |piece: &Piece| {
            let ratios = piece.at.iter().enumerate().map(|(at, seconds)| seconds / best(at));
            ratios.fold(f64::INFINITY, f64::min)
        };
        let gains = rest.iter().map(gain).enumerate();
        let Some((next, ratio)) = gains.min_by(|(_, a), (_, b)| a.total_cmp(b)) else { break };
        if ratio >= WORTH {
            break;
        }
        kept.push(rest.remove(next));
    }
    kept
}

/// What to call a body.
fn name(sides: Sides) -> &'static str {
    use Side::{Absorbed, Expanded, Folded};
    match (sides.key, sides.value) {
        (Some(Folded), _) | (_, Some(Folded)) => "folded",
        (Some(Absorbed), Some(Absorbed)) => "absorbed",
        (Some(Absorbed), _) => "absorbed_keys",
        (_, Some(Absorbed)) => "absorbed_values",
        (Some(Expanded), _) | (_, Some(Expanded)) => "expanded",
        (None, None) => "other",
    }
}
