//! `grouped`: a product of rows with the weights of the expert each row belongs to.

use super::einsum::codes::{self, From, Operand};
use super::einsum::{extents, product_dtype};
use crate::attr::{Axis, Spec};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::ops::grouped_outer::GroupedOuter;
use crate::ops::rows;
use crate::poly::Amount;
use crate::types::{DType, Shape, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// A contraction whose rows are grouped by expert: rows `offsets[e] .. offsets[e+1]` of `x` meet slice `e` of `w`.
    ///
    /// In `"gm,efm->gf"`, `g` is the rows' axis, `e` the experts' (in `w` alone), `m` is summed. Nothing is padded: groups
    /// may be empty and of any length. Nothing may depend on rows outside every group: the evaluator has zeros there, and
    /// kernels do not write them.
    "grouped" => Grouped(x, w, offsets) {
        /// The axes of `x` (rows first), of `w` (experts first), and of the result (rows first).
        spec: Spec,
    }
}

impl OpDef for Grouped {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, w, offsets] = args else { unreachable!("operands were counted") };
        let extents = extents(&self.spec, &[x, w])?;
        let dtype = product_dtype(&self.spec, &[x, w], self.spec.inputs[1].first().copied())?;
        let Spec { inputs, out, .. } = &self.spec;
        let (Some(rows), Some(expert)) = (inputs[0].first(), inputs[1].first()) else {
            return Err(TypeError::new(
                "`grouped` needs an axis of rows on the left and one of experts on the right",
            ));
        };
        if out.first() != Some(rows)
            || inputs[1].contains(rows)
            || out.contains(expert)
            || inputs[0].contains(expert)
        {
            let message = format!("\"{}\" is not of the form \"gm,efm->gf\"", self.spec);
            return Err(TypeError::new(message)
                .help("rows first on the left and in the result, experts first in `w` alone"));
        }
        if inputs.iter().any(|axes| axes.len() < 2)
            || out.len() != 2
            || inputs[0].len() != 2
            || inputs[1].len() != 3
        {
            return Err(TypeError::new(format!("\"{}\" is not of the form \"gm,efm->gf\"", self.spec)));
        }
        let want = TensorType::new(DType::I32, [&extents[*expert as usize] + 1]);
        if **offsets != want {
            return Err(TypeError::new(format!("the offsets are {offsets}, not {want}")).at(2));
        }
        let shape: Shape = out.iter().map(|&axis| extents[axis as usize].clone()).collect();
        Ok(TensorType::new(dtype, shape).into())
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        // Every row meets one expert.
        let each = args[1].with_shape(args[1].shape[1..].iter().cloned());
        N::from(2.0) * size(&args[0].with_shape([args[0].shape[0].clone()])) * size(&each)
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, w, offsets] = args else { unreachable!("operands were counted") };
        let Axes { columns, summed_in_w } = self.axes();
        let (rows, experts, n, terms) = (x.shape[0], w.shape[0], w.shape[columns], x.shape[1]);
        let expert_of = |g: usize| {
            (0..experts).find(|&e| (offsets.data[e] as usize..offsets.data[e + 1] as usize).contains(&g))
        };
        let owners: Vec<Option<usize>> = (0..rows).map(expert_of).collect();
        vec![Array::from_fn(&[rows, n], |at| {
            let Some(e) = owners[at[0]] else { return 0.0 };
            let mut index = [e, 0, 0];
            let term = |k: usize| {
                index[columns] = at[1];
                index[summed_in_w] = k;
                x.at(&[at[0], k]) * w.at(&index)
            };
            (0..terms).map(term).sum()
        })]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let ([x, w, offsets], g) = (cx.args(), cx.grad());
        let (Spec { inputs, out, .. }, dtype) = (&self.spec, cx.ty(g).dtype);
        let mut shares = vec![None; 3];
        let spec = |inputs: [&Vec<Axis>; 2], out: &[Axis]| {
            Spec::new(&inputs.map(|axes| &axes[..]), out, |axis| self.spec.letter(axis))
        };
        if cx.wants(0) {
            let w = cx.cast(w, dtype)?;
            shares[0] = Some(cx.op(Grouped { spec: spec([out, &inputs[1]], &inputs[0]) }, &[g, w, offsets])?);
        }
        if cx.wants(1) {
            let x = cx.cast(x, dtype)?;
            let spec = spec([&inputs[0], out], &inputs[1]);
            shares[1] = Some(cx.op(GroupedOuter { spec }, &[x, g, offsets])?);
        }
        Ok(shares)
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, i: usize) -> bool {
        i < 2
    }

    /// One program for an expert and a block of columns: it goes over the expert's rows, however many there are.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, w, offsets] = args else { unreachable!("operands were counted") };
        let Axes { columns, summed_in_w } = self.axes();
        let (x, w) = (x.memory()?, w.memory()?);
        if let Some(result) = self.codes(cx, x, w, offsets) {
            return result;
        }
        if let (Some(_), Some(experts)) = (cx.schedule.tensor_of(&[x, w]), cx.size(&w.shape[0])) {
            (cx.by_rows)(&x.shape[0], experts as i64, true);
        }
        // With few rows of each expert, the columns are the rows of tiles.
        let swapped = cx.few.is_some_and(|few| few.swapped);
        let [bm, bn, bk] = cx.product_of(&[x, w]);
        let (bm, bn) = if swapped { (bn, bm) } else { (bm, bn) };
        let bn = cx.size(&w.shape[columns]).map_or(bn, |n| n.clamp(1, bn));
        let bk = cx.size(&x.shape[1]).map_or(bk, |n| n.clamp(1, bk));

        let tiles = cx.schedule.tensor_of(&[x, w]).is_some() && cx.few.is_none();
        let programs = Programs::new(cx, [&x.shape[0], &w.shape[0]], bm, tiles);
        let first = cx.program_tile(&w.shape[columns], bn);
        let blocks = cx.extent(&x.shape[1]).div_ceil(bk as i64);
        programs.tiles(cx, offsets, |Rows { expert, first: row, end }, empty| {
            let zero = cx.k.full(if swapped { [bn, bm] } else { [bm, bn] }, 0.0);
            let blocks = empty.map_or(blocks, |empty| empty.select(cx.k.int(0), blocks));
            let [sum] = cx.k.fold(blocks, [zero], |k, [acc]| {
                let k = Coord::Cols(k * bk as i64);
                let limits = vec![(0, end)];
                let rows = Request { coords: vec![Coord::Rows(row), k], rows: bm, cols: bk, limits };
                let mut coords = vec![Coord::At(expert); 3];
                coords[columns] = Coord::Rows(first);
                coords[summed_in_w] = k;
                let columns = Request { coords, rows: bn, cols: bk, limits: Vec::new() };
                let (x, w) = (cx.load(x, &rows), cx.load(w, &columns));
                [if swapped { acc.add_dot(w, x) } else { acc.add_dot(x, w) }]
            });
            let limits = vec![(0, end)];
            let at = if swapped {
                let coords = vec![Coord::Cols(row), Coord::Rows(first)];
                Request { coords, rows: bn, cols: bm, limits }
            } else {
                let coords = vec![Coord::Rows(row), Coord::Cols(first)];
                Request { coords, rows: bm, cols: bn, limits }
            };
            cx.emit(&at, sum)
        })
    }
}

