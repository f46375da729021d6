//! The form of attention: keys and values expanded from the latents, or queries absorbed into them.
//!
//! Latent attention can be computed in two ways that are equal but for rounding: [`Form::Expanded`], as its
//! definition has it, makes the keys and values of every head from the cached latents; [`Form::Absorbed`] multiplies
//! the up-projections into the queries and the outputs, so that all heads share the latents themselves. With few
//! new tokens and many cached ones the second moves much less memory; with many new tokens the first takes less
//! arithmetic.
//!
//! [`Form::Auto`] decides by cost ([`crate::cost`]), at the extents that the module fixes and, where it
//! leaves them open, at those of decoding: one compile serves every length, and it has one form. Runs before
//! [`crate::attend`], which recognizes either.

use crate::cost::{Cost, CostOptions, Machine, representative};
use crate::rewrite::rules::{self, Use};
use crate::rewrite::{Choose, Rewriting, rewrite};
use crate::{Hoist, Options};
use eva_ir::diag::Diag;
use eva_ir::dim::Sym;
use eva_ir::graph::Module;

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
}

/// The module with each attention in the form asked for.
pub fn choose(module: &Module, options: &Options) -> Result<Module, Diag> {
    let machine = options.machine.clone().unwrap_or_else(Machine::cpu);
    choose_and_report(module, options.form, &CostOptions::new(machine), usable(options))
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

/// The module with each attention in the form asked for, chosen by those costs among what those rules find; and what
/// was done.
pub fn choose_and_report(
    module: &Module,
    form: Form,
    costs: &CostOptions,
    what: Use,
) -> Result<(Module, Report), Diag> {
    let choose = match form {
        Form::Written => return Ok((module.clone(), Report::default())),
        Form::Absorbed => Choose::Absorbed,
        Form::Auto | Form::Expanded => Choose::Cheapest,
    };
    let rules = rules::usable(Use { absorb: what.absorb && form != Form::Expanded, ..what })?;
    let mut report = Report { sizes: representative(module).into_iter().collect(), functions: Vec::new() };
    let module = crate::rebuild::functions(module, |f| {
        let cost = Cost::new(module, f, costs);
        Ok(rewrite(f, &rules, &cost, choose)?.map(|(function, rewriting)| {
            report.functions.push(rewriting);
            function
        }))
    })?;
    Ok((module, report))
}
