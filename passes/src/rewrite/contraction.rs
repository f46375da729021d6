//! Rules on products of products, matched up to the order of factors and of their axes.
//!
//! A pattern is written in the ops' own notation, with variables for factors that may be anything:
//!
//! ```text
//! (einsum BSHN,BTHN->BHST ?q (einsum BTC,HNC->BTHN ?c ?w))
//! ```
//!
//! A small letter is one axis, a capital any number of axes, none included. Which axis is which follows from where it
//! is: `S` are the axes that `?q` and the result have, and `?c` and `?w` do not. So a pattern says nothing of order:
//! `?w` may be stored `[c, h, n]`, `?q` may come second, and heads may stand before tokens or after them. Where a rule
//! needs more (that `?w` is a weight, that `T` comes last), it has [`Guard`]s.

use super::build::Builder;
use super::facts::EGraph;
use super::term::Term;
use egg::{ENodeOrVar, Id, PatternAst, Var};
use eva_ir::attr::{Attr, Axis, Spec};
use eva_ir::ops::OpKind;
use std::fmt;

/// A product of factors, or something to be bound.
#[derive(Clone, Debug)]
enum Tree {
    Any(Var),
    Product(Product),
}

/// Factors with their axes, and the axes of the result.
#[derive(Clone, Debug)]
struct Product {
    factors: Vec<(Vec<char>, Tree)>,
    out: Vec<char>,
}

/// A rule that puts one tree of products in place of another.
#[derive(Clone, Debug)]
pub struct Contraction {
    from: Product,
    to: Product,
    guards: Vec<Guard>,
    /// Each letter with the variables that have it, and whether the result does.
    places: Vec<(char, Place)>,
}

/// Which variables have an axis (in their order on the left), and whether the result has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    vars: Vec<bool>,
    out: bool,
}

/// What a rule on products asks for beyond its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The factor depends on weights alone.
    Weight(&'static str),
    /// The factor depends on more than weights.
    Data(&'static str),
    /// There is such an axis.
    Some(char),
    /// The last axis of the result is such a one.
    Last(char),
    /// The product inside is needed for nothing but products of attention.
    OnlyAttended(()),
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Guard::Weight(var) => write!(f, "{var} is a weight"),
            Guard::Data(var) => write!(f, "{var} is not a weight"),
            Guard::Some(letter) => write!(f, "there is an axis {letter}"),
            Guard::Last(letter) => write!(f, "{letter} is the last axis"),
            Guard::OnlyAttended(()) => write!(f, "only attention needs the inner product"),
        }
    }
}

/// A way in which a class is a rule's left side.
#[derive(Clone, Debug)]
pub struct Match {
    /// The factors, in the order of the pattern, each with its axes.
    factors: Vec<(Var, Id, Vec<u16>)>,
    /// The axes of the result.
    out: Vec<u16>,
    /// The products inside.
    inner: Vec<Id>,
    /// How many axes have been numbered.
    axes: u16,
}

impl Match {
    /// What a variable stands for.
    pub fn factor(&self, name: &str) -> Option<Id> {
        self.factors.iter().find(|(var, ..)| var.to_string() == name).map(|(_, id, _)| *id)
    }

    /// The first of the products inside.
    pub fn inner(&self) -> Option<Id> {
        self.inner.first().copied()
    }
}

impl Contraction {
    /// The rule that puts `to` in place of `from` where all `guards` hold.
    pub fn new(from: &str, to: &str, guards: &[Guard]) -> Result<Self, String> {
        let (from, to) = (parse(from)?, parse(to)?);
        let (given, taken) = (from.variables(), to.variables());
        for (i, (var, _)) in given.iter().enumerate() {
            if given[..i].iter().any(|(v, _)| v == var) {
                return Err(format!("{var} is there twice"));
            }
        }
        for (var, axes) in &taken {
            let mut same = given.iter().filter(|(v, _)| v == var);
            if !same.any(|(_, have)| sorted(have) == sorted(axes)) {
                return Err(format!("{var} is not on the left with these axes"));
            }
        }
        if sorted(&from.out) != sorted(&to.out) {
            return Err("the two sides have different axes".into());
        }
        let letters = given.iter().flat_map(|(_, axes)| axes).chain(&from.out).copied().collect::<Vec<_>>();
        let place = |letter: char| Place {
            vars: given.iter().map(|(_, axes)| axes.contains(&letter)).collect(),
            out: from.out.contains(&letter),
        };
        let places: Vec<(char, Place)> = sorted(&letters).into_iter().map(|l| (l, place(l))).collect();
        for (i, (letter, place)) in places.iter().enumerate() {
            if let Some((other, _)) = places[..i].iter().find(|(_, p)| p == place) {
                return Err(format!("nothing tells the axes `{other}` and `{letter}` apart"));
            }
        }
        Ok(Self { from, to, guards: guards.to_vec(), places })
    }

