//! Lets tiles that are not needed at the same time share memory.

use eva_ir::entity::{Arena, Entity};
use eva_ir::kernel::*;
use std::collections::HashMap;

/// Makes scratch memories of the same type one where their uses do not overlap in time, and drops unused ones.
pub(super) fn share(kernel: &mut Kernel) {
    let mut uses = Uses::default();
    uses.visit(&kernel.body);
    let spans: HashMap<Scratch, (usize, usize)> =
        uses.spans.iter().map(|(scratch, span)| (*scratch, uses.extend(*span))).collect();

    // The largest first: what comes later fits into what is there.
    let mut order: Vec<Scratch> =
        kernel.scratch.keys().filter(|scratch| spans.contains_key(scratch)).collect();
    order.sort_by_key(|scratch| (std::cmp::Reverse(kernel.scratch[*scratch].len), scratch.index()));
    let mut shared: Arena<Scratch, ScratchData> = Arena::default();
    let mut tenants: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut new: HashMap<Scratch, Scratch> = HashMap::new();
    for old in order {
        let (data, span) = (&kernel.scratch[old], spans[&old]);
        let apart = |other: &(usize, usize)| other.1 < span.0 || span.1 < other.0;
        let fits = |id: &Scratch| shared[*id].elem == data.elem && tenants[id.index()].iter().all(apart);
        let id = shared.keys().find(fits).unwrap_or_else(|| {
            tenants.push(Vec::new());
            shared.push(data.clone())
        });
        tenants[id.index()].push(span);
        new.insert(old, id);
    }
    kernel.scratch = shared;
    rename(&mut kernel.body, &new);
}

/// When each memory is used; an instruction's number is its time.
#[derive(Default)]
struct Uses {
    now: usize,
    spans: HashMap<Scratch, (usize, usize)>,
    /// The first and last time of each loop.
    loops: Vec<(usize, usize)>,
}

impl Uses {
    fn visit(&mut self, body: &[Inst]) {
        for inst in body {
            self.now += 1;
            match inst {
                Inst::For { body, .. } => {
                    let start = self.now;
                    self.visit(body);
                    self.now += 1;
                    self.loops.push((start, self.now));
                }
                Inst::If { body, .. } => self.visit(body),
                Inst::VLoad { from, .. } => self.touch(from),
                Inst::VStore { to, .. } => self.touch(to),
                Inst::Micro(micro) => [micro.a, micro.b, micro.c].iter().for_each(|mem| self.touch(mem)),
                _ => {}
            }
        }
    }

    fn touch(&mut self, mem: &Mem) {
        if let Space::Scratch(scratch) = mem.space {
            self.spans.entry(scratch).or_insert((self.now, self.now)).1 = self.now;
        }
    }

    /// A span that covers each loop that it is only partly in: what it holds lasts from trip to trip there.
    /// (What is used in one loop alone is written anew in each trip.)
    fn extend(&self, mut span: (usize, usize)) -> (usize, usize) {
        loop {
            let inside = |l: &(usize, usize)| l.0 <= span.0 && span.1 <= l.1;
            let apart = |l: &(usize, usize)| l.1 < span.0 || span.1 < l.0;
            let covered = |l: &(usize, usize)| span.0 <= l.0 && l.1 <= span.1;
            let Some(cut) = self.loops.iter().find(|l| !inside(l) && !apart(l) && !covered(l)) else {
                return span;
            };
            span = (span.0.min(cut.0), span.1.max(cut.1));
        }
    }
}

fn rename(body: &mut [Inst], new: &HashMap<Scratch, Scratch>) {
    let mem = |mem: &mut Mem| {
        if let Space::Scratch(scratch) = &mut mem.space {
            *scratch = new[scratch];
        }
    };
    for inst in body {
        match inst {
            Inst::For { body, .. } | Inst::If { body, .. } => rename(body, new),
            Inst::VLoad { from, .. } => mem(from),
            Inst::VStore { to, .. } => mem(to),
            Inst::Micro(micro) => [&mut micro.a, &mut micro.b, &mut micro.c].into_iter().for_each(mem),
            _ => {}
        }
    }
}
