//! The ops of the graph IR: one file answers for one op, and this table lists them all.
//!
//! A file holds the op's declaration (name, operands, attributes), its type rule, its meaning, its
//! gradient slot and its lowering; see [`OpDef`]. Nothing else in the compiler lists the ops.

use crate::attr::Attr;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{BufView, Cx, LowerError, Lowering, Request, View};
use crate::op::{Declared, OpDef, TypeError, ops};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

mod check;
mod pointwise;
mod reduce;
mod route;
mod rows;

ops! {
    // One element at a time.
    cast::Cast,
    scale::Scale,
    offset::Offset,
    exp::Exp,
    log::Log,
    sqrt::Sqrt,
    rsqrt::Rsqrt,
    recip::Recip,
    sigmoid::Sigmoid,
    silu::Silu,
    add::Add,
    sub::Sub,
    mul::Mul,
    div::Div,
    maximum::Maximum,
    step::Step,
    // 8-bit floats.
    quantize::Quantize,
    quantize_by::QuantizeBy,
    quantize_by_expert::QuantizeByExpert,
    dequantize::Dequantize,
    quantize_stats::QuantizeStats,
    // The same elements elsewhere.
    reshape::Reshape,
    slice::Slice,
    get::Get,
    concat::Concat,
    embedding::Embedding,
    take_row::TakeRow,
    take_rows::TakeRows,
    cache_write::CacheWrite,
    page_write::PageWrite,
    page_read::PageRead,
    assign::Assign,
    // Made from nothing, or from positions.
    full::Full,
    positions::Positions,
    rope_freqs::RopeFreqs,
    rope_table::RopeTable,
    rope::Rope,
    rope_transpose::RopeTranspose,
    // Sums and products.
    einsum::Einsum,
    grouped::Grouped,
    grouped_outer::GroupedOuter,
    rms_norm::RmsNorm,
    sum::Sum,
    mean::Mean,
    max::Max,
    softmax::Softmax,
    causal_softmax::CausalSoftmax,
    attend::Attend,
    attend_lse::AttendLse,
    attend_grad_queries::AttendGradQueries,
    attend_grad_keys::AttendGradKeys,
    cross_entropy::CrossEntropy,
    cross_entropy_rows::CrossEntropyRows,
    cross_entropy_grad::CrossEntropyGrad,
    label_count::LabelCount,
    // Experts.
    route_noaux_tc::RouteNoauxTc,
    route_greedy::RouteGreedy,
    route_group_limited_greedy::RouteGroupLimitedGreedy,
    sort_by_expert::SortByExpert,
    dispatch::Dispatch,
    combine::Combine,
    route_grad::RouteGrad,
    count_by_expert::CountByExpert,
    align_offsets::AlignOffsets,
    invert::Invert,
    segment_sum::SegmentSum,
}

impl Op {
    /// Whether operand 0 is a state that the op updates in place, its result being the next version of it.
    pub fn updates_state(&self) -> bool {
        matches!(self, Op::CacheWrite(_) | Op::PageWrite(_) | Op::Assign(_))
    }
}

impl OpKind {
    /// The op with this name.
    pub fn by_name(name: &str) -> Option<OpKind> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Checks the number of operands.
    pub fn check_arity(self, n: usize) -> Result<(), TypeError> {
        let want = self.operands().len();
        if n == want || (self.is_variadic() && n >= want) {
            return Ok(());
        }
        let least = if self.is_variadic() { "at least " } else { "" };
        let s = if want == 1 { "" } else { "s" };
        Err(TypeError::new(format!("`{}` takes {least}{want} operand{s}, not {n}", self.name())))
    }
}
