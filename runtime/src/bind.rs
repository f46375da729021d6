//! [`Bound`]: everything about a run of a plan that extents decide; and the walk over a plan's steps. For every device.

use crate::error::Error;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::Entity;
use eva_ir::graph::Func;
use eva_ir::kernel::{BufData, Kernel};
use eva_passes::plan::{Base, CAPACITY, FuncPlan, Layout, Plan, Step};
use std::collections::HashMap;

/// Everything about a run that extents decide.
pub(crate) struct Bound {
    /// The function that runs.
    pub func: Func,
    /// Each function that takes part.
    funcs: HashMap<usize, BoundFunc>,
    /// What each kernel is launched with.
    launches: HashMap<usize, Launch>,
    /// Bytes of arena in all.
    pub arena: usize,
}

/// What extents decide about a function.
struct BoundFunc {
    /// Which of its bodies runs.
    body: usize,
    /// The body's part of the arena.
    layout: Layout,
    /// Which of its steps are for these extents.
    runs: Vec<bool>,
}

/// What a kernel is launched with, but for addresses.
pub(crate) struct Launch {
    /// The values of the kernel's symbols, in its order.
    pub syms: Vec<i64>,
    /// How many programs its grid has.
    pub programs: i64,
}

/// Works out, for one set of extents, everything that a run needs but addresses.
pub(crate) fn bind(plan: &Plan, func: Func, sizes: &HashMap<Sym, i64>) -> Result<Bound, Error> {
    let mut all = sizes.clone();
    all.extend(plan.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))));
    let eval = |dim: &Dim| dim.eval(&|sym| all.get(sym).copied());
    let name = &plan.funcs[func].name;
    let mut bound = Bound { func, funcs: HashMap::new(), launches: HashMap::new(), arena: 0 };
    // Callees come before their callers: walk from the function down.
    let mut wanted = vec![func];
    while let Some(next) = wanted.pop() {
        if bound.funcs.contains_key(&next.index()) {
            continue;
        }
        let body = plan.funcs[next].choose(&eval);
        let f = plan.funcs[next].body(body);
        if !plan.funcs[next].alternatives.is_empty() {
            tracing::debug!(function = plan.funcs[next].name, body = f.name, "chosen for these lengths");
        }
        let layout = f.layout(&eval).ok_or_else(|| Error::TooLarge(format!("@{name}")))?;
        let mut runs = Vec::with_capacity(f.steps.len());
        for step in &f.steps {
            runs.push(match step {
                Step::Call { func, .. } => {
                    wanted.push(*func);
                    true
                }
                Step::Launch { when: Some(when), .. } if when.holds(&eval) == Some(false) => false,
                Step::Launch { kernel, bases, name, .. } => {
                    let launch = bind_launch(f, &plan.kernels[*kernel], bases, name, &all)?;
                    bound.launches.insert(kernel.index(), launch);
                    true
                }
            });
        }
        bound.funcs.insert(next.index(), BoundFunc { body, layout, runs });
    }
    let bytes = plan.arena_bytes(func, &eval);
    bound.arena = bytes.ok_or_else(|| Error::TooLarge(format!("@{name}")))?;
    Ok(bound)
}

