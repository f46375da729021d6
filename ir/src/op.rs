//! What an op is, and the macros that make the one table of them all.

use crate::attr::Attr;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{NoGradient, Shares, Vjp};

/// Everything the compiler asks of an op. One file of [`crate::ops`] answers for one op.
pub trait OpDef: Declared {
    /// The result's type, given the operands' types; or what is wrong with them.
    ///
    /// The number of operands has been checked when this is called.
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError>;

    /// The results themselves (one for each part of the type): the definition that every backend is tested against.
    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array>;

    /// How the op becomes code; says which of [`OpDef::tile`], [`OpDef::kernel`] and [`OpDef::alias`] it answers.
    fn lowering(&self) -> Lowering;

    /// [`Lowering::View`]: the tile of the result that `at` asks for, from tiles of the operands.
    fn tile<'k>(
        &self,
        cx: &Cx<'k>,
        args: &[View<'k>],
        at: &Request<'k>,
    ) -> Result<crate::kernel::build::Tile<'k>, LowerError> {
        let _ = (cx, args, at);
        Err(LowerError::new(format!("`{}` is not computed tile by tile", Self::NAME)))
    }

    /// Whether operand `i` must be a tensor in memory (a widening cast of one will do).
    fn in_memory(&self, i: usize) -> bool {
        let _ = i;
        false
    }

    /// Whether operand `i`, if it is rows of a tensor in memory (`dispatch`), need not be there itself.
    fn in_rows(&self, i: usize) -> bool {
        let _ = i;
        false
    }

    /// [`Lowering::View`]: whether a request must have all columns of the last axis.
    fn whole_rows(&self) -> bool {
        false
    }

    /// [`Lowering::View`]: whether rows of an operand are rows of the result several times, at places far apart.
    fn repeats_rows(&self) -> bool {
        false
    }

    /// [`Lowering::Kernel`]: the loops of the op's own kernel; each tile of the result is handed to `cx.emit`.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let _ = (cx, args);
        Err(LowerError::new(format!("`{}` has no kernel of its own", Self::NAME)))
    }

    /// [`Lowering::Kernel`]: whether each tile that is handed to `cx.emit` is a row of the result, and all of it.
    fn emits_rows(&self) -> bool {
        false
    }

    /// [`Lowering::Alias`]: the result as another view of operand 0's buffer; `None` if this one cannot be.
    fn alias(&self, arg: &crate::lower::BufView) -> Option<crate::lower::BufView> {
        let _ = arg;
        None
    }

    /// Floating-point operations, given the types; none where numbers are only moved. `size` is the number of elements
    /// of a tensor.
    fn flops<N: Amount>(&self, args: &[&TensorType], out: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        let _ = args;
        out.parts().iter().map(size).fold(N::from(0.0), |sum, n| sum + n)
    }

    /// The gradient rule: each operand's share of the gradient, in ordinary ops; `None` for an operand that has none by its
    /// nature (indices, positions).
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let _ = cx;
        Err(NoGradient::Op { op: Self::NAME })
    }
}

/// The part of an op's definition that the `op!` macro writes.
pub trait Declared: Sized {
    /// The name in the IR text.
    const NAME: &'static str;
    /// The operands' names; with [`Declared::VARIADIC`], the last stands for any number of operands, one at least.
    const OPERANDS: &'static [&'static str];
    /// Whether the last operand may be repeated.
    const VARIADIC: bool;
    /// The attributes' names.
    const ATTRS: &'static [&'static str];
    /// The attributes, in the order of [`Declared::ATTRS`].
    fn attrs(&self) -> Vec<Attr>;
    /// The op with these attributes; the index of the first that has the wrong kind otherwise.
    fn from_attrs(attrs: &[Attr]) -> Result<Self, usize>;
}

/// Why operands do not fit an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError {
    /// What does not fit, in one sentence without a full stop.
    pub message: String,
    /// The operand to point at, if one is more to blame than another.
    pub operand: Option<usize>,
    /// What to do about it.
    pub help: Option<String>,
}

impl TypeError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), operand: None, help: None }
    }
    /// The error, pointing at this operand.
    pub fn at(mut self, operand: usize) -> Self {
        self.operand = Some(operand);
        self
    }
    /// The error, with advice.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Declares an op: its name in the IR text, its operands (`xs...` for any number), and its attributes.
