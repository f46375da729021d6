//! The form of attention: keys and values expanded from the latents, or queries absorbed into them.
//!
//! Latent attention can be computed in two ways that are equal but for rounding: [`Form::Expanded`], as its
//! definition has it, makes the keys and values of every head from the cached latents; [`Form::Absorbed`] multiplies
//! the up-projections into the queries and the outputs, so that all heads share the latents themselves. With few
//! new tokens and many cached ones the second moves much less memory; with many new tokens the first takes less
//! arithmetic.
//!
//! [`Form::Auto`] decides by cost ([`crate::cost`]). Where the module fixes the extents there is one answer. Where it
//! leaves them open, the e-graph of a function is made once and asked at many lengths ([`pieces`]); what it answers
//! become bodies of the function, and each call takes the one whose estimate is least for the lengths that it has. So
//! chunks of a prompt, and prompts of which the beginning is cached, are decided by the same rule as decoding.
//! [`crossover`] is where that rule turns. Runs before [`crate::attend`], which recognizes either form. For functions with
//! gradients the choice has been made by then, for both directions together ([`crate::grad::forms`]).

pub mod crossover;
pub mod pieces;

use crate::cost::{Cost, CostOptions, Machine, representative};
use crate::rewrite::rules::{self, Rule, Use};
use crate::rewrite::{Choose, Rewriting, is_worthwhile, rewrite};
use crate::{Hoist, Options};
use eva_ir::diag::Diag;
use eva_ir::dim::Sym;
use eva_ir::graph::{Function, Module};
use pieces::{Body, Lattice, Search};
use std::sync::Arc;

/// Which form of attention to compile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Chosen by cost.
    #[default]
    Auto,
    /// Scores against the latents; values averaged as latents.
    Absorbed,
    /// Keys and values expanded for each head.
    Expanded,
    /// As the module says: nothing is rewritten.
    Written,
}

/// What was found and chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The values taken for extents that the module leaves open.
    pub sizes: Vec<(Sym, i64)>,
    /// The functions in which a rule applies, in the module's order.
    pub functions: Vec<Rewriting>,
    /// The bodies of functions that have several, in the module's order; each function's own first.
    pub bodies: Vec<Body>,
}

/// The module with each attention in the form asked for.
pub fn choose(module: &Module, options: &Options) -> Result<Module, Diag> {
    let machine = options.machine.clone().unwrap_or_else(Machine::cpu);
    choose_with(module, options.form, &CostOptions::new(machine), usable(options), &options.rules)
        .map(|(module, _)| module)
}

/// The rules that options allow.
pub fn usable(options: &Options) -> Use {
    Use {
        most: options.numerics,
        absorb: options.form != Form::Expanded,
        weights: options.hoist == Hoist::AtLoad,
    }
}

/// The rules that options allow, and the user's own among them.
pub fn rules(options: &Options) -> Result<Vec<Rule>, Diag> {
    rules_of(usable(options), &options.rules)
}

fn rules_of(what: Use, own: &[Rule]) -> Result<Vec<Rule>, Diag> {
    let mut rules = rules::usable(what)?;
    rules.extend(own.iter().filter(|rule| rule.exactness <= what.most).cloned());
    Ok(rules)
}

/// The module with each attention in the form asked for, chosen by those costs among what those rules find; and what
/// was done. Functions that have alternatives already stay as they are.
pub fn choose_and_report(
    module: &Module,
    form: Form,
    costs: &CostOptions,
    what: Use,
) -> Result<(Module, Report), Diag> {
    choose_with(module, form, costs, what, &[])
}

/// [`choose_and_report`], with rules of the user's own beside eva's.
pub fn choose_with(
    module: &Module,
    form: Form,
    costs: &CostOptions,
    what: Use,
    own: &[Rule],
) -> Result<(Module, Report), Diag> {
    if form == Form::Written {
        return Ok((module.clone(), Report::default()));
    }
    let rules = rules_of(Use { absorb: what.absorb && form != Form::Expanded, ..what }, own)?;
    let mut report = Report { sizes: representative(module).into_iter().collect(), ..Report::default() };
    let lattice = Lattice::of(module, costs);
    let mut new = |f: &Arc<Function>| -> Result<Arc<Function>, Diag> {
        // What has several bodies has been decided.
        if !is_worthwhile(f, own) || !f.alternatives.is_empty() {
            return Ok(f.clone());
        }
        let cost = Cost::new(module, f, costs);
        if form == Form::Auto && !lattice.is_one() {
            let (function, rewriting, bodies) = Search::new(f, &rules, cost)?.pieces(&lattice)?;
            report.functions.push(rewriting);
            report.bodies.extend(bodies);
            return Ok(function.map_or_else(|| f.clone(), Arc::new));
        }
        let choose = if form == Form::Absorbed { Choose::Absorbed } else { Choose::Cheapest };
        let (function, rewriting) = rewrite(f, &rules, &cost, choose)?;
        report.functions.push(rewriting);
        Ok(Arc::new(function))
    };
    let funcs = module.funcs.iter().map(|(_, f)| new(f)).collect::<Result<_, _>>()?;
    let dims = module.dims.clone();
    Ok((Module { dims, kv_budget: module.kv_budget, funcs, ..Module::default() }, report))
}
