//! Random well-typed modules, for tests of everything that takes one.
//!
//! A module is made from a seed; more ops from the same seed start with the same ones, so a test that
//! fails can look for the fewest. Extents are pairwise distinct and awkward. Every value's range is known, so that
//! nothing overflows, no logarithm is taken of a negative number, and a test knows how far from each other
//! two results may be.

use crate::dim::Dim;
use crate::entity::Entity;
use crate::estimate::Estimate;
use crate::eval::{Array, Sizes};
use crate::graph::{Alternative, Def, Func, Function, Module, ParamKind, Value, ValueData, op_type};
use crate::ops::Op;
use crate::ops::cast::round;
use crate::poly::Poly;
use crate::types::{DType, TensorType, Type};
use std::collections::HashMap;
use std::sync::Arc;

pub mod scaled;
mod step;

/// A small random number generator (SplitMix64; Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// An integer below `n`, which is positive.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// A number in `0.0 .. 1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `true` with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of some items, of which there must be one.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// The items in another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// What a random module may have in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many ops the last function has, about.
    pub ops: usize,
    /// Casts to narrower types too, which round: results of different orders of summation then differ by a
    /// unit in the last place of the narrower type.
    pub narrow: bool,
    /// A second function, and calls of it.
    pub calls: bool,
}

/// A module with everything that is needed to run its last function.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The module, which is well-formed.
    pub module: Module,
    /// The last function.
    pub func: Func,
    /// A value for every extent, fixed or not.
    pub sizes: Sizes,
    /// The least and the largest value of each parameter of `func`.
    pub params: Vec<(f64, f64)>,
    /// The largest magnitude that each result of `func` can have: the scale for comparing.
    pub bounds: Vec<f64>,
}

impl Sample {
    /// Arguments for `func`: numbers of the parameters' element types, evenly spread over their ranges.
    pub fn args(&self, seed: u64) -> Vec<Array> {
        let mut rng = Rng::new(seed);
        let f = &self.module.funcs[self.func];
        let params: Vec<Value> = f.params().map(|(param, _)| param).collect();
        let args = params.iter().zip(&self.params).map(|(&param, &(low, high))| {
            let ty = f.tensor(param).expect("parameters are tensors");
            let shape: Vec<usize> = ty.shape.iter().map(|dim| self.sizes.of(dim)).collect();
            Array::from_fn(&shape, |_| match ty.dtype.is_int() {
                true => low + rng.below((high - low) as usize + 1) as f64,
                false => round(low + (high - low) * rng.unit(), ty.dtype),
            })
        });
        args.collect()
    }
}

/// A random module.
pub fn random_module(seed: u64, options: Options) -> Sample {
    let mut rng = Rng::new(seed);
    let mut numbers = [2, 3, 5, 6, 7, 9, 11, 13];
    rng.shuffle(&mut numbers);
    let names = ["b", "s", "m", "n", "h", "k"];
    let mut module = Module::default();
    let mut sizes = Sizes::default();
    for (i, (name, &n)) in names.iter().zip(&numbers).enumerate() {
        // The first two have no fixed value.
        module.dims.push(((*name).into(), (i >= 2).then_some(n)));
        sizes.0.insert((*name).into(), n);
    }
    let mut extents: Vec<Dim> = names.iter().map(|name| Dim::sym(name)).collect();
    extents.push(numbers[6].into());

    let mut callee = None;
    if options.calls {
        let options = Options { ops: 1 + options.ops / 3, calls: false, ..options };
        let maker = Maker::new("block", &sizes, &extents, options, &mut rng, None);
        let (block, ranges, bounds) = maker.finish();
        callee = Some(Callee { func: module.add(block.clone()), function: block, params: ranges, bounds });
    }
    let maker = Maker::new("main", &sizes, &extents, options, &mut rng, callee.as_ref());
    let (function, params, bounds) = maker.finish();
    let func = module.add(function);
    Sample { module, func, sizes, params, bounds }
}

/// A function that may be called.
struct Callee {
    func: Func,
    function: Function,
    params: Vec<(f64, f64)>,
    bounds: Vec<f64>,
}

