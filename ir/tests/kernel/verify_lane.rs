//! What the verifier asks of kernels in the lane phase.

use crate::support::*;
use eva_ir::entity::Entity;
use eva_ir::kernel::*;
use eva_ir::types::DType;

fn mem(space: Space, index: Reg) -> Mem {
    Mem { space, index }
}

#[test]
fn there_is_nothing_of_the_tile_phase() {
    let mut k = Raw::new(Phase::Lane);
    let x = k.floats(1, 4, 1.0);
    k.emit(Elem::F32, 1, 1, |out| Inst::Reduce { out, f: Fn2::Add, axis: 1, x });
    assert_eq!(k.errors(), "`%1 = reduce.add cols %0`: is not an instruction of the lane phase");
    let mut k = Raw::new(Phase::Lane);
    let a = k.buf(DType::F32, &[], Access::Read);
    k.emit(Elem::F32, 1, 1, |out| Inst::Load { out, place: place(a, &[], [None, None]) });
    assert_eq!(k.errors(), "`%0 = load $a[]`: is not an instruction of the lane phase");
}

#[test]
fn registers_are_scalars_and_vectors() {
    for (rows, cols, fine) in [(1, 1, true), (1, 4, true), (1, 2, false), (4, 1, false), (1, 8, false)] {
        let mut k = Raw::new(Phase::Lane);
        k.floats(rows, cols, 1.0);
        assert_eq!(verify::verify(&k.0).is_ok(), fine, "{rows} x {cols}");
        let mut k = Raw::new(Phase::Lane);
        k.bools(rows, cols, true);
        assert_eq!(verify::verify(&k.0).is_ok(), fine, "{rows} x {cols}");
    }
    let mut k = Raw::new(Phase::Lane);
    k.emit(Elem::I64, 1, 4, |out| Inst::Const { out, value: Const::I(1) });
    assert_eq!(k.errors(), "`%0 = const 1`: %0 is a vector of integers");
    // A scalar stretches to a vector.
    let mut k = Raw::new(Phase::Lane);
    let (x, y) = (k.floats(1, 4, 1.0), k.floats(1, 1, 2.0));
    k.emit(Elem::F32, 1, 4, |out| Inst::Zip { out, f: Fn2::Add, x, y });
    k.is_fine();
    // A register that nothing assigns may be anything: it is left over from the tile phase.
    k.reg(Elem::I64, 8, 8);
    k.is_fine();
}

#[test]
fn private_memory_has_its_own_type() {
    for elem in [Elem::F32, Elem::I64, Elem::Bool] {
        let mut k = Raw::new(Phase::Lane);
        let s = Space::Scratch(k.scratch(Elem::F32, 4));
        let zero = k.int(0);
        k.emit(elem, 1, 1, |out| Inst::VLoad { out, from: mem(s, zero) });
        assert_eq!(verify::verify(&k.0).is_ok(), elem == Elem::F32, "{elem:?}");
        let mut k = Raw::new(Phase::Lane);
        let s = Space::Scratch(k.scratch(elem, 4));
        let (zero, value) = (k.int(0), k.floats(1, 1, 1.0));
        k.push(Inst::VStore { to: mem(s, zero), value });
        assert_eq!(verify::verify(&k.0).is_ok(), elem == Elem::F32, "{elem:?}");
    }
    let mut k = Raw::new(Phase::Lane);
    k.scratch(Elem::F32, (1 << 24) + 1);
    assert_eq!(k.errors(), "the private memory &0 has 16777217 elements, more than 16777216");
    let mut k = Raw::new(Phase::Lane);
    let zero = k.int(0);
    k.emit(Elem::F32, 1, 1, |out| Inst::VLoad { out, from: mem(Space::Scratch(Scratch::new(2)), zero) });
    assert_eq!(k.errors(), "`%1 = vload &2[%0]`: there is no private memory &2");
    let mut k = Raw::new(Phase::Lane);
    let s = Space::Scratch(k.scratch(Elem::F32, 4));
    let index = k.floats(1, 1, 0.0);
    k.emit(Elem::F32, 1, 1, |out| Inst::VLoad { out, from: mem(s, index) });
    assert_eq!(k.errors(), "`%1 = vload &0[%0]`: %0 is f32, not one integer");
}

#[test]
fn buffers_are_accessed_as_they_say() {
    let mut k = Raw::new(Phase::Lane);
    let a = Space::Buf(k.buf(DType::F16, &["4"], Access::Read));
    let b = Space::Buf(k.buf(DType::I32, &["4"], Access::Write));
    let zero = k.int(0);
    let x = k.emit(Elem::F32, 1, 4, |out| Inst::VLoad { out, from: mem(a, zero) });
    k.push(Inst::VStore { to: mem(b, zero), value: zero });
    k.is_fine();
    k.push(Inst::VStore { to: mem(b, zero), value: x });
    assert_eq!(k.errors(), "`vstore $b[%0] = %1`: is for i64, not f32<1x4>");
    k.0.body.pop();
    k.push(Inst::VStore { to: mem(a, zero), value: x });
    assert_eq!(k.errors(), "`vstore $a[%0] = %1`: `a` is only read");
    k.0.body.pop();
    k.emit(Elem::I64, 1, 1, |out| Inst::VLoad { out, from: mem(b, zero) });
    assert_eq!(k.errors(), "`%2 = vload $b[%0]`: `b` is only written");
}

