//! Products of the tensor cores.

use super::copy::swizzled;
use super::number::decode;
use super::{Arg, Block, Inst, WARP, vector};
use eva_ir::types::DType;

/// A descriptor of a matrix in shared memory.
struct Descriptor {
    start: u64,
    /// From one panel to the next, where they run along the rows.
    leading: u64,
    /// From one group of eight to the next.
    stride: u64,
}

impl Descriptor {
    fn new(bits: u64) -> Self {
        assert_eq!(bits >> 62, 1, "the swizzle is that of 128 bytes");
        assert_eq!(bits >> 49 & 7, 0, "groups begin where the swizzle does");
        let field = |shift: u32| (bits >> shift & 0x3fff) << 4;
        Self { start: field(0), leading: field(16), stride: field(32) }
    }

    /// The address of term `k` of row `i`, elements having so many bytes.
    fn address(&self, i: u64, k: u64, bytes: u64, transposed: bool) -> u64 {
        let at = if transposed {
            let panel = 128 / bytes;
            i % panel * bytes + i / panel * self.leading + k % 8 * 128 + k / 8 * self.stride
        } else {
            i % 8 * 128 + i / 8 * self.stride + k * bytes
        };
        swizzled(self.start + at)
    }
}

fn dtype(name: &str) -> DType {
    match name {
        "tf32" => DType::Tf32,
        "bf16" => DType::Bf16,
        "f16" => DType::F16,
        "e4m3" => DType::F8E4M3,
        "e5m2" => DType::F8E5M2,
        _ => panic!("no products of {name}"),
    }
}

impl Block<'_> {
    /// A product by the warpgroup whose first thread is `first`.
    pub fn product(&mut self, first: usize, inst: &Inst) {
        let shape = inst.op[4].strip_prefix("m64n").and_then(|rest| rest.split_once('k'));
        let (n, k) = shape.unwrap_or_else(|| panic!("{}", inst.line));
        let (n, k): (usize, usize) = (n.parse().unwrap(), k.parse().unwrap());
        let types = [dtype(inst.op[6]), dtype(inst.op[7])];
        assert_eq!(k, 32 / types[0].bytes() as usize);
        let number = |block: &Self, i: usize| inst.args.get(i).map_or(0, |arg| block.value(first, arg));
        let in_registers = matches!(inst.args[1], Arg::Vector(_));
        let transposed = match in_registers {
            true => [0, number(self, 6)],
            false => [number(self, 6), number(self, 7)],
        };
        for i in 4..6 {
            assert_eq!(number(self, i), 1, "operands keep their sign");
        }
        let keep = number(self, 3) & 1 == 1;

        let mut matrix = |arg: &Arg, rows: usize, side: usize| -> Vec<f64> {
            let bits = self.value(first, arg);
            let same = (0..4 * WARP).all(|t| self.value(first + t, arg) == bits);
            assert!(same, "threads differ: {}", inst.line);
            let (descriptor, dtype) = (Descriptor::new(bits), types[side]);
            let bytes = dtype.bytes() as u64;
            let places = (0..rows * k).map(|at| (at / k, at % k));
            places
                .map(|(i, term)| {
                    let at = descriptor.address(i as u64, term as u64, bytes, transposed[side] == 1);
                    decode(self.memory.read(at, bytes as u32, inst.line), dtype)
                })
                .collect()
        };
        let right = matrix(&inst.args[2], n, 1);
        let left = if in_registers {
            self.left(first, vector(&inst.args[1]), types[1])
        } else {
            matrix(&inst.args[1], 64, 0)
        };
        for t in 0..4 * WARP {
            for (s, arg) in vector(&inst.args[0]).iter().enumerate() {
                let (row, col) = place(t, s);
                let old = f32::from_bits(self.value(first + t, arg) as u32);
                let start = if keep { f64::from(old) } else { 0.0 };
                let terms = (0..k).map(|term| left[row * k + term] * right[col * k + term]);
                let sum = terms.fold(start, |sum, term| sum + term);
                self.set(first + t, arg, (sum as f32).to_bits().into());
            }
        }
    }

    /// A left operand of 16 terms, in four registers of each thread.
    fn left(&self, first: usize, registers: &[Arg], dtype: DType) -> Vec<f64> {
        let mut matrix = vec![0.0; 64 * 16];
        for t in 0..4 * WARP {
            for (i, arg) in registers.iter().enumerate() {
                let word = self.value(first + t, arg);
                for half in 0..2 {
                    let row = 16 * (t / 32) + t % 32 / 4 + 8 * (i % 2);
                    let term = 2 * (t % 4) + half + 8 * (i / 2);
                    matrix[row * 16 + term] = decode(word >> (16 * half) & 0xffff, dtype);
                }
            }
        }
        matrix
    }
}

/// The row and column of a slot of a result.
fn place(t: usize, s: usize) -> (usize, usize) {
    (16 * (t / 32) + t % 32 / 4 + 8 * (s / 2 % 2), 2 * (t % 4) + s % 2 + 8 * (s / 4))
}
