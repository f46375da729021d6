//! The reference semantics: every op on plain `f64` arrays, slow and obvious.

use crate::dim::{Dim, Sym};
use crate::graph::{Def, Func, Module, Value};
use crate::ops::Op;
use std::collections::HashMap;

/// A tensor of `f64`, in row-major order. Integers are held exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// The elements, last axis fastest.
    pub data: Vec<f64>,
}

impl Array {
    /// From its elements in row-major order.
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "as many elements as the shape {shape:?} says"
        );
        Self { shape: shape.to_vec(), data }
    }

    /// The array whose item at each index is `item(index)`.
    pub fn from_fn(shape: &[usize], mut item: impl FnMut(&[usize]) -> f64) -> Self {
        let mut index = vec![0; shape.len()];
        let data = (0..shape.iter().product())
            .map(|mut i| {
                for (axis, n) in shape.iter().enumerate().rev() {
                    index[axis] = i % n;
                    i /= n;
                }
                item(&index)
            })
            .collect();
        Self { shape: shape.to_vec(), data }
    }

    /// The element at `index`.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[index.iter().zip(&self.shape).fold(0, |i, (x, n)| i * n + x)]
    }

    /// The array of `f` of each element.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The rows along the last axis; an array of rank 0 is one row of one.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks(self.shape.last().copied().unwrap_or(1).max(1))
    }
}

/// The values of extents in one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sizes(pub HashMap<Sym, i64>);

impl Sizes {
    /// The value of `dim`; `None` if a symbol has none.
    pub fn get(&self, dim: &Dim) -> Option<i64> {
        dim.eval(&|sym| self.0.get(sym).copied())
    }

    /// The value of `dim`, whose symbols all have one after [`eval`] has checked the arguments.
    pub fn of(&self, dim: &Dim) -> usize {
        self.get(dim)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or_else(|| panic!("the extent {dim} has no value"))
    }
}

/// Why a function could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// Too few or too many arguments.
    #[error("@{name} takes {want} arguments, not {have}")]
    Count {
        /// The function.
        name: String,
        /// Its number of parameters.
        want: usize,
        /// The number of arguments given.
        have: usize,
    },
    /// An argument whose shape does not fit its parameter or another argument.
    #[error("`{param}` is {ty}, but the argument has the shape {shape:?}{why}")]
    Shape {
        /// The parameter's name.
        param: String,
        /// Its type.
        ty: String,
        /// The argument's shape.
        shape: Vec<usize>,
        /// More about it, or nothing.
        why: String,
    },
    /// An extent that no argument's shape determines.
    #[error("the extent {0} is in no argument's shape: give it a value with `dim {0} = …`")]
    Unbound(String),
}

/// Finds the value of every extent from the arguments' shapes, and checks that all fit.
pub fn bind_sizes(
    module: &Module,
    func: Func,
    shapes: &[&[usize]],
    given: &Sizes,
) -> Result<Sizes, EvalError> {
    let f = &module.funcs[func];
    let params: Vec<Value> = f.params().map(|(v, _)| v).collect();
    if params.len() != shapes.len() {
        return Err(EvalError::Count { name: f.name.clone(), want: params.len(), have: shapes.len() });
    }
    let mut sizes = given.clone();
    sizes.0.extend(module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))));
    let types: Vec<_> = params.iter().filter_map(|&p| f.tensor(p)).collect();
    types.iter().zip(shapes).for_each(|(ty, shape)| ty.bind(shape, &mut sizes.0));
    for ((&param, ty), shape) in params.iter().zip(&types).zip(shapes) {
        let mut why = String::new();
        let fits = ty.rank() == shape.len()
            && ty.shape.iter().zip(*shape).all(|(dim, &n)| {
                let want = sizes.get(dim);
                if want != Some(n as i64) {
                    why = want.map_or(String::new(), |w| format!(" ({dim} is {w})"));
                }
                want == Some(n as i64)
            });
        if !fits {
            let (param, ty) = (f.values[param].name.clone(), ty.to_string());
            return Err(EvalError::Shape { param, ty, shape: shape.to_vec(), why });
        }
    }
    let missing = module.dims.iter().find(|(sym, _)| !sizes.0.contains_key(sym) && uses(module, func, sym));
    match missing {
        Some((sym, _)) => Err(EvalError::Unbound(sym.to_string())),
        None => Ok(sizes),
    }
}

/// Whether a type or an attribute of `func` mentions `sym`.
fn uses(module: &Module, func: Func, sym: &Sym) -> bool {
    module.funcs[func].values.iter().any(|(_, data)| {
        let in_type = data.ty.parts().iter().flat_map(|ty| &ty.shape).any(|dim| dim.syms().contains(sym));
        in_type || matches!(data.def, Def::Call(callee, _) if uses(module, callee, sym))
    })
}

/// Runs `func` of a verified `module` on `args`, one array a parameter, and returns its results.
pub fn eval(module: &Module, func: Func, args: &[Array]) -> Result<Vec<Array>, EvalError> {
    let shapes: Vec<&[usize]> = args.iter().map(|a| a.shape.as_slice()).collect();
    let sizes = bind_sizes(module, func, &shapes, &Sizes::default())?;
    let values = eval_values(module, func, &sizes, args);
    Ok(module.funcs[func].results.iter().map(|v| values[v][0].clone()).collect())
}

/// Runs `func` with every extent known, and returns every value (the parts of tuples in order).
pub fn eval_values(module: &Module, func: Func, sizes: &Sizes, args: &[Array]) -> HashMap<Value, Vec<Array>> {
    let f = &module.funcs[func];
    let mut values: HashMap<Value, Vec<Array>> = HashMap::new();
    let mut given = args.iter();
    for (value, data) in f.values.iter() {
        let first = |v: &Value| &values[v][0];
        let result = match &data.def {
            Def::Param(_) => vec![given.next().expect("arguments were counted").clone()],
            Def::Op(Op::Get(get), args) => vec![values[&args[0]][get.index as usize].clone()],
            Def::Op(op, args) => op.eval(sizes, &args.iter().map(first).collect::<Vec<_>>()),
            Def::Call(callee, args) => {
                let args: Vec<Array> = args.iter().map(|v| first(v).clone()).collect();
                let inner = eval_values(module, *callee, sizes, &args);
                module.funcs[*callee].results.iter().map(|v| inner[v][0].clone()).collect()
            }
        };
        values.insert(value, result);
    }
    values
}
