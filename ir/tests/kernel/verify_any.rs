//! What the verifier asks of kernels of both phases.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::kernel::*;
use eva_ir::types::DType;

const BOTH: [Phase; 2] = [Phase::Tile, Phase::Lane];

#[test]
fn buffers_have_a_stride_for_each_axis_and_tiles_a_length() {
    let mut k = Raw::new(Phase::Tile);
    let data = buf("x", DType::F32, &["t", "3"], Access::Read);
    k.0.bufs.push(BufData { strides: vec![Dim::from(1)], ..data });
    assert_eq!(k.errors(), "the buffer $0 (`x`) has 2 axes and 1 strides");
    let mut k = Raw::new(Phase::Lane);
    k.0.grid.push(GridAxis { extent: Dim::sym("t"), tile: 0 });
    assert_eq!(k.errors(), "axis 0 of the grid is cut into tiles of 0");
}

#[test]
fn registers_are_assigned_once() {
    let mut k = Raw::new(Phase::Tile);
    let x = k.int(1);
    k.push(Inst::Const { out: x, value: Const::I(2) });
    assert_eq!(k.errors(), "`%0 = const 2`: %0 is assigned twice");
    let mut k = Raw::new(Phase::Tile);
    let trips = k.int(1);
    k.push(Inst::For { index: trips, trips, carried: vec![], body: vec![] });
    assert_eq!(k.errors(), "`for %0 in 0..%0 {`: %0 is assigned twice");
}

#[test]
fn registers_are_assigned_before_they_are_used() {
    for phase in BOTH {
        let mut k = Raw::new(phase);
        let (x, y) = (k.reg(Elem::F32, 1, 1), k.reg(Elem::F32, 1, 1));
        k.push(Inst::Map { out: y, f: Fn1::Exp, x });
        k.push(Inst::Const { out: x, value: Const::F(1.0) });
        assert_eq!(k.errors(), "`%0 = exp %1`: %1 is not assigned here");
    }
    let mut k = Raw::new(Phase::Tile);
    let x = k.reg(Elem::I64, 1, 1);
    k.push(Inst::Map { out: x, f: Fn1::Neg, x });
    assert_eq!(k.errors(), "`%0 = neg %0`: %0 is not assigned here");
}

#[test]
fn registers_must_exist() {
    let mut k = Raw::new(Phase::Tile);
    let x = k.int(1);
    k.push(Inst::Map { out: Reg::new(17), f: Fn1::Neg, x });
    k.emit(Elem::I64, 1, 1, |out| Inst::Map { out, f: Fn1::Neg, x: Reg::new(23) });
    assert!(k.errors().contains("%1 has no type"), "{}", k.errors());
    assert!(k.errors().contains("%3 is not assigned here"), "{}", k.errors());
}

/// A loop over `trips` that counts; the kernel, and the loop's index, argument, next value and result.
fn counting() -> (Raw, [Reg; 4]) {
    let mut k = Raw::new(Phase::Tile);
    let (trips, init) = (k.int(3), k.int(0));
    let [index, arg, next, out] = [(); 4].map(|()| k.reg(Elem::I64, 1, 1));
    let body = vec![Inst::Zip { out: next, f: Fn2::Add, x: arg, y: index }];
    k.push(Inst::For { index, trips, carried: vec![Carried { init, arg, next, out }], body });
    (k, [index, arg, next, out])
}

#[test]
fn what_a_loop_body_assigns_stays_inside() {
    let (mut k, [index, arg, next, out]) = counting();
    k.emit(Elem::I64, 1, 1, |y| Inst::Map { out: y, f: Fn1::Neg, x: out });
    k.is_fine();
    for x in [index, arg, next] {
        let (mut k, _) = counting();
        k.emit(Elem::I64, 1, 1, |y| Inst::Map { out: y, f: Fn1::Neg, x });
        assert!(k.errors().contains("is not assigned here"), "{}", k.errors());
    }
    // A result is not there inside of its loop.
    let (mut k, _) = counting();
    let Some(Inst::For { body, .. }) = k.0.body.last_mut() else { panic!("a loop") };
    let y = k.0.regs.push(RegType::scalar(Elem::I64));
    body.push(Inst::Map { out: y, f: Fn1::Neg, x: out });
    assert!(k.errors().contains("is not assigned here"), "{}", k.errors());
}

#[test]
fn registers_have_a_size() {
    for (rows, cols) in [(0, 4), (1 << 11, 1 << 10), (usize::MAX, 2)] {
        let mut k = Raw::new(Phase::Tile);
        k.floats(rows, cols, 0.0);
        let message =
            format!("`%0 = const 0.0`: %0 has {rows} rows and {cols} columns: not 1 to 1048576 elements");
        assert_eq!(k.errors(), message);
    }
}

