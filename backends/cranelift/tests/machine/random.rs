//! Random kernels: the machine does what the interpreter does.

use crate::common::numbers::{decode_all, encode_all};
use crate::common::{Lane, call, sym_values};
use eva_cranelift::{Isa, OptLevel, Options, Registers, compile};
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::run::{self, Storage};
use eva_ir::kernel::{Access, Elem, Fn1, Fn2, Inst, Kernel, Reg, Space};
use eva_ir::types::DType::{self, Bf16, E8M0, F8E4M3, F8E5M2, F16, F32, F64, I32, I64};
use proptest::prelude::*;

const READ: usize = 61;
const PRIVATE: usize = 37;
const FLOATS: [DType; 7] = [F32, Bf16, F16, F64, F8E4M3, F8E5M2, E8M0];

/// One step of writing a kernel; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Do { what: u8, x: u8, y: u8, z: u8 },
    Loop { trips: u8, carried: u8, body: Vec<Step> },
    Branch { cond: u8, body: Vec<Step> },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = any::<u8>;
    let leaf =
        (number(), number(), number(), number()).prop_map(|(what, x, y, z)| Step::Do { what, x, y, z });
    let step = leaf.prop_recursive(3, 40, 8, move |inner| {
        let body = prop::collection::vec(inner, 1..8);
        prop_oneof![
            (number(), number(), body.clone()).prop_map(|(trips, carried, body)| Step::Loop {
                trips,
                carried,
                body
            }),
            (number(), body).prop_map(|(cond, body)| Step::Branch { cond, body }),
        ]
    });
    prop::collection::vec(step, 1..40)
}

/// The registers that can be named, by type: floats, vectors, truth values, masks, integers.
#[derive(Clone)]
struct Pool([Vec<Reg>; 5]);

impl Pool {
    fn kind(k: &Lane, reg: Reg) -> usize {
        let ty = k.ty(reg);
        match (ty.elem, ty.cols) {
            (Elem::F32, 1) => 0,
            (Elem::F32, _) => 1,
            (Elem::Bool, 1) => 2,
            (Elem::Bool, _) => 3,
            (Elem::I64, _) => 4,
        }
    }
    fn add(&mut self, k: &Lane, reg: Reg) {
        self.0[Self::kind(k, reg)].push(reg);
    }
    fn pick(&self, kind: usize, number: u8) -> Reg {
        // The newest are the likeliest.
        let of = &self.0[kind];
        of[of.len() - 1 - usize::from(number) % of.len().min(6)]
    }
}

struct Writer {
    k: Lane,
    inputs: Vec<Space>,
    ints: Space,
    floats: Space,
    truths: Space,
    numbers: Space,
}

impl Writer {
    /// An index of `len` elements or, for vectors, of their first.
    fn index(&mut self, pool: &Pool, number: u8, len: usize, cols: usize) -> Reg {
        let (x, n) = (pool.pick(4, number), self.k.int((len + 1 - cols) as i64));
        self.k.zip(Fn2::Rem, x, n)
    }

    /// An integer that stays small however often it is used.
    fn small(&mut self, x: Reg) -> Reg {
        let n = self.k.int(1009);
        self.k.zip(Fn2::Rem, x, n)
    }

    fn step(&mut self, pool: &mut Pool, step: &Step) {
        match step {
            Step::Do { what, x, y, z } => {
                if let Some(out) = self.one(pool, *what, *x, *y, *z) {
                    pool.add(&self.k, out);
                }
            }
            Step::Loop { trips, carried, body } => {
                let trips = self.k.int(i64::from(trips % 4));
                let init: Vec<Reg> =
                    (0..5).filter(|i| carried >> i & 1 == 1).map(|i| pool.pick(i, *carried)).collect();
                let kinds: Vec<usize> = init.iter().map(|&r| Pool::kind(&self.k, r)).collect();
                let mut inner = pool.clone();
                // `Lane::fold` wants the builder alone.
                let mut k = std::mem::replace(&mut self.k, Lane::new(""));
                let outs = k.fold(trips, &init, |k, i, args| {
                    std::mem::swap(&mut self.k, k);
                    inner.add(&self.k, i);
                    args.iter().for_each(|&arg| inner.add(&self.k, arg));
                    body.iter().for_each(|step| self.step(&mut inner, step));
                    std::mem::swap(&mut self.k, k);
                    kinds.iter().map(|&kind| inner.pick(kind, 0)).collect()
                });
                self.k = k;
                outs.into_iter().for_each(|out| pool.add(&self.k, out));
            }
            Step::Branch { cond, body } => {
                let cond = pool.pick(2, *cond);
                let mut inner = pool.clone();
                let mut k = std::mem::replace(&mut self.k, Lane::new(""));
                k.when(cond, |k| {
                    std::mem::swap(&mut self.k, k);
                    body.iter().for_each(|step| self.step(&mut inner, step));
                    std::mem::swap(&mut self.k, k);
                });
                self.k = k;
            }
        }
    }

