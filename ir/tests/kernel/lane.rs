//! What instructions of the lane phase do.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::kernel::run::{Fault, Options, RunError, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

fn mem(space: Space, index: Reg) -> Mem {
    Mem { space, index }
}

fn zip(k: &mut Raw, f: Fn2, x: Reg, y: Reg) -> Reg {
    let cols = k.0.regs[x].cols.max(k.0.regs[y].cols);
    let elem = if f.is_predicate() { Elem::Bool } else { k.0.regs[x].elem };
    k.emit(elem, 1, cols, |out| Inst::Zip { out, f, x, y })
}

fn fault(k: &Raw, storages: &mut [Storage]) -> String {
    match run_on(&k.0, &[], storages, Options::default()) {
        Err(error @ RunError::At { .. }) => error.to_string(),
        other => panic!("not a fault: {other:?}"),
    }
}

/// `b[i] = a[i] + 0.5` for `n` elements: vectors of four, then one by one.
fn add_half() -> Raw {
    let mut k = Raw::new(Phase::Lane);
    let (a, b) = (k.buf(DType::F32, &["n"], Access::Read), k.buf(DType::F32, &["n"], Access::Write));
    let (a, b) = (Space::Buf(a), Space::Buf(b));
    let n = k.emit(Elem::I64, 1, 1, |out| Inst::Extent { out, dim: Dim::sym("n") });
    let (four, half) = (k.int(4), k.floats(1, 1, 0.5));
    let whole = zip(&mut k, Fn2::Div, n, four);
    let rest = zip(&mut k, Fn2::Rem, n, four);

    let body = |k: &mut Raw, cols: usize, at: &mut dyn FnMut(&mut Raw, Reg) -> Reg| {
        let outer = std::mem::take(&mut k.0.body);
        let index = k.reg(Elem::I64, 1, 1);
        let first = at(k, index);
        let x = k.emit(Elem::F32, 1, cols, |out| Inst::VLoad { out, from: mem(a, first) });
        let y = zip(k, Fn2::Add, x, half);
        k.push(Inst::VStore { to: mem(b, first), value: y });
        (index, std::mem::replace(&mut k.0.body, outer))
    };
    let (index, vectors) = body(&mut k, 4, &mut |k, i| zip(k, Fn2::Mul, i, four));
    k.push(Inst::For { index, trips: whole, carried: vec![], body: vectors });
    let done = zip(&mut k, Fn2::Mul, whole, four);
    let (index, scalars) = body(&mut k, 1, &mut |k, i| zip(k, Fn2::Add, i, done));
    k.push(Inst::For { index, trips: rest, carried: vec![], body: scalars });
    k
}

#[test]
fn vectors_and_a_tail() {
    let k = add_half();
    for n in [0, 3, 4, 11] {
        let x = numbers(n, 1);
        let mut storages = [Storage::new(DType::F32, x.clone()), Storage::unwritten(DType::F32, n)];
        let stats = run_on(&k.0, &[("n", n as i64)], &mut storages, Options::default()).unwrap();
        close(&storages[1].data, &x.iter().map(|x| x + 0.5).collect::<Vec<_>>(), 0.0);
        assert_eq!((stats.loaded[0], stats.stored[1]), (n as u64, n as u64));
    }
}

#[test]
fn lane_text() {
    insta::assert_snapshot!(add_half().0);
}

#[test]
fn accesses_outside_are_faults() {
    for (index, message) in [(-1, "element -1 of a"), (6, "element 7 of a")] {
        let mut k = Raw::new(Phase::Lane);
        let a = k.buf(DType::F32, &["7"], Access::Read);
        let index = k.int(index);
        k.emit(Elem::F32, 1, 4, |out| Inst::VLoad { out, from: mem(Space::Buf(a), index) });
        let error = fault(&k, &mut [Storage::new(DType::F32, [0.0; 7])]);
        assert_eq!(error, format!("program []: `%1 = vload $a[%0]`: {message}, which has 7"));
    }
    let mut k = Raw::new(Phase::Lane);
    let s = k.scratch(Elem::F32, 5);
    let (two, x) = (k.int(2), k.floats(1, 4, 1.0));
    k.push(Inst::VStore { to: mem(Space::Scratch(s), two), value: x });
    assert_eq!(fault(&k, &mut []), "program []: `vstore &0[%0] = %1`: element 5 of &0, which has 5");
}

#[test]
fn private_memory_is_fresh_in_each_program() {
    // The first program writes elements 0 to 3; the second reads them.
    let mut k = Raw::new(Phase::Lane);
    k.0.grid.push(GridAxis { extent: Dim::from(2), tile: 1 });
    let s = Space::Scratch(k.scratch(Elem::F32, 4));
    let program = k.emit(Elem::I64, 1, 1, |out| Inst::Program { out, axis: 0 });
    let (zero, x) = (k.int(0), k.floats(1, 4, 1.0));
    let first = zip(&mut k, Fn2::Eq, program, zero);
    k.push(Inst::If { cond: first, body: vec![Inst::VStore { to: mem(s, zero), value: x }] });
    k.emit(Elem::F32, 1, 4, |out| Inst::VLoad { out, from: mem(s, zero) });
    let error = fault(&k, &mut []);
    assert_eq!(error, "program [1]: `%4 = vload &0[%1]`: element 0 of &0 is read before it is written");
}

