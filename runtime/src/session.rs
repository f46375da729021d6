//! [`Session`]: one function of an executable with its weights, ready to be called.

use crate::bind::{Addresses, Bound, bind, state_elements};
use crate::check::{bytes, check, fixed};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::Error;
use crate::exec::{Code, Executable};
use crate::prepare::load;
use crate::refresh::Companion;
use crate::shared::{Part, apart, memories};
use crate::states::States;
use crate::tensor::{Bytes, Tensor};
use crate::weights::{Weight, Weights};
use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::{Func, ParamKind};
#[cfg(feature = "cuda")]
use eva_ir::types::DType;
use eva_passes::plan::{CAPACITY, FuncPlan};
use std::collections::HashMap;
use std::sync::Arc;

mod room;

/// A function with its weights.
pub struct Session {
    exe: Arc<Executable>,
    func: Func,
    /// One for each parameter; `None` for those given on every call.
    pub(crate) weights: Vec<Option<Arc<Weight>>>,
    /// The extents that the module or a weight fixes.
    fixed: HashMap<Sym, i64>,
    /// The sizes of the last call, and what they decide.
    bound: Option<(Vec<(Sym, i64)>, Bound)>,
    place: Place,
    /// Bytes of weights on the device that are not this session's, for messages about memory.
    pub(crate) beside: usize,
    /// The results of the last call, until they are taken; none for states.
    results: Vec<Option<Outcome>>,
    /// Whether calls look for what is not a finite number.
    finite: bool,
    /// What computes again what was computed of weights ([`Session::refresh`]), once it was asked for.
    pub(crate) companion: Option<Companion>,
}

/// What a session has on its device.
enum Place {
    Cpu {
        arena: Bytes,
    },
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Calls>),
}

/// A result.
enum Outcome {
    Here(Tensor),
    /// On the GPU, as the session keeps it.
    #[cfg(feature = "cuda")]
    There(DType, Vec<usize>),
}

/// An argument of a call.
pub(crate) enum Arg<'a> {
    /// Memory of the device: a weight or a state.
    Kept(*mut u8),
    /// An input's bytes, in the host's memory.
    Input(&'a [u8]),
}

impl Session {
    /// Checks that every weight is there and fits. Those that are not on the executable's device are copied there.
    ///
    /// What the function has of weights alone is computed here, once for all sessions of the executable with these
    /// weights; of the weights that only this needs the session keeps none. See [`Executable::prepare`].
    pub fn new(exe: Arc<Executable>, name: &str, weights: &Weights) -> Result<Self, Error> {
        let func = exe.func(name)?;
        let f = exe.func_plan(func);
        let mut fixed = fixed(&exe);
        let found = load(&exe, f, weights, &mut fixed)?;
        let place = match &exe.code {
            Code::Cpu(_) => Place::Cpu { arena: Bytes::zeroed(0) },
            #[cfg(feature = "cuda")]
            Code::Cuda(_) => Place::Cuda(Box::new(cuda::Calls::new())),
        };
        let (bound, results) = (None, Vec::new());
        Ok(Self {
            exe,
            func,
            weights: found,
            fixed,
            bound,
            place,
            beside: 0,
            results,
            finite: false,
            companion: None,
        })
    }

    /// Whether calls look at what each kernel has written, and stop at the first NaN or infinity with an error that names the
    /// op ([`Error::NotFinite`]). They do not if not told; it takes time, on a GPU much of it.
    pub fn check_finite(&mut self, yes: bool) {
        self.finite = yes;
    }

    /// The executable.
    pub fn executable(&self) -> &Arc<Executable> {
        &self.exe
    }

    /// How the function runs.
    pub fn plan(&self) -> &FuncPlan {
        self.exe.func_plan(self.func)
    }

