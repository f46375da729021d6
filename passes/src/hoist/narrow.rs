//! Joined weights stay as narrow as they are stored.
//!
//! `concat(cast a, cast b)` of weights is `cast(concat a, b)`, bit for bit, where the casts widen: elements are only moved.
//! What is hoisted is then the narrow tensor, and the cast part of the read of what uses it.

use super::{Fact, is_widening};
use crate::rebuild::{Rebuild, ill_typed};
use eva_ir::diag::Diag;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, Value};
use eva_ir::ops::Op;
use eva_ir::ops::cast::Cast;
use eva_ir::types::DType;

/// A value that is a wider reading of another: views of it, the last one first.
struct Wide<'a> {
    views: Vec<&'a Op>,
    of: Value,
    from: DType,
    to: DType,
}

/// `f` with casts behind the concatenations of weights that they are before; `None` if there are none.
pub(super) fn narrow(f: &Function, facts: &[Option<Fact>]) -> Result<Option<Function>, Diag> {
    let parts = |value: Value| joined(f, value).filter(|_| facts[value.index()].is_some());
    if !f.values.keys().any(|value| parts(value).is_some()) {
        return Ok(None);
    }
    let mut r = Rebuild::new(f);
    for (value, data) in f.values.iter() {
        let (Some(parts), Def::Op(concat, _)) = (parts(value), &data.def) else {
            r.copy(value);
            continue;
        };
        let name = format!("{}.{}", data.name, parts[0].from);
        let mut narrow = Vec::with_capacity(parts.len());
        for part in &parts {
            let mut at = r.get(part.of);
            for &view in part.views.iter().rev() {
                at = r
                    .op(&format!("{}.part", data.name), view.clone(), &[at], value)
                    .map_err(|e| ill_typed("hoist", e))?;
            }
            narrow.push(at);
        }
        let whole = r.op(&name, concat.clone(), &narrow, value).map_err(|e| ill_typed("hoist", e))?;
        r.replace(value, Cast { to: parts[0].to }, &[whole]).map_err(|e| ill_typed("hoist", e))?;
    }
    Ok(Some(r.finish()))
}

/// What `value` joins, if that is wider readings of one type.
fn joined(f: &Function, value: Value) -> Option<Vec<Wide<'_>>> {
    let Def::Op(Op::Concat(_), args) = &f.values[value].def else { return None };
    let parts: Vec<Wide> = args.iter().map(|&arg| wide(f, arg)).collect::<Option<_>>()?;
    let (from, to) = (parts[0].from, parts[0].to);
    parts.iter().all(|part| (part.from, part.to) == (from, to)).then_some(parts)
}

fn wide(f: &Function, mut value: Value) -> Option<Wide<'_>> {
    let mut views = Vec::new();
    loop {
        match &f.values[value].def {
            Def::Op(op @ (Op::Reshape(_) | Op::Slice(_)), args) => {
                views.push(op);
                value = args[0];
            }
            Def::Op(Op::Cast(cast), args) if is_widening(f, cast.to, args[0]) => {
                let from = f.tensor(args[0])?.dtype;
                return (from != cast.to).then_some(Wide { views, of: args[0], from, to: cast.to });
            }
            _ => return None,
        }
    }
}
