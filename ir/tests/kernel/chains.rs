//! Random kernels of element-wise ops and folds against evaluating them element by element, outside in.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::run::{Options, Order, Storage};
use eva_ir::kernel::verify::verify;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use proptest::prelude::*;

/// A value for each row and column.
#[derive(Clone, Debug)]
enum Expr {
    X,
    Y,
    Constant(f64),
    Negative(Box<Expr>),
    /// `1/(1 + e^-x)`
    Sigmoid(Box<Expr>),
    Sum(Box<Expr>, Box<Expr>),
    Product(Box<Expr>, Box<Expr>),
    Larger(Box<Expr>, Box<Expr>),
    /// The third where the first is less than the second, else the fourth.
    IfLess(Box<[Expr; 4]>),
    /// Over all columns of the row.
    RowSum(Box<Expr>),
    RowMax(Box<Expr>),
    /// Over all rows of the program's tile.
    ColumnMin(Box<Expr>),
    Running(Box<Expr>),
    SwapPairs(Box<Expr>),
    /// Summed over three trips, in each multiplied by the number of the trip plus a half.
    Repeated(Box<Expr>),
}

fn expr() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![Just(Expr::X), Just(Expr::Y), (-2.0..2.0f64).prop_map(Expr::Constant)];
    leaf.prop_recursive(5, 24, 4, |inner| {
        let one = inner.clone().prop_map(Box::new);
        let two = (one.clone(), one.clone());
        prop_oneof![
            one.clone().prop_map(Expr::Negative),
            one.clone().prop_map(Expr::Sigmoid),
            two.clone().prop_map(|(a, b)| Expr::Sum(a, b)),
            two.clone().prop_map(|(a, b)| Expr::Product(a, b)),
            two.prop_map(|(a, b)| Expr::Larger(a, b)),
            [inner.clone(), inner.clone(), inner.clone(), inner].prop_map(|e| Expr::IfLess(Box::new(e))),
            one.clone().prop_map(Expr::RowSum),
            one.clone().prop_map(Expr::RowMax),
            one.clone().prop_map(Expr::ColumnMin),
            one.clone().prop_map(Expr::Running),
            one.clone().prop_map(Expr::SwapPairs),
            one.prop_map(Expr::Repeated),
        ]
    })
}

/// The tile's rows and columns; the rows and columns of `x` and of the result; `y` is one row.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tile: [usize; 2],
    rows: usize,
    cols: usize,
}

