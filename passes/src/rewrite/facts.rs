//! What is known of each class of equal terms: its type, and whether weights alone decide it.
//!
//! Equal terms have equal types, so a rule that breaks a shape is caught where it does it, and by its name:
//! the mistake is noted, saturation stops, and the pass returns it.

use super::term::Term;
use egg::{Applier, DidMerge, Id, PatternAst, Subst, Symbol, Var};
use eva_ir::attr::Attr;
use eva_ir::graph::Value;
use eva_ir::op::TypeError;
use eva_ir::ops::{Op, OpKind};
use eva_ir::types::Type;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// The e-graph of a function.
pub type EGraph = egg::EGraph<Term, Types>;

/// The analysis that gives every class its type, and keeps what rules say about the terms they add.
#[derive(Clone, Debug, Default)]
pub struct Types {
    /// The types of the values that rules do not look into.
    pub(super) values: HashMap<Value, Type>,
    /// The rule being applied, to name it if it goes wrong.
    pub(super) rule: Option<Symbol>,
    /// The first mistake that a rule made.
    pub(super) error: Option<String>,
    /// The terms that rules put in place of others, with their rules. Their children may be out of date.
    pub(super) produced: Vec<(Term, Symbol)>,
    /// Names for values that rules add.
    pub(super) names: HashMap<Id, &'static str>,
    /// The values that are weights.
    pub(super) weights: HashSet<Value>,
    /// Classes that are needed for more than the products of attention. Ids may be out of date.
    pub(super) needed: Vec<Id>,
    /// Where a rule's shape was found, but a guard did not hold: the class, and what is to blame. Ids may be out of date.
    pub(super) refused: Vec<Refused>,
    /// Keys and values that need not be computed.
    pub(super) absorbed: Vec<Absorbed>,
}

/// Keys or values that a rule of latent attention can do without. Ids may be out of date.
#[derive(Clone, Debug, PartialEq)]
pub struct Absorbed {
    /// The rule.
    pub rule: &'static str,
    /// The keys or values of each head.
    pub expanded: Id,
    /// The up-projection.
    pub weight: Id,
}

/// A rule whose shape was found where a guard does not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The rule.
    pub rule: &'static str,
    /// The guard, in words.
    pub guard: String,
    /// What the rule would have rewritten.
    pub class: Id,
    /// What the guard is about.
    pub blocking: Id,
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// It is this attribute.
    Attr(Attr),
    /// It is a value of this type, which depends on weights alone or not.
    Value(Type, bool),
    /// A rule built it wrongly; the mistake has been noted.
    Wrong,
}

impl Fact {
    /// The type, if it is a value.
    pub fn ty(&self) -> Option<&Type> {
        match self {
            Fact::Value(ty, _) => Some(ty),
            Fact::Attr(_) | Fact::Wrong => None,
        }
    }

    /// The attribute, if it is one.
    pub fn attr(&self) -> Option<&Attr> {
        match self {
            Fact::Attr(attr) => Some(attr),
            Fact::Value(..) | Fact::Wrong => None,
        }
    }

    /// Whether it is a value that depends on weights alone: it can be computed before the first call.
    pub fn is_weight(&self) -> bool {
        matches!(self, Fact::Value(_, true))
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Fact::Attr(attr) => write!(f, "the attribute {attr}"),
            Fact::Value(ty, _) => write!(f, "{ty}"),
            Fact::Wrong => write!(f, "something ill-typed"),
        }
    }
}

impl Types {
    /// Notes a mistake of the rule being applied; the first counts.
    pub(super) fn mistake(&mut self, what: impl fmt::Display) {
        let rule = self.rule.map_or("?", |name| name.as_str());
        self.error.get_or_insert_with(|| format!("the rule `{rule}` {what}"));
    }
}

impl egg::Analysis<Term> for Types {
    type Data = Fact;