    /// One instruction, with what keeps its operands inside its contract.
    ///
    /// Left out is what rounds in another way than the interpreter, and what tells 0 from -0.
    fn one(&mut self, pool: &Pool, what: u8, x: u8, y: u8, z: u8) -> Option<Reg> {
        let vector = usize::from(z % 2);
        let cols = if vector == 1 { 4 } else { 1 };
        let (a, b) = (pool.pick(vector, x), pool.pick(usize::from(z / 2 % 2), y));
        let (i, j) = (pool.pick(4, x), pool.pick(4, y));
        Some(match what % 24 {
            n @ 0..=4 => self.k.zip([Fn2::Add, Fn2::Sub, Fn2::Mul, Fn2::Max, Fn2::Min][usize::from(n)], a, b),
            5 => {
                let least = self.k.float(0.375, cols);
                let positive = self.k.zip(Fn2::Max, a, least);
                if z & 8 == 0 { self.k.map(Fn1::Recip, positive) } else { self.k.zip(Fn2::Div, b, positive) }
            }
            6 => self.k.map(if z & 8 == 0 { Fn1::Neg } else { Fn1::Sqrt }, a),
            7 => self.k.zip([Fn2::Lt, Fn2::Le, Fn2::Eq][usize::from(z / 4 % 3)], a, b),
            8 => self.k.zip([Fn2::Lt, Fn2::Le, Fn2::Eq][usize::from(z % 3)], i, j),
            9 => {
                let (c, d) = (pool.pick(2 + vector, x), pool.pick(2 + usize::from(z / 2 % 2), y));
                self.k.zip(if z & 4 == 0 { Fn2::And } else { Fn2::Or }, c, d)
            }
            10 => {
                let c = pool.pick(2 + vector, x);
                self.k.map(Fn1::Not, c)
            }
            11 => {
                let c = pool.pick(2 + usize::from(z / 4 % 2), y);
                self.k.select(c, a, b)
            }
            12 => {
                let c = pool.pick(2, z);
                self.k.select(c, i, j)
            }
            13 => {
                let c = pool.pick(2 + vector, x);
                self.k.cast(c, Elem::F32)
            }
            14 => match z % 3 {
                0 => self.k.cast(i, Elem::F32),
                1 => {
                    let x = pool.pick(0, x);
                    let n = self.k.cast(x, Elem::I64);
                    self.small(n)
                }
                _ => {
                    let c = pool.pick(2, x);
                    self.k.cast(c, Elem::I64)
                }
            },
            15 => self.k.round(a, FLOATS[usize::from(y) % FLOATS.len()]),
            16 => {
                let f = [Fn2::Add, Fn2::Sub, Fn2::Mul, Fn2::Max, Fn2::Min][usize::from(z % 5)];
                let n = self.k.zip(f, i, j);
                self.small(n)
            }
            17 => {
                let divisor = self.k.int([1, 2, 3, 7, 8, 64][usize::from(y % 6)]);
                let n = self.k.int(50);
                let negative = self.k.zip(Fn2::Sub, i, n);
                let f = if z.is_multiple_of(2) { Fn2::Div } else { Fn2::Rem };
                let n = self.k.zip(f, negative, divisor);
                self.small(n)
            }
            18 => {
                let space = self.inputs[usize::from(y) % self.inputs.len()];
                let at = self.index(pool, x, READ, cols);
                self.k.load(space, at, cols)
            }
            19 => {
                let at = self.index(pool, x, READ, 1);
                self.k.load(self.ints, at, 1)
            }
            20 => match z / 2 % 3 {
                0 => {
                    let at = self.index(pool, x, PRIVATE, cols);
                    self.k.load(self.floats, at, cols)
                }
                1 => {
                    let at = self.index(pool, x, PRIVATE, cols);
                    self.k.load(self.truths, at, cols)
                }
                _ => {
                    let at = self.index(pool, x, PRIVATE, 1);
                    self.k.load(self.numbers, at, 1)
                }
            },
            21 => {
                match z / 2 % 3 {
                    0 => {
                        let at = self.index(pool, y, PRIVATE, cols);
                        self.k.store(self.floats, at, a);
                    }
                    1 => {
                        let (at, c) = (self.index(pool, y, PRIVATE, cols), pool.pick(2 + vector, x));
                        self.k.store(self.truths, at, c);
                    }
                    _ => {
                        let at = self.index(pool, y, PRIVATE, 1);
                        self.k.store(self.numbers, at, i);
                    }
                }
                return None;
            }
            22 => {
                let v = pool.pick(1, x);
                let f = [Fn2::Add, Fn2::Mul, Fn2::Max, Fn2::Min][usize::from(z % 4)];
                self.k.emit(Elem::F32, 1, |out| Inst::Across { out, f, x: v })
            }
            _ => {
                let v = pool.pick(1, x);
                self.k.swap_pairs(v)
            }
        })
    }
}

const ROWS: i64 = 6;

