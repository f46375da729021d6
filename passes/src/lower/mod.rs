//! From graphs to kernels: which ops share one, where tensors lie, and in what order it all happens.
//!
//! A kernel is an op that owns its loops, with the element-wise ops fused behind it; or, where no op owns
//! loops, a value and the element-wise and re-indexing ops before it, one row of the result a program.
//! [`fuse`] decides what is stored; `kernel` writes one kernel; this module walks over a function and
//! lays out its buffers. Reshapes and slices of stored tensors are other views of the same bytes.

pub mod fuse;
mod kernel;
mod pages;
mod prepare;
mod scaled;
mod share;
mod sort;
mod variants;

use crate::Error;
use crate::plan::{Base, CAPACITY, FuncPlan, ParamPlan, Plan, ResultPlan, Step, Temp, When};
use crate::target::Target;
use eva_ir::attr::Dims;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::{Arena, Entity};
use eva_ir::estimate::Estimate;
use eva_ir::eval::Sizes;
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value};
use eva_ir::kernel::Kernel;
use eva_ir::lower::{BufView, LowerError, Lowering};
use eva_ir::ops::Op;
use eva_ir::ops::reshape::Reshape;
use eva_ir::types::{DType, TensorType};
use eva_ir::verify::{self, StateResults};
use fuse::Fusion;
use share::Kernels;
use std::collections::HashMap;

/// Lowers every function of a verified module; the plan's kernels are in the tile phase only.
pub fn lower(module: &Module, target: &Target) -> Result<Plan, Error> {
    let (mut kernels, mut funcs) = (Kernels::default(), Arena::default());
    for (func, states) in verify::state_results(module).iter() {
        let f = &module.funcs[func];
        let mut bodies = f.bodies().map(|(body, estimate)| {
            let lower = FnLower::new(module, target, &f.name, body, &funcs, &mut kernels);
            Ok(FuncPlan { estimate: estimate.clone(), ..lower.run(states)? })
        });
        let mut base = bodies.next().expect("a function has a body")?;
        let alternatives = bodies.collect::<Result<Vec<_>, _>>()?;
        for other in &alternatives {
            base.params.iter_mut().zip(&other.params).for_each(|(param, other)| param.needed |= other.needed);
        }
        funcs.push(FuncPlan { alternatives, ..base });
    }
    let mut plan = Plan {
        tiles: kernels.finish(),
        kernels: Arena::default(),
        funcs,
        dims: module.dims.clone(),
        statistics: Vec::new(),
    };
    prepare::link(module, &mut plan);
    Ok(plan)
}

/// One function on its way to a plan.
struct FnLower<'a> {
    module: &'a Module,
    target: &'a Target,
    /// The function's name, which is in the names of kernels of all its bodies.
    name: &'a str,
    /// The body.
    f: &'a Function,
    fusion: Fusion,
    kernels: &'a mut Kernels,
    callees: &'a Arena<Func, FuncPlan>,
    /// The values of the extents that are fixed.
    sizes: HashMap<&'a Sym, i64>,
    /// The parts of each value that is in memory; a parameter that is only passed on has no need of any.
    homes: HashMap<Value, Vec<BufView>>,
    /// What is quantized in the kernel of an op with loops, and where that goes.
    behind: HashMap<Value, (Value, BufView)>,
    aligned: Vec<kernel::Aligned>,
    bases: Vec<Base>,
    /// The base of each result that has one.
    result_bases: Vec<Option<usize>>,
    steps: Vec<Step>,
}

impl<'a> FnLower<'a> {
    fn new(
        module: &'a Module,
        target: &'a Target,
        name: &'a str,
        f: &'a Function,
        callees: &'a Arena<Func, FuncPlan>,
        kernels: &'a mut Kernels,
    ) -> Self {
        Self {
            module,
            target,
            name,
            f,
            fusion: Fusion::new(module, f, &target.machine),
            kernels,
            callees,
            sizes: module.dims.iter().filter_map(|(sym, n)| Some((sym, (*n)?))).collect(),
            homes: HashMap::with_capacity(f.values.len()),
            behind: HashMap::new(),
            aligned: Vec::new(),
            bases: Vec::new(),
            result_bases: vec![None; f.results.len()],
            steps: Vec::new(),
        }
    }

