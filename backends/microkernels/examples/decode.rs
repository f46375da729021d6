//! One row times the weights of a layer, by element type, beside reading that memory:
//! `cargo run --release -p eva-microkernels --example decode [LEVEL [TERMS]]`.
//!
//! The shapes are those of DeepSeek-V2-Lite's layers. Types take turns, so that what else the machine does meets all of
//! them; the numbers are medians. One thread.

use eva_microkernels::{DotArgs, DotFn, Elem, Features, ScaleElem, Scales, dot_with};
use std::hint::black_box;
use std::time::Instant;

/// `[out, in]` of each weight.
const SHAPES: [(&str, usize, usize); 6] = [
    ("q", 16 * 192, 2048),
    ("kv_a", 576, 2048),
    ("o", 2048, 2048),
    ("expert up", 1408, 2048),
    ("expert down", 2048, 1408),
    ("dense up", 10944, 2048),
];
const ROUNDS: usize = 41;
/// Weights are read in turn from this much memory, more than caches hold.
const MEMORY: usize = 192 << 20;

/// The left operand.
#[derive(Clone, Copy)]
struct Row<'a> {
    numbers: &'a [f32],
    bytes: &'a [u8],
    codes: bool,
}

/// One row times a weight, cut into calls as compiled code would: `n` by 64, `k` by `terms`.
/// The row is `f32`, or codes with a scale for 128.
fn row(kernel: DotFn, a: Row, b: &[u8], size: usize, scales: &[f32], c: &mut [f32], terms: usize) {
    let (n, k) = (c.len(), a.numbers.len());
    assert!(b.len() >= n * k * size && scales.len() >= n.div_ceil(128) * k.div_ceil(128));
    for j in (0..n).step_by(64) {
        for from in (0..k).step_by(terms) {
            let of_b = Scales {
                at: scales.as_ptr().cast(),
                elem: ScaleElem::F32,
                row_place: j as i64,
                row_block: 128,
                row_stride: k.div_ceil(128) as i64,
                k_place: from as i64,
                k_block: 128,
                k_stride: 1,
            };
            let of_a = Scales { row_place: 0, row_block: 1, row_stride: 0, ..of_b };
            let args = DotArgs {
                m: 1,
                n: 64.min(n - j) as i64,
                k: terms.min(k - from) as i64,
                a: if a.codes { a.bytes[from..].as_ptr() } else { a.numbers[from..].as_ptr().cast() },
                a_row: k as i64,
                a_k: 1,
                b: b[(j * k + from) * size..].as_ptr(),
                b_row: k as i64,
                b_k: 1,
                c: c[j..].as_mut_ptr(),
                c_row: n as i64,
                accumulate: (from > 0).into(),
                a_scales: if a.codes { &raw const of_a } else { std::ptr::null() },
                b_scales: if size == 1 { &raw const of_b } else { std::ptr::null() },
            };
            // SAFETY: the extents and strides are those of the slices, whose lengths are checked above.
            unsafe { kernel(black_box(&args)) };
        }
    }
}

/// Reads all of it.
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for line in bytes.chunks_exact(128) {
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum ^= u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let wanted = std::env::args().nth(1);
    let levels = Features::all_available();
    let level =
        levels.iter().rev().find(|level| wanted.as_ref().is_none_or(|name| level.to_string() == *name));
    let Some(&level) = level else {
        eprintln!("this machine has the levels {levels:?}");
        std::process::exit(2);
    };
    let terms = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(2048);
    // No NaN, infinity or subnormal in any element type.
    let memory: Vec<u8> =
        (0..MEMORY).map(|at| if at % 2 == 0 { (at / 2 % 113) as u8 + 8 } else { 0x34 }).collect();
    println!("level {level}, one thread, one row; GB/s of weights, microseconds, and time over that of bf16");
    println!("{:>12} {:>12} {:>8} {:>8} {:>8} {:>8}", "weight", "type", "GB/s", "µs", "of bf16", "of read");
    for (name, n, k) in SHAPES {
        let a = vec![0.5f32; k];
        let scales = vec![0.125f32; n.div_ceil(128) * k.div_ceil(128)];
        let mut c = vec![0f32; n];
        let ones = vec![0x31u8; k];
        let f8 = Some(Elem::F8E4M3);
        // The last row is of 8 bits itself.
        let types = [None, Some(Elem::F32), Some(Elem::Bf16), f8, Some(Elem::F8E5M2), f8];
        let last = types.len() - 1;
        let mut times = types.map(|_| Vec::new());
        let mut at = 0;
        for _ in 0..ROUNDS {
            for (number, (ty, times)) in types.iter().zip(&mut times).enumerate() {
                let size = ty.map_or(2, Elem::size);
                let bytes = n * k * size;
                at = if at + bytes > MEMORY { 0 } else { at };
                let b = &memory[at..at + bytes];
                at += bytes;
                let start = Instant::now();
                match ty {
                    None => {
                        black_box(read(b));
                    }
                    Some(ty) => {
                        let codes = number == last;
                        let of_a = if codes { *ty } else { Elem::F32 };
                        let kernel = dot_with(level, of_a, *ty).expect("the level is one of this machine's");
                        let a = Row { numbers: &a, bytes: &ones, codes };
                        row(kernel, a, b, size, &scales, &mut c, terms);
                    }
                }
                times.push(start.elapsed().as_secs_f64());
            }
        }
        let medians = times.map(|mut times| median(&mut times));
        let rate =
            |ty: &Option<Elem>, seconds: f64| (n * k * ty.map_or(2, Elem::size)) as f64 / seconds / 1e9;
        for (number, (ty, seconds)) in types.iter().zip(medians).enumerate() {
            println!(
                "{name:>12} {:>12} {:>8.1} {:>8.1} {:>8.2} {:>8.2}",
                ty.map_or("read".into(), |ty| format!("{ty:?}{}", if number == last { " x 2" } else { "" })),
                rate(ty, seconds),
                seconds * 1e6,
                seconds / medians[2],
                rate(ty, seconds) / rate(&None, medians[0])
            );
        }
    }
}
