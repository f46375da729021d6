//! `quantize`: floats as 8-bit floats with scales.

use crate::attr::{Dims, Real, Word};
use crate::codes;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Buf;
use crate::kernel::build::Tile;
use crate::kernel::run::round;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::scales::{Block, Encoding, Scales};
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// `x` as 8-bit floats of type `to`, each block of neighbours with a scale `s = max(amax, least) / largest`.
    ///
    /// `amax` is the largest magnitude in the block (NaN aside), `largest` the largest number of `to` (448 or 57344). With
    /// `scales` other than `single` the scale is the next power of two that is not less. A code is `x / s`, rounded to
    /// nearest with ties to even, at most `largest` in magnitude; NaN stays NaN. Everything is computed in `f32`. (The
    /// activations of DeepSeek-V3, arXiv 2412.19437, section 3.3: `per = [1, 128]`, `least = 1e-4`.)
    "quantize" => Quantize(x) {
        /// `f8e4m3` or `f8e5m2`.
        to: DType,
        /// How many neighbours along each axis share a scale: `1`, a number, or the axis' extent for all of them.
        per: Dims,
        /// How scales are written: `single` (any `f32`), `pow2` or `e8m0`.
        scales: Word,
        /// The least `amax` that a scale is made of, so that a block of zeros has one too; positive.
        least: Real,
    }
}

/// The largest finite number of an 8-bit type.
pub fn largest(dtype: DType) -> f32 {
    if dtype == DType::F8E5M2 { 57344.0 } else { 448.0 }
}

/// The scale of a block whose largest magnitude is `amax`; see [`Quantize`].
pub fn scale(amax: f32, to: DType, encoding: Encoding, least: f32) -> f32 {
    let scale = amax.max(least) / largest(to);
    if encoding.is_power_of_two() { round(f64::from(scale), DType::E8M0) as f32 } else { scale }
}

/// The code of `x` in a block of this scale; see [`Quantize`].
pub fn code(x: f32, scale: f32, to: DType) -> u8 {
    let largest = largest(to);
    codes::encode(to, f64::from((x / scale).clamp(-largest, largest)))
}

/// What `op` makes must be 8-bit floats, with scales of something that an `f32` can be.
pub(super) fn check_numbers(op: &str, to: DType, least: Real) -> Result<(), TypeError> {
    if !to.is_f8() {
        return Err(TypeError::new(format!("`{op}` makes f8e4m3 or f8e5m2, not {to}")));
    }
    let least = least.get();
    if !(least.is_finite() && least as f32 > 0.0) {
        return Err(TypeError::new(format!("`least` is {least}, but should be positive")));
    }
    Ok(())
}

/// `x / scale`, at most `largest` in magnitude: what is rounded to a code. The scale is one that was made of `x`.
pub(super) fn clamped<'k>(x: Tile<'k>, scale: Tile<'k>, largest: f64) -> Tile<'k> {
    clamp(x.single().quotient(scale).single(), largest)
}

/// The same with any scale, however much larger `x` may be.
pub(super) fn divided<'k>(x: Tile<'k>, scale: Tile<'k>, largest: f64) -> Tile<'k> {
    clamp((x.single() / scale).single(), largest)
}

/// A quotient, at most `largest` in magnitude.
fn clamp<'k>(y: Tile<'k>, largest: f64) -> Tile<'k> {
    let k = y.build();
    // Comparisons with NaN do not hold, so it stays.
    let (most, least) = (k.float(largest), k.float(-largest));
    let y = most.lt(y).select(most, y);
    y.lt(least).select(least, y)
}

/// The scales of blocks whose largest magnitudes are `amax`, a tile of this shape.
pub(super) fn scale_of<'k>(
    amax: Tile<'k>,
    shape: [usize; 2],
    to: DType,
    encoding: Encoding,
    least: f64,
) -> Tile<'k> {
    let k = amax.build();
    let most = amax.max(k.full(shape, f64::from(least as f32)));
    let scale = (most / k.full(shape, f64::from(largest(to)))).single();
    if encoding.is_power_of_two() { scale.round(DType::E8M0) } else { scale }
}

