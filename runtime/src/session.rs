//! [`Session`]: one function of an executable with its weights, ready to be called.

use crate::error::Error;
use crate::exec::{Bound, Executable, state_elements};
use crate::tensor::{Bytes, Tensor};
use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::{Func, ParamKind};
use eva_ir::types::{DType, TensorType};
use eva_passes::plan::{CAPACITY, FuncPlan};
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

/// A weight in memory: a tensor of its own, or a part of a mapped file.
pub struct Weight {
    /// The elements' type.
    pub dtype: DType,
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// The elements, little-endian, in row-major order.
    pub bytes: Arc<dyn Deref<Target = [u8]> + Send + Sync>,
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        struct Owned(Tensor);
        impl Deref for Owned {
            type Target = [u8];
            fn deref(&self) -> &[u8] {
                self.0.bytes()
            }
        }
        Self { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), bytes: Arc::new(Owned(tensor)) }
    }
}

/// Tensors by the names of a function's weight parameters.
pub type Weights = HashMap<String, Arc<Weight>>;

/// A function with its weights.
pub struct Session {
    exe: Arc<Executable>,
    func: Func,
    /// One for each parameter; `None` for those given on every call.
    weights: Vec<Option<Arc<Weight>>>,
    /// The extents that the module or a weight fixes.
    fixed: HashMap<Sym, i64>,
    arena: Bytes,
    bound: Option<(Vec<(Sym, i64)>, Bound)>,
}

/// Tensors kept between calls, by the names of a function's state parameters.
pub struct States {
    /// How many rows each sequence has room for.
    pub capacity: usize,
    /// How many sequences there are.
    pub batch: usize,
    tensors: HashMap<String, Tensor>,
}

impl States {
    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.bytes().len()).sum()
    }

    /// Fills the first rows of a state, `[batch, rows, …]`.
    pub fn write(&mut self, name: &str, rows: &Tensor) -> Result<(), Error> {
        let missing = || Error::Unknown { name: name.into(), function: "the states".into() };
        let state = self.tensors.get_mut(name).ok_or_else(missing)?;
        let (have, want) = (rows.shape(), state.shape().to_vec());
        let fits = rows.dtype() == state.dtype()
            && have.len() == want.len()
            && have[0] == want[0]
            && have[1] <= want[1]
            && have[2..] == want[2..];
        if !fits {
            let have = format!("{}{have:?}", rows.dtype());
            return Err(Error::Shape { name: name.into(), want: format!("{}{want:?}", state.dtype()), have });
        }
        let row = want[2..].iter().product::<usize>() * state.dtype().bytes() as usize;
        let (from, to) = (have[1] * row, want[1] * row);
        for batch in 0..want[0] {
            state.bytes_mut()[batch * to..][..from].copy_from_slice(&rows.bytes()[batch * from..][..from]);
        }
        Ok(())
    }

    /// The first `n` rows of a state, `[batch, n, …]`.
    pub fn read(&self, name: &str, n: usize) -> Option<Tensor> {
        let state = self.tensors.get(name)?;
        let mut shape = state.shape().to_vec();
        let row = shape[2..].iter().product::<usize>() * state.dtype().bytes() as usize;
        let from = std::mem::replace(&mut shape[1], n) * row;
        let mut rows = Tensor::zeros(state.dtype(), &shape);
        for batch in 0..shape[0] {
            rows.bytes_mut()[batch * n * row..][..n * row]
                .copy_from_slice(state.bytes().get(batch * from..)?.get(..n * row)?);
        }
        Some(rows)
    }

    /// One state: `[batch, capacity, …]`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}

impl Session {
    /// Checks that every weight is there and fits.
    pub fn new(exe: Arc<Executable>, name: &str, weights: &Weights) -> Result<Self, Error> {
        let func = exe.func(name)?;
        let f = exe.func_plan(func);
        let mut fixed = fixed(&exe);
        let mut found = Vec::new();
        for param in &f.params {
            if param.kind != ParamKind::Weight {
                found.push(None);
                continue;
            }
            let missing = || Error::Missing {
                name: param.name.clone(),
                function: f.name.clone(),
                ty: param.ty.to_string(),
            };
            let weight = weights.get(&param.name).ok_or_else(missing)?;
            param.ty.bind(&weight.shape, &mut fixed);
            check(&param.name, &param.ty, weight.dtype, &weight.shape, &fixed)?;
            if weight.bytes.len() != weight.shape.iter().product::<usize>() * weight.dtype.bytes() as usize {
                return Err(Error::Internal(format!("`{}` has the wrong number of bytes", param.name)));
            }
            found.push(Some(weight.clone()));
        }
        Ok(Self { exe, func, weights: found, fixed, arena: Bytes::zeroed(0), bound: None })
    }