/// The extents' values for one kernel; checks that every buffer's elements are inside their base.
fn bind_launch(
    f: &FuncPlan,
    kernel: &Kernel,
    bases: &[usize],
    name: &str,
    sizes: &HashMap<Sym, i64>,
) -> Result<Launch, Error> {
    let unknown = |what: &str| Error::Internal(format!("kernel `{name}`: {what} has no value"));
    let eval = |dim: &Dim| dim.eval(&|sym| sizes.get(sym).copied()).ok_or_else(|| unknown(&dim.to_string()));
    for ((_, buf), &base) in kernel.bufs.iter().zip(bases) {
        let Some(last) = last_element(buf, &eval)? else { continue };
        let elements = match &f.bases[base] {
            Base::Param(i) if f.params[*i].is_cache() => state_elements(&f.params[*i].ty.shape, &eval)?,
            Base::Param(i) => eval(&f.params[*i].ty.elements())?,
            Base::Result(i) => eval(&f.results[*i].ty.elements())?,
            Base::Temp(temp) => eval(&temp.bytes)? / buf.dtype.bytes(),
            Base::Constant(_, array) => array.data.len() as i64,
        };
        if last < 0 || last >= elements {
            let message =
                format!("kernel `{name}` reaches element {last} of `{}`, which has {elements}", buf.name);
            return Err(Error::Internal(message));
        }
    }
    let syms: Vec<i64> = kernel
        .syms()
        .iter()
        .map(|sym| sizes.get(sym).copied().ok_or_else(|| unknown(sym.as_str())))
        .collect::<Result<_, _>>()?;
    let programs = programs(kernel, &eval)?;
    Ok(Launch { syms, programs })
}

/// The number of a buffer's last element, from its base; `None` if it has no elements.
pub(crate) fn last_element(
    buf: &BufData,
    eval: &dyn Fn(&Dim) -> Result<i64, Error>,
) -> Result<Option<i64>, Error> {
    let mut last = eval(&buf.offset)?;
    for (dim, stride) in buf.shape.iter().zip(&buf.strides) {
        let n = eval(dim)?;
        if n <= 0 {
            return Ok(None);
        }
        let reach = (n - 1).checked_mul(eval(stride)?).and_then(|reach| reach.checked_add(last));
        last = reach.ok_or_else(|| Error::TooLarge(format!("`{}`", buf.name)))?;
    }
    Ok(Some(last))
}

/// How many programs a kernel's grid has.
pub(crate) fn programs(kernel: &Kernel, eval: &dyn Fn(&Dim) -> Result<i64, Error>) -> Result<i64, Error> {
    let mut programs = 1i64;
    for axis in &kernel.grid {
        let extent = eval(&axis.extent)?.max(0);
        let tiles = extent / axis.tile + i64::from(extent % axis.tile > 0);
        let all = programs.checked_mul(tiles);
        programs = all.ok_or_else(|| Error::TooLarge(format!("the grid of `{}`", kernel.name)))?;
    }
    Ok(programs)
}

/// The elements of a state's buffer: its second axis has room for the capacity.
pub(crate) fn state_elements(shape: &[Dim], eval: &dyn Fn(&Dim) -> Result<i64, Error>) -> Result<i64, Error> {
    let mut elements = eval(&shape[0])?.saturating_mul(eval(&Dim::sym(CAPACITY))?);
    for dim in &shape[2..] {
        elements = elements.saturating_mul(eval(dim)?);
    }
    Ok(elements)
}

/// The buffers of a run, as addresses on whatever device it is for.
#[derive(Clone, Copy)]
pub(crate) struct Addresses<'a> {
    /// One for each parameter.
    pub params: &'a [*mut u8],
    /// One for each result; null for states'.
    pub results: &'a [*mut u8],
    /// The arena.
    pub arena: *mut u8,
}

/// A constant: its function, the function's body, and the base.
pub(crate) type ConstantAt = (usize, usize, usize);

/// What [`walk`] does with a launch: the kernel's number, the addresses of its buffers, the rest, and what it is called.
pub(crate) type OnLaunch<'a> = dyn FnMut(usize, &[*mut u8], &Launch, &str) -> Result<(), Error> + 'a;

