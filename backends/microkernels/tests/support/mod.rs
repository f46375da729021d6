//! Operands in memory with any strides, guard values around results, and the product in f64.
#![allow(dead_code, reason = "each test program uses its part")]

use eva_microkernels::{DotArgs, DotFn, Elem, Features, ScaleElem, Scales, dot_with, portable};
use half::{bf16, f16};

pub const ELEMS: [Elem; 5] = [Elem::F32, Elem::Bf16, Elem::F16, Elem::F8E4M3, Elem::F8E5M2];

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

/// The value of an 8-bit float, by the definition of the formats.
pub fn decode(elem: Elem, code: u8) -> f32 {
    let (mantissa_bits, bias) = if elem == Elem::F8E4M3 { (3, 7) } else { (2, 15) };
    let (exponent, mantissa) = (i32::from(code & 0x7f) >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
    let fraction = f32::from(mantissa) / f32::from(1u8 << mantissa_bits);
    let magnitude = match (elem, exponent) {
        (Elem::F8E4M3, 15) if mantissa == 7 => f32::NAN,
        (Elem::F8E5M2, 31) if mantissa != 0 => f32::NAN,
        (Elem::F8E5M2, 31) => f32::INFINITY,
        (_, 0) => fraction * 2f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// How many rows and steps share a scale, and where the first ones are in their block.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    pub elem: ScaleElem,
    pub rows: (usize, usize),
    pub steps: (usize, usize),
}

/// The scales of a matrix, from the second in memory on, at an odd address.
#[derive(Clone)]
struct Scaling {
    blocks: Blocks,
    stride: usize,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Scaling {
    fn random(blocks: Blocks, rows: usize, cols: usize, random: &mut Random) -> Scaling {
        let stride = (blocks.steps.1 + cols).div_ceil(blocks.steps.0) + 1;
        let count = (blocks.rows.1 + rows).div_ceil(blocks.rows.0) * stride;
        let mut bytes = vec![0xff; 1];
        let mut values = Vec::new();
        for _ in 0..count {
            match blocks.elem {
                ScaleElem::F32 => {
                    let x = random.value() * 3.0;
                    bytes.extend(x.to_ne_bytes());
                    values.push(x);
                }
                ScaleElem::E8M0 => {
                    let exponent = 120 + random.below(12) as u8;
                    bytes.push(exponent);
                    values.push(2f32.powi(i32::from(exponent) - 127));
                }
            }
        }
        Scaling { blocks, stride, bytes, values }
    }

    fn at(&self, r: usize, s: usize) -> f32 {
        let Blocks { rows, steps, .. } = self.blocks;
        self.values[(rows.1 + r) / rows.0 * self.stride + (steps.1 + s) / steps.0]
    }

    /// Those of the rows from `first` on.
    fn args(&self, first: usize) -> Scales {
        let Blocks { elem, rows, steps } = self.blocks;
        let n = |x: usize| x as i64;
        Scales {
            at: self.bytes[1..].as_ptr(),
            elem,
            row_place: n(rows.1 + first),
            row_block: n(rows.0),
            row_stride: n(self.stride),
            k_place: n(steps.1),
            k_block: n(steps.0),
            k_stride: 1,
        }
    }
}

/// A matrix in memory, one byte off every alignment; what is between its elements is NaN.
pub struct Matrix {
    pub elem: Elem,
    pub strides: Strides,
    bytes: Vec<u8>,
    values: Vec<f32>,
    cols: usize,
    scales: Option<Scaling>,
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
                    Elem::F8E4M3 | Elem::F8E5M2 => {
                        // Of moderate size, and subnormal ones.
                        let largest = if elem == Elem::F8E4M3 { 0x58 } else { 0x46 };
                        let code = random.below(largest) as u8 | (random.below(2) as u8) << 7;
                        bytes[at] = code;
                        decode(elem, code)
                    }
                });
            }
        }
        Matrix { elem, strides, bytes, values, cols, scales: None }
    }

    /// The matrix with scales like these, if it is of 8-bit floats.
    pub fn scaled(mut self, blocks: Option<Blocks>, random: &mut Random) -> Matrix {
        let Some(blocks) = blocks.filter(|_| self.elem.size() == 1) else { return self };
        let rows = self.values.len().checked_div(self.cols).unwrap_or(0);
        let scales = Scaling::random(blocks, rows, self.cols, random);
        for (n, x) in self.values.iter_mut().enumerate() {
            *x *= scales.at(n / self.cols, n % self.cols);
        }
        self.scales = Some(scales);
        self
    }

    /// The same values as f32, at the same strides.
    pub fn widened(&self) -> Matrix {
        let last = (self.bytes.len() - 1) / self.elem.size();
        let mut bytes = vec![0xff; 1 + last * 4];
        for (n, x) in self.values.iter().enumerate() {
            let at = 1 + self.strides.index(n / self.cols, n % self.cols) * 4;
            bytes[at..at + 4].copy_from_slice(&x.to_ne_bytes());
        }
        let (strides, cols) = (self.strides, self.cols);
        Matrix { elem: Elem::F32, strides, bytes, values: self.values.clone(), cols, scales: None }
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
        let [a_scales, b_scales] =
            [(&self.a, i), (&self.b, j)].map(|(of, first)| of.scales.as_ref().map(|s| s.args(first)));
        let pointer = |scales: &Option<Scales>| scales.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
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
            a_scales: pointer(&a_scales),
            b_scales: pointer(&b_scales),
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

/// Scales of squares, of odd blocks and places, and of parts of rows.
pub fn some_blocks() -> [Option<Blocks>; 4] {
    let blocks = |elem, rows, steps| Some(Blocks { elem, rows, steps });
    [
        blocks(ScaleElem::F32, (128, 0), (128, 0)),
        blocks(ScaleElem::E8M0, (2, 1), (7, 5)),
        blocks(ScaleElem::F32, (1, 0), (32, 16)),
        None,
    ]
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
