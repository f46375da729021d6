//! Kernels, which ops share one, and memory over time.

use super::graph::Graph;
use super::value;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, Module, Value};
use eva_ir::kernel::Access;
use eva_ir::lower::Lowering;
use eva_passes::lower::fuse::Fusion;
use eva_passes::plan::{self, Base, FuncPlan, Plan};
use eva_passes::target::Machine;
use petgraph::unionfind::UnionFind;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// A kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// How many programs there are along each axis: the axis' extent, and how much of it a program has.
    pub grid: Vec<(String, i64)>,
    /// How many programs that makes.
    pub programs: Option<i64>,
    /// Its buffers.
    pub buffers: Vec<Slot>,
    /// The kernel IR, in the tile phase.
    pub text: String,
    /// The ops that it computes: graph and node.
    pub ops: Vec<(usize, usize)>,
}

/// A buffer of a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Slot {
    /// The tensor's name.
    pub name: String,
    /// The elements' type and the extents.
    pub ty: String,
    /// Whether the kernel writes it.
    pub writes: bool,
}

/// Memory of a body over time.
#[derive(Clone, Debug, Serialize)]
pub struct Arena {
    /// The function.
    pub function: String,
    /// The body, if it is not the function's own.
    pub body: Option<String>,
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// Where buffers lie; nothing if an extent has no value.
    pub buffers: Vec<Buffer>,
    /// Bytes in all, called functions' left out.
    pub bytes: Option<usize>,
    /// Bytes with what the function that needs most of those it calls needs.
    pub with_calls: Option<usize>,
}

/// Something that happens.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What it computes.
    pub name: String,
    /// The kernel, if one is launched.
    pub kernel: Option<usize>,
    /// The function, if one is called.
    pub call: Option<String>,
    /// Whether it is for these extents.
    pub runs: bool,
}

/// A buffer over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Buffer {
    /// The tensor's name.
    pub name: String,
    /// The first step that uses it.
    pub first: usize,
    /// The last one.
    pub last: usize,
    /// Where it starts in the arena, in bytes.
    pub offset: usize,
    /// How many bytes it has.
    pub bytes: usize,
}

/// The kernels and the memory of `plan`, which is of `module` for `machine`; the numbers of kernels go into `graphs`, of which `last`
/// are the module's bodies in order.
pub(super) fn of_plan(
    module: &Module,
    plan: &Plan,
    machine: &Machine,
    sizes: &BTreeMap<Sym, i64>,
    last: &[usize],
    graphs: &mut [Graph],
) -> (Vec<Kernel>, Vec<Arena>) {
    let mut kernels: Vec<Kernel> = plan.tiles.iter().map(|(_, kernel)| of_kernel(kernel, sizes)).collect();
    let mut arenas = Vec::new();
    let size_of = |dim: &Dim| value(dim, sizes);
    let bodies = module.funcs.iter().flat_map(|(func, f)| {
        let plans = plan.funcs[func].bodies();
        f.bodies().zip(plans).map(move |((body, _), plan)| (func, f, body, plan))
    });
    for ((func, f, body, steps), &number) in bodies.zip(last) {
        let graph = &mut graphs[number];
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for step in &steps.steps {
            if let plan::Step::Launch { kernel, name, .. } = step {
                by_name.entry(name.as_str()).or_default().push(kernel.index());
            }
        }
        for (node, found) in owners(module, &f.name, body, &by_name, machine).into_iter().enumerate() {
            found.iter().for_each(|&kernel| kernels[kernel].ops.push((number, node)));
            graph.nodes[node].kernels = found;
        }
        let with_calls = (graph.body.is_none()).then(|| plan.arena_bytes(func, &size_of)).flatten();
        arenas.push(Arena {
            function: f.name.clone(),
            body: graph.body.clone(),
            with_calls,
            ..arena(plan, steps, &size_of)
        });
    }
    (kernels, arenas)
}

fn of_kernel(kernel: &eva_ir::kernel::Kernel, sizes: &BTreeMap<Sym, i64>) -> Kernel {
    let programs = kernel.grid.iter().try_fold(1i64, |n, axis| {
        let extent = value(&axis.extent, sizes)?.max(0);
        n.checked_mul(extent / axis.tile + i64::from(extent % axis.tile > 0))
    });
    let slot = |buf: &eva_ir::kernel::BufData| {
        let shape: Vec<String> = buf.shape.iter().map(Dim::to_string).collect();
        Slot {
            name: buf.name.clone(),
            ty: format!("{}[{}]", buf.dtype, shape.join(", ")),
            writes: buf.access == Access::Write,
        }
    };
    Kernel {
        name: kernel.name.clone(),
        grid: kernel.grid.iter().map(|axis| (axis.extent.to_string(), axis.tile)).collect(),
        programs,
        buffers: kernel.bufs.iter().map(|(_, buf)| slot(buf)).collect(),
        text: kernel.to_string(),
        ops: Vec::new(),
    }
}

