//! Which states are replaced by what, in every function at once.

use super::cut::{Cut, cheapest};
use super::tokens::{Node, Operand, Place, Tokens, View, fixed};
use eva_ir::diag::Loc;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value};
use eva_ir::ops::Op;
use eva_ir::types::TensorType;
use eva_ir::verify::{StateResults, state_results};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

/// States of one function that others take the place of.
pub(super) struct Group {
    /// The states that go, in order.
    pub old: Vec<Value>,
    /// Those that come.
    pub new: Vec<NewState>,
    /// What the old states' rows are made of, written out, so that functions that share states can be compared.
    pub key: String,
    pub made: Made,
}

/// A state that comes.
pub(super) struct NewState {
    pub name: String,
    pub ty: TensorType,
}

/// Where the states of a [`Group`] are written.
pub(super) enum Made {
    /// In this function.
    Here(Here),
    /// In functions that it calls.
    InCalls,
}

/// States that are written in this function.
pub(super) struct Here {
    pub new: Tokens,
    pub cached: Tokens,
    pub start: Value,
    /// What is kept, and in which state.
    pub kept: Vec<(Node, Kept)>,
    /// The writes that go, with their rows.
    pub writes: Vec<(Value, Value)>,
}

/// Where a value that is kept is found.
#[derive(Clone, Copy)]
pub(super) enum Kept {
    /// In the new state of this number.
    New(usize),
    /// In a state that stays, after this write.
    Old(Value),
}

/// A state that stays as it was written, and why.
pub(super) struct Stays {
    pub state: Value,
    pub why: String,
    /// The value that is to blame, if there is one.
    pub value: Option<(String, Option<Loc>)>,
}

/// The decisions for one function.
#[derive(Default)]
pub(super) struct Decision {
    pub groups: Vec<Group>,
    /// The group that each state which goes is in.
    pub of: BTreeMap<Value, usize>,
    pub stays: Vec<Stays>,
    /// The state that each value is a version of.
    pub versions: BTreeMap<Value, Value>,
    updates: BTreeMap<Value, Vec<Update>>,
}

/// What updates a state.
#[derive(Clone, Copy)]
enum Update {
    Op(Value),
    Call(Func, Value, usize),
}

/// A state, the op that writes it, and the rows that it writes.
type Write = (Value, Value, Value);

/// States that must stay, as functions and parameters, with the reason.
type Blocked = BTreeMap<(Func, Value), String>;

/// Decides for all functions.
pub(super) fn decide(module: &Module) -> Arena<Func, Decision> {
    let tables = state_results(module);
    let mut blocked = Blocked::new();
    loop {
        let mut decisions: Arena<Func, Decision> = Arena::default();
        let mut found = Blocked::new();
        for (func, f) in module.funcs.iter() {
            let d = Deciding { module, func, f, tables: &tables, decisions: &decisions, blocked: &blocked };
            let decision = d.run(&mut found);
            decisions.push(decision);
        }
        disagreements(module, &decisions, &mut found);
        found.retain(|place, _| !blocked.contains_key(place));
        if found.is_empty() {
            return decisions;
        }
        blocked.extend(found);
    }
}

struct Deciding<'a> {
    module: &'a Module,
    func: Func,
    f: &'a Function,
    tables: &'a Arena<Func, StateResults>,
    decisions: &'a Arena<Func, Decision>,
    blocked: &'a Blocked,
}