    /// What the rule asks for beyond its shape.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// The same without one of its guards, which is named in words; `None` if it has no such guard.
    pub fn without(&self, guard: &str) -> Option<Self> {
        let at = self.guards.iter().position(|have| have.to_string() == guard)?;
        let mut new = self.clone();
        new.guards.remove(at);
        Some(new)
    }

    /// The ways in which `class` is the left side, whether or not the guards hold.
    pub fn find(&self, egraph: &EGraph, class: Id) -> Vec<Match> {
        let rank = egraph[class].data.ty().and_then(|ty| ty.tensor()).map_or(0, |ty| ty.rank() as u16);
        let out: Vec<u16> = (0..rank).collect();
        let start = Match { factors: Vec::new(), out: out.clone(), inner: Vec::new(), axes: rank };
        let found = self.from.find(egraph, class, &out, start);
        found.into_iter().filter(|found| self.fits(found)).collect()
    }

    /// The first guard that does not hold.
    pub fn refusal(&self, egraph: &EGraph, found: &Match) -> Option<(Guard, Id)> {
        let is_weight = |id: Id| egraph[id].data.is_weight();
        let refused = |guard: &Guard| match *guard {
            Guard::Weight(var) => found.factor(var).filter(|&id| !is_weight(id)),
            Guard::Data(var) => found.factor(var).filter(|&id| is_weight(id)),
            Guard::Some(letter) => {
                let some = (0..found.axes).any(|axis| self.letter(found, axis) == Some(letter));
                (!some).then(|| found.inner.first().copied()).flatten()
            }
            Guard::Last(letter) => {
                let last = found.out.last().and_then(|&axis| self.letter(found, axis));
                (last != Some(letter)).then(|| found.inner.first().copied()).flatten()
            }
            Guard::OnlyAttended(()) => found
                .inner
                .iter()
                .copied()
                .find(|id| egraph.analysis.needed.iter().any(|n| egraph.find(*n) == egraph.find(*id))),
        };
        self.guards.iter().find_map(|guard| refused(guard).map(|id| (*guard, id)))
    }

    /// Whether every axis has a letter, and every small letter one axis.
    fn fits(&self, found: &Match) -> bool {
        let mut letters = Vec::new();
        for axis in 0..found.axes {
            match self.letter(found, axis) {
                Some(letter) => letters.push(letter),
                None => return false,
            }
        }
        let count = |letter: char| letters.iter().filter(|&&l| l == letter).count();
        self.places.iter().all(|(letter, _)| letter.is_uppercase() || count(*letter) == 1)
    }

    fn letter(&self, found: &Match, axis: u16) -> Option<char> {
        let vars: Vec<bool> = found.factors.iter().map(|(_, _, axes)| axes.contains(&axis)).collect();
        let place = Place { vars, out: found.out.contains(&axis) };
        self.places.iter().find(|(_, p)| *p == place).map(|(letter, _)| *letter)
    }

    /// Adds the right side, with the variables that `found` binds.
    pub fn build(&self, b: &mut Builder<'_>, found: &Match) -> Option<Id> {
        self.product(b, &self.to, &found.out, found)
    }

    fn product(&self, b: &mut Builder<'_>, product: &Product, out: &[u16], found: &Match) -> Option<Id> {
        let (mut axes, mut factors) = (Vec::new(), Vec::new());
        for (letters, tree) in &product.factors {
            match tree {
                Tree::Any(var) => {
                    let (_, id, order) = found.factors.iter().find(|(v, ..)| v == var)?;
                    axes.push(order.clone());
                    factors.push(*id);
                }
                Tree::Product(inner) => {
                    let order = self.order(found, letters);
                    factors.push(self.product(b, inner, &order, found)?);
                    axes.push(order);
                }
            }
        }
        b.product(&factors, &axes, out)
    }

    /// The axes that these letters stand for: letter by letter, those of one in the order of the first factor that
    /// has them.
    fn order(&self, found: &Match, letters: &[char]) -> Vec<u16> {
        let mut order = Vec::new();
        for &letter in letters {
            for axis in found.factors.iter().flat_map(|(_, _, axes)| axes) {
                if self.letter(found, *axis) == Some(letter) && !order.contains(axis) {
                    order.push(*axis);
                }
            }
        }
        order
    }
}