/// The kernels that compute each value of `body`, of those that the function launches by name.
///
/// Ops that share a kernel are connected: an op with its own loops and the element-wise ops behind it, and values that
/// are not stored with what they are computed for.
fn owners(
    module: &Module,
    function: &str,
    body: &Function,
    by_name: &HashMap<&str, Vec<usize>>,
    machine: &Machine,
) -> Vec<Vec<usize>> {
    let fusion = Fusion::new(module, body, machine);
    let uses = body.uses();
    let mut behind: UnionFind<usize> = UnionFind::new(body.values.len());
    for (value, _) in body.values.iter() {
        for &next in fusion.chain_of(value).unwrap_or_default() {
            behind.union(value.index(), next.index());
        }
        if let Some(next) = fusion.quantized(value) {
            behind.union(value.index(), next.index());
        }
    }
    // The last value of each group of ops has the kernel's name; some extents have kernels of their own.
    let mut named: HashMap<usize, Vec<usize>> = HashMap::new();
    for (value, data) in body.values.iter() {
        let name = format!("{function}.{}", data.name);
        let variant = |other: &&str| {
            other.strip_prefix(name.as_str()).is_some_and(|rest| {
                let number = rest.strip_prefix(".in").or(rest.strip_prefix('.'));
                rest.is_empty() || number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
            })
        };
        // Most values have a kernel of exactly their name.
        let found: Vec<usize> = match by_name.contains_key(name.as_str()) || !is_computed(&data.def) {
            false => continue,
            true => {
                let mut names: Vec<&str> = by_name.keys().copied().filter(variant).collect();
                names.sort_unstable();
                names.iter().flat_map(|name| by_name[name].iter().copied()).collect()
            }
        };
        named.entry(behind.find(value.index())).or_default().extend(found);
    }
    let mut owners: Vec<Vec<usize>> = vec![Vec::new(); body.values.len()];
    for (value, data) in body.values.iter().rev() {
        let Def::Op(op, _) = &data.def else { continue };
        let mut found = named.get(&behind.find(value.index())).cloned().unwrap_or_default();
        let views = matches!(op.lowering(), Lowering::Alias | Lowering::Constant);
        if found.is_empty() && !views && !fusion.is_stored(value) {
            let users: &[(Value, usize)] = uses.of(value);
            found = users.iter().flat_map(|(user, _)| owners[user.index()].iter().copied()).collect();
        }
        found.sort_unstable();
        found.dedup();
        owners[value.index()] = found;
    }
    owners
}

/// Whether kernels compute values of this definition.
fn is_computed(def: &Def) -> bool {
    matches!(def, Def::Op(..))
}

fn arena(plan: &Plan, f: &FuncPlan, size_of: &dyn Fn(&Dim) -> Option<i64>) -> Arena {
    let step = |step: &plan::Step| match step {
        plan::Step::Launch { kernel, name, when, .. } => Step {
            name: name.clone(),
            kernel: Some(kernel.index()),
            call: None,
            runs: when.as_ref().is_none_or(|when| when.holds(size_of) != Some(false)),
        },
        plan::Step::Call { func, name, .. } => {
            Step { name: name.clone(), kernel: None, call: Some(plan.funcs[*func].name.clone()), runs: true }
        }
    };
    let layout = f.layout(size_of);
    let bytes = layout.as_ref().map(|layout| layout.bytes);
    let buffer = |(base, at): (&Base, &Option<usize>)| {
        let (Base::Temp(temp), Some(offset)) = (base, *at) else { return None };
        let used = temp.when.as_ref().is_none_or(|when| when.holds(size_of) != Some(false));
        let bytes = usize::try_from(size_of(&temp.bytes)?).ok().filter(|&n| used && n > 0)?;
        Some(Buffer { name: temp.name.clone(), first: temp.first, last: temp.last, offset, bytes })
    };
    let buffers = layout.iter().flat_map(|layout| f.bases.iter().zip(&layout.offsets).filter_map(buffer));
    Arena {
        function: String::new(),
        body: None,
        steps: f.steps.iter().map(step).collect(),
        buffers: buffers.collect(),
        bytes,
        with_calls: None,
    }
}