#[test]
fn element_types_fit_the_function() {
    for phase in BOTH {
        let mut k = Raw::new(phase);
        let [f, i, b] = [k.floats(1, 1, 1.0), k.int(2), k.bools(1, 1, true)];
        let preamble = k.0.clone();
        let mut fits = |elem, inst: &dyn Fn(Reg) -> Inst| {
            k.0 = preamble.clone();
            k.emit(elem, 1, 1, inst);
            verify::verify(&k.0).is_ok()
        };
        for (x, elem) in [(f, Elem::F32), (i, Elem::I64), (b, Elem::Bool)] {
            use Elem::*;
            let maps = [(Fn1::Neg, vec![F32, I64]), (Fn1::Not, vec![Bool])];
            let floats = [Fn1::Exp, Fn1::Log, Fn1::Sqrt, Fn1::Rsqrt, Fn1::Recip, Fn1::Sin, Fn1::Cos];
            for (f, elems) in maps.into_iter().chain(floats.map(|f| (f, vec![F32]))) {
                assert_eq!(
                    fits(elem, &|out| Inst::Map { out, f, x }),
                    elems.contains(&elem),
                    "{f:?} {elem:?}"
                );
            }
            let numbers = [Fn2::Add, Fn2::Sub, Fn2::Mul, Fn2::Div, Fn2::Max, Fn2::Min];
            for f in numbers {
                assert_eq!(fits(elem, &|out| Inst::Zip { out, f, x, y: x }), elem != Bool, "{f:?} {elem:?}");
            }
            assert_eq!(fits(elem, &|out| Inst::Zip { out, f: Fn2::Rem, x, y: x }), elem == I64);
            for f in [Fn2::Lt, Fn2::Le, Fn2::Eq] {
                assert_eq!(fits(Bool, &|out| Inst::Zip { out, f, x, y: x }), elem != Bool, "{f:?} {elem:?}");
                assert!(!fits(F32, &|out| Inst::Zip { out, f, x, y: x }));
            }
            for f in [Fn2::And, Fn2::Or] {
                assert_eq!(fits(Bool, &|out| Inst::Zip { out, f, x, y: x }), elem == Bool, "{f:?} {elem:?}");
            }
            assert_eq!(fits(F32, &|out| Inst::Zip { out, f: Fn2::Add, x: f, y: x }), elem == F32);
            assert_eq!(fits(F32, &|out| Inst::Select { out, cond: x, x: f, y: f }), elem == Bool);
            assert_eq!(fits(F32, &|out| Inst::Select { out, cond: b, x: f, y: x }), elem == F32);
            assert_eq!(fits(F32, &|out| Inst::Round { out, x, to: DType::Bf16 }), elem == F32);
            assert!(!fits(elem, &|out| Inst::Round { out, x, to: DType::I32 }));
            for to in [F32, I64] {
                assert!(fits(to, &|out| Inst::Cast { out, x }));
            }
            assert_eq!(fits(Bool, &|out| Inst::Cast { out, x }), elem == Bool);
        }
    }
}

#[test]
fn shapes_stretch() {
    let zip = |x: [usize; 2], y: [usize; 2], out: [usize; 2]| {
        let mut k = Raw::new(Phase::Tile);
        let (x, y) = (k.floats(x[0], x[1], 1.0), k.floats(y[0], y[1], 1.0));
        k.emit(Elem::F32, out[0], out[1], |out| Inst::Zip { out, f: Fn2::Add, x, y });
        k
    };
    zip([3, 1], [1, 5], [3, 5]).is_fine();
    zip([3, 5], [1, 1], [3, 5]).is_fine();
    let error = zip([3, 5], [2, 5], [3, 5]).errors();
    assert_eq!(error, "`%2 = add %0, %1`: shapes do not stretch to each other: f32<3x5>, f32<2x5>");
    let error = zip([3, 1], [3, 1], [3, 5]).errors();
    assert_eq!(error, "`%2 = add %0, %1`: %2 is f32<3x5>, but the value is f32<3x1>");

    let mut k = Raw::new(Phase::Tile);
    let (cond, x, y) = (k.bools(2, 1, true), k.floats(1, 1, 1.0), k.floats(1, 3, 2.0));
    k.emit(Elem::F32, 2, 3, |out| Inst::Select { out, cond, x, y });
    k.is_fine();
    let y = k.floats(5, 1, 2.0);
    k.emit(Elem::F32, 5, 1, |out| Inst::Select { out, cond, x, y });
    assert!(k.errors().contains("do not stretch"), "{}", k.errors());

    // Only these two stretch.
    let mut k = Raw::new(Phase::Tile);
    let x = k.floats(2, 1, 1.0);
    k.emit(Elem::F32, 2, 3, |out| Inst::Map { out, f: Fn1::Exp, x });
    assert_eq!(k.errors(), "`%1 = exp %0`: %1 is f32<2x3>, but the value is f32<2x1>");
}

