//! Memory: allocations, shared memory, constants.

use super::number::{decode, encode};
use eva_ir::kernel::run::Storage;
use eva_ir::types::DType;
use std::collections::HashMap;

/// Where shared memory begins: not at zero.
pub const SHARED: u64 = 4096;
/// Allocation number `i` begins at `(i + 1) << GLOBAL`.
const GLOBAL: u32 = 36;
/// Where constants begin.
const CONSTANTS: u64 = 0x6000_0000_0000;

pub struct Memory {
    allocations: Vec<Vec<u8>>,
    shared: Vec<u8>,
    constants: Vec<u8>,
    names: HashMap<String, u64>,
}

impl Memory {
    pub fn new(storages: &[Storage], constants: &HashMap<String, Vec<u8>>, shared: usize) -> Self {
        let (mut names, mut all) = (HashMap::new(), Vec::new());
        for (name, bytes) in constants {
            names.insert(name.clone(), CONSTANTS + all.len() as u64);
            all.extend(bytes);
        }
        let allocations = storages.iter().map(|s| s.data.iter().flat_map(|&x| bytes(x, s.dtype)).collect());
        Self { allocations: allocations.collect(), shared: vec![0; shared], constants: all, names }
    }

    /// Where an allocation begins.
    pub fn address(storage: usize) -> u64 {
        (storage as u64 + 1) << GLOBAL
    }

    /// Forgets what is in shared memory: bytes that are NaN in every type of floats.
    pub fn new_block(&mut self) {
        self.shared.fill(0xff);
    }

    pub fn constant(&self, name: &str) -> u64 {
        *self.names.get(name).unwrap_or_else(|| panic!("nothing is called `{name}`"))
    }

    pub fn into_storages(self, storages: &mut [Storage]) {
        for (bytes, storage) in self.allocations.iter().zip(storages) {
            let chunks = bytes.chunks(storage.dtype.bytes() as usize);
            for (chunk, x) in chunks.zip(&mut storage.data) {
                *x = number(chunk, storage.dtype);
            }
        }
    }

    pub fn aligned(&self, at: u64, bytes: usize, line: &str) {
        assert!(at.is_multiple_of(bytes as u64), "{line}: {at:#x} is not a multiple of {bytes}");
    }

    /// The memory that `n` bytes from `at` on lie in, and where.
    fn find(&mut self, at: u64, n: u64, line: &str) -> &mut [u8] {
        let (memory, start) = match at {
            _ if at >= CONSTANTS => (&mut self.constants, at - CONSTANTS),
            _ if at >= 1 << GLOBAL => {
                let number = (at >> GLOBAL) as usize - 1;
                (&mut self.allocations[number], at - Self::address(number))
            }
            _ => (&mut self.shared, at.wrapping_sub(SHARED)),
        };
        let len = memory.len();
        let end = start.checked_add(n).filter(|&end| end <= len as u64);
        let end = end.unwrap_or_else(|| panic!("{line}: {at:#x} is {start} bytes into memory of {len}"));
        &mut memory[start as usize..end as usize]
    }

    pub fn read(&mut self, at: u64, n: u32, line: &str) -> u64 {
        let mut word = [0; 8];
        word[..n as usize].copy_from_slice(self.find(at, n.into(), line));
        u64::from_le_bytes(word)
    }

    pub fn write(&mut self, at: u64, n: u32, value: u64, line: &str) {
        self.find(at, n.into(), line).copy_from_slice(&value.to_le_bytes()[..n as usize]);
    }
}

/// A number as memory holds it.
fn bytes(x: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::I64 => (x as i64).to_le_bytes().to_vec(),
        DType::I32 => (x as i32).to_le_bytes().to_vec(),
        _ => encode(x, dtype).to_le_bytes()[..dtype.bytes() as usize].to_vec(),
    }
}

fn number(bytes: &[u8], dtype: DType) -> f64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(word);
    match dtype {
        DType::F64 => f64::from_bits(bits),
        DType::F32 => f32::from_bits(bits as u32).into(),
        DType::I64 => bits as i64 as f64,
        DType::I32 => f64::from(bits as i32),
        _ => decode(bits, dtype),
    }
}
