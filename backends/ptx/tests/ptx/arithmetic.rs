//! Functions of numbers.

use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::{Access, Elem, Fn1, Fn2, GridAxis, Kernel, Reg, Space};
use eva_ir::types::DType;

/// `out[i] = f(x[i], y[i])` for the threads of five warps, three slots each; `write` is `f`.
pub fn pointwise(name: &str, dtype: DType, write: impl FnOnce(&mut Build, Reg, Reg) -> Reg) -> Kernel {
    let mut b = Build::new(name, 5);
    let n = [Dim::sym("n")];
    b.kernel.grid = vec![GridAxis { extent: n[0].clone(), tile: 480 }];
    let x = b.buf("x", dtype, Access::Read, &n);
    let y = b.buf("y", dtype, Access::Read, &n);
    let (thread, number) = (b.thread(), b.number());
    let first = b.by(Fn2::Mul, number, 480);
    let first = b.zip(Fn2::Add, first, thread);
    let steps = b.slots(&[0, 160, 320]);
    let index = b.zip(Fn2::Add, first, steps);
    let end = b.extent(&n[0]);
    let inside = b.zip(Fn2::Lt, index, end);
    let (x, y) =
        (b.load(Space::Buf(x), index, 1, Some(inside)), b.load(Space::Buf(y), index, 1, Some(inside)));
    let value = write(&mut b, x, y);
    let out_type = if b.ty(value).elem == Elem::I64 { DType::I64 } else { DType::F32 };
    let out = b.buf("out", out_type, Access::Write, &n);
    b.store(Space::Buf(out), index, value, Some(inside));
    b.finish()
}

#[test]
fn functions_of_one_float() {
    for f in [Fn1::Neg, Fn1::Exp, Fn1::Log, Fn1::Sqrt, Fn1::Rsqrt, Fn1::Recip, Fn1::Sin, Fn1::Cos] {
        let name = format!("{f:?}").to_lowercase();
        let (ptx, _) = pass(&pointwise(&name, DType::F32, |b, x, _| b.map(f, x)));
        let has = |word| count(&ptx.text, word);
        match f {
            Fn1::Exp => assert_eq!((has("ex2.approx"), has("fma.rn.sat.f32")), (3, 3)),
            Fn1::Sqrt => assert_eq!((has("sqrt.rn.f32"), has("rcp")), (3, 0)),
            Fn1::Rsqrt => assert_eq!((has("sqrt.rn.f32"), has("rcp.approx.f32")), (3, 3)),
            Fn1::Recip => assert_eq!((has("rcp.approx.f32"), has("rcp.rn"), has("div")), (3, 0, 0)),
            Fn1::Sin | Fn1::Cos => assert_eq!((has("cvt.rn.f32.f64"), has("sin.approx")), (3, 0)),
            _ => {}
        }
    }
}

#[test]
fn functions_of_two_floats() {
    use Fn2::*;
    for f in [Add, Sub, Mul, Div, Max, Min, Lt, Le, Eq] {
        let name = format!("{f:?}_floats").to_lowercase();
        let kernel = pointwise(&name, DType::F32, |b, x, y| match b.zip(f, x, y) {
            truth if f.is_predicate() => b.select(truth, x, y),
            value => value,
        });
        let (ptx, _) = pass(&kernel);
        let expected = match f {
            Add => "add.rn.f32",
            Sub => "sub.rn.f32",
            Mul => "mul.rn.f32",
            Div => "div.rn.f32",
            Max => "max.f32",
            Min => "min.f32",
            Lt => "setp.lt.f32",
            Le => "setp.le.f32",
            _ => "setp.eq.f32",
        };
        assert_eq!(count(&ptx.text, expected), 3, "{}", ptx.text);
    }
}

#[test]
fn products_and_sums_are_not_fused_but_by_fma() {
    let (ptx, _) = pass(&pointwise("apart", DType::F32, |b, x, y| {
        let product = b.zip(Fn2::Mul, x, y);
        b.zip(Fn2::Add, product, x)
    }));
    assert_eq!((count(&ptx.text, "mul.rn.f32"), count(&ptx.text, "add.rn.f32")), (3, 3), "{}", ptx.text);
    assert_eq!(count(&ptx.text, "fma"), 0, "{}", ptx.text);
    let (ptx, _) = pass(&pointwise("fused", DType::F32, |b, x, y| {
        let one = b.float(1.5, 1);
        b.fma(x, one, y)
    }));
    assert_eq!(count(&ptx.text, "fma.rn.f32"), 3, "{}", ptx.text);
}

#[test]
fn integers() {
    use Fn2::*;
    for f in [Add, Sub, Mul, Div, Rem, Max, Min, Lt, Le, Eq] {
        let name = format!("{f:?}_integers").to_lowercase();
        pass(&pointwise(&name, DType::I64, |b, x, y| match b.zip(f, x, y) {
            truth if f.is_predicate() => b.cast(truth, Elem::I64),
            value => value,
        }));
    }
    // Divisors that are powers of two are shifts and masks, whatever the sign.
    let (ptx, _) = pass(&pointwise("by_sixteen", DType::I32, |b, x, _| {
        let (quotient, rest) = (b.by(Div, x, 16), b.by(Rem, x, 16));
        b.zip(Mul, quotient, rest)
    }));
    assert_eq!((count(&ptx.text, "div."), count(&ptx.text, "rem.")), (0, 0), "{}", ptx.text);
}

#[test]
fn truth_values() {
    pass(&pointwise("truth", DType::F32, |b, x, y| {
        let (less, same) = (b.zip(Fn2::Lt, x, y), b.zip(Fn2::Eq, x, y));
        let either = b.zip(Fn2::Or, less, same);
        let not = b.map(Fn1::Not, same);
        let both = b.zip(Fn2::And, either, not);
        let (float, int) = (b.cast(both, Elem::F32), b.cast(less, Elem::I64));
        let int = b.cast(int, Elem::F32);
        b.zip(Fn2::Sub, float, int)
    }));
}

#[test]
fn floats_become_integers_and_integers_floats() {
    let (ptx, _) = pass(&pointwise("to_integer", DType::F32, |b, x, y| {
        let sum = b.zip(Fn2::Add, x, y);
        b.cast(sum, Elem::I64)
    }));
    assert_eq!(count(&ptx.text, "cvt.rzi.s64.f32"), 3, "{}", ptx.text);
    let (ptx, _) = pass(&pointwise("to_float", DType::I32, |b, x, y| {
        let sum = b.zip(Fn2::Add, x, y);
        b.cast(sum, Elem::F32)
    }));
    assert_eq!(count(&ptx.text, "cvt.rn.f32.s64"), 3, "{}", ptx.text);
}

#[test]
fn roundings() {
    for to in [DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::F32] {
        pass(&pointwise(&format!("round_{to}"), DType::F32, |b, x, _| b.round(x, to)));
    }
}

#[test]
fn slots_are_picked_and_joined() {
    pass(&pointwise("slots", DType::F32, |b, x, y| {
        let all = b.join(&[x, y, x]);
        let picked = b.pick(all, &[5, 0, 8]);
        b.zip(Fn2::Mul, picked, y)
    }));
}
