//! Computing again what a function has of weights alone, after these have changed.

use crate::check::with_numbers;
use crate::error::Error;
use crate::session::Session;
use crate::shared::{Part, Shared};
use crate::weights::{Weight, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What computes a session's prepared weights again.
pub(crate) struct Companion {
    session: Box<Session>,
    /// Where its results are: the session's prepared weights.
    into: Vec<(String, Part)>,
}

/// What prepared weights begin at multiples of, in bytes.
const ALIGN: usize = 256;

impl Session {
    /// Computes again what this session has of weights alone. `weights` are those that it was made with, of which some are
    /// parts of shared memory and have changed since. On a GPU it is under way when this returns, and calls follow it.
    ///
    /// A session that has nothing of weights alone has nothing to do here.
    pub fn refresh(&mut self, weights: &Weights) -> Result<(), Error> {
        let failed = |error: Error, function: &str| Error::Prepare {
            function: function.into(),
            error: Box::new(error),
        };
        let name = self.plan().name.clone();
        if self.companion.is_none() {
            match self.make_companion(weights).map_err(|e| failed(e, &name))? {
                None => return Ok(()),
                made => self.companion = made,
            }
        }
        let Some(Companion { session, into }) = &mut self.companion else { return Ok(()) };
        let into: Vec<(&str, &Part)> = into.iter().map(|(name, part)| (name.as_str(), part)).collect();
        session.start_into(&[], None, &[], &into).map_err(|e| failed(e, &name))
    }

    /// The companion, with memory for what it computes, which becomes this session's.
    fn make_companion(&mut self, weights: &Weights) -> Result<Option<Companion>, Error> {
        let exe = self.executable().clone();
        let plan = self.plan();
        let Some(func) = plan.prepare else { return Ok(None) };
        let companion = exe.func_plan(func);
        // By result, since two parameters may be one.
        let mut of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, param) in plan.params.iter().enumerate().filter(|(_, param)| param.needed) {
            if let Some(prepared) = &param.prepared {
                of.entry(prepared.result).or_default().push(i);
            }
        }
        let lost = |i: usize| Error::Internal(format!("`{}` was not prepared", plan.params[i].name));
        let mut places = Vec::with_capacity(of.len());
        let mut bytes = 0usize;
        for (result, params) in of {
            let weight = self.weights[params[0]].as_ref().ok_or_else(|| lost(params[0]))?;
            places.push((result, params, bytes, weight.dtype, weight.shape.clone()));
            bytes += weight.bytes().next_multiple_of(ALIGN);
        }
        let memory = Shared::zeroed(&exe, bytes, "what is computed of weights");
        let memory = memory.map_err(|e| with_numbers(e, &self.weights, 0))?;
        let mut into = Vec::with_capacity(places.len());
        for (result, params, offset, dtype, shape) in places {
            let part = memory.part(offset, dtype, &shape)?;
            let weight = Arc::new(Weight::of_part(&part));
            params.into_iter().for_each(|i| self.weights[i] = Some(weight.clone()));
            into.push((companion.results[result].name.clone(), part));
        }
        let named = companion
            .weights()
            .filter_map(|param| Some((param.name.clone(), weights.get(&param.name)?.clone())));
        let session = Box::new(Session::new(exe.clone(), &companion.name, &named.collect())?);
        Ok(Some(Companion { session, into }))
    }
}