impl Deciding<'_> {
    fn run(&self, found: &mut Blocked) -> Decision {
        let mut d = Decision::default();
        self.follow(&mut d);
        let states: Vec<Value> = super::caches(self.module, self.f).collect();
        self.written_here(&states, &mut d);
        self.written_in_calls(&states, &mut d, found);
        d
    }

    /// Finds the versions and the updates of each state.
    fn follow(&self, d: &mut Decision) {
        for (value, data) in self.f.values.iter() {
            match &data.def {
                Def::Param(ParamKind::State) => drop(d.versions.insert(value, value)),
                Def::Param(_) => {}
                Def::Op(Op::Get(get), args) => {
                    let Def::Call(callee, given) = &self.f.values[args[0]].def else { continue };
                    let at = Some(get.index as usize);
                    if let Some((param, _)) = self.tables[*callee].iter().find(|(_, result)| *result == at)
                        && let Some(&state) = d.versions.get(&given[param.index()])
                    {
                        d.versions.insert(value, state);
                    }
                }
                Def::Op(op, args) => {
                    if op.updates_state()
                        && let Some(&state) = d.versions.get(&args[0])
                    {
                        d.versions.insert(value, state);
                        d.updates.entry(state).or_default().push(Update::Op(value));
                    }
                }
                Def::Call(callee, args) => {
                    for (param, _) in &self.tables[*callee] {
                        let Some(&state) = d.versions.get(&args[param.index()]) else { continue };
                        let update = Update::Call(*callee, value, param.index());
                        d.updates.entry(state).or_default().push(update);
                        if data.ty.tensor().is_some() {
                            d.versions.insert(value, state);
                        }
                    }
                }
            }
        }
    }

    /// The states that one `cache_write` of this function updates: those with the same tokens are looked at together.
    fn written_here(&self, states: &[Value], d: &mut Decision) {
        let mut sets: Vec<(Here, Vec<Write>)> = Vec::new();
        let fixed = fixed(self.f);
        for &state in states {
            let updates = d.updates.get(&state).map_or(&[][..], Vec::as_slice);
            let mut stays = |why: &str| {
                d.stays.push(Stays { state, why: why.into(), value: None });
            };
            let write = match updates {
                [Update::Op(write)] => *write,
                [Update::Op(_), _, ..] => {
                    stays("it is written more than once");
                    continue;
                }
                _ => continue,
            };
            if !self.f.alternatives.is_empty() {
                stays("the function has alternatives already");
                continue;
            }
            if self.f.tensor(state).is_some_and(|ty| ty.scales.is_some()) {
                stays("it is 8-bit floats already");
                continue;
            }
            let Def::Op(Op::CacheWrite(_), args) = &self.f.values[write].def else {
                stays("it is in pages already");
                continue;
            };
            if let Some(why) = self.blocked.get(&(self.func, state)) {
                stays(why);
                continue;
            }
            let &[_, rows, start] = args.as_slice() else { unreachable!("operands were counted") };
            let shape = |value| &self.f.tensor(value).expect("states and rows are tensors").shape;
            let tokens =
                |extents: &[eva_ir::dim::Dim]| Tokens { batch: extents[0].clone(), each: extents[1].clone() };
            let (new, cached) = (tokens(shape(rows)), tokens(shape(state)));
            let here = Here { new, cached, start, kept: Vec::new(), writes: Vec::new() };
            let same = |(other, _): &&mut (Here, Vec<Write>)| {
                other.new == here.new && other.cached == here.cached && other.start == here.start
            };
            match sets.iter_mut().find(same) {
                Some((_, writes)) => writes.push((state, write, rows)),
                None => sets.push((here, vec![(state, write, rows)])),
            }
        }
        for (here, writes) in sets {
            self.cut(here, &writes, &fixed, d);
        }
    }

    /// Decides for states that have the same tokens.
    fn cut(&self, mut here: Here, writes: &[Write], fixed: &[bool], d: &mut Decision) {
        let tokens = here.new.clone();
        let view = View { module: self.module, f: self.f, fixed, tokens: &tokens };
        let mut rows: Vec<Node> = writes.iter().map(|&(_, _, rows)| (rows, Place::FIRST)).collect();
        let sizes: Option<Vec<u64>> = rows.iter().map(|&row| view.bytes(row)).collect();
        let Some(sizes) = sizes else {
            let why = "its bytes are not known before it runs";
            d.stays.extend(writes.iter().map(|&(state, ..)| Stays { state, why: why.into(), value: None }));
            return;
        };
        rows.sort();
        rows.dedup();
        let cut = cheapest(&view, &rows);
        let smaller = cut.bytes < sizes.iter().sum();
        let mut group = Group { old: Vec::new(), new: Vec::new(), key: String::new(), made: Made::InCalls };
        for &(state, write, rows) in writes {
            let node = (rows, Place::FIRST);
            let taken = here.kept.iter().any(|(kept, _)| *kept == node);
            if !smaller || (cut.kept.contains(&node) && !taken) {
                here.kept.push((node, Kept::Old(write)));
                d.stays.push(self.why_kept(&view, state, node, &cut));
            } else {
                group.old.push(state);
                here.writes.push((write, rows));
            }
        }
        if group.old.is_empty() {
            return;
        }
        for &node in &cut.kept {
            if here.kept.iter().any(|(kept, _)| *kept == node) {
                continue;
            }
            here.kept.push((node, Kept::New(group.new.len())));
            let ty = self.f.tensor(node.0).expect("what is kept is a tensor");
            let own = (0..ty.rank()).filter(|axis| !node.1.axes().contains(axis));
            let tokens = [here.cached.batch.clone(), here.cached.each.clone()];
            let ty = ty.with_shape(tokens.into_iter().chain(own.map(|axis| ty.shape[axis].clone())));
            let taken: Vec<&str> = group.new.iter().map(|new| new.name.as_str()).collect();
            let name = self.name(group.old[0], node.0, &taken);
            group.new.push(NewState { name, ty });
        }
        group.key = self.describe(&view, &here);
        group.old.iter().for_each(|&state| {
            d.of.insert(state, d.groups.len());
        });
        group.made = Made::Here(here);
        d.groups.push(group);
    }

    /// A name for the state that keeps `value`: the value's, in the scope of the state that goes.
    fn name(&self, old: Value, value: Value, taken: &[&str]) -> String {
        let scope =
            self.f.values[old].name.rsplit_once('.').map_or(String::new(), |(scope, _)| format!("{scope}."));
        let own = self.f.values[value].name.rsplit('.').next().unwrap_or_default();
        let free = |name: &String| {
            !taken.contains(&name.as_str()) && !self.f.values.iter().any(|(_, data)| data.name == *name)
        };
        let numbered = (1..).map(|i| format!("{scope}{own}_cache{i}"));
        let mut names = [format!("{scope}{own}"), format!("{scope}{own}_cache")].into_iter().chain(numbered);
        names.find(free).expect("there are enough numbers")
    }

    /// Why `state`, whose rows are `node`, stays.
    fn why_kept(&self, view: &View<'_>, state: Value, node: Node, cut: &Cut) -> Stays {
        // What blocks it, if anything, is what its own rows are made of.
        let (mut stack, mut seen) = (vec![node], BTreeSet::new());
        while let Some(node) = stack.pop() {
            if seen.insert(node) {
                let operands = view.operands(node).unwrap_or_default();
                stack.extend(operands.into_iter().filter_map(|operand| match operand {
                    Operand::PerToken(node) => Some(node),
                    Operand::Fixed(_) => None,
                }));
            }
        }
        let is_input = |value: Value| matches!(self.f.values[value].def, Def::Param(_));
        let mut blocked = cut.blocked.iter().filter(|(blocked, _)| seen.contains(blocked));
        match blocked.find(|((value, _), _)| !is_input(*value)) {
            Some(((value, _), why)) => {
                let data = &self.f.values[*value];
                let why = format!(
                    "nothing smaller determines it: `%{}` cannot be computed again, {why}",
                    data.name
                );
                Stays { state, why, value: Some((data.name.clone(), data.loc)) }
            }
            None => Stays { state, why: "nothing smaller determines it".into(), value: None },
        }
    }

    /// How the rows that go are made of what is kept.
    fn describe(&self, view: &View<'_>, here: &Here) -> String {
        let mut text = String::new();
        let mut seen: HashMap<(Value, Option<Place>), usize> = HashMap::new();
        for (i, (node, _)) in here.kept.iter().enumerate() {
            seen.insert((node.0, Some(node.1)), i);
        }
        for &(_, rows) in &here.writes {
            let at = describe(view, (rows, Some(Place::FIRST)), &mut seen, &mut text);
            let _ = write!(text, "write {at};");
        }
        text
    }

    /// The states that functions called here update.
    fn written_in_calls(&self, states: &[Value], d: &mut Decision, found: &mut Blocked) {
        let uses = self.f.uses();
        for &state in states {
            let updates = d.updates.get(&state).cloned().unwrap_or_default();
            let calls: Vec<(Func, Value, usize)> = updates
                .iter()
                .filter_map(|update| match update {
                    Update::Call(func, call, param) => Some((*func, *call, *param)),
                    Update::Op(_) => None,
                })
                .collect();
            if calls.is_empty() || d.of.contains_key(&state) {
                continue;
            }
            // The group in the callee, and the states of this function that take part, for each call.
            let groups: Vec<Option<(&Group, Vec<Value>)>> = calls
                .iter()
                .map(|&(func, call, param)| {
                    let decision = &self.decisions[func];
                    let group = &decision.groups[*decision.of.get(&Value::new(param))?];
                    let args = self.f.values[call].def.args();
                    let own = group.old.iter().map(|old| d.versions.get(&args[old.index()]).copied());
                    Some((group, own.collect::<Option<Vec<_>>>()?))
                })
                .collect();
            if groups.iter().all(Option::is_none) {
                d.stays.push(Stays {
                    state,
                    why: "it stays in the function that updates it".into(),
                    value: None,
                });
                continue;
            }
            let first = groups[0].as_ref();
            let same = updates.len() == calls.len()
                && self.f.alternatives.is_empty()
                && groups.iter().all(|group| match (group, first) {
                    (Some((group, own)), Some((other, others))) => group.key == other.key && own == others,
                    _ => false,
                });
            let version = |value: &Value| d.versions.get(value) == Some(&state);
            let read = d.versions.keys().filter(|value| version(value)).any(|&value| {
                uses.of(value).iter().any(|&(user, _)| {
                    let updates =
                        matches!(self.f.values[user].def, Def::Call(..)) || d.versions.contains_key(&user);
                    !updates
                })
            });
            match first {
                Some((group, own)) if same && !read => {
                    let new = group.new.iter().map(|new| NewState {
                        name: self.name_in_caller(own[0], calls[0].0, group.old[0], &new.name),
                        ty: new.ty.clone(),
                    });
                    let (new, key) = (new.collect(), group.key.clone());
                    own.iter().for_each(|&state| {
                        d.of.insert(state, d.groups.len());
                    });
                    d.groups.push(Group { old: own.clone(), new, key, made: Made::InCalls });
                }
                _ => {
                    let why = if read { "a caller reads it" } else { "callers use it in different ways" };
                    for &(func, _, param) in &calls {
                        block(self.decisions, func, Value::new(param), why, found);
                    }
                }
            }
        }
    }

    /// What a caller calls a new state that its callee calls `new`: as it calls `own` what the callee calls `old`.
    fn name_in_caller(&self, own: Value, callee: Func, old: Value, new: &str) -> String {
        let (own, old) = (&self.f.values[own].name, &self.module.funcs[callee].values[old].name);
        let name = match own.strip_suffix(old.as_str()) {
            Some(prefix) => format!("{prefix}{new}"),
            None => format!("{own}.{new}"),
        };
        let taken = |name: &String| self.f.values.iter().any(|(_, data)| data.name == *name);
        let numbered = (1..).map(|i| format!("{name}_cache{i}"));
        let mut names = [name.clone()].into_iter().chain(numbered);
        names.find(|name| !taken(name)).expect("there are enough numbers")
    }
}

