//! Rules on products of products, matched up to the order of factors and of their axes.
//!
//! A pattern is written in the ops' own notation, with variables for factors that may be anything:
//!
//! ```text
//! (einsum bshn,bthn->bhst ?q (einsum btc,hnc->bthn ?c ?w))
//! ```
//!
//! A letter is the same axis in the whole rule. What a factor *is* are the axes it has, not their order, which
//! a weight's checkpoint or a user's taste decides: `?w` may be stored `[c, h, n]`, and `?q` may come second.
//! Only the result's axes are in the order written, since that order tells the tokens from the keys, which
//! otherwise play the same part in a product.

use super::facts::{EGraph, equate};
use super::term::Term;
use egg::{Applier, ENodeOrVar, Id, PatternAst, Searcher, Subst, Symbol, Var};
use eva_ir::attr::{Attr, Axis, Spec};
use eva_ir::graph::{Def, Function, Value};
use eva_ir::ops::{Op, OpKind};

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
    name: &'static str,
}

/// Something with products in it: a function, or an e-graph.
pub trait Products {
    /// A value or a class.
    type Id: Copy + Eq;
    /// The products that `id` is, each with its factors.
    fn products(&self, id: Self::Id) -> Vec<(&Spec, Vec<Self::Id>)>;
}

impl Products for Function {
    type Id = Value;

    fn products(&self, value: Value) -> Vec<(&Spec, Vec<Value>)> {
        match &self.values[value].def {
            Def::Op(Op::Einsum(einsum), args) => vec![(&einsum.spec, args.clone())],
            _ => Vec::new(),
        }
    }
}

impl Products for EGraph {
    type Id = Id;

    fn products(&self, class: Id) -> Vec<(&Spec, Vec<Id>)> {
        let product = |term: &Term| match term {
            Term::Op(OpKind::Einsum, children) => {
                let (&spec, factors) = children.split_first()?;
                let spec = self[spec].nodes.iter().find_map(|term| match term {
                    Term::Attr(Attr::Spec(spec)) => Some(spec),
                    _ => None,
                });
                Some((spec?, factors.iter().map(|&id| self.find(id)).collect()))
            }
            _ => None,
        };
        self[class].nodes.iter().filter_map(product).collect()
    }
}

/// What the variables of a pattern stand for, each with its axes in the order it has them.
#[derive(Clone, Debug)]
struct Match<I> {
    bound: Vec<(Var, I, Vec<char>)>,
}

impl<I> Match<I> {
    fn get(&self, var: Var) -> Option<&(Var, I, Vec<char>)> {
        self.bound.iter().find(|(v, ..)| *v == var)
    }
}

impl Contraction {
    /// The rule that puts `to` in place of `from`; values that it adds are called `name`.
    pub fn new(from: &str, to: &str, name: &'static str) -> Result<Self, String> {
        let (from, to) = (parse(from)?, parse(to)?);
        from.can_be_matched()?;
        let given = from.variables();
        for (var, axes) in to.variables() {
            let mut same = given.iter().filter(|(v, _)| *v == var);
            if !same.any(|(_, have)| sorted(have) == sorted(&axes)) {
                return Err(format!("{var} is not on the left with these axes"));
            }
        }
        Ok(Self { from, to, name })
    }

    /// Whether `id` is a product that the rule rewrites.
    pub fn matches<P: Products>(&self, products: &P, id: P::Id) -> bool {
        !self.find(products, id).is_empty()
    }

    fn find<P: Products>(&self, products: &P, id: P::Id) -> Vec<Match<P::Id>> {
        self.from.find(products, id, &self.from.out, Match { bound: Vec::new() })
    }

    /// Adds `product`, whose variables `found` binds; its class, and the term.
    fn build(&self, egraph: &mut EGraph, product: &Product, found: &Match<Id>) -> Option<(Id, Term)> {
        let (mut axes, mut factors): (Vec<&[char]>, Vec<Id>) = (Vec::new(), Vec::new());
        for (_, tree) in &product.factors {
            match tree {
                Tree::Any(var) => {
                    let (_, id, order) = found.get(*var)?;
                    axes.push(order);
                    factors.push(*id);
                }
                Tree::Product(inner) => {
                    let (id, _) = self.build(egraph, inner, found)?;
                    egraph.analysis.names.entry(id).or_insert(self.name);
                    axes.push(&inner.out);
                    factors.push(id);
                }
            }
        }
        let spec = Spec::new(&axes, &product.out, |letter| letter);
        let spec = egraph.add(Term::Attr(spec.into()));
        let children: Box<[Id]> = [spec].into_iter().chain(factors).collect();
        let term = Term::Op(OpKind::Einsum, children);
        Some((egraph.add(term.clone()), term))
    }
}

