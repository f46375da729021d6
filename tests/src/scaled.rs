//! 8-bit floats as the plan has them: codes and scales.

use eva_ir::codes;
use eva_ir::eval::{Array, Sizes};
use eva_ir::graph::Function;
use eva_ir::ops::quantize::{code, scale};
use eva_ir::scales::Block;
use eva_ir::types::TensorType;
use std::collections::BTreeMap;

/// The least magnitude that scales of test data are made of.
const LEAST: f32 = 1e-6;

/// The index of the block that an element is in.
fn block_of(ty: &TensorType, index: &[usize]) -> Vec<usize> {
    let of = |(axis, &i): (usize, &usize)| match ty.block(axis) {
        Some(Block::Of(n)) => i / n as usize,
        Some(Block::Whole) => 0,
        Some(Block::Each) | None => i,
    };
    index.iter().enumerate().map(of).collect()
}

/// The scale of each block, by its index, given the elements.
fn scales(ty: &TensorType, array: &Array) -> BTreeMap<Vec<usize>, f32> {
    let mut most = BTreeMap::new();
    let _ = Array::from_fn(&array.shape, |index| {
        let most = most.entry(block_of(ty, index)).or_insert(0f32);
        *most = most.max(array.at(index).abs() as f32);
        0.0
    });
    let encoding = ty.scales.as_ref().expect("the caller has looked").encoding;
    most.into_iter().map(|(block, most)| (block, scale(most, ty.dtype, encoding, LEAST))).collect()
}

/// The numbers that a tensor of this type can hold nearest to these. Quantizing them again gives the same.
pub fn quantized(ty: &TensorType, array: &Array) -> Array {
    let scales = scales(ty, array);
    Array::from_fn(&array.shape, |index| {
        let scale = scales[&block_of(ty, index)];
        codes::decode(ty.dtype, code(array.at(index) as f32, scale, ty.dtype)) * f64::from(scale)
    })
}

/// The arguments of a plan: codes in place of 8-bit floats, and behind all the scales of each.
pub fn apart(f: &Function, sizes: &Sizes, args: &[Array]) -> Vec<Array> {
    let mut all = args.to_vec();
    for (i, (param, _)) in f.params().enumerate() {
        let ty = f.tensor(param).expect("parameters are tensors");
        if ty.scales.is_none() {
            continue;
        }
        let scales = scales(ty, &args[i]);
        let shape = ty.scales_shape(&|dim| sizes.get(dim)).expect("it has scales");
        let shape: Vec<usize> = shape.iter().map(|dim| sizes.of(dim)).collect();
        all[i] = Array::from_fn(&args[i].shape, |index| {
            let x = args[i].at(index) / f64::from(scales[&block_of(ty, index)]);
            codes::decode(ty.dtype, codes::encode(ty.dtype, x))
        });
        all.push(Array::from_fn(&shape, |block| f64::from(scales[block])));
    }
    all
}

/// The results of a plan as the function's: codes times scales.
pub fn together(f: &Function, _: &Sizes, mut results: Vec<Array>) -> Vec<Array> {
    let mut scales = results.split_off(f.results.len()).into_iter();
    for (result, &value) in results.iter_mut().zip(&f.results) {
        let ty = f.tensor(value).expect("results are tensors");
        if ty.scales.is_some() {
            let scales = scales.next().expect("each result of 8 bits has scales");
            let codes = result.clone();
            *result = Array::from_fn(&codes.shape, |index| codes.at(index) * scales.at(&block_of(ty, index)));
        }
    }
    results
}
