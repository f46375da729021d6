//! Code for targets that this machine may not run.
//!
//! Code for aarch64 is made and listed here; it has not been run yet.

use crate::common::{Lane, elementwise};
use eva_cranelift::{Isa, Options, clif, compile, emit};
use eva_ir::dim::Dim;
use eva_ir::kernel::{Access, Elem, Fn1, Fn2, Inst, Kernel, Mem, Micro};
use eva_ir::types::DType::{self, Bf16, F8E4M3, F16, F32, F64, I32, I64};

/// `y[i] = bf16(x[i] · s)` along rows of `n` cut into vectors.
fn scale() -> Kernel {
    let mut k = Lane::new("scale");
    let x = k.buf("x", F32, Access::Read, Dim::sym("t") * Dim::from(12));
    let y = k.buf("y", Bf16, Access::Write, Dim::sym("t") * Dim::from(12));
    let row = k.program(Dim::sym("t"), 1);
    let first = k.scaled(row, 12);
    let trips = k.int(3);
    k.repeat(trips, |k, i| {
        let at = k.scaled(i, 4);
        let at = k.add(first, at);
        let (v, s) = (k.load(x, at, 4), k.float(0.125, 1));
        let v = k.mul(v, s);
        k.store(y, at, v);
    });
    k.finish()
}

/// The largest element of a row, kept in private memory, where the row is not empty.
fn largest() -> Kernel {
    let mut k = Lane::new("largest");
    let x = k.buf("x", F32, Access::Read, Dim::sym("b") * Dim::sym("t"));
    let y = k.buf("y", F32, Access::Write, Dim::sym("b"));
    let best = k.scratch(Elem::F32, 1);
    let b = k.program(Dim::sym("b"), 1);
    let (t, zero) = (k.extent(Dim::sym("t")), k.int(0));
    let some = k.zip(Fn2::Lt, zero, t);
    k.when(some, |k| {
        let row = k.mul(b, t);
        let first = k.load(x, row, 1);
        let max = k.fold(t, &[first], |k, i, args| {
            let at = k.add(row, i);
            let v = k.load(x, at, 1);
            vec![k.zip(Fn2::Max, args[0], v)]
        });
        k.store(best, zero, max[0]);
        let v = k.load(best, zero, 1);
        k.store(y, b, v);
    });
    k.finish()
}

/// Every instruction with every type that it takes, computing nothing of use.
fn everything() -> Vec<Kernel> {
    let mut kernels = vec![scale(), largest()];
    for cols in [1, 4] {
        kernels.push(elementwise(&[F32, F32], F32, 12, cols, |k, x| {
            let mut y = x[0];
            for f in [Fn1::Neg, Fn1::Exp, Fn1::Log, Fn1::Sqrt, Fn1::Rsqrt, Fn1::Recip, Fn1::Sin, Fn1::Cos] {
                y = k.map(f, y);
            }
            for f in [Fn2::Add, Fn2::Sub, Fn2::Mul, Fn2::Div, Fn2::Max, Fn2::Min] {
                y = k.zip(f, y, x[1]);
            }
            for f in [Fn2::Lt, Fn2::Le, Fn2::Eq] {
                let c = k.zip(f, y, x[1]);
                let d = k.map(Fn1::Not, c);
                let and = k.zip(Fn2::And, c, d);
                let or = k.zip(Fn2::Or, and, c);
                let picked = k.select(or, y, x[0]);
                let number = k.cast(d, Elem::F32);
                y = k.add(picked, number);
            }
            for to in [F64, F32, DType::Tf32, Bf16, F16, F8E4M3, DType::F8E5M2] {
                y = k.round(y, to);
            }
            if cols == 4 {
                y = k.swap_pairs(y);
                let all = k.across(Fn2::Max, y);
                y = k.add(y, all);
            }
            y
        }));
        for from in DType::ALL.into_iter().filter(|d| !d.is_int()) {
            for to in DType::ALL.into_iter().filter(|d| !d.is_int()) {
                kernels.push(elementwise(&[from], to, 12, cols, |_, x| x[0]));
            }
        }
        let mut k = Lane::new("truths");
        let truths = k.scratch(Elem::Bool, 9);
        let zero = k.int(0);
        let c = k.truth(true, cols);
        k.store(truths, zero, c);
        let c = k.load(truths, zero, cols);
        k.store(truths, zero, c);
        kernels.push(k.finish());
    }
    for from in [I32, I64] {
        for to in [I32, I64] {
            kernels.push(elementwise(&[from, from], to, 12, 1, |k, x| {
                let mut y = k.map(Fn1::Neg, x[0]);
                for f in [Fn2::Add, Fn2::Sub, Fn2::Mul, Fn2::Div, Fn2::Rem, Fn2::Max, Fn2::Min] {
                    y = k.zip(f, y, x[1]);
                }
                for f in [Fn2::Lt, Fn2::Le, Fn2::Eq] {
                    let c = k.zip(f, y, x[1]);
                    y = k.select(c, y, x[0]);
                    let number = k.cast(c, Elem::I64);
                    y = k.add(y, number);
                }
                let float = k.cast(y, Elem::F32);
                k.cast(float, Elem::I64)
            }));
        }
    }
    let mut k = Lane::new("product");
    let (x, y) = (k.buf("x", Bf16, Access::Read, 99), k.buf("y", F16, Access::Read, 98));
    let c = k.scratch(Elem::F32, 97);
    let (n, at) = (k.int(3), k.int(0));
    let mem = |space| Mem { space, index: at };
    let strides = [n, n];
    k.push(Inst::Micro(Micro {
        m: n,
        n,
        k: n,
        a: mem(x),
        a_strides: strides,
        b: mem(y),
        b_strides: strides,
        c: mem(c),
        c_stride: n,
        accumulate: true,
        a_scales: None,
        b_scales: None,
    }));
    kernels.push(k.finish());
    kernels
}