#[test]
fn what_a_condition_guards_only_writes_memory() {
    let guarded = |cols| {
        let mut k = Raw::new(Phase::Lane);
        let cond = k.bools(1, cols, true);
        let x = k.reg(Elem::F32, 1, 1);
        k.push(Inst::If { cond, body: vec![Inst::Const { out: x, value: Const::F(1.0) }] });
        (k, x)
    };
    let (mut k, x) = guarded(1);
    k.is_fine();
    k.emit(Elem::F32, 1, 1, |out| Inst::Map { out, f: Fn1::Exp, x });
    assert_eq!(k.errors(), "`%2 = exp %1`: %1 is not assigned here");
    assert_eq!(guarded(4).0.errors(), "`if %0 {`: the condition is bool<1x4>, not one truth value");
}

#[test]
fn lanes_are_folded_and_swapped_in_vectors() {
    for (cols, fine) in [(4, true), (1, false)] {
        let mut k = Raw::new(Phase::Lane);
        let x = k.floats(1, cols, 1.0);
        k.emit(Elem::F32, 1, 1, |out| Inst::Across { out, f: Fn2::Max, x });
        assert_eq!(verify::verify(&k.0).is_ok(), fine);
        let mut k = Raw::new(Phase::Lane);
        let x = k.floats(1, cols, 1.0);
        k.emit(Elem::F32, 1, cols, |out| Inst::SwapPairs { out, x });
        assert_eq!(verify::verify(&k.0).is_ok(), fine);
    }
    let mut k = Raw::new(Phase::Lane);
    let x = k.floats(1, 4, 1.0);
    k.emit(Elem::F32, 1, 1, |out| Inst::Across { out, f: Fn2::Div, x });
    assert_eq!(k.errors(), "`%1 = across.div %0`: is not a function to fold with");
    let mut k = Raw::new(Phase::Lane);
    let x = k.bools(1, 4, true);
    k.emit(Elem::Bool, 1, 4, |out| Inst::SwapPairs { out, x });
    assert_eq!(k.errors(), "`%1 = swap_pairs %0`: is for f32<1x4>, not bool<1x4>");
}

#[test]
fn microkernels_multiply_floats_into_private_memory() {
    let error = |change: fn(&mut Raw, &mut Micro)| {
        let mut k = Raw::new(Phase::Lane);
        let a = Space::Buf(k.buf(DType::Bf16, &["4", "3"], Access::Read));
        let b = Space::Scratch(k.scratch(Elem::F32, 12));
        let c = Space::Scratch(k.scratch(Elem::F32, 9));
        let one = k.int(1);
        let (a, b, c) = (mem(a, one), mem(b, one), mem(c, one));
        let mut micro = Micro {
            m: one,
            n: one,
            k: one,
            a,
            a_strides: [one; 2],
            b,
            b_strides: [one; 2],
            c,
            c_stride: one,
            accumulate: true,
            a_scales: None,
            b_scales: None,
        };
        change(&mut k, &mut micro);
        k.push(Inst::Micro(micro));
        match verify::verify(&k.0) {
            Ok(()) => String::new(),
            Err(errors) => errors[0].split_once("`: ").expect("an instruction and a clause").1.to_string(),
        }
    };
    assert_eq!(error(|_, _| ()), "");
    assert_eq!(error(|k, micro| micro.b_strides[1] = k.floats(1, 1, 1.0)), "%1 is f32, not one integer");
    assert_eq!(error(|k, micro| micro.k = k.bools(1, 1, true)), "%1 is bool, not one integer");
    assert_eq!(error(|_, micro| micro.b.space = micro.c.space), "an operand is in the result's memory");
    assert_eq!(error(|_, micro| micro.c.space = micro.a.space), "an operand is in the result's memory");
    assert_eq!(
        error(|k, micro| micro.a.space = Space::Buf(k.buf(DType::F32, &["2"], Access::Write))),
        "`b` is only written"
    );
    let ints =
        |k: &mut Raw, micro: &mut Micro| micro.a.space = Space::Buf(k.buf(DType::I32, &["2"], Access::Read));
    assert_eq!(error(ints), "an operand's elements are i64, not floats");
    let to_buf =
        |k: &mut Raw, micro: &mut Micro| micro.c.space = Space::Buf(k.buf(DType::F32, &["2"], Access::Write));
    assert_eq!(error(to_buf), "the result is not f32 private memory");
    let bools = |k: &mut Raw, micro: &mut Micro| micro.c.space = Space::Scratch(k.scratch(Elem::Bool, 8));
    assert_eq!(error(bools), "the result is not f32 private memory");
}