impl Product {
    /// The ways in which `class`, whose axes are `out` in order, is this product.
    fn find(&self, egraph: &EGraph, class: Id, out: &[u16], found: Match) -> Vec<Match> {
        let mut all = Vec::new();
        for (spec, args) in products(egraph, class) {
            if args.len() != self.factors.len() || spec.out.len() != out.len() {
                continue;
            }
            let mut start = found.clone();
            let mut names: Vec<Option<u16>> = vec![None; spec.axes()];
            for (&axis, &name) in spec.out.iter().zip(out) {
                names[axis as usize] = Some(name);
            }
            let names: Vec<u16> = names
                .into_iter()
                .map(|name| {
                    name.unwrap_or_else(|| {
                        start.axes += 1;
                        start.axes - 1
                    })
                })
                .collect();
            for order in orders(args.len()) {
                let mut partial = vec![start.clone()];
                for ((_, tree), &at) in self.factors.iter().zip(&order) {
                    let axes: Vec<u16> = spec.inputs[at].iter().map(|&a| names[a as usize]).collect();
                    partial =
                        partial.into_iter().flat_map(|m| tree.find(egraph, args[at], &axes, m)).collect();
                }
                all.extend(partial);
            }
        }
        all
    }

    /// The variables with their axes, from left to right.
    fn variables(&self) -> Vec<(Var, Vec<char>)> {
        let variables = |(axes, tree): &(Vec<char>, Tree)| match tree {
            Tree::Any(var) => vec![(*var, axes.clone())],
            Tree::Product(inner) => inner.variables(),
        };
        self.factors.iter().flat_map(variables).collect()
    }
}

impl Tree {
    fn find(&self, egraph: &EGraph, id: Id, axes: &[u16], mut found: Match) -> Vec<Match> {
        match self {
            Tree::Product(product) => {
                found.inner.push(id);
                product.find(egraph, id, axes, found)
            }
            Tree::Any(var) => {
                found.factors.push((*var, id, axes.to_vec()));
                vec![found]
            }
        }
    }
}

/// The products that a class is, each with its factors.
pub(super) fn products(egraph: &EGraph, class: Id) -> Vec<(Spec, Vec<Id>)> {
    let product = |term: &Term| match term {
        Term::Op(OpKind::Einsum, children) => {
            let (&spec, factors) = children.split_first()?;
            match egraph[spec].data.attr() {
                Some(Attr::Spec(spec)) => {
                    Some((spec.clone(), factors.iter().map(|&id| egraph.find(id)).collect()))
                }
                _ => None,
            }
        }
        _ => None,
    };
    egraph[class].nodes.iter().filter_map(product).collect()
}

/// Every order of `n` factors, that of the pattern first.
fn orders(n: usize) -> Vec<Vec<usize>> {
    (0..n).fold(vec![Vec::new()], |orders, _| {
        let longer = |order: Vec<usize>| {
            let free: Vec<usize> = (0..n).filter(|i| !order.contains(i)).collect();
            free.into_iter().map(move |i| [order.as_slice(), &[i]].concat())
        };
        orders.into_iter().flat_map(longer).collect()
    })
}

fn sorted(letters: &[char]) -> Vec<char> {
    let mut letters = letters.to_vec();
    letters.sort();
    letters.dedup();
    letters
}

fn parse(text: &str) -> Result<Product, String> {
    let ast: PatternAst<Term> = text.parse().map_err(|e| format!("`{text}` is no pattern: {e}"))?;
    let root = ast.len().checked_sub(1).ok_or("an empty pattern")?;
    match tree(&ast, Id::from(root))? {
        Tree::Product(product) => Ok(product),
        Tree::Any(_) => Err(format!("`{text}` is anything")),
    }
}

fn tree(ast: &PatternAst<Term>, id: Id) -> Result<Tree, String> {
    let children = match &ast[id] {
        ENodeOrVar::Var(var) => return Ok(Tree::Any(*var)),
        ENodeOrVar::ENode(Term::Op(OpKind::Einsum, children)) => children,
        ENodeOrVar::ENode(other) => return Err(format!("`{other}` is not a product")),
    };
    let ENodeOrVar::ENode(Term::Attr(Attr::Spec(spec))) = &ast[children[0]] else {
        return Err("the axes of a product must be written out".into());
    };
    let letters = |axes: &[Axis]| -> Vec<char> { axes.iter().map(|&axis| spec.letter(axis)).collect() };
    if spec.inputs.len() + 1 != children.len() {
        return Err(format!("\"{spec}\" is for {} factors", spec.inputs.len()));
    }
    let mut factors = Vec::new();
    for (axes, &child) in spec.inputs.iter().zip(&children[1..]) {
        let (axes, tree) = (letters(axes), tree(ast, child)?);
        match &tree {
            Tree::Product(inner) if sorted(&inner.out) != sorted(&axes) => {
                return Err(format!("\"{spec}\" calls a factor's axes otherwise than the factor does"));
            }
            _ => factors.push((axes, tree)),
        }
    }
    Ok(Tree::Product(Product { factors, out: letters(&spec.out) }))
}
