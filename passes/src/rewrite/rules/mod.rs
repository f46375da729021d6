//! The rules, by subject. Each has a name, the reason why it holds and pays, how exact it is, and what it looks for.
//!
//! Rules on products of products are two patterns ([`super::contraction`]) and guards. The others begin at one op
//! ([`Shape::Local`]): a few lines that say what else the op's result is. What a rule asks for beyond its shape has a name
//! ([`Builder::guard`]), so that tests can do without it and show what goes wrong. Either kind is a line of a table here:
//!
//! | table | about |
//! | --- | --- |
//! | [`latent`] | latent attention: absorbed, folded |
//! | [`products`] | reshapes, slices, transpositions and concatenations around products |
//! | [`views`] | the same around each other |
//! | [`scales`] | factors that are numbers |
//! | [`projections`] | products that share an input; gains of norms |

use super::build::Builder;
use super::contraction::{Contraction, Guard};
use super::facts::{Absorbed, EGraph, Refused, Types, equate};
use super::term::Term;
use egg::{Applier, Id, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};
use eva_ir::diag::Diag;
use eva_ir::ops::{Op, OpKind};
use std::fmt;
use std::sync::Arc;

pub mod latent;
pub mod products;
pub mod projections;
pub mod scales;
pub mod views;

/// How far a rule may move a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exactness {
    /// The same bits, where every op rounds its result once.
    Exact,
    /// The same real number, rounded in another order.
    #[default]
    Reassociates,
    /// Another number, by no more than a narrower type's rounding.
    Rounds,
}

impl fmt::Display for Exactness {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Exactness::Exact => "exact",
            Exactness::Reassociates => "reassociates",
            Exactness::Rounds => "rounds",
        })
    }
}

/// What a local rule does: the classes that equal an op on its operands.
pub type Equals = Arc<dyn Fn(&mut Builder<'_>, &Op, &[Id]) -> Vec<Id> + Send + Sync>;

/// What a rule looks for, and what it adds.
#[derive(Clone)]
pub enum Shape {
    /// A product of products.
    Product {
        /// The pattern that it looks for, and what it puts beside it.
        patterns: (&'static str, &'static str),
        /// The same, read.
        contraction: Contraction,
    },
    /// An op of one kind.
    Local {
        /// The op.
        op: OpKind,
        /// In words: what becomes what.
        says: &'static str,
        /// What it asks for beyond that, in words.
        guards: &'static [&'static str],
        /// A guard that is taken to hold: for tests.
        without: Option<&'static str>,
        /// What it equals.
        equals: Equals,
    },
}

/// A rule.
#[derive(Clone)]
pub struct Rule {
    /// The name, by which a mistake is reported.
    pub name: &'static str,
    /// Why it holds and when it pays: a sentence or two.
    pub why: &'static str,
    /// How far it may move a result.
    pub exactness: Exactness,
    /// What values that it adds are called.
    pub adds: &'static str,
    /// What it looks for, and what it adds.
    pub shape: Shape,
}

impl Rule {
    /// The rule that the product `from` is also `to`, where the guards hold; values that it adds are called `adds`.
    pub fn new(
        name: &'static str,
        why: &'static str,
        exactness: Exactness,
        patterns: (&'static str, &'static str),
        guards: &[Guard],
        adds: &'static str,
    ) -> Result<Self, Diag> {
        let wrong = |e: String| Diag::new("eva::internal", format!("the rule `{name}` cannot be read: {e}"));
        let contraction = Contraction::new(patterns.0, patterns.1, guards).map_err(wrong)?;
        Ok(Self { name, why: why.trim(), exactness, adds, shape: Shape::Product { patterns, contraction } })
    }

