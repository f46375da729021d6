//! Where each piece of state goes: from its parameter, through the ops that update it, to a result.

use crate::attr::Attr;
use crate::diag::Diag;
use crate::entity::Entity;
use crate::graph::{Def, Func, Function, Module, ParamKind, Value};
use crate::ops::OpKind;
use std::collections::{HashMap, HashSet};

/// For each parameter of a function that is state, the index of its updated value among the results;
/// `None` where it is not found, which is a mistake.
pub type StateResults = Vec<(Value, Option<usize>)>;

/// Where `func` returns its state.
pub fn state_results(module: &Module, func: Func) -> StateResults {
    let mut tables = Vec::new();
    for (_, f) in module.funcs.iter().take(func.index() + 1) {
        let table = States::new(module, f, &tables).table();
        tables.push(table);
    }
    tables.pop().unwrap_or_default()
}

/// One function, seen from its state.
pub(super) struct States<'a> {
    module: &'a Module,
    f: &'a Function,
    /// The tables of the functions before this one.
    tables: &'a [StateResults],
    /// Who uses each value, and as which operand, in order.
    uses: HashMap<Value, Vec<(Value, usize)>>,
}

/// The values that are one state after the same number of updates: usually one; several `get`s of one part
/// are the same value.
type Version = Vec<Value>;

impl<'a> States<'a> {
    pub fn new(module: &'a Module, f: &'a Function, tables: &'a [StateResults]) -> Self {
        let mut uses: HashMap<Value, Vec<(Value, usize)>> = HashMap::new();
        for (user, data) in f.values.iter() {
            for (i, &arg) in data.def.args().iter().enumerate() {
                uses.entry(arg).or_default().push((user, i));
            }
        }
        Self { module, f, tables, uses }
    }

    /// See [`StateResults`].
    pub fn table(&self) -> StateResults {
        let states = self.f.params().filter(|&(_, kind)| kind == ParamKind::State);
        states
            .map(|(state, _)| {
                let (versions, _) = self.follow(state);
                let last = versions.last().filter(|_| versions.len() > 1);
                (state, last.and_then(|last| self.f.results.iter().position(|value| last.contains(value))))
            })
            .collect()
    }

    /// Everything that is wrong with how this function handles state.
    pub fn check(&self) -> Vec<Diag> {
        let mut diags = Vec::new();
        let mut state: HashSet<Value> = HashSet::new();
        for (param, _) in self.f.params().filter(|&(_, kind)| kind == ParamKind::State) {
            let (versions, wrong) = self.follow(param);
            state.extend(versions.iter().flatten());
            diags.extend(wrong.or_else(|| self.check_versions(&versions)));
        }
        for (value, data) in self.f.values.iter() {
            let Def::Call(callee, args) = &data.def else { continue };
            for (i, arg) in args.iter().enumerate() {
                if self.is_state_of(*callee, i) && !state.contains(arg) {
                    let callee = &self.module.funcs[*callee];
                    let param = callee.params().nth(i).map_or("", |(param, _)| &callee.values[param].name);
                    let message = format!(
                        "`%{param}` of @{} is state, but `%{}` given for it is not",
                        callee.name, self.f.values[*arg].name
                    );
                    diags.push(self.diag(message, value, "given here").help("pass on a `state` parameter"));
                }
            }
        }
        diags
    }

    /// The versions of a state, from the parameter to the last, and why they end too early if they do.
    fn follow(&self, param: Value) -> (Vec<Version>, Option<Diag>) {
        let name = &self.name(param);
        let mut versions = vec![vec![param]];
        let users = self.uses.get(&param).map_or(&[][..], |users| users);
        if users.len() != 1 || !self.updates(users[0]) {
            let message = match users {
                [] => format!("the state `%{name}` is never updated"),
                [_] => format!("the state `%{name}` is read before it is updated"),
                _ => format!("the state `%{name}` is used {} times", users.len()),
            };
            let mut diag = self.diag(message, param, "this parameter");
            if let Some(&(user, _)) = users.iter().find(|&&user| !self.updates(user)).or(users.last()) {
                diag = diag.label(self.f.values.get(user).and_then(|data| data.loc), "used here");
            }
            let help = "state is used once: as what a `cache_write` or a call updates; use the updated value after it";
            return (versions, Some(diag.help(help)));
        }
        loop {
            let last = versions.last().expect("the parameter is the first");
            let users = last.iter().filter_map(|value| self.uses.get(value)).flatten().copied();
            let updaters: Vec<(Value, usize)> = users.filter(|&user| self.updates(user)).collect();
            match updaters[..] {
                [] => return (versions, None),
                [updater] => match self.updated(updater) {
                    Ok(next) => versions.push(next),
                    Err(diag) => return (versions, Some(diag)),
                },
                [_, (again, _), ..] => {
                    let message = format!("the state `%{name}` is updated twice from one version");
                    let diag = self.diag(message, again, "updated here again");
                    return (versions, Some(diag.help("update what the first update gave")));
                }
            }
        }
    }

