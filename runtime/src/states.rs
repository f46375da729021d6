//! [`States`]: what a function keeps between calls.

use crate::error::Error;
use crate::memory::Memory;
use crate::pages::PageCopy;
use crate::shared::Part;
use crate::tensor::Tensor;
use eva_ir::types::DType;
use std::collections::HashMap;

/// Tensors kept between calls, by the names of a function's state parameters, on the device that the function runs on.
///
/// Caches have rows for tokens, as many as there is capacity; what is replaced as a whole (`assign`) has the shape of its
/// type.
pub struct States {
    /// How many rows each sequence has room for; of states in pages, the rows of all pages.
    pub capacity: usize,
    /// How many sequences there are; of states in pages, how many pages.
    pub batch: usize,
    pub(crate) tensors: HashMap<String, State>,
}

/// One of them: `[batch, capacity, …]`, pages `[count, rows, …]`, or what is replaced as a whole.
pub(crate) struct State {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub memory: Memory,
    /// Whether it is replaced as a whole.
    pub whole: bool,
}

impl State {
    /// The bytes of a row.
    fn row(&self) -> usize {
        self.shape[2..].iter().product::<usize>() * self.dtype.bytes() as usize
    }
}

impl States {
    /// States that are replaced as a whole, in memory that others have parts of, too.
    pub fn of_parts(parts: &[(&str, Part)]) -> Self {
        let state = |(name, part): &(&str, Part)| {
            let (dtype, shape) = (part.dtype(), part.shape().to_vec());
            (name.to_string(), State { dtype, shape, memory: Memory::Part(part.clone()), whole: true })
        };
        Self { capacity: 0, batch: 0, tensors: parts.iter().map(state).collect() }
    }

    /// The states in memory that others have parts of, too, sorted by their names.
    pub(crate) fn parts(&self) -> Vec<(&str, &Part)> {
        let mut parts = Vec::new();
        for (name, state) in &self.tensors {
            if let Memory::Part(part) = &state.memory {
                parts.push((name.as_str(), part));
            }
        }
        parts.sort_by_key(|(name, _)| *name);
        parts
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|state| state.memory.len()).sum()
    }

    /// Copies the first rows of one page to another, in every state; for states in pages.
    pub fn copy_page(&mut self, copy: PageCopy) -> Result<(), Error> {
        for state in self.tensors.values_mut().filter(|state| !state.whole) {
            let (row, page) = (state.row(), state.row() * state.shape[1]);
            state.memory.copy_within(
                copy.from * page,
                copy.to * page,
                copy.rows.min(state.shape[1]) * row,
            )?;
        }
        Ok(())
    }

    /// The names of the states, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The names of the states that are replaced as a whole, sorted.
    pub fn whole(&self) -> Vec<&str> {
        let whole = self.tensors.iter().filter(|(_, state)| state.whole);
        let mut names: Vec<&str> = whole.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// The element type and extents of a state's memory.
    pub fn shape(&self, name: &str) -> Option<(DType, &[usize])> {
        self.tensors.get(name).map(|state| (state.dtype, &state.shape[..]))
    }

    /// Fills the first rows of a state, `[batch, rows, …]`; all of one that is replaced as a whole.
    pub fn write(&mut self, name: &str, rows: &Tensor) -> Result<(), Error> {
        let missing = || Error::Unknown { name: name.into(), function: "the states".into() };
        let state = self.tensors.get_mut(name).ok_or_else(missing)?;
        let (have, want) = (rows.shape(), &state.shape);
        if state.whole && rows.dtype() == state.dtype && have == want {
            return state.memory.write(0, rows.bytes());
        }
        let fits = !state.whole
            && rows.dtype() == state.dtype
            && have.len() == want.len()
            && have[0] == want[0]
            && have[1] <= want[1]
            && have[2..] == want[2..];
        if !fits {
            let have = format!("{}{have:?}", rows.dtype());
            return Err(Error::Shape { name: name.into(), want: format!("{}{want:?}", state.dtype), have });
        }
        let (from, to) = (have[1] * state.row(), want[1] * state.row());
        for batch in 0..have[0] {
            state.memory.write(batch * to, &rows.bytes()[batch * from..][..from])?;
        }
        Ok(())
    }

    /// All of a state: of a cache, with the room that is not used.
    pub fn get(&self, name: &str) -> Result<Tensor, Error> {
        let missing = || Error::Unknown { name: name.into(), function: "the states".into() };
        let state = self.tensors.get(name).ok_or_else(missing)?;
        let mut all = Tensor::zeros(state.dtype, &state.shape);
        state.memory.read(0, all.bytes_mut())?;
        Ok(all)
    }

    /// The first `n` rows of a cache, `[batch, n, …]`; all of a state that is replaced as a whole.
    pub fn read(&self, name: &str, n: usize) -> Result<Tensor, Error> {
        let missing = || Error::Unknown { name: name.into(), function: "the states".into() };
        let state = self.tensors.get(name).ok_or_else(missing)?;
        if state.whole {
            return self.get(name);
        }
        if n > state.shape[1] {
            return Err(Error::Capacity { capacity: state.shape[1], tokens: n });
        }
        let mut shape = state.shape.clone();
        shape[1] = n;
        let mut rows = Tensor::zeros(state.dtype, &shape);
        let (from, to) = (state.shape[1] * state.row(), n * state.row());
        for batch in 0..shape[0] {
            state.memory.read(batch * from, &mut rows.bytes_mut()[batch * to..][..to])?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Bytes;

    /// Two sequences with room for five rows of three.
    fn states() -> States {
        let shape = vec![2, 5, 3];
        let memory = Memory::Host(Bytes::zeroed(2 * 5 * 3 * 4));
        let state = State { dtype: DType::F32, shape, memory, whole: false };
        States { capacity: 5, batch: 2, tensors: HashMap::from([("c".to_string(), state)]) }
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        let mut states = states();
        let rows: Vec<f32> = (1..=2 * 4 * 3).map(|i| i as f32).collect();
        states.write("c", &Tensor::from_f32(&[2, 4, 3], &rows)).unwrap();
        assert_eq!(states.read("c", 4).unwrap().to_f32(), rows);
        let two = states.read("c", 2).unwrap();
        assert_eq!((two.shape(), two.to_f32()), (&[2, 2, 3][..], [&rows[..6], &rows[12..18]].concat()));
        let all = states.read("c", 5).unwrap().to_f32();
        assert_eq!((&all[..12], &all[12..15], &all[15..27]), (&rows[..12], &[0.0; 3][..], &rows[12..]));
        assert_eq!(states.bytes(), 120);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut states = states();
        for shape in [[3, 4, 3], [2, 6, 3], [2, 4, 2]] {
            let rows = Tensor::zeros(DType::F32, &shape);
            assert!(matches!(states.write("c", &rows), Err(Error::Shape { .. })), "{shape:?}");
        }
        assert!(matches!(
            states.write("c", &Tensor::zeros(DType::F16, &[2, 4, 3])),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            states.write("d", &Tensor::zeros(DType::F32, &[2, 4, 3])),
            Err(Error::Unknown { .. })
        ));
        assert!(matches!(states.read("c", 6), Err(Error::Capacity { capacity: 5, tokens: 6 })));
        assert!(matches!(states.read("d", 1), Err(Error::Unknown { .. })));
    }
}