macro_rules! op {
    (
        $(#[$meta:meta])*
        $name:literal => $Op:ident($($operand:ident),* $(; $rest:ident ...)?) {
            $($(#[$ameta:meta])* $attr:ident: $ty:ty),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Op { $($(#[$ameta])* pub $attr: $ty),* }

        impl $crate::op::Declared for $Op {
            const NAME: &'static str = $name;
            const OPERANDS: &'static [&'static str] = &[$(stringify!($operand),)* $(stringify!($rest))?];
            const VARIADIC: bool = false $(|| !stringify!($rest).is_empty())?;
            const ATTRS: &'static [&'static str] = &[$(stringify!($attr)),*];
            fn attrs(&self) -> Vec<$crate::attr::Attr> { vec![$(self.$attr.clone().into()),*] }
            #[allow(unused_mut, unused_variables, unused_assignments, reason = "an op may have no attributes")]
            fn from_attrs(attrs: &[$crate::attr::Attr]) -> Result<Self, usize> {
                let mut i = 0;
                Ok(Self { $($attr: {
                    let attr = attrs.get(i).cloned().ok_or(i)?;
                    let attr = attr.try_into().map_err(|_| i)?;
                    i += 1;
                    attr
                }),* })
            }
        }
    };
}
pub(crate) use op;

/// Declares [`crate::ops::Op`] and [`crate::ops::OpKind`]: the closed set of ops, one line each.
macro_rules! ops {
    ($($module:ident::$Op:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// Any op, with its attributes.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op { $(#[doc = concat!("See [`mod@", stringify!($module), "`].")] $Op($module::$Op)),* }

        /// Which op, without its attributes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum OpKind { $(#[doc = concat!("See [`mod@", stringify!($module), "`].")] $Op),* }

        $(impl From<$module::$Op> for Op {
            fn from(op: $module::$Op) -> Self { Op::$Op(op) }
        })*

        impl Op {
            /// Which op it is.
            pub fn kind(&self) -> OpKind { match self { $(Op::$Op(_) => OpKind::$Op),* } }
            /// Its attributes, in the order of [`OpKind::attr_names`].
            pub fn attrs(&self) -> Vec<Attr> { match self { $(Op::$Op(op) => op.attrs()),* } }
            /// See [`OpDef::infer`]; checks the number of operands too.
            pub fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
                self.kind().check_arity(args.len())?;
                match self { $(Op::$Op(op) => op.infer(args)),* }
            }
            /// See [`OpDef::eval`].
            pub fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
                match self { $(Op::$Op(op) => op.eval(sizes, args)),* }
            }
            /// See [`OpDef::lowering`].
            pub fn lowering(&self) -> Lowering { match self { $(Op::$Op(op) => op.lowering()),* } }
            /// See [`OpDef::tile`].
            pub fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
                match self { $(Op::$Op(op) => op.tile(cx, args, at)),* }
            }
            /// See [`OpDef::in_memory`].
            pub fn in_memory(&self, i: usize) -> bool { match self { $(Op::$Op(op) => op.in_memory(i)),* } }
            /// See [`OpDef::in_rows`].
            pub fn in_rows(&self, i: usize) -> bool { match self { $(Op::$Op(op) => op.in_rows(i)),* } }
            /// See [`OpDef::whole_rows`].
            pub fn whole_rows(&self) -> bool { match self { $(Op::$Op(op) => op.whole_rows()),* } }
            /// See [`OpDef::repeats_rows`].
            pub fn repeats_rows(&self) -> bool { match self { $(Op::$Op(op) => op.repeats_rows()),* } }
            /// See [`OpDef::emits_rows`].
            pub fn emits_rows(&self) -> bool { match self { $(Op::$Op(op) => op.emits_rows()),* } }
            /// See [`OpDef::kernel`].
            pub fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
                match self { $(Op::$Op(op) => op.kernel(cx, args)),* }
            }
            /// See [`OpDef::alias`].
            pub fn alias(&self, arg: &BufView) -> Option<BufView> { match self { $(Op::$Op(op) => op.alias(arg)),* } }
            /// See [`OpDef::flops`].
            pub fn flops<N: Amount>(&self, args: &[&TensorType], out: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
                match self { $(Op::$Op(op) => op.flops(args, out, size)),* }
            }
            /// See [`OpDef::vjp`].
            pub fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
                match self { $(Op::$Op(op) => op.vjp(cx)),* }
            }
        }

        impl OpKind {
            /// Every op, in the order of the table.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$Op),*];
            /// The op's name in the IR text.
            pub fn name(self) -> &'static str { match self { $(OpKind::$Op => $module::$Op::NAME),* } }
            /// See [`Declared::OPERANDS`].
            pub fn operands(self) -> &'static [&'static str] { match self { $(OpKind::$Op => $module::$Op::OPERANDS),* } }
            /// See [`Declared::VARIADIC`].
            pub fn is_variadic(self) -> bool { match self { $(OpKind::$Op => $module::$Op::VARIADIC),* } }
            /// See [`Declared::ATTRS`].
            pub fn attr_names(self) -> &'static [&'static str] { match self { $(OpKind::$Op => $module::$Op::ATTRS),* } }
            /// The op with these attributes; the index of the first that has the wrong kind otherwise.
            pub fn with_attrs(self, attrs: &[Attr]) -> Result<Op, usize> {
                match self { $(OpKind::$Op => $module::$Op::from_attrs(attrs).map(Op::$Op)),* }
            }
        }
    };
}
pub(crate) use ops;
