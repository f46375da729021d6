//! Operands of 8-bit floats as tensor cores take them: codes, and scales by themselves.

use super::sums::{Cut, Side, sums};
use crate::dim::Dim;
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, Request};
use crate::types::DType;

/// An operand of a product.
pub struct Operand {
    /// Its codes.
    pub codes: BufView,
    scales: BufView,
    /// For each axis of `scales`, which axis of the operand it follows, and how many neighbours share a scale.
    along: Vec<(usize, i64)>,
    /// The axis that tiles have rows (or columns) along, and the summed one.
    row: usize,
    term: usize,
}

/// Where a product reads an operand: a tile's first index along its own axis, the place along each other axis but the
/// summed one, and where rows end before the tensor does.
#[derive(Clone, Copy)]
pub struct From<'c, 'k> {
    /// The first row of the program's tile.
    pub first: Tile<'k>,
    /// The index along an axis that is neither that of the rows nor summed.
    pub other: &'c dyn Fn(usize) -> Tile<'k>,
    /// Where rows end.
    pub end: Option<Tile<'k>>,
}

impl Operand {
    /// The operand whose tiles have rows along axis `row` and which is summed along `term`, neighbours in memory. None if
    /// bulk copies cannot bring its codes, or its scales follow more than one axis at once.
    pub fn new(cx: &Cx<'_>, view: &BufView, row: usize, term: usize) -> Option<Self> {
        let scales = view.scales.as_ref()?;
        let codes = view.codes();
        if row == term || view.pages.is_some() || !codes.is_bulk() || codes.strides[term] != Dim::from(1) {
            return None;
        }
        let zero = Dim::from(0);
        let (mut shape, mut strides, mut along) = (Vec::new(), Vec::new(), Vec::new());
        let mut offset = scales.offset.clone();
        for axis in &scales.along {
            let divides = axis.from.terms().all(|(_, n)| n % axis.block == 0);
            offset = offset + axis.from.divided(axis.block) * axis.stride.clone();
            let moving: Vec<usize> = (0..view.shape.len()).filter(|&i| axis.steps[i] != zero).collect();
            if !divides
                || axis.block > 1
                    && (moving.len() > 1 || moving.iter().any(|&i| axis.steps[i] != Dim::from(1)))
            {
                return None;
            }
            for i in moving {
                shape.push(match cx.size(&view.shape[i]) {
                    Some(n) => Dim::from((n as i64 + axis.block - 1) / axis.block),
                    None if axis.block == 1 => view.shape[i].clone(),
                    None => return None,
                });
                strides.push(&axis.steps[i] * &axis.stride);
                along.push((i, axis.block));
            }
        }
        let once = |i: usize| along.iter().filter(|(axis, _)| *axis == i).count() <= 1;
        if !(0..view.shape.len()).all(once) {
            return None;
        }
        let scales = BufView { shape, strides, offset, ..scales.by.clone() };
        Some(Self { codes, scales, along, row, term })
    }

    fn block_along(&self, axis: usize) -> Option<i64> {
        self.along.iter().find(|(along, _)| *along == axis).map(|&(_, block)| block)
    }

    /// How many neighbours along the summed axis share a scale, if not all.
    pub fn terms(&self) -> Option<i64> {
        self.block_along(self.term)
    }

    /// Whether bulk copies can bring the scales of neighbouring rows, each of which has its own.
    fn has_rows_of_scales(&self) -> bool {
        let own = self.along.iter().position(|&(axis, block)| axis == self.row && block == 1);
        let scales = &self.scales;
        own.is_some_and(|own| scales.strides[own] == Dim::from(1))
            && scales.dtype == DType::F32
            && scales.shape.len() >= 2
            && scales.pages.is_none()
            && scales.is_aligned()
    }

