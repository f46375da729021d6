//! Writing one kernel: views of the operands, loops by the op that owns them, a chain behind.

use super::FnLower;
use crate::plan::When;
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Value};
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::{Access, Buf, BufData, Elem, Kernel, Scaled};
use eva_ir::lower::{BufView, Coord, Cx, LowerError, Request, TileFn, View};
use eva_ir::ops::{Op, align_offsets};
use eva_ir::types::TensorType;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Blocks of columns have a multiple of this, so that their first element is one of any access.
const AGAIN_STEP: usize = 64;

/// Where experts' rows begin if each has whole blocks of `rows`, in memory.
pub(super) struct Aligned {
    offsets: Value,
    rows: i64,
    when: Option<When>,
    base: usize,
}

/// The kernel being written.
pub(super) struct Env<'k> {
    pub low: &'k FnLower<'k>,
    pub k: &'k Build,
    /// The base of each of the kernel's buffers.
    pub bases: &'k RefCell<Vec<usize>>,
    pub read: &'k dyn Fn(&BufView) -> Buf,
    pub constant: &'k dyn Fn(&Dim) -> Option<i64>,
    /// How the result's axes are made fewer, once the op that owns the loops has asked for it.
    pub groups: &'k RefCell<Option<Vec<usize>>>,
}

impl FnLower<'_> {
    /// The kernel that `tiles` fills, named after its result, and the bases of its buffers.
    fn write(
        &self,
        name: &str,
        tiles: impl for<'k> FnOnce(&Env<'k>) -> Result<(), LowerError>,
    ) -> Result<(Kernel, Vec<usize>), LowerError> {
        let k = Build::new(&format!("{}.{name}", self.name));
        let bases = RefCell::new(Vec::new());
        {
            let groups = RefCell::new(None);
            let read = |view: &BufView| add_buf(&k, &bases, view, Access::Read);
            let constant = |dim: &Dim| self.module.constant(dim);
            tiles(&Env {
                low: self,
                k: &k,
                bases: &bases,
                read: &read,
                constant: &constant,
                groups: &groups,
            })?;
        }
        Ok((k.finish(), bases.into_inner()))
    }

    /// Writes the kernel of a value that no op with loops computes: one program for a row.
    pub(super) fn rows(&mut self, value: Value) -> Result<(), LowerError> {
        if let (Some(_), Def::Op(op, args)) = (&self.tensor(value).scales, &self.f.values[value].def) {
            return self.moved(value, op, args);
        }
        let home = self.new_home(value, 0);
        let (kernel, bases) = self.write(&self.f.values[value].name, |env| {
            let (whole, again) = (env.low.whole_rows(value), env.low.repeats_rows(value));
            let at = row_request(&env.cx(), &home.shape, whole, again)?;
            let tile = env.compute(value, false)?(&at)?;
            env.store(&home, &at, tile);
            Ok(())
        })?;
        self.homes.insert(value, vec![home]);
        self.launch(kernel, bases, None);
        Ok(())
    }

    /// Writes a kernel that computes `op` of these operands, some of which are seen as other tensors.
    pub(super) fn moving(
        &mut self,
        to: &BufView,
        op: &Op,
        args: &[Value],
        seen: &HashMap<Value, BufView>,
    ) -> Result<(), LowerError> {
        let (kernel, bases) = self.write(&to.name, |env| {
            let cx = env.cx();
            let view =
                |arg: &Value| seen.get(arg).map_or_else(|| env.view(*arg, false), |view| Ok(env.loads(view)));
            let views: Vec<View<'_>> = args.iter().map(view).collect::<Result<_, _>>()?;
            let at = near_request(&cx, to, op.repeats_rows())?;
            env.store(to, &at, op.tile(&cx, &views, &at)?);
            Ok(())
        })?;
        self.launch(kernel, bases, None);
        Ok(())
    }

    /// Writes a kernel that copies a tensor.
    pub(super) fn copy(&mut self, from: &BufView, to: &BufView) -> Result<(), LowerError> {
        let (kernel, bases) = self.write(&to.name, |env| {
            let cx = env.cx();
            let at = row_request(&cx, &to.shape, false, false)?;
            env.store(to, &at, cx.load(from, &at));
            Ok(())
        })?;
        self.launch(kernel, bases, None);
        Ok(())
    }

    /// Writes the kernel of where experts' rows begin if each has whole blocks of so many, for the kernels of `root`.
    pub(super) fn aligned(
        &mut self,
        root: Value,
        (offsets, rows): (Value, i64),
        when: &Option<When>,
    ) -> Result<usize, LowerError> {
        let is_it = |it: &&Aligned| (it.offsets, it.rows, &it.when) == (offsets, rows, when);
        if let Some(found) = self.aligned.iter().find(is_it) {
            return Ok(found.base);
        }
        let ty = self.tensor(offsets);
        let name = format!("{}.tiles", self.f.values[root].name);
        let base = self.temp_when(&name, ty, when.clone());
        let home = self.row_major(base, &name, ty);
        let (kernel, bases) = self.write(&name, |env| {
            let (at, start) = align_offsets::start(&env.cx(), &env.view(offsets, false)?, rows)?;
            env.store(&home, &at, start);
            Ok(())
        })?;
        self.launch(kernel, bases, when.clone());
        self.aligned.push(Aligned { offsets, rows, when: when.clone(), base });
        Ok(base)
    }

    /// Whether `value`, computed in a kernel of its own, needs its rows whole.
    fn whole_rows(&self, value: Value) -> bool {
        match &self.f.values[value].def {
            Def::Op(op, args) => {
                op.whole_rows()
                    || args.iter().any(|&arg| !self.homes.contains_key(&arg) && self.whole_rows(arg))
            }
            _ => false,
        }
    }

    /// Whether `value`, computed in a kernel of its own, reads rows several times.
    fn repeats_rows(&self, value: Value) -> bool {
        match &self.f.values[value].def {
            Def::Op(op, args) => {
                op.repeats_rows()
                    || args.iter().any(|&arg| !self.homes.contains_key(&arg) && self.repeats_rows(arg))
            }
            _ => false,
        }
    }
}

