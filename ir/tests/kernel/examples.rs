//! Two whole kernels: their texts, and that they compute what they are for.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::run::{Options, Order, Storage};
use eva_ir::kernel::verify::verify;
use eva_ir::kernel::*;
use eva_ir::types::DType;

const COLS: usize = 7;

/// Root mean square normalisation of `x[t, 7]`, one program per 3 rows.
fn rms_norm() -> Kernel {
    let k = Build::new("rms_norm");
    let x = k.buf(buf("x", DType::F32, &["t", "7"], Access::Read));
    let gain = k.buf(buf("gain", DType::Bf16, &["7"], Access::Read));
    // The rows of the result are further apart than they are long.
    let strides = vec![Dim::from(9), Dim::from(1)];
    let out = buf("out", DType::F32, &["t", "7"], Access::Write);
    let out = k.buf(BufData { strides, offset: Dim::from(2), ..out });
    let (row, zero) = (k.program(Dim::sym("t"), 3) * 3i64, k.int(0));

    let tile = k.load(x, &[row, zero], [Some(0), Some(1)], [3, COLS], &[]);
    let mean = (tile * tile).sum_along(1) * (1.0 / COLS as f64);
    let gain = k.load(gain, &[zero], [None, Some(0)], [1, COLS], &[]);
    k.store(out, &[row, zero], [Some(0), Some(1)], &[], tile * (mean + 1e-6).rsqrt() * gain);
    k.finish()
}

/// Softmax attention of `h` queries of width 3 to the first `len` of `t` keys, in one pass, in blocks of 4 keys.
fn attention() -> Kernel {
    let k = Build::new("attention");
    let q = k.buf(buf("q", DType::F32, &["h", "3"], Access::Read));
    let keys = k.buf(buf("keys", DType::F32, &["t", "3"], Access::Read));
    let values = k.buf(buf("values", DType::F32, &["t", "2"], Access::Read));
    let len = k.buf(buf("len", DType::I32, &["1"], Access::Read));
    let out = k.buf(buf("out", DType::F32, &["h", "2"], Access::Write));
    let (head, zero) = (k.program(Dim::sym("h"), 4) * 4i64, k.int(0));
    let q = k.load(q, &[head, zero], [Some(0), Some(1)], [4, 3], &[]);
    let len = k.load_scalar(len, &[zero]);

    // Running maximum, sum of exponentials, and weighted sum of values.
    let init = [k.full([4, 1], -1e30), k.full([4, 1], 0.0), k.full([4, 2], 0.0)];
    let [_, total, sum] = k.fold(len.div_ceil(4), init, |i, [top, total, sum]| {
        let first = i * 4i64;
        let key = k.load(keys, &[first, zero], [Some(0), Some(1)], [4, 3], &[(0, len)]);
        let value = k.load(values, &[first, zero], [Some(1), Some(0)], [2, 4], &[(0, len)]);
        let scores = k.full([4, 4], 0.0).add_dot(q, key);
        let scores = (k.iota(1, 4) + first).lt(len).select(scores, k.float(-1e30));
        let new_top = top.max(scores.max_along(1));
        let weights = (scores - new_top).exp();
        let decay = (top - new_top).exp();
        [new_top, total * decay + weights.sum_along(1), (sum * decay).add_dot(weights, value)]
    });
    k.store(out, &[head, zero], [Some(0), Some(1)], &[], sum * total.recip());
    k.finish()
}

#[test]
fn rms_norm_text() {
    insta::assert_snapshot!(rms_norm());
}

#[test]
fn attention_text() {
    insta::assert_snapshot!(attention());
}

