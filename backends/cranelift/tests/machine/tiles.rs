//! Kernels from the tile phase to machine code: it does what the tile phase means.

use crate::common::numbers::{decode_all, encode_all};
use crate::common::{call, compile_one, isas, sym_values};
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::build::Build;
use eva_ir::kernel::run::{Options, Storage, run};
use eva_ir::kernel::{Access, BufData, ColumnOrder, Elem, Kernel, Scaled, ScaledAxis};
use eva_ir::types::DType::{self, Bf16, E8M0, F8E4M3, F8E5M2, F16, F32, I32, I64};
use eva_passes::spread::spread_cpu;

const COLS: [Option<usize>; 2] = [None, Some(1)];
const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// A tensor with neighbours along its last axis next to each other, 3 elements into its memory.
fn tensor(name: &str, dtype: DType, access: Access, shape: &[Dim]) -> BufData {
    let mut strides = vec![Dim::from(1); shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = &strides[i] * &shape[i];
    }
    BufData {
        name: name.into(),
        dtype,
        access,
        shape: shape.to_vec(),
        strides,
        offset: Dim::from(3),
        scaled: None,
    }
}

/// Checks machine code against the tile phase's interpreter; integers of index buffers are below `below`.
fn agree(kernel: &Kernel, sizes: &[(&str, i64)], below: i64, tolerance: f64) {
    let of = |sym: &Sym| sizes.iter().find(|(name, _)| *name == sym.as_str()).map(|(_, n)| *n);
    let mut state = 12345u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24)
    };
    let storage = |(_, buf): (_, &BufData)| {
        let n = 3 + Dim::product(&buf.shape).eval(&of).unwrap() as usize;
        let data: Vec<f64> = (0..n)
            .map(|_| match (buf.access, buf.dtype.is_int()) {
                (Access::Write, _) => 0.0,
                _ if buf.dtype == E8M0 => number() + 0.25,
                (_, true) => (number() * below as f64).floor(),
                (_, false) => number() * 4.0 - 2.0,
            })
            .collect();
        Storage::new(
            buf.dtype,
            if buf.dtype == F32 { data.iter().map(|&x| f64::from(x as f32)).collect() } else { data },
        )
    };
    let mut want: Vec<Storage> = kernel.bufs.iter().map(storage).collect();
    let bytes: Vec<Vec<u8>> = want.iter().map(|s| encode_all(s.dtype, &s.data)).collect();
    let binding: Vec<usize> = (0..want.len()).collect();
    run(kernel, &of, &mut want, &binding, Options::default()).unwrap_or_else(|e| panic!("{e}"));

    let lanes = spread_cpu(kernel).unwrap_or_else(|e| panic!("{e}"));
    let syms = sym_values(&lanes, sizes);
    for isa in isas() {
        let compiled = compile_one(&lanes, isa.clone());
        let programs = compiled.kernel(0).programs(&syms).unwrap();
        let mut bytes = bytes.clone();
        let cut = programs * 2 / 3;
        call(compiled.kernel(0), &mut bytes, &syms, &[(cut, programs), (0, cut)]);
        for (i, storage) in want.iter().enumerate() {
            for (j, (&got, &want)) in
                decode_all(storage.dtype, &bytes[i]).iter().zip(&storage.data).enumerate()
            {
                let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
                assert!(
                    close,
                    "{} on {isa:?}, {sizes:?}: element {j} of {i} is {got}, not {want}",
                    kernel.name
                );
            }
        }
    }
}

#[test]
fn rows_are_normalised() {
    for (dtype, tolerance) in [(F32, 1e-5), (Bf16, 8e-3), (F16, 1e-3)] {
        for cols in [1, 4, 19, 42] {
            let k = Build::new("norm");
            let shape = [sym("t"), Dim::from(cols as i64)];
            let (x, y) = (
                k.buf(tensor("x", dtype, Access::Read, &shape)),
                k.buf(tensor("y", dtype, Access::Write, &shape)),
            );
            let (row, zero) = (k.program(sym("t"), 1), k.int(0));
            let tile = k.load(x, &[row, zero], COLS, [1, cols], &[]);
            let mean = (tile * tile).sum_along(1) * (1.0 / cols as f64);
            k.store(y, &[row, zero], COLS, &[], tile * (mean + 1e-5).rsqrt());
            let kernel = k.finish();
            for t in [1, 6] {
                agree(&kernel, &[("t", t)], 1, tolerance);
            }
        }
    }
}

