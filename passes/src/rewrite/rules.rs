//! The rules, by subject. Each has a name, the reason why it holds and pays, how exact it is, and two patterns.

use super::contraction::Contraction;
use super::facts::{Named, Types};
use super::term::Term;
use egg::Rewrite;
use eva_ir::diag::Diag;

/// How far a rule may move a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exactness {
    /// The same bits.
    Exact,
    /// The same real number, rounded in another order.
    Reassociates,
}

/// A rule on products of products.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The name, by which a mistake is reported.
    pub name: &'static str,
    /// Why it holds and when it pays: a sentence or two.
    pub why: &'static str,
    /// How far it may move a result.
    pub exactness: Exactness,
    /// The pattern that it looks for, and what it puts beside it.
    pub patterns: (&'static str, &'static str),
    pub(super) contraction: Contraction,
    pub(super) rewrite: Rewrite<Term, Types>,
}

impl Rule {
    /// The rule that `from` is also `to`; values that it adds are called `adds`.
    pub fn new(
        name: &'static str,
        why: &'static str,
        exactness: Exactness,
        patterns: (&'static str, &'static str),
        adds: &'static str,
    ) -> Result<Self, Diag> {
        let wrong = |e: String| Diag::new("eva::internal", format!("the rule `{name}` cannot be read: {e}"));
        let contraction = Contraction::new(patterns.0, patterns.1, adds).map_err(wrong)?;
        let rewrite = Rewrite::new(name, contraction.clone(), Named(contraction.clone())).map_err(wrong)?;
        Ok(Self { name, why: why.trim(), exactness, patterns, contraction, rewrite })
    }
}

/// Declares a set of rules. The doc comment of a rule is its reason.
macro_rules! rules {
    ($(#[$meta:meta])* $vis:vis fn $set:ident; $(
        $(#[doc = $why:literal])+
        $name:ident: $exactness:ident, adds $adds:literal,
        $from:literal => $to:literal;
    )+) => {
        $(#[$meta])*
        $vis fn $set() -> Result<Vec<Rule>, Diag> {
            Ok(vec![$(Rule::new(
                stringify!($name), concat!($($why),+), Exactness::$exactness, ($from, $to), $adds,
            )?),+])
        }
    };
}

rules! {
    /// Latent attention: multiply the up-projections of keys and values into the queries and the outputs.
    ///
    /// Axes: batch `b`, new tokens `s`, cached tokens `t`, latent `c`, heads `h`, a head's key `n`, its value `v`.
    pub fn absorption;

    /// q·(c·W_UK) = (q·W_UK)·c: score against the latents, not against the keys.
    mla_absorb_key: Reassociates, adds "q_latent",
        "(einsum bshn,bthn->bhst ?q (einsum btc,hnc->bthn ?c ?w_uk))" =>
        "(einsum bshc,btc->bhst (einsum bshn,hnc->bshc ?q ?w_uk) ?c)";

    /// p·(c·W_UV) = (p·c)·W_UV: average the latents, then project once a query.
    mla_absorb_value: Reassociates, adds "o_latent",
        "(einsum bhst,bthv->bshv ?p (einsum btc,hvc->bthv ?c ?w_uv))" =>
        "(einsum bshc,hvc->bshv (einsum bhst,btc->bshc ?p ?c) ?w_uv)";

    /// The same, where the result has its heads before its tokens.
    mla_absorb_value_by_head: Reassociates, adds "o_latent",
        "(einsum bhst,bthv->bhsv ?p (einsum btc,hvc->bthv ?c ?w_uv))" =>
        "(einsum bshc,hvc->bhsv (einsum bhst,btc->bshc ?p ?c) ?w_uv)";
}