/// A row of a tensor, or a block of one, and the programs that have one each. Of rows that are read `again`, some
/// columns of all come before the next.
fn row_request<'k>(cx: &Cx<'k>, shape: &[Dim], whole: bool, again: bool) -> Result<Request<'k>, LowerError> {
    let Some((last, leading)) = shape.split_last() else { return Ok(Request::element(&[])) };
    if let Some(n) = cx.size(last).filter(|&n| again && !whole && n > cx.schedule.again) {
        // Blocks as long as each other, in multiples that suit any access.
        let cols = n.div_ceil(n.div_ceil(cx.schedule.again)).next_multiple_of(AGAIN_STEP);
        let first = cx.program_tile(last, cols);
        return Ok(Request::row(&cx.programs(leading), first, cols));
    }
    let index = cx.programs(leading);
    let cols = match cx.size(last) {
        Some(n) if whole || n <= cx.schedule.row => n.max(1),
        None if whole => {
            return Err(LowerError::new(format!("the last axis is `{last}`, which has no fixed value")));
        }
        _ => cx.schedule.block,
    };
    let first = if cx.size(last) == Some(cols) { cx.k.int(0) } else { cx.program_tile(last, cols) };
    Ok(Request::row(&index, first, cols))
}

/// Neighbours in memory of a tensor, and the programs that have some each: a part of a row, or of whatever is near.
fn near_request<'k>(cx: &Cx<'k>, to: &BufView, again: bool) -> Result<Request<'k>, LowerError> {
    let one = Dim::from(1);
    let is_near = |axis: &usize| to.strides[*axis] == one && to.shape[*axis] != one;
    let Some(near) = (0..to.shape.len()).find(is_near).filter(|near| near + 1 < to.shape.len()) else {
        return row_request(cx, &to.shape, false, again);
    };
    let cols = cx.size(&to.shape[near]).map_or(cx.schedule.block, |n| n.clamp(1, cx.schedule.block));
    let coord = |axis: usize| match axis == near {
        true => Coord::Cols(cx.program_tile(&to.shape[axis], cols)),
        false => Coord::At(cx.program(&to.shape[axis])),
    };
    let coords = (0..to.shape.len()).map(coord).collect();
    Ok(Request { coords, rows: 1, cols, limits: Vec::new() })
}

pub(super) fn add_buf(k: &Build, bases: &RefCell<Vec<usize>>, view: &BufView, access: Access) -> Buf {
    let mut data = buf_data(view, access);
    // What is written are codes; scales are written by themselves.
    if let Some(scales) = view.scales.as_ref().filter(|_| access == Access::Read) {
        let by = add_buf(k, bases, &whole(&scales.by), Access::Read);
        let (offset, along) = (scales.offset.clone(), scales.along.clone());
        data.scaled = Some(Box::new(Scaled { by, offset, along }));
    }
    let index = |buf: Buf| eva_ir::entity::Entity::index(buf);
    // Two results of one op may look alike.
    let buf = k.buf_among(data, |buf| bases.borrow()[index(buf)] == view.base);
    let index = index(buf);
    let mut bases = bases.borrow_mut();
    if index == bases.len() {
        bases.push(view.base);
    }
    buf
}

/// All elements of a tensor in the order of memory.
fn whole(view: &BufView) -> BufView {
    let shape = vec![Dim::product(&view.shape)];
    BufView { shape, strides: vec![Dim::from(1)], offset: Dim::from(0), ..view.clone() }
}

