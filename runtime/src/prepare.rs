//! Weights that are computed of other weights when a function is loaded ([`eva_passes::hoist`]).

use crate::check::{check, with_numbers};
use crate::error::Error;
use crate::exec::Executable;
use crate::session::Session;
use crate::weights::{Weight, Weights};
use eva_ir::dim::Sym;
use eva_ir::graph::ParamKind;
use eva_passes::plan::{FuncPlan, Prepared};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What an executable's functions have computed of weights, so that they share it.
pub(crate) struct Store {
    /// Tells this executable's weights from others'.
    id: u64,
    made: Mutex<Vec<Made>>,
    /// Held while something is computed, so that two sessions do not compute the same.
    making: Mutex<()>,
}

/// A prepared weight.
struct Made {
    key: usize,
    /// What it was computed from. These keep no element in memory.
    from: Vec<Weak<Weight>>,
    weight: Arc<Weight>,
}

/// Prepared weights by [`Prepared::key`].
pub(crate) type Ready = HashMap<usize, Arc<Weight>>;

impl Default for Store {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), made: Mutex::default(), making: Mutex::default() }
    }
}

impl Store {
    /// The name of a prepared weight among others. No parameter can have such a name.
    fn name(&self, key: usize) -> String {
        format!("@{}.{key}", self.id)
    }

    /// All that `f` has prepared, if it is there: among `weights`, or computed of them before.
    pub(crate) fn find(&self, exe: &Executable, f: &FuncPlan, weights: &Weights) -> Option<Ready> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Weights that are no more come never again.
        made.retain(|made| made.from.iter().all(|from| from.strong_count() > 0));
        let find = |prepared: &Prepared| {
            let given = weights.get(&self.name(prepared.key)).filter(|weight| weight.is_on(exe));
            let same = |made: &&Made| made.key == prepared.key && made.is_of(prepared, weights);
            given.or_else(|| made.iter().find(same).map(|made| &made.weight)).cloned()
        };
        prepared(f).map(|prepared| Some((prepared.key, find(prepared)?))).collect()
    }

    /// Computes what `f` has prepared. `found` has the weights of its parameters that are on the device.
    pub(crate) fn make(
        &self,
        exe: &Arc<Executable>,
        f: &FuncPlan,
        weights: &Weights,
        found: &[Option<Arc<Weight>>],
    ) -> Result<Ready, Error> {
        let Some(companion) = f.prepare.map(|func| exe.func_plan(func)) else { return Ok(Ready::new()) };
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = self.find(exe, f, weights) {
            return Ok(ready);
        }
        let there: HashMap<&str, &Arc<Weight>> = f
            .params
            .iter()
            .zip(found)
            .filter_map(|(param, weight)| Some((param.name.as_str(), weight.as_ref()?)))
            .collect();
        let named = companion.weights().filter_map(|param| {
            let weight = there.get(param.name.as_str()).copied().or_else(|| weights.get(&param.name));
            Some((param.name.clone(), weight?.clone()))
        });
        let named: Weights = named.collect();
        let mut session = Session::new(exe.clone(), &companion.name, &named)?;
        let others = there.iter().filter(|(name, _)| !named.contains_key(**name));
        session.beside = others.map(|(_, weight)| weight.bytes()).sum();
        session.start(&[], None, &[])?;
        session.wait()?;
        let made: Vec<Arc<Weight>> = session.into_weights()?.into_iter().map(Arc::new).collect();
        let mut store = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ready = Ready::new();
        for prepared in prepared(f) {
            let have = store.iter().find(|made| made.key == prepared.key && made.is_of(prepared, weights));
            let weight = match have {
                Some(have) => have.weight.clone(),
                None => {
                    let weight = made[prepared.result].clone();
                    let from = prepared.from.iter().filter_map(|name| weights.get(name));
                    // What is computed of weights that change is right for this session alone.
                    if from.clone().all(|weight| weight.part().is_none()) {
                        let from = from.map(Arc::downgrade).collect();
                        store.push(Made { key: prepared.key, from, weight: weight.clone() });
                    }
                    weight
                }
            };
            ready.insert(prepared.key, weight);
        }
        drop(making);
        Ok(ready)
    }
}

impl Made {
    /// Whether it was computed of these weights.
    fn is_of(&self, prepared: &Prepared, weights: &Weights) -> bool {
        let is = |(name, from): (&String, &Weak<Weight>)| {
            weights.get(name).is_some_and(|weight| Weak::ptr_eq(from, &Arc::downgrade(weight)))
        };
        prepared.from.len() == self.from.len() && prepared.from.iter().zip(&self.from).all(is)
    }
}

