//! Memory for what a session's function keeps between calls.

use super::Session;
use crate::check::with_numbers;
use crate::error::Error;
use crate::states::{State, States};
use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::ParamKind;
use eva_ir::types::TensorType;
use std::collections::HashMap;

impl Session {
    /// Rows of a page, if the function's states are in pages.
    pub fn page_rows(&self) -> Option<usize> {
        let paged = self.plan().params.iter().find(|param| param.paged)?;
        let rows = paged.ty.shape[1].eval(&|sym| self.fixed.get(sym).copied())?;
        usize::try_from(rows).ok()
    }

    /// Zeroed states of `count` pages, for a function whose states are all in pages of as many rows; [`crate::Pages`]
    /// says which sequence has which.
    pub fn new_pages(&self, count: usize) -> Result<States, Error> {
        let unpaged = self.plan().params.iter().find(|param| param.is_cache());
        match (self.page_rows(), unpaged) {
            (Some(rows), None) => {
                let states = self.zeroed_states(count, rows, &[])?;
                Ok(States { capacity: count.saturating_mul(rows), ..states })
            }
            (_, unpaged) => {
                let name = unpaged.map_or("a state".into(), |param| format!("`{}`", param.name));
                Err(Error::Pages(format!("{name} of @{} is not in pages", self.plan().name)))
            }
        }
    }

    /// Zeroed states for `batch` sequences with room for `capacity` tokens each.
    pub fn new_states(&self, batch: usize, capacity: usize) -> Result<States, Error> {
        if let Some(paged) = self.plan().params.iter().find(|param| param.paged) {
            return Err(Error::Pages(format!("`{}` of @{} is in pages", paged.name, self.plan().name)));
        }
        self.zeroed_states(batch, capacity, &[])
    }

    /// Zeroed states for a function that only has such as are replaced as a whole (`assign`); `sizes` are the extents of
    /// theirs that neither the module nor a weight fixes.
    pub fn whole_states(&self, sizes: &[(&str, usize)]) -> Result<States, Error> {
        if let Some(cache) = self.plan().params.iter().find(|p| p.kind == ParamKind::State && !p.whole) {
            let message = format!("`{}` of @{} is a cache: it has a capacity", cache.name, self.plan().name);
            return Err(Error::Pages(message));
        }
        self.zeroed_states(0, 0, sizes)
    }

    fn zeroed_states(&self, batch: usize, capacity: usize, sizes: &[(&str, usize)]) -> Result<States, Error> {
        let mut fixed = self.fixed.clone();
        fixed.extend(sizes.iter().map(|&(name, n)| (Sym::from(name), n as i64)));
        let mut tensors: HashMap<String, State> = HashMap::new();
        for param in self.plan().params.iter().filter(|p| p.kind == ParamKind::State) {
            let mut shape = if param.whole { Vec::new() } else { vec![batch, capacity] };
            for dim in param.ty.shape.iter().skip(shape.len()) {
                let n = dim.eval(&|sym| fixed.get(sym).copied()).and_then(|n| usize::try_from(n).ok());
                shape.push(n.ok_or_else(|| Error::Internal(format!("`{}` has no fixed width", param.name)))?);
            }
            let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let bytes = elements.and_then(|n| n.checked_mul(param.ty.dtype.bytes() as usize));
            if bytes.is_none_or(|n| n > isize::MAX as usize / 2) {
                return Err(Error::TooLarge(format!("`{}` of {shape:?}", param.name)));
            }
            let bytes = bytes.unwrap_or(0);
            let memory = self.exe.zeroed(bytes, &format!("the state `{}`", param.name));
            let caches = || tensors.values().map(|state| state.memory.len()).sum();
            let memory = memory.map_err(|e| with_numbers(e, &self.weights, caches()))?;
            let (dtype, whole) = (param.ty.dtype, param.whole);
            tensors.insert(param.name.clone(), State { dtype, shape, memory, whole });
        }
        Ok(States { capacity, batch, tensors })
    }

    /// Bytes that one token takes in the states.
    pub fn state_bytes_per_token(&self) -> usize {
        let fixed = &self.fixed;
        let states = self.plan().params.iter().filter(|p| p.kind == ParamKind::State && !p.whole);
        let width = |ty: &TensorType| {
            let product = Dim::product(ty.shape.iter().skip(2)).eval(&|sym| fixed.get(sym).copied());
            product.unwrap_or(0) as usize * ty.dtype.bytes() as usize
        };
        states.map(|p| width(&p.ty)).sum()
    }
}