impl<'k> Env<'k> {
    /// What element-wise and re-indexing ops are computed with: they have nothing behind them.
    fn cx(&self) -> Cx<'k> {
        Cx {
            k: self.k,
            schedule: &self.low.target.schedule,
            out: Vec::new(),
            constant: self.constant,
            read: self.read,
            write: &|_| unreachable!("only an op with loops of its own writes"),
            emit: &|_, _, _| Err(LowerError::new("only an op with loops of its own hands over tiles")),
            few: None,
            by_rows: &|_, _, _| {},
            parts: None,
            by_terms: &|_, _| {},
            by_parts: &|_| {},
            aligned: &|_, _| unreachable!("only an op with loops of its own numbers tiles"),
            rest: false,
            by_columns: &|| false,
            merge_out: &|_| false,
        }
    }

    /// An operand: a tensor in memory, or computed here.
    pub(super) fn view(&self, value: Value, merged: bool) -> Result<View<'k>, LowerError> {
        let low = self.low;
        let fixed = low.fixed_type(low.tensor(value));
        let Some(homes) = low.homes.get(&value) else {
            // A wider reading of a tensor in memory counts as that tensor.
            let buffer = match &low.f.values[value].def {
                Def::Op(op, args) if super::fuse::widens(low.f, op, args) => {
                    low.homes.get(&args[0]).map(|homes| homes[0].clone())
                }
                _ => None,
            };
            let shape = if merged { self.merge_shape(&fixed.shape)? } else { fixed.shape.to_vec() };
            let ty = TensorType::new(fixed.dtype, shape);
            let near = super::fuse::neighbours(&low.f.values[value].def);
            return Ok(View { ty, tile: self.compute(value, merged)?, buffer, near });
        };
        let view = if merged { self.merge_view(&homes[0])? } else { homes[0].clone() };
        let ty = match fixed.scales {
            Some(_) if !merged => fixed,
            _ => TensorType::new(fixed.dtype, view.shape.iter().cloned()),
        };
        Ok(View { ty, ..self.loads(&view) })
    }

    /// A tensor in memory as an operand.
    fn loads(&self, view: &BufView) -> View<'k> {
        let (cx, loaded) = (self.cx(), view.clone());
        let tile: TileFn<'k> = Rc::new(move |at| Ok(cx.load(&loaded, at)));
        let ty = TensorType::new(view.dtype, view.shape.iter().cloned());
        View { ty, tile, buffer: Some(view.clone()), near: None }
    }

    /// The function that computes tiles of a value that is not in memory.
    fn compute(&self, value: Value, merged: bool) -> Result<TileFn<'k>, LowerError> {
        let Def::Op(op, args) = &self.low.f.values[value].def else {
            return Err(LowerError::new("a parameter or a call is not in memory"));
        };
        let args: Vec<View<'k>> = args.iter().map(|&arg| self.view(arg, merged)).collect::<Result<_, _>>()?;
        let cx = self.cx();
        Ok(Rc::new(move |at| op.tile(&cx, &args, at)))
    }

    /// Applies the chain behind `root` to a tile of it, and stores what comes out.
    pub(super) fn finish(
        &self,
        root: Value,
        chain: &[Value],
        home: Option<&BufView>,
        at: &Request<'k>,
        tile: Tile<'k>,
    ) -> Result<(), LowerError> {
        let merged = self.groups.borrow().is_some();
        let (mut before, mut tile) = (root, tile);
        for &value in chain {
            let Def::Op(op, args) = &self.low.f.values[value].def else { unreachable!("a chain is of ops") };
            let view = |&arg: &Value| {
                if arg != before {
                    return self.view(arg, merged);
                }
                let ty = self.low.fixed_type(self.low.tensor(arg));
                // As for the result below: a chain's values have its shape, and stretch along nothing.
                let shape = match &*self.groups.borrow() {
                    Some(groups) => products(&ty.shape, groups),
                    None => ty.shape.to_vec(),
                };
                let given: TileFn<'k> = Rc::new(move |_| Ok(tile));
                Ok(View { ty: TensorType::new(ty.dtype, shape), tile: given, buffer: None, near: None })
            };
            let views: Vec<View<'k>> = args.iter().map(view).collect::<Result<_, _>>()?;
            tile = op.tile(&self.cx(), &views, at)?;
            before = value;
        }
        if let Some((quantized, home)) = self.low.behind.get(&root) {
            self.quantize(*quantized, home, at, tile)?;
        }
        let Some(home) = home else { return Ok(()) };
        // The result has all the axes that the groups speak of, so an extent of 1 in it stretches nothing.
        let home = match &*self.groups.borrow() {
            Some(groups) => home.merge(groups).ok_or_else(|| LowerError::new("axes cannot be made fewer"))?,
            None => home.clone(),
        };
        self.store(&home, at, tile);
        Ok(())
    }

    /// Stores the codes and scales of a row, of the numbers that memory would have of it.
    fn quantize(
        &self,
        value: Value,
        home: &BufView,
        at: &Request<'k>,
        row: Tile<'k>,
    ) -> Result<(), LowerError> {
        let (Def::Op(Op::Quantize(op), args), Some(scales)) = (&self.low.f.values[value].def, &home.scales)
        else {
            return Err(LowerError::new("a row is quantized by another op"));
        };
        let n = op.blocks_of_rows(self.low.tensor(value), self.constant);
        let n = n
            .filter(|n| at.cols.is_multiple_of(*n))
            .ok_or_else(|| LowerError::new("a row is not of whole blocks"))?;
        let codes = add_buf(self.k, self.bases, home, Access::Write);
        let scales = add_buf(self.k, self.bases, &scales.by, Access::Write);
        op.row(n, row.round(self.low.tensor(args[0]).dtype), at, codes, scales);
        Ok(())
    }

    pub(super) fn store(&self, home: &BufView, at: &Request<'k>, tile: Tile<'k>) {
        let buf = add_buf(self.k, self.bases, home, Access::Write);
        let index: Vec<Tile<'k>> = at.coords.iter().map(|c| c.start()).collect();
        let elem = if home.dtype.is_int() { Elem::I64 } else { Elem::F32 };
        self.k.store(buf, &index, at.axes(), &at.limits, tile.cast(elem));
    }

    /// Whether every other operand of the chain can be seen with the result's axes made fewer.
    pub(super) fn chain_merges(&self, root: Value, chain: &[Value], groups: &[usize]) -> bool {
        let mut before = root;
        chain.iter().all(|&value| {
            let others = self.low.f.values[value].def.args().iter().filter(|&&arg| arg != before);
            let fit = others.into_iter().all(|&arg| self.merges(arg, groups));
            before = value;
            fit
        })
    }

    fn merges(&self, value: Value, groups: &[usize]) -> bool {
        match self.low.homes.get(&value) {
            Some(homes) => merge_aligned(&homes[0], groups).is_some(),
            None => {
                let shape = &self.low.fixed_type(self.low.tensor(value)).shape;
                aligned_groups(shape, groups).is_some()
                    && self.low.f.values[value].def.args().iter().all(|&arg| self.merges(arg, groups))
            }
        }
    }

    fn merge_view(&self, view: &BufView) -> Result<BufView, LowerError> {
        let groups = self.groups.borrow();
        let groups = groups.as_ref().expect("asked only where axes were merged");
        merge_aligned(view, groups).ok_or_else(|| LowerError::new("an operand's axes cannot be made fewer"))
    }

    fn merge_shape(&self, shape: &[Dim]) -> Result<Vec<Dim>, LowerError> {
        let groups = self.groups.borrow();
        let groups = groups.as_ref().expect("asked only where axes were merged");
        let own = aligned_groups(shape, groups);
        Ok(products(shape, &own.ok_or_else(|| LowerError::new("an operand's axes cannot be made fewer"))?))
    }
}

