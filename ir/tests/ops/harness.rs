//! Lowers a single op and runs its kernel in the interpreter.

use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::Entity;
use eva_ir::eval::{Array, Sizes};
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::run::{Options, Order, Storage, run};
use eva_ir::kernel::{Access, Buf, BufData, Elem, Kernel};
use eva_ir::lower::{BufView, Cx, LowerError, Lowering, Request, Schedule, SortSchedule, TileFn, View};
use eva_ir::ops::Op;
use eva_ir::types::{DType, TensorType};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// One op, the types of its operands, and the extents.
pub struct Case<'a> {
    op: Op,
    types: Vec<TensorType>,
    /// Extents with a value at compile time.
    fixed: BTreeMap<&'a str, i64>,
    /// Extents with a value at run time only.
    dynamic: BTreeMap<&'a str, i64>,
    /// How long a row may be to be held whole.
    pub row: usize,
    /// Added to each float operand in the kernel, so that elements outside it do not read as zero.
    pub fused: f64,
}

impl<'a> Case<'a> {
    /// `types` are written like `f32[b, s, 64]`; `fixed` and `dynamic` give the extents' values.
    pub fn new(
        op: impl Into<Op>,
        types: &[&str],
        fixed: &[(&'a str, i64)],
        dynamic: &[(&'a str, i64)],
    ) -> Self {
        let (fixed, dynamic) = (fixed.iter().copied().collect(), dynamic.iter().copied().collect());
        let types = types.iter().map(|text| parse(text)).collect();
        Self { op: op.into(), types, fixed, dynamic, row: 16, fused: 0.0 }
    }

    fn size(&self, sym: &Sym) -> Option<i64> {
        self.fixed.get(sym.as_str()).or(self.dynamic.get(sym.as_str())).copied()
    }

    fn sizes(&self) -> Sizes {
        Sizes(self.fixed.iter().chain(&self.dynamic).map(|(&name, &n)| (name.into(), n)).collect())
    }

    /// An array of each operand's shape, whose items `item` gives, by operand and number.
    pub fn arrays(&self, item: impl Fn(usize, usize) -> f64) -> Vec<Array> {
        let array = |(i, ty): (usize, &TensorType)| {
            let shape: Vec<usize> = ty.shape.iter().map(|dim| self.sizes().of(dim)).collect();
            let n = shape.iter().product();
            Array::new(&shape, (0..n).map(|j| item(i, j)).collect())
        };
        self.types.iter().enumerate().map(array).collect()
    }

    /// Checks the kernel's results on `args` against the op's meaning.
    #[track_caller]
    pub fn check(&self, args: &[Array], tolerance: f64) {
        let shifted = args.iter().zip(&self.types).map(|(x, ty)| match ty.dtype.is_int() {
            true => x.clone(),
            false => x.map(|x| x + self.fused),
        });
        let shifted: Vec<Array> = shifted.collect();
        let want = self.op.eval(&self.sizes(), &shifted.iter().collect::<Vec<_>>());
        for order in [Order::Forward, Order::Backward, Order::Shuffled(3)] {
            for (have, want) in self.run(args, order).iter().zip(&want) {
                super::fixtures::assert_close(have, want, tolerance);
            }
        }
    }

    /// The kernel's results on `args`.
    #[track_caller]
    pub fn run(&self, args: &[Array], order: Order) -> Vec<Array> {
        let (kernel, binding) = self.lower().unwrap_or_else(|e| panic!("{e}"));
        let storage = |(x, ty): (&Array, &TensorType)| Storage::new(ty.dtype, x.data.iter().copied());
        let mut storages: Vec<Storage> = args.iter().zip(&self.types).map(storage).collect();
        let out = self.op.infer(&self.types.iter().collect::<Vec<_>>()).unwrap();
        let shapes: Vec<Vec<usize>> = out
            .parts()
            .iter()
            .map(|ty| ty.shape.iter().map(|dim| self.sizes().of(dim)).collect::<Vec<_>>())
            .collect();
        for (part, shape) in out.parts().iter().zip(&shapes) {
            storages.push(match self.op {
                Op::CacheWrite(_) | Op::PageWrite(_) => storages[0].clone(),
                _ => Storage::unwritten(part.dtype, shape.iter().product()),
            });
        }
        let options = Options { f32: true, order, ..Options::default() };
        run(&kernel, &|sym| self.size(sym), &mut storages, &binding, options)
            .unwrap_or_else(|e| panic!("{e}"));
        let results = storages.split_off(args.len());
        results.into_iter().zip(shapes).map(|(s, shape)| Array::new(&shape, s.data)).collect()
    }

    /// The kernel, and which storage each of its buffers is: operands first, then results.
    pub fn lower(&self) -> Result<(Kernel, Vec<usize>), LowerError> {
        let schedule = Schedule {
            product: [3, 5, 4],
            outer: [4, 3, 5],
            attention: [3, 5],
            attention_grad: [4, 3],
            tensor: None,
            row: self.row,
            again: 6,
            block: 7,
            turned: 3,
            turned_columns: (self.row < 10).then_some(4),
            sums: [3, 7],
            terms: None,
            sort: SortSchedule { few: 10, compared: [3, 4], parts: 5, items: 6, experts: 20 },
        };
        let k = Build::new("test");
        let bases = RefCell::new(Vec::new());
        let constant = |dim: &Dim| dim.eval(&|sym| self.fixed.get(sym.as_str()).copied());
        let fix = |ty: &TensorType| {
            let dims = ty.shape.iter().map(|dim| constant(dim).map_or(dim.clone(), Dim::from));
            TensorType::new(ty.dtype, dims.collect::<Vec<_>>())
        };
        let out = self.op.infer(&self.types.iter().collect::<Vec<_>>()).unwrap();
        let types: Vec<TensorType> = self.types.iter().map(fix).collect();
        let out: Vec<TensorType> = out.parts().iter().map(fix).collect();
        {
            let add = |view: &BufView, access| add(&k, &bases, view, access);
            let read = |view: &BufView| add(view, Access::Read);
            let home = |part: usize| {
                BufView::row_major(types.len() + part, "out", out[part].dtype, &out[part].shape)
            };
            let write = |part: usize| add(&home(part), Access::Write);
            let emit = |part: usize, at: &Request<'_>, tile: Tile<'_>| {
                let elem = if out[part].dtype.is_int() { Elem::I64 } else { Elem::F32 };
                let index: Vec<Tile<'_>> = at.coords.iter().map(|c| c.start()).collect();
                k.store(write(part), &index, at.axes(), &at.limits, tile.cast(elem));
                Ok(())
            };
            let cx = Cx {
                k: &k,
                schedule: &schedule,
                out: out.clone(),
                constant: &constant,
                read: &read,
                write: &write,
                emit: &emit,
                few: None,
                parts: None,
                by_terms: &|_, _| {},
                by_parts: &|_| {},
                aligned: &|_, _| unreachable!("for tensor cores only"),
                rest: false,
                by_columns: &|| false,
                by_rows: &|_, _, _| {},
                merge_out: &|_| false,
            };
            let view = |(i, ty): (usize, &TensorType)| {
                let buffer = BufView::row_major(i, "arg", ty.dtype, &ty.shape);
                let (from, read, k, fused) = (buffer.clone(), &read, &k, self.fused);
                let float = !ty.dtype.is_int();
                let tile: TileFn<'_> = Rc::new(move |at| {
                    let index: Vec<Tile<'_>> = at.coords.iter().map(|c| c.start()).collect();
                    let tile = k.load(read(&from), &index, at.axes(), [at.rows, at.cols], &at.limits);
                    Ok(if float && fused != 0.0 { tile + fused } else { tile })
                });
                View { ty: ty.clone(), tile, buffer: (fused == 0.0).then_some(buffer), near: None }
            };
            let views: Vec<View<'_>> = types.iter().enumerate().map(view).collect();
            if self.op.lowering() == Lowering::Kernel {
                self.op.kernel(&cx, &views)?;
            } else {
                let (last, leading) = out[0].shape.split_last().unwrap();
                let index = cx.programs(leading);
                let at = match cx.size(last) {
                    Some(n) if n <= self.row => Request::row(&index, k.int(0), n),
                    _ => Request::row(&index, cx.program_tile(last, schedule.block), schedule.block),
                };
                cx.emit(&at, self.op.tile(&cx, &views, &at)?)?;
            }
        }
        Ok((k.finish(), bases.into_inner()))
    }
}

/// A type, written like `f32[b, s, 64]`.
pub fn parse(text: &str) -> TensorType {
    let (dtype, dims) = text.strip_suffix(']').unwrap().split_once('[').unwrap();
    let dims = dims.split(',').map(str::trim).filter(|d| !d.is_empty());
    TensorType::new(DType::by_name(dtype).unwrap(), dims.map(|d| d.parse::<Dim>().unwrap()))
}

fn add(k: &Build, bases: &RefCell<Vec<usize>>, view: &BufView, access: Access) -> Buf {
    let buf = k.buf(BufData {
        // Buffers that are alike but lie elsewhere must stay apart.
        name: format!("{}{}", view.name, view.base),
        dtype: view.dtype,
        access,
        shape: view.shape.clone(),
        strides: view.strides.clone(),
        offset: view.offset.clone(),
        scaled: None,
    });
    let mut bases = bases.borrow_mut();
    if buf.index() == bases.len() {
        bases.push(view.base);
    }
    buf
}
