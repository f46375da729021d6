//! What is asked of a block as a whole: its threads, its shared memory, who fills and empties pipes.

use super::*;
use crate::kernel::block::{Block, Launch, MapData, Pipe, Role, Shared, SharedData};

/// What the block phase has to be remembered while instructions are checked.
#[derive(Default)]
pub(super) struct Threads<'k> {
    pub(super) roles: &'k [Role],
    /// The role whose body is being checked.
    pub(super) role: Option<usize>,
    /// Whether a condition guards what is being checked.
    pub(super) guarded: bool,
    /// Whether the instruction is the last of the kernel's body.
    pub(super) last: bool,
    /// What roles do with pipes.
    pub(super) parts: Vec<(Pipe, usize, Part)>,
    /// The barriers of several warps: in which role, which one, of how many.
    pub(super) barriers: Vec<(Option<usize>, usize, usize)>,
}

/// What a role does with a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Acquire,
    Copy(Shared),
    Wait,
    Release,
}

impl<'k> Check<'k> {
    pub(super) fn block_header(&mut self) {
        let block = match (&self.kernel.block, self.kernel.phase) {
            (Some(block), Phase::Block) => block,
            (None, Phase::Block) => return self.errors.push("the kernel says nothing of its threads".into()),
            (Some(_), _) => return self.errors.push("threads are there before the block phase".into()),
            (None, _) => return,
        };
        let mut wrong = Vec::new();
        if !(1..=MAX_WARPS).contains(&block.warps) {
            wrong.push(format!("a block has {} warps, not 1 to {MAX_WARPS}", block.warps));
        }
        match block.launch {
            Launch::Each { per_block: 0 } => wrong.push("a block has no programs".into()),
            Launch::Persistent { per_multiprocessor: 0 } => {
                wrong.push("a multiprocessor has no blocks".into())
            }
            _ => {}
        }
        for (shared, data) in block.shared.iter() {
            let checked = shared_data(data);
            wrong.extend(
                checked.err().map(|why| format!("the shared memory {shared} (`{}`) {why}", data.name)),
            );
        }
        let bytes = block.shared_bytes();
        if bytes > MAX_SHARED {
            wrong.push(format!("shared memory of {bytes} bytes, more than {MAX_SHARED}"));
        }
        let mut used = Vec::new();
        for (pipe, data) in block.pipes.iter() {
            let mut refuse = |why: String| wrong.push(format!("the pipe {pipe} (`{}`) {why}", data.name));
            if data.tiles.is_empty() || data.stages == 0 || data.consumers == 0 {
                refuse("has no tiles, no stages or no consumers".into());
            }
            for &tile in &data.tiles {
                match block.shared.get(tile) {
                    None => refuse(format!("has {tile}, which is not there")),
                    Some(_) if used.contains(&tile) => {
                        refuse(format!("has {tile}, which is in a pipe already"))
                    }
                    Some(have) if have.stages != data.stages => {
                        refuse(format!("has {} stages, its tile {tile} {}", data.stages, have.stages));
                    }
                    Some(_) => {}
                }
                used.push(tile);
            }
        }
        for (map, data) in block.maps.iter() {
            wrong.extend(self.map_data(data).err().map(|why| format!("the tiling {map} {why}")));
        }
        self.errors.extend(wrong);
    }

    fn map_data(&self, map: &MapData) -> Checked {
        let Some(buf) = self.kernel.bufs.get(map.buf) else {
            return Err(format!("is of {}, which is not there", map.buf));
        };
        let (name, rank) = (&buf.name, buf.shape.len());
        ensure((2..=5).contains(&rank) && buf.strides.len() == rank, || {
            format!("is of `{name}` with {rank} axes, not 2 to 5")
        })?;
        let [row, col] = map.axes;
        ensure(row < rank && col < rank && row != col, || {
            format!("runs along the axes {row} and {col} of {rank}")
        })?;
        ensure((1..=256).contains(&map.rows), || format!("has boxes of {} rows, not 1 to 256", map.rows))?;
        let row = (map.cols as i64).saturating_mul(buf.dtype.bytes());
        ensure(map.swizzle || (map.rows == 1 && map.cols <= 256 && row % 128 == 0), || {
            format!("has boxes that are not swizzled, of {} x {} {} elements", map.rows, map.cols, buf.dtype)
        })?;
        ensure(buf.strides[col].as_const() == Some(1), || {
            format!("has columns along an axis of `{name}` with stride {}", buf.strides[col])
        })?;
        // Where there are no neighbours any distance will do.
        let others = (0..rank).filter(|&axis| axis != col && buf.shape[axis].as_const() != Some(1));
        for dim in others.map(|axis| &buf.strides[axis]).chain([&buf.offset]) {
            let fits = dim.terms().all(|(_, n)| n.saturating_mul(buf.dtype.bytes()) % 16 == 0);
            ensure(fits, || {
                format!("is of `{name}`, of which {dim} elements are not a multiple of 16 bytes")
            })?;
        }
        Ok(())
    }