#[test]
fn the_text_does_not_depend_on_the_registers_numbers() {
    let kernel = rms_norm();
    let mut other = kernel.clone();
    // The same instructions; registers counted from the last one down.
    let (n, renumber) = (kernel.regs.len(), |reg: Reg| {
        use eva_ir::entity::Entity;
        Reg::new(kernel.regs.len() - 1 - reg.index())
    });
    let types: Vec<RegType> = kernel.regs.iter().rev().map(|(_, ty)| *ty).collect();
    assert_eq!(types.len(), n);
    other.regs = types.into_iter().collect();
    for inst in &mut other.body {
        match inst {
            Inst::Program { out, .. } | Inst::Const { out, .. } => *out = renumber(*out),
            Inst::Map { out, x, .. } | Inst::Reduce { out, x, .. } => {
                (*out, *x) = (renumber(*out), renumber(*x))
            }
            Inst::Zip { out, x, y, .. } => {
                (*out, *x, *y) = (renumber(*out), renumber(*x), renumber(*y));
            }
            Inst::Load { out, place } => {
                *out = renumber(*out);
                place.at.iter_mut().for_each(|reg| *reg = renumber(*reg));
            }
            Inst::Store { place, value } => {
                *value = renumber(*value);
                place.at.iter_mut().for_each(|reg| *reg = renumber(*reg));
            }
            other => panic!("not in this kernel: {other:?}"),
        }
    }
    assert_ne!(kernel, other);
    assert_eq!(kernel.to_string(), other.to_string());
}

#[test]
fn rms_norm_computes_it() {
    let (kernel, rows) = (rms_norm(), 8);
    verify(&kernel).unwrap();
    let (x, gain) = (numbers(rows * COLS, 1), numbers(COLS, 2));
    let gain = Storage::new(DType::Bf16, gain);
    let mut want = vec![f64::NAN; 2 + rows * 9];
    for r in 0..rows {
        let row = &x[r * COLS..][..COLS];
        let mean = row.iter().map(|x| x * x).sum::<f64>() / COLS as f64;
        for c in 0..COLS {
            want[2 + r * 9 + c] = row[c] / (mean + 1e-6).sqrt() * gain.data[c];
        }
    }
    for order in [Order::Forward, Order::Backward, Order::Shuffled(5)] {
        let out = Storage::unwritten(DType::F32, 2 + rows * 9);
        let mut storages = [Storage::new(DType::F32, x.clone()), gain.clone(), out];
        let options = Options { order, ..Options::default() };
        let stats = run_on(&kernel, &[("t", rows as i64)], &mut storages, options).unwrap();
        // Between the rows nothing is written.
        for (i, (have, want)) in storages[2].data.iter().zip(&want).enumerate() {
            assert_eq!(have.is_nan(), want.is_nan(), "element {i}");
        }
        let written = |data: &[f64]| data.iter().copied().filter(|x| !x.is_nan()).collect::<Vec<_>>();
        close(&written(&storages[2].data), &written(&want), 1e-12);
        assert_eq!(stats.programs, 3);
        assert_eq!(stats.loaded, [56, 3 * 7, 0]);
        assert_eq!(stats.stored, [0, 0, 56]);
    }
}

#[test]
fn attention_computes_it_and_reads_the_context_only() {
    let kernel = attention();
    verify(&kernel).unwrap();
    let (h, t, len) = (5, 23, 9);
    let (q, keys, values) = (numbers(h * 3, 1), numbers(t * 3, 2), numbers(t * 2, 3));
    let mut want = Vec::new();
    for r in 0..h {
        let dot = |i: usize| (0..3).map(|c| q[r * 3 + c] * keys[i * 3 + c]).sum::<f64>();
        let weights: Vec<f64> = (0..len).map(|i| dot(i).exp()).collect();
        let total: f64 = weights.iter().sum();
        for c in 0..2 {
            want.push((0..len).map(|i| weights[i] * values[i * 2 + c]).sum::<f64>() / total);
        }
    }
    let mut storages = [q, keys, values].map(|data| Storage::new(DType::F32, data)).to_vec();
    storages.push(Storage::new(DType::I32, [len as f64]));
    storages.push(Storage::unwritten(DType::F32, h * 2));
    let of = [("h", h as i64), ("t", t as i64)];
    let stats = run_on(&kernel, &of, &mut storages, Options::default()).unwrap();
    close(&storages[4].data, &want, 1e-12);
    // Two programs, each of which reads the first `len` keys.
    assert_eq!(stats.loaded, [15, 2 * 9 * 3, 2 * 9 * 2, 2, 0]);

    // In single precision the result is near, but not the same.
    let exact = storages[4].data.clone();
    run_on(&kernel, &of, &mut storages, Options { f32: true, ..Options::default() }).unwrap();
    close(&storages[4].data, &want, 1e-6);
    assert_ne!(storages[4].data, exact);
    assert!(storages[4].data.iter().all(|&x| f64::from(x as f32) == x));
}
