//! Writing kernels of the block phase by hand.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::entity::Arena;
use eva_ir::kernel::block::*;
use eva_ir::kernel::run::{Options, Order, RunError, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

impl Raw {
    /// A kernel whose blocks have `warps` warps and one program each.
    pub fn blocks(warps: usize) -> Raw {
        let mut k = Raw::new(Phase::Block);
        k.0.block = Some(Block {
            warps,
            launch: Launch::Each { per_block: 1 },
            shared: Arena::default(),
            pipes: Arena::default(),
            maps: Arena::default(),
        });
        k
    }

    pub fn threads(&mut self) -> &mut Block {
        self.0.block.as_mut().expect("the kernel has blocks")
    }

    /// Cuts the grid along an axis.
    pub fn grid(&mut self, extent: &str, tile: i64) {
        self.0.grid.push(GridAxis { extent: extent.parse().expect("an extent"), tile });
    }

    pub fn shared(
        &mut self,
        name: &str,
        dtype: DType,
        [rows, cols]: [usize; 2],
        stages: usize,
        swizzle: bool,
    ) -> Shared {
        let data = SharedData { name: name.into(), dtype, rows, cols, stages, swizzle };
        self.threads().shared.push(data)
    }

    pub fn pipe(&mut self, name: &str, tiles: &[Shared], consumers: usize) -> Pipe {
        let stages = self.threads().shared[tiles[0]].stages;
        self.threads().pipes.push(PipeData { name: name.into(), tiles: tiles.to_vec(), stages, consumers })
    }

    pub fn map(&mut self, buf: Buf, rows: usize, cols: usize) -> Map {
        self.threads().maps.push(MapData { buf, axes: [0, 1], rows, cols, swizzle: true })
    }

    pub fn block(&mut self, inst: BlockInst) {
        self.push(Inst::Block(inst));
    }

    /// A register with `cols` slots.
    pub fn slots(&mut self, elem: Elem, cols: usize, inst: impl FnOnce(Reg) -> BlockInst) -> Reg {
        self.emit(elem, 1, cols, |out| Inst::Block(inst(out)))
    }

    pub fn thread(&mut self) -> Reg {
        self.slots(Elem::I64, 1, |out| BlockInst::Thread { out })
    }

    /// Different numbers in different slots.
    pub fn table(&mut self, values: impl IntoIterator<Item = usize>) -> Reg {
        let values: Vec<i64> = values.into_iter().map(|n| n as i64).collect();
        self.slots(Elem::I64, values.len(), |out| BlockInst::Slots { out, values })
    }

    pub fn extent(&mut self, dim: &str) -> Reg {
        let dim: Dim = dim.parse().expect("an extent");
        self.emit(Elem::I64, 1, 1, |out| Inst::Extent { out, dim })
    }

    pub fn zip(&mut self, f: Fn2, x: Reg, y: Reg) -> Reg {
        let cols = self.0.regs[x].cols.max(self.0.regs[y].cols);
        let elem = if f.is_predicate() { Elem::Bool } else { self.0.regs[x].elem };
        self.emit(elem, 1, cols, |out| Inst::Zip { out, f, x, y })
    }

    /// `f(x, n)`
    pub fn with(&mut self, f: Fn2, x: Reg, n: i64) -> Reg {
        let n = self.int(n);
        self.zip(f, x, n)
    }

    pub fn load(&mut self, space: Space, index: Reg, v: usize, mask: Option<Reg>) -> Reg {
        let (from, cols) = (Mem { space, index }, self.0.regs[index].cols * v);
        let ints = match space {
            Space::Buf(buf) => self.0.bufs[buf].dtype.is_int(),
            Space::Shared(shared) => self.threads().shared[shared].dtype.is_int(),
            Space::Scratch(_) => false,
        };
        let elem = if ints { Elem::I64 } else { Elem::F32 };
        self.slots(elem, cols, |out| BlockInst::Load { out, from, mask })
    }

    pub fn store(&mut self, space: Space, index: Reg, value: Reg, mask: Option<Reg>) {
        self.block(BlockInst::Store { to: Mem { space, index }, value, mask });
    }

    pub fn barrier(&mut self, id: usize, warps: usize) {
        self.block(BlockInst::Barrier { id, warps });
    }

    /// What `write` writes, apart from the body.
    pub fn body<T>(&mut self, write: impl FnOnce(&mut Raw) -> T) -> (Vec<Inst>, T) {
        let outer = std::mem::take(&mut self.0.body);
        let result = write(self);
        (std::mem::replace(&mut self.0.body, outer), result)
    }

    /// A loop; `write` has the index and what is carried, and gives the next values of that.
    pub fn repeat(
        &mut self,
        trips: Reg,
        inits: &[Reg],
        write: impl FnOnce(&mut Raw, Reg, &[Reg]) -> Vec<Reg>,
    ) -> Vec<Reg> {
        let index = self.reg(Elem::I64, 1, 1);
        let same = |k: &mut Raw, reg: &Reg| k.0.regs.push(k.0.regs[*reg]);
        let args: Vec<Reg> = inits.iter().map(|reg| same(self, reg)).collect();
        let outs: Vec<Reg> = inits.iter().map(|reg| same(self, reg)).collect();
        let (body, next) = self.body(|k| write(k, index, &args));
        let of = |i: usize| Carried { init: inits[i], arg: args[i], next: next[i], out: outs[i] };
        let carried = (0..inits.len()).map(of).collect();
        self.push(Inst::For { index, trips, carried, body });
        outs
    }

    pub fn role(&mut self, name: &str, warps: usize, solo: bool, write: impl FnOnce(&mut Raw)) -> Role {
        let (body, ()) = self.body(write);
        Role { name: name.into(), warps, registers: if solo { 24 } else { 232 }, solo, body }
    }

    pub fn mma_wait(&mut self, pending: usize, x: Reg) -> Reg {
        let out = self.0.regs.push(self.0.regs[x]);
        self.block(BlockInst::MmaWait { pending, values: vec![(out, x)] });
        out
    }
}

/// An operand of a product.
pub fn operand(tile: Shared, turn: Reg, transposed: bool, first: usize) -> MmaTile {
    MmaTile { tile, turn, transposed, first }
}

/// Where the slots of a product's result are, for a thread: `row · height + col`, without the part that depends on the
/// thread, which is [`base`].
pub fn product_slots(n: usize, height: usize) -> impl Iterator<Item = usize> {
    (0..n / 2).map(move |s| 8 * (s / 2 % 2) * height + s % 2 + 8 * (s / 4))
}

/// The part of an element's number that depends on the thread.
pub fn base(k: &mut Raw, thread: Reg, height: i64) -> Reg {
    let (warp, lane) = (k.with(Fn2::Div, thread, 32), k.with(Fn2::Rem, thread, 32));
    let (quad, pair) = (k.with(Fn2::Div, lane, 4), k.with(Fn2::Rem, lane, 4));
    let row = k.with(Fn2::Mul, warp, 16);
    let row = k.zip(Fn2::Add, row, quad);
    let (row, col) = (k.with(Fn2::Mul, row, height), k.with(Fn2::Mul, pair, 2));
    k.zip(Fn2::Add, row, col)
}

/// A schedule.
pub fn seeded(seed: u64) -> Options {
    Options { schedule: seed, order: Order::Shuffled(seed), ..Options::default() }
}

/// Runs the kernel under several schedules, all of which must give the same.
pub fn always(k: &Raw, of: &[(&'static str, i64)], storages: &[Storage], options: Options) -> Vec<Storage> {
    let mut results: Vec<Vec<Storage>> = Vec::new();
    for seed in 0..7 {
        let mut storages = storages.to_vec();
        let options = Options { schedule: seed, order: Order::Shuffled(seed), ..options };
        if let Err(error) = run_on(&k.0, of, &mut storages, options) {
            panic!("seed {seed}: {error}\n{}", k.0);
        }
        results.push(storages);
    }
    let bits = |s: &[Storage]| s.iter().flat_map(|s| s.data.iter().map(|x| x.to_bits())).collect::<Vec<_>>();
    assert!(results.iter().all(|other| bits(other) == bits(&results[0])));
    results.swap_remove(0)
}

/// Runs the kernel under several schedules, each of which must fail with a message with one of `parts` in it.
pub fn never(k: &Raw, of: &[(&'static str, i64)], storages: &[Storage], parts: &[&str]) {
    for seed in 0..7 {
        let error = match run_on(&k.0, of, &mut storages.to_vec(), seeded(seed)) {
            Err(error @ (RunError::InBlock { .. } | RunError::Deadlock { .. })) => error.to_string(),
            other => panic!("seed {seed}: not a fault: {other:?}\n{}", k.0),
        };
        assert!(parts.iter().any(|part| error.contains(part)), "seed {seed}: {error}");
    }
}
