//! Adding terms to an e-graph, with their types at hand: what a rule is written against.

use super::contraction::products;
use super::facts::{EGraph, op};
use super::term::Term;
use egg::Id;
use eva_ir::attr::Spec;
use eva_ir::dim::Dim;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::{Op, OpKind};
use eva_ir::types::{TensorType, Type};

/// An op on its operands as a term, whose attributes are added.
pub(super) fn term(egraph: &mut EGraph, op: &Op, args: impl IntoIterator<Item = Id>) -> Term {
    let attrs = op.attrs().into_iter().map(|attr| egraph.add(Term::Attr(attr)));
    let mut children: Vec<Id> = attrs.collect();
    children.extend(args);
    Term::Op(op.kind(), children.into())
}

/// An e-graph that a rule adds terms to.
pub struct Builder<'e> {
    egraph: &'e mut EGraph,
    /// What the values that the rule adds are called.
    adds: &'static str,
    /// What the rule says that it asks for.
    guards: &'static [&'static str],
    /// One of these that is taken to hold.
    without: Option<&'static str>,
}

impl<'e> Builder<'e> {
    /// Adds to `egraph`; values are called `adds` if they have no better name.
    pub fn new(egraph: &'e mut EGraph, adds: &'static str) -> Self {
        Self { egraph, adds, guards: &[], without: None }
    }

    /// The same for a rule with these guards, of which `without` is taken to hold.
    pub(super) fn guarded(self, guards: &'static [&'static str], without: Option<&'static str>) -> Self {
        Self { guards, without, ..self }
    }

    /// Whether the guard `name` of the rule lets it go on: whether it `holds`. It must be one of those that the rule was
    /// declared with.
    pub fn guard(&mut self, name: &'static str, holds: bool) -> bool {
        if !self.guards.contains(&name) {
            self.egraph.analysis.mistake(format_args!("asks for a guard that it does not declare: {name}"));
        }
        holds || self.without == Some(name)
    }

    /// The e-graph.
    pub fn egraph(&self) -> &EGraph {
        self.egraph
    }

    /// The type of a class that is one tensor.
    pub fn ty(&self, id: Id) -> Option<TensorType> {
        self.egraph[id].data.ty().and_then(Type::tensor).cloned()
    }

    /// The extents of a class that is one tensor; none if it is not.
    pub fn shape(&self, id: Id) -> Vec<Dim> {
        self.ty(id).map(|ty| ty.shape.to_vec()).unwrap_or_default()
    }

    /// Whether a class depends on weights alone.
    pub fn is_weight(&self, id: Id) -> bool {
        self.egraph[id].data.is_weight()
    }

    /// The terms of a class that are ops of this kind, each with its operands.
    pub fn nodes(&self, id: Id, kind: OpKind) -> Vec<(Op, Vec<Id>)> {
        let node = |term: &Term| match term {
            Term::Op(k, children) if *k == kind => {
                let (attrs, args) = children.split_at(kind.attr_names().len());
                Some((op(self.egraph, kind, attrs)?, args.iter().map(|&id| self.egraph.find(id)).collect()))
            }
            _ => None,
        };
        self.egraph[id].nodes.iter().filter_map(node).collect()
    }

    /// The ops of this kind that have a class as an operand, each with its operands.
    pub fn users(&self, id: Id, kind: OpKind) -> Vec<(Op, Vec<Id>)> {
        let mut users: Vec<Id> = self.egraph[id].parents().map(|user| self.egraph.find(user)).collect();
        users.sort();
        users.dedup();
        let uses = |(_, args): &(Op, Vec<Id>)| args.contains(&self.egraph.find(id));
        users.into_iter().flat_map(|user| self.nodes(user, kind)).filter(uses).collect()
    }

    /// The products that a class is, each with its factors.
    pub fn products(&self, id: Id) -> Vec<(Spec, Vec<Id>)> {
        products(self.egraph, id)
    }

    /// Adds an op.
    pub fn op(&mut self, op: impl Into<Op>, args: &[Id]) -> Id {
        let term = term(self.egraph, &op.into(), args.iter().copied());
        let id = self.egraph.add(term);
        self.egraph.analysis.names.entry(id).or_insert(self.adds);
        id
    }

    /// Adds a product of factors whose axes are numbered; `None` if it has more axes than a spec.
    pub fn product(&mut self, factors: &[Id], axes: &[Vec<u16>], out: &[u16]) -> Option<Id> {
        let inputs: Vec<&[u16]> = axes.iter().map(Vec::as_slice).collect();
        let mut all: Vec<u16> = axes.concat();
        all.sort();
        all.dedup();
        if all.len() > 48 {
            return None;
        }
        let spec = Spec::new(&inputs, out, |axis| (b'a' + (axis % 26) as u8) as char);
        Some(self.op(Einsum { spec }, factors))
    }
}
