//! Operands in memory with any strides, guard values around results, and the product in f64.
#![allow(dead_code, reason = "each test program uses its part")]

use eva_microkernels::{DotArgs, DotFn, Elem, Features, dot_with, portable};
use half::{bf16, f16};

pub const ELEMS: [Elem; 3] = [Elem::F32, Elem::Bf16, Elem::F16];

/// Every kernel for these types that runs here, with the name of its level.
pub fn kernels(a: Elem, b: Elem) -> Vec<(String, DotFn)> {
    let mut all = vec![("portable".to_string(), portable(a, b))];
    for level in Features::all_available() {
        all.push((level.to_string(), dot_with(level, a, b).expect("the level is available")));
    }
    all
}

/// A small generator, so that failures repeat.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In (-1, 1).
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Where element `(r, s)` of a matrix is: `origin + r*row + s*step` elements from the start of its memory.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    pub origin: usize,
    pub row: i64,
    pub step: i64,
}

impl Strides {
    pub fn new(row: usize, step: usize) -> Strides {
        Strides { origin: 0, row: row as i64, step: step as i64 }
    }

    /// Both directions backwards, for a matrix of these extents.
    pub fn reversed(self, rows: usize, steps: usize) -> Strides {
        let last = self.row * rows.saturating_sub(1) as i64 + self.step * steps.saturating_sub(1) as i64;
        Strides { origin: last as usize, row: -self.row, step: -self.step }
    }

    fn index(&self, r: usize, s: usize) -> usize {
        (self.origin as i64 + r as i64 * self.row + s as i64 * self.step) as usize
    }
}

/// A matrix in memory, one byte off every alignment; what is between its elements is NaN.
pub struct Matrix {
    pub elem: Elem,
    pub strides: Strides,
    bytes: Vec<u8>,
    values: Vec<f32>,
    cols: usize,
}

impl Matrix {
    pub fn random(elem: Elem, rows: usize, cols: usize, strides: Strides, random: &mut Random) -> Matrix {
        let ends = [(0, 0), (rows.max(1) - 1, 0), (0, cols.max(1) - 1), (rows.max(1) - 1, cols.max(1) - 1)];
        let last = ends.iter().map(|&(r, s)| strides.index(r, s)).max().unwrap();
        let mut bytes = vec![0xff; 1 + (last + 1) * elem.size()];
        let mut values = Vec::with_capacity(rows * cols);
        for r in 0..rows {
            for s in 0..cols {
                let x = random.value();
                let at = 1 + strides.index(r, s) * elem.size();
                values.push(match elem {
                    Elem::F32 => {
                        bytes[at..at + 4].copy_from_slice(&x.to_ne_bytes());
                        x
                    }
                    Elem::Bf16 => {
                        let x = bf16::from_f32(x);
                        bytes[at..at + 2].copy_from_slice(&x.to_ne_bytes());
                        x.to_f32()
                    }
                    Elem::F16 => {
                        let x = f16::from_f32(x);
                        bytes[at..at + 2].copy_from_slice(&x.to_ne_bytes());
                        x.to_f32()
                    }
                });
            }
        }
        Matrix { elem, strides, bytes, values, cols }
    }

    /// The same values as f32, at the same strides.
    pub fn widened(&self) -> Matrix {
        let last = (self.bytes.len() - 1) / self.elem.size();
        let mut bytes = vec![0xff; 1 + last * 4];
        for (n, x) in self.values.iter().enumerate() {
            let at = 1 + self.strides.index(n / self.cols, n % self.cols) * 4;
            bytes[at..at + 4].copy_from_slice(&x.to_ne_bytes());
        }
        Matrix { elem: Elem::F32, bytes, values: self.values.clone(), ..*self }
    }

    /// The first row `rows` times, for matrices whose rows are no elements apart.
    pub fn repeated(mut self, rows: usize) -> Matrix {
        assert_eq!(self.strides.row, 0);
        self.values = self.values.repeat(rows);
        self
    }

    pub fn at(&self, r: usize, s: usize) -> f64 {
        self.values[r * self.cols + s].into()
    }

    pub fn pointer(&self, r: usize, s: usize) -> *const u8 {
        self.bytes[1 + self.strides.index(r, s) * self.elem.size()..].as_ptr()
    }
}