    /// Checks the division of the threads.
    pub(super) fn roles(&mut self, roles: &'k [Role], block: &Block) -> Checked {
        ensure(self.block.last && self.block.role.is_none(), || "is not at the end of the kernel".into())?;
        for Role { name, warps, registers, .. } in roles {
            ensure(*warps > 0 && warps % 4 == 0, || {
                format!("`{name}` has {warps} warps, not a multiple of 4")
            })?;
            ensure((24..=240).contains(registers) && registers % 8 == 0, || {
                format!("`{name}` has {registers} registers a thread, not a multiple of 8 from 24 to 240")
            })?;
        }
        let warps = roles.iter().map(|role| role.warps).fold(0, usize::saturating_add);
        ensure(warps == block.warps, || format!("the roles have {warps} warps, the block {}", block.warps))?;
        let registers = roles.iter().map(|role| role.warps.saturating_mul(32 * role.registers));
        let registers = registers.fold(0, usize::saturating_add);
        ensure(registers <= MAX_REGISTERS, || {
            format!("the roles have {registers} registers, more than {MAX_REGISTERS}")
        })
    }

    /// Checks barriers and pipes, once every instruction has been seen.
    pub(super) fn finish_block(&mut self) {
        let Some(block) = &self.kernel.block else { return };
        let mut wrong = Vec::new();
        let threads = &self.block;
        for &(role, id, warps) in &threads.barriers {
            let comes = |other: usize| threads.barriers.iter().any(|&(r, i, _)| (r, i) == (Some(other), id));
            let come = match role {
                None => block.warps,
                Some(_) => {
                    let roles = threads.roles.iter().enumerate().filter(|(i, _)| comes(*i));
                    roles.map(|(_, role)| role.warps).fold(0, usize::saturating_add)
                }
            };
            let error = format!("barrier {id} is of {warps} warps, but {come} come to it");
            if come != warps && !wrong.contains(&error) {
                wrong.push(error);
            }
        }
        for (pipe, data) in block.pipes.iter() {
            let does = |role: usize, part: Part| threads.parts.contains(&(pipe, role, part));
            let mut refuse = |why: String| wrong.push(format!("the pipe {pipe} (`{}`) {why}", data.name));
            let (mut producers, mut consumers) = (0, 0);
            for (i, role) in threads.roles.iter().enumerate() {
                let copies = data.tiles.iter().filter(|&&tile| does(i, Part::Copy(tile))).count();
                match (does(i, Part::Acquire), copies == data.tiles.len()) {
                    (true, true) => producers += 1,
                    (false, _) if copies == 0 => {}
                    _ => refuse(format!("is not acquired and filled as a whole by `{}`", role.name)),
                }
                match (does(i, Part::Wait), does(i, Part::Release)) {
                    (true, true) => consumers = role.warps.saturating_add(consumers),
                    (false, false) => {}
                    _ => refuse(format!("is not both waited for and released by `{}`", role.name)),
                }
            }
            if producers != 1 {
                refuse(format!("is filled by {producers} roles, not by one"));
            }
            if consumers != data.consumers {
                refuse(format!("is released by {consumers} warps, not by {}", data.consumers));
            }
        }
        self.errors.extend(wrong);
    }
}

fn shared_data(data: &SharedData) -> Checked {
    let SharedData { dtype, rows, cols, stages, swizzle, .. } = data;
    ensure(*rows > 0 && *cols > 0 && *stages > 0, || "has no elements".into())?;
    ensure(![DType::F64, DType::I32].contains(dtype), || format!("holds {dtype}"))?;
    let bytes = cols.saturating_mul(dtype.bytes() as usize);
    ensure(!swizzle || (bytes % 128 == 0 && rows % 8 == 0), || {
        format!("is swizzled, but not of a multiple of 8 rows and of 128 bytes a row: {dtype}[{rows}x{cols}]")
    })
}