fn kernel(steps: &[Step], out: DType) -> Kernel {
    let mut k = Lane::new("random");
    let mut inputs: Vec<Space> =
        FLOATS.iter().map(|&d| k.buf(d.name(), d, Access::Read, READ as i64)).collect();
    let ints = k.buf("ints", I32, Access::Read, READ as i64);
    let result = k.buf("result", out, Access::Write, Dim::sym("n") * Dim::from(2 * ROWS));
    let result_ints = k.buf("result_ints", I64, Access::Write, Dim::sym("n") * Dim::from(2));
    let (floats, truths, numbers) =
        (k.scratch(Elem::F32, PRIVATE), k.scratch(Elem::Bool, PRIVATE), k.scratch(Elem::I64, PRIVATE));
    inputs.rotate_left(1);
    let (n, half) = (k.program(Dim::sym("n"), 1), k.program(5, 3));
    let (two, rows) = (k.int(2), k.int(ROWS));
    let id = k.mul(n, two);
    let id = k.add(id, half);
    let mut w = Writer { k, inputs, ints, floats, truths, numbers };
    let mut pool = Pool(Default::default());
    let extent = w.k.extent(Dim::sym("n"));
    for reg in [id, half, extent, two] {
        pool.add(&w.k, reg);
    }
    // Private memory is written before it is read.
    let all = w.k.int(PRIVATE as i64);
    let mut k = std::mem::replace(&mut w.k, Lane::new(""));
    k.repeat(all, |k, i| {
        let x = k.cast(i, Elem::F32);
        k.store(floats, i, x);
        let c = k.zip(Fn2::Lt, i, two);
        k.store(truths, i, c);
        k.store(numbers, i, i);
    });
    w.k = k;
    for cols in [1, 4] {
        let at = w.index(&pool, 1, READ, cols);
        let x = w.k.load(w.inputs[0], at, cols);
        let y = w.k.float(1.5, cols);
        let c = w.k.zip(Fn2::Lt, x, y);
        [x, y, c].into_iter().for_each(|reg| pool.add(&w.k, reg));
    }
    steps.iter().for_each(|step| w.step(&mut pool, step));
    // The last of every type is what the program gives.
    let mut k = w.k;
    let at = k.mul(id, rows);
    let (scalar, vector) = (pool.pick(0, 0), pool.pick(1, 0));
    k.store(result, at, vector);
    let four = k.int(4);
    let at_scalar = k.add(at, four);
    k.store(result, at_scalar, scalar);
    let (truth, mask) = (pool.pick(2, 0), pool.pick(3, 0));
    let (truth, mask) = (k.cast(truth, Elem::F32), k.cast(mask, Elem::F32));
    let mask = k.across(Fn2::Add, mask);
    let sum = k.add(truth, mask);
    let five = k.int(5);
    let at_truth = k.add(at, five);
    k.store(result, at_truth, sum);
    k.store(result_ints, id, pool.pick(4, 0));
    k.finish()
}

proptest! {
    #[test]
    fn machines_and_the_interpreter_agree(steps in steps(), out in 0..3usize, seed in any::<u32>(), n in 1i64..6) {
        let out = [F32, Bf16, F64][out];
        let kernel = kernel(&steps, out);
        let mut random = seed | 1;
        let mut number = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from((random >> 8) as f32 / (1 << 20) as f32) - 8.0
        };
        let mut storages: Vec<Storage> = FLOATS.iter().map(|&d| Storage::new(d, (0..READ).map(|_| number() as f32 as f64))).collect();
        storages.push(Storage::new(I32, (0..READ).map(|_| number().floor() + 8.0)));
        storages.push(Storage::new(out, vec![0.0; (2 * n * ROWS) as usize]));
        storages.push(Storage { dtype: I64, data: vec![0.0; 2 * n as usize] });

        let syms = sym_values(&kernel, &[("n", n)]);
        let bytes: Vec<Vec<u8>> = storages.iter().map(|s| encode_all(s.dtype, &s.data)).collect();
        let binding: Vec<usize> = (0..storages.len()).collect();
        let options = run::Options { f32: true, ..run::Options::default() };
        let sizes = |sym: &Sym| (sym.as_str() == "n").then_some(n);
        run::run(&kernel, &sizes, &mut storages, &binding, options).unwrap();
        let variants = [
            (Isa::host(), OptLevel::None, Registers::Backtracking),
            (Isa::baseline(), OptLevel::None, Registers::Backtracking),
            (Isa::host(), OptLevel::Speed, Registers::SinglePass),
            (Isa::baseline(), OptLevel::Speed, Registers::Backtracking),
        ];
        for (isa, optimise, registers) in variants {
            let options = Options { isa, optimise, registers, ..Options::default() };
            let compiled = compile(std::slice::from_ref(&kernel), &options).unwrap();
            let mut bytes = bytes.clone();
            let middle = i64::from(seed) % (2 * n + 1);
            call(compiled.kernel(0), &mut bytes, &syms, &[(middle, 2 * n), (0, middle)]);
            for (i, storage) in storages.iter().enumerate() {
                let got = decode_all(storage.dtype, &bytes[i]);
                for (j, (&got, &want)) in got.iter().zip(&storage.data).enumerate() {
                    let same = got == want || got.is_nan() && want.is_nan();
                    prop_assert!(same, "{options:?}: element {j} of buffer {i} is {got:e}, not {want:e}\n{kernel}");
                }
            }
        }
    }
}