#[test]
fn functions_of_elements() {
    let k = Build::new("functions");
    let shape = [sym("r"), sym("c")];
    let (x, y) =
        (k.buf(tensor("x", F32, Access::Read, &shape)), k.buf(tensor("y", F32, Access::Write, &shape)));
    let (row, col) = (k.program(sym("r"), 5) * 5i64, k.program(sym("c"), 12) * 12i64);
    let a = k.load(x, &[row, col], BOTH, [5, 12], &[]);
    let b = a.sigmoid() + (a * a + 0.25).log() * a.cos() - (a * 100.0).sin();
    let b = a.lt(k.float(0.5)).and(k.float(-1.5).le(a)).select(b, a.max(b).columns(ColumnOrder::SwapPairs));
    k.store(y, &[row, col], BOTH, &[], b.exp());
    let kernel = k.finish();
    for (r, c) in [(1, 1), (5, 12), (7, 26), (13, 35)] {
        agree(&kernel, &[("r", r), ("c", c)], 1, 2e-5);
    }
}

#[test]
fn products_of_tiles_that_do_not_divide() {
    for (a, b) in [(F32, F32), (F32, Bf16), (Bf16, F16)] {
        let k = Build::new("product");
        let x = k.buf(tensor("x", a, Access::Read, &[sym("m"), sym("k")]));
        let w = k.buf(tensor("w", b, Access::Read, &[sym("n"), sym("k")]));
        let y = k.buf(tensor("y", F32, Access::Write, &[sym("m"), sym("n")]));
        let (row, col) = (k.program(sym("m"), 6) * 6i64, k.program(sym("n"), 10) * 10i64);
        let trips = k.extent(&sym("k")).div_ceil(16);
        let [sum] = k.fold(trips, [k.full([6, 10], 0.0)], |i, [sum]| {
            let at = i * 16i64;
            let x = k.load(x, &[row, at], BOTH, [6, 16], &[]);
            [sum.add_dot(x, k.load(w, &[col, at], BOTH, [10, 16], &[]))]
        });
        k.store(y, &[row, col], BOTH, &[], sum);
        let kernel = k.finish();
        for (m, n, terms) in [(1, 1, 1), (6, 10, 16), (7, 23, 35), (1, 41, 50)] {
            agree(&kernel, &[("m", m), ("n", n), ("k", terms)], 1, 3e-5);
        }
    }
}

/// A matrix of 8-bit floats with a scale for each block of `rows × cols`, the first ones cut short by `from`.
fn scaled(
    k: &Build,
    name: &str,
    dtype: DType,
    by: DType,
    shape: &[Dim; 2],
    blocks: [i64; 2],
    from: i64,
) -> BufData {
    let scales = k.buf(tensor(&format!("{name}_scale"), by, Access::Read, &[Dim::from(60), Dim::from(60)]));
    let axis = |i: usize, stride: i64| ScaledAxis {
        block: blocks[i],
        from: Dim::from(from),
        steps: (0..2).map(|j| Dim::from(i64::from(i == j))).collect(),
        stride: Dim::from(stride),
    };
    let scaled = Scaled { by: scales, offset: Dim::from(3), along: vec![axis(0, 60), axis(1, 1)] };
    BufData { scaled: Some(Box::new(scaled)), ..tensor(name, dtype, Access::Read, shape) }
}

#[test]
fn products_of_codes_and_scales() {
    for (a, b, by, blocks, from) in [
        (F8E4M3, F8E4M3, F32, [1, 128], 0),
        (F8E4M3, F8E5M2, F32, [3, 16], 16),
        (F8E5M2, F8E4M3, E8M0, [4, 5], 2),
    ] {
        for transposed in [false, true] {
            let k = Build::new("scaled_product");
            let x = k.buf(scaled(&k, "x", a, by, &[sym("m"), sym("k")], blocks, from));
            let w = if transposed { [sym("k"), sym("n")] } else { [sym("n"), sym("k")] };
            let w = k.buf(scaled(&k, "w", b, F32, &w, [8, 32], 0));
            let y = k.buf(tensor("y", F32, Access::Write, &[sym("m"), sym("n")]));
            let (row, col) = (k.program(sym("m"), 6) * 6i64, k.program(sym("n"), 10) * 10i64);
            let trips = k.extent(&sym("k")).div_ceil(32);
            let [sum] = k.fold(trips, [k.full([6, 10], 0.0)], |i, [sum]| {
                let at = i * 32i64;
                let x = k.load(x, &[row, at], BOTH, [6, 32], &[]);
                let w = match transposed {
                    false => k.load(w, &[col, at], BOTH, [10, 32], &[]),
                    true => k.load(w, &[at, col], [Some(1), Some(0)], [10, 32], &[]),
                };
                [sum.add_dot(x, w)]
            });
            k.store(y, &[row, col], BOTH, &[], sum);
            let kernel = k.finish();
            for (m, n, terms) in [(1, 1, 1), (6, 10, 32), (7, 23, 70), (1, 41, 50)] {
                agree(&kernel, &[("m", m), ("n", n), ("k", terms)], 1, 3e-5);
            }
        }
    }
}

