//! What a token takes in a function's caches, and the budget that a module may set for it.

use super::StateReport;
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Func, Function, Module, Value};
use eva_ir::ops::Op;
use eva_ir::types::{DType, TensorType};

/// What one token takes in a function's states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheBytes {
    /// Each state with its type and the bytes of a token, in the order of the signature.
    pub states: Vec<(String, TensorType, u64)>,
}

impl CacheBytes {
    /// Of states with these names and types; the name of one whose bytes `constant` does not say otherwise.
    pub fn new<'a>(
        states: impl IntoIterator<Item = (&'a str, &'a TensorType)>,
        constant: &dyn Fn(&Dim) -> Option<i64>,
    ) -> Result<Self, String> {
        let one = |(name, ty): (&str, &TensorType)| {
            Ok((name.to_string(), ty.clone(), of_token(ty, constant).ok_or_else(|| name.to_string())?))
        };
        Ok(Self { states: states.into_iter().map(one).collect::<Result<_, String>>()? })
    }

    /// Of the states of a module's function.
    pub fn of(module: &Module, func: Func) -> Result<Self, String> {
        let f = &module.funcs[func];
        let states = super::caches(module, f);
        let states = states.filter_map(|state| Some((f.values[state].name.as_str(), f.tensor(state)?)));
        Self::new(states, &|dim| module.constant(dim))
    }

    /// Bytes of a token in all states.
    pub fn total(&self) -> u64 {
        self.states.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// Bytes of a token in each layer, in the order of the signature. States are of one layer if their names agree up
    /// to their last part that is a number (`model.layers.3`), or if neither has one.
    pub fn layers(&self) -> Vec<(&str, u64)> {
        let mut layers: Vec<(&str, u64)> = Vec::new();
        for (name, _, bytes) in &self.states {
            let layer = layer_of(name);
            match layers.iter_mut().find(|(other, _)| *other == layer) {
                Some((_, sum)) => *sum += bytes,
                None => layers.push((layer, *bytes)),
            }
        }
        layers
    }

    /// Bytes of a token in the layer that has the most.
    pub fn per_layer(&self) -> u64 {
        self.layers().iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)
    }
}

/// Bytes of a token in a state of this type, and in its scales.
pub(super) fn of_token(ty: &TensorType, constant: &dyn Fn(&Dim) -> Option<i64>) -> Option<u64> {
    let bytes = |shape: &[Dim], dtype: DType| {
        let elements = constant(&Dim::product(shape.iter().skip(2)))?;
        u64::try_from(elements.checked_mul(dtype.bytes())?).ok()
    };
    let own = bytes(&ty.shape, ty.dtype)?;
    match ty.scales_shape(constant).zip(ty.scales.as_ref()) {
        Some((shape, scales)) => own.checked_add(bytes(&shape, scales.encoding.dtype())?),
        None => Some(own),
    }
}

/// The part of a state's name that says which layer it belongs to.
fn layer_of(name: &str) -> &str {
    let mut end = 0;
    let mut at = 0;
    for part in name.split('.') {
        at += part.len();
        if !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()) {
            end = at;
        }
        at += 1;
    }
    &name[..end]
}

/// What the caches of `func` and of what it calls hold, in a word or two: `latent` where a product with a weight makes
/// more of what is read, `expanded` where attention reads what is cached, `paged` before either where it is in pages;
/// nothing if there are no caches.
pub fn layout(module: &Module, func: Func) -> Option<&'static str> {
    let (mut wanted, mut seen) = (vec![func], vec![false; module.funcs.len()]);
    let [mut any, mut latent, mut paged] = [false; 3];
    while let Some(func) = wanted.pop() {
        if std::mem::replace(&mut seen[func.index()], true) {
            continue;
        }
        let f = &module.funcs[func];
        let fixed = super::tokens::fixed(f);
        // What is read of caches, and what is only another view of it.
        let mut cached = vec![false; f.values.len()];
        for (value, data) in f.values.iter() {
            let Def::Op(op, args) = &data.def else {
                wanted.extend(match data.def {
                    Def::Call(callee, _) => Some(callee),
                    _ => None,
                });
                continue;
            };
            any |= matches!(op, Op::CacheWrite(_) | Op::PageWrite(_));
            paged |= matches!(op, Op::PageWrite(_));
            let reads = || args.iter().any(|arg| cached[arg.index()]);
            cached[value.index()] = match op {
                Op::CacheWrite(_) | Op::PageRead(_) => true,
                Op::Reshape(_) | Op::Slice(_) | Op::Cast(_) | Op::Dequantize(_) => reads(),
                Op::Einsum(_) => {
                    latent |= reads() && args.iter().any(|arg| fixed[arg.index()] && !is_full(f, *arg));
                    false
                }
                _ => false,
            };
        }
    }
    any.then_some(match (paged, latent) {
        (false, true) => "latent",
        (false, false) => "expanded",
        (true, true) => "paged latent",
        (true, false) => "paged expanded",
    })
}

/// Whether a value is one number everywhere, which a product only copies with.
fn is_full(f: &Function, value: Value) -> bool {
    matches!(f.values[value].def, Def::Op(Op::Full(_), _))
}

/// The functions that no other calls: those that users call, in the module's order.
pub fn entries(module: &Module) -> Vec<Func> {
    let mut called = vec![false; module.funcs.len()];
    for (_, f) in module.funcs.iter() {
        for (_, data) in f.values.iter() {
            if let Def::Call(callee, _) = data.def {
                called[callee.index()] = true;
            }
        }
    }
    module.funcs.keys().filter(|func| !called[func.index()]).collect()
}

/// Checks the module, laid out as `reports` say, against the budget that it sets.
pub(super) fn check_budget(module: &Module, reports: &[StateReport]) -> Result<(), Diag> {
    let Some(budget) = module.kv_budget else { return Ok(()) };
    for func in entries(module) {
        let f = &module.funcs[func];
        let loc =
            |name: &str| f.values.iter().find(|(_, data)| data.name == name).and_then(|(_, data)| data.loc);
        let bytes = CacheBytes::of(module, func).map_err(|name| {
            let message = format!(
                "the module allows {budget} bytes of cache a token and layer, but the bytes of `%{name}` are not known \
                 before it runs"
            );
            Diag::new("eva::kv_budget", message).label(loc(&name), "this state").help("fix its extents")
        })?;
        let Some((layer, sum)) = bytes.layers().into_iter().find(|(_, sum)| *sum > budget) else { continue };
        let own = || bytes.states.iter().filter(|(name, ..)| layer_of(name) == layer);
        let each: Vec<String> = own().map(|(name, ty, bytes)| format!("`%{name}` {bytes} ({ty})")).collect();
        let of = if layer.is_empty() { String::new() } else { format!(" of `{layer}`") };
        let message = format!(
            "a token takes {sum} bytes in the caches{of} of @{}, but the module allows {budget}: {}",
            f.name,
            each.join(", ")
        );
        let mut diag = Diag::new("eva::kv_budget", message);
        for (name, _, bytes) in own() {
            diag = diag.label(loc(name), format!("{bytes} bytes a token"));
        }
        let mut why: Vec<&str> = Vec::new();
        for report in reports.iter().filter(|report| report.bytes.is_some_and(|(_, after)| after > 0)) {
            why.extend(
                report.why.as_deref().filter(|why| why.starts_with("nothing") && !why.ends_with("it")),
            );
        }
        why.dedup();
        return Err(match why.first() {
            Some(why) => diag.help(format!("it cannot be less: {why}")),
            None => diag.help("give a larger budget (`kv_budget`), or cache less"),
        });
    }
    Ok(())
}
