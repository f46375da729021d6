//! Every guard of every rule is needed: without it the rule is wrong, or does what it should not, in the case given here.
//!
//! The guards are read off the rules, so that one without a case fails.

use crate::support::{arguments, last, parse};
use Need::{Adds, Endless, Wrong};
use eva_ir::graph::Module;
use eva_ir::types::DType;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::rewrite::check::{Checked, check};
use eva_passes::rewrite::rules::{Exactness, Rule, all};
use eva_passes::rewrite::{Choose, rewrite};
use std::collections::BTreeSet;

/// What happens in a case without the guard.
#[derive(Clone, Copy, Debug)]
enum Need {
    /// The rule is stopped as ill-typed, or a term that it adds is not what it says: by value, or by its bits if the rule
    /// is an exact one.
    Wrong,
    /// The rule adds something where it has no business; why so.
    Adds(&'static str),
    /// The rule goes on until it is stopped.
    Endless,
}

/// A rule, a guard of it, what happens without it, and the function where it does: its text after the name, or `keys` or
/// `values` for attention in which those are used elsewhere.
struct Case(&'static str, &'static str, Need, &'static str);

/// Attention with keys and values made from latents.
const ATTENTION: &str = "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7 dim v = 9
  fn @f(%q: f32[b, s, h, n], %y: f32[b, t, c], %z: f32[b, t, c], %start: i32[b],
    weight %w_uk: f32[h, n, c], weight %w_uv: f32[h, v, c]) -> f32[b, s, h, v] {
    %k = einsum \"btc,hnc->bthn\" %y, %w_uk : f32[b, t, h, n]
    %u = einsum \"btc,hvc->bthv\" %z, %w_uv : f32[b, t, h, v]
    %x = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, h, s, t]
    %p = causal_softmax %x, %start : f32[b, h, s, t]
    %o = einsum \"bhst,bthv->bshv\" %p, %u : f32[b, s, h, v]
    return %o
  }";

const CASES: &[Case] = &[
    Case("mla_absorb_key", "there is an axis N", Adds("a product over no axis is none to move"),
        "(%start: i32[b], %q: f32[b, s, 5], %y: f32[b, t, 7], weight %w: f32[5, 7]) -> f32[b, 5, s, t] {
           %k = einsum \"btc,hc->bth\" %y, %w : f32[b, t, 5]
           %x = einsum \"bsh,bth->bhst\" %q, %k : f32[b, 5, s, t] %p = causal_softmax %x, %start : f32[b, 5, s, t] return %p }"),
    Case("mla_absorb_key", "there is an axis C", Adds("there is no latent"),
        "(%start: i32[b], %q: f32[b, s, 5, 6], %y: f32[b, t], weight %w: f32[5, 6]) -> f32[b, 5, s, t] {
           %k = einsum \"bt,hn->bthn\" %y, %w : f32[b, t, 5, 6]
           %x = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, 5, s, t] %p = causal_softmax %x, %start : f32[b, 5, s, t] return %p }"),
    Case("mla_absorb_key", "T is the last axis", Adds("the queries are no keys"),
        "(%start: i32[b], %y: f32[b, s, 7], %k: f32[b, t, 5, 6], weight %w: f32[5, 6, 7]) -> f32[b, 5, s, t] {
           %q = einsum \"bsc,hnc->bshn\" %y, %w : f32[b, s, 5, 6]
           %x = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, 5, s, t] %p = causal_softmax %x, %start : f32[b, 5, s, t] return %p }"),
    Case("mla_absorb_key", "?w_uk is a weight", Adds("what is made from two inputs is no projection"),
        "(%start: i32[b], %q: f32[b, s, 5, 6], %y: f32[b, t, 7], %w: f32[5, 6, 7]) -> f32[b, 5, s, t] {
           %k = einsum \"btc,hnc->bthn\" %y, %w : f32[b, t, 5, 6]
           %x = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, 5, s, t] %p = causal_softmax %x, %start : f32[b, 5, s, t] return %p }"),
    Case("mla_absorb_key", "?c is not a weight", Adds("keys that weights decide are computed when they are loaded"),
        "(%start: i32[b], %q: f32[b, s, 5, 6], weight %y: f32[b, t, 7], weight %w: f32[5, 6, 7]) -> f32[b, 5, s, t] {
           %k = einsum \"btc,hnc->bthn\" %y, %w : f32[b, t, 5, 6]
           %x = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, 5, s, t] %p = causal_softmax %x, %start : f32[b, 5, s, t] return %p }"),
    Case("mla_absorb_key", "?q is not a weight", Adds("that is to fold weights, which has a rule of its own"),
        "(%start: i32[b], weight %q: f32[b, s, 5, 6], %y: f32[b, t, 7], weight %w: f32[5, 6, 7]) -> f32[b, 5, s, t] {
           %k = einsum \"btc,hnc->bthn\" %y, %w : f32[b, t, 5, 6]
           %x = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, 5, s, t] %p = causal_softmax %x, %start : f32[b, 5, s, t] return %p }"),
    Case(
        "mla_absorb_key",
        "only attention needs the inner product",
        Adds("the keys are computed anyway"),
        "keys",
    ),
    Case("mla_absorb_value", "there is an axis T", Adds("nothing is averaged"),
        "(%start: i32[b], %x: f32[b, 5, s], %y: f32[b, 7], weight %w: f32[5, 6, 7]) -> f32[b, s, 5, 6] {
           %u = einsum \"bc,hvc->bhv\" %y, %w : f32[b, 5, 6]
           %p = causal_softmax %x, %start : f32[b, 5, s]
           %o = einsum \"bhs,bhv->bshv\" %p, %u : f32[b, s, 5, 6] return %o }"),
    Case("mla_absorb_value", "there is an axis C", Adds("there is no latent"),
        "(%start: i32[b], %x: f32[b, 5, s, t], %y: f32[b, t], weight %w: f32[5, 6]) -> f32[b, s, 5, 6] {
           %u = einsum \"bt,hv->bthv\" %y, %w : f32[b, t, 5, 6]
           %p = causal_softmax %x, %start : f32[b, 5, s, t]
           %o = einsum \"bhst,bthv->bshv\" %p, %u : f32[b, s, 5, 6] return %o }"),
    Case("mla_absorb_value", "?w_uv is a weight", Adds("what is made from two inputs is no projection"),
        "(%start: i32[b], %x: f32[b, 5, s, t], %y: f32[b, t, 7], %w: f32[5, 6, 7]) -> f32[b, s, 5, 6] {
           %u = einsum \"btc,hvc->bthv\" %y, %w : f32[b, t, 5, 6]
           %p = causal_softmax %x, %start : f32[b, 5, s, t]
           %o = einsum \"bhst,bthv->bshv\" %p, %u : f32[b, s, 5, 6] return %o }"),
    Case("mla_absorb_value", "?c is not a weight", Adds("values that weights decide are computed when they are loaded"),
        "(%start: i32[b], %x: f32[b, 5, s, t], weight %y: f32[b, t, 7], weight %w: f32[5, 6, 7]) -> f32[b, s, 5, 6] {
           %u = einsum \"btc,hvc->bthv\" %y, %w : f32[b, t, 5, 6]
           %p = causal_softmax %x, %start : f32[b, 5, s, t]
           %o = einsum \"bhst,bthv->bshv\" %p, %u : f32[b, s, 5, 6] return %o }"),
    Case("mla_absorb_value", "?p is not a weight", Adds("averages by weights are projections"),
        "(weight %start: i32[b], weight %x: f32[b, 5, s, t], %y: f32[b, t, 7], weight %w: f32[5, 6, 7]) -> f32[b, s, 5, 6] {
           %u = einsum \"btc,hvc->bthv\" %y, %w : f32[b, t, 5, 6]
           %p = causal_softmax %x, %start : f32[b, 5, s, t]
           %o = einsum \"bhst,bthv->bshv\" %p, %u : f32[b, s, 5, 6] return %o }"),
    Case(
        "mla_absorb_value",
        "only attention needs the inner product",
        Adds("the values are computed anyway"),
        "values",
    ),
    Case("fold_weights", "there is an axis I", Adds("a product over no axis folds nothing"),
        "(%x: f32[b], weight %w: f32[5], weight %u: f32[5, 6]) -> f32[b, 6] {
           %y = einsum \"b,j->bj\" %x, %w : f32[b, 5]
           %z = einsum \"bj,jk->bk\" %y, %u : f32[b, 6] return %z }"),
    Case("fold_weights", "?w is a weight", Adds("an input would be multiplied by a weight in every call"),
        "(%x: f32[b, 7], %w: f32[5, 7], weight %u: f32[5, 6]) -> f32[b, 6] {
           %y = einsum \"bi,ji->bj\" %x, %w : f32[b, 5]
           %z = einsum \"bj,jk->bk\" %y, %u : f32[b, 6] return %z }"),
    Case("fold_weights", "?u is a weight", Adds("an input would be multiplied by a weight in every call"),
        "(%x: f32[b, 7], weight %w: f32[5, 7], %u: f32[5, 6]) -> f32[b, 6] {
           %y = einsum \"bi,ji->bj\" %x, %w : f32[b, 5]
           %z = einsum \"bj,jk->bk\" %y, %u : f32[b, 6] return %z }"),
    Case("fold_weights", "?x is not a weight", Adds("what weights decide is computed when they are loaded, as it is"),
        "(weight %x: f32[b, 7], weight %w: f32[5, 7], weight %u: f32[5, 6]) -> f32[b, 6] {
           %y = einsum \"bi,ji->bj\" %x, %w : f32[b, 5]
           %z = einsum \"bj,jk->bk\" %y, %u : f32[b, 6] return %z }"),
    Case("product_of_transposed", "the order of the sum stays", Wrong,
        "(%x: f64[5, 7], %y: f64[5, 7, 3]) -> f64[3] {
           %xt = einsum \"ab->ba\" %x : f64[7, 5]
           %z = einsum \"ba,abc->c\" %xt, %y : f64[3] return %z }"),
    Case("reshape_of_product", "axes are only split", Wrong,
        "(%x: f32[6, 5], %y: f32[4, 5]) -> f32[4, 6] {
           %z = einsum \"im,jm->ij\" %x, %y : f32[6, 4]
           %r = reshape %z {shape = [4, 6]} : f32[4, 6] return %r }"),
    Case("product_of_reshaped", "axes are only merged", Wrong,
        "(%x: f32[2, 3, 12], %y: f32[6, 5]) -> f32[5, 3, 4] {
           %r = reshape %x {shape = [6, 3, 4]} : f32[6, 3, 4]
           %z = einsum \"abc,ak->kbc\" %r, %y : f32[5, 3, 4] return %z }"),
    Case("product_of_reshaped", "more than one of the merged axes is longer than 1",
        Adds("an axis of one element more is no other product"),
        "(%x: f32[1, 5, 7], %y: f32[5, 6]) -> f32[7, 6] {
           %r = reshape %x {shape = [5, 7]} : f32[5, 7]
           %z = einsum \"am,ak->mk\" %r, %y : f32[7, 6] return %z }"),
    Case("product_of_concat", "the axis that they follow each other along is summed", Wrong,
        "(%x: f32[3, 7], %y: f32[4, 7], %w: f32[5, 7]) -> f32[7, 5] {
           %c = concat %x, %y {axis = 0} : f32[7, 7]
           %z = einsum \"am,km->ak\" %c, %w : f32[7, 5] return %z }"),
    Case("product_of_repeated", "the tensor is full of ones", Wrong,
        "(%x: f32[5], %y: f32[3, 7]) -> f32[5, 7] {
           %twos = full {value = 2.0, shape = [3], dtype = f32} : f32[3]
           %r = einsum \"a,b->ab\" %x, %twos : f32[5, 3]
           %z = einsum \"ab,bk->ak\" %r, %y : f32[5, 7] return %z }"),
    Case("product_of_repeated", "no axis of the ones is summed", Wrong,
        "(%x: f32[5], %y: f32[3, 7]) -> f32[5, 7] {
           %ones = full {value = 1.0, shape = [3, 4], dtype = f32} : f32[3, 4]
           %r = einsum \"a,bc->ab\" %x, %ones : f32[5, 3]
           %z = einsum \"ab,bk->ak\" %r, %y : f32[5, 7] return %z }"),
    Case("product_of_repeated", "another factor has the repeated axes, too", Wrong,
        "(%x: f32[5], %y: f32[5, 7]) -> f32[7] {
           %ones = full {value = 1.0, shape = [3], dtype = f32} : f32[3]
           %r = einsum \"a,b->ab\" %x, %ones : f32[5, 3]
           %z = einsum \"ab,ak->k\" %r, %y : f32[7] return %z }"),
    Case("product_of_stretched", "the tensor is full of zeros", Wrong,
        "(%x: f32[1, 5], %y: f32[3, 7]) -> f32[5, 7] {
           %ones = full {value = 1.0, shape = [3, 5], dtype = f32} : f32[3, 5]
           %r = add %x, %ones : f32[3, 5]
           %z = einsum \"ab,ak->bk\" %r, %y : f32[5, 7] return %z }"),
    Case("product_of_stretched", "another factor has the repeated axes, too", Wrong,
        "(%x: f32[1, 5], %y: f32[5, 7]) -> f32[7] {
           %zeros = full {value = 0.0, shape = [3, 5], dtype = f32} : f32[3, 5]
           %r = add %x, %zeros : f32[3, 5]
           %z = einsum \"ab,bk->k\" %r, %y : f32[7] return %z }"),
    Case("slice_of_slice", "both are along one axis", Wrong,
        "(%x: f32[7, 9]) -> f32[4, 5] {
           %y = slice %x {axis = 0, range = 1..5} : f32[4, 9]
           %z = slice %y {axis = 1, range = 2..7} : f32[4, 5] return %z }"),
    Case("slice_of_all", "the part is all of the axis", Wrong,
        "(%x: f32[7, 9]) -> f32[5, 9] { %z = slice %x {axis = 0, range = 0..5} : f32[5, 9] return %z }"),
    Case("slice_of_concat", "the part is within one of the tensors", Wrong,
        "(%x: f32[3, 5], %y: f32[4, 5]) -> f32[4, 5] {
           %c = concat %x, %y {axis = 0} : f32[7, 5]
           %z = slice %c {axis = 0, range = 1..5} : f32[4, 5] return %z }"),
    Case("slice_of_concat", "the part begins and ends where tensors do", Wrong,
        "(%x: f32[3, 5], %y: f32[4, 5], %w: f32[2, 5]) -> f32[8, 5] {
           %c = concat %x, %y, %w {axis = 0} : f32[9, 5]
           %z = slice %c {axis = 0, range = 1..9} : f32[8, 5] return %z }"),
    Case("slice_of_reshape", "the reshape leaves the axis alone", Wrong,
        "(%x: f32[3, 4, 5]) -> f32[2, 5] {
           %r = reshape %x {shape = [12, 5]} : f32[12, 5]
           %z = slice %r {axis = 0, range = 1..3} : f32[2, 5] return %z }"),
    Case("reshape_to_same", "the extents are what they were", Wrong,
        "(%x: f32[3, 4]) -> f32[4, 3] { %z = reshape %x {shape = [4, 3]} : f32[4, 3] return %z }"),
    Case("reshape_of_concat", "the reshape leaves the axis alone", Wrong,
        "(%x: f32[2, 6], %y: f32[4, 6]) -> f32[4, 9] {
           %c = concat %x, %y {axis = 0} : f32[6, 6]
           %z = reshape %c {shape = [4, 9]} : f32[4, 9] return %z }"),
    Case("concat_of_slices", "the slices are along the axis that they are put together along", Wrong,
        "(%x: f32[4, 6]) -> f32[8, 3] {
           %y = slice %x {axis = 1, range = 0..3} : f32[4, 3]
           %z = slice %x {axis = 1, range = 3..6} : f32[4, 3]
           %c = concat %y, %z {axis = 0} : f32[8, 3] return %c }"),
    Case("concat_of_slices", "the slices are of one tensor", Wrong,
        "(%x: f32[6], %u: f32[6]) -> f32[5] {
           %y = slice %x {axis = 0, range = 0..2} : f32[2]
           %z = slice %u {axis = 0, range = 2..5} : f32[3]
           %c = concat %y, %z {axis = 0} : f32[5] return %c }"),
    Case("concat_of_slices", "each begins where the one before it ends", Wrong,
        "(%x: f32[6]) -> f32[4] {
           %y = slice %x {axis = 0, range = 0..2} : f32[2]
           %z = slice %x {axis = 0, range = 3..5} : f32[2]
           %c = concat %y, %z {axis = 0} : f32[4] return %c }"),
    Case("scale_of_scale", "the new factor is a number", Wrong,
        "(%x: f64[5]) -> f64[5] {
           %tiny = full {value = 1e-300, shape = [5], dtype = f64} : f64[5]
           %t = mul %x, %tiny : f64[5]
           %y = scale %t {by = 1e200} : f64[5]
           %z = scale %y {by = 1e200} : f64[5] return %z }"),
    Case("scale_by_one", "the factor is 1", Wrong,
        "(%x: f32[5]) -> f32[5] { %y = scale %x {by = 2.0} : f32[5] return %y }"),
    Case("product_with_number", "the number stretches nothing", Wrong,
        "(%x: f32[1, 5]) -> f32[4, 5] {
           %three = full {value = 3.0, shape = [4, 5], dtype = f32} : f32[4, 5]
           %y = mul %x, %three : f32[4, 5] return %y }"),
    Case("quotient_by_power_of_two", "the number stretches nothing", Wrong,
        "(%x: f32[1, 5]) -> f32[4, 5] {
           %four = full {value = 4.0, shape = [4, 5], dtype = f32} : f32[4, 5]
           %y = div %x, %four : f32[4, 5] return %y }"),
    Case("quotient_by_power_of_two", "the number is a power of two", Wrong,
        "(%x: f64[13]) -> f64[13] {
           %three = full {value = 3.0, shape = [], dtype = f64} : f64[]
           %y = div %x, %three : f64[13] return %y }"),
    Case("quotient_by_number", "the number stretches nothing", Wrong,
        "(%x: f32[1, 5]) -> f32[4, 5] {
           %three = full {value = 3.0, shape = [4, 5], dtype = f32} : f32[4, 5]
           %y = div %x, %three : f32[4, 5] return %y }"),
    Case("quotient_by_number", "the new factor is a number", Wrong,
        "(%x: f64[5]) -> f64[5] {
           %tiny = full {value = 1e-300, shape = [5], dtype = f64} : f64[5]
           %less = full {value = 1e-310, shape = [], dtype = f64} : f64[]
           %t = mul %x, %tiny : f64[5]
           %y = div %t, %less : f64[5] return %y }"),
    Case("product_of_scaled", "the new factor is a number", Wrong,
        "(%x: f64[5, 3], %u: f64[5, 7]) -> f64[3, 7] {
           %tiny = full {value = 1e-300, shape = [5, 3], dtype = f64} : f64[5, 3]
           %t = mul %x, %tiny : f64[5, 3]
           %y = scale %t {by = 1e200} : f64[5, 3]
           %v = scale %u {by = 1e200} : f64[5, 7]
           %z = einsum \"ab,ac->bc\" %y, %v : f64[3, 7] return %z }"),
    Case("sum_of_scaled", "all have the same factor", Wrong,
        "(%x: f32[5], %y: f32[5]) -> f32[5] {
           %u = scale %x {by = 2.0} : f32[5]
           %v = scale %y {by = 3.0} : f32[5]
           %z = add %u, %v : f32[5] return %z }"),
    Case("sum_of_scaled", "the new factor is a number", Wrong,
        "(%x: f64[5], %u: f64[5]) -> f64[5] {
           %tiny = full {value = 1e-300, shape = [5], dtype = f64} : f64[5]
           %t = mul %x, %tiny : f64[5]
           %y = scale %t {by = 1e200} : f64[5]
           %y2 = scale %y {by = 1e200} : f64[5]
           %s = mul %u, %tiny : f64[5]
           %v = scale %s {by = 1e200} : f64[5]
           %v2 = scale %v {by = 1e200} : f64[5]
           %z = add %y2, %v2 : f64[5] return %z }"),
    Case("concat_of_scaled", "all have the same factor", Wrong,
        "(%x: f32[5], %y: f32[3]) -> f32[8] {
           %u = scale %x {by = 2.0} : f32[5]
           %v = scale %y {by = 3.0} : f32[3]
           %z = concat %u, %v {axis = 0} : f32[8] return %z }"),
    Case("rope_of_scaled", "the new factor is a number", Wrong,
        "(%x: f64[b, s, 6], %table: f32[b, s, 2, 6]) -> f64[b, s, 6] {
           %tiny = full {value = 1e-300, shape = [6], dtype = f64} : f64[6]
           %t = mul %x, %tiny : f64[b, s, 6]
           %y = scale %t {by = 1e200} : f64[b, s, 6]
           %z = scale %y {by = 1e200} : f64[b, s, 6]
           %r = rope %z, %table {pairs = halves} : f64[b, s, 6] return %r }"),
    Case("fuse_projections", "what is joined or folded are weights", Adds("inputs would be put together in every call"),
        "(%x: f32[b, 7], %w: f32[5, 7], %u: f32[3, 7]) -> f32[b, 5], f32[b, 3] {
           %y = einsum \"bm,nm->bn\" %x, %w : f32[b, 5]
           %z = einsum \"bm,nm->bn\" %x, %u : f32[b, 3] return %y, %z }"),
    Case("fuse_projections", "no weight is a part of another, or put together of others", Endless,
        "(%x: f32[b, 7], weight %w: f32[5, 7], weight %u: f32[3, 7]) -> f32[b, 5], f32[b, 3] {
           %y = einsum \"bm,nm->bn\" %x, %w : f32[b, 5]
           %z = einsum \"bm,nm->bn\" %x, %u : f32[b, 3] return %y, %z }"),
    Case("fuse_projections", "columns come first in the weight, and last in the result", Wrong,
        "(%x: f32[b, 7], weight %w: f32[7, 5], weight %u: f32[7, 5]) -> f32[b, 5], f32[b, 5] {
           %y = einsum \"bm,mn->bn\" %x, %w : f32[b, 5]
           %z = einsum \"bm,mn->bn\" %x, %u : f32[b, 5] return %y, %z }"),
    Case("fuse_projections", "the weights differ in their columns alone", Wrong,
        "(%x: f32[b, 4, 7], weight %w: f32[5, 4, 7], weight %u: f32[3, 7]) -> f32[b, 5], f32[b, 4, 3] {
           %y = einsum \"blm,nlm->bn\" %x, %w : f32[b, 5]
           %z = einsum \"blm,nm->bln\" %x, %u : f32[b, 4, 3] return %y, %z }"),
    Case("fuse_projections", "what is projected does not come from a cache",
        Adds("attention reads its keys and values apart"),
        "(%x: f32[b, s, 7], %start: i32[b], state %c: f32[b, t, 7], weight %w: f32[5, 7], weight %u: f32[3, 7])
           -> f32[b, t, 5], f32[b, t, 3], f32[b, t, 7] {
           %all = cache_write %c, %x, %start : f32[b, t, 7]
           %y = einsum \"btm,nm->btn\" %all, %w : f32[b, t, 5]
           %z = einsum \"btm,nm->btn\" %all, %u : f32[b, t, 3] return %y, %z, %all }"),
    Case("fold_gain", "what is joined or folded are weights", Adds("the weight would be multiplied in every call"),
        "(%x: f32[b, 7], %g: f32[7], weight %w: f32[5, 7]) -> f32[b, 5] {
           %n = rms_norm %x, %g {eps = 1e-6} : f32[b, 7]
           %y = einsum \"bm,nm->bn\" %n, %w : f32[b, 5] return %y }"),
    Case("fold_gain", "the gain is not 1 already", Endless,
        "(%x: f32[b, 7], weight %g: f32[7], weight %w: f32[5, 7]) -> f32[b, 5] {
           %n = rms_norm %x, %g {eps = 1e-6} : f32[b, 7]
           %y = einsum \"bm,nm->bn\" %n, %w : f32[b, 5] return %y }"),
    Case("fold_gain", "the weight has the axis that is normed", Wrong,
        "(%x: f32[b, 7], weight %g: f32[7], weight %w: f32[5]) -> f32[b, 5] {
           %n = rms_norm %x, %g {eps = 1e-6} : f32[b, 7]
           %y = einsum \"bm,n->bn\" %n, %w : f32[b, 5] return %y }"),
];