#[test]
fn lanes_fold_in_pairs_and_change_places() {
    let mut k = Raw::new(Phase::Lane);
    let a = Space::Buf(k.buf(DType::F32, &["4"], Access::Read));
    let b = Space::Buf(k.buf(DType::F32, &["5"], Access::Write));
    let (zero, four) = (k.int(0), k.int(4));
    let x = k.emit(Elem::F32, 1, 4, |out| Inst::VLoad { out, from: mem(a, zero) });
    let sum = k.emit(Elem::F32, 1, 1, |out| Inst::Across { out, f: Fn2::Add, x });
    let swapped = k.emit(Elem::F32, 1, 4, |out| Inst::SwapPairs { out, x });
    k.push(Inst::VStore { to: mem(b, zero), value: swapped });
    k.push(Inst::VStore { to: mem(b, four), value: sum });
    let x = [1.0, 1e8, 2.0, -1e8];
    let mut storages = [Storage::new(DType::F32, x), Storage::unwritten(DType::F32, 5)];
    // In f32, (1 + 2) + (1e8 - 1e8) is exact; from left to right it would not be.
    run_on(&k.0, &[], &mut storages, Options { f32: true, ..Options::default() }).unwrap();
    assert_eq!(storages[1].data, [1e8, 1.0, -1e8, 2.0, 3.0]);
}

/// `c[3, 2] (rows 5 apart) = or += a[3, 4] · b[2, 4]ᵀ`, with both operands transposed in memory; then `c` to a buffer.
fn product(accumulate: bool, sizes: [i64; 3]) -> Raw {
    let mut k = Raw::new(Phase::Lane);
    let a = Space::Buf(k.buf(DType::Bf16, &["4", "3"], Access::Read));
    let b = Space::Buf(k.buf(DType::F32, &["4", "2"], Access::Read));
    let out = Space::Buf(k.buf(DType::F32, &["3", "2"], Access::Write));
    let c = Space::Scratch(k.scratch(Elem::F32, 13));
    let [m, n, terms] = sizes.map(|n| k.int(n));
    let [zero, one, two, three, five] = [0, 1, 2, 3, 5].map(|n| k.int(n));
    if accumulate {
        let value = k.floats(1, 1, 100.0);
        for i in 0..13 {
            let index = k.int(i);
            k.push(Inst::VStore { to: mem(c, index), value });
        }
    }
    k.push(Inst::Micro(Micro {
        m,
        n,
        k: terms,
        a: mem(a, zero),
        a_strides: [one, three],
        b: mem(b, zero),
        b_strides: [one, two],
        c: mem(c, one),
        c_stride: five,
        accumulate,
        a_scales: None,
        b_scales: None,
    }));
    for i in 0..3 {
        for j in 0..2 {
            let (from, to) = (k.int(1 + i * 5 + j), k.int(i * 2 + j));
            let value = k.emit(Elem::F32, 1, 1, |out| Inst::VLoad { out, from: mem(c, from) });
            k.push(Inst::VStore { to: mem(out, to), value });
        }
    }
    k
}

#[test]
fn microkernels_multiply() {
    let (a, b) = (Storage::new(DType::Bf16, numbers(12, 1)), Storage::new(DType::F32, numbers(8, 2)));
    for (accumulate, start) in [(false, 0.0), (true, 100.0)] {
        for terms in [4, 3, 0] {
            let mut storages = [a.clone(), b.clone(), Storage::unwritten(DType::F32, 6)];
            let kernel = product(accumulate, [3, 2, terms as i64]);
            let stats = run_on(&kernel.0, &[], &mut storages, Options::default()).unwrap();
            let item = |i: usize| {
                let (row, col) = (i / 2, i % 2);
                start + (0..terms).map(|t| a.data[t * 3 + row] * b.data[t * 2 + col]).sum::<f64>()
            };
            close(&storages[2].data, &(0..6).map(item).collect::<Vec<_>>(), 1e-14);
            assert_eq!(stats.loaded, [3 * terms as u64, 2 * terms as u64, 0]);
        }
    }
    // With fewer rows, the last row of the result stays unwritten.
    let mut storages = [a.clone(), b.clone(), Storage::unwritten(DType::F32, 6)];
    let error = fault(&product(false, [2, 2, 4]), &mut storages);
    assert!(error.ends_with("element 11 of &0 is read before it is written"), "{error}");
    let result = run_on(&product(false, [3, -2, 4]).0, &[], &mut storages, Options::default());
    assert!(matches!(result, Err(RunError::At { fault: Fault::Size(-2), .. })), "{result:?}");
}

#[test]
fn microkernel_text() {
    let mut k = product(false, [3, 2, 4]);
    k.0.body.truncate(9);
    insta::assert_snapshot!(k.0);
}

#[test]
fn select_and_compare_vectors() {
    let mut k = Raw::new(Phase::Lane);
    let a = Space::Buf(k.buf(DType::F32, &["4"], Access::Read));
    let b = Space::Buf(k.buf(DType::F32, &["4"], Access::Write));
    let (zero, limit) = (k.int(0), k.floats(1, 1, 0.25));
    let x = k.emit(Elem::F32, 1, 4, |out| Inst::VLoad { out, from: mem(a, zero) });
    let small = zip(&mut k, Fn2::Lt, x, limit);
    let y = k.emit(Elem::F32, 1, 4, |out| Inst::Select { out, cond: small, x: limit, y: x });
    k.push(Inst::VStore { to: mem(b, zero), value: y });
    let mut storages = [Storage::new(DType::F32, [-1.0, 0.25, 3.0, 0.0]), Storage::unwritten(DType::F32, 4)];
    run_on(&k.0, &[], &mut storages, Options::default()).unwrap();
    assert_eq!(storages[1].data, [0.25, 0.25, 3.0, 0.25]);
}
