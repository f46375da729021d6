//! Choosing one term for each class, so that the whole function is cheapest, each value computed once.
//!
//! Class by class first: a class's cost is that of the set of classes it needs. Keeping the set, and not a sum,
//! counts a shared value once. That misses changes that pay only together (a value that several users would share
//! costs more than any one of them saves), so then terms are switched, one class or all users of one class at a
//! time, as long as the whole gets cheaper.

use super::facts::EGraph;
use super::term::Term;
use egg::{Id, Language};
use std::collections::{BTreeMap, HashMap};

/// How much cheaper something must be to count: less is rounding.
const CHEAPER: f64 = 1.0 - 1e-9;

/// How often all switches are tried at most.
const ROUNDS: usize = 8;

/// One term for every class that is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// The chosen terms of the classes that the roots need, with canonical children, by canonical class.
    pub terms: HashMap<Id, Term>,
}

struct Node<'a> {
    term: &'a Term,
    cost: f64,
    children: Vec<usize>,
}

/// The classes, densely numbered, each with its terms.
struct Choices<'a> {
    classes: Vec<Id>,
    nodes: Vec<Vec<Node<'a>>>,
    roots: Vec<usize>,
}

/// The cheapest way to compute `roots`.
///
/// Of equally cheap terms, one of `original` is taken (canonical terms of the function before rewriting).
/// `None` if every way makes a value need itself.
pub fn cheapest(
    egraph: &EGraph,
    roots: &[Id],
    original: &HashMap<Id, Term>,
    cost: &dyn Fn(&Term) -> f64,
) -> Option<Selection> {
    let mut classes: Vec<Id> = egraph.classes().map(|class| class.id).collect();
    classes.sort();
    let number: HashMap<Id, usize> = classes.iter().enumerate().map(|(i, &id)| (id, i)).collect();
    let node = |term| -> Node {
        let mut children: Vec<usize> =
            Language::children(term).iter().map(|&id| number[&egraph.find(id)]).collect();
        children.sort();
        children.dedup();
        Node { term, cost: cost(term), children }
    };
    let mut nodes = Vec::new();
    for &id in &classes {
        let is_original = |term: &Term| original.get(&id) == Some(&canonical(egraph, term));
        let mut terms: Vec<&Term> = egraph[id].nodes.iter().collect();
        terms.sort_by_key(|term| !is_original(term));
        nodes.push(terms.into_iter().map(node).collect::<Vec<_>>());
    }
    let roots: Vec<usize> = roots.iter().map(|&id| number[&egraph.find(id)]).collect();
    let choices = Choices { classes, nodes, roots };
    let mut chosen = choices.by_class()?;
    choices.improve(&mut chosen)?;
    let mut terms = HashMap::new();
    let mut needed = choices.roots.clone();
    while let Some(class) = needed.pop() {
        let node = &choices.nodes[class][chosen[class]];
        if terms.insert(choices.classes[class], canonical(egraph, node.term)).is_none() {
            needed.extend(&node.children);
        }
    }
    Some(Selection { terms })
}

/// The term with its children's present ids.
pub(super) fn canonical(egraph: &EGraph, term: &Term) -> Term {
    term.clone().map_children(|id| egraph.find(id))
}

