//! Loads, stores, loops and branches.

use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::{Access, Fn2, GridAxis, Kernel, Space};
use eva_ir::types::DType;

/// Copies a tensor of `from` to one of `to`, `v` elements at once, three times a thread.
pub fn copy(name: &str, from: DType, to: DType, v: usize, masked: bool) -> Kernel {
    let mut b = Build::new(name, 3);
    let n = [Dim::sym("n")];
    b.kernel.grid = vec![GridAxis { extent: n[0].clone(), tile: 288 * v as i64 }];
    let x = b.buf("x", from, Access::Read, &n);
    let out = b.buf("out", to, Access::Write, &n);
    let (thread, number) = (b.thread(), b.number());
    let first = b.by(Fn2::Mul, number, 288);
    let first = b.zip(Fn2::Add, first, thread);
    let steps = b.slots(&[0, 96, 192]);
    let index = b.zip(Fn2::Add, first, steps);
    let index = b.by(Fn2::Mul, index, v as i64);
    let end = b.extent(&n[0]);
    let mask = masked.then(|| b.zip(Fn2::Lt, index, end));
    let value = b.load(Space::Buf(x), index, v, mask);
    b.store(Space::Buf(out), index, value, mask);
    b.finish()
}

#[test]
fn every_type_at_every_width() {
    for dtype in DType::ALL {
        for v in [1usize, 2, 4, 8, 16] {
            let bytes = v * dtype.bytes() as usize;
            if bytes > 16 {
                continue;
            }
            for masked in [false, true] {
                let name = format!("copy_{dtype}_{v}{}", if masked { "_masked" } else { "" });
                let (ptx, _) = pass(&copy(&name, dtype, dtype, v, masked));
                let (loads, stores) = (count(&ptx.text, "ld.global.nc"), count(&ptx.text, "st.global"));
                assert_eq!((loads, stores), (3, 3), "{}", ptx.text);
                let predicated = count(&ptx.text, "@%p");
                assert_eq!(predicated, if masked { 6 } else { 0 }, "{}", ptx.text);
                let vector = if dtype.bytes() == 8 { "v2.b64" } else { "v4.b32" };
                let expected = if bytes == 16 { 6 } else { 0 };
                assert_eq!(count(&ptx.text, vector), expected, "{}", ptx.text);
                // What is only moved is neither widened nor rounded.
                if dtype != DType::F64 {
                    assert_eq!(count(&ptx.text, "cvt.r"), 0, "{}", ptx.text);
                }
            }
        }
    }
}

#[test]
fn types_are_converted_on_the_way() {
    for (from, to, v) in [
        (DType::Bf16, DType::F32, 4),
        (DType::F32, DType::Bf16, 4),
        (DType::Bf16, DType::F8E4M3, 8),
        (DType::F8E5M2, DType::F16, 8),
        (DType::F16, DType::F64, 2),
        (DType::F64, DType::F8E5M2, 2),
        (DType::I32, DType::I64, 2),
        (DType::I64, DType::I32, 2),
    ] {
        let (ptx, _) = pass(&copy(&format!("convert_{from}_{to}"), from, to, v, true));
        if to == DType::Bf16 {
            assert_eq!(count(&ptx.text, "cvt.rn.bf16x2.f32"), 6, "{}", ptx.text);
        }
    }
}

/// The sums of rows, whose length is a multiple of 4: in a loop, and stored by one thread.
pub fn row_sums() -> Kernel {
    let mut b = Build::new("sum", 1);
    let shape = [Dim::sym("rows"), Dim::sym("cols")];
    b.kernel.grid = vec![GridAxis { extent: shape[0].clone(), tile: 1 }];
    let x = b.buf("x", DType::F32, Access::Read, &shape);
    let out = b.buf("out", DType::F32, Access::Write, &shape[..1]);
    let (row, cols) = (b.number(), b.extent(&shape[1]));
    let first = b.zip(Fn2::Mul, row, cols);
    let trips = b.by(Fn2::Div, cols, 4);
    let zero = b.float(0.0, 4);
    let sums = b.repeat(trips, &[zero], |b, i, sums| {
        let at = b.by(Fn2::Mul, i, 4);
        let at = b.zip(Fn2::Add, first, at);
        let x = b.load(Space::Buf(x), at, 4, None);
        vec![b.zip(Fn2::Add, sums[0], x)]
    });
    let parts: Vec<_> = (0..4).map(|i| b.pick(sums[0], &[i])).collect();
    let sum = parts.into_iter().reduce(|x, y| b.zip(Fn2::Add, x, y)).unwrap();
    let thread = b.thread();
    let leader = b.by(Fn2::Eq, thread, 0);
    b.guard(leader, |b| b.store(Space::Buf(out), row, sum, None));
    b.finish()
}

#[test]
fn a_loop_loads_four_numbers_at_once() {
    let (ptx, _) = pass(&row_sums());
    assert_eq!(count(&ptx.text, "ld.global.nc.v4.b32"), 1, "{}", ptx.text);
}