    /// The executable.
    pub fn executable(&self) -> &Arc<Executable> {
        &self.exe
    }

    /// How the function runs.
    pub fn plan(&self) -> &FuncPlan {
        self.exe.func_plan(self.func)
    }

    /// Zeroed states for `batch` sequences with room for `capacity` tokens each.
    pub fn new_states(&self, batch: usize, capacity: usize) -> Result<States, Error> {
        let fixed = &self.fixed;
        let mut tensors = HashMap::new();
        for param in self.plan().params.iter().filter(|p| p.kind == ParamKind::State) {
            let mut shape = vec![batch, capacity];
            for dim in param.ty.shape.iter().skip(2) {
                let n = dim.eval(&|sym| fixed.get(sym).copied()).and_then(|n| usize::try_from(n).ok());
                shape.push(n.ok_or_else(|| Error::Internal(format!("`{}` has no fixed width", param.name)))?);
            }
            let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let bytes = elements.and_then(|n| n.checked_mul(param.ty.dtype.bytes() as usize));
            if bytes.is_none_or(|n| n > isize::MAX as usize / 2) {
                return Err(Error::TooLarge(format!("`{}` of {shape:?}", param.name)));
            }
            tensors.insert(param.name.clone(), Tensor::zeros(param.ty.dtype, &shape));
        }
        Ok(States { capacity, batch, tensors })
    }

    /// Bytes that one token takes in the states.
    pub fn state_bytes_per_token(&self) -> usize {
        let fixed = &self.fixed;
        let states = self.plan().params.iter().filter(|p| p.kind == ParamKind::State);
        let width = |ty: &TensorType| {
            let product = Dim::product(ty.shape.iter().skip(2)).eval(&|sym| fixed.get(sym).copied());
            product.unwrap_or(0) as usize * ty.dtype.bytes() as usize
        };
        states.map(|p| width(&p.ty)).sum()
    }

