//! Rates of the microkernels by shape: `cargo run --release -p eva-microkernels --example throughput [LEVEL]`.

use eva_microkernels::{DotArgs, DotFn, Elem, Features, ScaleElem, Scales, dot_with};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that hold no NaN, infinity or subnormal in any element type, in pages of their own.
fn operand(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| if at % 2 == 0 { (at / 2 % 251) as u8 } else { 0x34 + (at / 502 % 8) as u8 })
        .collect()
}

/// Seconds of one call: the best of several rounds, each long enough for the clock.
fn best(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    f();
    let once = start.elapsed().max(Duration::from_nanos(100));
    let calls = (Duration::from_millis(8).as_nanos() / once.as_nanos()).max(1) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..12 {
        let start = Instant::now();
        for _ in 0..calls {
            f();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    best
}

/// A product cut into calls as compiled code would: `n` by 256, `k` by 1024.
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    along_k: bool,
}

impl Shape {
    fn run(&self, kernel: DotFn, (a, a_size): (&[u8], usize), (b, b_size): (&[u8], usize), c: &mut [f32]) {
        let Shape { m, n, k, along_k } = *self;
        assert!(a.len() >= m * k * a_size && b.len() >= n * k * b_size && c.len() >= m * n);
        let (b_row, b_k) = if along_k { (k, 1) } else { (1, n) };
        // Of squares, as published weights have them.
        let scales = vec![1f32; n.div_ceil(128) * k.div_ceil(128)];
        for j in (0..n).step_by(256) {
            for from in (0..k).step_by(1024) {
                let b_scales = Scales {
                    at: scales.as_ptr().cast(),
                    elem: ScaleElem::F32,
                    row_place: j as i64,
                    row_block: 128,
                    row_stride: k.div_ceil(128) as i64,
                    k_place: from as i64,
                    k_block: 128,
                    k_stride: 1,
                };
                let args = DotArgs {
                    m: m as i64,
                    n: 256.min(n - j) as i64,
                    k: 1024.min(k - from) as i64,
                    a: a[from * a_size..].as_ptr(),
                    a_row: k as i64,
                    a_k: 1,
                    b: b[(j * b_row + from * b_k) * b_size..].as_ptr(),
                    b_row: b_row as i64,
                    b_k: b_k as i64,
                    c: c[j..].as_mut_ptr(),
                    c_row: n as i64,
                    accumulate: (from > 0).into(),
                    a_scales: std::ptr::null(),
                    b_scales: if b_size == 1 { &raw const b_scales } else { std::ptr::null() },
                };
                // SAFETY: the extents and strides are those of the slices, whose lengths are checked above.
                unsafe { kernel(black_box(&args)) };
            }
        }
    }
}

fn main() {
    let wanted = std::env::args().nth(1);
    let levels = Features::all_available();
    let names: Vec<String> = levels.iter().map(Features::to_string).collect();
    let level = match &wanted {
        None => Features::detect(),
        Some(name) => match levels.iter().find(|level| level.to_string() == *name) {
            Some(&level) => level,
            None => {
                eprintln!("this machine has no level {name}; it has {}", names.join(", "));
                std::process::exit(2);
            }
        },
    };
    println!("level {level}, one thread; b is contiguous along the letter named");
    println!(
        "{:>5} {:>5} {:>5} {:>6} {:>6} {:>6} {:>10} {:>9}",
        "m", "n", "k", "along", "a", "b", "GFLOP/s", "GB/s b"
    );
    for (n, k) in [(256, 1024), (4096, 2048)] {
        for along_k in [true, false] {
            for (a, b) in [
                (Elem::F32, Elem::F32),
                (Elem::F32, Elem::Bf16),
                (Elem::Bf16, Elem::Bf16),
                (Elem::F32, Elem::F16),
                (Elem::F32, Elem::F8E4M3),
                (Elem::F32, Elem::F8E5M2),
            ] {
                for m in [1, 4, 16, 64] {
                    let shape = Shape { m, n, k, along_k };
                    let kernel = dot_with(level, a, b).expect("the level is one of this machine's");
                    // Enough copies of the large weights to leave the caches between two uses.
                    let copies = if n > 256 { (256 << 20) / (n * k * b.size()) } else { 1 };
                    let weights: Vec<Vec<u8>> = (0..copies).map(|_| operand(n * k * b.size())).collect();
                    let rows = operand(m * k * a.size());
                    let mut c = vec![0f32; m * n];
                    let mut turn = 0;
                    let seconds = best(|| {
                        turn = (turn + 1) % copies;
                        shape.run(kernel, (&rows, a.size()), (&weights[turn], b.size()), &mut c);
                    });
                    black_box(&c);
                    let flops = 2.0 * (m * n * k) as f64 / seconds / 1e9;
                    let bytes = (n * k * b.size()) as f64 / seconds / 1e9;
                    let along = if along_k { "k" } else { "j" };
                    println!(
                        "{m:>5} {n:>5} {k:>5} {along:>6} {:>6} {:>6} {flops:>10.1} {bytes:>9.1}",
                        format!("{a:?}"),
                        format!("{b:?}")
                    );
                }
            }
        }
    }
}