    /// The rule that an op of this kind is also what `equals` gives; `says` it in words.
    pub fn local(
        name: &'static str,
        why: &'static str,
        exactness: Exactness,
        op: OpKind,
        says: &'static str,
        equals: impl Fn(&mut Builder<'_>, &Op, &[Id]) -> Vec<Id> + Send + Sync + 'static,
        adds: &'static str,
    ) -> Self {
        let shape = Shape::Local { op, says, guards: &[], without: None, equals: Arc::new(equals) };
        Self { name, why: why.trim(), exactness, adds, shape }
    }

    /// A local rule that asks for these guards by [`Builder::guard`], each in words.
    pub fn guarded(mut self, names: &'static [&'static str]) -> Self {
        if let Shape::Local { guards, .. } = &mut self.shape {
            *guards = names;
        }
        self
    }

    /// The rule without one of its [`Rule::guards`], for tests that show what goes wrong then; `None` if it has no such
    /// guard.
    pub fn without(&self, guard: &str) -> Option<Self> {
        let mut rule = self.clone();
        match &mut rule.shape {
            Shape::Product { contraction, .. } => *contraction = contraction.without(guard)?,
            Shape::Local { guards, without, .. } => {
                *without = Some(guards.iter().find(|name| **name == guard)?)
            }
        }
        Some(rule)
    }

    /// What the rule does, in one line.
    pub fn says(&self) -> String {
        match &self.shape {
            Shape::Product { patterns: (from, to), .. } => format!("{from} => {to}"),
            Shape::Local { says, .. } => says.to_string(),
        }
    }

    /// What the rule asks for beyond its shape, in words.
    pub fn guards(&self) -> Vec<String> {
        match &self.shape {
            Shape::Product { contraction, .. } => contraction.guards().iter().map(Guard::to_string).collect(),
            Shape::Local { guards, .. } => guards.iter().map(|name| name.to_string()).collect(),
        }
    }

    /// The op that the rule begins at.
    pub fn op(&self) -> OpKind {
        match &self.shape {
            Shape::Product { .. } => OpKind::Einsum,
            Shape::Local { op, .. } => *op,
        }
    }

    /// The rule as egg takes it.
    pub(super) fn rewrite(&self) -> Result<Rewrite<Term, Types>, Diag> {
        let wrong = |e: String| Diag::new("eva::internal", format!("the rule `{}`: {e}", self.name));
        Rewrite::new(self.name, self.clone(), self.clone()).map_err(wrong)
    }

    /// The classes that the rule says equal `class`.
    fn equals(&self, egraph: &mut EGraph, class: Id) -> Vec<Id> {
        match &self.shape {
            Shape::Product { contraction, .. } => {
                let mut equal = Vec::new();
                for found in contraction.find(egraph, class) {
                    if let Some((guard, blocking)) = contraction.refusal(egraph, &found) {
                        let refused = Refused { rule: self.name, guard: guard.to_string(), class, blocking };
                        // What tells the parts of a product from each other is no reason.
                        let role = matches!(guard, Guard::Some(_) | Guard::Last(_));
                        if !role && !egraph.analysis.refused.contains(&refused) {
                            egraph.analysis.refused.push(refused);
                        }
                        continue;
                    }
                    if let Some((expanded, weight)) = latent::absorbed(self.name, &found) {
                        let absorbed = Absorbed { rule: self.name, expanded, weight };
                        if !egraph.analysis.absorbed.contains(&absorbed) {
                            egraph.analysis.absorbed.push(absorbed);
                        }
                    }
                    equal.extend(contraction.build(&mut Builder::new(egraph, self.adds), &found));
                }
                equal
            }
            Shape::Local { op, guards, without, equals, .. } => {
                let mut builder = Builder::new(egraph, self.adds).guarded(guards, *without);
                let nodes = builder.nodes(class, *op);
                nodes.iter().flat_map(|(op, args)| equals(&mut builder, op, args)).collect()
            }
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.exactness, self.says())
    }
}

