//! A model's parameters as one flat buffer: where each is, what it is at first, and how it lies in a checkpoint.
//!
//! A buffer is `f32[rows, 4096]`, parameters one after another, each from a multiple of 256 bytes on, with zeros between them.
//! It has three parts of whole rows: parameters that decay, others that are learned, and those that are not learned by
//! gradients (biases of routers). Gradients and moments have buffers alike, without the last part.

use super::config::{Kind, RunConfig};
use crate::engine::expert_name;
use crate::init::normal;
use crate::model::config::{Config, Role, WeightSpec};
use eva_ir::types::DType;
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, CheckpointError, TensorDecl};
use eva_runtime::{Executable, Part, Shared, Weight, Weights};
use half::bf16;
use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

/// Columns of a buffer.
pub const WIDTH: usize = 4096;

/// Elements that a parameter begins at a multiple of: 256 bytes.
const ALIGN: usize = 64;

/// How a parameter changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// By gradients, with weight decay.
    Decay,
    /// By gradients alone.
    Plain,
    /// Not by gradients.
    Frozen,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the module.
    pub name: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// How it changes.
    pub group: Group,
    /// Its first element in the buffer.
    pub offset: usize,
}

/// Where parameters are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// By group, and in each in the order they were given.
    pub params: Vec<Param>,
    /// The rows of each group.
    rows: [Range<usize>; 3],
}

impl Param {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its elements in a buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

impl Layout {
    /// A layout of parameters with these names, extents and groups.
    pub fn new(params: impl IntoIterator<Item = (String, Vec<usize>, Group)>) -> Self {
        let mut all: Vec<_> = params.into_iter().collect();
        all.sort_by_key(|(.., group)| *group);
        let (mut params, mut rows) = (Vec::with_capacity(all.len()), [0..0, 0..0, 0..0]);
        let mut all = all.into_iter().peekable();
        let mut end = 0usize;
        for (group, range) in [Group::Decay, Group::Plain, Group::Frozen].into_iter().zip(&mut rows) {
            range.start = end / WIDTH;
            while let Some((name, shape, group)) = all.next_if(|(.., of)| *of == group) {
                let offset = end.next_multiple_of(ALIGN);
                end = offset + shape.iter().product::<usize>();
                params.push(Param { name, shape, group, offset });
            }
            end = end.next_multiple_of(WIDTH);
            range.end = end / WIDTH;
        }
        Self { params, rows }
    }

    /// The rows of a group.
    pub fn rows(&self, group: Group) -> Range<usize> {
        self.rows[group as usize].clone()
    }

    /// The rows of all parameters that are learned by gradients: the first ones.
    pub fn learned(&self) -> usize {
        self.rows[Group::Plain as usize].end
    }

    /// All rows.
    pub fn all(&self) -> usize {
        self.rows[Group::Frozen as usize].end
    }

    /// How many numbers there are, without what fills up.
    pub fn elements(&self) -> usize {
        self.params.iter().map(Param::elements).sum()
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|param| param.name == name)
    }

    /// A buffer of `rows` rows of `dtype`, all zeros, on the device of `exe`.
    pub fn buffer(
        exe: &Executable,
        rows: usize,
        dtype: DType,
        what: &str,
    ) -> Result<Arc<Shared>, eva_runtime::Error> {
        let bytes = rows.checked_mul(WIDTH).and_then(|n| n.checked_mul(dtype.bytes() as usize));
        let bytes = bytes.ok_or_else(|| eva_runtime::Error::TooLarge(what.into()))?;
        Shared::zeroed(exe, bytes, what)
    }

    /// Rows of a buffer as a tensor.
    pub fn part(buffer: &Arc<Shared>, rows: Range<usize>, dtype: DType) -> Result<Part, eva_runtime::Error> {
        buffer.part(rows.start * WIDTH * dtype.bytes() as usize, dtype, &[rows.len(), WIDTH])
    }

    /// Every parameter in a buffer of all rows, as weights of the module's functions.
    pub fn weights(&self, buffer: &Arc<Shared>) -> Result<Weights, eva_runtime::Error> {
        let weight = |param: &Param| {
            let part = buffer.part(param.offset * 4, DType::F32, &param.shape)?;
            Ok((param.name.clone(), Arc::new(Weight::of_part(&part))))
        };
        self.params.iter().map(weight).collect()
    }

    /// The gradient of every parameter that has one, in a buffer of the learned rows, by the parameter's name.
    pub fn gradients(&self, buffer: &Arc<Shared>) -> Result<Vec<(String, Part)>, eva_runtime::Error> {
        let learned = self.params.iter().filter(|param| param.group != Group::Frozen);
        let part = |param: &Param| {
            Ok((param.name.clone(), buffer.part(param.offset * 4, DType::F32, &param.shape)?))
        };
        learned.map(part).collect()
    }
}

