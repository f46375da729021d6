//! Tile sizes, as data.

use super::BufView;

/// Tile sizes for one target: the only place where they are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Products: rows and columns of the result, and terms of the sum, of one tile.
    pub product: [usize; 3],
    /// The same where terms are far apart on both sides: gradients of weights.
    pub outer: [usize; 3],
    /// Attention: query rows and keys of one tile.
    pub attention: [usize; 2],
    /// The backward of attention: rows of the tile that stays (new tokens, or keys), and of those that pass by.
    pub attention_grad: [usize; 2],
    /// The same where bulk copies can bring all operands to tensor cores ([`BufView::is_bulk`]), if there are such.
    pub tensor: Option<TensorSchedule>,
    /// The longest row that is held as one tile; longer ones go block by block.
    pub row: usize,
    /// The columns of one tile where any number does.
    pub block: usize,
    /// Rows of one tile of a transposition that is a part of another kernel: neighbours in memory before it.
    pub turned: usize,
    /// Columns of one tile, of as many rows, of any other; they are made row by row if not given.
    pub turned_columns: Option<usize>,
    /// Sums over axes that are not the last: rows that are read at once, and columns of one tile.
    pub sums: [usize; 2],
    /// The most columns of one tile of rows that are read several times: programs do some columns of all rows before
    /// the next, so that what is read again is still in the cache.
    pub again: usize,
    /// How sums of small products by the ordinary units are divided, if they are.
    pub terms: Option<TermParts>,
    /// Sorting by expert.
    pub sort: SortSchedule,
}

/// How a product is cut whose result has too few tiles for all of the machine: its sum is divided too, and another kernel
/// adds up the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermParts {
    /// The most elements of the result.
    pub elements: i64,
    /// The sum has more terms than this.
    pub above: i64,
    /// Parts of the sum.
    pub parts: usize,
}

/// Tile sizes of sorting by expert; see [`Schedule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortSchedule {
    /// The most items each of which is compared with all others: those as rows of a tile, and the items as columns.
    pub few: i64,
    /// See `few`.
    pub compared: [usize; 2],
    /// Into how many parts more items are divided.
    pub parts: usize,
    /// How many of them are looked at together: columns of a tile that has experts as rows.
    pub items: usize,
    /// The most experts of such a tile; if there are more, all items are compared.
    pub experts: usize,
}

/// Tile sizes for tensor cores; see [`Schedule`].
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSchedule {
    /// Products: rows and columns of the result, and terms of the sum, of one tile; half as many of `tf32`.
    pub product: [usize; 3],
    /// The same for 8-bit operands.
    pub codes: [usize; 3],
    /// Attention whose values are at most `narrow` wide: query rows and keys of one tile.
    pub attention: [usize; 2],
    /// Attention with wider values.
    pub wide_attention: [usize; 2],
    /// The most columns of a value of which two warpgroups can have a row each.
    pub narrow: usize,
    /// The gradients of attention's queries: new tokens and keys of one tile.
    pub grad_queries: [usize; 2],
    /// Those of its keys and values: keys and new tokens of one tile.
    pub grad_keys: [usize; 2],
    /// The most columns of such gradients that are added up at the same time.
    pub grad_columns: usize,
    /// How many programs run at once.
    pub programs: usize,
    /// Kernels for products with few rows, the fewest first; they are chosen at launch.
    pub few: Vec<FewRows>,
    /// How the keys of few queries are divided, the fewest queries first; chosen at launch.
    pub parts: Vec<KeyParts>,
}

/// How attention of few queries is cut: the keys are divided too, so that there are programs for all of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyParts {
    /// The most queries (of all heads) that it is for.
    pub most: i64,
    /// Parts of the keys.
    pub parts: usize,
}

/// How a product of few rows (tokens) with many columns (weights) is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FewRows {
    /// The most rows that it is for.
    pub most: i64,
    /// Rows and columns of a tile, and terms of the sum.
    pub product: [usize; 3],
    /// The same for 8-bit operands, and what `swapped` is for them; none if the kernel for all numbers of rows does better.
    pub codes: Option<([usize; 3], bool)>,
    /// Whether columns of the result are the rows of tiles, so that no tile is mostly empty and many programs share the
    /// weights.
    pub swapped: bool,
    /// Whether dense products are cut so.
    pub dense: bool,
    /// Whether products of experts are: then `most` is a mean over the experts.
    pub experts: bool,
}

impl TensorSchedule {
    /// A tile for 16-bit operands as one for these: with as many bytes of terms.
    pub fn of([rows, cols, terms]: [usize; 3], operands: &[&BufView]) -> [usize; 3] {
        let bytes = operands.iter().map(|view| view.dtype.bytes() as usize).max().unwrap_or(2);
        [rows, cols, if bytes > 2 { terms * 2 / bytes } else { terms }]
    }

    /// Query rows and keys of a tile of attention whose values are `width` wide; `None` if tensor cores cannot do it: wide
    /// values are divided between two warpgroups, each of which has whole panels of 64.
    pub fn attention_of(&self, width: usize) -> Option<[usize; 2]> {
        let divided = width <= 2 * self.narrow && width.is_multiple_of(2 * 64);
        if width <= self.narrow { Some(self.attention) } else { divided.then_some(self.wide_attention) }
    }
}

impl Schedule {
    /// The tile sizes of a product of these operands.
    pub fn product_of(&self, operands: &[&BufView]) -> [usize; 3] {
        self.tensor_of(operands).map_or(self.product, |tensor| TensorSchedule::of(tensor.product, operands))
    }

    /// The tile sizes for tensor cores, if they are there and the operands are fit for them.
    pub fn tensor_of(&self, operands: &[&BufView]) -> Option<&TensorSchedule> {
        self.tensor.as_ref().filter(|_| operands.iter().all(|view| view.is_bulk()))
    }
}
