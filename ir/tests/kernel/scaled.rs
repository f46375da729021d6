//! Buffers of 8-bit floats with scales.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::run::{Options, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

fn axis(block: i64, from: &str, steps: &[&str], stride: i64) -> ScaledAxis {
    let dim = |text: &str| text.parse::<Dim>().expect("an extent");
    let steps = steps.iter().map(|step| dim(step)).collect();
    ScaledAxis { block, from: dim(from), steps, stride: stride.into() }
}

/// Scales of `heads × n × c` codes, `h` of the `n + v` rows of each head: `rows` rows of the quantized tensor and `cols`
/// columns share one; there are 4 columns of scales, after 2 others.
fn by_head(by: Buf, rows: i64, cols: i64) -> Option<Box<Scaled>> {
    let along = vec![axis(rows, "v", &["n + v", "1", "0"], 4), axis(cols, "0", &["0", "0", "1"], 1)];
    Some(Box::new(Scaled { by, offset: Dim::from(2), along }))
}

const SIZES: [(&str, i64); 4] = [("h", 3), ("n", 5), ("v", 2), ("s", 100)];

/// Copies `h × n × 11` scaled codes, and two too many along each axis, to `h + 2 × n + 2 × 13`, by loads or gathers.
fn copy(dtype: DType, by: DType, blocks: (i64, i64), gather: bool) -> Kernel {
    let k = Build::new("copy");
    let s = k.buf(buf("s", by, &["s"], Access::Read));
    let mut x = buf("x", dtype, &["h", "n", "11"], Access::Read);
    x.scaled = by_head(s, blocks.0, blocks.1);
    let x = k.buf(x);
    let y = k.buf(buf("y", DType::F64, &["h + 2", "n + 2", "13"], Access::Write));
    let (head, row) = (k.program("h + 2".parse().unwrap(), 1), k.program("n + 2".parse().unwrap(), 1));
    let zero = k.int(0);
    let tile = match gather {
        false => k.load(x, &[head, row, zero], [None, Some(2)], [1, 13], &[]),
        true => k.gather(x, &[head, row, zero + 12i64], 2, k.iota(1, 13) * -1i64),
    };
    k.store(y, &[head, row, zero], [None, Some(2)], &[], tile);
    k.finish()
}

fn operands(dtype: DType, by: DType, scales: usize) -> [Storage; 3] {
    let codes = Storage::new(dtype, numbers(3 * 5 * 11, 3));
    let scales = Storage::new(by, numbers(scales, 4).into_iter().map(|x| x.abs() + 0.01));
    [scales, codes, Storage::unwritten(DType::F64, 5 * 7 * 13)]
}

#[test]
fn loads_and_gathers_multiply_by_the_scale() {
    for (dtype, by) in [(DType::F8E4M3, DType::F32), (DType::F8E5M2, DType::E8M0)] {
        for (blocks, gather) in [((4, 3), false), ((1, 7), true), ((6, 3), true)] {
            let mut storages = operands(dtype, by, 2 + 4 * 23);
            let kernel = copy(dtype, by, blocks, gather);
            let stats = run_on(&kernel, &SIZES, &mut storages, Options::default()).unwrap();
            let mut want = Vec::new();
            for (h, n, c) in (0..5).flat_map(|h| (0..7).flat_map(move |n| (0..13).map(move |c| (h, n, c)))) {
                let c = if gather { 12 - c } else { c };
                let outside = h >= 3 || n >= 5 || c >= 11;
                let scale = 2 + 4 * ((2 + h * 7 + n) / blocks.0) + c / blocks.1;
                let code = || storages[1].data[((h * 5 + n) * 11 + c) as usize];
                want.push(if outside { 0.0 } else { code() * storages[0].data[scale as usize] });
            }
            assert_eq!(storages[2].data, want, "{dtype} {by} {blocks:?}");
            // Of elements outside, neither code nor scale is read.
            assert_eq!(stats.loaded, [3 * 5 * 11, 3 * 5 * 11, 0]);
        }
    }
}

