//! [`Graphs`]: the launches of calls, each started by the driver as one.
//!
//! A stream takes about 4 µs for a launch and a graph 1 µs, which is what decoding a token with a thousand launches is
//! made of. A graph keeps its launches' arguments: a call of the same sizes is started as it is, and for one that
//! differs in some (lengths that have grown by one) only those are changed.

use super::device::Gpu;
use super::error::{CudaError, driver};
use super::launch::{Launch, of_kernel};
use super::module::Loaded;
use cudarc::driver::sys;
use std::sync::Arc;

/// How many graphs are kept.
const KEPT: usize = 4;

/// Graphs of calls, by what tells calls apart; the one used last comes last.
pub(super) struct Graphs<K> {
    graphs: Vec<(K, Graph)>,
}

impl<K: PartialEq + Clone> Graphs<K> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { graphs: Vec::new() }
    }

    /// Starts the launches of a call as a graph: the one of `key`, one that is changed to it, or a new one.
    ///
    /// # Safety
    /// See [`Graph::start`].
    pub(super) unsafe fn start(
        &mut self,
        key: &K,
        gpu: &Arc<Gpu>,
        kernels: &[Loaded],
        launches: &[Launch],
    ) -> Result<(), CudaError> {
        if let Some(at) = self.graphs.iter().position(|(have, _)| have == key) {
            self.graphs[at..].rotate_left(1);
        } else {
            let differences: Vec<Option<usize>> =
                self.graphs.iter().map(|(_, graph)| differences(&graph.launches, launches)).collect();
            let graph = match choose(&differences, launches.len()) {
                Choice::New => Graph::new(gpu, kernels, launches)?,
                Choice::Replace(at) => {
                    self.graphs.remove(at);
                    Graph::new(gpu, kernels, launches)?
                }
                Choice::Update(at) => {
                    // One that fails half changed is not put back.
                    let (_, mut graph) = self.graphs.remove(at);
                    graph.update(kernels, launches)?;
                    graph
                }
            };
            self.graphs.push((key.clone(), graph));
        }
        let (_, graph) = self.graphs.last().expect("it was found, or pushed, above");
        // SAFETY: the caller's.
        unsafe { graph.start() }
    }
}

/// Where the graph of a new call comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// It is made.
    New,
    /// It is made, and this one, used longest ago, goes.
    Replace(usize),
    /// This one is changed.
    Update(usize),
}

/// Chooses for a call of `launches` launches, of which each graph has so many that differ (`None`: it cannot become
/// the call's). One that differs in less than half is changed, since it is of a call that goes on so; otherwise calls
/// of several kinds take turns, and each has a graph of its own while there is room.
fn choose(differences: &[Option<usize>], launches: usize) -> Choice {
    let last_first = || differences.iter().enumerate().rev();
    let near = last_first().find(|(_, n)| n.is_some_and(|n| 2 * n < launches));
    match near {
        Some((at, _)) => Choice::Update(at),
        None if differences.len() < KEPT => Choice::New,
        None => differences.iter().position(Option::is_some).map_or(Choice::Replace(0), Choice::Update),
    }
}

/// How many launches of `new` differ from those of `old`; `None` if they are not of the same kernels in the same order.
fn differences(old: &[Launch], new: &[Launch]) -> Option<usize> {
    let pairs = || old.iter().zip(new);
    let alike = old.len() == new.len() && pairs().all(|(old, new)| old.kernel == new.kernel);
    alike.then(|| pairs().filter(|(old, new)| old != new).count())
}

/// The launches of a call, one after the other.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    graph: sys::CUgraph,
    instance: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
    launches: Vec<Launch>,
}