impl Searcher<Term, Types> for Rule {
    fn search_eclass_with_limit(
        &self,
        egraph: &EGraph,
        class: Id,
        _: usize,
    ) -> Option<SearchMatches<'_, Term>> {
        let starts = |term: &Term| matches!(term, Term::Op(kind, _) if *kind == self.op());
        let found = egraph[class].nodes.iter().any(starts);
        found.then(|| SearchMatches { eclass: class, substs: vec![Subst::default()], ast: None })
    }

    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

impl Applier<Term, Types> for Rule {
    /// Finds its matches again: a substitution has no place for the order of axes.
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        _: &Subst,
        _: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        egraph.analysis.rule = Some(rule);
        let mut changed = Vec::new();
        for new in self.equals(egraph, class) {
            // The term as it is now: what it was added as may have been equal to something older.
            let term = egraph.id_to_node(new).clone();
            let more = equate(egraph, class, new, rule);
            if !more.is_empty() {
                egraph.analysis.produced.push((term, rule));
                changed.extend(more);
            }
        }
        changed
    }
}

/// Declares a set of rules on products. The doc comment of a rule is its reason.
macro_rules! product_rules {
    ($(#[$meta:meta])* $vis:vis fn $set:ident; $(
        $(#[doc = $why:literal])+
        $name:ident: $exactness:ident, adds $adds:literal,
        $from:literal => $to:literal
        $(if $($guard:ident($arg:expr)),+)?;
    )+) => {
        $(#[$meta])*
        $vis fn $set() -> Result<Vec<$crate::rewrite::rules::Rule>, eva_ir::diag::Diag> {
            use $crate::rewrite::{contraction::Guard, rules::{Exactness, Rule}};
            Ok(vec![$(Rule::new(
                stringify!($name), concat!($($why),+), Exactness::$exactness, ($from, $to),
                &[$($(Guard::$guard($arg)),+)?], $adds,
            )?),+])
        }
    };
}
pub(crate) use product_rules;

/// Declares a set of local rules: the op that a rule begins at, what it says, the function that does it, and the guards that
/// this asks for.
macro_rules! local_rules {
    ($(#[$meta:meta])* $vis:vis fn $set:ident; $(
        $(#[doc = $why:literal])+
        $name:ident: $exactness:ident, adds $adds:literal, $op:ident: $says:literal, by $equals:expr
        $(, if $($guard:expr),+)?;
    )+) => {
        $(#[$meta])*
        $vis fn $set() -> Vec<$crate::rewrite::rules::Rule> {
            use $crate::rewrite::rules::{Exactness, Rule};
            vec![$(Rule::local(
                stringify!($name), concat!($($why),+), Exactness::$exactness,
                eva_ir::ops::OpKind::$op, $says, $equals, $adds,
            )$(.guarded(&[$($guard),+]))?),+]
        }
    };
}
pub(crate) use local_rules;

/// Which rules to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// How far results may move.
    pub most: Exactness,
    /// Whether latent attention may be absorbed.
    pub absorb: bool,
    /// Whether weights may be computed from weights, which is done when they are loaded.
    pub weights: bool,
}

impl Default for Use {
    /// All that keep the real numbers, and none that computes weights.
    fn default() -> Self {
        Self { most: Exactness::default(), absorb: true, weights: false }
    }
}

/// The table of all rules, by subject.
pub fn all() -> Result<Vec<Rule>, Diag> {
    usable(Use { most: Exactness::Rounds, absorb: true, weights: true })
}

/// The rules that may be used.
pub fn usable(what: Use) -> Result<Vec<Rule>, Diag> {
    let mut rules = Vec::new();
    if what.absorb {
        rules.extend(latent::absorption()?);
    }
    if what.weights {
        rules.extend(latent::folding()?);
    }
    rules.extend(products::products());
    rules.extend(views::views());
    rules.extend(scales::scales());
    if what.weights {
        rules.extend(projections::projections());
    }
    rules.retain(|rule| rule.exactness <= what.most);
    Ok(rules)
}
