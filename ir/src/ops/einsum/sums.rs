//! Products of 8-bit codes for tensor cores: sums of a block of terms, which are scaled and added up in `f32`.
//!
//! Tensor cores keep few bits of long sums of 8-bit numbers, and scales change from block to block. So the terms of a
//! block are summed from zero on, and what comes out is scaled and added to sums in `f32`: `acc + (a · bᵀ) · (s_a · s_b)`.

use crate::kernel::build::{Build, Tile};

/// Reads codes: of the rows from number `first` of the program's tile on, the terms from `term` on, as a tile of
/// `shape`, rows times terms.
pub type Codes<'c, 'k> = dyn Fn(usize, [usize; 2], Tile<'k>) -> Tile<'k> + 'c;

/// Reads the scales of rows (by number of the first, and how many there are) in a block of terms (by its number).
/// Those of the left side are a column, those of the right side a row; one number does for all. None, of both sides, if scales
/// do not differ along the terms: whoever asks for the sums applies them.
pub type Scales<'c, 'k> = dyn Fn(usize, usize, Tile<'k>) -> Option<Tile<'k>> + 'c;

/// An operand.
pub struct Side<'c, 'k> {
    /// Its codes.
    pub codes: &'c Codes<'c, 'k>,
    /// Its scales.
    pub scales: &'c Scales<'c, 'k>,
}

/// How the sums of a program are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Rows of the program's tile.
    pub rows: usize,
    /// Rows that are multiplied at once; it divides `rows`.
    pub tall: usize,
    /// Columns.
    pub cols: usize,
    /// Columns that are multiplied at once: their sums of a block are in registers beside all that were added up. It
    /// divides `cols`.
    pub part: usize,
    /// Terms that are summed before they are scaled.
    pub block: usize,
    /// Blocks of a trip.
    pub ahead: usize,
    /// When scales are read.
    pub when: When,
}

/// When the scales of a block are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// A trip before, so that they are there in time.
    Before,
    /// With its codes.
    With,
    /// Where they are needed: bulk copies bring them to shared memory with the codes.
    After,
}

impl Cut {
    /// For tiles of `rows` and at most `cols` columns (of `all`, if that is known), `terms` of which come to shared memory
    /// together. Scales change after `block` terms; so many rows of the right side share one, if not each has its own, and those
    /// of both sides are `beside` the codes if bulk copies bring them.
    pub fn new(
        [rows, cols, terms]: [usize; 3],
        all: Option<usize>,
        block: usize,
        right: Option<usize>,
        beside: bool,
    ) -> Self {
        let (unit, most) = match right.or(beside.then_some(MOST_PART)) {
            Some(n) => {
                let unit = common(n, MOST_PART);
                // Half as wide where much of the last tile would be empty.
                let waste = |cols: usize| all.map_or(0, |all| all.next_multiple_of(cols) - all);
                let halves = cols == 2 * unit && all.is_some_and(|all| waste(cols) > waste(unit) + all / 20);
                (unit, if halves { unit } else { cols })
            }
            // A row of scales is in registers too, and more of them where there are many blocks.
            None if block < MOST_PART => (MOST_PART / 2, cols.min(MOST_PART / 2)),
            None => {
                let parts = cols.div_ceil(MOST_PART * 3 / 4);
                let unit = if cols.is_multiple_of(8 * parts) { cols / parts } else { MOST_PART / 2 };
                (unit, cols.min(MOST_PART * 3 / 2))
            }
        };
        let cols = match all {
            Some(all) if all <= unit => all,
            _ if most <= unit => common(most, unit),
            _ => most / unit * unit,
        };
        // Each block has addresses of its own for a row of scales.
        let terms = if right.is_none() && block < MOST_PART { terms.min(MOST_PART) } else { terms };
        let (part, ahead) = (cols.min(unit), (terms / block).max(1));
        let tall = if rows > MOST_ROWS { common(rows, MOST_ROWS) } else { rows };
        let when = match beside {
            true => When::After,
            false if right.is_some() || part * ahead <= MOST_PART => When::Before,
            false => When::With,
        };
        Self { rows, tall, cols, part, block, ahead, when }
    }
}

