//! Which thread has which element of a tile.
//!
//! All tiles of a kernel are laid out by one [`Family`]. It gives rows and columns bits of the thread's number that
//! they have for themselves, so that a row's number depends on some bits and on the slot, a column's on others. A tile
//! of one row or one column then needs no conversion to meet a larger one: every thread has the part it needs, and
//! threads that differ only in other bits hold the same values.

/// What a binary digit of an index along an axis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    /// A digit of the thread's number.
    Thread(u32),
    /// A digit of the slot's number.
    Slot,
}

/// In which order a thread's elements fill the slots of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Row by row.
    Rows,
    /// As results of products lie: pairs of columns, for two rows at a time; see [`eva_ir::kernel::block::BlockInst::Mma`].
    Product,
}

/// How the tiles of a kernel are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// Warps that work on one program.
    pub warps: usize,
    /// For each axis of a tile, what the digits of an index are, the lowest first. Digits beyond are slots.
    pub bits: [Vec<Bit>; 2],
    /// For each axis, a digit of the thread's number that tells its halves apart, whatever the extent.
    pub top: [Option<u32>; 2],
    /// The order of slots.
    pub order: Order,
}

/// The elements along one axis of a tile that a thread has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// The extent.
    pub n: usize,
    /// Digits of the thread's number, and what each adds to the index.
    pub threads: Vec<(u32, usize)>,
    /// What each slot adds to the index.
    pub slots: Vec<usize>,
    /// Whether some threads have slots beyond the extent.
    pub padded: bool,
}

impl Axis {
    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many neighbouring slots are neighbouring elements, at least, in groups that start at multiples of that.
    pub fn run(&self) -> usize {
        let mut run = 1;
        while self.slots.len().is_multiple_of(2 * run)
            && self.slots.chunks(2 * run).all(|chunk| chunk.windows(2).all(|w| w[1] == w[0] + 1))
        {
            run *= 2;
        }
        run
    }
}

impl Family {
    /// The threads that work on one program.
    pub fn threads(&self) -> usize {
        self.warps * 32
    }

    /// The layout of an axis of extent `n`: rows are axis 0, columns axis 1.
    pub fn axis(&self, axis: usize, n: usize) -> Axis {
        if let (Some(digit), true) = (self.top[axis], n > 1) {
            let mut half = Family { top: [None; 2], ..self.clone() }.axis(axis, n.div_ceil(2));
            half.threads.push((digit, n.div_ceil(2)));
            return Axis { n, padded: half.padded || !n.is_multiple_of(2), ..half };
        }
        let digits = n.next_power_of_two().trailing_zeros() as usize;
        let prefix = &self.bits[axis][..self.bits[axis].len().min(digits)];
        let (mut threads, mut slots, mut most) = (Vec::new(), vec![0], 0);
        for (i, bit) in prefix.iter().enumerate() {
            match bit {
                Bit::Thread(digit) => {
                    threads.push((*digit, 1 << i));
                    most += 1 << i;
                }
                Bit::Slot => slots.extend(slots.clone().iter().map(|slot| slot + (1 << i))),
            }
        }
        let period = 1 << prefix.len();
        let slots: Vec<usize> = (0..n.div_ceil(period))
            .flat_map(|rep| slots.iter().map(move |slot| slot + rep * period))
            .filter(|&slot| slot < n)
            .collect();
        let padded = slots.iter().any(|slot| slot + most >= n);
        Axis { n, threads, slots, padded }
    }

    /// The layouts of the two axes of a tile.
    pub fn axes(&self, [rows, cols]: [usize; 2]) -> [Axis; 2] {
        [self.axis(0, rows), self.axis(1, cols)]
    }

    /// Which slot of each axis each slot of a tile is.
    pub fn slots(&self, [rows, cols]: [&Axis; 2]) -> Vec<[usize; 2]> {
        let (r, c) = (rows.len(), cols.len());
        let all = (0..r).flat_map(|row| (0..c).map(move |col| [row, col]));
        let mut slots: Vec<[usize; 2]> = all.collect();
        if self.order == Order::Product && r > 1 && c > 1 {
            slots.sort_by_key(|&[row, col]| (row / 2, col / 2, row % 2, col % 2));
        }
        slots
    }

    /// The digits of a thread's number that a tile with these axes does not depend on, as a mask.
    pub fn unused(&self, axes: &[Axis; 2]) -> usize {
        let used: usize = axes.iter().flat_map(|axis| &axis.threads).map(|(digit, _)| 1 << digit).sum();
        (self.threads() - 1) & !used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_in_lanes() -> Family {
        let bits = [vec![Bit::Thread(2), Bit::Thread(3)], vec![Bit::Slot, Bit::Thread(0), Bit::Thread(1)]];
        Family { warps: 1, bits, top: [None; 2], order: Order::Rows }
    }

    #[test]
    fn digits_come_from_threads_and_slots() {
        let family = rows_in_lanes();
        let cols = family.axis(1, 19);
        assert_eq!(cols.threads, [(0, 2), (1, 4)]);
        assert_eq!(cols.slots, [0, 1, 8, 9, 16, 17]);
        assert!(cols.padded);
        assert_eq!(cols.run(), 2);
        assert!(!family.axis(1, 24).padded);
        let short = family.axis(0, 2);
        assert_eq!((short.threads, short.slots), (vec![(2, 1)], vec![0]));
    }

    #[test]
    fn every_element_has_an_owner() {
        let family = rows_in_lanes();
        for n in 1..70 {
            for axis in [family.axis(0, n), family.axis(1, n)] {
                let mut owners = vec![0; n];
                for pick in 0..1 << axis.threads.len() {
                    let part: usize =
                        axis.threads.iter().enumerate().map(|(i, (_, by))| (pick >> i & 1) * by).sum();
                    for slot in axis.slots.iter().map(|slot| slot + part) {
                        assert!(slot < n || axis.padded);
                        owners.get_mut(slot).into_iter().for_each(|count| *count += 1);
                    }
                }
                assert!(owners.iter().all(|&count| count == 1), "{n}: {owners:?}");
            }
        }
    }

    #[test]
    fn threads_that_a_tile_does_not_need_are_told() {
        let family = rows_in_lanes();
        assert_eq!(family.unused(&family.axes([1, 1])), 31);
        assert_eq!(family.unused(&family.axes([4, 8])), 16);
        assert_eq!(family.unused(&family.axes([3, 2])), 0b10011);
    }
}
