//! Products of warpgroups, alone.

use crate::block_support::*;
use crate::support::*;
use eva_ir::kernel::block::*;
use eva_ir::kernel::run::{Fault, Options, RunError, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// What a kernel does that multiplies once: `c = keep · d + a · bᵀ` with `a` of `64 · groups` rows.
#[derive(Clone, Copy)]
struct Product {
    /// The types of the operands.
    types: [DType; 2],
    n: usize,
    k: usize,
    /// Which operands have their rows along the summed axis.
    transposed: [bool; 2],
    /// Whether the left operand is in registers.
    registers: bool,
    keep: Keeps,
    /// Warpgroups, each with 64 rows.
    groups: usize,
    /// Terms that lie in front of the operands in shared memory, and rows in front of the right one.
    before: [usize; 2],
    fence: bool,
    barrier: bool,
    wait: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    Yes,
    No,
    /// With a condition.
    When(bool),
}

const PLAIN: Product = Product {
    types: [DType::Bf16; 2],
    n: 40,
    k: 48,
    transposed: [false; 2],
    registers: false,
    keep: Keeps::No,
    groups: 1,
    before: [0; 2],
    fence: true,
    barrier: true,
    wait: true,
};

impl Product {
    fn kernel(self) -> Raw {
        let Product { types, n, k: terms, transposed, groups, before, .. } = self;
        let m = 64 * groups;
        let mut k = Raw::blocks(4 * groups);
        let dims = [m, n, terms].map(|n| n.to_string());
        let [ms, ns, ks] = dims.each_ref().map(|dim| dim.as_str());
        let a = k.buf(types[0], &[ms, ks], Access::Read);
        let b = k.buf(types[1], &[ns, ks], Access::Read);
        let c = k.buf(DType::F64, &[ms, ns], Access::Write);
        let d = k.buf(DType::F32, &[ms, ns], Access::Read);
        let thread = k.thread();
        let (zero, one) = (k.int(0), k.int(1));

        // Operands go to shared memory an element at a time.
        let fill = |k: &mut Raw, of: Buf, dtype: DType, rows: usize, transposed: bool, before: [usize; 2]| {
            let size = |n: usize, by: usize| n.next_multiple_of(by);
            let (rows_all, terms_all) = (rows + before[1], terms + before[0]);
            let line = 128 / dtype.bytes() as usize;
            let shape = if transposed {
                [size(terms_all, 8), size(rows_all, line)]
            } else {
                [size(rows_all, 8), size(terms_all, line)]
            };
            let tile = k.shared("", dtype, shape, 2, true);
            let trips = k.int((rows * terms).div_ceil(128 * groups) as i64);
            k.repeat(trips, &[], |k, i, _| {
                let at = k.with(Fn2::Mul, i, 128 * groups as i64);
                let at = k.zip(Fn2::Add, at, thread);
                let inside = k.with(Fn2::Lt, at, (rows * terms) as i64);
                let x = k.load(Space::Buf(of), at, 1, Some(inside));
                let (row, term) = (k.with(Fn2::Div, at, terms as i64), k.with(Fn2::Rem, at, terms as i64));
                let (row, term) =
                    (k.with(Fn2::Add, row, before[1] as i64), k.with(Fn2::Add, term, before[0] as i64));
                let (y, x_at) = if transposed { (term, row) } else { (row, term) };
                let at = k.with(Fn2::Mul, y, shape[1] as i64);
                let at = k.zip(Fn2::Add, at, x_at);
                // The second stage.
                let at = k.with(Fn2::Add, at, (shape[0] * shape[1]) as i64);
                k.store(Space::Shared(tile), at, x, Some(inside));
                vec![]
            });
            tile
        };
        let right = fill(&mut k, b, types[1], n, transposed[1], before);
        let group = k.with(Fn2::Div, thread, 128);
        let row = k.with(Fn2::Mul, group, 64);
        // A turn of the second stage.
        let turn = k.int(5);
        let left = if self.registers {
            let first = base(&mut k, thread, terms as i64);
            let slots = k.table(product_slots(terms, terms));
            let at = k.zip(Fn2::Add, first, slots);
            MmaLeft::Registers(k.load(Space::Buf(a), at, 1, None))
        } else {
            let tile = fill(&mut k, a, types[0], m, transposed[0], [before[0], 0]);
            MmaLeft::Shared { tile: operand(tile, turn, transposed[0], before[0]), row }
        };
        if self.fence {
            k.block(BlockInst::FenceAsync);
        }
        if self.barrier {
            k.barrier(0, 4 * groups);
        }

        let first = base(&mut k, thread, n as i64);
        let slots = k.table(product_slots(n, n));
        let at = k.zip(Fn2::Add, first, slots);
        let keep = match self.keep {
            Keeps::Yes => Keep::Yes,
            Keeps::No => Keep::No,
            Keeps::When(holds) => Keep::When(k.zip(Fn2::Lt, zero, if holds { one } else { zero })),
        };
        let acc = k.load(Space::Buf(d), at, 1, None);
        let (b, b_row) = (operand(right, turn, transposed[1], before[0]), k.int(before[1] as i64));
        let mut out = k.slots(Elem::F32, n / 2, |out| BlockInst::Mma {
            out,
            acc,
            keep,
            a: left,
            b,
            b_row,
            n,
            k: terms,
        });
        if self.wait {
            out = k.mma_wait(0, out);
        }
        k.store(Space::Buf(c), at, out, None);
        k
    }

    fn storages(self) -> Vec<Storage> {
        let Product { types, n, k, groups, .. } = self;
        let m = 64 * groups;
        // Larger and smaller than their types like.
        let awkward = |x: f64| x * if x > 1.5 { 40.0 } else { 0.37 };
        let a = numbers(m * k, 1).into_iter().map(awkward);
        let a = if self.registers { Storage::new(DType::F32, a) } else { Storage::new(types[0], a) };
        vec![
            a,
            Storage::new(types[1], numbers(n * k, 2).into_iter().map(awkward)),
            Storage::unwritten(DType::F64, m * n),
            Storage::new(DType::F32, numbers(m * n, 3)),
        ]
    }

    /// The product's elements in another way, in the order of `c`.
    fn want(self, storages: &[Storage]) -> Vec<f64> {
        let Product { types, n, k, .. } = self;
        // Left operands in registers become what the right ones are.
        let a = Storage::new(types[1], storages[0].data.clone());
        let a = if self.registers { &a.data } else { &storages[0].data };
        let (b, d) = (&storages[1].data, &storages[3].data);
        let keep = matches!(self.keep, Keeps::Yes | Keeps::When(true));
        let item = |i: usize| {
            let (row, col) = (i / n, i % n);
            let terms = (0..k).rev().map(|t| a[row * k + t] * b[col * k + t]);
            terms.sum::<f64>() + if keep { d[i] } else { 0.0 }
        };
        (0..d.len()).map(item).collect()
    }

    fn check(mut self) {
        if self.registers {
            self.types[0] = DType::F32;
        }
        let storages = self.storages();
        let result = always(&self.kernel(), &[], &storages, Options::default());
        close(&result[2].data, &self.want(&storages), 1e-11);
    }
}

#[test]
fn products_are_products() {
    PLAIN.check();
    Product { n: 8, k: 16, ..PLAIN }.check();
    Product { n: 72, k: 80, types: [DType::F16; 2], groups: 2, ..PLAIN }.check();
}

#[test]
fn operands_of_eight_bits() {
    use DType::{F8E4M3, F8E5M2};
    for types in [[F8E4M3; 2], [F8E5M2; 2], [F8E4M3, F8E5M2]] {
        Product { types, k: 96, n: 24, ..PLAIN }.check();
    }
}

#[test]
fn operands_of_tf32() {
    let types = [DType::Tf32; 2];
    Product { types, k: 24, ..PLAIN }.check();
    Product { types, k: 40, n: 16, groups: 2, before: [16, 8], ..PLAIN }.check();
}

#[test]
fn operands_are_transposed() {
    for transposed in [[true, false], [false, true], [true, true]] {
        Product { transposed, n: 24, k: 80, groups: 2, ..PLAIN }.check();
    }
}

#[test]
fn operands_start_within_their_tiles() {
    for transposed in [[false; 2], [true; 2]] {
        Product { before: [16, 24], n: 32, k: 48, transposed, ..PLAIN }.check();
    }
}

#[test]
fn accumulators_are_kept_or_not() {
    for keep in [Keeps::Yes, Keeps::When(true), Keeps::When(false)] {
        Product { keep, ..PLAIN }.check();
    }
}

#[test]
fn left_operands_in_registers_are_rounded() {
    Product { registers: true, groups: 2, ..PLAIN }.check();
    let types = [DType::F8E5M2; 2];
    Product { registers: true, types, k: 64, ..PLAIN }.check();
}

#[test]
fn sums_are_exact_or_f32() {
    let storages = PLAIN.storages();
    let options = Options { f32: true, ..Options::default() };
    let result = always(&PLAIN.kernel(), &[], &storages, options);
    assert!(result[2].data.iter().all(|&x| x == f64::from(x as f32)));
    let want = PLAIN.want(&storages);
    close(&result[2].data, &want, 1e-4);
    assert!(result[2].data.iter().zip(want).any(|(have, want)| *have != want));
}

#[test]
fn products_see_what_was_fenced_before_a_barrier() {
    let storages = PLAIN.storages();
    let without = |change: fn(&mut Product)| {
        let mut product = PLAIN;
        change(&mut product);
        product.kernel()
    };
    never(
        &without(|p| p.fence = false),
        &[],
        &storages,
        &["was written and not fenced before the last barrier"],
    );
    let missing = ["is read before it is written", "and no barrier is between"];
    never(&without(|p| p.barrier = false), &[], &storages, &missing);
}

#[test]
fn results_are_waited_for() {
    let storages = PLAIN.storages();
    let k = Product { wait: false, ..PLAIN }.kernel();
    never(&k, &[], &storages, &["a product is read that may be under way"]);
    // Nor is the kernel at its end before.
    let mut k = Product { wait: false, ..PLAIN }.kernel();
    k.0.body.pop();
    never(&k, &[], &storages, &["a product may be under way at the end"]);
}

/// `c = a · bᵀ` for a right operand of one shared tile; between the product and its wait, or behind that and perhaps a
/// barrier, the tile is written.
fn overwritten(waits: bool, barrier: bool) -> Raw {
    let mut k = Raw::blocks(4);
    let tile = k.shared("b", DType::Bf16, [8, 64], 1, true);
    let (thread, zero) = (k.thread(), k.int(0));
    let (first, slots) = (k.with(Fn2::Mul, thread, 4), k.table([0, 1, 2, 3]));
    let at = k.zip(Fn2::Add, first, slots);
    let x = k.floats(1, 4, 2.0);
    k.store(Space::Shared(tile), at, x, None);
    k.block(BlockInst::FenceAsync);
    k.barrier(0, 4);
    let (acc, left) = (k.floats(1, 4, 0.0), k.floats(1, 8, 1.0));
    let (a, b) = (MmaLeft::Registers(left), operand(tile, zero, false, 0));
    let keep = Keep::No;
    let out = k.slots(Elem::F32, 4, |out| BlockInst::Mma { out, acc, keep, a, b, b_row: zero, n: 8, k: 16 });
    if waits {
        k.mma_wait(0, out);
    }
    if barrier {
        k.barrier(0, 4);
    }
    let y = k.floats(1, 4, 3.0);
    k.store(Space::Shared(tile), at, y, None);
    if !waits {
        k.mma_wait(0, out);
    }
    k
}

#[test]
fn operands_stay_until_the_product_is_finished() {
    always(&overwritten(true, true), &[], &[], Options::default());
    let early = ["b is still being read by a product or a bulk copy"];
    never(&overwritten(false, true), &[], &[], &early);
    never(&overwritten(true, false), &[], &[], &[early[0], "and no barrier is between"]);
    always(&other_group_overwrites(true), &[], &[], Options::default());
    never(&other_group_overwrites(false), &[], &[], &[early[0], "and no barrier is between"]);
}

/// Two warpgroups, each with a product of its own stage. The second one writes the stage of the first, long after the
/// waits, but perhaps behind no barrier.
fn other_group_overwrites(barrier: bool) -> Raw {
    let mut k = Raw::blocks(8);
    let tile = k.shared("b", DType::Bf16, [8, 64], 2, true);
    let (thread, zero, long) = (k.thread(), k.int(0), k.int(100));
    let (first, slots) = (k.with(Fn2::Mul, thread, 4), k.table([0, 1, 2, 3]));
    let at = k.zip(Fn2::Add, first, slots);
    let x = k.floats(1, 4, 2.0);
    k.store(Space::Shared(tile), at, x, None);
    k.block(BlockInst::FenceAsync);
    k.barrier(0, 8);
    let (acc, left, group) = (k.floats(1, 4, 0.0), k.floats(1, 8, 1.0), k.with(Fn2::Div, thread, 128));
    let (a, b, keep) = (MmaLeft::Registers(left), operand(tile, group, false, 0), Keep::No);
    let out = k.slots(Elem::F32, 4, |out| BlockInst::Mma { out, acc, keep, a, b, b_row: zero, n: 8, k: 16 });
    k.mma_wait(0, out);
    if barrier {
        k.barrier(0, 8);
    }
    k.repeat(long, &[zero], |k, i, sum| vec![k.zip(Fn2::Add, sum[0], i)]);
    let second = k.zip(Fn2::Lt, zero, group);
    let at = k.with(Fn2::Sub, at, 512);
    let y = k.floats(1, 4, 3.0);
    let (body, ()) = k.body(|k| k.store(Space::Shared(tile), at, y, None));
    k.push(Inst::If { cond: second, body });
    k
}

/// Two products in flight, the second adding to the first where `chained`; one is left unfinished by the first wait.
fn two(chained: bool, pending: usize, read: usize) -> Raw {
    let mut k = Raw::blocks(4);
    let c = k.buf(DType::F32, &["1024"], Access::Write);
    let tile = k.shared("b", DType::Bf16, [8, 64], 1, true);
    let (thread, zero) = (k.thread(), k.int(0));
    let (first, slots) = (k.with(Fn2::Mul, thread, 4), k.table([0, 1, 2, 3]));
    let at = k.zip(Fn2::Add, first, slots);
    let x = k.floats(1, 4, 2.0);
    k.store(Space::Shared(tile), at, x, None);
    k.block(BlockInst::FenceAsync);
    k.barrier(0, 4);
    let (acc, left) = (k.floats(1, 4, 10.0), k.floats(1, 8, 1.0));
    let mut product = |acc: Reg| {
        let (a, b) = (MmaLeft::Registers(left), operand(tile, zero, false, 0));
        let keep = Keep::Yes;
        k.slots(Elem::F32, 4, |out| BlockInst::Mma { out, acc, keep, a, b, b_row: zero, n: 8, k: 16 })
    };
    let one = product(acc);
    let other = product(if chained { one } else { acc });
    let outs: Vec<(Reg, Reg)> = [one, other].map(|x| (k.reg(Elem::F32, 1, 4), x)).to_vec();
    k.block(BlockInst::MmaWait { pending, values: outs.clone() });
    k.store(Space::Buf(c), at, outs[read].0, None);
    k.block(BlockInst::MmaWait { pending: 0, values: vec![] });
    k
}

#[test]
fn products_finish_in_order() {
    let storages = [Storage::new(DType::F32, vec![-1.0; 1024])];
    for (chained, pending, read, want) in
        [(false, 1, 0, 42.0), (false, 0, 1, 42.0), (true, 1, 0, 42.0), (true, 0, 1, 74.0)]
    {
        let result = always(&two(chained, pending, read), &[], &storages, Options::default());
        assert_eq!(result[0].data[..512], [want; 512]);
    }
    never(&two(true, 1, 1), &[], &storages, &["a product is read that may be under way"]);
    never(&two(false, 2, 0), &[], &storages, &["a product is read that may be under way"]);
}

#[test]
fn warpgroups_agree_on_their_products() {
    let change = |change: &dyn Fn(&mut Raw, Reg, &mut BlockInst)| {
        let mut k = overwritten(true, true);
        let mma =
            k.0.body.iter().position(|inst| matches!(inst, Inst::Block(BlockInst::Mma { .. }))).unwrap();
        let rest = k.0.body.split_off(mma);
        // The first instruction gives the thread's number.
        let thread = eva_ir::entity::Entity::new(0);
        let mut rest = rest.into_iter();
        let Some(Inst::Block(mut inst)) = rest.next() else { unreachable!() };
        change(&mut k, thread, &mut inst);
        k.block(inst);
        k.0.body.extend(rest);
        k
    };
    let k = change(&|k, thread, inst| {
        let BlockInst::Mma { b_row, .. } = inst else { unreachable!() };
        let warp = k.with(Fn2::Div, thread, 64);
        *b_row = k.with(Fn2::Mul, warp, 8);
    });
    never(&k, &[], &[], &["threads differ in the row of a product's operand"]);
    let k = change(&|k, _, inst| {
        let BlockInst::Mma { b_row, .. } = inst else { unreachable!() };
        *b_row = k.int(4);
    });
    never(&k, &[], &[], &["4 is not a multiple of 8"]);
    let k = change(&|k, _, inst| {
        let BlockInst::Mma { b_row, .. } = inst else { unreachable!() };
        *b_row = k.int(8);
    });
    never(&k, &[], &[], &["element 8 of b, which has 8"]);
    let k = change(&|_, thread, inst| {
        let BlockInst::Mma { b, .. } = inst else { unreachable!() };
        b.turn = thread;
    });
    never(&k, &[], &[], &["threads differ in the turn of a product's operand"]);
}

#[test]
fn fuel_ends_products_too() {
    let k = PLAIN.kernel();
    let options = Options { fuel: 100_000, ..Options::default() };
    let result = run_on(&k.0, &[], &mut PLAIN.storages(), options);
    assert!(matches!(result, Err(RunError::InBlock { fault: Fault::Fuel, .. })), "{result:?}");
}