    fn make(egraph: &mut EGraph, term: &Term, _: Id) -> Fact {
        match term {
            Term::Value(value, args) => match egraph.analysis.values.get(value) {
                Some(ty) => {
                    let all = !args.is_empty() && args.iter().all(|&arg| egraph[arg].data.is_weight());
                    Fact::Value(ty.clone(), all || egraph.analysis.weights.contains(value))
                }
                None => {
                    egraph.analysis.mistake("builds a value out of nothing");
                    Fact::Wrong
                }
            },
            Term::Attr(attr) => Fact::Attr(attr.clone()),
            Term::Op(kind, children) => match op_type(egraph, *kind, children) {
                Ok(fact) => fact,
                Err(error) => {
                    let message = format!("builds an ill-typed `{}`: {}", kind.name(), error.message);
                    egraph.analysis.mistake(message);
                    Fact::Wrong
                }
            },
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        if let (Fact::Value(old, mine), Fact::Value(new, theirs)) = (&mut *a, &b)
            && old == new
        {
            // What weights decide in one way, they decide.
            let before = *mine;
            *mine |= theirs;
            return DidMerge(*mine != before, *mine != *theirs);
        }
        if *a != b && *a != Fact::Wrong && b != Fact::Wrong {
            self.mistake(format_args!("equates {a} and {b}"));
        }
        DidMerge(false, false)
    }
}

fn op_type(egraph: &EGraph, kind: OpKind, children: &[Id]) -> Result<Fact, TypeError> {
    let (attrs, args) = children.split_at(kind.attr_names().len());
    let Some(op) = op(egraph, kind, attrs) else {
        return Err(TypeError::new("an attribute has the wrong kind"));
    };
    let mut types = Vec::with_capacity(args.len());
    // What is made from nothing is as good as a weight.
    let mut weight = true;
    for &arg in args {
        match &egraph[arg].data {
            Fact::Value(ty, is_weight) => {
                types.push(ty);
                weight &= is_weight;
            }
            Fact::Wrong => return Ok(Fact::Wrong),
            Fact::Attr(attr) => return Err(TypeError::new(format!("{attr} is an attribute, not a tensor"))),
        }
    }
    infer(&op, &types).map(|ty| Fact::Value(ty, weight))
}

/// The type of `op` on operands of these types, one of which may be a tuple if `op` is `get`.
fn infer(op: &Op, args: &[&Type]) -> Result<Type, TypeError> {
    if let (Op::Get(get), [Type::Tuple(parts)]) = (op, args) {
        let part = usize::try_from(get.index).ok().and_then(|i| parts.get(i));
        return part.cloned().map(Type::Tensor).ok_or_else(|| TypeError::new("there is no such part"));
    }
    let tensors: Option<Vec<_>> = args.iter().map(|ty| ty.tensor()).collect();
    op.infer(&tensors.ok_or_else(|| TypeError::new("an operand is several tensors"))?)
}

/// The op with these attributes, which are classes; `None` if one has the wrong kind.
pub fn op(egraph: &EGraph, kind: OpKind, attrs: &[Id]) -> Option<Op> {
    let attr = |&id: &Id| match &egraph[id].data {
        Fact::Attr(attr) => Some(attr.clone()),
        Fact::Value(..) | Fact::Wrong => None,
    };
    kind.with_attrs(&attrs.iter().map(attr).collect::<Option<Vec<_>>>()?).ok()
}

/// Says that `class` equals `new`, for `rule`; the id that changed, if one did. Different types are the rule's mistake.
pub fn equate(egraph: &mut EGraph, class: Id, new: Id, rule: Symbol) -> Vec<Id> {
    let (a, b) = (&egraph[class].data, &egraph[new].data);
    let same = match (a, b) {
        (Fact::Value(a, _), Fact::Value(b, _)) => a == b,
        _ => a == b,
    };
    if !same {
        if *a != Fact::Wrong && *b != Fact::Wrong {
            let message = format!("equates {a} and {b}");
            egraph.analysis.mistake(message);
        }
        return Vec::new();
    }
    if egraph.union_trusted(class, new, rule) { vec![new] } else { Vec::new() }
}

/// An applier that says its rule's name before it acts. Every rule needs it.
pub struct Named<A>(pub A);

impl<A: Applier<Term, Types>> Applier<Term, Types> for Named<A> {
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        subst: &Subst,
        ast: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        egraph.analysis.rule = Some(rule);
        self.0.apply_one(egraph, class, subst, ast, rule)
    }

    fn vars(&self) -> Vec<Var> {
        self.0.vars()
    }
}