    /// What an update leaves.
    fn updated(&self, (user, operand): (Value, usize)) -> Result<Version, Diag> {
        let Def::Call(callee, _) = self.f.values[user].def else { return Ok(vec![user]) };
        let function = &self.module.funcs[callee];
        let param = Value::new(operand);
        let table = self.tables.get(callee.index());
        let index = table.and_then(|table| table.iter().find(|(state, _)| *state == param)?.1);
        let name = function.values.get(param).map_or("", |data| &data.name);
        let Some(index) = index else {
            let message = format!("@{} does not return its state `%{name}`", function.name);
            return Err(self.diag(message, user, "called here"));
        };
        if function.results.len() == 1 {
            return Ok(vec![user]);
        }
        let parts = self.uses.get(&user).map_or(&[][..], |users| users).iter().map(|(part, _)| *part);
        let parts: Version = parts.filter(|&part| self.part(part) == Some(index)).collect();
        if parts.is_empty() {
            let message = format!("the state `%{name}` that @{} updates is lost", function.name);
            let help = format!("take it with `get {{index = {index}}}` and return it");
            return Err(self.diag(message, user, "updated here").help(help));
        }
        Ok(parts)
    }

    /// Which part of a tuple `value` is.
    fn part(&self, value: Value) -> Option<usize> {
        match &self.f.values[value].def {
            Def::Op(op, _) if op.kind() == OpKind::Get => match op.attrs()[..] {
                [Attr::Int(index)] => usize::try_from(index).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    fn check_versions(&self, versions: &[Version]) -> Option<Diag> {
        let name = self.name(versions[0][0]);
        for pair in versions.windows(2).skip(1) {
            let old = &pair[0];
            let all = || old.iter().filter_map(|value| self.uses.get(value)).flatten().copied();
            let (updater, _) = all().find(|&user| self.updates(user))?;
            if let Some((late, _)) = all().find(|&(user, _)| user.index() > updater.index()) {
                let message = format!("an old version of the state `%{name}` is read after it was updated");
                let diag = self.diag(message, late, "read here");
                return Some(diag.label(self.f.values[updater].loc, "updated here"));
            }
            if let Some(&value) = old.iter().find(|value| self.f.results.contains(value)) {
                let message = format!("an old version of the state `%{name}` is returned");
                let diag = self.diag(message, value, "this value");
                return Some(diag.label(self.f.values[updater].loc, "updated here"));
            }
        }
        let last = versions.last()?;
        if last.iter().any(|value| self.f.results.contains(value)) {
            return None;
        }
        let message = format!("the updated state `%{name}` is not returned");
        Some(
            self.diag(message, last[0], "this is its last version")
                .help(format!("return `%{}` too", self.name(last[0]))),
        )
    }

    /// Whether a use is an update.
    fn updates(&self, (user, operand): (Value, usize)) -> bool {
        match &self.f.values[user].def {
            Def::Op(op, _) => operand == 0 && op.kind().name() == "cache_write",
            Def::Call(callee, _) => self.is_state_of(*callee, operand),
            Def::Param(_) => false,
        }
    }

    /// Whether parameter `i` of `callee` is state. Parameters come first, so its number is its index.
    fn is_state_of(&self, callee: Func, i: usize) -> bool {
        let Some(callee) = self.module.funcs.get(callee) else { return false };
        callee.values.get(Value::new(i)).is_some_and(|data| data.def == Def::Param(ParamKind::State))
    }

    fn name(&self, value: Value) -> String {
        self.f.values[value].name.clone()
    }

    fn diag(&self, message: String, at: Value, label: &str) -> Diag {
        Diag::new("eva::state", message).label(self.f.values[at].loc, label)
    }
}