#[test]
fn a_vector_kernel_as_cranelift_ir() {
    insta::assert_snapshot!(clif(&scale(), &Isa::x86_64(&[])).unwrap());
}

#[test]
fn a_loop_and_a_branch_as_cranelift_ir() {
    insta::assert_snapshot!(clif(&largest(), &Isa::x86_64(&[])).unwrap());
}

#[test]
fn every_instruction_has_code_for_aarch64() {
    for kernel in everything() {
        let (bytes, listing) = emit(&kernel, &Isa::aarch64()).unwrap();
        assert!(bytes.len() % 4 == 0 && bytes.len() >= 4 * 5, "{}", kernel.name);
        assert!(listing.contains("ret"), "{listing}");
    }
    let has = |kernel: &Kernel, words: &[&str]| {
        let (_, listing) = emit(kernel, &Isa::aarch64()).unwrap();
        for word in words {
            assert!(listing.contains(word), "no `{word}` in\n{listing}");
        }
    };
    // Four floats at once are multiplied, and narrowed with a saturating narrowing.
    has(&scale(), &["fmul", ".4s", "sqxtn"]);
    // Scalars are compared; loops branch.
    has(&largest(), &["fcmp", "csel", "b.lt"]);
    // Microkernels are called by address.
    has(everything().last().unwrap(), &["blr"]);
}

#[test]
fn code_for_any_x86_64_has_no_newer_instructions() {
    // Of SSE3 and later, all that Cranelift can emit for what kernels do; AVX forms begin with a `v`.
    let newer = [
        "pmov", "pblend", "blendv", "round", "pshufb", "pextr", "pinsr", "insertps", "pmin", "pmax",
        "palignr",
    ];
    for kernel in everything() {
        let (bytes, listing) = emit(&kernel, &Isa::x86_64(&[])).unwrap();
        assert!(!bytes.is_empty());
        for line in listing.lines() {
            let word = line.split_whitespace().next().unwrap_or_default();
            // Of these families SSE2 has pmovmskb, pextrw, pinsrw, pminub, pminsw, pmaxub and pmaxsw.
            let old =
                ["pmovmskb", "pextrw", "pinsrw", "pminub", "pminsw", "pmaxub", "pmaxsw"].contains(&word);
            let new = !old && newer.iter().any(|prefix| word.starts_with(prefix)) || word.starts_with('v');
            assert!(!new, "`{line}` in {}", kernel.name);
        }
    }
    let features =
        ["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt", "has_avx", "has_avx2", "has_fma"];
    for kernel in everything() {
        let (_, listing) = emit(&kernel, &Isa::x86_64(&features)).unwrap();
        assert!(!listing.contains("vfm"), "a multiply and an add are fused in {}", kernel.name);
    }
}

#[test]
fn targets_that_cannot_be_had_are_errors() {
    let error = |isa: Isa| {
        let compiled = compile(&[scale()], &Options { isa, ..Options::default() });
        compiled.map(|_| ()).unwrap_err().to_string()
    };
    let unknown = error(Isa::x86_64(&["has_eva"]));
    assert!(unknown.starts_with("no code for this target: "), "{unknown}");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(error(Isa::aarch64()), "this machine runs x86_64 code, not aarch64 code");
    }
}
