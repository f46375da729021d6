//! Runs a plan by the kernel interpreter, in either phase: between the evaluator, which is what a module
//! means, and the machine code of a backend. For tests, and for machines that have no backend.

use crate::plan::{Base, CAPACITY, Plan, Step};
use eva_ir::dim::{Dim, Sym};
use eva_ir::eval::{Array, Sizes};
use eva_ir::graph::Func;
use eva_ir::kernel::run::{Options, Stats, Storage, run};
use eva_ir::kernel::{Kernel, Phase};
use eva_ir::types::TensorType;
use std::collections::HashMap;

/// What the interpreter counted, for each kernel launched: its name, elements loaded and stored by buffer name.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// One entry a launch.
    pub launches: Vec<Launch>,
}

/// One launch's traffic.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: String,
    /// Elements loaded, by the buffer's name.
    pub loaded: Vec<(String, u64)>,
    /// Elements stored, by the buffer's name.
    pub stored: Vec<(String, u64)>,
}

/// How to interpret a plan.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Which kernels to run.
    pub phase: Phase,
    /// Rows that states have room for beyond the extent they are given with.
    pub slack: usize,
    /// What the kernel interpreter is told.
    pub options: Options,
}

/// Runs `func` on one array a parameter (a state's without room to grow), and returns its results; states' come
/// in the shape they were given in. What is prepared when a function is loaded is no argument, and not in the traffic.
pub fn interpret(
    plan: &Plan,
    func: Func,
    sizes: &Sizes,
    args: &[Array],
    how: &How,
) -> Result<(Vec<Array>, Traffic), String> {
    let mut run = |kernel: &Kernel, sizes: &Extents, storages: &mut [Storage], binding: &[usize]| {
        run(kernel, sizes, storages, binding, how.options).map_err(|e| e.to_string())
    };
    interpret_with(plan, func, sizes, args, how, &mut run)
}

/// Values of extents.
pub type Extents<'a> = dyn Fn(&Sym) -> Option<i64> + 'a;

/// Runs a kernel as [`run`] does: given extents, storages, and the number of each buffer's storage.
pub type Runner<'a> = dyn FnMut(&Kernel, &Extents, &mut [Storage], &[usize]) -> Result<Stats, String> + 'a;

/// Like [`interpret`], each kernel being run by `runner`.
pub fn interpret_with(
    plan: &Plan,
    func: Func,
    sizes: &Sizes,
    args: &[Array],
    how: &How,
    runner: &mut Runner,
) -> Result<(Vec<Array>, Traffic), String> {
    let f = &plan.funcs[func];
    let args = &with_prepared(plan, func, sizes, args, how, runner)?;
    let mut env = sizes.0.clone();
    env.extend(plan.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))));
    let (storages, traffic) = (Vec::new(), Traffic::default());
    let mut machine = Machine { plan, env, how, runner, storages, traffic };
    let tokens = f.params.iter().zip(args).filter(|(p, _)| p.is_cache()).map(|(_, a)| a.shape[1]);
    let capacity = tokens.max().unwrap_or(0) + how.slack;
    machine.env.insert(CAPACITY.into(), capacity as i64);

    let mut params = Vec::new();
    for (param, arg) in f.params.iter().zip(args) {
        let roomy = if param.is_cache() { resize_rows(arg, capacity) } else { arg.clone() };
        params.push(machine.storage(Storage::new(param.ty.dtype, roomy.data)));
    }
    let mut results = Vec::new();
    for result in &f.results {
        results.push(match result.state {
            Some(param) => params[param],
            None => {
                let len = machine.elements(&result.ty)?;
                machine.storage(Storage::unwritten(result.ty.dtype, len))
            }
        });
    }
    machine.run(func, &params, &results)?;
    let mut arrays = Vec::new();
    for (result, &at) in f.results.iter().zip(&results) {
        let shape: Vec<usize> = result.ty.shape.iter().map(|d| machine.size(d)).collect::<Result<_, _>>()?;
        let data = machine.storages[at].data.clone();
        arrays.push(match result.state {
            Some(param) if f.params[param].is_cache() => {
                let mut roomy = shape.clone();
                roomy[1] = capacity;
                resize_rows(&Array::new(&roomy, data), shape[1])
            }
            _ => Array::new(&shape, data),
        });
    }
    Ok((arrays, machine.traffic))
}