    fn run(mut self, states: &StateResults) -> Result<FuncPlan, Error> {
        self.check_types()?;
        let mut params = Vec::new();
        for (value, kind) in self.f.params() {
            let ty = self.tensor(value).clone();
            let base = self.bases.len();
            self.bases.push(Base::Param(params.len()));
            let name = self.f.values[value].name.clone();
            if !self.fusion.is_passed_on(self.f, value) {
                self.homes.insert(value, vec![self.param_home(value, kind)]);
            }
            let paged = kind == ParamKind::State && self.is_pool(value);
            let whole = kind == ParamKind::State && verify::is_assigned(self.module, self.f, value);
            let (needed, prepared, scales) = (false, None, None);
            params.push(ParamPlan { name, kind, ty, base, paged, whole, needed, prepared, scales });
        }
        self.scales_of_params(&mut params)?;
        for (value, _) in self.f.values.iter() {
            self.value(value).map_err(|e| self.unsupported(value, e))?;
        }
        let mut results = Vec::new();
        for (i, &value) in self.f.results.iter().enumerate() {
            let name = self.f.values[value].name.clone();
            let ty = self.tensor(value).clone();
            // Parameters come first, so a parameter's number is its index.
            let state = states.iter().find(|(_, at)| *at == Some(i)).map(|(param, _)| param.index());
            if state.is_none() {
                self.place_result(i, value).map_err(|e| self.unsupported(value, e))?;
            }
            results.push(ResultPlan { name, ty, state, scales: None });
        }
        self.scales_of_results(&params, &mut results);
        self.find_lifetimes();
        self.find_needed(&mut params);
        let (name, estimate, alternatives) = (self.f.name.clone(), Estimate::default(), Vec::new());
        let (prepare, bases, steps) = (None, self.bases, self.steps);
        Ok(FuncPlan { name, params, prepare, results, bases, steps, estimate, alternatives })
    }

    /// Turns one value into steps, unless it is fused into others.
    fn value(&mut self, value: Value) -> Result<(), LowerError> {
        let data = &self.f.values[value];
        let (op, args) = match &data.def {
            Def::Param(_) => return Ok(()),
            Def::Call(func, args) => return self.call(value, *func, args),
            Def::Op(op, args) => (op, args),
        };
        if let Op::Get(get) = op {
            let part = self.homes[&args[0]][get.index as usize].clone();
            self.homes.insert(value, vec![part]);
            return Ok(());
        }
        if let (Op::Assign(_), Some(_)) = (op, self.fusion.in_place(*args.last().unwrap_or(&value))) {
            let home = self.home(args[0]);
            self.homes.insert(value, vec![home]);
            return Ok(());
        }
        let is_fixed = |dim: &Dim| self.module.constant(dim).is_some();
        match op.lowering() {
            Lowering::Pointwise
                if matches!(op, Op::Full(_))
                    && self.fusion.is_stored(value)
                    && self.fusion.chain_ending_at(value).is_none()
                    && self.tensor(value).shape.iter().all(is_fixed) =>
            {
                self.constant(value, op)
            }
            Lowering::Constant => self.constant(value, op),
            Lowering::Alias => self.alias(value, op, args[0]),
            // Quantized where it was computed, or transposed where it is quantized.
            Lowering::Kernel if self.homes.contains_key(&value) || self.fusion.is_turned(value) => Ok(()),
            Lowering::Kernel => match self.fusion.chain_of(value) {
                Some([]) => self.kernel(value, &[]),
                _ => Ok(()),
            },
            Lowering::Pointwise | Lowering::View => match self.fusion.chain_ending_at(value) {
                Some((root, chain)) => self.kernel(root, &chain),
                None if self.fusion.is_stored(value) => self.rows(value),
                None => Ok(()),
            },
        }
    }

