//! What each product of a block is computed in: what `eva explain --precision` prints.

use crate::explain::{Question, line_of};
use crate::prelude::Module;
use eva_ir::diag::Diag;
use eva_ir::estimate::least;
use eva_ir::graph::Def;
use eva_ir::types::Type;
use eva_passes::cost::{Cost, CostOptions, Lengths, Metric};
use eva_passes::fp8::{self, Outcome};
use eva_passes::{Error, Options, optimize};
use serde::Serialize;
use std::fmt::Write;

/// A product.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The weight that it multiplies with, if it is one.
    pub weight: Option<String>,
    /// Its op.
    pub op: &'static str,
    /// `fp8`, `high` or `fallback`.
    pub precision: &'static str,
    /// The types of its operands.
    pub operands: Vec<String>,
    /// Why it is not of 8 bits; nothing if it is.
    pub reason: Option<String>,
    /// Floating-point operations in a call.
    pub flops: f64,
    /// Their part of all, in percent.
    pub percent: f64,
    /// Its line.
    pub line: Option<String>,
}

/// The products of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// `fp8`, `high` or `fallback`.
    pub precision: &'static str,
    /// How many there are.
    pub products: usize,
    /// Their part of all products, in percent.
    pub percent_of_products: f64,
    /// Their part of all floating-point operations of products, in percent.
    pub percent_of_flops: f64,
}

/// The answer for one function.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The function.
    pub function: String,
    /// The recipe; none if nothing is quantized.
    pub recipe: Option<String>,
    /// Sequences, new tokens, and tokens attended to.
    pub lengths: (i64, i64, i64),
    /// Every product, in order.
    pub products: Vec<Row>,
    /// What they come to, the kinds that there are.
    pub shares: Vec<Share>,
}

/// Says what each product of the function `name` is computed in, once all passes have run, at the question's lengths.
pub fn precision(
    module: &Module,
    name: &str,
    options: &Options,
    question: &Question,
) -> Result<Answer, Error> {
    let done = optimize(module, options)?;
    let unknown =
        || Error::Invalid(Diag::new("eva::unknown", format!("there is no function @{name}")).into());
    let f = &done.funcs[done.func(name).ok_or_else(unknown)?];
    let sizes = Lengths::of(&done).sizes(question.batch, question.new, question.cached);
    let bodies: Vec<_> = f.bodies().collect();
    let size = |sym: &eva_ir::dim::Sym| done.size_of(sym).or_else(|| sizes.get(sym).copied());
    let chosen = least(bodies.iter().map(|(_, estimate)| *estimate), &size);
    let body = bodies.get(chosen).map_or(&**f, |(body, _)| *body);
    let machine = question.machine.clone();
    let cost = Cost::new(&done, body, &CostOptions { machine, metric: Metric::Flops, sizes: sizes.clone() });

    let mut products = Vec::new();
    for product in fp8::products(&done, body, &options.fp8) {
        let data = &body.values[product.value];
        let Def::Op(op, args) = &data.def else { continue };
        let types: Vec<_> = args.iter().filter_map(|&arg| body.values[arg].ty.tensor()).collect();
        let flops = cost.work(op, &types, &data.ty).flops;
        let (precision, reason) = match product.outcome {
            Outcome::Eight => ("fp8", None),
            Outcome::High(why) => ("high", Some(why)),
            Outcome::Fallback(why) => ("fallback", Some(why)),
        };
        let operands = args.iter().take(2).map(|&arg| match &body.values[arg].ty {
            Type::Tensor(ty) => ty.to_string(),
            ty @ Type::Tuple(_) => ty.to_string(),
        });
        products.push(Row {
            name: product.name,
            weight: product.weight,
            op: op.kind().name(),
            precision,
            operands: operands.collect(),
            reason,
            flops,
            percent: 0.0,
            line: product.loc.map(|loc| line_of(loc, question.text.as_ref())),
        });
    }
    let all: f64 = products.iter().map(|row| row.flops).sum();
    let percent = |part: f64, all: f64| if all > 0.0 { part / all * 100.0 } else { 0.0 };
    products.iter_mut().for_each(|row| row.percent = percent(row.flops, all));
    let share = |precision| {
        let own = || products.iter().filter(move |row| row.precision == precision);
        Share {
            precision,
            products: own().count(),
            percent_of_products: percent(own().count() as f64, products.len() as f64),
            percent_of_flops: percent(own().map(|row| row.flops).sum(), all),
        }
    };
    let shares =
        ["fp8", "high", "fallback"].map(share).into_iter().filter(|share| share.products > 0).collect();
    Ok(Answer {
        function: name.into(),
        recipe: options.fp8.recipe.as_ref().map(|recipe| recipe.name.clone()),
        lengths: (question.batch, question.new, question.cached),
        products,
        shares,
    })
}

/// An answer for people.
pub fn text(answer: &Answer) -> String {
    let mut s = String::new();
    let (batch, new, cached) = answer.lengths;
    let mut line = |text: String| writeln!(s, "{text}").expect("a string takes what is written");
    let recipe = answer.recipe.as_deref().unwrap_or("nothing is quantized (--fp8 RECIPE)");
    line(format!("@{}: {batch} × {new} new tokens, {cached} attended to; {recipe}", answer.function));
    let name = |row: &Row| row.weight.clone().unwrap_or_else(|| row.name.clone());
    let widest = answer.products.iter().map(|row| name(row).chars().count()).max().unwrap_or(0);
    for row in &answer.products {
        let why = row.reason.as_ref().map_or_else(|| row.operands.join(" · "), Clone::clone);
        let at = row.line.as_ref().map_or(String::new(), |line| format!(" ({line})"));
        line(format!("  {:<widest$}  {:<8}  {:>5.1} %  {why}{at}", name(row), row.precision, row.percent));
    }
    for share in &answer.shares {
        line(format!(
            "  {:<8} {:>3} products, {:>5.1} % of them, {:>5.1} % of their operations",
            share.precision, share.products, share.percent_of_products, share.percent_of_flops
        ));
    }
    s
}