/// The extent of each group of neighbouring axes.
fn products(shape: &[Dim], groups: &[usize]) -> Vec<Dim> {
    let mut at = 0;
    let product = |&len: &usize| {
        at += len;
        Dim::product(&shape[at - len..at])
    };
    groups.iter().map(product).collect()
}

/// The view with the result's groups of axes, of which it has the last ones; see [`BufView::merge`].
fn merge_aligned(view: &BufView, groups: &[usize]) -> Option<BufView> {
    view.merge(&aligned_groups(&view.shape, groups)?)
}

/// The groups that a right-aligned operand of `shape` takes part in; `None` if it has a part of one, or stretches
/// along an axis of one.
fn aligned_groups(shape: &[Dim], groups: &[usize]) -> Option<Vec<usize>> {
    let (mut own, mut left) = (Vec::new(), shape.len());
    for &len in groups.iter().rev() {
        if left == 0 {
            break;
        }
        left = left.checked_sub(len)?;
        let stretches = shape[left..left + len].iter().any(|dim| dim.as_const() == Some(1));
        if len > 1 && stretches {
            return None;
        }
        own.push(len);
    }
    own.reverse();
    Some(own)
}

/// Whether a kernel reads or writes through a view; the kernel's parameter for it, but for its scales.
fn buf_data(view: &BufView, access: Access) -> BufData {
    BufData {
        name: view.name.clone(),
        dtype: view.dtype,
        access,
        shape: view.shape.clone(),
        strides: view.strides.clone(),
        offset: view.offset.clone(),
        scaled: None,
    }
}
