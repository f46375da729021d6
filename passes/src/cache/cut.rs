//! The fewest bytes a token that determine some rows: a minimum cut of the values that they are made of.
//!
//! A value can be kept at the price of its bytes, or computed again from its operands. What cannot be computed again
//! (an input, a rotated key) must be kept where it is needed. The cut is the one nearest to the rows, so that of equal
//! prices the one with the least to compute is taken, and the one that changes nothing before any other.

use super::tokens::{Node, Operand, Place, View};
use std::collections::{BTreeMap, VecDeque};

/// What to keep.
pub(super) struct Cut {
    /// The values, in the function's order.
    pub kept: Vec<Node>,
    /// Their bytes.
    pub bytes: u64,
    /// The values that cannot be computed again, and why, in the function's order.
    pub blocked: Vec<(Node, String)>,
}

/// The price of what cannot be kept.
const NEVER: u64 = u64::MAX / 4;

/// An edge of the flow's network; its reverse is the edge with the last bit of the number turned.
struct Edge {
    to: usize,
    left: u64,
}

#[derive(Default)]
struct Network {
    edges: Vec<Edge>,
    out: Vec<Vec<usize>>,
}

impl Network {
    fn node(&mut self) -> usize {
        self.out.push(Vec::new());
        self.out.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        for (from, to, left) in [(from, to, capacity), (to, from, 0)] {
            self.out[from].push(self.edges.len());
            self.edges.push(Edge { to, left });
        }
    }

    /// Pushes what one shortest path takes; `false` if there is none left.
    fn augment(&mut self, source: usize, sink: usize) -> bool {
        let mut came: Vec<Option<usize>> = vec![None; self.out.len()];
        let mut queue = VecDeque::from([source]);
        while let Some(at) = queue.pop_front() {
            for &edge in &self.out[at] {
                let Edge { to, left } = self.edges[edge];
                if left > 0 && to != source && came[to].is_none() {
                    came[to] = Some(edge);
                    queue.push_back(to);
                }
            }
        }
        let mut path = Vec::new();
        let mut at = sink;
        while at != source {
            let Some(edge) = came[at] else { return false };
            path.push(edge);
            at = self.edges[edge ^ 1].to;
        }
        let least = path.iter().map(|&edge| self.edges[edge].left).min().unwrap_or(0);
        for edge in path {
            self.edges[edge].left -= least;
            self.edges[edge ^ 1].left += least;
        }
        true
    }

    /// The nodes from which more could still flow to `sink`.
    fn reach(&self, sink: usize) -> Vec<bool> {
        let mut reach = vec![false; self.out.len()];
        reach[sink] = true;
        let mut stack = vec![sink];
        while let Some(at) = stack.pop() {
            for &edge in &self.out[at] {
                // The reverse of an edge out of here comes in.
                let from = self.edges[edge].to;
                if self.edges[edge ^ 1].left > 0 && !reach[from] {
                    reach[from] = true;
                    stack.push(from);
                }
            }
        }
        reach
    }
}

/// The cheapest values that determine `rows`.
pub(super) fn cheapest(view: &View<'_>, rows: &[Node]) -> Cut {
    let mut made: BTreeMap<Node, Result<Vec<Operand>, String>> = BTreeMap::new();
    let mut stack: Vec<Node> = rows.to_vec();
    while let Some(node) = stack.pop() {
        if made.contains_key(&node) {
            continue;
        }
        let operands = view.operands(node);
        for operand in operands.iter().flatten() {
            if let Operand::PerToken(node) = operand {
                stack.push(*node);
            }
        }
        made.insert(node, operands);
    }
    let mut network = Network::default();
    let (source, sink) = (network.node(), network.node());
    let ends: BTreeMap<Node, [usize; 2]> =
        made.keys().map(|&node| (node, [network.node(), network.node()])).collect();
    for (&node, operands) in &made {
        let [before, after] = ends[&node];
        // Rows are put in order by an einsum, which integers have not.
        let keepable = view
            .f
            .tensor(node.0)
            .is_some_and(|ty| ty.scales.is_none() && (ty.dtype.is_float() || node.1 == Place::FIRST));
        let price = view.bytes(node).filter(|_| keepable).unwrap_or(NEVER);
        network.edge(before, after, price);
        match operands {
            Err(_) => network.edge(source, before, NEVER),
            Ok(operands) => {
                for operand in operands {
                    if let Operand::PerToken(node) = operand {
                        network.edge(ends[node][1], before, NEVER);
                    }
                }
            }
        }
        if rows.contains(&node) {
            network.edge(after, sink, NEVER);
        }
    }
    while network.augment(source, sink) {}
    let reach = network.reach(sink);
    let is_cut = |node: &&Node| !reach[ends[*node][0]] && reach[ends[*node][1]];
    let mut kept: Vec<Node> = made.keys().filter(is_cut).copied().collect();
    // Of the same elements in another order, those that come first: they are the ones with a name of their own.
    for node in &mut kept {
        while let (false, Some(before)) = (rows.contains(node), view.same_elements(*node)) {
            *node = before;
        }
    }
    kept.sort();
    kept.dedup();
    let bytes = kept.iter().fold(0u64, |sum, &node| sum.saturating_add(view.bytes(node).unwrap_or(NEVER)));
    let blocked = made.into_iter().filter_map(|(node, operands)| Some((node, operands.err()?))).collect();
    Cut { kept, bytes, blocked }
}