impl Case {
    fn module(&self) -> Module {
        let (name, wide) = match self.3 {
            "keys" => ("k", "n"),
            "values" => ("u", "v"),
            text => return parse(&format!("dim b dim s dim t fn @f{text}")),
        };
        // Keys or values are a result, too, in a way.
        let more = format!("%e = exp %{name} : f32[b, t, h, {wide}] return %o, %e");
        let results = format!("-> f32[b, s, h, v], f32[b, t, h, {wide}] {{");
        parse(&ATTENTION.replace("-> f32[b, s, h, v] {", &results).replace("return %o", &more))
    }

    /// What a rule does here: evaluated in `f64`, and the bits of exact rules.
    fn checked(&self, rule: &Rule) -> Result<Checked, String> {
        let module = self.module();
        let (func, _) = last(&module);
        let (sizes, args) = arguments(&module, &[("b", 2), ("s", 3), ("t", 8)], &[5, 1], 7);
        let with = |rounded| check(&module, func, std::slice::from_ref(rule), &sizes, &args, rounded);
        let mut checked = with(None).map_err(|diag| diag.message)?;
        if rule.exactness == Exactness::Exact {
            checked.wrong.extend(with(Some(DType::F64)).map_err(|diag| diag.message)?.wrong);
        }
        Ok(checked)
    }

