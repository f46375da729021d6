//! Which ops treat every token alike, so that what they give for cached tokens can be computed again from less.
//!
//! A value *per token* has the tokens on two axes, `[b, s]`, or on one of `b·s`, wherever those axes are; see [`Place`].
//! An op treats tokens alike if row `i` of its result depends on row `i` of such operands and on what is the same in
//! every call ([`fixed`]): weights and constants, not inputs. It must also give finite numbers for a row of zeros, since
//! rows that no token has been written to are read too, and are multiplied by probabilities of zero.

use eva_ir::attr::{Axis, Dims};
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, Module, ParamKind, Value};
use eva_ir::ops::{Op, full::Full, reshape::Reshape};

/// Which axes of a value have its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// Sequences on one axis, their tokens on another.
    Apart {
        /// The axis of sequences.
        batch: usize,
        /// The axis of tokens.
        token: usize,
    },
    /// Sequences and their tokens on one axis.
    Together(usize),
}

impl Place {
    /// Where the rows of a `cache_write` have their tokens.
    pub const FIRST: Place = Place::Apart { batch: 0, token: 1 };

    /// The axes.
    pub fn axes(self) -> Vec<usize> {
        match self {
            Place::Apart { batch, token } => vec![batch, token],
            Place::Together(axis) => vec![axis],
        }
    }

    /// The place with each axis moved; `None` if one has nowhere to go.
    fn moved(self, to: impl Fn(usize) -> Option<usize>) -> Option<Place> {
        Some(match self {
            Place::Apart { batch, token } => Place::Apart { batch: to(batch)?, token: to(token)? },
            Place::Together(axis) => Place::Together(to(axis)?),
        })
    }
}

/// A value per token.
pub(super) type Node = (Value, Place);

/// The extents of tokens: sequences, and tokens of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    pub batch: Dim,
    pub each: Dim,
}

impl Tokens {
    /// The extents that `place` speaks of, in the order of [`Place::axes`].
    fn extents(&self, place: Place) -> Vec<Dim> {
        match place {
            Place::Apart { .. } => vec![self.batch.clone(), self.each.clone()],
            Place::Together(_) => vec![&self.batch * &self.each],
        }
    }
}

/// An operand of an op that treats tokens alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// It has a row for each token.
    PerToken(Node),
    /// It is the same for all tokens, and in all calls.
    Fixed(Value),
}

/// Which values are the same in every call: weights, and what is made of weights alone.
pub(super) fn fixed(f: &Function) -> Vec<bool> {
    let mut fixed: Vec<bool> = Vec::with_capacity(f.values.len());
    for (_, data) in f.values.iter() {
        let is = match &data.def {
            Def::Param(kind) => *kind == ParamKind::Weight,
            Def::Op(_, args) => args.iter().all(|arg| fixed[arg.index()]),
            Def::Call(..) => false,
        };
        fixed.push(is);
    }
    fixed
}

/// A function, seen from its tokens.
pub(super) struct View<'a> {
    pub module: &'a Module,
    pub f: &'a Function,
    pub fixed: &'a [bool],
    pub tokens: &'a Tokens,
}

