//! What PTX means, as far as this crate makes it: slow, and without a GPU.
//!
//! Threads run one after the other until they have to wait for others; copies and products happen at once. An access
//! outside of memory or not aligned, and a block in which nobody can go on, are panics.

mod copy;
mod memory;
mod number;
mod product;
mod scalar;
mod text;

use copy::{Barrier, TensorMap};
use eva_ir::dim::Sym;
use eva_ir::kernel::Kernel;
use eva_ir::kernel::run::Storage;
use eva_ptx::Ptx;
use memory::Memory;
pub use number::decode;
use std::collections::HashMap;
use text::{Arg, Inst, Program};

const WARP: usize = 32;
/// Where tensor maps seem to be.
const MAPS: u64 = 0x5000_0000_0000;
/// Instructions of a launch before it is given up.
const FUEL: u64 = 400_000_000;

/// What a thread is waiting for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Runs,
    /// For the others of its warp.
    Warp,
    /// For the others of its warpgroup.
    Group,
    /// For so many threads at a barrier.
    Barrier(u64, usize),
    Ended,
}

struct Thread {
    registers: Vec<u64>,
    next: usize,
    state: State,
}

/// A block.
struct Block<'a> {
    program: &'a Program<'a>,
    memory: &'a mut Memory,
    maps: &'a [TensorMap],
    params: &'a [u64],
    threads: Vec<Thread>,
    barriers: HashMap<u64, Barrier>,
    number: u64,
    launched: u64,
    fuel: &'a mut u64,
}

/// Runs a kernel's PTX as [`eva_ir::kernel::run::run`] runs the kernel; a launch of as many blocks as it says.
pub fn run(
    kernel: &Kernel,
    ptx: &Ptx,
    sizes: &dyn Fn(&Sym) -> Option<i64>,
    storages: &mut [Storage],
    binding: &[usize],
    launched: u64,
) {
    let program = Program::new(&ptx.text);
    let mut memory = Memory::new(storages, &program.constants, ptx.shared_bytes);
    let block = kernel.block.as_ref().expect("the kernel is of the block phase");
    let mut params: Vec<u64> = binding.iter().map(|&storage| Memory::address(storage)).collect();
    params.extend(kernel.syms().iter().map(|sym| sizes(sym).expect("every extent has a value") as u64));
    params.extend((0..block.maps.len() as u64).map(|i| MAPS + (i << 8)));
    let maps: Vec<TensorMap> =
        block.maps.iter().map(|(_, map)| TensorMap::new(kernel, map, sizes, binding)).collect();
    let mut fuel = FUEL;
    for number in 0..launched {
        memory.new_block();
        let thread = || Thread { registers: vec![0; program.registers], next: 0, state: State::Runs };
        let mut block = Block {
            program: &program,
            memory: &mut memory,
            maps: &maps,
            params: &params,
            threads: (0..ptx.threads).map(|_| thread()).collect(),
            barriers: HashMap::new(),
            number,
            launched,
            fuel: &mut fuel,
        };
        block.run();
    }
    memory.into_storages(storages);
}

