//! Tensors whose tokens lie in pages, which a table names.

use super::{BufView, Coord, Cx, Request};
use crate::dim::Dim;
use crate::kernel::build::Tile;

/// Where the tokens of a [`BufView`] `[b, t, …]` are: token `p` of a sequence in row `p % rows` of page
/// `table[b, p / rows]`. Of the view's strides the first means nothing, and the second is that of rows in a page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pages {
    /// How many pages there are.
    pub count: Dim,
    /// Rows of a page.
    pub rows: usize,
    /// The distance of pages, in elements.
    pub step: Dim,
    /// The table, `[b, k]`.
    pub table: BufView,
}

impl BufView {
    /// The pages that the view's tokens are in, as a tensor in memory `[count, rows, …]`.
    pub fn pool(&self) -> Option<BufView> {
        let pages = self.pages.as_ref()?;
        let with =
            |first: [Dim; 2], rest: &[Dim]| first.into_iter().chain(rest[2..].iter().cloned()).collect();
        Some(BufView {
            shape: with([pages.count.clone(), Dim::from(pages.rows as i64)], &self.shape),
            strides: with([pages.step.clone(), self.strides[1].clone()], &self.strides),
            pages: None,
            ..self.clone()
        })
    }

    /// [`BufView::reshape`], of tokens in pages: the axes of sequences and tokens stay, and the others are as they would
    /// be without those.
    pub(super) fn reshape_rows(&self, shape: &[Dim]) -> Option<BufView> {
        let rest = |dims: &[Dim]| dims.get(2..).map(<[Dim]>::to_vec);
        let row =
            BufView { shape: rest(&self.shape)?, strides: rest(&self.strides)?, pages: None, ..self.clone() };
        let stay = shape.get(..2).is_some_and(|first| *first == self.shape[..2]);
        let row = row.reshape(stay.then(|| &shape[2..])?)?;
        let strides = [&self.strides[..2], &row.strides].concat();
        Some(BufView { shape: shape.to_vec(), strides, ..self.clone() })
    }

    /// How many neighbours along `axis`, `most` at most, a tile may have that begins at a multiple of as many: where
    /// tokens are in pages, a tile of them must be in one.
    pub fn tile_along(&self, axis: usize, most: usize) -> usize {
        match &self.pages {
            Some(pages) if axis == 1 => {
                (1..=most.clamp(1, pages.rows)).rev().find(|n| pages.rows.is_multiple_of(*n)).unwrap_or(1)
            }
            // Sequences are in different pages.
            Some(_) if axis == 0 => 1,
            _ => most,
        }
    }
}

impl<'k> Cx<'k> {
    /// Loads a tile of tokens that lie in one page (see [`BufView::tile_along`]), or in memory without pages.
    pub fn load_in_page(&self, view: &BufView, at: &Request<'k>) -> Tile<'k> {
        let Some((pages, pool)) = view.pages.as_ref().zip(view.pool()) else { return self.load(view, at) };
        let (token, mut coords) = (at.coords[1], at.coords.clone());
        let first = token.start();
        let (entry, row) = (first / pages.rows as i64, first % pages.rows as i64);
        let table = (self.read)(&pages.table);
        coords[0] = Coord::At(self.k.load_scalar(table, &[at.coords[0].start(), entry]));
        // How far the tile's place in the page is from the token's number.
        let moved = first - row;
        coords[1] = token.shift(self.k.int(0) - moved);
        let mut limits: Vec<_> =
            at.limits.iter().map(|&(axis, end)| (axis, if axis == 1 { end - moved } else { end })).collect();
        // Bulk copies have whole tiles: what is in a page beyond the last token is multiplied by zero, or not stored.
        if !matches!(token, Coord::At(_)) && self.schedule.tensor_of(&[&pool]).is_none() {
            limits.push((1, self.extent(&view.shape[1]) - moved));
        }
        self.load(&pool, &Request { coords, rows: at.rows, cols: at.cols, limits })
    }

    /// Loads any tile of tokens in pages, each element from where it is.
    pub(super) fn load_paged(&self, view: &BufView, at: &Request<'k>) -> Tile<'k> {
        if matches!((at.coords[0], at.coords[1]), (Coord::At(_), Coord::At(_))) {
            return self.load_in_page(view, at);
        }
        let pages = view.pages.as_ref().expect("the caller has looked");
        let zero = self.k.int(0);
        // The index of each element along each axis, as a tile that stretches along the other.
        let along = |coord: Coord<'k>| match coord {
            Coord::At(i) => i,
            Coord::Rows(i) => self.k.iota(0, at.rows) + i,
            Coord::Cols(i) => self.k.iota(1, at.cols) + i,
        };
        let index: Vec<Tile<'k>> = at.coords.iter().map(|&coord| along(coord)).collect();
        let (seq, token) = (index[0], index[1]);
        let (entry, row) = (token / pages.rows as i64, token % pages.rows as i64);
        let width = self.extent(&pages.table.shape[1]);
        let flat = |view: &BufView| BufView {
            shape: vec![Dim::product(&view.shape)],
            strides: vec![Dim::from(1)],
            offset: Dim::from(0),
            pages: None,
            ..view.clone()
        };
        let table = (self.read)(&flat(&pages.table));
        let here = self.k.full([at.rows, at.cols], 0.0).cast(crate::kernel::Elem::I64);
        let known = entry.lt(width).select(seq * width + entry, self.k.int(-1));
        let number = self.k.gather(table, &[zero], 0, here + known);
        // Elements outside are at -1, which is none.
        let strides = view.strides.iter().map(|stride| self.extent(stride));
        let mut offset = number * self.extent(&pages.step) + row * self.extent(&view.strides[1]);
        for (index, stride) in index.iter().zip(strides).skip(2) {
            offset = offset + *index * stride;
        }
        offset = offset + self.extent(&view.offset);
        let mut inside = token.lt(self.extent(&view.shape[1]));
        let mut outside = |ok: Tile<'k>| offset = ok.select(offset, self.k.int(-1));
        outside(inside);
        inside = zero.le(number);
        outside(inside);
        outside(number.lt(self.extent(&pages.count)));
        outside(entry.lt(width));
        for (axis, index) in index.iter().enumerate().filter(|(axis, _)| *axis != 1) {
            outside(index.lt(self.extent(&view.shape[axis])));
        }
        for &(axis, end) in &at.limits {
            outside(index[axis].lt(end));
        }
        let pool = view.pool().expect("it has pages");
        let all = BufView { shape: vec![&pages.count * &pages.step], ..flat(&pool) };
        self.k.gather((self.read)(&all), &[zero], 0, here + offset)
    }
}