    /// Whether calls on a GPU become graphs, which start faster from the second call on. They do if not told otherwise.
    pub fn use_graphs(&mut self, yes: bool) {
        match &mut self.place {
            Place::Cpu { .. } => {
                let _ = yes;
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(calls) => calls.use_graphs = yes,
        }
    }

    /// Bytes of the weights that calls use, those included that were computed when the session was made.
    pub fn weight_bytes(&self) -> usize {
        bytes(&self.weights)
    }

    /// Bytes of arena that a call with these extents needs.
    pub fn arena_bytes(&self, sizes: &[(&str, usize)]) -> Result<usize, Error> {
        let mut sizes: HashMap<Sym, i64> = sizes.iter().map(|&(name, n)| (name.into(), n as i64)).collect();
        sizes.extend(self.fixed.clone());
        Ok(bind(self.exe.plan(), self.func, &sizes)?.arena)
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
        self.start(inputs, states, sizes)?;
        let exe = self.exe.clone();
        let results = exe.func_plan(self.func).results.iter().enumerate();
        let results = results.filter(|(_, result)| result.state.is_none());
        results.map(|(at, result)| Ok((result.name.clone(), self.take_at(at, &result.name)?))).collect()
    }

    /// Starts a call, as [`Session::run`] does, without waiting for it: on a GPU it is under way when this returns, and
    /// calls, of any session, follow each other. (On the CPU it is done.) What was not taken of the call before is
    /// gone.
    pub fn start(
        &mut self,
        inputs: &[(&str, &Tensor)],
        states: Option<&mut States>,
        sizes: &[(&str, usize)],
    ) -> Result<(), Error> {
        self.start_into(inputs, states, sizes, &[])
    }

    /// Starts a call, as [`Session::start`] does, whose results of these names are written to shared memory, where they are
    /// then instead of being taken. It must be no memory that the call reads, and each part another.
    pub fn start_into(
        &mut self,
        inputs: &[(&str, &Tensor)],
        states: Option<&mut States>,
        sizes: &[(&str, usize)],
        into: &[(&str, &Part)],
    ) -> Result<(), Error> {
        let exe = self.exe.clone();
        let f = exe.func_plan(self.func);
        let mut env: HashMap<Sym, i64> = self.fixed.clone();
        env.extend(sizes.iter().map(|&(name, n)| (Sym::from(name), n as i64)));
        if let Some(states) = &states {
            env.insert(CAPACITY.into(), states.capacity as i64);
            for param in f.params.iter().filter(|param| param.paged || param.whole) {
                if let Some(state) = states.tensors.get(&param.name) {
                    param.ty.bind(&state.shape, &mut env);
                }
            }
        }
        for &(name, tensor) in inputs {
            let param = f.params.iter().find(|p| p.name == name && p.kind == ParamKind::Input);
            let param =
                param.ok_or_else(|| Error::Unknown { name: name.into(), function: f.name.clone() })?;
            param.ty.bind(tensor.shape(), &mut env);
        }
        let args = self.arguments(f, inputs, states.as_deref(), &env)?;
        let mut given: HashMap<&str, &Part> = into.iter().copied().collect();
        let mut at: Vec<Option<*mut u8>> = Vec::with_capacity(f.results.len());
        let mut shapes = Vec::with_capacity(f.results.len());
        for result in &f.results {
            let extent =
                |dim: &Dim| dim.eval(&|sym| env.get(sym).copied()).and_then(|n| usize::try_from(n).ok());
            let shape: Option<Vec<usize>> = result.ty.shape.iter().map(extent).collect();
            let unknown = || Error::Internal(format!("`{}` has no known shape", result.name));
            let part = given.remove(result.name.as_str()).filter(|_| result.state.is_none());
            if let Some(part) = part {
                check(&result.name, &result.ty, part.dtype(), part.shape(), &env)?;
                if !part.memory().is_on(&exe) {
                    return Err(Error::Internal(format!("`{}` is to be on another device", result.name)));
                }
            }
            at.push(part.map(Part::address));
            shapes.push(match (result.state, part) {
                (None, None) => Some((result.ty.dtype, shape.ok_or_else(unknown)?)),
                _ => None,
            });
        }
        if let Some(name) = given.into_keys().min() {
            return Err(Error::NoResult { name: name.into(), function: f.name.clone() });
        }
        let weights = f.params.iter().zip(&self.weights);
        let weights = weights.filter_map(|(p, weight)| Some((p.name.as_str(), weight.as_ref()?.part()?)));
        let states_of = states.as_deref().map_or(Vec::new(), States::parts);
        let written: Vec<(&str, &Part)> = into.iter().copied().chain(states_of).collect();
        if !written.is_empty() {
            apart(&written, weights.clone())?;
        }
        let shared = memories(weights.chain(written).map(|(_, part)| part));
        // For as long as the call is being started, which on the CPU is until it is done.
        let _guards: Vec<_> = shared.iter().map(|memory| memory.lock()).collect();
        let mut key: Vec<(Sym, i64)> = env.iter().map(|(sym, &n)| (sym.clone(), n)).collect();
        key.sort();
        if self.bound.as_ref().is_none_or(|(have, _)| *have != key) {
            self.bound = Some((key, bind(exe.plan(), self.func, &env)?));
        }
        let (sizes, bound) = self.bound.as_ref().expect("it was made above, if it was not there");
        self.results.clear();
        match (&exe.code, &mut self.place) {
            (Code::Cpu(code), Place::Cpu { arena }) => {
                let _ = sizes;
                if arena.len() < bound.arena {
                    *arena = Bytes::zeroed(0);
                    *arena = Bytes::zeroed(bound.arena);
                }
                let results =
                    shapes.into_iter().map(|shape| shape.map(|(dtype, s)| Tensor::zeros(dtype, &s)));
                let results: Vec<Option<Tensor>> = results.collect();
                let address = |(result, at): (&Option<Tensor>, &Option<*mut u8>)| {
                    let own = result.as_ref().map(Tensor::as_ptr);
                    own.or(*at).unwrap_or(std::ptr::null_mut())
                };
                let addresses: Vec<*mut u8> = results.iter().zip(&at).map(address).collect();
                let params: Vec<*mut u8> = args.iter().map(Arg::address).collect();
                let at = Addresses { params: &params, results: &addresses, arena: arena.as_ptr() };
                // SAFETY: every buffer was checked against its type above and in `bind`; inputs are only read, states
                // are borrowed mutably by this call, results and the arena are this session's own.
                unsafe { exe.run(code, bound, at, self.finite) }?;
                self.results = results.into_iter().map(|result| result.map(Outcome::Here)).collect();
            }
            #[cfg(feature = "cuda")]
            (Code::Cuda(code), Place::Cuda(calls)) => {
                let size = |(dtype, shape): &(DType, Vec<usize>)| {
                    shape.iter().fold(dtype.bytes() as usize, |n, &extent| n.saturating_mul(extent))
                };
                let place = |(shape, at): (&Option<_>, Option<*mut u8>)| match shape {
                    Some(shape) => cuda::ResultAt::Own(size(shape)),
                    None => cuda::ResultAt::Given(at.unwrap_or(std::ptr::null_mut())),
                };
                let results = shapes.iter().zip(at).map(place).collect();
                let have = cuda::Need {
                    weights: bytes(&self.weights) + self.beside,
                    caches: states.as_ref().map_or(0, |states| states.bytes()),
                    arena: bound.arena,
                    ..cuda::Need::default()
                };
                let finite = self.finite;
                let call = cuda::Call { exe: &exe, code, bound, sizes, args, results, have, finite };
                // SAFETY: as above.
                unsafe { calls.start(&call) }?;
                self.results = shapes
                    .into_iter()
                    .map(|shape| shape.map(|(dtype, s)| Outcome::There(dtype, s)))
                    .collect();
            }
            #[cfg(feature = "cuda")]
            _ => return Err(Error::Internal("a session has a place on another device".into())),
        }
        Ok(())
    }

    /// The arguments of a call, checked.
    fn arguments<'a>(
        &self,
        f: &FuncPlan,
        inputs: &[(&str, &'a Tensor)],
        states: Option<&States>,
        env: &HashMap<Sym, i64>,
    ) -> Result<Vec<Arg<'a>>, Error> {
        let mut args = Vec::with_capacity(f.params.len());
        for (param, weight) in f.params.iter().zip(&self.weights) {
            let missing = || Error::Missing {
                name: param.name.clone(),
                function: f.name.clone(),
                ty: param.ty.to_string(),
            };
            args.push(match param.kind {
                ParamKind::Weight if !param.needed => Arg::Kept(std::ptr::null_mut()),
                ParamKind::Weight => Arg::Kept(weight.as_ref().ok_or_else(missing)?.address()),
                ParamKind::Input => {
                    let given = inputs.iter().find(|(name, _)| *name == param.name);
                    let (_, tensor) = given.ok_or_else(missing)?;
                    check(&param.name, &param.ty, tensor.dtype(), tensor.shape(), env)?;
                    Arg::Input(tensor.bytes())
                }
                ParamKind::State => {
                    let states = states.ok_or_else(missing)?;
                    let state = states.tensors.get(&param.name).ok_or_else(missing)?;
                    let value = |dim: &Dim| {
                        let unknown = || Error::Internal(format!("the extent `{dim}` has no value"));
                        dim.eval(&|sym| env.get(sym).copied()).ok_or_else(unknown)
                    };
                    let extent = |axis: usize| if param.whole { Ok(0) } else { value(&param.ty.shape[axis]) };
                    let (batch, tokens) = (extent(0)?, extent(1)?);
                    if param.is_cache() && tokens as usize > states.capacity {
                        return Err(Error::Capacity { capacity: states.capacity, tokens: tokens as usize });
                    }
                    let elements = match param.is_cache() {
                        false => value(&param.ty.elements())?,
                        true => state_elements(&param.ty.shape, &value)?,
                    };
                    let mismatch = |have: String| Error::Shape {
                        name: param.name.clone(),
                        want: param.ty.to_string(),
                        have,
                    };
                    if !param.whole && batch as usize != states.batch
                        || param.whole != state.whole
                        || elements as usize * state.dtype.bytes() as usize != state.memory.len()
                    {
                        return Err(mismatch(format!("a state of {:?}", state.shape)));
                    }
                    if !state.memory.is_on(&self.exe) {
                        return Err(mismatch(format!("a state that is not on {}", self.exe.device())));
                    }
                    Arg::Kept(state.memory.address())
                }
            });
        }
        Ok(args)
    }

    /// A result of the last call, once it is there; each can be taken once.
    pub fn take(&mut self, name: &str) -> Result<Tensor, Error> {
        let results = self.exe.func_plan(self.func).results.iter().zip(&self.results);
        let at = results.enumerate().find(|(_, (result, left))| result.name == name && left.is_some());
        let at = at.map_or(usize::MAX, |(at, _)| at);
        self.take_at(at, name)
    }

    /// The result of this number.
    fn take_at(&mut self, at: usize, name: &str) -> Result<Tensor, Error> {
        let function = || self.exe.func_plan(self.func).name.clone();
        let left = self.results.get_mut(at).and_then(Option::take);
        let outcome = left.ok_or_else(|| Error::NoResult { name: name.into(), function: function() })?;
        match outcome {
            Outcome::Here(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Outcome::There(dtype, shape) => {
                let mut tensor = Tensor::zeros(dtype, &shape);
                if let Place::Cuda(calls) = &self.place {
                    calls.read(at, tensor.bytes_mut())?;
                }
                Ok(tensor)
            }
        }
    }

    /// The weights that were computed of others, by [`eva_passes::plan::Prepared::key`].
    pub(crate) fn prepared(&self) -> impl Iterator<Item = (usize, &Arc<Weight>)> {
        let params = self.plan().params.iter().zip(&self.weights);
        params.filter_map(|(param, weight)| Some((param.prepared.as_ref()?.key, weight.as_ref()?)))
    }

    /// The results of the last call as weights, where they are; each can be taken once. None are states.
    pub(crate) fn into_weights(mut self) -> Result<Vec<Weight>, Error> {
        let outcomes = std::mem::take(&mut self.results).into_iter().enumerate();
        let weight = |(at, outcome): (usize, Option<Outcome>)| match (outcome, &mut self.place) {
            (Some(Outcome::Here(tensor)), _) => Ok(tensor.into()),
            #[cfg(feature = "cuda")]
            (Some(Outcome::There(dtype, shape)), Place::Cuda(calls)) => {
                let buffer = calls.take_result(at);
                let lost = || Error::Internal(format!("there is no result {at}"));
                Ok(Weight::on_gpu(dtype, shape, buffer.ok_or_else(lost)?))
            }
            _ => Err(Error::Internal(format!("result {at} is no weight"))),
        };
        outcomes.map(weight).collect()
    }

    /// Makes all bytes that calls so far have left in this session's memory `0xff`, which is no number in any float type,
    /// so that what the next call leaves out shows in its results.
    pub fn poison(&mut self) -> Result<(), Error> {
        match &mut self.place {
            Place::Cpu { arena } => {
                arena.fill(0xff);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(calls) => Ok(calls.poison()?),
        }
    }

    /// What calls have on the GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn calls(&self) -> Option<&cuda::Calls> {
        match &self.place {
            Place::Cpu { .. } => None,
            Place::Cuda(calls) => Some(calls),
        }
    }

    /// Waits until the calls started before are done; the error of one that failed.
    pub fn wait(&self) -> Result<(), Error> {
        match &self.exe.code {
            Code::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Code::Cuda(code) => Ok(code.gpu().synchronize()?),
        }
    }
}

impl Arg<'_> {
    /// Where the CPU finds it. An input is only read.
    fn address(&self) -> *mut u8 {
        match self {
            Arg::Kept(address) => *address,
            Arg::Input(bytes) => bytes.as_ptr().cast_mut(),
        }
    }
}