/// How each tensor of a checkpoint lies in a flat buffer.
pub struct Tensors {
    entries: Vec<Entry>,
}

struct Entry {
    spec: WeightSpec,
    /// Where its first element is.
    offset: usize,
}

impl Tensors {
    /// The tensors of `config` that are, or are part of, parameters of the layout. The copies of embedding and head that an MTP
    /// module has are the model's.
    pub fn new(config: &Config, layout: &Layout) -> Self {
        let mut places: HashMap<String, usize> = HashMap::new();
        for param in &layout.params {
            places.insert(param.name.clone(), param.offset);
            if let Some(&experts) = param.shape.first().filter(|_| expert_name(&param.name, 0).is_some()) {
                let size = param.elements() / experts.max(1);
                let parts = (0..experts).filter_map(|i| Some((expert_name(&param.name, i)?, i)));
                places.extend(parts.map(|(name, i)| (name, param.offset + i * size)));
            }
        }
        let head = if config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let specs = config.weights().into_iter();
        let has_mtp = layout.params.iter().any(|param| param.name.ends_with(".eh_proj.weight"));
        let entry = |spec: WeightSpec| {
            let copied = match spec.role {
                Role::Embedding if spec.mtp && has_mtp => Some("model.embed_tokens.weight"),
                Role::Head if spec.mtp && has_mtp => Some(head),
                _ => None,
            };
            let place = places.get(&spec.name).or_else(|| places.get(copied?));
            Some(Entry { offset: *place?, spec })
        };
        Self { entries: specs.filter_map(entry).collect() }
    }

    /// The extents of the tensor of this name, and where its elements are.
    pub fn place(&self, name: &str) -> Option<(&[usize], Range<usize>)> {
        let Entry { spec, offset } = self.entries.iter().find(|entry| entry.spec.name == name)?;
        Some((&spec.shape, *offset..offset + spec.shape.iter().product::<usize>()))
    }

    /// Numbers of a fresh model in a flat buffer: each tensor from the seed and its name alone, with this standard deviation;
    /// gains of norms 1, biases 0.
    pub fn fresh(&self, elements: usize, std: f64, seed: u64) -> Vec<f32> {
        let mut flat = vec![0.0; elements];
        for Entry { spec, offset } in &self.entries {
            let to = &mut flat[*offset..][..spec.shape.iter().product()];
            match spec.role {
                Role::Norm => to.fill(1.0),
                Role::LinearBias | Role::RouterBias => to.fill(0.0),
                // A copy has the numbers of what it is a copy of.
                Role::Embedding | Role::Head if spec.mtp => {}
                _ => normal(&spec.name, seed, std as f32, to),
            }
        }
        flat
    }

