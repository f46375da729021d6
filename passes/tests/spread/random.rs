//! Kernels made at random. All floats are multiples of 1/8 of moderate size, so that sums are exact in any order.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::{Access, Buf, BufData, ColumnOrder, Elem, Kernel, RegType};
use eva_ir::types::DType;
use proptest::prelude::*;

/// What a random kernel is made of, one number a decision; zeros when there are none left.
struct Choices<'a>(std::slice::Iter<'a, u32>);

impl Choices<'_> {
    fn next(&mut self, n: usize) -> usize {
        self.0.next().map_or(0, |&x| x as usize % n)
    }
    fn is_done(&self) -> bool {
        self.0.len() == 0
    }
}

struct Made<'k> {
    k: &'k Build,
    rows: usize,
    cols: usize,
    x: Buf,
    whole: Buf,
    square: Buf,
    y: Buf,
    scattered: Buf,
    starts: Vec<Tile<'k>>,
    program: Tile<'k>,
    stores: i64,
    scatters: i64,
}

const STORES: i64 = 12;
/// Starts that are there outside of loops.
const STARTS: usize = 5;
const SCATTERS: i64 = 5;

impl<'k> Made<'k> {
    /// A multiple of 1/8 up to 8.
    fn tame(&self, x: Tile<'k>) -> Tile<'k> {
        let k = self.k;
        let x = k.float(8.0).min(x.max(k.float(-8.0)));
        (x * 8.0).cast(Elem::I64).cast(Elem::F32) * 0.125
    }

    fn pick(&self, c: &mut Choices, pool: &[Tile<'k>], fits: impl Fn(RegType) -> bool) -> Option<Tile<'k>> {
        let found: Vec<_> = pool.iter().copied().filter(|tile| fits(tile.ty())).collect();
        // The newest are the most interesting.
        (!found.is_empty()).then(|| found[found.len() - 1 - c.next(found.len().min(6))])
    }

    fn start(&self, c: &mut Choices) -> Tile<'k> {
        self.starts[c.next(self.starts.len())]
    }

    fn load(&self, c: &mut Choices, buf: Buf) -> Tile<'k> {
        let at = [self.program, self.start(c), self.start(c)];
        let (axes, shape) = match c.next(4) {
            0 => ([Some(1), None], [self.rows, 1]),
            1 => ([None, Some(2)], [1, self.cols]),
            2 => ([Some(2), Some(1)], [self.rows, self.cols]),
            _ => ([Some(1), Some(2)], [self.rows, self.cols]),
        };
        let limits: Vec<_> =
            if c.next(4) == 0 { vec![(1 + c.next(2), self.start(c) + 2i64)] } else { vec![] };
        self.k.load(buf, &at, axes, shape, &limits)
    }

    fn store(&mut self, c: &mut Choices, tile: Tile<'k>) {
        if self.stores == STORES {
            return;
        }
        let tile = match tile.ty().elem {
            Elem::F32 => tile,
            _ => tile.cast(Elem::F32),
        };
        // Not where a loop is: a place is always the same element's.
        let outside = |c: &mut Choices| self.starts[c.next(STARTS)];
        let at = [self.program, self.k.int(self.stores), outside(c), outside(c)];
        let limits: Vec<_> =
            if c.next(3) == 0 { vec![(2 + c.next(2), self.start(c) + 1i64)] } else { vec![] };
        let axes = if c.next(5) == 0 { [Some(3), Some(2)] } else { [Some(2), Some(3)] };
        self.k.store(self.y, &at, axes, &limits, tile);
        self.stores += 1;
    }

    fn step(&mut self, c: &mut Choices, pool: &mut Vec<Tile<'k>>, depth: usize) {
        let k = self.k;
        let floats = |ty: RegType| ty.elem == Elem::F32;
        let ints = |ty: RegType| ty.elem == Elem::I64;
        let bools = |ty: RegType| ty.elem == Elem::Bool;
        let (rows, cols) = (self.rows, self.cols);
        let made = match c.next(20) {
            0 | 1 => Some(self.load(c, self.x)),
            2 => Some(self.load(c, self.whole)),
            3 | 4 => (|| {
                let (x, y) = (self.pick(c, pool, floats)?, self.pick(c, pool, floats)?);
                Some(match c.next(5) {
                    0 => x - y,
                    1 => x.max(y),
                    2 => x.min(y),
                    3 => self.tame(x * y),
                    _ => self.tame(x + y),
                })
            })(),
            5 => self.pick(c, pool, floats).map(|x| match c.next(4) {
                0 => -x,
                1 => self.tame(x.min(k.float(3.0)).exp()),
                2 => self.tame(x.sin() * 4.0),
                _ => self.tame((x * x + 1.0).rsqrt()),
            }),
            6 => (|| {
                let (x, y) = (self.pick(c, pool, ints)?, self.pick(c, pool, ints)?);
                Some(match c.next(4) {
                    0 => (x + y) % 19i64,
                    1 => x.max(y - 3i64),
                    2 => x * (y % 3i64) % 23i64,
                    _ => y / 2i64 - x % 5i64,
                })
            })(),
            7 => (|| {
                let same = |a: Tile<'k>| move |ty: RegType| ty.elem == a.ty().elem;
                let x = self.pick(c, pool, |ty| ty.elem != Elem::Bool)?;
                let y = self.pick(c, pool, same(x))?;
                Some([x.lt(y), x.le(y), x.equals(y)][c.next(3)])
            })(),
            8 => (|| {
                let (x, y) = (self.pick(c, pool, bools)?, self.pick(c, pool, bools)?);
                Some([x.and(y), x.or(y), x.not()][c.next(3)])
            })(),
            9 => (|| {
                let cond = self.pick(c, pool, bools)?;
                let x = self.pick(c, pool, |_| true)?;
                let y = self.pick(c, pool, |ty| ty.elem == x.ty().elem)?;
                Some(cond.select(x, y))
            })(),
            10 => self.pick(c, pool, |ty| ty.elem != Elem::F32).map(|x| x.cast(Elem::F32)),
            11 => self.pick(c, pool, floats).map(|x| x.cast(Elem::I64) % 13i64),
            12 => (|| {
                let x = self.pick(c, pool, |ty| ty.elem != Elem::Bool)?;
                let axis = c.next(2);
                Some(match (c.next(3), x.ty().elem) {
                    (0, Elem::F32) => self.tame(x.sum_along(axis)),
                    (0, _) => x.sum_along(axis) % 17i64,
                    (1, _) => x.max_along(axis),
                    _ => x.min_along(axis),
                })
            })(),
            13 => (|| {
                let x = self.pick(c, pool, |ty| ty.elem != Elem::Bool)?;
                let scan = x.cumulative_sum();
                Some(if x.ty().elem == Elem::F32 { self.tame(scan) } else { scan % 29i64 })
            })(),
            14 if cols % 2 == 0 => self
                .pick(c, pool, |ty| ty.cols == cols)
                .map(|x| x.columns([ColumnOrder::SwapPairs, ColumnOrder::SwapHalves][c.next(2)])),
            15 => self.pick(c, pool, |ty| ty.rows == rows && ty.cols == cols && ty.elem != Elem::Bool).map(
                |x| {
                    let turned = x.reshape([[1, rows * cols], [cols, rows]][c.next(2)]);
                    let largest = turned.max_along(c.next(2));
                    (turned.max(largest - turned)).reshape([rows, cols])
                },
            ),
            16 => (|| {
                let acc = match c.next(2) {
                    0 => k.full([rows, cols], 0.0),
                    _ => self.pick(c, pool, |ty| floats(ty) && ty.rows == rows && ty.cols == cols)?,
                };
                let left = self.pick(c, pool, |ty| floats(ty) && ty.rows == rows && ty.cols == cols)?;
                let at = [self.start(c), self.start(c)];
                let axes = if c.next(2) == 0 { [Some(0), Some(1)] } else { [Some(1), Some(0)] };
                let right = k.load(self.square, &at, axes, [cols, cols], &[]);
                let right = if c.next(3) == 0 { self.tame(right.exp()) } else { right };
                let tamed = if c.next(2) == 0 { self.tame(left * 0.25) } else { left };
                Some(self.tame(acc.add_dot(tamed, right)))
            })(),
            17 => self.pick(c, pool, ints).map(|index| {
                let at = [self.program, self.start(c), self.start(c)];
                let (x, along) = (if c.next(2) == 0 { self.x } else { self.whole }, 1 + c.next(2));
                let ty = index.ty();
                if ![1, rows].contains(&ty.rows) || ![1, cols].contains(&ty.cols) || c.next(2) == 0 {
                    return k.gather(x, &at, along, index);
                }
                let axes = [[Some(1), Some(2)], [Some(2), Some(1)], [Some(2), None], [None, Some(2)]];
                k.gather_tile(x, &at, axes[c.next(4)], [rows, cols], &[], (along, index))
            }),
            18 if depth < 2 => {
                self.fold(c, pool, depth);
                None
            }
            19 => (|| {
                let index = self.pick(c, pool, ints)?;
                let of = |elem| move |ty: RegType| RegType { elem, ..index.ty() } == ty;
                let value = self.pick(c, pool, of(Elem::F32))?;
                let mask = self.pick(c, pool, of(Elem::Bool)).unwrap_or_else(|| index.le(index % 7i64));
                if self.scatters < SCATTERS {
                    // Every element goes to a place of its own, or outside.
                    let (ty, number) = (index.ty(), k.int(self.scatters));
                    let flat = k.iota(0, ty.rows) * ty.cols as i64 + k.iota(1, ty.cols);
                    let index = index % 3i64 - 1i64 + flat * 3i64;
                    let at = [self.program, number, self.starts[c.next(STARTS)]];
                    k.scatter(self.scattered, &at, 2, index, value, mask);
                    self.scatters += 1;
                }
                None
            })(),
            _ => {
                let tile = self.pick(c, pool, |_| true);
                tile.into_iter().for_each(|tile| self.store(c, tile));
                None
            }
        };
        pool.extend(made);
    }

    fn fold(&mut self, c: &mut Choices, pool: &mut Vec<Tile<'k>>, depth: usize) {
        let k = self.k;
        let Some(init) = (0..3).map(|_| self.pick(c, pool, |_| true)).collect::<Option<Vec<_>>>() else {
            return;
        };
        let init: [Tile<'k>; 3] = init.try_into().unwrap_or_else(|_| unreachable!("three were picked"));
        let trips = match c.next(3) {
            0 => k.int(c.next(4) as i64),
            1 => k.extent(&sym("trips")),
            _ => self.start(c),
        };
        let outs = k.fold(trips, init, |i, args| {
            let mut inner = pool.clone();
            inner.push(i);
            inner.extend(args);
            self.starts.push(i);
            for _ in 0..2 + c.next(7) {
                self.step(c, &mut inner, depth + 1);
            }
            self.starts.pop();
            init.map(|init| self.pick(c, &inner, |ty| ty == init.ty()).expect("the argument is one"))
        });
        pool.extend(outs);
    }
}

/// How scales share out the elements of `x` and of `square`: for each the type of the scales and of the elements, how
/// many rows and columns share one, and where rows begin.
type Scales = [(bool, bool, i64, i64, i64); 2];

/// The most scales of a row.
const SCALES: i64 = 16;

fn kernel(choices: &[u32], rows: usize, cols: usize, scales: Option<Scales>) -> Kernel {
    let mut c = Choices(choices.iter());
    let k = Build::new("random");
    let shape = [n(2), sym("r"), sym("c")];
    let square = [sym("c"), sym("c")];
    let input = |which: usize, name: &str, shape: &[Dim]| {
        let Some(scales) = scales else { return read(name, shape) };
        let (wide, few_bits, block, cols, from) = scales[which];
        let of = dense(
            ["scales of x", "scales of square"][which],
            if wide { DType::F32 } else { DType::E8M0 },
            Access::Read,
            &[n(40), n(SCALES)],
        );
        let by = k.buf(of);
        let dtype = if few_bits { DType::F8E5M2 } else { DType::F8E4M3 };
        // The first axes of `x` are one of the quantized tensor.
        let (first, last) = match shape.len() {
            3 => (vec![sym("r"), n(1), n(0)], vec![n(0), n(0), n(1)]),
            _ => (vec![n(1), n(0)], vec![n(0), n(1)]),
        };
        let along: [(i64, Dim, &[Dim], i64); 2] = [(block, n(from), &first, SCALES), (cols, n(0), &last, 1)];
        BufData { scaled: scaled(by, 0, &along), ..dense(name, dtype, Access::Read, shape) }
    };
    let program = k.program(n(2), 1);
    let start = k.buf(ints("start", &[n(3)]));
    let mut made = Made {
        rows,
        cols,
        x: k.buf(input(0, "x", &shape)),
        whole: k.buf(ints("whole", &shape)),
        square: k.buf(input(1, "square", &square)),
        y: k.buf(write("y", &[n(2), n(STORES), sym("r"), sym("c")])),
        scattered: k.buf(dense("scattered", DType::F32, Access::Write, &[n(2), n(SCATTERS), n(31)])),
        starts: vec![k.int(0), k.load_scalar(start, &[program]), k.int(3), program * 2i64, k.int(0)],
        program,
        stores: 0,
        scatters: 0,
        k: &k,
    };
    let mut pool =
        vec![k.iota(1, cols), made.load(&mut c, made.x), k.iota(0, rows), k.full([rows, cols], 0.5)];
    pool.push(k.load(made.x, &[program, k.int(0), k.int(0)], [Some(1), Some(2)], [rows, cols], &[]));
    while !c.is_done() {
        made.step(&mut c, &mut pool, 0);
    }
    for tile in pool.iter().rev().take(3) {
        made.store(&mut c, *tile);
    }
    k.finish()
}

fn scales() -> impl Strategy<Value = (bool, bool, i64, i64, i64)> {
    let block = || prop::sample::select(vec![1i64, 2, 3, 4, 8, 128]);
    (any::<bool>(), any::<bool>(), block(), block(), 0i64..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn random_kernels(
        choices in prop::collection::vec(any::<u32>(), 4..90),
        rows in prop::sample::select(vec![1usize, 3, 5]),
        cols in prop::sample::select(vec![1usize, 2, 6, 8, 13]),
        sizes in (0i64..8, 0i64..16, 0i64..4),
        start in (-4i64..5, 0i64..4),
        scales in prop::option::of([scales(), scales()]),
    ) {
        let kernel = kernel(&choices, rows, cols, scales);
        let value = |buf: Buf, i: u64| match buf.index() {
            0 => [start.0, start.1, 0][i as usize] as f64,
            _ if kernel.bufs[buf].name.starts_with("scales") => [1.0, 2.0, 4.0][noise(9, i) as usize % 3],
            _ if kernel.bufs[buf].dtype.is_int() => (eighths(buf, i) * 2.0).floor(),
            _ => eighths(buf, i),
        };
        agree_on(&kernel, &[("r", sizes.0), ("c", sizes.1), ("trips", sizes.2)], &value, 0.0);
    }
}
