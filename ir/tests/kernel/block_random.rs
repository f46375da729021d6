//! Kernels of the block phase with random mistakes: refused, or run with the same result whatever the schedule. A race
//! would be a result that depends on it.

use crate::block_pipe::two_roles;
use crate::block_stage::all_stages;
use crate::block_support::seeded;
use crate::support::*;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::*;
use eva_ir::kernel::run::{Options, RunError, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// Random numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn size(&mut self) -> usize {
        [0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 63, 64, 65, 128, 256, 1 << 40, usize::MAX][self.below(18)]
    }
}

/// Calls `f` with body number `to` of `body` and those in it, and counts them.
fn nth_body(body: &mut Vec<Inst>, to: usize, count: &mut usize, f: &mut dyn FnMut(&mut Vec<Inst>)) {
    if *count == to {
        f(body);
    }
    *count += 1;
    for inst in body {
        match inst {
            Inst::For { body, .. } | Inst::If { body, .. } => nth_body(body, to, count, f),
            Inst::Block(BlockInst::Roles { roles }) => {
                roles.iter_mut().for_each(|role| nth_body(&mut role.body, to, count, f));
            }
            _ => {}
        }
    }
}

/// One mistake in the instructions of a body.
fn misplace(body: &mut Vec<Inst>, regs: usize, random: &mut Random) {
    if body.is_empty() {
        return;
    }
    let (i, other) = (random.below(body.len()), random.below(body.len()));
    let (far, back, any) = (random.below(regs + 1), random.below(8), random.below(4) == 0);
    // Mostly a register that may be visible where the right one is.
    let near = |reg: Reg| Reg::new(if any { far } else { reg.index().saturating_sub(back) });
    match random.below(5) {
        0 => drop(body.remove(i)),
        1 => body.swap(i, other),
        2 => {
            let inst = body[i].clone();
            body.insert(other, inst);
        }
        _ => match &mut body[i] {
            Inst::Zip { x, .. } | Inst::Map { x, .. } => *x = near(*x),
            Inst::Const { value: Const::I(n), .. } => *n = random.size() as i64,
            Inst::For { trips, .. } => *trips = near(*trips),
            Inst::Block(inst) => {
                let at = random.below(inst.operands().len());
                let mut seen = 0;
                inst.operands_mut(&mut |operand| {
                    if seen == at {
                        *operand = near(*operand);
                    }
                    seen += 1;
                });
                match inst {
                    BlockInst::Mma { n, k, b, keep, .. } => match random.below(5) {
                        0 => *n = random.size(),
                        1 => *k = random.size(),
                        2 => b.first = random.size(),
                        3 => b.transposed = !b.transposed,
                        _ => *keep = Keep::Yes,
                    },
                    BlockInst::MmaWait { pending, .. } | BlockInst::CopyOutWait { pending } => {
                        *pending = random.below(3);
                    }
                    BlockInst::Barrier { id, warps } => {
                        *(if random.below(2) == 0 { id } else { warps }) = random.size();
                    }
                    BlockInst::Roles { roles } => {
                        let at = random.below(roles.len());
                        match random.below(3) {
                            0 => roles[at].warps = random.size(),
                            1 => roles[at].solo = !roles[at].solo,
                            _ => roles[at].registers = random.size(),
                        }
                    }
                    BlockInst::Slots { values, .. } => {
                        let at = random.below(values.len());
                        values[at] = random.size() as i64;
                    }
                    _ => {}
                }
            }
            _ => {}
        },
    }
}

/// One mistake in what a block is.
fn misshape(k: &mut Raw, random: &mut Random) {
    let (n, dtype) = (random.size(), DType::ALL[random.below(DType::ALL.len())]);
    let block = k.threads();
    let shared = Shared::new(random.below(block.shared.len()));
    let (pipe, map) = (Pipe::new(0), Map::new(random.below(block.maps.len())));
    match random.below(10) {
        0 => block.shared[shared].rows = n,
        1 => block.shared[shared].cols = n,
        2 => block.shared[shared].stages = n,
        3 => block.shared[shared].dtype = dtype,
        4 => block.pipes[pipe].stages = n,
        5 => block.pipes[pipe].consumers = n,
        6 => block.maps[map].axes = [random.below(3), random.below(3)],
        7 => block.maps[map].rows = n,
        8 => block.warps = n,
        _ => {
            let reg = Reg::new(random.below(k.0.regs.len()));
            k.0.regs[reg].cols = n;
        }
    }
}

#[test]
fn mistakes_are_refused_or_faults_or_make_no_race() {
    let sizes = [("m", 70), ("n", 36), ("k", 9), ("w", 9)];
    let matrices = vec![
        Storage::new(DType::Bf16, numbers(70 * 72, 1)),
        Storage::new(DType::Bf16, numbers(36 * 72, 2)),
        Storage::unwritten(DType::F32, 70 * 36),
    ];
    let rows = vec![Storage::new(DType::F32, numbers(1280, 9)), Storage::unwritten(DType::F32, 1280)];
    let (mut refused, mut faults, mut fine) = (0, 0, 0);
    for seed in 0..2000 {
        let mut random = Random(seed);
        let (mut k, storages) = if seed % 2 == 0 { (two_roles(), &matrices) } else { (all_stages(), &rows) };
        for _ in 0..1 + random.below(2) {
            if random.below(4) == 0 {
                misshape(&mut k, &mut random);
                continue;
            }
            let (to, regs) = (random.below(6), k.0.regs.len());
            nth_body(&mut k.0.body, to, &mut 0, &mut |body| misplace(body, regs, &mut random));
        }
        let text = k.0.to_string();
        assert!(text.ends_with('}'));
        let mut results: Vec<Vec<u64>> = Vec::new();
        for schedule in 0..3 {
            let options = Options { fuel: 3_000_000, ..seeded(schedule) };
            let mut storages = storages.clone();
            match run_on(&k.0, &sizes, &mut storages, options) {
                Err(RunError::Malformed(_)) => refused += 1,
                Err(_) => faults += 1,
                Ok(_) => {
                    fine += 1;
                    results.push(storages.iter().flat_map(|s| s.data.iter().map(|x| x.to_bits())).collect());
                }
            }
        }
        assert!(results.iter().all(|other| *other == results[0]), "seed {seed}: results differ\n{}", k.0);
    }
    // Each of the three is there.
    assert!(refused > 1000 && faults > 500 && fine > 500, "{refused} refused, {faults} faults, {fine} fine");
}
