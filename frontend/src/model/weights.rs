//! [`Weights`]: a scope that knows how its weights are stored.

use crate::prelude::*;

/// A [`Scope`] whose weights have the element types of a checkpoint.
#[derive(Clone)]
pub struct Weights<'a> {
    scope: Scope,
    stored: &'a dyn Fn(&str) -> DType,
}

impl<'a> Weights<'a> {
    /// The weights of `scope`, where `stored` says how the weight of a name (with the scope's path) is stored.
    pub fn new(scope: &Scope, stored: &'a dyn Fn(&str) -> DType) -> Self {
        Self { scope: scope.clone(), stored }
    }

    /// The weights in the scope `name` within this one.
    #[track_caller]
    pub fn at(&self, name: &str) -> Weights<'a> {
        Weights { scope: self.scope.scope(name), stored: self.stored }
    }

    /// The weight `name`.
    #[track_caller]
    pub fn get<D: Into<Dim>>(&self, name: &str, dims: impl IntoIterator<Item = D>) -> Tensor {
        let stored = (self.stored)(&self.scope.full_name(name));
        self.scope.weight(name, stored, dims)
    }

    /// The scope, for state, inputs and calls.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}