struct Data {
    shape: Shape,
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Expr {
    fn build<'k>(&self, k: &'k Build, [x, y]: [Tile<'k>; 2], tile: [usize; 2]) -> Tile<'k> {
        let of = |e: &Expr| e.build(k, [x, y], tile);
        // Folds and orders of columns need whole tiles.
        let whole = |e: &Expr| of(e) + k.full(tile, 0.0);
        match self {
            Expr::X => x,
            Expr::Y => y,
            Expr::Constant(value) => k.float(*value),
            Expr::Negative(a) => -of(a),
            Expr::Sigmoid(a) => of(a).sigmoid(),
            Expr::Sum(a, b) => of(a) + of(b),
            Expr::Product(a, b) => of(a) * of(b),
            Expr::Larger(a, b) => of(a).max(of(b)),
            Expr::IfLess(parts) => {
                let [a, b, c, d] = parts.as_ref();
                of(a).lt(of(b)).select(of(c), of(d))
            }
            Expr::RowSum(a) => whole(a).sum_along(1),
            Expr::RowMax(a) => whole(a).max_along(1),
            Expr::ColumnMin(a) => whole(a).min_along(0),
            Expr::Running(a) => whole(a).cumulative_sum(),
            Expr::SwapPairs(a) => whole(a).columns(ColumnOrder::SwapPairs),
            Expr::Repeated(a) => {
                let [sum] = k.fold(k.int(3), [k.full(tile, 0.0)], |trip, [sum]| {
                    [sum + of(a) * (trip.cast(Elem::F32) + 0.5)]
                });
                sum
            }
        }
    }

    /// The value in row `row` of the whole tensor, column `col` of the tile.
    fn at(&self, data: &Data, row: usize, col: usize) -> f64 {
        let Shape { tile: [tile_rows, tile_cols], rows, cols } = data.shape;
        let of = |e: &Expr| e.at(data, row, col);
        match self {
            Expr::X if row < rows && col < cols => data.x[row * cols + col],
            Expr::Y if col < cols => data.y[col],
            Expr::X | Expr::Y => 0.0,
            Expr::Constant(value) => *value,
            Expr::Negative(a) => -of(a),
            Expr::Sigmoid(a) => 1.0 / (1.0 + (-of(a)).exp()),
            Expr::Sum(a, b) => of(a) + of(b),
            Expr::Product(a, b) => of(a) * of(b),
            Expr::Larger(a, b) => of(a).max(of(b)),
            Expr::IfLess(parts) => {
                let [a, b, c, d] = parts.as_ref();
                if of(a) < of(b) { of(c) } else { of(d) }
            }
            Expr::RowSum(a) => (0..tile_cols).map(|col| a.at(data, row, col)).sum(),
            Expr::RowMax(a) => {
                (0..tile_cols).map(|col| a.at(data, row, col)).fold(f64::NEG_INFINITY, f64::max)
            }
            Expr::ColumnMin(a) => {
                let first = row / tile_rows * tile_rows;
                (first..first + tile_rows).map(|row| a.at(data, row, col)).fold(f64::INFINITY, f64::min)
            }
            Expr::Running(a) => (0..=col).map(|col| a.at(data, row, col)).sum(),
            Expr::SwapPairs(a) => a.at(data, row, col ^ 1),
            Expr::Repeated(a) => [0.5, 1.5, 2.5].map(|by| of(a) * by).iter().sum(),
        }
    }

    /// How many folds are inside of each other; evaluating takes time exponential in it.
    fn folds(&self) -> usize {
        match self {
            Expr::X | Expr::Y | Expr::Constant(_) => 0,
            Expr::Negative(a) | Expr::Sigmoid(a) | Expr::SwapPairs(a) | Expr::Repeated(a) => a.folds(),
            Expr::Sum(a, b) | Expr::Product(a, b) | Expr::Larger(a, b) => a.folds().max(b.folds()),
            Expr::IfLess(parts) => parts.iter().map(Expr::folds).max().unwrap_or(0),
            Expr::RowSum(a) | Expr::RowMax(a) | Expr::ColumnMin(a) | Expr::Running(a) => a.folds() + 1,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn kernels_compute_what_their_expressions_say(
        expr in expr().prop_filter("not too slow", |e| e.folds() <= 3),
        tile_rows in 1..5usize,
        half_cols in 1..5usize,
        rows in 1..10usize,
        missing in 0..2usize,
        seed in 0..1000u64,
    ) {
        let cols = 2 * half_cols - missing;
        let shape = Shape { tile: [tile_rows, 2 * half_cols], rows, cols };
        let k = Build::new("chain");
        let width = cols.to_string();
        let x = k.buf(buf("x", DType::F32, &["t", &width], Access::Read));
        let y = k.buf(buf("y", DType::F32, &[&width], Access::Read));
        let z = k.buf(buf("z", DType::F32, &["t", &width], Access::Write));
        let (row, zero) = (k.program(Dim::sym("t"), tile_rows as i64) * tile_rows as i64, k.int(0));
        let axes = [Some(0), Some(1)];
        let x_tile = k.load(x, &[row, zero], axes, shape.tile, &[]);
        let y_tile = k.load(y, &[zero], [None, Some(0)], [1, shape.tile[1]], &[]);
        let value = expr.build(&k, [x_tile, y_tile], shape.tile) + k.full(shape.tile, 0.0);
        k.store(z, &[row, zero], axes, &[], value);
        let kernel = k.finish();
        prop_assert_eq!(verify(&kernel), Ok(()));

        let data = Data { shape, x: numbers(rows * cols, seed), y: numbers(cols, seed + 1) };
        let mut storages = [&data.x, &data.y].map(|data| Storage::new(DType::F32, data.clone())).to_vec();
        storages.push(Storage::unwritten(DType::F32, rows * cols));
        let options = Options { order: Order::Shuffled(seed), ..Options::default() };
        run_on(&kernel, &[("t", rows as i64)], &mut storages, options).unwrap();
        for (i, &have) in storages[2].data.iter().enumerate() {
            let want = expr.at(&data, i / cols, i % cols);
            prop_assert!((have - want).abs() <= 1e-9 * want.abs().max(1.0), "element {}: {}, not {}", i, have, want);
        }
    }
}
