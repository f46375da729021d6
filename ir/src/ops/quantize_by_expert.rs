//! `quantize_by_expert`: experts' rows as 8-bit floats, with scales for some rows of one expert.

use super::align_offsets::room;
use super::check;
use super::quantize::{check_numbers, clamped, code, largest, scale, scale_of};
use crate::attr::{Real, Word};
use crate::codes;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::scales::{Block, Encoding, Scales};
use crate::types::{DType, TensorType, Type};

op! {
    /// The columns of `x[g, m]`, whose rows `offsets[e] .. offsets[e + 1]` are those of expert `e`, as 8-bit floats of type
    /// `to` with a scale for `rows` rows of an expert, as `quantize` makes them: `[m, g + rows·e]`.
    ///
    /// The rows of expert `e` are at `starts[e]` and on, where `starts` is what `align_offsets` makes of `offsets` with the
    /// same `rows`; everything else is zero. So no scale is shared by rows of two experts, and sums over an expert's rows
    /// are sums over whole blocks.
    "quantize_by_expert" => QuantizeByExpert(x, offsets, starts) {
        /// `f8e4m3` or `f8e5m2`.
        to: DType,
        /// How many rows of an expert share a scale; at least 2.
        rows: i64,
        /// How scales are written: `single`, `pow2` or `e8m0`.
        scales: Word,
        /// The least `amax` that a scale is made of; see `quantize`.
        least: Real,
    }
}

impl QuantizeByExpert {
    fn encoding(&self) -> Encoding {
        Encoding::by_name(self.scales.as_str()).unwrap_or(Encoding::F32)
    }
}

impl OpDef for QuantizeByExpert {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, offsets, starts] = args else { unreachable!("operands were counted") };
        super::pointwise::float("quantize_by_expert", x)?;
        check::axes("x", "[g, m]", x, 0, false)?;
        check::offsets("offsets", offsets, 1)?;
        check::offsets("starts", starts, 2)?;
        check::extent(&starts.shape[0], &offsets.shape[0], 2, "the number of offsets")?;
        check_numbers("quantize_by_expert", self.to, self.least)?;
        let Some(encoding) = Encoding::by_name(self.scales.as_str()) else {
            let names = Encoding::ALL.map(Encoding::name).join(", ");
            return Err(TypeError::new(format!(
                "`scales` is one of {names}, not `{}`",
                self.scales.as_str()
            )));
        };
        let Some(rows) = u32::try_from(self.rows).ok().filter(|rows| *rows > 1) else {
            return Err(TypeError::new(format!("`rows` is {}, but should be at least 2", self.rows)));
        };
        let blocks = [Block::Each, Block::Of(rows)].into_iter().collect();
        let shape = [x.shape[1].clone(), room(&x.shape[0], &offsets.shape[0], self.rows)];
        Ok(x.with_shape(shape).scaled(self.to, Scales { blocks, encoding }).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, offsets, starts] = args else { unreachable!("operands were counted") };
        let (experts, rows) = (offsets.data.len() - 1, self.rows as usize);
        let (g, m) = (x.shape[0], x.shape[1]);
        let all = g + rows * experts;
        // The row of `x` at each place that has one.
        let mut source = vec![None; all];
        for e in 0..experts {
            for (i, row) in (offsets.data[e] as usize..(offsets.data[e + 1] as usize).min(g)).enumerate() {
                if let Some(place) = source.get_mut(starts.data[e] as usize + i) {
                    *place = Some(row);
                }
            }
        }
        let number = |col: usize, place: usize| source[place].map_or(0.0, |row| x.at(&[row, col]) as f32);
        vec![Array::from_fn(&[m, all], |at| {
            let block = at[1] / rows * rows;
            let amax = (block..(block + rows).min(all)).map(|i| number(at[0], i).abs()).fold(0.0, f32::max);
            let scale = scale(amax, self.to, self.encoding(), self.least.get() as f32);
            codes::decode(self.to, code(number(at[0], at[1]), scale, self.to)) * f64::from(scale)
        })]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, _: usize) -> bool {
        true
    }

    fn in_rows(&self, i: usize) -> bool {
        i == 0
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    /// A program for some columns and a block of places: it finds the expert that has them, whose rows follow each other.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, offsets, starts] = args else { unreachable!("operands were counted") };
        let experts = cx.fixed(&(&offsets.ty.shape[0] - 1), "the number of experts")?;
        let (columns, n) = (&cx.out[0].shape[0], self.rows as usize);
        let lines = cx.size(columns).unwrap_or(usize::MAX).clamp(1, cx.schedule.turned);
        let column = cx.program_tile(columns, lines);
        let number = cx.k.program(cx.out[0].shape[1].clone(), self.rows);
        let place = number * self.rows;
        // Blocks behind those of all experts count as the last one's, beyond its end.
        let ends = starts.at(&Request::row(&[], cx.k.int(1), experts.max(1)))?;
        let before = ends.le(place).cast(Elem::I64).sum_along(1);
        let expert = before.min(cx.k.int(experts.max(1) as i64 - 1));
        let [start, from, end] = [(starts, expert), (offsets, expert), (offsets, expert + 1i64)]
            .map(|(of, at)| of.at(&Request::element(&[at])));
        let (first, end) = (from? + (place - start?), end?);
        let coords = vec![Coord::Cols(first), Coord::Rows(column)];
        let x = x.at(&Request { coords, rows: lines, cols: n, limits: vec![(0, end)] })?.single();
        let scale = scale_of(x.max(-x).max_along(1), [lines, 1], self.to, self.encoding(), self.least.get());
        let y = clamped(x, scale, f64::from(largest(self.to)));
        cx.k.store((cx.write)(0), &[column, place], [Some(0), Some(1)], &[], y);
        cx.k.store((cx.write)(1), &[column, number], [Some(0), None], &[], scale);
        Ok(())
    }
}