    fn call(&mut self, value: Value, func: Func, args: &[Value]) -> Result<(), LowerError> {
        let callee = &self.callees[func];
        let mut bases = Vec::with_capacity(args.len());
        for (&arg, param) in args.iter().zip(&callee.params) {
            bases.push(match self.homes.get(&arg).map(|homes| &homes[0]) {
                None => arg.index(),
                Some(home) if param.kind == ParamKind::State => home.base,
                Some(home) => self.packed(home.clone(), self.tensor(arg))?.base,
            });
        }
        for (&arg, param) in args.iter().zip(&callee.params) {
            if param.scales.is_some() {
                bases.push(self.scales_base(arg, param.kind)?);
            }
        }
        let (mut homes, mut results) = (Vec::new(), Vec::new());
        let own = self.module.funcs[func].results.len();
        for (i, result) in callee.results[..own].iter().enumerate() {
            match result.state {
                Some(param) => {
                    homes.push(self.home(args[param]));
                    results.push(None);
                }
                None => {
                    let name = format!("{}.{}", self.f.values[value].name, result.name);
                    let base = match self.part_of_result(value, i) {
                        Some(j) => self.result_base(j),
                        None => self.temp(&name, &result.ty),
                    };
                    homes.push(self.row_major(base, &name, &result.ty));
                    results.push(Some(base));
                }
            }
        }
        results.extend(self.called_scales(value, &callee.results, &mut homes));
        self.homes.insert(value, homes);
        let name = self.f.values[value].name.clone();
        self.steps.push(Step::Call { func, args: bases, results, name });
        Ok(())
    }

    fn constant(&mut self, value: Value, op: &Op) -> Result<(), LowerError> {
        let fixed = self.module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
        let sizes = Sizes(fixed.collect());
        let ty = self.tensor(value).clone();
        let dims = op.attrs().into_iter().flat_map(|attr| match attr {
            eva_ir::attr::Attr::Dims(dims) => dims.0,
            _ => Vec::new(),
        });
        if let Some(dim) = dims.chain(ty.shape.iter().cloned()).find(|dim| sizes.get(dim).is_none()) {
            let message = format!("`{}` needs fixed extents: give `{dim}` a value", op.kind().name());
            return Err(LowerError::new(message));
        }
        let array = op.eval(&sizes, &[]).remove(0);
        let base = self.bases.len();
        self.bases.push(Base::Constant(ty.dtype, array));
        let home = self.row_major(base, &self.f.values[value].name, &ty);
        self.homes.insert(value, vec![home]);
        Ok(())
    }

    /// Another view of the same bytes, or of a packed copy where strides cannot say it.
    fn alias(&mut self, value: Value, op: &Op, arg: Value) -> Result<(), LowerError> {
        if let Op::PageRead(_) = op {
            return self.page_read(value);
        }
        let view = self.home(arg);
        // Extents are compared with those of the view, which are fixed where they can be.
        let op = &match op {
            Op::Reshape(reshape) => {
                let shape = Dims(reshape.shape.0.iter().map(|dim| self.fix(dim)).collect());
                Op::Reshape(Reshape { shape })
            }
            op => op.clone(),
        };
        let found = match op.alias(&view).map(|view| self.fix_view(view)) {
            Some(found) => found,
            None => {
                let copy = self.packed(view, self.tensor(arg))?;
                op.alias(&copy)
                    .map(|view| self.fix_view(view))
                    .ok_or_else(|| LowerError::new("no view of the operand will do"))?
            }
        };
        if self.fusion.is_copied(value) && found.scales.is_none() {
            let (ty, name) = (self.tensor(value).clone(), self.f.values[value].name.clone());
            let base = self.temp(&name, &ty);
            let copy = self.row_major(base, &name, &ty);
            self.copy(&found, &copy)?;
            self.homes.insert(value, vec![copy]);
            return Ok(());
        }
        self.homes.insert(value, vec![found]);
        Ok(())
    }

