//! Where each piece of state goes: from its parameter, through the ops that update it, to a result.

use crate::diag::Diag;
use crate::entity::{Arena, Entity};
use crate::graph::{Def, Func, Function, Module, ParamKind, Uses, Value};
use crate::ops::Op;
use std::collections::HashSet;

/// For each parameter of a function that is state, the index of its updated value among the results;
/// `None` where it is not found, which is a mistake.
pub type StateResults = Vec<(Value, Option<usize>)>;

/// Where each function of `module` returns its state.
pub fn state_results(module: &Module) -> Arena<Func, StateResults> {
    let mut tables = Arena::default();
    for (_, f) in module.funcs.iter() {
        let table = States::new(module, f, &tables).table();
        tables.push(table);
    }
    tables
}

/// Whether `param`, a state of `f`, is replaced as a whole: by `assign`, or by a call that does it. Such a state has the
/// shape of its type, and no capacity beyond it.
pub fn is_assigned(module: &Module, f: &Function, param: Value) -> bool {
    f.values.iter().any(|(_, data)| match &data.def {
        Def::Op(op, args) => matches!(op, Op::Assign(_)) && args.first() == Some(&param),
        Def::Call(callee, args) => module.funcs.get(*callee).is_some_and(|callee| {
            let mut given = callee.params().zip(args).filter(|(_, arg)| **arg == param);
            given.any(|((state, kind), _)| kind == ParamKind::State && is_assigned(module, callee, state))
        }),
        Def::Param(_) => false,
    })
}

/// One function, seen from its state.
pub(super) struct States<'a> {
    module: &'a Module,
    f: &'a Function,
    /// The tables of the functions before this one.
    tables: &'a Arena<Func, StateResults>,
    uses: Uses,
}

/// The values that are one state after the same number of updates: usually one; several `get`s of one part
/// are the same value.
type Version = Vec<Value>;

impl<'a> States<'a> {
    pub fn new(module: &'a Module, f: &'a Function, tables: &'a Arena<Func, StateResults>) -> Self {
        Self { module, f, tables, uses: f.uses() }
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
        let name = self.name(param);
        let mut versions = vec![vec![param]];
        let users = self.uses.of(param);
        let assigned = is_assigned(self.module, self.f, param);
        if !assigned && (users.len() != 1 || !self.updates(users[0])) {
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
            let users = last.iter().flat_map(|&value| self.uses.of(value)).copied();
            let updaters: Vec<(Value, usize)> = users.filter(|&user| self.updates(user)).collect();
            match updaters[..] {
                [] => return (versions, None),
                [updater] if self.assigns(updater) != assigned => {
                    let message = format!("the state `%{name}` is updated by `assign` and otherwise");
                    let diag = self.diag(message, updater.0, "updated otherwise here");
                    return (
                        versions,
                        Some(diag.help("what is replaced as a whole is no cache: declare two states")),
                    );
                }
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
        let table = self.tables.get(callee);
        let index = table.and_then(|table| table.iter().find(|(state, _)| *state == param)?.1);
        let name = function.values.get(param).map_or("", |data| &data.name);
        let Some(index) = index else {
            let message = format!("@{} does not return its state `%{name}`", function.name);
            return Err(self.diag(message, user, "called here"));
        };
        if function.results.len() == 1 {
            return Ok(vec![user]);
        }
        let parts = self.uses.of(user).iter().map(|(part, _)| *part);
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
            Def::Op(Op::Get(get), _) => usize::try_from(get.index).ok(),
            _ => None,
        }
    }

    fn check_versions(&self, versions: &[Version]) -> Option<Diag> {
        let name = self.name(versions[0][0]);
        for pair in versions.windows(2) {
            let old = &pair[0];
            let all = || old.iter().flat_map(|&value| self.uses.of(value)).copied();
            let update = all().find(|&user| self.updates(user))?;
            let updater = update.0;
            let is_assign = matches!(self.f.values[updater].def, Def::Op(Op::Assign(_), _));
            if !is_assign && all().any(|user| user.0 == updater && user != update) {
                let message = format!("the state `%{name}` is updated and read by one call");
                let diag = self.diag(message, updater, "it may be read after it was updated");
                return Some(diag.help("give it once, as state"));
            }
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
            Def::Op(op, _) => operand == 0 && op.updates_state(),
            Def::Call(callee, _) => self.is_state_of(*callee, operand),
            Def::Param(_) => false,
        }
    }

    /// Whether an update replaces all of the state.
    fn assigns(&self, (user, operand): (Value, usize)) -> bool {
        match &self.f.values[user].def {
            Def::Op(op, _) => matches!(op, Op::Assign(_)),
            Def::Call(callee, _) => {
                let callee = self.module.funcs.get(*callee);
                callee.is_some_and(|callee| is_assigned(self.module, callee, Value::new(operand)))
            }
            Def::Param(_) => false,
        }
    }

    /// Whether parameter `i` of `callee` is state. Parameters come first, so its number is its index.
    fn is_state_of(&self, callee: Func, i: usize) -> bool {
        let Some(callee) = self.module.funcs.get(callee) else { return false };
        callee.values.get(Value::new(i)).is_some_and(|data| data.def == Def::Param(ParamKind::State))
    }

    fn name(&self, value: Value) -> &'a str {
        &self.f.values[value].name
    }

    fn diag(&self, message: String, at: Value, label: &str) -> Diag {
        Diag::new("eva::state", message).label(self.f.values[at].loc, label)
    }
}