impl Product {
    /// The ways in which `id`, whose axes are `out` in order, is this product.
    fn find<P: Products>(&self, p: &P, id: P::Id, out: &[char], found: Match<P::Id>) -> Vec<Match<P::Id>> {
        let mut all = Vec::new();
        for (spec, args) in p.products(id) {
            if args.len() != self.factors.len() || spec.out.len() != out.len() {
                continue;
            }
            for order in orders(args.len()) {
                let Some(letters) = self.letters(spec, &order, out) else { continue };
                let mut partial = vec![found.clone()];
                for ((_, tree), &at) in self.factors.iter().zip(&order) {
                    let axes: Vec<char> = spec.inputs[at].iter().map(|&a| letters[a as usize]).collect();
                    partial = partial.into_iter().flat_map(|m| tree.find(p, args[at], &axes, m)).collect();
                }
                all.extend(partial);
            }
        }
        all
    }

    /// The letter of each axis of `spec`, whose factor `order[i]` is the pattern's `i` and whose result has the
    /// axes `out`; `None` if some axis has other factors than its letter.
    fn letters(&self, spec: &Spec, order: &[usize], out: &[char]) -> Option<Vec<char>> {
        let in_pattern = |letter: char| -> Vec<bool> {
            self.factors.iter().map(|(axes, _)| axes.contains(&letter)).collect()
        };
        let in_spec =
            |axis: Axis| -> Vec<bool> { order.iter().map(|&at| spec.inputs[at].contains(&axis)).collect() };
        let mut letters = vec![None; spec.axes()];
        for (&axis, &letter) in spec.out.iter().zip(out) {
            letters[axis as usize] = (in_pattern(letter) == in_spec(axis)).then_some(letter);
            letters[axis as usize]?;
        }
        let mut summed = self.summed();
        for (axis, letter) in letters.iter_mut().enumerate().filter(|(_, letter)| letter.is_none()) {
            let place = in_spec(axis as Axis);
            let at = summed.iter().position(|&summed| in_pattern(summed) == place)?;
            *letter = Some(summed.swap_remove(at));
        }
        if summed.is_empty() { letters.into_iter().collect() } else { None }
    }

    /// The axes that are not the result's.
    fn summed(&self) -> Vec<char> {
        let mut summed: Vec<char> = self.factors.iter().flat_map(|(axes, _)| axes).copied().collect();
        summed.retain(|letter| !self.out.contains(letter));
        sorted(&summed)
    }

    /// Matching does not try both ways, so a pattern must not need it.
    fn can_be_matched(&self) -> Result<(), String> {
        let place =
            |letter: &char| self.factors.iter().map(|(axes, _)| axes.contains(letter)).collect::<Vec<_>>();
        let summed = self.summed();
        for (i, letter) in summed.iter().enumerate() {
            if let Some(other) = summed[..i].iter().find(|other| place(other) == place(letter)) {
                return Err(format!("nothing tells the summed axes `{other}` and `{letter}` apart"));
            }
        }
        let inner = self.factors.iter().filter_map(|(_, tree)| match tree {
            Tree::Any(_) => None,
            Tree::Product(inner) => Some(inner),
        });
        inner.into_iter().try_for_each(Product::can_be_matched)
    }

    /// The variables with their axes.
    fn variables(&self) -> Vec<(Var, Vec<char>)> {
        let variables = |(axes, tree): &(Vec<char>, Tree)| match tree {
            Tree::Any(var) => vec![(*var, axes.clone())],
            Tree::Product(inner) => inner.variables(),
        };
        self.factors.iter().flat_map(variables).collect()
    }
}

impl Tree {
    fn find<P: Products>(
        &self,
        p: &P,
        id: P::Id,
        axes: &[char],
        mut found: Match<P::Id>,
    ) -> Vec<Match<P::Id>> {
        match self {
            Tree::Product(product) => product.find(p, id, axes, found),
            Tree::Any(var) => match found.get(*var) {
                Some((_, same, order)) if *same == id && order == axes => vec![found],
                Some(_) => Vec::new(),
                None => {
                    found.bound.push((*var, id, axes.to_vec()));
                    vec![found]
                }
            },
        }
    }
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
            Tree::Product(inner) if inner.out != axes => {
                return Err(format!("\"{spec}\" calls a factor's axes otherwise than the factor does"));
            }
            _ => factors.push((axes, tree)),
        }
    }
    Ok(Tree::Product(Product { factors, out: letters(&spec.out) }))
}

impl Searcher<Term, super::facts::Types> for Contraction {
    fn search_eclass_with_limit(
        &self,
        egraph: &EGraph,
        class: Id,
        _: usize,
    ) -> Option<egg::SearchMatches<'_, Term>> {
        let substs = vec![Subst::default()];
        self.matches(egraph, class).then_some(egg::SearchMatches { eclass: class, substs, ast: None })
    }

    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

impl Applier<Term, super::facts::Types> for Contraction {
    /// Finds its matches again: a substitution has no place for the order of axes.
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        _: &Subst,
        _: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let mut changed = Vec::new();
        for found in Contraction::find(self, egraph, class) {
            let Some((new, term)) = self.build(egraph, &self.to, &found) else { continue };
            egraph.analysis.produced.push((term, rule));
            changed.extend(equate(egraph, class, new, rule));
        }
        changed
    }
}
