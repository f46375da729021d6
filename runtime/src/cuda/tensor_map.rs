//! Tensor maps: what the copy engine is told of a buffer, first as data, then as the driver encodes it.

use super::error::{CudaError, driver};
use cudarc::driver::sys;
use eva_ir::dim::Dim;
use eva_ir::kernel::BufData;
use eva_ir::kernel::block::MapData;
use eva_ir::types::DType;

/// Bytes that one row of a box has: the width of the swizzle.
pub const ROW_BYTES: usize = 128;

/// The copy engine's limits.
const LARGEST_EXTENT: i64 = 1 << 32;
const LARGEST_STRIDE: i64 = 1 << 40;
const LARGEST_BOX: usize = 256;

/// A buffer and its boxes, as the copy engine sees them. Axes come innermost first: the axis of the map's columns,
/// then the buffer's other axes from the last to the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorMap {
    /// The elements' type.
    pub dtype: DType,
    /// The address of the first element.
    pub address: u64,
    /// The extent of each axis, in elements.
    pub extents: Vec<u64>,
    /// The distance of neighbours along each axis but the innermost, in bytes.
    pub strides: Vec<u64>,
    /// The extents of a box, in elements.
    pub boxes: Vec<u32>,
    /// Whether boxes are swizzled in shared memory.
    pub swizzle: bool,
}

impl TensorMap {
    /// The map of a buffer whose base is at `base`, with the extents' values of `eval`. `None` for a buffer without
    /// elements, of which there is no map.
    pub fn new(
        map: &MapData,
        buf: &BufData,
        base: u64,
        eval: &dyn Fn(&Dim) -> Option<i64>,
    ) -> Result<Option<Self>, String> {
        let size = buf.dtype.bytes();
        let value = |dim: &Dim| eval(dim).ok_or_else(|| format!("the extent `{dim}` has no value"));
        let [rows, columns] = map.axes;
        let rank = buf.shape.len();
        if !(2..=5).contains(&rank) || rows >= rank || columns >= rank || rows == columns {
            return Err(format!(
                "axes {rows} and {columns} of {rank}: the copy engine takes two of up to 5 axes"
            ));
        }
        if map.rows == 0 || map.rows > LARGEST_BOX {
            return Err(format!("boxes of {} rows: the copy engine takes 1 to {LARGEST_BOX}", map.rows));
        }
        if value(&buf.strides[columns])? != 1 {
            return Err("neighbouring columns are not neighbours in memory".into());
        }
        let order: Vec<usize> =
            std::iter::once(columns).chain((0..rank).rev().filter(|&axis| axis != columns)).collect();
        let mut out = Self {
            dtype: buf.dtype,
            address: base.wrapping_add_signed(value(&buf.offset)?.wrapping_mul(size)),
            extents: Vec::with_capacity(rank),
            strides: Vec::with_capacity(rank - 1),
            boxes: Vec::with_capacity(rank),
            swizzle: map.swizzle,
        };
        for &axis in &order {
            let extent = value(&buf.shape[axis])?;
            if extent <= 0 {
                return Ok(None);
            }
            if extent > LARGEST_EXTENT {
                return Err(format!("an extent of {extent}: the copy engine takes up to {LARGEST_EXTENT}"));
            }
            out.extents.push(extent as u64);
            out.boxes.push(match axis {
                _ if axis == columns => columns_of(map, size),
                _ if axis == rows => map.rows as u32,
                _ => 1,
            });
            if axis == columns {
                continue;
            }
            // Where there are no neighbours any distance will do.
            let stride = if extent == 1 { 16 } else { value(&buf.strides[axis])?.saturating_mul(size) };
            if stride % 16 != 0 || !(0..LARGEST_STRIDE).contains(&stride) {
                return Err(format!("a stride of {stride} bytes: the copy engine takes multiples of 16"));
            }
            out.strides.push(stride as u64);
        }
        if !out.address.is_multiple_of(16) {
            return Err(format!("the address {:#x}: the copy engine takes multiples of 16", out.address));
        }
        Ok(Some(out))
    }

    /// The map of a buffer without elements: every box of it is zero. `zeros` is the address of at least 16 bytes of
    /// zero.
    pub fn empty(map: &MapData, buf: &BufData, zeros: u64) -> Self {
        let columns = columns_of(map, buf.dtype.bytes());
        let rank = buf.shape.len();
        let mut boxes = vec![1; rank];
        boxes[0] = columns;
        let row = (0..rank).rev().filter(|&axis| axis != map.axes[1]).position(|axis| axis == map.axes[0]);
        boxes[1 + row.unwrap_or(0)] = map.rows as u32;
        let (extents, strides) = (vec![1; rank], vec![16; rank - 1]);
        Self { dtype: buf.dtype, address: zeros, extents, strides, boxes, swizzle: map.swizzle }
    }