#[test]
fn codes_are_expanded_and_made() {
    for (from, to, by, blocks, places) in [
        (F8E4M3, F8E5M2, F32, [1, 32], 0),
        (F8E5M2, F8E4M3, E8M0, [2, 4], 8),
        (F8E4M3, F8E4M3, F32, [3, 7], 1),
    ] {
        let k = Build::new("requantize");
        let shape = [sym("r"), sym("c")];
        let x = k.buf(scaled(&k, "x", from, by, &shape, blocks, places));
        let (y, z) =
            (k.buf(tensor("y", to, Access::Write, &shape)), k.buf(tensor("z", F32, Access::Write, &shape)));
        let (row, col) = (k.program(sym("r"), 4) * 4i64, k.program(sym("c"), 16) * 16i64);
        let tile = k.load(x, &[row, col], BOTH, [4, 16], &[]);
        k.store(z, &[row, col], BOTH, &[], tile);
        // What only powers of two come from is exact.
        let power = (tile * tile + 0.5).round(E8M0);
        k.store(y, &[row, col], BOTH, &[], power * 0.015625);
        let kernel = k.finish();
        for (r, c) in [(1, 1), (4, 16), (7, 35)] {
            agree(&kernel, &[("r", r), ("c", c)], 1, 1e-6);
        }
    }
}

#[test]
fn attention_in_one_pass() {
    let k = Build::new("attention");
    let q = k.buf(tensor("q", F32, Access::Read, &[sym("b"), sym("s"), Dim::from(7)]));
    let key = k.buf(tensor("k", Bf16, Access::Read, &[sym("b"), sym("t"), Dim::from(7)]));
    let v = k.buf(tensor("v", F32, Access::Read, &[sym("b"), sym("t"), Dim::from(9)]));
    let start = k.buf(tensor("start", I32, Access::Read, &[sym("b")]));
    let y = k.buf(tensor("y", F32, Access::Write, &[sym("b"), sym("s"), Dim::from(9)]));
    let (b, first) = (k.program(sym("b"), 1), k.program(sym("s"), 5) * 5i64);
    let (zero, axes) = (k.int(0), [Some(1), Some(2)]);
    let start = k.load_scalar(start, &[b]);
    let last_seen = k.iota(0, 5) + first + start;
    let q = k.load(q, &[b, first, zero], axes, [5, 7], &[]);
    let keys = (first + 5i64 + start).min(k.extent(&sym("t")));
    let init = [k.full([5, 1], -1e30), k.full([5, 1], 0.0), k.full([5, 9], 0.0)];
    let [_, total, sum] = k.fold(keys.div_ceil(8), init, |i, [top, total, sum]| {
        let at = i * 8i64;
        let tile = k.load(key, &[b, at, zero], axes, [8, 7], &[]);
        let scores = k.full([5, 8], 0.0).add_dot(q, tile) * 0.375;
        let scores = (k.iota(1, 8) + at).le(last_seen).select(scores, k.float(-1e30));
        let new = top.max(scores.max_along(1));
        let (weights, decay) = ((scores - new).exp(), (top - new).exp());
        let v = k.load(v, &[b, at, zero], [Some(2), Some(1)], [9, 8], &[]);
        [new, total * decay + weights.sum_along(1), (sum * decay).add_dot(weights, v)]
    });
    k.store(y, &[b, first, zero], axes, &[], sum / total);
    let kernel = k.finish();
    for (b, s, t) in [(1, 1, 5), (2, 7, 11), (3, 1, 33)] {
        agree(&kernel, &[("b", b), ("s", s), ("t", t)], t - s + 1, 2e-5);
    }
}

#[test]
fn rows_are_gathered_counted_and_scattered() {
    // Row i of y is row index[i] of x; place[index[i]] counts how often an index came before.
    let k = Build::new("gather");
    let x = k.buf(tensor("x", Bf16, Access::Read, &[sym("r"), Dim::from(11)]));
    let index = k.buf(tensor("index", I32, Access::Read, &[sym("n")]));
    let y = k.buf(tensor("y", F32, Access::Write, &[sym("n"), Dim::from(11)]));
    let z = k.buf(tensor("z", I64, Access::Write, &[sym("n")]));
    let (first, zero) = (k.program(sym("n"), 6) * 6i64, k.int(0));
    let rows = k.load(index, &[first], [Some(0), None], [6, 1], &[]);
    let same = k.full([6, 11], 0.0).cast(Elem::I64) + rows;
    let picked = k.gather(x, &[zero, k.int(0)], 0, rows);
    let wide = k.gather(x, &[zero, zero], 0, same);
    let even = (k.iota(0, 6) % 2i64).equals(zero);
    k.store(y, &[first, zero], BOTH, &[], even.select(picked, wide));
    let doubled = rows * 2i64 + k.iota(0, 6);
    let inside = (k.iota(0, 6) + first).lt(k.extent(&sym("n")));
    k.scatter(z, &[first], 0, k.iota(0, 6), doubled, inside);
    let kernel = k.finish();
    for (r, n) in [(4, 1), (9, 13), (3, 17)] {
        agree(&kernel, &[("r", r), ("n", n)], r, 1e-6);
    }
}
