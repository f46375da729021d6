//! What the examples share: numbers for weights and inputs, and the evaluator's answer to compare with.
//!
//! The examples themselves are in `src/bin`; run one with `cargo run -p eva-examples --bin own_block`.

use eva::prelude::Module;
use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::ParamKind;
use eva_runtime::tensor::numbers;
use eva_runtime::{Tensor, Weights};
use std::sync::Arc;

/// Whatever went wrong: an example just says so.
pub type Failure = Box<dyn std::error::Error>;

/// Numbers in -1 to 1 that look random and are the same on every machine.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn number(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    }

    /// A tensor of them.
    pub fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        let numbers: Vec<f32> = (0..n).map(|_| self.number() as f32).collect();
        Tensor::from_f32(shape, &numbers)
    }

    /// A tensor for each weight that a function of a module takes. Programs that run a trained model read these
    /// from a checkpoint.
    pub fn weights(&mut self, module: &Module, function: &str) -> Weights {
        let sizes = sizes(module, &[]);
        let f = &module.funcs[module.func(function).expect("the module has this function")];
        let mut weights = Weights::new();
        for (value, _) in f.params().filter(|(_, kind)| *kind == ParamKind::Weight) {
            let ty = f.tensor(value).expect("parameters are tensors");
            let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
            // Sums over the last axis stay near 1, as with trained weights.
            let scale = (*shape.last().unwrap_or(&1) as f64).sqrt().recip();
            let data: Vec<f64> = (0..shape.iter().product()).map(|_| self.number() * scale).collect();
            let tensor = Tensor::from_f64(ty.dtype, &shape, &data);
            weights.insert(f.values[value].name.clone(), Arc::new(tensor.into()));
        }
        weights
    }
}

fn sizes(module: &Module, given: &[(&str, usize)]) -> Sizes {
    let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
    let given = given.iter().map(|&(name, n)| (Sym::from(name), n as i64));
    Sizes(fixed.chain(given).collect())
}

/// The results of a function by the evaluator, which works in `f64` and defines what a module means; states start
/// empty. `given` are the extents that the program leaves open.
pub fn evaluate(
    module: &Module,
    function: &str,
    inputs: &[(&str, &Tensor)],
    weights: &Weights,
    given: &[(&str, usize)],
) -> Vec<Array> {
    let sizes = sizes(module, given);
    let func = module.func(function).expect("the module has this function");
    let f = &module.funcs[func];
    let args = f.params().map(|(value, kind)| {
        let name = f.values[value].name.as_str();
        match kind {
            ParamKind::Input => {
                let (_, x) = inputs.iter().find(|(input, _)| *input == name).expect("every input is given");
                Array::new(x.shape(), x.to_f64())
            }
            ParamKind::Weight => {
                let w = &weights[name];
                Array::new(&w.shape, numbers(w.dtype, w.host().expect("the weights are on the CPU")))
            }
            ParamKind::State => {
                let shape = &f.tensor(value).expect("parameters are tensors").shape;
                let shape: Vec<usize> = shape.iter().map(|dim| sizes.of(dim)).collect();
                Array::from_fn(&shape, |_| 0.0)
            }
        }
    });
    let values = eval_values(module, func, &sizes, &args.collect::<Vec<_>>());
    f.results.iter().map(|result| values[result][0].clone()).collect()
}

/// The largest difference between two lists of numbers.
pub fn difference(have: &[f64], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len(), "as many numbers");
    have.iter()
        .zip(want)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}
