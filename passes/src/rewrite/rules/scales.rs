//! Factors that are numbers: they move outwards, past products and views, and become one.
//!
//! So a softmax's scale is found wherever it was written (on the queries, the keys or the scores), and factors of YaRN or
//! of a router become part of what they multiply.

use super::super::build::Builder;
use super::local_rules;
use egg::Id;
use eva_ir::attr::Real;
use eva_ir::ops::{Op, OpKind, combine::Combine, get::Get, scale::Scale};

/// What rules of this table ask for.
const FINITE: &str = "the new factor is a number";
const IS_ONE: &str = "the factor is 1";
const NARROW: &str = "the number stretches nothing";
const POWER: &str = "the number is a power of two";
const ONE_FACTOR: &str = "all have the same factor";

local_rules! {
    /// Factors that are numbers.
    pub fn scales;

    /// Two factors are one.
    scale_of_scale: Reassociates, adds "scaled", Scale:
        "scale a (scale b x) => scale a·b x", by scale_of_scale, if FINITE;

    /// A factor of 1 changes nothing.
    scale_by_one: Exact, adds "scaled", Scale:
        "scale 1 x => x", by scale_by_one, if IS_ONE;

    /// A tensor of one number is a factor.
    product_with_number: Exact, adds "scaled", Mul:
        "mul x (full a) => scale a x", by product_with_number, if NARROW;

    /// To divide by a power of two is to multiply by its inverse, which is exact.
    quotient_by_power_of_two: Exact, adds "scaled", Div:
        "div x (full 2^n) => scale 2^-n x", by quotient_by_power_of_two, if NARROW, POWER;

    /// To divide by a number is to multiply by its inverse.
    quotient_by_number: Reassociates, adds "scaled", Div:
        "div x (full a) => scale 1/a x", by quotient_by_number, if NARROW, FINITE;

    /// (a·x)·y = a·(x·y): the factor can wait.
    product_of_scaled: Reassociates, adds "product", Einsum:
        "einsum (scale a x) y => scale a (einsum x y)", by product_of_scaled, if FINITE;

    /// a·x + a·y = a·(x + y).
    sum_of_scaled: Reassociates, adds "sum", Add:
        "add (scale a x) (scale a y) => scale a (add x y)", by |b, op, args| with_one_factor(b, op, args, args.len(), ALL), if ONE_FACTOR, FINITE;

    /// Elements can be scaled before they are seen otherwise, or after.
    reshape_of_scaled: Exact, adds "part", Reshape:
        "reshape (scale a x) => scale a (reshape x)", by |b, op, args| with_one_factor(b, op, args, 1, ONE);

    /// Elements can be scaled before some are taken, or after.
    slice_of_scaled: Exact, adds "part", Slice:
        "slice (scale a x) => scale a (slice x)", by |b, op, args| with_one_factor(b, op, args, 1, ONE);

    /// Parts with one factor have it together.
    concat_of_scaled: Exact, adds "joined", Concat:
        "concat (scale a x) (scale a y) => scale a (concat x y)", by |b, op, args| with_one_factor(b, op, args, args.len(), ONE), if ONE_FACTOR;

    /// Rotating is linear.
    rope_of_scaled: Reassociates, adds "rotated", Rope:
        "rope (scale a x) t => scale a (rope x t)", by |b, op, args| with_one_factor(b, op, args, 1, ALL), if FINITE;

    /// A factor of a rotary table is the table's own (YaRN's mscale).
    scale_of_rope_table: Reassociates, adds "table", Scale:
        "scale a (rope_table {factor = b}) => rope_table {factor = a·b}", by scale_of_rope_table;

    /// The experts' sum scales with their weights, of which there are fewer.
    scale_of_combine: Reassociates, adds "weight", Scale:
        "scale a (combine rows position w) => combine rows position (scale a w)", by scale_of_combine;

    /// A factor on the router's weights is the router's own (routed_scaling_factor).
    scale_of_route: Reassociates, adds "weight", Scale:
        "scale a (get 1 (route {scale = b})) => get 1 (route {scale = a·b})", by scale_of_route;
}

/// How many factors to take off.
const ONE: usize = 1;
const ALL: usize = usize::MAX;

fn is_power_of_two(a: f64) -> bool {
    a.is_normal() && a.to_bits() << 12 == 0 && (1.0 / a).is_normal()
}

/// The factor of a scale.
fn factor(op: &Op) -> Option<f64> {
    match op {
        Op::Scale(Scale { by }) => Some(by.get()),
        _ => None,
    }
}

/// A class without its factors: the product of them, and what they are factors of. All factors move at once: were each
/// to move by itself, every set of them would be a term. (Rules that keep bits take one, since a product rounds.)
fn stripped(b: &Builder<'_>, id: Id, most: usize) -> (f64, Id) {
    let (mut all, mut x, mut seen) = (1.0, id, vec![id]);
    while seen.len() <= most {
        let inner = b.nodes(x, OpKind::Scale);
        let next = inner
            .iter()
            .filter_map(|(op, args)| Some((factor(op)?, args[0])))
            .find(|(_, y)| !seen.contains(y));
        let Some((a, y)) = next else { break };
        (all, x) = (all * a, y);
        seen.push(y);
    }
    (all, x)
}

