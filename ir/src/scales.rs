//! Where the scales of 8-bit floats are, and how they are written: a part of a tensor's type.

use crate::attr::Range;
use crate::dim::Dim;
use crate::op::TypeError;
use crate::ops::Op;
use crate::types::{DType, Shape, TensorType};
use smallvec::SmallVec;

/// How many neighbours along an axis share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    /// Each index has its own: `m`.
    Each,
    /// So many, at least 1; the last block of an axis may be shorter: `m/128`.
    Of(u32),
    /// All of them: `m/*`.
    Whole,
}

/// How a scale is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// Any `f32`.
    F32,
    /// A power of two, as an `f32`.
    Pow2,
    /// A power of two, as its exponent: one byte (OCP `e8m0`).
    E8M0,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Encoding; 3] = [Encoding::F32, Encoding::Pow2, Encoding::E8M0];

    /// The spelling in the IR text: `f8e4m3[m/128; pow2]`.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::F32 => "single",
            Encoding::Pow2 => "pow2",
            Encoding::E8M0 => "e8m0",
        }
    }

    /// The encoding with this spelling.
    pub fn by_name(name: &str) -> Option<Encoding> {
        Self::ALL.into_iter().find(|e| e.name() == name)
    }

    /// The elements of a tensor of scales.
    pub fn dtype(self) -> DType {
        match self {
            Encoding::F32 | Encoding::Pow2 => DType::F32,
            Encoding::E8M0 => DType::E8M0,
        }
    }

    /// Whether scales are powers of two.
    pub fn is_power_of_two(self) -> bool {
        self != Encoding::F32
    }
}

/// The scales of a tensor: one for each block, the blocks being boxes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scales {
    /// One entry an axis.
    pub blocks: SmallVec<[Block; 4]>,
    /// How each is written.
    pub encoding: Encoding,
}

impl Scales {
    /// Scales of these blocks, as `f32`.
    pub fn new(blocks: impl IntoIterator<Item = Block>) -> Self {
        Self { blocks: blocks.into_iter().collect(), encoding: Encoding::F32 }
    }
}

impl TensorType {
    /// The tensor with scales, as 8-bit floats of type `dtype`.
    pub fn scaled(&self, dtype: DType, scales: Scales) -> Self {
        Self { dtype, shape: self.shape.clone(), scales: Some(scales) }
    }

    /// The block of `axis`; none if the tensor has no scales.
    pub fn block(&self, axis: usize) -> Option<Block> {
        self.scales.as_ref().and_then(|scales| scales.blocks.get(axis).copied())
    }

    /// How many scales there are along each axis, given the extents that are fixed; of an axis that is not, as many as
    /// it has elements, which are never fewer.
    pub fn scales_shape(&self, constant: &dyn Fn(&Dim) -> Option<i64>) -> Option<Shape> {
        let scales = self.scales.as_ref()?;
        let along = self.shape.iter().zip(&scales.blocks);
        Some(
            along
                .map(|(dim, block)| match (block, constant(dim)) {
                    (Block::Whole, _) => Dim::from(1),
                    (Block::Of(n), Some(len)) => Dim::from((len + i64::from(*n) - 1) / i64::from(*n)),
                    (Block::Each | Block::Of(_), _) => dim.clone(),
                })
                .collect(),
        )
    }
}

/// Whether `dim` can be a number of whole blocks of `n`, as far as it is known without its symbols' values; with them, the
/// verifier asks [`cuts`].
pub fn may_be_whole(dim: &Dim, n: u32) -> bool {
    dim.as_const().is_none_or(|len| len % i64::from(n) == 0)
}

/// What is wrong with `op` on a tensor with scales given the extents' values, if it cuts blocks.
pub fn cuts(
    op: &Op,
    arg: &TensorType,
    out: &TensorType,
    value: &dyn Fn(&Dim) -> Option<i64>,
) -> Option<String> {
    let whole = |dim: &Dim, n: u32| value(dim).is_some_and(|len| len % i64::from(n) == 0);
    match op {
        Op::Reshape(_) => out.shape.iter().enumerate().find_map(|(axis, dim)| match out.block(axis) {
            // The innermost part of an axis that was taken apart.
            Some(Block::Of(n)) if !arg.shape.contains(dim) && !whole(dim, n) => {
                Some(format!("{dim} is no multiple of {n}, which share a scale in {arg}"))
            }
            _ => None,
        }),
        Op::Slice(slice) => {
            let axis = usize::try_from(slice.axis).ok()?;
            let Some(Block::Of(n)) = arg.block(axis) else { return None };
            let Range { start, end } = &slice.range;
            let fits = whole(start, n) && (*end == arg.shape[axis] || whole(end, n));
            (!fits).then(|| format!("{start}..{end} cuts blocks of {n} that share a scale"))
        }
        _ => None,
    }
}

/// The type of `ty`, which has scales, with other extents; or why blocks would not stay whole.
///
/// Axes that keep their extent keep their block. An axis of which each index has its own scale may be taken apart and
/// put together with others of the kind; a blocked one may be taken apart where the innermost part is a multiple of the
/// block.
pub fn reshape(ty: &TensorType, shape: &[Dim]) -> Result<TensorType, TypeError> {
    let scales = ty.scales.as_ref().expect("the caller has looked");
    let refuse = |why: String| TypeError::new(why).at(0).help("dequantize it first");
    let one = Dim::from(1);
    let (mut blocks, mut i, mut j) = (SmallVec::new(), 0, 0);
    while i < ty.rank() || j < shape.len() {
        // An axis of 1 comes and goes.
        if i < ty.rank() && j < shape.len() && ty.shape[i] == shape[j] {
            blocks.push(scales.blocks[i]);
            (i, j) = (i + 1, j + 1);
            continue;
        }
        if j < shape.len() && shape[j] == one {
            blocks.push(Block::Each);
            j += 1;
            continue;
        }
        let Some(len) = ty.shape.get(i) else {
            return Err(refuse(format!("{ty} cannot be seen in this shape without mixing its scales")));
        };
        if *len == one {
            i += 1;
            continue;
        }
        // One axis taken apart.
        let parts = (j + 1..=shape.len()).find(|&end| Dim::product(&shape[j..end]) == *len);
        if let Some(end) = parts {
            let inner = &shape[end - 1];
            match scales.blocks[i] {
                Block::Each => blocks.extend((j..end).map(|_| Block::Each)),
                Block::Whole => blocks.extend((j..end).map(|_| Block::Whole)),
                Block::Of(n) if may_be_whole(inner, n) => {
                    blocks.extend((j + 1..end).map(|_| Block::Each));
                    blocks.push(Block::Of(n));
                }
                Block::Of(n) => {
                    return Err(refuse(format!(
                        "{inner} is no multiple of {n}, which share a scale in {ty}"
                    )));
                }
            }
            (i, j) = (i + 1, end);
            continue;
        }
        // Several put together.
        let joined = (i + 1..=ty.rank())
            .find(|&end| shape.get(j).is_some_and(|dim| Dim::product(&ty.shape[i..end]) == *dim));
        match joined {
            Some(end)
                if scales.blocks[i..end]
                    .iter()
                    .all(|b| *b == scales.blocks[i] && !matches!(b, Block::Of(_))) =>
            {
                blocks.push(scales.blocks[i]);
                (i, j) = (end, j + 1);
            }
            _ => return Err(refuse(format!("{ty} cannot be seen in this shape without mixing its scales"))),
        }
    }
    let scales = Scales { blocks, encoding: scales.encoding };
    Ok(TensorType { dtype: ty.dtype, shape: shape.iter().cloned().collect(), scales: Some(scales) })
}