/// What `f` has prepared, and needs.
fn prepared(f: &FuncPlan) -> impl Iterator<Item = &Prepared> {
    f.params.iter().filter(|param| param.needed).filter_map(|param| param.prepared.as_ref())
}

/// The weights that calls of `f` use, on the executable's device, one for each parameter: those given, checked, and
/// those computed of them. The extents that their shapes show are added to `fixed`.
pub(crate) fn load(
    exe: &Arc<Executable>,
    f: &FuncPlan,
    weights: &Weights,
    fixed: &mut HashMap<Sym, i64>,
) -> Result<Vec<Option<Arc<Weight>>>, Error> {
    let ready = exe.prepared.find(exe, f, weights);
    for param in f.weights() {
        let missing = || Error::Missing {
            name: param.name.clone(),
            function: f.name.clone(),
            ty: param.ty.to_string(),
        };
        let weight = match weights.get(&param.name) {
            // What only a preparation needs is not needed after it.
            None if !param.needed && ready.is_some() => continue,
            weight => weight.ok_or_else(missing)?,
        };
        param.ty.bind(&weight.shape, fixed);
        check(&param.name, &param.ty, weight.dtype, &weight.shape, fixed)?;
        if weight.bytes() != weight.shape.iter().product::<usize>() * weight.dtype.bytes() as usize {
            return Err(Error::Internal(format!("`{}` has the wrong number of bytes", param.name)));
        }
    }
    let mut found: Vec<Option<Arc<Weight>>> = Vec::with_capacity(f.params.len());
    for param in &f.params {
        let given = weights.get(&param.name).filter(|_| param.prepared.is_none());
        let given = given.filter(|_| param.needed && param.kind == ParamKind::Weight);
        let copied = match given {
            Some(weight) if !weight.is_on(exe) => Some(weight.copy_to(exe, &param.name).map(Arc::new)),
            weight => weight.cloned().map(Ok),
        };
        found.push(copied.transpose().map_err(|e| with_numbers(e, &found, 0))?);
    }
    let ready = match ready {
        Some(ready) => ready,
        None => {
            let made = exe.prepared.make(exe, f, weights, &found);
            made.map_err(|e| Error::Prepare { function: f.name.clone(), error: Box::new(e) })?
        }
    };
    for (slot, param) in found.iter_mut().zip(&f.params) {
        if let Some(prepared) = param.prepared.as_ref().filter(|_| param.needed) {
            let weight = ready.get(&prepared.key).ok_or_else(|| {
                Error::Internal(format!("`{}` of @{} was not prepared", param.name, f.name))
            })?;
            param.ty.bind(&weight.shape, fixed);
            check(&param.name, &param.ty, weight.dtype, &weight.shape, fixed)?;
            *slot = Some(weight.clone());
        }
    }
    Ok(found)
}