    /// A tensor of type `ty` in row-major order without an offset: itself, or a copy.
    fn packed(&mut self, view: BufView, ty: &TensorType) -> Result<BufView, LowerError> {
        if ty.scales.is_some() {
            return self.packed_scaled(view, ty);
        }
        // What is 8-bit floats in memory is no tensor of the numbers that they stand for.
        if is_packed(&view) && view.scales.is_none() {
            return Ok(view);
        }
        let dtype = if view.scales.is_some() { ty.dtype } else { view.dtype };
        let ty = TensorType::new(dtype, view.shape.iter().cloned());
        let name = format!("{}_packed", view.name);
        let base = self.temp(&name, &ty);
        let copy = self.row_major(base, &name, &ty);
        self.copy(&view, &copy)?;
        Ok(copy)
    }

    /// Sees to it that the buffer of result `i` holds `value`.
    fn place_result(&mut self, i: usize, value: Value) -> Result<(), LowerError> {
        let home = self.home(value);
        if matches!(self.bases[home.base], Base::Result(j) if j == i) {
            return Ok(());
        }
        let ty = self.tensor(value).clone();
        let base = self.result_base(i);
        let target = self.row_major(base, &self.f.values[value].name, &ty);
        if ty.scales.is_some() {
            let scales = self.result_scales_base(i);
            return self.copy_scaled(&home, &self.scaled_home(target, &ty, scales, false), &ty);
        }
        self.copy(&home, &target)
    }

    /// Where a tensor in memory lies.
    fn home(&self, value: Value) -> BufView {
        match (self.homes.get(&value), &self.f.values[value].def) {
            (None, Def::Param(kind)) => self.param_home(value, *kind),
            _ => self.homes[&value][0].clone(),
        }
    }

    /// How a parameter lies in memory: row-major; a state's sequences have room for the capacity's tokens. Parameters
    /// come first, so the place of one among the buffers is its own.
    fn param_home(&self, value: Value, kind: ParamKind) -> BufView {
        let mut view = self.row_major(value.index(), &self.f.values[value].name, self.tensor(value));
        let cache = kind == ParamKind::State && !verify::is_assigned(self.module, self.f, value);
        if cache && view.shape.len() >= 2 && !self.is_pool(value) {
            view.strides[0] = &Dim::sym(CAPACITY) * &view.strides[1];
        }
        if self.tensor(value).scales.is_some() {
            return self.scaled_param(value, view);
        }
        view
    }

    /// Where a value about to be computed shall lie: in the state or the result that it is or becomes, or in the arena.
    fn new_home(&mut self, value: Value, part: usize) -> BufView {
        if let Some(state) = self.fusion.in_place(value) {
            return self.home(state);
        }
        let ty = self.f.values[value].ty.parts()[part].clone();
        let name = self.f.values[value].name.clone();
        let slot = if self.f.values[value].ty.tensor().is_some() {
            self.fusion.result_slot(self.f, value)
        } else {
            self.part_of_result(value, part)
        };
        let base = match slot {
            Some(i) => self.result_base(i),
            None => self.temp(&name, &ty),
        };
        let home = self.row_major(base, &name, &ty);
        if ty.scales.is_some() { self.new_scaled(value, home, &ty, slot) } else { home }
    }

    /// The result that part `part` of the tuple `value` is, where nothing else has claimed its buffer.
    fn part_of_result(&self, value: Value, part: usize) -> Option<usize> {
        let is_part = |v: Value| match &self.f.values[v].def {
            Def::Op(Op::Get(get), args) => args[0] == value && get.index as usize == part,
            _ => false,
        };
        let whole = |v: Value| v == value && self.f.values[value].ty.tensor().is_some();
        let i = self.f.results.iter().position(|&v| is_part(v) || whole(v))?;
        self.result_bases[i].is_none().then_some(i)
    }

    fn result_base(&mut self, i: usize) -> usize {
        *self.result_bases[i].get_or_insert_with(|| {
            self.bases.push(Base::Result(i));
            self.bases.len() - 1
        })
    }

    fn temp(&mut self, name: &str, ty: &TensorType) -> usize {
        self.temp_when(name, ty, None)
    }