impl Block<'_> {
    fn run(&mut self) {
        loop {
            let mut moved = false;
            for t in 0..self.threads.len() {
                while self.threads[t].state == State::Runs {
                    *self.fuel = self.fuel.checked_sub(1).expect("the launch comes to an end");
                    if !self.step(t) {
                        break;
                    }
                    moved = true;
                }
            }
            if self.threads.iter().all(|thread| thread.state == State::Ended) {
                return;
            }
            moved |= self.meet();
            let where_ = |thread: &Thread| match self.program.insts.get(thread.next) {
                Some(inst) => format!("{:?} {}", thread.state, inst.line),
                None => format!("{:?}", thread.state),
            };
            let waiting = || self.threads.iter().step_by(WARP).map(where_).collect::<Vec<_>>();
            assert!(moved, "block {}: nobody can go on: {:#?}", self.number, waiting());
        }
    }

    /// Lets those go on who have waited for others that have come; whether there are any.
    fn meet(&mut self) -> bool {
        let mut moved = false;
        for (size, state) in [(WARP, State::Warp), (4 * WARP, State::Group)] {
            for first in (0..self.threads.len()).step_by(size) {
                let all = first..(first + size).min(self.threads.len());
                let place = self.threads[first].next;
                let here = |thread: &Thread| thread.state == state && thread.next == place;
                if all.len() == size && self.threads[all.clone()].iter().all(here) {
                    self.together(first, place);
                    self.threads[all].iter_mut().for_each(|thread| {
                        thread.state = State::Runs;
                        thread.next += 1;
                    });
                    moved = true;
                }
            }
        }
        let mut counts: HashMap<(u64, usize), usize> = HashMap::new();
        for thread in &self.threads {
            if let State::Barrier(id, wanted) = thread.state {
                *counts.entry((id, wanted)).or_default() += 1;
            }
        }
        for ((id, wanted), count) in counts {
            assert!(count <= wanted, "{count} threads at barrier {id} of {wanted}");
            if count == wanted {
                for thread in self.threads.iter_mut().filter(|t| t.state == State::Barrier(id, wanted)) {
                    thread.state = State::Runs;
                    thread.next += 1;
                }
                moved = true;
            }
        }
        moved
    }

    /// What threads do together that have come to the instruction at `place`; `first` is the first of them.
    fn together(&mut self, first: usize, place: usize) {
        let program = self.program;
        let inst = &program.insts[place];
        let op = &inst.op;
        match op[0] {
            "shfl" => {
                let source: Vec<u64> =
                    (0..WARP).map(|lane| self.value(first + lane, &inst.args[1])).collect();
                for lane in 0..WARP {
                    let by = self.value(first + lane, &inst.args[2]) as usize;
                    let from = if op[2] == "idx" { by } else { lane ^ by };
                    assert!(op[2] == "idx" || op[2] == "bfly", "{}", inst.line);
                    self.set(first + lane, &inst.args[0], source[from] & scalar::mask(32));
                }
            }
            "elect" => {
                for lane in 0..WARP {
                    let Arg::Both(leader, elected) = inst.args[0] else { panic!("{}", inst.line) };
                    self.threads[first + lane].registers[leader] = 0;
                    self.threads[first + lane].registers[elected] = u64::from(lane == 0);
                }
            }
            "bar" => {}
            "wgmma" => self.product(first, inst),
            _ => panic!("{} is nothing to do together", inst.line),
        }
    }

    /// Runs an instruction of a thread; whether it went on.
    fn step(&mut self, t: usize) -> bool {
        let program = self.program;
        let inst = program.insts.get(self.threads[t].next).expect("a thread ends with `ret`");
        if inst.guard.is_some_and(|(reg, wanted)| (self.threads[t].registers[reg] & 1 == 1) != wanted) {
            self.threads[t].next += 1;
            return true;
        }
        match inst.op[..] {
            ["ret"] => self.threads[t].state = State::Ended,
            ["bra", ..] => {
                let Arg::Name(label) = &inst.args[0] else { panic!("{}", inst.line) };
                self.threads[t].next = program.labels[label];
            }
            ["shfl" | "elect", ..] | ["bar", "warp", ..] => self.threads[t].state = State::Warp,
            ["wgmma", "mma_async", ..] => self.threads[t].state = State::Group,
            ["bar" | "barrier", ..] => {
                let wanted = inst.args.get(1).map_or(self.threads.len(), |n| self.value(t, n) as usize);
                self.threads[t].state = State::Barrier(self.value(t, &inst.args[0]), wanted);
            }
            ["mbarrier", "try_wait", ..] => {
                let ended = self.try_wait(t, inst);
                self.set(t, &inst.args[0], u64::from(ended));
                self.threads[t].next += 1;
                return ended;
            }
            _ => {
                self.plain(t, inst, &inst.op);
                self.threads[t].next += 1;
            }
        }
        true
    }

    /// An instruction that a thread runs on its own, and that leads to the next one.
    fn plain(&mut self, t: usize, inst: &Inst, op: &[&str]) {
        match op {
            ["mov", ..] | ["cvta", ..] => match (&inst.args[0], &inst.args[1]) {
                (Arg::Vector(parts), source) => {
                    let bits = scalar::bits_of(op[1]) / parts.len() as u32;
                    let all = self.value(t, source);
                    for (i, part) in parts.iter().enumerate() {
                        self.set(t, part, all >> (i as u32 * bits) & scalar::mask(bits));
                    }
                }
                (target, Arg::Vector(parts)) => {
                    let bits = scalar::bits_of(op[1]) / parts.len() as u32;
                    let part = |(i, part)| (self.value(t, part) & scalar::mask(bits)) << (i as u32 * bits);
                    let all = parts.iter().enumerate().map(part).fold(0, |all, part| all | part);
                    self.set(t, target, all);
                }
                (target, source) => {
                    let value = self.value(t, source);
                    self.set(t, target, value);
                }
            },
            ["ld", "param", ..] => {
                let Arg::Memory(name, 0, _) = &inst.args[1] else { panic!("{}", inst.line) };
                let value = self.value(t, name);
                self.set(t, &inst.args[0], value);
            }
            ["ld", ..] => {
                let (parts, bits) = (vector(&inst.args[0]), scalar::bits_of(op[op.len() - 1]));
                let at = self.place(t, &inst.args[1]);
                self.memory.aligned(at, parts.len() * bits as usize / 8, inst.line);
                for (i, part) in parts.iter().enumerate() {
                    let value = self.memory.read(at + i as u64 * u64::from(bits / 8), bits / 8, inst.line);
                    let value =
                        if op[op.len() - 1].starts_with('s') { scalar::extend(value, bits) } else { value };
                    self.set(t, part, value);
                }
            }
            ["st", ..] => {
                let (parts, bits) = (vector(&inst.args[1]), scalar::bits_of(op[op.len() - 1]));
                let at = self.place(t, &inst.args[0]);
                self.memory.aligned(at, parts.len() * bits as usize / 8, inst.line);
                for (i, part) in parts.iter().enumerate() {
                    let value = self.value(t, part) & scalar::mask(bits);
                    self.memory.write(at + i as u64 * u64::from(bits / 8), bits / 8, value, inst.line);
                }
            }
            ["mbarrier", ..] => self.barrier(t, inst, op),
            ["cp", "async", "bulk", "tensor", ..] => self.copy(t, inst, op),
            // What is started is done at once.
            ["cp", "async", "bulk", ..] | ["fence" | "prefetch", ..] | ["wgmma", ..] | ["setmaxnreg", ..] => {
            }
            _ => {
                let operands: Vec<u64> = inst.args[1..].iter().map(|arg| self.value(t, arg)).collect();
                match scalar::evaluate(op, &operands) {
                    Some(value) => self.set(t, &inst.args[0], value),
                    None => panic!("`{}` is not emulated", inst.line),
                }
            }
        }
    }

    fn value(&self, t: usize, arg: &Arg) -> u64 {
        match arg {
            Arg::Reg(reg) => self.threads[t].registers[*reg],
            Arg::Number(number) => *number,
            Arg::Name(name) => match name.as_str() {
                "%tid.x" => t as u64,
                "%ctaid.x" => self.number,
                "%nctaid.x" => self.launched,
                "eva_shared_memory" => memory::SHARED,
                _ => match name.rsplit_once("_param_") {
                    Some((_, i)) => self.params[i.parse::<usize>().expect("parameters are numbered")],
                    None => self.memory.constant(name),
                },
            },
            _ => panic!("{arg:?} has no value"),
        }
    }

    fn set(&mut self, t: usize, arg: &Arg, value: u64) {
        match arg {
            Arg::Reg(reg) => self.threads[t].registers[*reg] = value,
            Arg::Nothing => {}
            _ => panic!("{arg:?} cannot be set"),
        }
    }

    /// An address.
    fn place(&self, t: usize, arg: &Arg) -> u64 {
        match arg {
            Arg::Memory(base, offset, _) => self.value(t, base).wrapping_add(*offset),
            _ => panic!("{arg:?} is no place"),
        }
    }
}

/// The parts of a vector, or the one there is.
fn vector(arg: &Arg) -> &[Arg] {
    match arg {
        Arg::Vector(parts) => parts,
        one => std::slice::from_ref(one),
    }
}