/// Keeps a state of `func` as it is, where it is written.
fn block(decisions: &Arena<Func, Decision>, func: Func, state: Value, why: &str, found: &mut Blocked) {
    for update in decisions[func].updates.get(&state).into_iter().flatten() {
        match update {
            Update::Op(_) => drop(found.insert((func, state), why.into())),
            Update::Call(func, _, param) => block(decisions, *func, Value::new(*param), why, found),
        }
    }
}

/// States are shared between functions that a user calls, by their names: they must be replaced alike in all of them.
fn disagreements(module: &Module, decisions: &Arena<Func, Decision>, found: &mut Blocked) {
    let mut seen: BTreeMap<&str, Vec<(Func, Value, String)>> = BTreeMap::new();
    for func in super::entries(module) {
        let f = &module.funcs[func];
        for (state, _) in f.params().filter(|&(_, kind)| kind == ParamKind::State) {
            let decision = &decisions[func];
            let layout = decision.of.get(&state).map_or(String::new(), |&group| {
                let group = &decision.groups[group];
                let names: Vec<&str> = group.old.iter().map(|&old| f.values[old].name.as_str()).collect();
                let new: Vec<&str> = group.new.iter().map(|new| new.name.as_str()).collect();
                format!("{names:?} {new:?} {}", group.key)
            });
            seen.entry(&f.values[state].name).or_default().push((func, state, layout));
        }
    }
    for places in seen.values() {
        if places.iter().all(|(_, _, layout)| *layout == places[0].2) {
            continue;
        }
        for (func, state, _) in places.iter().filter(|(_, _, layout)| !layout.is_empty()) {
            block(decisions, *func, *state, "another function keeps it otherwise", found);
        }
    }
}