/// A function being made.
struct Maker<'a> {
    rng: &'a mut Rng,
    sizes: &'a Sizes,
    extents: &'a [Dim],
    options: Options,
    callee: Option<&'a Callee>,
    f: Function,
    /// The least and the largest value of each value; those of its first part for a tuple.
    ranges: Vec<(f64, f64)>,
}

/// No value has more elements.
const MAX_ELEMENTS: f64 = 1500.0;
/// No value is larger.
const MAX_VALUE: f64 = 500.0;

impl<'a> Maker<'a> {
    fn new(
        name: &str,
        sizes: &'a Sizes,
        extents: &'a [Dim],
        options: Options,
        rng: &'a mut Rng,
        callee: Option<&'a Callee>,
    ) -> Self {
        let f = Function::new(name);
        let mut maker = Self { rng, sizes, extents, options, callee, f, ranges: Vec::new() };
        maker.params();
        for _ in 0..options.ops {
            maker.step();
        }
        maker
    }

    fn params(&mut self) {
        for i in 0..3 {
            let ty = TensorType::new(DType::F32, self.shape(2, 4));
            self.param(ParamKind::Input, &format!("x{i}"), ty, (-1.0, 1.0));
        }
        for i in 0..2 {
            let ty = TensorType::new(DType::Bf16, self.shape(2, 3));
            self.param(ParamKind::Weight, &format!("layers.{i}.w"), ty, (-1.0, 1.0));
        }
        // A gain for each extent that is fixed.
        for extent in &self.extents[2..] {
            let ty = TensorType::new(DType::F32, [extent.clone()]);
            self.param(ParamKind::Weight, &format!("gain.{extent}"), ty, (0.5, 1.5));
        }
        let ty = TensorType::new(DType::I32, self.shape(1, 2));
        self.param(ParamKind::Input, "ids", ty, (0.0, 3.0));
        // What a call may need.
        if let Some(callee) = self.callee {
            for ((param, kind), &range) in callee.function.params().zip(&callee.params) {
                let data = &callee.function.values[param];
                if let Type::Tensor(ty) = &data.ty {
                    self.param(kind, &format!("block.{}", data.name), ty.clone(), range);
                }
            }
        }
    }

    fn param(&mut self, kind: ParamKind, name: &str, ty: TensorType, range: (f64, f64)) {
        self.f.param(kind, name, ty);
        self.ranges.push(range);
    }

    /// Distinct extents, between `least` and `most` of them, and rarely a 1 among them.
    fn shape(&mut self, least: usize, most: usize) -> Vec<Dim> {
        loop {
            let mut extents = self.extents.to_vec();
            self.rng.shuffle(&mut extents);
            extents.truncate(least + self.rng.below(most - least + 1));
            if self.rng.chance(0.2) {
                *extents.last_mut().expect("there is one at least") = 1.into();
            }
            if self.elements(&extents) <= MAX_ELEMENTS {
                return extents;
            }
        }
    }

    fn elements(&self, shape: &[Dim]) -> f64 {
        shape.iter().map(|dim| self.sizes.of(dim) as f64).product()
    }

    /// Adds the op if it fits and its values stay small; `range` is of the results' values.
    fn add(&mut self, op: impl Into<Op>, args: &[Value], range: (f64, f64)) -> bool {
        let name = format!("v{}", self.f.values.len());
        let large = |ty: &TensorType| self.elements(&ty.shape) > MAX_ELEMENTS || ty.rank() > 5;
        let op = op.into();
        let ty = op_type(&op, &self.f.values, args);
        let Ok(ty) = ty else { return false };
        let (low, high) = range;
        if ty.parts().iter().any(large) || !(low.abs() <= MAX_VALUE && high.abs() <= MAX_VALUE) {
            return false;
        }
        let def = Def::Op(op, args.to_vec());
        self.f.values.push(ValueData { name, ty, def, loc: None });
        self.ranges.push(range);
        true
    }

    fn range(&self, value: Value) -> (f64, f64) {
        self.ranges[value.index()]
    }

