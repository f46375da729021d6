//! Sorting items by expert: few by one kernel, many by two.

use super::FnLower;
use super::variants::{Said, Variant};
use crate::plan::When;
use eva_ir::dim::Dim;
use eva_ir::graph::Value;
use eva_ir::lower::{BufView, Cx, LowerError};
use eva_ir::ops::sort_by_expert::{compare, count, place};
use eva_ir::types::{DType, TensorType};
use std::cell::RefCell;

impl FnLower<'_> {
    /// Writes the kernels of `root`, which sorts `items` by expert.
    pub(super) fn sort(&mut self, root: Value, experts: &Dim, items: Value) -> Result<(), LowerError> {
        let schedule = self.target.schedule.sort.clone();
        let items = self.flat_items(root, items)?;
        let homes: Vec<BufView> = (0..3).map(|part| self.new_home(root, part)).collect();
        let flat = [homes[0].clone(), flat(&homes[1]), homes[2].clone()];
        self.homes.insert(root, homes);

        let constant = |dim: &Dim| self.module.constant(dim);
        let fits = constant(experts).and_then(|n| usize::try_from(n).ok());
        let fits = fits.filter(|n| (1..=schedule.experts).contains(n));
        let extent = items.shape[0].clone();
        let (few, many) = match (fits, constant(&extent)) {
            (None, _) => (true, false),
            (_, Some(n)) => (n <= schedule.few, n > schedule.few),
            _ => (true, true),
        };
        let when = |above, most| Some(When { extent: extent.clone(), above, most }).filter(|_| few && many);
        if few {
            let when = when(i64::MIN, schedule.few);
            self.sort_kernel(root, &flat, "compared", when, &|cx| compare(cx, &items, experts))?;
        }
        if let Some(experts) = fits.filter(|_| many) {
            let when = when(schedule.few, i64::MAX);
            let ty = TensorType::new(DType::I32, [schedule.parts as i64, experts as i64].map(Dim::from));
            let name = format!("{}.counts", self.f.values[root].name);
            let base = self.temp_when(&name, &ty, when.clone());
            let counts = [self.row_major(base, &name, &ty)];
            self.sort_kernel(root, &counts, "counts", when.clone(), &|cx| count(cx, &items, experts))?;
            self.sort_kernel(root, &flat, "places", when, &|cx| place(cx, &items, &counts[0], experts))?;
        }
        Ok(())
    }

    /// The items one after another; copied, if they are not so in memory.
    fn flat_items(&mut self, root: Value, items: Value) -> Result<BufView, LowerError> {
        let home = self.homes[&items][0].clone();
        if let Some(flat) = home.merge(&[2]) {
            return Ok(flat);
        }
        let (name, ty) = (format!("{}.items", self.f.values[root].name), self.tensor(items).clone());
        let base = self.temp_when(&name, &ty, None);
        let copied = self.row_major(base, &name, &ty);
        self.copy(&home, &copied)?;
        Ok(flat(&copied))
    }

    fn sort_kernel(
        &mut self,
        root: Value,
        results: &[BufView],
        name: &'static str,
        when: Option<When>,
        write: &dyn for<'k> Fn(&Cx<'k>) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let said = RefCell::<Said>::default();
        let variant = Variant::Named(name);
        let (kernel, bases) = self.with_cx(root, &[], results, variant, &said, &|cx, _| write(cx))?;
        self.launch(kernel, bases, when);
        Ok(())
    }
}

/// The elements of a tensor without gaps as one axis.
fn flat(view: &BufView) -> BufView {
    view.merge(&[view.shape.len()]).expect("it is in row-major order")
}