/// A rectangle of a product: rows `i..i+m`, columns `j..j+n`.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub i: usize,
    pub m: usize,
    pub j: usize,
    pub n: usize,
}

pub const GUARD: f32 = -12345.678;

/// A product of two matrices with `k` columns.
pub struct Case {
    pub a: Matrix,
    pub b: Matrix,
    pub k: usize,
}

impl Case {
    /// Runs the kernel for part of the product into memory that holds `before` everywhere, and checks that nothing
    /// else of it is written.
    pub fn run(&self, kernel: DotFn, part: Part, c_gap: usize, before: Option<f32>) -> Vec<f32> {
        let Part { i, m, j, n } = part;
        const MARGIN: usize = 19;
        let c_row = n + c_gap;
        let mut c = vec![GUARD; MARGIN + m * c_row + MARGIN];
        if let Some(x) = before {
            for r in 0..m {
                c[MARGIN + r * c_row..][..n].fill(x);
            }
        }
        let in_a = if m == 0 || self.k == 0 { self.a.pointer(0, 0) } else { self.a.pointer(i, 0) };
        let in_b = if n == 0 || self.k == 0 { self.b.pointer(0, 0) } else { self.b.pointer(j, 0) };
        let args = DotArgs {
            m: m as i64,
            n: n as i64,
            k: self.k as i64,
            a: in_a,
            a_row: self.a.strides.row,
            a_k: self.a.strides.step,
            b: in_b,
            b_row: self.b.strides.row,
            b_k: self.b.strides.step,
            c: c[MARGIN..].as_mut_ptr(),
            c_row: c_row as i64,
            accumulate: before.is_some().into(),
        };
        // SAFETY: the matrices have these strides and extents, and `c` has `m` rows of `c_row`.
        unsafe { kernel(&args) };
        let mut out = Vec::with_capacity(m * n);
        for (at, &x) in c.iter().enumerate() {
            let inside = at >= MARGIN && (at - MARGIN) / c_row.max(1) < m && (at - MARGIN) % c_row.max(1) < n;
            if inside {
                out.push(x);
            } else {
                assert_eq!(x, GUARD, "written outside the product at {at}: {part:?}");
            }
        }
        out
    }

    /// Checks a part against sums in f64.
    pub fn check(&self, what: &str, part: Part, before: Option<f32>, got: &[f32]) {
        assert_eq!(got.len(), part.m * part.n, "{what}");
        for r in 0..part.m {
            for s in 0..part.n {
                let mut sum = f64::from(before.unwrap_or(0.0));
                let mut size = sum.abs();
                for k in 0..self.k {
                    let x = self.a.at(part.i + r, k) * self.b.at(part.j + s, k);
                    sum += x;
                    size += x.abs();
                }
                // Chains have at most 128 roundings, or 512 over the lanes and their sum.
                let limit = size * (140 + self.k / 100) as f64 * f64::powi(2.0, -24);
                let got = f64::from(got[r * part.n + s]);
                assert!((got - sum).abs() <= limit, "{what}: [{r},{s}] of {part:?}: {got} for {sum}");
            }
        }
    }
}

/// The ways operands lie in memory, by name, as strides of `a` and of `b`; rows are `gap` longer than needed.
pub fn layouts(m: usize, n: usize, k: usize, gap: usize) -> Vec<(&'static str, Strides, Strides)> {
    let along_k = Strides::new(k + gap, 1);
    let a_turned = Strides::new(1, m + gap);
    let b_turned = Strides::new(1, n + gap);
    let apart = Strides::new(2 * k + gap + 1, 2);
    vec![
        ("a along k, b along k", along_k, along_k),
        ("a along k, b along j", along_k, b_turned),
        ("a along i, b along k", a_turned, along_k),
        ("a along i, b along j", a_turned, b_turned),
        ("a along k, b apart", along_k, apart),
        ("a apart, b along j", apart, b_turned),
        ("a apart, b apart", apart, apart),
        ("a backwards, b backwards", along_k.reversed(m, k), apart.reversed(n, k)),
        ("a one row, b along k", Strides::new(0, 1), along_k),
    ]
}