impl View<'_> {
    /// What each row of `node` is made of; or why it cannot be computed again for tokens of earlier calls.
    pub fn operands(&self, (value, place): Node) -> Result<Vec<Operand>, String> {
        let data = &self.f.values[value];
        let (op, args) = match &data.def {
            Def::Param(_) => return Err("it is given by the caller".into()),
            Def::Call(..) => return Err("a call makes it".into()),
            Def::Op(op, args) => (op, args.as_slice()),
        };
        self.bytes((value, place)).ok_or("an axis besides the tokens' has no fixed extent")?;
        let name = op.kind().name();
        let no = |why: &str| Err(format!("`{name}` {why}"));
        match op {
            Op::Cast(_) | Op::Scale(_) | Op::Offset(_) | Op::Exp(_) | Op::Sigmoid(_) | Op::Silu(_) => {
                Ok(vec![Operand::PerToken((args[0], place))])
            }
            Op::Sqrt(_) => Ok(vec![Operand::PerToken((args[0], place))]),
            Op::Log(_) | Op::Rsqrt(_) | Op::Recip(_) if !self.is_positive(args[0]) => {
                no("of a row without a token may not be a number")
            }
            Op::Log(_) | Op::Rsqrt(_) | Op::Recip(_) => Ok(vec![Operand::PerToken((args[0], place))]),
            Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Maximum(_) | Op::Div(_) => {
                let all: Vec<Operand> =
                    args.iter().map(|&arg| self.aligned(value, arg, place)).collect::<Result<_, _>>()?;
                let divides = matches!(op, Op::Div(_)) && matches!(all[1], Operand::PerToken(_));
                if divides && !self.is_positive(args[1]) {
                    return no("by a row without a token may not be a number");
                }
                Ok(all)
            }
            Op::Full(_) => Ok(Vec::new()),
            Op::Reshape(_) => match self.before_reshape(args[0], value, place) {
                Some(place) => Ok(vec![Operand::PerToken((args[0], place))]),
                None => no("mixes tokens with other axes"),
            },
            Op::Slice(slice) if place.axes().contains(&(slice.axis as usize)) => no("is of some tokens only"),
            Op::Slice(_) => Ok(vec![Operand::PerToken((args[0], place))]),
            Op::Concat(concat) if place.axes().contains(&(concat.axis as usize)) => no("is along the tokens"),
            Op::Concat(_) => Ok(args.iter().map(|&arg| Operand::PerToken((arg, place))).collect()),
            Op::Sum(_) | Op::Mean(_) | Op::Max(_) | Op::Softmax(_) => {
                let last = self.rank(value) - 1;
                let axis = match op {
                    Op::Sum(op) => op.axis as usize,
                    Op::Mean(op) => op.axis as usize,
                    Op::Max(op) => op.axis as usize,
                    _ => last,
                };
                if place.axes().contains(&axis) {
                    return no("is along the tokens");
                }
                Ok(vec![Operand::PerToken((args[0], place))])
            }
            Op::RmsNorm(norm) => {
                if place.axes().contains(&(self.rank(value) - 1)) {
                    return no("is along the tokens");
                }
                if norm.eps.get() <= 0.0 {
                    return no("without `eps` of a row without a token is not a number");
                }
                Ok(vec![Operand::PerToken((args[0], place)), self.same_always(args[1])?])
            }
            Op::Einsum(einsum) => {
                let spec = &einsum.spec;
                let letters: Vec<Axis> = place.axes().into_iter().map(|axis| spec.out[axis]).collect();
                let one = |(axes, &arg): (&Vec<Axis>, &Value)| {
                    let has = |letter: &Axis| axes.contains(letter);
                    if !letters.iter().any(has) {
                        return self.same_always(arg);
                    }
                    let at = |axis: usize| axes.iter().position(|&a| a == spec.out[axis]);
                    let name = &self.f.values[arg].name;
                    let node =
                        place.moved(at).ok_or_else(|| format!("`%{name}` has one of the tokens' axes only"));
                    Ok(Operand::PerToken((arg, node?)))
                };
                spec.inputs.iter().zip(args).map(one).collect()
            }
            Op::Rope(_) => no("turns it by its token's position"),
            _ => no("does not treat every token alike"),
        }
    }

    /// What `node` only puts in another order or shape.
    pub fn same_elements(&self, node: Node) -> Option<Node> {
        let moves = match &self.f.values[node.0].def {
            Def::Op(Op::Reshape(_), _) => true,
            Def::Op(Op::Einsum(einsum), args) => {
                args.len() == 1 && einsum.spec.out.len() == einsum.spec.axes()
            }
            _ => false,
        };
        match self.operands(node).ok()?.as_slice() {
            [Operand::PerToken(before)] if moves => Some(*before),
            _ => None,
        }
    }

    /// `node`'s op for other tokens: the same but for the extents of tokens in attributes.
    pub fn for_tokens(&self, (value, place): Node, tokens: &Tokens) -> Op {
        let Def::Op(op, _) = &self.f.values[value].def else {
            unreachable!("a node that is recomputed is an op")
        };
        let put = |dims: &Dims| {
            let mut dims = dims.clone();
            for (axis, extent) in place.axes().into_iter().zip(tokens.extents(place)) {
                dims.0[axis] = extent;
            }
            dims
        };
        match op {
            Op::Reshape(op) => Reshape { shape: put(&op.shape) }.into(),
            Op::Full(op) => Full { shape: put(&op.shape), ..op.clone() }.into(),
            op => op.clone(),
        }
    }

    /// Bytes of one token; `None` if they are not known before the module runs.
    pub fn bytes(&self, (value, place): Node) -> Option<u64> {
        let ty = self.f.tensor(value)?;
        let own = (0..ty.rank()).filter(|axis| !place.axes().contains(axis));
        let elements = self.module.constant(&Dim::product(own.map(|axis| &ty.shape[axis])))?;
        u64::try_from(elements.checked_mul(ty.dtype.bytes())?).ok()
    }

    fn rank(&self, value: Value) -> usize {
        self.f.tensor(value).map_or(0, |ty| ty.rank())
    }

    /// An operand that must be the same for all tokens.
    fn same_always(&self, value: Value) -> Result<Operand, String> {
        if self.fixed[value.index()] {
            return Ok(Operand::Fixed(value));
        }
        Err(format!("it depends on `%{}`, which is not a weight", self.f.values[value].name))
    }

    /// An operand of an element-wise op, whose shape is aligned from the right.
    fn aligned(&self, value: Value, arg: Value, place: Place) -> Result<Operand, String> {
        let shape = &self.f.tensor(arg).expect("operands are tensors").shape;
        let lead = self.rank(value) - shape.len();
        let own = |axis: usize| axis.checked_sub(lead);
        let one = Dim::from(1);
        let stretched = place.axes().into_iter().all(|axis| own(axis).is_none_or(|axis| shape[axis] == one));
        if stretched && self.fixed[arg.index()] {
            return Ok(Operand::Fixed(arg));
        }
        let whole = place.moved(own).filter(|place| {
            let extents = self.tokens.extents(*place);
            place.axes().into_iter().zip(extents).all(|(axis, extent)| shape[axis] == extent)
        });
        match whole {
            Some(place) => Ok(Operand::PerToken((arg, place))),
            None => self.same_always(arg).and_then(|_| {
                Err(format!("`%{}` has one of the tokens' axes only", self.f.values[arg].name))
            }),
        }
    }

    /// Where the operand of a reshape to `value` has its tokens: as many elements lie before them as after it.
    fn before_reshape(&self, arg: Value, value: Value, place: Place) -> Option<Place> {
        let (old, new) = (&self.f.tensor(arg)?.shape, &self.f.tensor(value)?.shape);
        let before = |shape: &[Dim], axis: usize| Dim::product(&shape[..axis]);
        let find = |lead: Dim, extent: &Dim| {
            (0..old.len()).find(|&axis| old[axis] == *extent && before(old, axis) == lead)
        };
        let Tokens { batch, each } = self.tokens;
        let both = batch * each;
        // Batch and tokens next to each other, after `lead` elements.
        let split = |lead: Dim| {
            let at = find(lead, batch)?;
            (old.get(at + 1) == Some(each)).then_some(Place::Apart { batch: at, token: at + 1 })
        };
        match place {
            Place::Apart { batch: b, token: t } => {
                let apart = find(before(new, b), batch).zip(find(before(new, t), each));
                match apart {
                    Some((batch, token)) if batch != token => Some(Place::Apart { batch, token }),
                    _ if t == b + 1 => find(before(new, b), &both).map(Place::Together),
                    _ => None,
                }
            }
            Place::Together(axis) => {
                let lead = before(new, axis);
                find(lead.clone(), &both).map(Place::Together).or_else(|| split(lead))
            }
        }
    }

    /// Whether a value is more than zero for any row of finite numbers: a square's sum, say, with something added.
    fn is_positive(&self, value: Value) -> bool {
        let def = |value: Value| match &self.f.values[value].def {
            Def::Op(op, args) => Some((op, args.as_slice())),
            _ => None,
        };
        let Some((Op::Offset(offset), args)) = def(value) else { return false };
        let mut inner = args[0];
        while let Some((op, args)) = def(inner) {
            match op {
                Op::Mul(_) => return offset.by.get() > 0.0 && args[0] == args[1],
                Op::Sum(_) | Op::Mean(_) | Op::Max(_) | Op::Reshape(_) => inner = args[0],
                Op::Scale(scale) if scale.by.get() >= 0.0 => inner = args[0],
                Op::Exp(_) | Op::Sigmoid(_) => return offset.by.get() > 0.0,
                _ => return false,
            }
        }
        false
    }
}