    /// Whether the rule comes to an end here by itself.
    fn ends(&self, rule: &Rule) -> bool {
        let module = self.module();
        let (_, f) = last(&module);
        let cost = Cost::new(&module, f, &CostOptions::default());
        let done = rewrite(f, std::slice::from_ref(rule), &cost, Choose::Cheapest);
        done.is_ok_and(|(_, done)| done.saturated)
    }

    /// Whether what the case says is so: `Err` with what happens otherwise.
    fn shows(&self, rule: &Rule, without: &Rule) -> Result<(), String> {
        let sound = self.checked(rule)?;
        let name = rule.name;
        let shown = sound.wrong.is_empty()
            && match self.2 {
                Wrong => match self.checked(without) {
                    Ok(checked) => !checked.wrong.is_empty(),
                    Err(message) => message.starts_with(&format!("the rule `{name}` ")),
                },
                Adds(_) => {
                    let checked = self.checked(without)?;
                    sound.fired.is_empty() && checked.wrong.is_empty() && checked.fired.contains(name)
                }
                // Extents grow until they are no numbers, or terms until there are too many.
                Endless => self.ends(rule) && !self.ends(without),
            };
        let why = if let Adds(why) = self.2 { why } else { "" };
        if shown { Ok(()) } else { Err(format!("{why}: {sound:?}, without {:?}", self.checked(without))) }
    }
}

#[test]
fn every_guard_is_needed() {
    let rules = all().unwrap();
    let named = |rule: &Rule| rule.guards().into_iter().map(|guard| (rule.name, guard)).collect::<Vec<_>>();
    let mut open: BTreeSet<(&str, String)> = rules.iter().flat_map(named).collect();
    let mut failures = Vec::new();
    for case in CASES {
        let Case(name, guard, need, _) = case;
        assert!(open.remove(&(name, guard.to_string())), "{name} has no guard, or a second case: {guard}");
        let rule = rules.iter().find(|rule| rule.name == *name).unwrap();
        let without = rule.without(guard).unwrap();
        if let Err(message) = case.shows(rule, &without) {
            failures.push(format!("{name}, {guard}: {need:?}: {message}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(open.is_empty(), "no case for {open:#?}");
}