/// Rows of an expert, from `first` on; `end` is where the expert's end.
#[derive(Clone, Copy)]
struct Rows<'k> {
    expert: Tile<'k>,
    first: Tile<'k>,
    end: Tile<'k>,
}

/// Which programs there are along the rows: the grid's first axis.
enum Programs<'k> {
    /// One for an expert, which goes over the expert's rows.
    Experts(Tile<'k>, usize),
    /// One for a tile of rows, of this length, of some expert: tiles are numbered expert by expert. Then all programs take
    /// equally long, however unequal the experts are, and those that run at the same time stay together and share what
    /// they read.
    Tiles {
        number: Tile<'k>,
        tile: i64,
        experts: usize,
        /// Where each expert's rows would begin if they were those of whole tiles: so many rows are in the tiles before.
        starts: BufView,
    },
}

/// The place of the offsets among the operands.
const OFFSETS: usize = 2;

/// How many parts a search is divided into at each step: places are looked up in memory one step after another, but those of
/// a step together.
const WAYS: usize = 4;

impl<'k> Programs<'k> {
    fn new(cx: &Cx<'k>, [rows, experts]: [&Dim; 2], tile: usize, tiles: bool) -> Self {
        match cx.size(experts).filter(|_| tiles) {
            Some(experts) => {
                // Each expert's last tile may have few rows.
                let all = rows + &Dim::from((experts * tile) as i64);
                let tile = tile as i64;
                let starts = (cx.aligned)(OFFSETS, tile);
                Self::Tiles { number: cx.k.program(all, tile), tile, experts, starts }
            }
            None => Self::Experts(cx.program(experts), tile),
        }
    }