#[test]
fn products_with_scales_are_rounded_where_floats_are() {
    let mut storages = operands(DType::F8E4M3, DType::F32, 2 + 4 * 6);
    let options = Options { f32: true, ..Options::default() };
    run_on(&copy(DType::F8E4M3, DType::F32, (4, 3), false), &SIZES, &mut storages, options).unwrap();
    let want = (storages[1].data[0] as f32) * (storages[0].data[2] as f32);
    assert_eq!(storages[2].data[0], f64::from(want));
}

#[test]
fn scales_outside_their_memory_are_faults() {
    // The last row needs block 5 of rows.
    let mut storages = operands(DType::F8E4M3, DType::F32, 2 + 4 * 4);
    let kernel = copy(DType::F8E4M3, DType::F32, (4, 3), false);
    let error = run_on(&kernel, &SIZES, &mut storages, Options::default()).unwrap_err().to_string();
    let want = "program [2, 0]: `%3 = load $x[%0, %1, %2+col]`: element 18 of s, which has 18";
    assert_eq!(error, want);
}

#[test]
fn scaled_text() {
    insta::assert_snapshot!(copy(DType::F8E5M2, DType::E8M0, (128, 32), true));
}

#[test]
fn the_verifier_knows_what_can_be_scaled() {
    let error = |change: fn(&mut Kernel)| {
        let mut kernel = copy(DType::F8E4M3, DType::F32, (4, 3), false);
        change(&mut kernel);
        match verify::verify(&kernel) {
            Ok(()) => String::new(),
            Err(errors) => errors[0].clone(),
        }
    };
    fn bufs(kernel: &Kernel) -> [Buf; 3] {
        let bufs: Vec<Buf> = kernel.bufs.keys().collect();
        bufs.try_into().expect("three buffers")
    }
    fn scaled(kernel: &mut Kernel) -> &mut Scaled {
        let [_, x, _] = bufs(kernel);
        kernel.bufs[x].scaled.as_mut().expect("it is scaled")
    }
    assert_eq!(error(|_| ()), "");
    assert_eq!(error(|k| scaled(k).along.clear()), "");
    let mine = "the buffer $1 (`x`) is scaled, but";
    let not_codes = error(|k| {
        let [_, x, _] = bufs(k);
        k.bufs[x].dtype = DType::Bf16;
    });
    assert_eq!(not_codes, format!("{mine} its elements are bf16, not 8-bit floats"));
    assert_eq!(error(|k| scaled(k).along[1].block = 0), format!("{mine} 0 neighbours share a scale"));
    let steps = error(|k| scaled(k).along[0].steps.truncate(2));
    assert_eq!(steps, format!("{mine} it has 3 axes and its scales 2 steps"));
    let itself = error(|k| scaled(k).by = bufs(k)[1]);
    assert_eq!(itself, format!("{mine} `x`, which has its scales, is scaled itself"));
    let written = error(|k| scaled(k).by = bufs(k)[2]);
    assert_eq!(written, format!("{mine} `y`, which has its scales, is only written"));
    let halves = error(|k| {
        let [s, ..] = bufs(k);
        k.bufs[s].dtype = DType::F16;
    });
    assert_eq!(halves, format!("{mine} `s`, which has its scales, holds f16"));
    let result = error(|k| {
        let [_, x, y] = bufs(k);
        k.bufs[y].dtype = DType::F8E4M3;
        k.bufs[y].scaled = k.bufs[x].scaled.clone();
    });
    assert_eq!(result, "the buffer $2 (`y`) is scaled, but it is written");
    let lanes = error(|k| {
        k.phase = Phase::Lane;
        k.body.clear();
    });
    assert_eq!(lanes, format!("{mine} this is the lane phase"));
}