// SAFETY: the driver's handles may be used from any thread whose current context is the GPU's, one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// A graph of these launches of `kernels`.
    pub(super) fn new(gpu: &Arc<Gpu>, kernels: &[Loaded], launches: &[Launch]) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut graph = Self {
            gpu: gpu.clone(),
            graph: std::ptr::null_mut(),
            instance: std::ptr::null_mut(),
            nodes: Vec::with_capacity(launches.len()),
            launches: launches.to_vec(),
        };
        // SAFETY: the handle is written, and destroyed in `drop`.
        unsafe { driver!(cuGraphCreate(&mut graph.graph, 0)) }?;
        for launch in launches {
            let kernel = &kernels[launch.kernel];
            let mut parameters = launch.parameters();
            let node = launch.node(kernel, &mut parameters);
            let before = graph.nodes.last();
            let (first, n) =
                (before.map_or(std::ptr::null(), std::ptr::from_ref), usize::from(before.is_some()));
            let mut handle = std::ptr::null_mut();
            // SAFETY: the node waits for the one before; the driver copies the parameters, which are the kernel's.
            let added =
                unsafe { driver!(cuGraphAddKernelNode_v2(&mut handle, graph.graph, first, n, &node)) };
            added.map_err(|e| of_kernel(e, &kernel.name))?;
            graph.nodes.push(handle);
        }
        // SAFETY: the handle is written, and destroyed in `drop`.
        unsafe { driver!(cuGraphInstantiateWithFlags(&mut graph.instance, graph.graph, 0)) }?;
        Ok(graph)
    }

    /// Makes the graph one of these launches, which are of the same kernels in the same order.
    fn update(&mut self, kernels: &[Loaded], launches: &[Launch]) -> Result<(), CudaError> {
        self.gpu.bind()?;
        for ((&handle, old), new) in self.nodes.iter().zip(&mut self.launches).zip(launches) {
            if old == new {
                continue;
            }
            let kernel = &kernels[new.kernel];
            let mut parameters = new.parameters();
            let node = new.node(kernel, &mut parameters);
            // SAFETY: the node is of this graph and of the same kernel; the driver copies the parameters.
            let set = unsafe { driver!(cuGraphExecKernelNodeSetParams_v2(self.instance, handle, &node)) };
            set.map_err(|e| of_kernel(e, &kernel.name))?;
            old.clone_from(new);
        }
        Ok(())
    }

    /// Starts the launches.
    ///
    /// # Safety
    /// The buffers are as large as the kernels need until they are done.
    pub(super) unsafe fn start(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the instance lives as long as this value, and the driver keeps it until it is done.
        unsafe { driver!(cuGraphLaunch(self.instance, self.gpu.stream)) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_err() {
            return;
        }
        // SAFETY: the handles are this value's own, and nothing that was started is running any more.
        unsafe {
            if !self.instance.is_null() {
                sys::cuGraphExecDestroy(self.instance);
            }
            if !self.graph.is_null() {
                sys::cuGraphDestroy(self.graph);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_goes_on_changes_its_graph() {
        assert_eq!(choose(&[], 9), Choice::New);
        assert_eq!(choose(&[Some(4)], 9), Choice::Update(0));
        assert_eq!(choose(&[Some(2), Some(4)], 9), Choice::Update(1), "the one used last");
        assert_eq!(choose(&[Some(4), Some(5)], 9), Choice::Update(0));
    }

    #[test]
    fn calls_that_take_turns_have_graphs_of_their_own() {
        assert_eq!(choose(&[Some(5)], 9), Choice::New);
        assert_eq!(choose(&[None, Some(9), Some(5)], 9), Choice::New);
        assert_eq!(choose(&[None, Some(9), Some(5), Some(7)], 9), Choice::Update(1), "the oldest that can");
        assert_eq!(choose(&[None; 4], 9), Choice::Replace(0));
    }

    #[test]
    fn launches_of_other_kernels_are_another_graph() {
        let launch = |kernel, blocks| Launch { kernel, blocks, words: vec![1, 2], maps: vec![] };
        let old = [launch(0, 3), launch(2, 5), launch(1, 7)];
        assert_eq!(differences(&old, &old), Some(0));
        assert_eq!(differences(&old, &[launch(0, 3), launch(2, 6), launch(1, 8)]), Some(2));
        assert_eq!(differences(&old, &[launch(0, 3), launch(1, 5), launch(2, 7)]), None);
        assert_eq!(differences(&old, &old[..2]), None);
        assert_eq!(differences(&[], &[]), Some(0));
    }
}