impl Quantize {
    /// The op that makes `scales`' blocks of `ty`.
    pub fn new(ty: &TensorType, to: DType, scales: &Scales, least: f64) -> Self {
        let per = ty.shape.iter().zip(&scales.blocks).map(|(dim, block)| match block {
            Block::Each => Dim::from(1),
            Block::Of(n) => Dim::from(i64::from(*n)),
            Block::Whole => dim.clone(),
        });
        let per = Dims(per.collect());
        Self { to, per, scales: scales.encoding.name().into(), least: Real::new(least) }
    }

    /// How many neighbours along the last axis share a scale, where rows have scales of their own and are whole blocks, or
    /// one.
    pub fn blocks_of_rows(&self, ty: &TensorType, constant: &dyn Fn(&Dim) -> Option<i64>) -> Option<usize> {
        let scales = ty.scales.as_ref()?;
        let (last, leading) = scales.blocks.split_last()?;
        let length = constant(ty.shape.last()?)?;
        let n = match *last {
            Block::Of(n) => n,
            Block::Whole => u32::try_from(length).ok()?,
            Block::Each => return None,
        };
        let whole =
            length > 0 && length % i64::from(n) == 0 && leading.iter().all(|block| *block == Block::Each);
        whole.then_some(n as usize)
    }

    /// Writes the codes and scales of a row that is computed as a whole, `n` neighbours of which share a scale: as a part of
    /// the kernel that computes it.
    pub fn row<'k>(&self, n: usize, x: Tile<'k>, at: &Request<'k>, codes: Buf, scales: Buf) {
        let k = x.build();
        let blocks = [at.cols / n, n];
        let x = x.single().reshape(blocks);
        let amax = x.max(-x).max_along(1);
        let scale = scale_of(amax, [blocks[0], 1], self.to, self.encoding(), self.least.get());
        let y = self.quotient(x, scale, f64::from(largest(self.to))).reshape([1, at.cols]);
        let mut index: Vec<Tile<'k>> = at.coords.iter().map(|c| c.start()).collect();
        k.store(codes, &index, at.axes(), &at.limits, y);
        let last = index.len() - 1;
        index[last] = k.int(0);
        k.store(scales, &index, [None, Some(last)], &[], scale.reshape([1, blocks[0]]));
    }

    /// [`clamped`]. The inverse of a power of two is one, too, and times that every quotient is the same number.
    fn quotient<'k>(&self, x: Tile<'k>, scale: Tile<'k>, largest: f64) -> Tile<'k> {
        if !self.encoding().is_power_of_two() {
            return clamped(x, scale, largest);
        }
        let inverse = (x.build().float(1.0) / scale).single();
        clamp((x.single() * inverse).single(), largest)
    }

    fn encoding(&self) -> Encoding {
        Encoding::by_name(self.scales.as_str()).unwrap_or(Encoding::F32)
    }

    /// The blocks of an operand of this type.
    fn blocks(&self, ty: &TensorType) -> Result<Scales, TypeError> {
        let Some(encoding) = Encoding::by_name(self.scales.as_str()) else {
            let names = Encoding::ALL.map(Encoding::name).join(", ");
            return Err(TypeError::new(format!(
                "`scales` is one of {names}, not `{}`",
                self.scales.as_str()
            )));
        };
        if self.per.0.len() != ty.rank() {
            let message = format!("`per` has {} entries, but {ty} has {} axes", self.per.0.len(), ty.rank());
            return Err(TypeError::new(message).at(0));
        }
        let mut scales = Scales { blocks: Default::default(), encoding };
        for (per, dim) in self.per.0.iter().zip(&ty.shape) {
            scales.blocks.push(match per.as_const().map(u32::try_from) {
                Some(Ok(1)) => Block::Each,
                Some(Ok(n)) if n > 1 => Block::Of(n),
                None if per == dim => Block::Whole,
                _ => {
                    let message = format!(
                        "{per} neighbours that share a scale are neither a number nor a whole axis of {ty}"
                    );
                    return Err(TypeError::new(message).at(0));
                }
            });
        }
        Ok(scales)
    }
}