impl Executable {
    /// Computes what these functions have of weights alone, adds it to `weights`, and takes those out that none of
    /// the functions needs any more: their memory on a GPU is free again, and mapped pages go back to the system.
    ///
    /// Sessions compute it by themselves. But only who has the weights can let go of them.
    pub fn prepare(self: &Arc<Self>, functions: &[&str], weights: &mut Weights) -> Result<(), Error> {
        let mut of: HashMap<&str, bool> = HashMap::new();
        let mut added = Weights::new();
        for name in functions {
            let f = self.func_plan(self.func(name)?);
            for param in f.weights() {
                *of.entry(&param.name).or_default() |= param.needed;
            }
            let session = Session::new(self.clone(), name, weights)?;
            let ready = session.prepared();
            added.extend(ready.map(|(key, weight)| (self.prepared.name(key), weight.clone())));
        }
        weights.extend(added);
        for name in of.into_iter().filter(|(_, needed)| !needed).map(|(name, _)| name) {
            if let Some(weight) = weights.remove(name) {
                weight.release();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;
    use crate::{CompileOptions, Executable};
    use eva_ir::text::parse;

    const TWO: &str = "dim s
dim m = 3
fn @one(%x: f32[s, m], weight %g: f32[m], weight %w: f32[m]) -> f32[s, m] {
  %gw = mul %g, %w : f32[m]
  %y = mul %x, %gw : f32[s, m]
  return %y
}
fn @two(%x: f32[s, m], weight %w: f32[m], weight %g: f32[m], weight %k: f32[m]) -> f32[s, m], f32[s, m] {
  %folded = mul %g, %w : f32[m]
  %kw = mul %k, %w : f32[m]
  %y = mul %x, %folded : f32[s, m]
  %z = mul %x, %kw : f32[s, m]
  return %y, %z
}";

    fn executable() -> Arc<Executable> {
        let module = parse(TWO).unwrap_or_else(|diags| panic!("{diags}"));
        Arc::new(Executable::compile(&module, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")))
    }

    fn weights() -> Weights {
        let all = [("g", [1.0, 2.0, 4.0]), ("w", [0.5, 3.0, 0.25]), ("k", [8.0, 16.0, 5.0])];
        let weight = |x: [f32; 3]| Arc::new(Weight::from(Tensor::from_f32(&[3], &x)));
        all.into_iter().map(|(name, x)| (name.to_string(), weight(x))).collect()
    }

    fn made(session: &Session) -> Vec<Arc<Weight>> {
        session.prepared().map(|(_, weight)| weight.clone()).collect()
    }

    #[test]
    fn sessions_share_what_is_prepared() {
        let (exe, weights) = (executable(), weights());
        let one = Session::new(exe.clone(), "one", &weights).unwrap();
        let again = Session::new(exe.clone(), "one", &weights).unwrap();
        assert!(Arc::ptr_eq(&made(&one)[0], &made(&again)[0]));
        // Another function computes the same under another name, and more.
        let two = Session::new(exe.clone(), "two", &weights).unwrap();
        assert!(Arc::ptr_eq(&made(&one)[0], &made(&two)[0]));
        assert_eq!(made(&two)[1].host(), Some(Tensor::from_f32(&[3], &[4.0, 48.0, 1.25]).bytes()));
        assert_eq!(exe.prepared.made.lock().unwrap().len(), 2);
        // Other weights are others, even if they are equal.
        let other = Session::new(exe.clone(), "one", &self::weights()).unwrap();
        assert!(!Arc::ptr_eq(&made(&one)[0], &made(&other)[0]));
    }

    #[test]
    fn what_weights_were_is_forgotten_with_them() {
        let exe = executable();
        let session = Session::new(exe.clone(), "one", &weights()).unwrap();
        assert_eq!(exe.prepared.made.lock().unwrap().len(), 1);
        let weights = weights();
        let other = Session::new(exe.clone(), "one", &weights).unwrap();
        assert_eq!(exe.prepared.made.lock().unwrap().len(), 1, "the first weights are no more");
        assert_eq!(made(&session)[0].host(), made(&other)[0].host());
        assert_eq!(Arc::strong_count(&made(&session)[0]), 2, "the session's and this");
    }

    #[test]
    fn weights_that_are_only_prepared_from_are_let_go() {
        let (exe, mut weights) = (executable(), weights());
        let [g, w, k] = ["g", "w", "k"].map(|name| Arc::downgrade(&weights[name]));
        exe.prepare(&["one", "two"], &mut weights).unwrap();
        assert!([g, w, k].iter().all(|weight| weight.upgrade().is_none()));
        assert_eq!(weights.len(), 2);
        let mut two = Session::new(exe.clone(), "two", &weights).unwrap();
        assert_eq!(two.weight_bytes(), 2 * 3 * 4);
        let x = Tensor::from_f32(&[1, 3], &[1.0, 10.0, 100.0]);
        let results = two.run(&[("x", &x)], None, &[]).unwrap();
        let results: Vec<Vec<f32>> = results.iter().map(|(_, tensor)| tensor.to_f32()).collect();
        assert_eq!(results, [vec![0.5, 60.0, 100.0], vec![4.0, 480.0, 125.0]]);
        // They are another executable's; of this one the weights are missing.
        let error = Session::new(executable(), "two", &weights).err().unwrap();
        assert_eq!(error.to_string(), "`w` of @two was not given: it is f32[m]");
    }

    #[test]
    fn mistakes_are_those_of_the_function() {
        let exe = executable();
        let mut weights = weights();
        let wrong = Arc::new(Weight::from(Tensor::from_f32(&[4], &[0.0; 4])));
        weights.insert("g".into(), wrong);
        let error = Session::new(exe.clone(), "one", &weights).err().unwrap();
        assert_eq!(error.to_string(), "`g` is f32[3], but it was given f32[4]");
        weights.remove("g");
        let error = Session::new(exe, "one", &weights).err().unwrap();
        assert_eq!(error.to_string(), "`g` of @one was not given: it is f32[m]");
    }
}
