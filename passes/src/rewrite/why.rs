//! Why a rule did nothing: the guard that does not hold, or the op that is in its way.

use super::{Saturated, attended, rules::Rule};
use eva_ir::diag::Loc;
use eva_ir::graph::{Def, Function, Value};
use eva_ir::ops::Op;
use std::collections::HashSet;

/// Why a rule does not apply in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// The value that the rule could have rewritten.
    pub value: String,
    /// What does not hold.
    pub guard: String,
    /// The value that is in the way, with its op.
    pub blocking: Option<(String, String)>,
    /// The line that asked for that.
    pub loc: Option<Loc>,
}

/// Why `rule` does not apply where one might expect it; nothing where it applies.
pub fn why_not(f: &Function, s: &Saturated, rule: &Rule) -> Vec<Reason> {
    let named = |class| f.values.keys().find(|&value| s.class(value) == class);
    let mut reasons = Vec::new();
    for refused in s.egraph.analysis.refused.iter().filter(|refused| refused.rule == rule.name) {
        let (at, blocking) = (s.egraph.find(refused.class), s.egraph.find(refused.blocking));
        // Only what the user has written can be pointed at.
        let Some(value) = named(at) else { continue };
        let averages = f.values[value].def.args().iter().any(|&arg| is_probability(f, arg));
        if (rule.name == "mla_absorb_key" && averages) || (rule.name == "mla_absorb_value" && !averages) {
            continue;
        }
        let guard = format!("it needs that {}", refused.guard);
        reasons.push(reason(f, value, guard, named(blocking)));
    }
    let keys = match rule.name {
        "mla_absorb_key" => true,
        "mla_absorb_value" => false,
        _ => return dedup(reasons),
    };
    let found =
        |value: Value| s.egraph.analysis.absorbed.iter().any(|a| s.egraph.find(a.expanded) == s.class(value));
    let (attended, needed) = (attended::products(f), attended::needed_elsewhere(f));
    for product in f.values.keys().filter(|value| attended.contains(value)) {
        let Def::Op(Op::Einsum(einsum), args) = &f.values[product].def else { continue };
        let averages = args.iter().any(|&arg| is_probability(f, arg));
        if averages == keys || args.len() != 2 {
            continue;
        }
        // The scores' last axis is the keys'; an average's summed axis is.
        let side = match keys {
            true => einsum
                .spec
                .inputs
                .iter()
                .position(|axes| axes.contains(&einsum.spec.out[einsum.spec.out.len() - 1])),
            false => args.iter().position(|&arg| !is_probability(f, arg)),
        };
        let Some(side) = side else { continue };
        for source in sources(f, args[side]) {
            if found(source) {
                continue;
            }
            if let Some(guard) = obstacle(f, s, &needed, source, keys) {
                reasons.push(reason(f, product, guard, Some(source)));
            }
        }
    }
    dedup(reasons)
}

fn dedup(reasons: Vec<Reason>) -> Vec<Reason> {
    let mut all = Vec::new();
    for reason in reasons {
        if !all.contains(&reason) {
            all.push(reason);
        }
    }
    all
}

fn reason(f: &Function, value: Value, guard: String, blocking: Option<Value>) -> Reason {
    let op = |value: Value| match &f.values[value].def {
        Def::Op(op, _) => op.kind().name().to_string(),
        Def::Param(_) => "parameter".into(),
        Def::Call(..) => "call".into(),
    };
    Reason {
        value: f.values[value].name.clone(),
        guard,
        blocking: blocking.map(|value| (f.values[value].name.clone(), op(value))),
        loc: blocking.and_then(|value| f.values[value].loc),
    }
}

/// Whether a value is a softmax's, perhaps seen otherwise.
fn is_probability(f: &Function, value: Value) -> bool {
    match &f.values[value].def {
        Def::Op(Op::CausalSoftmax(_), _) => true,
        Def::Op(_, args) if attended::is_view(f, value) => args.iter().any(|&arg| is_probability(f, arg)),
        _ => false,
    }
}

/// What a value shows, behind reshapes, slices, transpositions, scales and concatenations.
fn sources(f: &Function, value: Value) -> Vec<Value> {
    let mut found = Vec::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if attended::is_view(f, value) {
            open.extend(f.values[value].def.args());
        } else if !matches!(f.values[value].def, Def::Op(Op::Full(_), _)) && !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Why `source`, which keys or values are seen in, cannot be done without.
fn obstacle(
    f: &Function,
    s: &Saturated,
    needed: &HashSet<Value>,
    source: Value,
    keys: bool,
) -> Option<String> {
    let what = if keys { "keys" } else { "values" };
    let expanded = |value: Value| -> bool {
        let product = |v: &Value| matches!(&f.values[*v].def, Def::Op(Op::Einsum(_), args) if args.len() > 1);
        sources(f, value).iter().any(product)
    };
    Some(match &f.values[source].def {
        Def::Op(Op::Einsum(_), args) => {
            if needed.contains(&source) {
                format!("the {what} are used elsewhere, too, so that they are computed anyway")
            } else if !args.iter().any(|&arg| s.egraph[s.class(arg)].data.is_weight()) {
                format!("the {what} are not a product with a weight")
            } else {
                return None;
            }
        }
        Def::Op(Op::Rope(_), args) if expanded(args[0]) => {
            format!(
                "RoPE turns the {what} by their positions after the up-projection, which cannot move past it"
            )
        }
        Def::Op(Op::RmsNorm(_), args) if expanded(args[0]) => {
            format!("a norm lies between the up-projection and the {what}, and is not linear")
        }
        Def::Op(Op::Add(_) | Op::Sub(_), args) if args.iter().any(|&arg| expanded(arg)) => {
            format!("a bias is added to the {what} after the up-projection")
        }
        Def::Op(op, args) if args.iter().any(|&arg| expanded(arg)) => {
            format!("`{}` lies between the up-projection and the {what}", op.kind().name())
        }
        Def::Op(..) | Def::Call(..) => {
            if keys {
                return None;
            }
            format!("the {what} are not made from a latent by a projection")
        }
        Def::Param(_) => format!("the {what} are given, not made from a latent"),
    })
}