impl Cut {
    /// The first row and the first column of each part.
    pub fn firsts(&self) -> (Vec<usize>, Vec<usize>) {
        ((0..self.rows).step_by(self.tall).collect(), (0..self.cols).step_by(self.part).collect())
    }
}

/// The largest number that divides both.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}

/// The most rows that two warpgroups multiply at once.
const MOST_ROWS: usize = 128;
/// The most columns of a part.
const MOST_PART: usize = 128;

/// The sums over `terms` terms, part by part: all columns of the first rows, then those of the next.
pub fn sums<'k>(k: &'k Build, cut: Cut, terms: Tile<'k>, sides: [&Side<'_, 'k>; 2]) -> Vec<Tile<'k>> {
    let Cut { tall, part, block, ahead, when, .. } = cut;
    let [left, right] = sides;
    let (rows, cols) = cut.firsts();
    let parts = rows.len() * cols.len();
    let trips = terms.div_ceil((block * ahead) as i64);
    let mut last = terms.div_ceil(block as i64) - 1i64;
    if terms.as_int().is_none() {
        // There may be none, whose scales are not asked for.
        last = last.max(k.int(0));
    }
    // The scales of the blocks of a trip: those of each block's rows, then of its columns.
    let scales = |trip: Tile<'k>, blocks: std::ops::Range<usize>| -> Vec<Tile<'k>> {
        let of = |i: usize| {
            let number = (trip * ahead as i64 + i as i64).min(last);
            let own = rows.iter().filter_map(|&first| (left.scales)(first, tall, number)).collect::<Vec<_>>();
            let others = cols.iter().filter_map(|&first| (right.scales)(first, part, number));
            own.into_iter().chain(others).collect::<Vec<_>>()
        };
        blocks.flat_map(of).collect()
    };
    let zero = k.full([tall, part], 0.0);
    let mut init = vec![zero; parts];
    if when == When::Before {
        init.extend(scales(k.int(0), 0..ahead));
    }
    let sums = k.fold_all(trips, &init, |trip, carried| {
        let (sums, now) = carried.split_at(parts);
        let mut sums = sums.to_vec();
        // Asked for a trip before they are needed, they are there in time.
        let next = if when == When::Before { scales(trip + 1i64, 0..ahead) } else { Vec::new() };
        for i in 0..ahead {
            let own;
            let known = match when {
                When::Before => &now[i * now.len() / ahead..(i + 1) * now.len() / ahead],
                When::With => {
                    own = scales(trip, i..i + 1);
                    &own[..]
                }
                When::After => &[],
            };
            let number = trip * ahead as i64 + i as i64;
            let (of_rows, of_cols) = known.split_at(rows.len().min(known.len()));
            let term = trip * (block * ahead) as i64 + (i * block) as i64;
            for (r, &row) in rows.iter().enumerate() {
                let a = (left.codes)(row, [tall, block], term);
                let of_row = if when == When::After {
                    (left.scales)(row, tall, number)
                } else {
                    of_rows.get(r).copied()
                };
                for (c, &col) in cols.iter().enumerate() {
                    let b = (right.codes)(col, [part, block], term);
                    let product = k.full([tall, part], 0.0).add_dot(a, b);
                    let of_col = if when == When::After {
                        (right.scales)(col, part, number)
                    } else {
                        of_cols.get(c).copied()
                    };
                    let scale = of_row.zip(of_col).map(|(x, y)| x * y);
                    let sum = &mut sums[r * cols.len() + c];
                    *sum = *sum + scale.map_or(product, |scale| product * scale);
                }
            }
        }
        sums.extend(next);
        sums
    });
    sums[..parts].to_vec()
}