impl Choices<'_> {
    /// The best term of each class by itself; `usize::MAX` where there is none.
    fn by_class(&self) -> Option<Vec<usize>> {
        let words = self.classes.len().div_ceil(64);
        let mut chosen = vec![usize::MAX; self.classes.len()];
        let mut needs: Vec<Vec<u64>> = vec![Vec::new(); self.classes.len()];
        let mut totals = vec![f64::INFINITY; self.classes.len()];
        let order = self.operands_first();
        for _ in 0..=self.classes.len() {
            let mut changed = false;
            for &class in &order {
                for (i, node) in self.nodes[class].iter().enumerate() {
                    if node.children.iter().any(|&child| chosen[child] == usize::MAX) {
                        continue;
                    }
                    let mut set = vec![0u64; words];
                    for &child in &node.children {
                        set.iter_mut().zip(&needs[child]).for_each(|(a, b)| *a |= b);
                    }
                    if set[class / 64] >> (class % 64) & 1 == 1 {
                        continue; // It would need itself.
                    }
                    let cost = |class: usize| self.nodes[class][chosen[class]].cost;
                    let total = node.cost + members(&set).map(cost).sum::<f64>();
                    if chosen[class] == usize::MAX || total < totals[class] * CHEAPER {
                        set[class / 64] |= 1 << (class % 64);
                        (chosen[class], needs[class], totals[class]) = (i, set, total);
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        self.roots.iter().all(|&root| chosen[root] != usize::MAX).then_some(chosen)
    }

    /// The classes, each after those that its terms need, but for cycles: so that one pass settles nearly all.
    fn operands_first(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.classes.len());
        let mut seen = vec![false; self.classes.len()];
        for class in 0..self.classes.len() {
            let mut stack = vec![(class, false)];
            while let Some((class, children_done)) = stack.pop() {
                if children_done {
                    order.push(class);
                } else if !std::mem::replace(&mut seen[class], true) {
                    stack.push((class, true));
                    let children = self.nodes[class].iter().flat_map(|node| &node.children);
                    stack.extend(children.map(|&child| (child, false)));
                }
            }
        }
        order
    }

    /// Makes the switches that pay; the total afterwards, or `None` if a value needs itself.
    fn improve(&self, chosen: &mut [usize]) -> Option<f64> {
        let mut best = self.total(chosen)?;
        let switches = self.switches();
        let mut uses = self.uses(chosen);
        for _ in 0..ROUNDS {
            let mut better = false;
            for switch in &switches {
                let old: Vec<_> = switch.iter().map(|&(class, _)| (class, chosen[class])).collect();
                if old == *switch {
                    continue;
                }
                if self.apply(switch, chosen, &mut uses) < best * (CHEAPER - 1.0) {
                    match self.total(chosen).filter(|&total| total < best * CHEAPER) {
                        Some(total) => (best, better) = (total, true),
                        None => {
                            old.iter().for_each(|&(class, i)| chosen[class] = i);
                            uses = self.uses(chosen);
                        }
                    }
                } else {
                    self.apply(&old, chosen, &mut uses);
                }
            }
            if !better {
                break;
            }
        }
        Some(best)
    }

    /// What may be switched: each class that has a choice, and all users of a class that have one.
    fn switches(&self) -> Vec<Vec<(usize, usize)>> {
        let mut switches: Vec<Vec<(usize, usize)>> = Vec::new();
        let mut users: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (class, nodes) in self.nodes.iter().enumerate().filter(|(_, nodes)| nodes.len() > 1) {
            for (i, node) in nodes.iter().enumerate() {
                switches.push(vec![(class, i)]);
                for &child in &node.children {
                    let users = users.entry(child).or_default();
                    if users.last().is_none_or(|&(user, _)| user != class) {
                        users.push((class, i));
                    }
                }
            }
        }
        switches.extend(users.into_values().filter(|users| users.len() > 1));
        switches
    }

    /// How often each class is used, as chosen; zero if it is not needed.
    fn uses(&self, chosen: &[usize]) -> Vec<usize> {
        let mut uses = vec![0; self.classes.len()];
        for &root in &self.roots {
            self.count(root, true, chosen, &mut uses);
        }
        uses
    }

    /// Uses a class once more, or once less; the change of cost.
    fn count(&self, class: usize, more: bool, chosen: &[usize], uses: &mut [usize]) -> f64 {
        let mut change = 0.0;
        let mut stack = vec![class];
        while let Some(class) = stack.pop() {
            let before = uses[class];
            uses[class] = if more { before + 1 } else { before.saturating_sub(1) };
            let came_or_went = if more { before == 0 } else { before == 1 };
            if let (true, Some(node)) = (came_or_went, self.nodes[class].get(chosen[class])) {
                change += if more { node.cost } else { -node.cost };
                stack.extend(&node.children);
            }
        }
        change
    }

    /// Makes a switch; the change of cost.
    fn apply(&self, switch: &[(usize, usize)], chosen: &mut [usize], uses: &mut [usize]) -> f64 {
        let mut change = 0.0;
        for &(class, i) in switch {
            let old = std::mem::replace(&mut chosen[class], i);
            if uses[class] == 0 || old == i {
                continue;
            }
            let (old, new) = (&self.nodes[class][old], &self.nodes[class][i]);
            change += new.cost - old.cost;
            change += new.children.iter().map(|&c| self.count(c, true, chosen, uses)).sum::<f64>();
            change += old.children.iter().map(|&c| self.count(c, false, chosen, uses)).sum::<f64>();
        }
        change
    }

    /// The cost of the roots, each class once; `None` if a class would need itself or has no term.
    fn total(&self, chosen: &[usize]) -> Option<f64> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            No,
            Open,
            Done,
        }
        let mut seen = vec![Seen::No; self.classes.len()];
        let mut stack: Vec<(usize, usize)> = Vec::new();
        let mut sum = 0.0;
        for &root in &self.roots {
            stack.push((root, 0));
            while let Some((class, next)) = stack.pop() {
                let node = self.nodes[class].get(chosen[class])?;
                if next == 0 {
                    match seen[class] {
                        Seen::Done => continue,
                        Seen::Open => return None,
                        Seen::No => seen[class] = Seen::Open,
                    }
                }
                match node.children.get(next) {
                    Some(&child) => {
                        stack.push((class, next + 1));
                        if seen[child] == Seen::Open {
                            return None;
                        }
                        if seen[child] == Seen::No {
                            stack.push((child, 0));
                        }
                    }
                    None => {
                        seen[class] = Seen::Done;
                        sum += node.cost;
                    }
                }
            }
        }
        Some(sum)
    }
}

/// The indices of the bits that are set.
fn members(set: &[u64]) -> impl Iterator<Item = usize> {
    set.iter().enumerate().flat_map(|(i, &word)| {
        let mut word = word;
        std::iter::from_fn(move || {
            let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
            word &= word - 1;
            Some(i * 64 + bit)
        })
    })
}