    /// The codes of `shape` rows and terms.
    pub fn load<'k>(
        &self,
        cx: &Cx<'k>,
        from: From<'_, 'k>,
        first: usize,
        shape: [usize; 2],
        term: Tile<'k>,
    ) -> Tile<'k> {
        let coord = |axis: usize| match axis {
            _ if axis == self.row => Coord::Rows(from.first + first as i64),
            _ if axis == self.term => Coord::Cols(term),
            _ => Coord::At((from.other)(axis)),
        };
        let limits = from.end.map(|end| (self.row, end)).into_iter().collect();
        let [rows, cols] = shape;
        let coords = (0..self.codes.shape.len()).map(coord).collect();
        cx.load(&self.codes, &Request { coords, rows, cols, limits })
    }

    /// The scales of `n` rows where the summed axis is at `term`, as a column, or as a row if `across`.
    pub fn scale<'k>(
        &self,
        cx: &Cx<'k>,
        from: From<'_, 'k>,
        [first, n]: [usize; 2],
        term: Tile<'k>,
        across: bool,
    ) -> Tile<'k> {
        let row = from.first + first as i64;
        let coord = |&(axis, block): &(usize, i64)| match axis {
            _ if axis == self.row && block == 1 && across => Coord::Cols(row),
            _ if axis == self.row && block == 1 => Coord::Rows(row),
            _ if axis == self.row => Coord::At(row / block),
            _ if axis == self.term => Coord::At(term / block),
            _ => Coord::At((from.other)(axis) / block),
        };
        let own = self.block_along(self.row) == Some(1);
        let (rows, cols) = match (own, across) {
            (true, true) => (1, n),
            (true, false) => (n, 1),
            (false, _) => (1, 1),
        };
        let coords = self.along.iter().map(coord).collect();
        cx.load(&self.scales, &Request { coords, rows, cols, limits: Vec::new() })
    }
}

/// How a product of these operands is cut, if tensor cores can do it: rows of the left one are rows of tiles.
pub fn cut(sides: [&Operand; 2], tile: [usize; 3], all: Option<usize>) -> Option<Cut> {
    let [left, right] = sides;
    // A block that is longer is summed in parts: tensor cores keep few bits.
    let block = match left.terms() {
        Some(n) if n % MOST_TERMS == 0 => MOST_TERMS,
        Some(n) => n,
        None => MOST_TERMS,
    };
    let right_block = match right.block_along(right.row) {
        Some(1) => None,
        Some(n) => Some(n as usize),
        None => Some(MOST_TERMS as usize),
    };
    // Scales outside of the sum are applied where it is done, and are no part of this.
    let right_block = if right.terms().is_some() { right_block } else { Some(MOST_TERMS as usize) };
    let beside =
        right_block.is_none() && block == MOST_TERMS && sides.iter().all(|side| side.has_rows_of_scales());
    let cut = Cut::new(tile, all, block as usize, right_block, beside);
    let rows = left.block_along(left.row).is_none_or(|n| n == 1 || n % cut.tall as i64 == 0);
    let fits = left.terms() == right.terms()
        && block <= MOST_TERMS
        && block % STEP == 0
        && rows
        && cut.part.is_multiple_of(8) | (cut.part == cut.cols);
    fits.then_some(cut)
}

/// The most terms that are summed without rounding them to `f32`, as DeepSeek-V3 has it.
const MOST_TERMS: i64 = 128;
/// Blocks have a multiple of so many terms, which tensor cores sum at once.
const STEP: i64 = 32;

/// The product of a program's tile, scaled, part by part: the first row and column of each, and the sums, over `terms` terms
/// from the first one on, or from `start`, where a block begins.
pub fn product<'k>(
    cx: &Cx<'k>,
    cut: Cut,
    (start, terms): (Option<Tile<'k>>, Tile<'k>),
    [left, right]: [&Operand; 2],
    [rows, cols]: [From<'_, 'k>; 2],
) -> Vec<([usize; 2], Tile<'k>)> {
    let from_start = |term: Tile<'k>| start.map_or(term, |start| start + term);
    let left_codes =
        |first: usize, shape: [usize; 2], term| left.load(cx, rows, first, shape, from_start(term));
    let right_codes =
        |first: usize, shape: [usize; 2], term| right.load(cx, cols, first, shape, from_start(term));
    let inside = left.terms().is_some();
    let term = |number: Tile<'k>| from_start(number * cut.block as i64);
    let left_scale = |first: usize, n: usize, number: Tile<'k>| {
        inside.then(|| left.scale(cx, rows, [first, n], term(number), false))
    };
    let right_scale = |first: usize, n: usize, number: Tile<'k>| {
        inside.then(|| right.scale(cx, cols, [first, n], term(number), true))
    };
    let sides = [
        &Side { codes: &left_codes, scales: &left_scale },
        &Side { codes: &right_codes, scales: &right_scale },
    ];
    let found = sums(cx.k, cut, terms, sides);
    let (tops, firsts) = cut.firsts();
    let places = tops.iter().flat_map(|&top| firsts.iter().map(move |&first| [top, first]));
    let part = |(at, sum): ([usize; 2], Tile<'k>)| {
        if inside {
            return (at, sum);
        }
        let (zero, [top, first]) = (cx.k.int(0), at);
        let scale = left.scale(cx, rows, [top, cut.tall], zero, false);
        (at, sum * (scale * right.scale(cx, cols, [first, cut.part], zero, true)))
    };
    places.zip(found).map(part).collect()
}