/// Appends how a value is made, down to what `seen` has and to weights; its number.
fn describe(
    view: &View<'_>,
    at: (Value, Option<Place>),
    seen: &mut HashMap<(Value, Option<Place>), usize>,
    text: &mut String,
) -> usize {
    if let Some(&number) = seen.get(&at) {
        return number;
    }
    let data = &view.f.values[at.0];
    let operands: Vec<(Value, Option<Place>)> = match at.1 {
        Some(place) => {
            let operands = view.operands((at.0, place)).unwrap_or_default();
            let one = |operand| match operand {
                Operand::PerToken((value, place)) => (value, Some(place)),
                Operand::Fixed(value) => (value, None),
            };
            operands.into_iter().map(one).collect()
        }
        None => data.def.args().iter().map(|&arg| (arg, None)).collect(),
    };
    let numbers: Vec<usize> =
        operands.into_iter().map(|operand| describe(view, operand, seen, text)).collect();
    let what = match &data.def {
        Def::Op(op, _) => {
            let attrs: Vec<String> = op.attrs().iter().map(|attr| attr.to_string()).collect();
            format!("{} {}", op.kind().name(), attrs.join(" "))
        }
        _ => data.name.clone(),
    };
    let number = seen.len();
    seen.insert(at, number);
    let _ = write!(text, "{number} = {what} {numbers:?} {};", data.ty);
    number
}