    /// The map as the copy engine reads it: swizzled by 128 bytes or not at all, zero outside.
    pub(super) fn encode(&self) -> Result<Encoded, CudaError> {
        use sys::CUtensorMapDataType as Type;
        let dtype = match self.dtype {
            DType::F64 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
            DType::F32 | DType::Tf32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::I64 => Type::CU_TENSOR_MAP_DATA_TYPE_INT64,
            DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
            DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let steps = vec![1u32; self.extents.len()];
        let swizzle = if self.swizzle {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE
        };
        let mut encoded = Encoded(sys::CUtensorMap { opaque: [0; 16] });
        // SAFETY: the lists have the rank's lengths (strides one less), and the map is written.
        unsafe {
            driver!(cuTensorMapEncodeTiled(
                &mut encoded.0,
                dtype,
                self.extents.len() as u32,
                self.address as *mut std::ffi::c_void,
                self.extents.as_ptr(),
                self.strides.as_ptr(),
                self.boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ))
        }
        .map_err(|e| match e {
            CudaError::Driver { call, name, code } => {
                CudaError::Driver { call: format!("{call} ({self:?})"), name, code }
            }
            e => e,
        })?;
        Ok(encoded)
    }
}

/// The columns of a box: of swizzled ones, a panel's.
fn columns_of(map: &MapData, size: i64) -> u32 {
    if map.swizzle { (ROW_BYTES as i64 / size) as u32 } else { map.cols as u32 }
}

/// A tensor map as kernels take it: 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoded(sys::CUtensorMap);

#[cfg(test)]
mod tests {
    use super::*;
    use eva_ir::entity::Entity;
    use eva_ir::kernel::{Access, Buf};

    fn buf(dtype: DType, shape: &[i64], strides: &[i64], offset: i64) -> BufData {
        let dims = |list: &[i64]| list.iter().map(|&n| Dim::from(n)).collect();
        let (shape, strides) = (dims(shape), dims(strides));
        BufData {
            name: "x".into(),
            dtype,
            access: Access::Read,
            shape,
            strides,
            offset: Dim::from(offset),
            scaled: None,
        }
    }

    fn map(axes: [usize; 2], rows: usize, cols: usize) -> MapData {
        MapData { buf: Buf::new(0), axes, rows, cols, swizzle: true }
    }

    fn known(dim: &Dim) -> Option<i64> {
        dim.eval(&|sym| (sym.as_str() == "s").then_some(37))
    }

    #[test]
    fn axes_come_innermost_first() {
        // [batch, tokens, heads, width], the rows of a box being tokens.
        let mut x = buf(DType::Bf16, &[3, 0, 5, 192], &[0, 5 * 192, 192, 1], 64);
        x.shape[1] = Dim::sym("s");
        x.strides[0] = Dim::sym("s") * Dim::from(5 * 192);
        let have = TensorMap::new(&map([1, 3], 128, 64), &x, 0x1000, &known).unwrap().unwrap();
        let want = TensorMap {
            dtype: DType::Bf16,
            address: 0x1000 + 128,
            extents: vec![192, 5, 37, 3],
            strides: vec![192 * 2, 5 * 192 * 2, 37 * 5 * 192 * 2],
            boxes: vec![64, 1, 128, 1],
            swizzle: true,
        };
        assert_eq!(have, want);
    }

    #[test]
    fn columns_may_be_any_axis() {
        // A transposed view: columns along axis 0.
        let x = buf(DType::F8E4M3, &[256, 7], &[1, 512], 0);
        let have = TensorMap::new(&map([1, 0], 5, 128), &x, 0x40, &known).unwrap().unwrap();
        assert_eq!((have.extents, have.strides, have.boxes), (vec![256, 7], vec![512], vec![128, 5]));
        // One row: its stride does not matter.
        let x = buf(DType::F32, &[1, 96], &[95, 1], 0);
        let have = TensorMap::new(&map([0, 1], 8, 32), &x, 0x40, &known).unwrap().unwrap();
        assert_eq!((have.extents, have.strides, have.boxes), (vec![96, 1], vec![16], vec![32, 8]));
    }

    #[test]
    fn what_the_copy_engine_does_not_take_is_refused() {
        let refuse = |map: MapData, buf: BufData, base: u64, part: &str| {
            let error = TensorMap::new(&map, &buf, base, &known).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        let x = || buf(DType::Bf16, &[9, 40], &[40, 1], 0);
        refuse(map([0, 1], 257, 64), x(), 0, "257 rows");
        refuse(map([0, 0], 8, 64), x(), 0, "axes 0 and 0 of 2");
        refuse(map([0, 1], 8, 64), x(), 8, "the address 0x8");
        refuse(map([1, 0], 8, 64), x(), 0, "not neighbours");
        refuse(map([0, 1], 8, 64), buf(DType::Bf16, &[9, 41], &[41, 1], 0), 0, "a stride of 82 bytes");
        let mut unknown = x();
        unknown.shape[0] = Dim::sym("m");
        refuse(map([0, 1], 8, 64), unknown, 0, "the extent `m` has no value");
        let long = buf(DType::Bf16, &[9; 6], &[1; 6], 0);
        refuse(map([0, 1], 8, 64), long, 0, "of 6");
        let huge = buf(DType::Bf16, &[(1 << 32) + 1, 8], &[8, 1], 0);
        refuse(map([0, 1], 8, 64), huge, 0, "an extent of 4294967297");
    }

    #[test]
    fn a_buffer_without_elements_is_all_zeros() {
        let x = buf(DType::Bf16, &[3, 0, 40], &[0, 40, 1], 0);
        let map = map([1, 2], 16, 64);
        assert_eq!(TensorMap::new(&map, &x, 0, &known), Ok(None));
        let have = TensorMap::empty(&map, &x, 0x200);
        assert_eq!((have.extents, have.boxes), (vec![1, 1, 1], vec![64, 16, 1]));
        assert_eq!((have.address, have.strides), (0x200, vec![16, 16]));
    }
}