    /// The results: the last value, and some others that nothing uses.
    fn finish(mut self) -> (Function, Vec<(f64, f64)>, Vec<f64>) {
        let uses = self.f.use_counts();
        let params = self.f.params().count();
        let tensors = self.f.values.iter().filter(|(_, data)| data.ty.tensor().is_some());
        let unused = tensors.map(|(value, _)| value).filter(|v| v.index() >= params && !uses.contains_key(v));
        let mut results: Vec<Value> = unused.collect();
        results.reverse();
        results.truncate(3);
        if results.is_empty() {
            results.push(Value::new(0));
        }
        let bound = |&value: &Value| {
            let (low, high) = self.range(value);
            low.abs().max(high.abs())
        };
        let bounds = results.iter().map(bound).collect();
        self.f.results = results;
        self.ranges.truncate(params);
        if self.rng.chance(0.3) {
            self.alternative();
        }
        (self.f, self.ranges, bounds)
    }

    /// Another body, which adds zero to the results, and random estimates.
    fn alternative(&mut self) {
        let mut body = Function { name: "other".into(), ..self.f.clone() };
        for result in body.results.iter_mut() {
            let offset = crate::ops::offset::Offset { by: crate::attr::Real::new(0.0) };
            let name = format!("{}.other", body.values[*result].name);
            // Whole numbers stay as they are.
            if let Ok(ty) = op_type(&offset.clone().into(), &body.values, &[*result]) {
                let def = Def::Op(offset.into(), vec![*result]);
                *result = body.values.push(ValueData { name, ty, def, loc: None });
            }
        }
        let mut poly = |monomials: &[&[&str]]| {
            let term = |syms: &&[&str]| {
                Poly::term(syms.iter().map(|&sym| sym.into()).collect(), self.rng.unit() * 1e-6)
            };
            monomials.iter().map(term).fold(Poly::default(), |sum, term| sum + term)
        };
        for estimate in 0..2 {
            let mut seconds = Estimate::default();
            seconds.add(poly(&[&[], &["b"]]));
            seconds.add_max(poly(&[&["b", "s"], &["s"]]), poly(&[&["s"], &["b"]]));
            match estimate {
                0 => self.f.estimate = seconds,
                _ => {
                    self.f.alternatives.push(Alternative { body: Arc::new(body.clone()), estimate: seconds })
                }
            }
        }
    }
}

/// What differs first between two modules, locations and the letters of specs aside.
pub fn difference(a: &Module, b: &Module) -> Option<String> {
    if a.dims != b.dims {
        return Some(format!("extents: {:?} and {:?}", a.dims, b.dims));
    }
    if a.funcs.len() != b.funcs.len() {
        return Some(format!("{} and {} functions", a.funcs.len(), b.funcs.len()));
    }
    for ((_, f), (_, g)) in a.funcs.iter().zip(b.funcs.iter()) {
        if f.alternatives.len() != g.alternatives.len() {
            return Some(format!("{} and {} bodies of @{}", f.bodies().count(), g.bodies().count(), f.name));
        }
        for ((f, x), (g, y)) in f.bodies().zip(g.bodies()) {
            if x != y {
                return Some(format!("@{}: the estimates {x} and {y}", f.name));
            }
            if let Some(difference) = difference_of_bodies(f, g) {
                return Some(difference);
            }
        }
    }
    None
}

fn difference_of_bodies(f: &Function, g: &Function) -> Option<String> {
    if f.name != g.name || f.values.len() != g.values.len() || f.results != g.results {
        return Some(format!("functions @{} and @{}", f.name, g.name));
    }
    let mut values = f.values.iter().zip(g.values.iter());
    let other = values.find(|((_, x), (_, y))| x.name != y.name || x.ty != y.ty || x.def != y.def);
    other.map(|((_, x), (_, y))| format!("@{}: {x:?} and {y:?}", f.name))
}

/// How many values of a module each op makes, by the op's name.
pub fn histogram(module: &Module) -> HashMap<&'static str, usize> {
    let mut counts = HashMap::new();
    for (_, f) in module.funcs.iter() {
        for (_, data) in f.values.iter() {
            let name = match &data.def {
                Def::Op(op, _) => op.kind().name(),
                Def::Call(..) => "call",
                Def::Param(_) => continue,
            };
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    counts
}