    /// [`Self::temp`] that is used for some extents only.
    fn temp_when(&mut self, name: &str, ty: &TensorType, when: Option<When>) -> usize {
        let bytes = ty.shape.iter().fold(Dim::from(ty.dtype.bytes()), |bytes, dim| bytes * self.fix(dim));
        self.bases.push(Base::Temp(Temp { name: name.into(), bytes, first: usize::MAX, last: 0, when }));
        self.bases.len() - 1
    }

    fn row_major(&self, base: usize, name: &str, ty: &TensorType) -> BufView {
        BufView::row_major(base, name, ty.dtype, &self.fixed_type(ty).shape)
    }

    /// The extent with the values of fixed symbols put in.
    fn fix(&self, dim: &Dim) -> Dim {
        dim.substitute(&|sym| self.sizes.get(sym).copied().map(Dim::from))
    }

    fn fix_view(&self, view: BufView) -> BufView {
        let fix = |dims: &[Dim]| dims.iter().map(|d| self.fix(d)).collect();
        BufView {
            shape: fix(&view.shape),
            strides: fix(&view.strides),
            offset: self.fix(&view.offset),
            scales: view.scales.map(|scales| Box::new(self.fix_scales(*scales))),
            pages: view.pages.map(|pages| {
                let eva_ir::lower::Pages { count, rows, step, table } = *pages;
                let (count, step, table) = (self.fix(&count), self.fix(&step), self.fix_view(table));
                Box::new(eva_ir::lower::Pages { count, rows, step, table })
            }),
            ..view
        }
    }

    fn fixed_type(&self, ty: &TensorType) -> TensorType {
        let shape = ty.shape.iter().map(|d| self.fix(d)).collect();
        TensorType { dtype: ty.dtype, shape, scales: ty.scales.clone() }
    }

    fn tensor(&self, value: Value) -> &'a TensorType {
        self.f.tensor(value).expect("the verifier has checked that this is a tensor")
    }

    fn check_types(&self) -> Result<(), Error> {
        for (value, data) in self.f.values.iter() {
            let bad = data.ty.parts().iter().find(|ty| ty.dtype == DType::F64);
            if let Some(ty) = bad {
                let message = format!(
                    "{} is not compiled for {}: only the evaluator has it",
                    ty.dtype, self.target.name
                );
                return Err(self.unsupported(value, LowerError::new(message)));
            }
        }
        Ok(())
    }

    fn unsupported(&self, value: Value, error: LowerError) -> Error {
        Error::Unsupported {
            function: self.name.into(),
            value: self.f.values[value].name.clone(),
            message: error.message,
        }
    }

    /// Fills in which parameters a call looks at; what a callee does not is not needed for its sake.
    fn find_needed(&self, params: &mut [ParamPlan]) {
        let mut need = |base: usize| {
            if let Base::Param(i) = self.bases[base] {
                params[i].needed = true;
            }
        };
        for step in &self.steps {
            match step {
                Step::Launch { bases, .. } => bases.iter().for_each(|&base| need(base)),
                Step::Call { func, args, .. } => {
                    let needed =
                        args.iter().zip(&self.callees[*func].params).filter(|(_, param)| param.needed);
                    needed.for_each(|(&base, _)| need(base));
                }
            }
        }
    }

    /// Fills in which steps each temporary lives through.
    fn find_lifetimes(&mut self) {
        for (i, step) in self.steps.iter().enumerate() {
            let (used, results) = match step {
                Step::Launch { bases, .. } => (bases, &[][..]),
                Step::Call { args, results, .. } => (args, results.as_slice()),
            };
            for &base in used.iter().chain(results.iter().flatten()) {
                if let Base::Temp(temp) = &mut self.bases[base] {
                    temp.first = temp.first.min(i);
                    temp.last = temp.last.max(i);
                }
            }
        }
    }

    /// Adds a finished kernel and the step that runs it.
    fn launch(&mut self, kernel: Kernel, bases: Vec<usize>, when: Option<When>) {
        let name = kernel.name.clone();
        let kernel = self.kernels.add(kernel);
        self.steps.push(Step::Launch { kernel, bases, name, when });
    }
}

/// Whether a tensor is in row-major order without an offset.
fn is_packed(view: &BufView) -> bool {
    view.offset == Dim::from(0) && view.is_row_major()
}