impl OpDef for Quantize {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        super::pointwise::float("quantize", args[0])?;
        check_numbers("quantize", self.to, self.least)?;
        Ok(args[0].scaled(self.to, self.blocks(args[0])?).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let x = args[0];
        // How many of an axis share a scale: the type rule has seen to it that what is no number is the extent.
        let per: Vec<usize> = self
            .per
            .0
            .iter()
            .zip(&x.shape)
            .map(|(per, &n)| per.as_const().map_or(n, |n| n as usize))
            .collect();
        let block = |index: &[usize]| -> Vec<usize> { index.iter().zip(&per).map(|(i, n)| i / n).collect() };
        let mut amax = std::collections::HashMap::<Vec<usize>, f32>::new();
        let _ = Array::from_fn(&x.shape, |index| {
            let largest = amax.entry(block(index)).or_insert(0.0);
            *largest = largest.max((x.at(index) as f32).abs());
            0.0
        });
        vec![Array::from_fn(&x.shape, |index| {
            let scale = scale(amax[&block(index)], self.to, self.encoding(), self.least.get() as f32);
            codes::decode(self.to, code(x.at(index) as f32, scale, self.to)) * f64::from(scale)
        })]
    }

    /// Straight through: rounding counts as the identity, and the scales as constants (DeepSeek-V3, arXiv:2412.19437,
    /// section 3.3).
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, dtype) = (cx.grad(), cx.ty(x).dtype);
        Ok(vec![Some(cx.cast(g, dtype)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    /// A program for each block, or for the blocks of a row: it finds the largest magnitude, then writes the codes.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let x = &args[0];
        let blocks = cx.out[0].scales.as_ref().map(|scales| scales.blocks.to_vec()).unwrap_or_default();
        // A row's block is little for a program, and scales of neighbouring rows may be neighbours. What is computed on
        // the way may be known row by row only.
        let near = x.near.map_or(0, |axis| axis + 2);
        let lines = match blocks[..] {
            // Neighbours in memory are rows here.
            [.., Block::Each, Block::Of(n)] if near == blocks.len() && n as usize <= cx.schedule.block => {
                cx.schedule.turned
            }
            [.., Block::Each, Block::Of(n)] if x.buffer.is_some() && n as usize <= cx.schedule.block => {
                cx.schedule.block / n as usize
            }
            _ => 1,
        };
        Blocks { cx, x, op: self, blocks, lines }.write()
    }
}

/// The kernel being written.
struct Blocks<'a, 'k> {
    cx: &'a Cx<'k>,
    x: &'a View<'k>,
    op: &'a Quantize,
    blocks: Vec<Block>,
    /// How many rows of blocks a program has: rows that each have scales of their own.
    lines: usize,
}

/// Where one axis of a block is.
struct AxisOf<'k> {
    /// The first element of the block.
    first: Tile<'k>,
    /// The number of the block.
    number: Tile<'k>,
    /// How many elements a tile has along it, and how many tiles a block, if that is not one.
    tile: usize,
    tiles: Option<Tile<'k>>,
}

