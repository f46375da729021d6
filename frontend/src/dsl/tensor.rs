//! [`Tensor`]: a handle of a value, and what can be asked of it.

use super::program::UNKNOWN;
use super::record::{Name, Recording, here};
use eva_ir::attr::Dims;
use eva_ir::diag::{Diag, Loc};
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Value};
use eva_ir::ops::reshape::Reshape;
use eva_ir::text::is_value_name;
use eva_ir::types::{DType, TensorType};
use std::fmt;
use std::rc::Rc;

/// A tensor of a function being recorded, or the trace of a mistake that has been noted. Clones are the same tensor.
#[derive(Clone)]
pub struct Tensor {
    pub(super) recording: Rc<Recording>,
    /// `None` after a mistake: whatever is made of it is silent, too.
    pub(super) value: Option<Value>,
}

/// For ops whose own advice suffices.
pub(super) fn no_help(_: &[TensorType]) -> Option<String> {
    None
}

impl Tensor {
    /// The type; `None` after a mistake.
    pub fn ty(&self) -> Option<TensorType> {
        self.recording.inner().values[self.value?].ty.tensor().cloned()
    }

    /// The type of the elements; after a mistake, any.
    pub fn dtype(&self) -> DType {
        self.ty().map_or(DType::F32, |ty| ty.dtype)
    }

    /// The number of axes; after a mistake, 0.
    pub fn rank(&self) -> usize {
        self.ty().map_or(0, |ty| ty.rank())
    }

    /// The extent of an axis, counted from the end if negative.
    #[track_caller]
    pub fn dim(&self, axis: i64) -> Dim {
        let Some(ty) = self.ty() else { return Dim::sym(UNKNOWN) };
        let dim = usize::try_from(absolute(axis, &ty)).ok().and_then(|i| ty.shape.get(i));
        if dim.is_none() {
            let message = format!("there is no axis {axis} in {ty}");
            self.note_shape(message, "axes count from 0, or from -1 at the end", here());
        }
        dim.cloned().unwrap_or_else(|| Dim::sym(UNKNOWN))
    }

    /// The extents of all axes, of which there must be `N`: `let [b, s, m] = x.dims();`.
    #[track_caller]
    pub fn dims<const N: usize>(&self) -> [Dim; N] {
        let unknown = std::array::from_fn(|_| Dim::sym(UNKNOWN));
        let Some(ty) = self.ty() else { return unknown };
        let dims: Option<[Dim; N]> = ty.shape.to_vec().try_into().ok();
        if dims.is_none() {
            let message = format!("{ty} has {} axes, but {N} are expected", ty.rank());
            self.note_shape(message, "the tensor must have as many axes as there are names", here());
        }
        dims.unwrap_or(unknown)
    }

    fn note_shape(&self, message: String, help: &str, loc: Loc) {
        let made = self.value.and_then(|v| self.recording.inner().values[v].loc);
        let diag = Diag::new("eva::shape", message).label(Some(loc), "asked for here");
        self.recording.note(diag.label(made, "of this tensor").help(help));
    }

    /// The tensor, called `name` in the IR text and, if it is a result, outside. A number is added where several of a
    /// function ask for the same name. A parameter keeps its name.
    #[track_caller]
    pub fn named(&self, name: &str) -> Tensor {
        self.named_at(name, here())
    }

    fn named_at(&self, name: &str, loc: Loc) -> Tensor {
        if let Some(value) = self.value.filter(|_| self.check_name(name, loc)) {
            let name_of = &mut self.recording.inner_mut().names[value.index()];
            if !matches!(name_of, Name::Exact(_)) {
                *name_of = Name::Wanted(name.into());
            }
        }
        self.clone()
    }

    /// The tensor, to be observed as `name`: a further result of the function if [`super::Program::taps`] is on.
    /// A caller at the scope `layers.3` gives it on as `layers.3.name`. Enclosing scopes do not count.
    #[track_caller]
    pub fn tap(&self, name: &str) -> Tensor {
        self.tap_at(name, here())
    }

    pub(super) fn tap_at(&self, name: &str, loc: Loc) -> Tensor {
        let Some(value) = self.value.filter(|_| self.check_name(name, loc)) else { return self.clone() };
        if !self.recording.program.0.taps.get() {
            return self.named_at(name, loc);
        }
        let taken = {
            let inner = self.recording.inner();
            inner.taps.iter().find(|(other, _)| **other == *name).map(|(_, v)| inner.values[*v].loc)
        };
        if let Some(first) = taken {
            let message = format!("two tensors of @{} are tapped as `{name}`", self.recording.name);
            let diag = Diag::new("eva::duplicate_name", message).label(Some(loc), "the second");
            self.recording.note(diag.label(first, "the first"));
            return self.clone();
        }
        let known = matches!(self.recording.inner().names[value.index()], Name::Exact(_));
        let value = if known { self.copy(value, loc) } else { value };
        let mut inner = self.recording.inner_mut();
        inner.names[value.index()] = Name::Exact(name.into());
        inner.taps.push((name.into(), value));
        drop(inner);
        Tensor { recording: self.recording.clone(), value: Some(value) }
    }

    /// The same tensor as another value, which can have a name of its own.
    fn copy(&self, value: Value, loc: Loc) -> Value {
        let ty = self.recording.inner().values[value].ty.clone();
        let shape = ty.tensor().map_or(Vec::new(), |ty| ty.shape.to_vec());
        let op = Reshape { shape: Dims(shape) };
        self.recording.push(Def::Op(op.into(), vec![value]), ty, Name::None, loc)
    }

    fn check_name(&self, name: &str, loc: Loc) -> bool {
        let ok = is_value_name(name);
        if !ok {
            let message = format!("`{name}` is not a name for a tensor");
            let diag = Diag::new("eva::name", message).label(Some(loc), "here");
            self.recording.note(diag.help("letters, digits, `_` and `.`"));
        }
        ok
    }
}

/// `axis`, counted from the front.
pub(super) fn absolute(axis: i64, ty: &TensorType) -> i64 {
    if axis < 0 { axis.saturating_add(ty.rank() as i64) } else { axis }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some(value) = self.value else { return f.write_str("(a mistake)") };
        let name = self.recording.name_of(value).unwrap_or_else(|| value.to_string().into());
        write!(f, "{name}: {} in @{}", self.recording.inner().values[value].ty, self.recording.name)
    }
}