#[test]
fn constants_and_numbers_have_their_types() {
    let constant = |elem, value| {
        let mut k = Raw::new(Phase::Tile);
        k.emit(elem, 2, 3, |out| Inst::Const { out, value });
        verify::verify(&k.0).is_ok()
    };
    for elem in [Elem::F32, Elem::I64, Elem::Bool] {
        assert_eq!(constant(elem, Const::F(1.0)), elem == Elem::F32);
        assert_eq!(constant(elem, Const::I(1)), elem == Elem::I64);
        assert_eq!(constant(elem, Const::B(true)), elem == Elem::Bool);
    }
    for phase in BOTH {
        let mut k = Raw::new(phase);
        k.0.grid.push(GridAxis { extent: Dim::sym("t"), tile: 3 });
        k.emit(Elem::I64, 1, 1, |out| Inst::Program { out, axis: 0 });
        k.emit(Elem::I64, 1, 1, |out| Inst::Extent { out, dim: Dim::sym("t") });
        k.is_fine();
        k.emit(Elem::I64, 1, 1, |out| Inst::Program { out, axis: 1 });
        assert_eq!(k.errors(), "`%2 = program 1`: the grid has no axis 1");
        k.0.body.pop();
        k.emit(Elem::F32, 1, 1, |out| Inst::Extent { out, dim: Dim::sym("t") });
        assert_eq!(k.errors(), "`%2 = extent t`: %2 is f32, but the value is i64");
    }
    let mut k = Raw::new(Phase::Tile);
    let (trips, index) = (k.floats(1, 1, 3.0), k.reg(Elem::I64, 1, 1));
    k.push(Inst::For { index, trips, carried: vec![], body: vec![] });
    assert_eq!(k.errors(), "`for %1 in 0..%0 {`: %0 is f32, not one integer");
    let mut k = Raw::new(Phase::Tile);
    let (trips, index) = (k.int(3), k.reg(Elem::I64, 1, 2));
    k.push(Inst::For { index, trips, carried: vec![], body: vec![] });
    assert_eq!(k.errors(), "`for %1 in 0..%0 {`: %1 is i64<1x2>, but the value is i64");
}

#[test]
fn loops_carry_one_type() {
    counting().0.is_fine();
    // The initial value, the argument, the next value and the result, each of another type than the rest.
    for odd in 0..4 {
        let mut k = Raw::new(Phase::Tile);
        let (trips, inner) = (k.int(3), k.floats(2, 1, 0.0));
        let cols = |i| if i == odd { 2 } else { 1 };
        let init = k.floats(2, cols(0), 1.0);
        let [arg, next, out] = [1, 2, 3].map(|i| k.reg(Elem::F32, 2, cols(i)));
        let index = k.reg(Elem::I64, 1, 1);
        let body = vec![Inst::Const { out: next, value: Const::F(0.5) }];
        let carried = vec![Carried { init, arg, next, out }];
        k.push(Inst::For { index, trips, carried, body });
        assert!(k.errors().contains("but starts as"), "{}", k.errors());
        k.emit(Elem::F32, 2, 1, |out| Inst::Map { out, f: Fn1::Neg, x: inner });
    }
}

#[test]
fn buffers_are_accessed_as_they_say() {
    let copy = |from_type, from, to_type, to, elem| {
        let mut k = Raw::new(Phase::Tile);
        let (a, b) = (k.buf(from_type, &[], from), k.buf(to_type, &[], to));
        let value = k.emit(elem, 1, 1, |out| Inst::Load { out, place: place(a, &[], [None, None]) });
        k.push(Inst::Store { place: place(b, &[], [None, None]), value });
        k
    };
    use Access::{Read, Write};
    copy(DType::Bf16, Read, DType::F32, Write, Elem::F32).is_fine();
    copy(DType::F8E4M3, Read, DType::F64, Write, Elem::F32).is_fine();
    copy(DType::I32, Read, DType::I64, Write, Elem::I64).is_fine();
    let error = |from_type, from, to_type, to, elem| copy(from_type, from, to_type, to, elem).errors();
    assert_eq!(
        error(DType::F32, Write, DType::F32, Write, Elem::F32),
        "`%0 = load $a[]`: `a` is only written"
    );
    assert_eq!(error(DType::F32, Read, DType::F32, Read, Elem::F32), "`store $b[] = %0`: `b` is only read");
    let message = "`%0 = load $a[]`: %0 is f32, but the value is i64";
    assert_eq!(error(DType::I32, Read, DType::F32, Write, Elem::F32), message);
    assert_eq!(
        error(DType::I32, Read, DType::F32, Write, Elem::I64),
        "`store $b[] = %0`: is for f32, not i64"
    );

    let mut k = Raw::new(Phase::Tile);
    k.emit(Elem::F32, 1, 1, |out| Inst::Load { out, place: place(Buf::new(3), &[], [None, None]) });
    assert_eq!(k.errors(), "`%0 = load $3[]`: there is no buffer $3");
}

#[test]
fn blocks_do_not_nest_too_deeply() {
    let nested = |depth: usize| {
        let mut k = Raw::new(Phase::Tile);
        let trips = k.int(1);
        let mut body = Vec::new();
        for _ in 1..depth {
            let index = k.reg(Elem::I64, 1, 1);
            body = vec![Inst::For { index, trips, carried: vec![], body }];
        }
        k.0.body.extend(body);
        k
    };
    nested(32).is_fine();
    assert_eq!(nested(33).errors(), "blocks nest deeper than 32");
    // Deep nesting neither overflows the stack nor is printed.
    assert_eq!(nested(3000).errors(), "blocks nest deeper than 32");
    assert!(nested(3000).0.to_string().contains('…'));
}
