//! The e-graph's language: the graph IR's own ops.

use egg::{FromOpError, Id, Language};
use eva_ir::attr::Attr;
use eva_ir::graph::Value;
use eva_ir::ops::OpKind;
use std::fmt;

/// One term. Attributes are children like operands, so that a pattern can bind them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// A value that rules do not look into: a parameter, or a call with its arguments.
    Value(Value, Box<[Id]>),
    /// An attribute.
    Attr(Attr),
    /// An op on its attributes, then its operands.
    Op(OpKind, Box<[Id]>),
}

impl Language for Term {
    type Discriminant = (u8, Option<OpKind>);

    fn discriminant(&self) -> Self::Discriminant {
        match self {
            Term::Value(..) => (0, None),
            Term::Attr(_) => (1, None),
            Term::Op(kind, _) => (2, Some(*kind)),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Term::Op(a, xs), Term::Op(b, ys)) => a == b && xs.len() == ys.len(),
            (Term::Value(a, _), Term::Value(b, _)) => a == b,
            (Term::Attr(a), Term::Attr(b)) => a == b,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Op(_, children) | Term::Value(_, children) => children,
            Term::Attr(_) => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Op(_, children) | Term::Value(_, children) => children,
            Term::Attr(_) => &mut [],
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Term::Value(value, _) => write!(f, "{value}"),
            Term::Attr(attr) => write!(f, "{attr}"),
            Term::Op(kind, _) => write!(f, "{}", kind.name()),
        }
    }
}

impl egg::FromOp for Term {
    type Error = FromOpError;

    /// Reads the IR text's names of ops and spelling of attributes: `(einsum ab,bc->ac ?x ?y)`.
    fn from_op(op: &str, children: Vec<Id>) -> Result<Self, FromOpError> {
        if let Some(kind) = OpKind::by_name(op) {
            let least = kind.attr_names().len() + kind.operands().len();
            if children.len() == least || (kind.is_variadic() && children.len() > least) {
                return Ok(Term::Op(kind, children.into()));
            }
        } else if let (true, Ok(attr)) = (children.is_empty(), op.parse()) {
            return Ok(Term::Attr(attr));
        }
        Err(FromOpError::new(op, children))
    }
}