/// `a·x`, where `a` is a new number: products of factors can be too large for one.
fn scale(b: &mut Builder<'_>, a: f64, x: Id) -> Option<Id> {
    b.guard(FINITE, a.is_finite()).then(|| scaled(b, a, x))
}

/// `a·x`.
fn scaled(b: &mut Builder<'_>, a: f64, x: Id) -> Id {
    b.op(Scale { by: Real::new(a) }, &[x])
}

fn scale_of_scale(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let (c, x) = stripped(b, args[0], ALL);
    match factor(op) {
        Some(a) if x != args[0] => scale(b, a * c, x).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn scale_by_one(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    if b.guard(IS_ONE, factor(op) == Some(1.0)) { vec![args[0]] } else { Vec::new() }
}

/// The numbers that `args[number]` is full of, if it has no axis that `args[x]` would be stretched to.
fn numbers(b: &mut Builder<'_>, args: &[Id], x: usize, number: usize) -> Vec<f64> {
    let full = b.nodes(args[number], OpKind::Full);
    let (wide, narrow) = (b.shape(args[x]), b.shape(args[number]));
    let fits = narrow.len() <= wide.len()
        && narrow.iter().rev().zip(wide.iter().rev()).all(|(n, w)| n == w || n.as_const() == Some(1));
    let value = |(op, _): &(Op, _)| if let Op::Full(full) = op { Some(full.value.get()) } else { None };
    if full.is_empty() || !b.guard(NARROW, fits) {
        Vec::new()
    } else {
        full.iter().filter_map(value).collect()
    }
}

fn product_with_number(b: &mut Builder<'_>, _: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for (x, number) in [(0, 1), (1, 0)] {
        for a in numbers(b, args, x, number) {
            equal.push(scaled(b, a, args[x]));
        }
    }
    equal
}

fn quotient_by_power_of_two(b: &mut Builder<'_>, _: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for a in numbers(b, args, 0, 1) {
        if b.guard(POWER, is_power_of_two(a)) {
            equal.push(scaled(b, 1.0 / a, args[0]));
        }
    }
    equal
}

fn quotient_by_number(b: &mut Builder<'_>, _: &Op, args: &[Id]) -> Vec<Id> {
    let numbers = numbers(b, args, 0, 1).into_iter().filter(|&a| !is_power_of_two(a));
    numbers.filter_map(|a| scale(b, 1.0 / a, args[0])).collect()
}

/// The op on operands without their factors, and all factors' product if there are any.
fn product_of_scaled(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let parts: Vec<(f64, Id)> = args.iter().map(|&arg| stripped(b, arg, ALL)).collect();
    if parts.iter().map(|(_, x)| x).eq(args) {
        return Vec::new();
    }
    let factors: Vec<Id> = parts.iter().map(|(_, x)| *x).collect();
    let product = b.op(op.clone(), &factors);
    scale(b, parts.iter().map(|(a, _)| a).product(), product).into_iter().collect()
}

/// The op on operands without a factor that all of the first `n` have.
fn with_one_factor(b: &mut Builder<'_>, op: &Op, args: &[Id], n: usize, most: usize) -> Vec<Id> {
    let parts: Vec<(f64, Id)> = args[..n].iter().map(|&arg| stripped(b, arg, most)).collect();
    let (a, _) = parts[0];
    if parts.iter().map(|(_, x)| x).eq(&args[..n]) {
        return Vec::new();
    }
    if n > 1 && !b.guard(ONE_FACTOR, parts.iter().all(|(c, _)| *c == a)) {
        return Vec::new();
    }
    let operands: Vec<Id> = parts.iter().map(|(_, x)| *x).chain(args[n..].iter().copied()).collect();
    let whole = b.op(op.clone(), &operands);
    // One factor that moves is the number that it was.
    let moved = if most == ONE { Some(scaled(b, a, whole)) } else { scale(b, a, whole) };
    moved.into_iter().collect()
}

fn scale_of_rope_table(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for (table, table_args) in b.nodes(args[0], OpKind::RopeTable) {
        if let (Some(a), Op::RopeTable(mut table)) = (factor(op), table) {
            table.factor = Real::new(a * table.factor.get());
            equal.push(b.op(table, &table_args));
        }
    }
    equal
}

fn scale_of_combine(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for (_, parts) in b.nodes(args[0], OpKind::Combine) {
        let weight = factor(op).map(|a| scaled(b, a, parts[2]));
        equal.extend(weight.map(|weight| b.op(Combine {}, &[parts[0], parts[1], weight])));
    }
    equal
}

fn scale_of_route(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Some(a) = factor(op) else { return Vec::new() };
    let mut equal = Vec::new();
    for (get, tuple) in b.nodes(args[0], OpKind::Get) {
        if !matches!(get, Op::Get(Get { index: 1 })) {
            continue;
        }
        for kind in [OpKind::RouteNoauxTc, OpKind::RouteGreedy, OpKind::RouteGroupLimitedGreedy] {
            for (mut route, route_args) in b.nodes(tuple[0], kind) {
                let scale = match &mut route {
                    Op::RouteNoauxTc(route) => &mut route.scale,
                    Op::RouteGreedy(route) => &mut route.scale,
                    Op::RouteGroupLimitedGreedy(route) => &mut route.scale,
                    _ => continue,
                };
                *scale = Real::new(a * scale.get());
                let route = b.op(route, &route_args);
                equal.push(b.op(Get { index: 1 }, &[route]));
            }
        }
    }
    equal
}
