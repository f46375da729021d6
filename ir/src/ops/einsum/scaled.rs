//! Contractions of 8-bit floats: what their scales must be, and transpositions, which move codes and scales as they are.

use crate::attr::{Axis, Spec};
use crate::lower::{BufView, Coord, Cx, LowerError, Request, View};
use crate::op::TypeError;
use crate::scales::{Block, Scales};
use crate::types::{DType, Shape, TensorType};

/// Checks that two operands, one of them of 8 bits at least, can be multiplied: the element type of the product.
///
/// Along an axis that is summed, both sides' scales must be constant over the same blocks, so that they can be moved out of
/// a sum over one; along others anything goes, and along the axis of which one index is `chosen`.
pub fn product(spec: &Spec, [x, y]: [&TensorType; 2], chosen: Option<Axis>) -> Result<DType, TypeError> {
    for (i, ty) in [x, y].into_iter().enumerate() {
        if !ty.dtype.is_f8() {
            let message = format!("cannot multiply {} by {}", x.dtype, y.dtype);
            return Err(TypeError::new(message).at(i).help("quantize this side, or dequantize the other"));
        }
    }
    let (Some(left), Some(right)) = (&x.scales, &y.scales) else {
        return Err(TypeError::new("8-bit floats without scales cannot be multiplied"));
    };
    if left.encoding.dtype() != right.encoding.dtype() {
        let message = format!(
            "the left side's scales are {}, but the right side's {}",
            left.encoding.name(),
            right.encoding.name()
        );
        let help =
            format!("quantize both sides with scales of one kind: `scales = {}`", left.encoding.name());
        return Err(TypeError::new(message).at(1).help(help));
    }
    let block = |side: usize, scales: &Scales, axis: Axis| {
        let place = spec.inputs[side].iter().position(|&a| a == axis)?;
        scales.blocks.get(place).copied()
    };
    for axis in (0..spec.axes() as Axis).filter(|axis| !spec.out.contains(axis) && Some(*axis) != chosen) {
        let letter = spec.letter(axis);
        let sides = (block(0, left, axis), block(1, right, axis));
        for (i, side) in [sides.0, sides.1].into_iter().enumerate() {
            if matches!(side, Some(Block::Each | Block::Of(1))) {
                let ty = [x, y][i];
                let message = format!(
                    "axis `{letter}` is summed, but each of its indices has a scale of its own in {ty}"
                );
                return Err(TypeError::new(message).at(i).help(retile(letter, sides, i)));
            }
        }
        if let (Some(a), Some(b)) = sides
            && a != b
        {
            let message = format!("axis `{letter}` has {} on the left but {} on the right", said(a), said(b));
            return Err(TypeError::new(message).at(1).help(retile(letter, sides, 1)));
        }
    }
    Ok(DType::F32)
}

/// How many neighbours share a scale, in words.
fn said(block: Block) -> String {
    match block {
        Block::Each => "a scale for each index".into(),
        Block::Of(n) => format!("a scale per {n}"),
        Block::Whole => "one scale".into(),
    }
}

/// What to do about the blocks of side `i` along an axis.
fn retile(letter: char, sides: (Option<Block>, Option<Block>), i: usize) -> String {
    let other = if i == 0 { sides.1 } else { sides.0 };
    let blocks = match other {
        Some(Block::Of(n)) if n > 1 => format!("in blocks of {n}"),
        Some(Block::Whole) => "with one scale for all of it".into(),
        _ => "in blocks".into(),
    };
    format!("quantize it again along `{letter}` {blocks}: `dequantize`, then `quantize`")
}

/// The type of a transposition of 8-bit floats: blocks go with their axes.
pub fn transposed(spec: &Spec, x: &TensorType, shape: Shape) -> Result<TensorType, TypeError> {
    let scales = x.scales.as_ref().ok_or_else(|| TypeError::new("there are no scales"))?;
    let axes = &spec.inputs[0];
    if axes.len() != spec.out.len() {
        return Err(TypeError::new(format!("{} has no arithmetic, so no sums", x.dtype))
            .at(0)
            .help("dequantize it first"));
    }
    let place = |axis: &Axis| axes.iter().position(|a| a == axis);
    let blocks = spec.out.iter().filter_map(place).map(|i| scales.blocks[i]).collect();
    Ok(TensorType { dtype: x.dtype, shape, scales: Some(Scales { blocks, encoding: scales.encoding }) })
}

/// The kernel of a transposition: codes first, then scales.
pub fn transpose<'k>(cx: &Cx<'k>, spec: &Spec, x: &View<'k>) -> Result<(), LowerError> {
    let from = x.memory()?;
    let shape = x.ty.scales_shape(cx.constant).unwrap_or_default();
    let scales = from.scales.as_ref().and_then(|scales| scales.tensor(&x.ty, &shape));
    let scales = scales.ok_or_else(|| LowerError::new("blocks of the operand are not whole"))?;
    let axes = &spec.inputs[0];
    let place = |axis: &Axis| {
        axes.iter().position(|a| a == axis).expect("a transposition has all axes on both sides")
    };
    let whole = spec.out.iter().map(|axis| x.ty.shape[place(axis)].clone()).collect::<Vec<_>>();
    let Some((last, leading)) = whole.split_last() else {
        return Err(LowerError::new("a single number is not transposed"));
    };
    // A program for a row of the result: as many scales as it has at most.
    let mut index = cx.programs(leading);
    let cols = cx.size(last).map_or(cx.schedule.block, |n| n.clamp(1, cx.schedule.block));
    index.push(cx.program_tile(last, cols));
    let copy = |from: &BufView, part: usize| {
        let coord = |axis: &Axis| {
            let at = spec.out.iter().position(|a| a == axis).expect("as above");
            if at + 1 == index.len() { Coord::Cols(index[at]) } else { Coord::At(index[at]) }
        };
        let at = Request { coords: axes.iter().map(coord).collect(), rows: 1, cols, limits: Vec::new() };
        cx.k.store((cx.write)(part), &index, [None, Some(index.len() - 1)], &[], cx.load(from, &at));
    };
    copy(&from.codes(), 0);
    copy(&scales, 1);
    Ok(())
}