    /// Bytes of weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.iter().flatten().map(|w| w.bytes.len()).sum()
    }

    /// Bytes of arena that a call with these extents needs.
    pub fn arena_bytes(&self, sizes: &[(&str, usize)]) -> Result<usize, Error> {
        let mut sizes: HashMap<Sym, i64> = sizes.iter().map(|&(name, n)| (name.into(), n as i64)).collect();
        sizes.extend(self.fixed.clone());
        Ok(self.exe.bind(self.func, &sizes)?.arena)
    }

    /// Calls the function. Extents are found from the inputs' shapes and from `sizes`, which must give those that
    /// only states have (such as `t`, the tokens in the cache after this call). Returns the results that are not
    /// states, in order, with their names.
    pub fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        states: Option<&mut States>,
        sizes: &[(&str, usize)],
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let exe = self.exe.clone();
        let f = exe.func_plan(self.func);
        let mut env: HashMap<Sym, i64> = self.fixed.clone();
        env.extend(sizes.iter().map(|&(name, n)| (Sym::from(name), n as i64)));
        if let Some(states) = &states {
            env.insert(CAPACITY.into(), states.capacity as i64);
        }
        for &(name, tensor) in inputs {
            let param = f.params.iter().find(|p| p.name == name && p.kind == ParamKind::Input);
            let param =
                param.ok_or_else(|| Error::Unknown { name: name.into(), function: f.name.clone() })?;
            param.ty.bind(tensor.shape(), &mut env);
        }
        let mut params = Vec::with_capacity(f.params.len());
        for (param, weight) in f.params.iter().zip(&self.weights) {
            let missing = || Error::Missing {
                name: param.name.clone(),
                function: f.name.clone(),
                ty: param.ty.to_string(),
            };
            params.push(match param.kind {
                ParamKind::Weight => weight.as_ref().ok_or_else(missing)?.bytes.as_ptr().cast_mut(),
                ParamKind::Input => {
                    let given = inputs.iter().find(|(name, _)| *name == param.name);
                    let (_, tensor) = given.ok_or_else(missing)?;
                    check(&param.name, &param.ty, tensor.dtype(), tensor.shape(), &env)?;
                    tensor.as_ptr()
                }
                ParamKind::State => {
                    let states = states.as_ref().ok_or_else(missing)?;
                    let tensor = states.tensors.get(&param.name).ok_or_else(missing)?;
                    let value = |dim: &Dim| {
                        let unknown = || Error::Internal(format!("the extent `{dim}` has no value"));
                        dim.eval(&|sym| env.get(sym).copied()).ok_or_else(unknown)
                    };
                    let (batch, tokens) = (value(&param.ty.shape[0])?, value(&param.ty.shape[1])?);
                    if tokens as usize > states.capacity {
                        return Err(Error::Capacity { capacity: states.capacity, tokens: tokens as usize });
                    }
                    let elements = state_elements(&param.ty.shape, &value)?;
                    if batch as usize != states.batch
                        || elements as usize * tensor.dtype().bytes() as usize != tensor.bytes().len()
                    {
                        return Err(Error::Shape {
                            name: param.name.clone(),
                            want: param.ty.to_string(),
                            have: format!("a cache of {} sequences", states.batch),
                        });
                    }
                    tensor.as_ptr()
                }
            });
        }
        let bound = self.bound_for(&env)?;
        if self.arena.len() < bound {
            self.arena = Bytes::zeroed(0);
            self.arena = Bytes::zeroed(bound);
        }
        let mut results = Vec::new();
        let mut addresses = Vec::new();
        for result in &f.results {
            if result.state.is_some() {
                addresses.push(std::ptr::null_mut());
                continue;
            }
            let extent =
                |dim: &Dim| dim.eval(&|sym| env.get(sym).copied()).and_then(|n| usize::try_from(n).ok());
            let shape: Option<Vec<usize>> = result.ty.shape.iter().map(extent).collect();
            let unknown = || Error::Internal(format!("`{}` has no known shape", result.name));
            let tensor = Tensor::zeros(result.ty.dtype, &shape.ok_or_else(unknown)?);
            addresses.push(tensor.as_ptr());
            results.push((result.name.clone(), tensor));
        }
        let (_, bound) = self.bound.as_ref().expect("`bound_for` has made it");
        // SAFETY: every buffer was checked against its type above and in `bind`; inputs are only read, states are
        // borrowed mutably by this call, results and the arena are this session's own.
        unsafe { exe.run(bound, &params, &addresses, self.arena.as_ptr()) };
        Ok(results)
    }

    /// Makes sure that the launches fit these extents; the bytes of arena they need.
    fn bound_for(&mut self, env: &HashMap<Sym, i64>) -> Result<usize, Error> {
        let mut key: Vec<(Sym, i64)> = env.iter().map(|(sym, &n)| (sym.clone(), n)).collect();
        key.sort();
        if self.bound.as_ref().is_none_or(|(have, _)| *have != key) {
            self.bound = Some((key, self.exe.bind(self.func, env)?));
        }
        Ok(self.bound.as_ref().map_or(0, |(_, bound)| bound.arena))
    }
}

/// The extents whose values the module fixes.
fn fixed(exe: &Executable) -> HashMap<Sym, i64> {
    exe.plan().dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))).collect()
}

/// Checks a tensor against a parameter's type.
fn check(
    name: &str,
    ty: &TensorType,
    dtype: DType,
    shape: &[usize],
    env: &HashMap<Sym, i64>,
) -> Result<(), Error> {
    let value = |dim: &Dim| dim.eval(&|sym| env.get(sym).copied());
    let fits = ty.dtype == dtype
        && ty.rank() == shape.len()
        && ty.shape.iter().zip(shape).all(|(dim, &n)| value(dim) == Some(n as i64));
    if fits {
        return Ok(());
    }
    let extents = |dim: &Dim| value(dim).map_or(dim.to_string(), |n| n.to_string());
    let want: Vec<String> = ty.shape.iter().map(extents).collect();
    let have: Vec<String> = shape.iter().map(usize::to_string).collect();
    Err(Error::Shape {
        name: name.into(),
        want: format!("{}[{}]", ty.dtype, want.join(", ")),
        have: format!("{dtype}[{}]", have.join(", ")),
    })
}