/// `c[3, 2] = a[3, 7] · b[2, 7]ᵀ` with scales of both: a scale for each row and 3 terms of `a`, from term 1 on, and for 2
/// rows of `b` from row 1 on.
fn product(change: impl FnOnce(&mut Micro)) -> Raw {
    let mut k = Raw::new(Phase::Lane);
    let a = Space::Buf(k.buf(DType::F8E4M3, &["3", "7"], Access::Read));
    let b = Space::Buf(k.buf(DType::F8E5M2, &["2", "7"], Access::Read));
    let of_a = Space::Buf(k.buf(DType::F32, &["12"], Access::Read));
    let of_b = Space::Buf(k.buf(DType::E8M0, &["5"], Access::Read));
    let to = Space::Buf(k.buf(DType::F32, &["3", "2"], Access::Write));
    let c = Space::Scratch(k.scratch(Elem::F32, 6));
    let [zero, one, two, three, seven, four] = [0, 1, 2, 3, 7, 4].map(|n| k.int(n));
    let mem = |space, index| Mem { space, index };
    let run = |place, block, stride| MicroRun { place, block, stride };
    let mut micro = Micro {
        m: three,
        n: two,
        k: seven,
        a: mem(a, zero),
        a_strides: [seven, one],
        b: mem(b, zero),
        b_strides: [seven, one],
        c: mem(c, zero),
        c_stride: two,
        accumulate: false,
        a_scales: Some(MicroScales {
            first: mem(of_a, two),
            rows: run(zero, 1, three),
            terms: run(one, 3, one),
        }),
        b_scales: Some(MicroScales {
            first: mem(of_b, zero),
            rows: run(one, 2, four),
            terms: run(zero, 128, zero),
        }),
    };
    change(&mut micro);
    k.push(Inst::Micro(micro));
    for at in 0..6 {
        let at = k.int(at);
        let value = k.emit(Elem::F32, 1, 1, |out| Inst::VLoad { out, from: mem(c, at) });
        k.push(Inst::VStore { to: mem(to, at), value });
    }
    k
}

#[test]
fn microkernels_multiply_by_scales() {
    let kernel = product(|_| ());
    kernel.is_fine();
    let mut storages = [
        Storage::new(DType::F8E4M3, numbers(21, 5)),
        Storage::new(DType::F8E5M2, numbers(14, 6)),
        Storage::new(DType::F32, numbers(12, 7)),
        Storage::new(DType::E8M0, [0.5, 9.0, 9.0, 9.0, 4.0]),
        Storage::unwritten(DType::F32, 6),
    ];
    run_on(&kernel.0, &[], &mut storages, Options::default()).unwrap();
    let mut want = Vec::new();
    for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
        let of_b = [0.5, 4.0][j];
        let terms = (0..7).map(|t| {
            let of_a = storages[2].data[2 + 3 * i + (1 + t) / 3];
            storages[0].data[i * 7 + t] * of_a * (storages[1].data[j * 7 + t] * of_b)
        });
        want.push(terms.sum::<f64>());
    }
    close(&storages[4].data, &want, 1e-14);
}

#[test]
fn scaled_microkernel_text() {
    let mut kernel = product(|_| ());
    kernel.0.body.truncate(7);
    insta::assert_snapshot!(kernel.0);
}

#[test]
fn the_verifier_knows_what_scales_of_products_are() {
    let error = |change: fn(&mut Micro)| {
        let errors = product(change).errors();
        let clause = errors.split_once("`: ").expect("an instruction and a clause").1;
        clause.split_once("; ").map_or(clause, |(first, _)| first).to_string()
    };
    fn of_a(micro: &mut Micro) -> &mut MicroScales {
        micro.a_scales.as_mut().expect("it has scales")
    }
    assert_eq!(error(|m| of_a(m).terms.block = -1), "-1 neighbours share a scale");
    assert_eq!(error(|m| of_a(m).first.space = m.c.space), "an operand's scales are in private memory");
    assert_eq!(error(|m| of_a(m).first.space = m.b.space), "`b`, which has its scales, holds f8e5m2");
    let not_codes = error(|m| m.a.space = of_a(m).first.space);
    assert_eq!(not_codes, "an operand with scales is no buffer of 8-bit floats");
}