/// Goes through the steps of a run in their order, and hands each launch to `launch`. `constant` has the address of
/// each constant, by function, body and base.
pub(crate) fn walk(
    plan: &Plan,
    bound: &Bound,
    func: Func,
    at: Addresses,
    constant: &dyn Fn(ConstantAt) -> *mut u8,
    launch: &mut OnLaunch,
) -> Result<(), Error> {
    let BoundFunc { body, layout, runs } = &bound.funcs[&func.index()];
    let f = plan.funcs[func].body(*body);
    let address = |(i, base): (usize, &Base)| match base {
        Base::Param(p) => at.params[*p],
        Base::Result(r) => at.results[*r],
        Base::Temp(_) => at.arena.wrapping_add(layout.offsets[i].unwrap_or(0)),
        Base::Constant(..) => constant((func.index(), *body, i)),
    };
    let addresses: Vec<*mut u8> = f.bases.iter().enumerate().map(address).collect();
    let mut bufs = Vec::new();
    for (step, _) in f.steps.iter().zip(runs).filter(|(_, runs)| **runs) {
        match step {
            Step::Launch { kernel, bases, name, .. } => {
                bufs.clear();
                bufs.extend(bases.iter().map(|&base| addresses[base]));
                launch(kernel.index(), &bufs, &bound.launches[&kernel.index()], name)?;
            }
            Step::Call { func, args, results, name } => {
                let params: Vec<*mut u8> = args.iter().map(|&base| addresses[base]).collect();
                let null = std::ptr::null_mut();
                let results: Vec<*mut u8> =
                    results.iter().map(|base| base.map_or(null, |b| addresses[b])).collect();
                // The callee's part of the arena follows this function's.
                let arena = at.arena.wrapping_add(layout.bytes);
                let at = Addresses { params: &params, results: &results, arena };
                walk(plan, bound, *func, at, constant, launch).map_err(|error| match error {
                    Error::NotFinite(mut found) => {
                        found.calls.insert(0, name.clone());
                        Error::NotFinite(found)
                    }
                    error => error,
                })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use eva_ir::kernel::{Access, GridAxis, Phase};
    use eva_ir::types::DType;

    fn known(dim: &Dim) -> Result<i64, Error> {
        let value = dim.eval(&|sym| (sym.as_str() == "s").then_some(7));
        value.ok_or_else(|| Error::Internal(format!("{dim} is not known")))
    }

    fn dims(list: &[i64]) -> Vec<Dim> {
        list.iter().map(|&n| Dim::from(n)).collect()
    }

    #[test]
    fn a_buffer_reaches_to_its_last_element() {
        let mut buf = BufData {
            name: "x".into(),
            dtype: DType::Bf16,
            access: Access::Read,
            shape: vec![Dim::sym("s"), Dim::from(5)],
            strides: dims(&[13, 1]),
            offset: Dim::from(11),
            scaled: None,
        };
        assert_eq!(last_element(&buf, &known).unwrap(), Some(11 + 6 * 13 + 4));
        buf.strides[0] = Dim::from(i64::MAX / 2);
        assert!(matches!(last_element(&buf, &known), Err(Error::TooLarge(_))));
        buf.strides[0] = Dim::sym("unknown");
        assert!(matches!(last_element(&buf, &known), Err(Error::Internal(_))));
        buf.shape[0] = Dim::from(0);
        assert_eq!(last_element(&buf, &known).unwrap(), None);
    }

    #[test]
    fn a_grid_has_a_program_for_each_begun_tile() {
        let count = |axes: &[(Dim, i64)]| {
            let kernel = Kernel {
                name: "k".into(),
                phase: Phase::Block,
                bufs: Default::default(),
                scratch: Default::default(),
                block: None,
                grid: axes
                    .iter()
                    .map(|(extent, tile)| GridAxis { extent: extent.clone(), tile: *tile })
                    .collect(),
                regs: Default::default(),
                body: Vec::new(),
            };
            programs(&kernel, &known)
        };
        assert_eq!(count(&[]).unwrap(), 1);
        assert_eq!(count(&[(Dim::sym("s"), 3), (Dim::from(11), 4)]).unwrap(), 3 * 3);
        assert_eq!(count(&[(Dim::from(6), 3), (Dim::from(0), 4)]).unwrap(), 0);
        assert_eq!(count(&[(Dim::from(i64::MAX), 2)]).unwrap(), i64::MAX / 2 + 1);
        assert!(matches!(count(&[(Dim::from(i64::MAX), 2), (Dim::from(3), 1)]), Err(Error::TooLarge(_))));
    }
}