    /// Makes routers uneven: of `e` experts, the row of expert `i` gets `skew · (1 - 2i / (e - 1))` times the direction of the
    /// mean token embedding (of length 1), so that most tokens favour the first experts and shun the last.
    pub fn skew(&self, flat: &mut [f32], skew: f64) {
        let of = |role: Role| self.entries.iter().filter(move |entry| entry.spec.role == role);
        let Some(embedding) = of(Role::Embedding).find(|entry| !entry.spec.mtp) else { return };
        let [vocab, hidden] = embedding.spec.shape[..] else { return };
        let mut mean = vec![0f64; hidden];
        for row in flat[embedding.offset..][..vocab * hidden].chunks_exact(hidden) {
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        for Entry { spec, offset } in of(Role::Router) {
            let experts = spec.shape[0];
            for (i, row) in flat[*offset..][..experts * hidden].chunks_exact_mut(hidden).enumerate() {
                let share = 1.0 - 2.0 * i as f64 / experts.saturating_sub(1).max(1) as f64;
                let by = skew * share / length;
                row.iter_mut().zip(&mean).for_each(|(x, mean)| *x += (by * mean) as f32);
            }
        }
    }

    /// The numbers of a checkpoint in a flat buffer.
    pub fn read(&self, checkpoint: &Checkpoint, elements: usize) -> Result<Vec<f32>, CheckpointError> {
        let mut flat = vec![0.0; elements];
        for Entry { spec, offset } in &self.entries {
            let to = &mut flat[*offset..][..spec.shape.iter().product()];
            if let Some(tensor) = checkpoint.get(&spec.name) {
                tensor.copy_to_f32(to)?;
                checkpoint.release(&spec.name);
            }
        }
        Ok(flat)
    }

    /// What a checkpoint of them has, in this type; biases of routers are `f32`.
    pub fn declare(&self, dtype: DType) -> Vec<TensorDecl> {
        let declare = |Entry { spec, .. }: &Entry| TensorDecl {
            name: spec.name.clone(),
            dtype: match dtype {
                DType::Bf16 if spec.role != Role::RouterBias => CheckpointDType::Bf16,
                _ => CheckpointDType::F32,
            },
            shape: spec.shape.clone(),
        };
        self.entries.iter().map(declare).collect()
    }

    /// Writes tensor `i` of [`Tensors::declare`] from a flat buffer.
    pub fn write(
        &self,
        i: usize,
        dtype: CheckpointDType,
        flat: &[f32],
        sink: &mut dyn Write,
    ) -> io::Result<()> {
        let Entry { spec, offset } = &self.entries[i];
        let numbers = &flat[*offset..][..spec.shape.iter().product()];
        // A piece at a time, so that a large tensor is not held twice.
        for piece in numbers.chunks(1 << 16) {
            let bytes: Vec<u8> = match dtype {
                CheckpointDType::Bf16 => {
                    piece.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
                }
                _ => piece.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            sink.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// How parameters with gradients change, by their names.
pub struct Groups<'a> {
    run: &'a RunConfig,
    kinds: HashMap<String, Kind>,
}

impl<'a> Groups<'a> {
    /// Those of a run's model.
    pub fn new(run: &'a RunConfig, config: &Config) -> Self {
        let kind = |role| match role {
            Role::Norm => Some(Kind::Norm),
            Role::Embedding => Some(Kind::Embedding),
            Role::Head => Some(Kind::Head),
            Role::Router => Some(Kind::Router),
            _ => None,
        };
        let kinds = config.weights().into_iter();
        let kinds = kinds.filter_map(|spec| Some((spec.name, kind(spec.role)?)));
        Self { run, kinds: kinds.collect() }
    }

    /// How the parameter of this name changes.
    pub fn of(&self, name: &str) -> Group {
        match self.kinds.get(name) {
            Some(kind) if self.run.optimizer.no_decay.contains(kind) => Group::Plain,
            _ => Group::Decay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_router_follows_the_mean_embedding() {
        let text = include_str!("../../../tests/fixtures/v3-tiny/config.json");
        let config = Config::from_json(text).unwrap();
        let (vocab, hidden, experts) = (config.vocab, config.hidden, config.moe(1).unwrap().routed);
        let router = "model.layers.1.mlp.gate.weight";
        let layout = Layout::new([
            ("model.embed_tokens.weight".to_string(), vec![vocab, hidden], Group::Decay),
            (router.to_string(), vec![experts, hidden], Group::Decay),
        ]);
        let tensors = Tensors::new(&config, &layout);
        let before = tensors.fresh(layout.all() * WIDTH, 0.02, 5);
        let mut after = before.clone();
        tensors.skew(&mut after, 3.0);
        let table = layout.get("model.embed_tokens.weight").unwrap().range();
        assert_eq!(before[table.clone()], after[table.clone()]);
        let mean: Vec<f64> = (0..hidden)
            .map(|j| before[table.clone()].iter().skip(j).step_by(hidden).map(|x| f64::from(*x)).sum())
            .collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let rows = layout.get(router).unwrap().range();
        for (i, row) in after[rows.clone()].chunks(hidden).enumerate() {
            let old = &before[rows.start + i * hidden..][..hidden];
            let along: f64 =
                row.iter().zip(old).zip(&mean).map(|((new, old), x)| f64::from(new - old) * x / length).sum();
            let want = 3.0 - 6.0 * i as f64 / (experts - 1) as f64;
            assert!((along - want).abs() < 1e-4, "expert {i}: {along}, not {want}");
        }
    }

    #[test]
    fn groups_are_rows_and_parameters_are_aligned() {
        let param = |name: &str, n: usize, group| (name.to_string(), vec![n], group);
        let layout = Layout::new([
            param("a", 100, Group::Plain),
            param("b", 5000, Group::Decay),
            param("c", 3, Group::Frozen),
            param("d", 65, Group::Decay),
            param("e", 4032, Group::Plain),
        ]);
        let places: Vec<(&str, usize)> =
            layout.params.iter().map(|param| (param.name.as_str(), param.offset)).collect();
        let expected = [("b", 0), ("d", 5056), ("a", 2 * WIDTH), ("e", 2 * WIDTH + 128), ("c", 4 * WIDTH)];
        assert_eq!(places, expected);
        assert_eq!(
            [Group::Decay, Group::Plain, Group::Frozen].map(|group| layout.rows(group)),
            [0..2, 2..4, 4..5]
        );
        assert_eq!((layout.learned(), layout.all(), layout.elements()), (4, 5, 9200));
        assert_eq!(layout.get("e").unwrap().range(), 2 * WIDTH + 128..2 * WIDTH + 4160);
        let none = Layout::new([param("x", 1, Group::Frozen)]);
        assert_eq!((none.learned(), none.all(), none.rows(Group::Decay)), (0, 1, 0..0));
    }
}