impl<'k> Blocks<'_, 'k> {
    fn write(&self) -> Result<(), LowerError> {
        let (cx, shape) = (self.cx, &self.x.ty.shape);
        let rank = shape.len();
        if rank == 0 {
            let at = Request::element(&[]);
            return self.block(&[], at);
        }
        // Tiles have columns along the last axis, and rows along the one before it where that has blocks.
        let last = rank - 1;
        let mut axes = Vec::with_capacity(rank);
        for axis in 0..rank {
            let fixed = cx.size(&shape[axis]);
            let most = if axis == last { cx.schedule.block } else { 1 };
            axes.push(match self.blocks[axis] {
                Block::Each if axis == last => {
                    let tile = fixed.map_or(most, |n| n.clamp(1, most));
                    let first = cx.program_tile(&shape[axis], tile);
                    AxisOf { first, number: first, tile, tiles: None }
                }
                Block::Each => {
                    let tile = if axis + 2 == rank { self.lines } else { 1 };
                    let tile = fixed.map_or(tile, |n| n.clamp(1, tile));
                    let first = cx.program_tile(&shape[axis], tile);
                    AxisOf { first, number: first, tile, tiles: None }
                }
                Block::Of(n) => {
                    let n = n as usize;
                    let wide = axis == last || axis + 2 == rank;
                    let tile = if wide { n.min(cx.schedule.row) } else { 1 };
                    let number = cx.k.program(shape[axis].clone(), n as i64);
                    let tiles = (tile < n).then(|| cx.k.int(n.div_ceil(tile) as i64));
                    AxisOf { first: number * n as i64, number, tile, tiles }
                }
                Block::Whole => {
                    let tile =
                        if axis == last { fixed.map_or(most, |n| n.clamp(1, cx.schedule.row)) } else { 1 };
                    let zero = cx.k.int(0);
                    let tiles = (fixed != Some(tile)).then(|| cx.extent(&shape[axis]).div_ceil(tile as i64));
                    AxisOf { first: zero, number: zero, tile, tiles }
                }
            });
        }
        let coords = axes.iter().enumerate().map(|(axis, of)| match axis {
            _ if axis == last => Coord::Cols(of.first),
            _ if of.tile > 1 => Coord::Rows(of.first),
            _ => Coord::At(of.first),
        });
        let rows = if rank > 1 { axes[rank - 2].tile } else { 1 };
        let mut at = Request { coords: coords.collect(), rows, cols: axes[last].tile, limits: Vec::new() };
        // A tile of a block that has several must not reach into the next block.
        for (axis, of) in axes.iter().enumerate() {
            if let (Block::Of(n), Some(_)) = (self.blocks[axis], of.tiles) {
                at.limits.push((axis, of.first + i64::from(n)));
            }
        }
        self.block(&axes, at)
    }

    /// One block, whose first tile is at `at`.
    fn block(&self, axes: &[AxisOf<'k>], at: Request<'k>) -> Result<(), LowerError> {
        let (cx, each) = (self.cx, matches!(self.blocks.last(), Some(Block::Each)));
        let loops: Vec<usize> = (0..axes.len()).filter(|&axis| axes[axis].tiles.is_some()).collect();
        let lines = if self.lines > 1 { at.rows } else { 1 };
        let shape = if each { [1, at.cols] } else { [lines, 1] };
        let none = cx.k.full(shape, 0.0);
        let error = std::cell::RefCell::new(None);
        // A block that is one tile is computed once.
        let only = if loops.is_empty() { Some(self.x.at(&at)?) } else { None };
        let tile = |at: &Request<'k>| only.map_or_else(|| self.x.at(at), Ok);
        let magnitude = |at: &Request<'k>| -> Result<Tile<'k>, LowerError> {
            let x = tile(at)?.single();
            let mut most = x.max(-x);
            // Columns first: they are neighbouring threads', and one number a row is then all that is exchanged.
            if !each {
                most = most.max_along(1);
            }
            Ok(if at.rows > lines { most.max_along(0) } else { most })
        };
        let amax = self.nest(&loops, axes, &at, none, &|at, most| match magnitude(at) {
            Ok(x) => most.max(x),
            Err(e) => {
                *error.borrow_mut() = Some(e);
                most
            }
        });
        let largest = f64::from(largest(self.op.to));
        let scale = scale_of(amax, shape, self.op.to, self.op.encoding(), self.op.least.get());
        self.nest(&loops, axes, &at, none, &|at, carried| {
            match tile(at) {
                Ok(x) => {
                    // Tiles of several rows have many elements a thread, whose corrections take too many registers.
                    let y = match self.op.encoding().is_power_of_two() || at.rows == lines {
                        true => self.op.quotient(x, scale, largest),
                        false => divided(x, scale, largest),
                    };
                    let index: Vec<Tile<'k>> = at.coords.iter().map(|c| c.start()).collect();
                    cx.k.store((cx.write)(0), &index, at.axes(), &at.limits, y);
                }
                Err(e) => *error.borrow_mut() = Some(e),
            }
            carried
        });
        let index: Vec<Tile<'k>> = axes.iter().map(|of| of.number).collect();
        let rows = (lines > 1).then(|| axes.len() - 2);
        cx.k.store((cx.write)(1), &index, [rows, each.then(|| axes.len() - 1)], &[], scale);
        error.into_inner().map_or(Ok(()), Err)
    }

    /// `body` for each tile of the block, in loops along the axes that have several; what it carries round them.
    fn nest(
        &self,
        loops: &[usize],
        axes: &[AxisOf<'k>],
        at: &Request<'k>,
        carried: Tile<'k>,
        body: &dyn Fn(&Request<'k>, Tile<'k>) -> Tile<'k>,
    ) -> Tile<'k> {
        let Some((&axis, rest)) = loops.split_first() else { return body(at, carried) };
        let tiles = axes[axis].tiles.expect("loops are along axes with several tiles");
        let [carried] = self.cx.k.fold(tiles, [carried], |i, [carried]| {
            let mut at = at.clone();
            at.coords[axis] = at.coords[axis].shift(i * axes[axis].tile as i64);
            [self.nest(rest, axes, &at, carried, body)]
        });
        carried
    }
}