    /// Writes this program's tiles of rows with `write`, which is also told whether there may be none in one.
    fn tiles(
        self,
        cx: &Cx<'k>,
        offsets: &View<'k>,
        mut write: impl FnMut(Rows<'k>, Option<Tile<'k>>) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let offset = |expert: Tile<'k>| offsets.at(&Request::element(&[expert]));
        match self {
            Self::Experts(expert, tile) => {
                let (base, end) = (offset(expert)?, offset(expert + 1i64)?);
                let [] = rows::try_fold((end - base).div_ceil(tile as i64), [], |i, []| {
                    write(Rows { expert, first: base + i * tile as i64, end }, None).map(|()| [])
                })?;
                Ok(())
            }
            Self::Tiles { number, tile, experts, starts } => {
                let place = number * tile;
                let start = |expert: Tile<'k>| cx.load(&starts, &Request::element(&[expert]));
                // The last expert whose first tile is this one or before.
                let (mut expert, mut left, mut is_short) = (cx.k.int(0), experts, false);
                while left > 1 {
                    // It is one of so many from `expert` on, which are parts as long as each other, or a shorter last one.
                    let part = left.div_ceil(WAYS);
                    let is_reached = |i: usize| {
                        let first = expert + (i * part) as i64;
                        let reached = start(first).le(place);
                        let reached =
                            if is_short { reached.and(first.lt(cx.k.int(experts as i64))) } else { reached };
                        reached.cast(Elem::I64)
                    };
                    let later = (1..left.div_ceil(part)).map(is_reached).reduce(|a, b| a + b);
                    expert = later.map_or(expert, |parts| expert + parts * part as i64);
                    is_short |= left % part != 0;
                    left = part;
                }
                let (first, end) = (place - start(expert) + offset(expert)?, offset(expert + 1i64)?);
                write(Rows { expert, first, end }, Some(end.le(first)))
            }
        }
    }
}

/// Where the axes are.
struct Axes {
    /// The place in `w` of the result's columns.
    columns: usize,
    /// The place in `w` of the summed axis.
    summed_in_w: usize,
}

impl Grouped {
    /// The kernel for 8-bit operands on tensor cores, whose scales are read by themselves; `None` if they cannot do it.
    fn codes<'k>(
        &self,
        cx: &Cx<'k>,
        x: &BufView,
        w: &BufView,
        offsets: &View<'k>,
    ) -> Option<Result<(), LowerError>> {
        let tensor = cx.schedule.tensor.as_ref()?;
        let Axes { columns, summed_in_w } = self.axes();
        let (x, w) = (Operand::new(cx, x, 0, 1)?, Operand::new(cx, w, columns, summed_in_w)?);
        let (experts, terms) = (cx.size(&w.codes.shape[0])?, cx.size(&x.codes.shape[1])?);
        let few = cx.few.and_then(|few| few.codes);
        let (tile, swapped) = few.unwrap_or((tensor.codes, false));
        let all = cx.size(&w.codes.shape[columns]);
        let sides = if swapped { [&w, &x] } else { [&x, &w] };
        let cut = codes::cut(sides, tile, all.filter(|_| !swapped))?;
        (cx.by_rows)(&x.codes.shape[0], experts as i64, true);

        let (rows, wide) = if swapped { (cut.cols, cut.rows) } else { (cut.rows, cut.cols) };
        let programs = Programs::new(cx, [&x.codes.shape[0], &w.codes.shape[0]], rows, few.is_none());
        let first = cx.program_tile(&w.codes.shape[columns], wide);
        let result = programs.tiles(cx, offsets, |Rows { expert, first: row, end }, empty| {
            let at_expert = |_: usize| expert;
            let own = From { first: row, other: &at_expert, end: Some(end) };
            let weights = From { first, other: &at_expert, end: None };
            let places = if swapped { [weights, own] } else { [own, weights] };
            let terms = cx.k.int(terms as i64);
            let terms = empty.map_or(terms, |empty| empty.select(cx.k.int(0), terms));
            for (shift, sum) in codes::product(cx, cut, (None, terms), sides, places) {
                let [top, left] = shift.map(|n| n as i64);
                let coords = if swapped {
                    vec![Coord::Cols(row + left), Coord::Rows(first + top)]
                } else {
                    vec![Coord::Rows(row + top), Coord::Cols(first + left)]
                };
                let limits = vec![(0, end)];
                cx.emit(&Request { coords, rows: cut.tall, cols: cut.part, limits }, sum)?;
            }
            Ok(())
        });
        Some(result)
    }

    fn axes(&self) -> Axes {
        let place = |axis: Axis| self.spec.inputs[1].iter().position(|&a| a == axis).unwrap_or(0);
        Axes { columns: place(self.spec.out[1]), summed_in_w: place(self.spec.inputs[0][1]) }
    }
}