/// The arguments with those that are prepared.
fn with_prepared(
    plan: &Plan,
    func: Func,
    sizes: &Sizes,
    args: &[Array],
    how: &How,
    runner: &mut Runner,
) -> Result<Vec<Array>, String> {
    let f = &plan.funcs[func];
    let Some(prepare) = f.prepare else { return Ok(args.to_vec()) };
    let given: HashMap<&str, &Array> = f.given().map(|param| param.name.as_str()).zip(args).collect();
    let weights: Vec<Array> =
        plan.funcs[prepare].params.iter().map(|param| given[param.name.as_str()].clone()).collect();
    let (results, _) = interpret_with(plan, prepare, sizes, &weights, how, runner)?;
    let mut args = args.iter();
    let all = f.params.iter().map(|param| match &param.prepared {
        Some(prepared) => results.get(prepared.result),
        None => args.next(),
    });
    all.map(|array| array.cloned().ok_or_else(|| format!("@{} has more parameters than arguments", f.name)))
        .collect()
}

/// The array with its second axis cut or filled up with NaN to `n`.
fn resize_rows(array: &Array, n: usize) -> Array {
    let mut shape = array.shape.clone();
    let old = std::mem::replace(&mut shape[1], n);
    Array::from_fn(&shape, |index| if index[1] < old { array.at(index) } else { f64::NAN })
}

struct Machine<'a, 'r> {
    plan: &'a Plan,
    env: HashMap<Sym, i64>,
    how: &'a How,
    runner: &'a mut Runner<'r>,
    storages: Vec<Storage>,
    traffic: Traffic,
}

impl Machine<'_, '_> {
    fn storage(&mut self, storage: Storage) -> usize {
        self.storages.push(storage);
        self.storages.len() - 1
    }

    fn size(&self, dim: &Dim) -> Result<usize, String> {
        let n = dim.eval(&|sym| self.env.get(sym).copied()).and_then(|n| usize::try_from(n).ok());
        n.ok_or_else(|| format!("the extent {dim} has no value"))
    }

    fn elements(&self, ty: &TensorType) -> Result<usize, String> {
        self.size(&ty.elements())
    }

    fn run(&mut self, func: Func, params: &[usize], results: &[usize]) -> Result<(), String> {
        let plan = self.plan;
        let f = &plan.funcs[func];
        let f = f.body(f.choose(&|dim| self.size(dim).ok().map(|n| n as i64)));
        let mut bases = Vec::new();
        for base in &f.bases {
            bases.push(match base {
                Base::Param(i) => params[*i],
                Base::Result(i) => results[*i],
                // Typed by the first kernel that uses it.
                Base::Temp(_) => usize::MAX,
                Base::Constant(dtype, array) => {
                    self.storage(Storage::new(*dtype, array.data.iter().copied()))
                }
            });
        }
        for step in &f.steps {
            match step {
                Step::Launch { when: Some(when), .. }
                    if !when.holds(&|dim| self.size(dim).ok().map(|n| n as i64)).unwrap_or(false) => {}
                Step::Launch { kernel, bases: used, name, .. } => {
                    let kernel = match self.how.phase {
                        Phase::Tile => &plan.tiles[*kernel],
                        Phase::Lane | Phase::Block => &plan.kernels[*kernel],
                    };
                    for ((_, buf), &base) in kernel.bufs.iter().zip(used) {
                        if let (Base::Temp(temp), usize::MAX) = (&f.bases[base], bases[base]) {
                            let len = self.size(&temp.bytes)? / buf.dtype.bytes() as usize;
                            bases[base] = self.storage(Storage::unwritten(buf.dtype, len));
                        }
                    }
                    let binding: Vec<usize> = used.iter().map(|&base| bases[base]).collect();
                    let env = &self.env;
                    let sizes = |sym: &Sym| env.get(sym).copied();
                    let stats = (self.runner)(kernel, &sizes, &mut self.storages, &binding)
                        .map_err(|e| format!("kernel `{name}`: {e}\n{kernel}"))?;
                    let by_name = |counts: &[u64]| {
                        kernel.bufs.iter().zip(counts).map(|((_, buf), &n)| (buf.name.clone(), n)).collect()
                    };
                    let (loaded, stored) = (by_name(&stats.loaded), by_name(&stats.stored));
                    self.traffic.launches.push(Launch { kernel: name.clone(), loaded, stored });
                }
                Step::Call { func, args, results, .. } => {
                    let callee = &plan.funcs[*func];
                    for (i, result) in results.iter().enumerate() {
                        if let Some(base) = result
                            && bases[*base] == usize::MAX
                        {
                            let ty = &callee.results[i].ty;
                            let len = self.elements(ty)?;
                            bases[*base] = self.storage(Storage::unwritten(ty.dtype, len));
                        }
                    }
                    let args: Vec<usize> = args.iter().map(|&base| bases[base]).collect();
                    let state = |i: usize| callee.results[i].state.map_or(usize::MAX, |param| args[param]);
                    let results: Vec<usize> = results
                        .iter()
                        .enumerate()
                        .map(|(i, base)| base.map_or(state(i), |b| bases[b]))
                        .collect();
                    self.run(*func, &args, &results)?;
                }
            }
        }
        Ok(())
    }
}
