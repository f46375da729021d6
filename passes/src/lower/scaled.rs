//! Values of 8 bits: two buffers each, codes and scales.

use super::FnLower;
use crate::Error;
use crate::plan::{Base, CAPACITY, ParamPlan, ResultPlan};
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, ParamKind, Value};
use eva_ir::lower::{BufView, LowerError, SCALES, ScalesView};
use eva_ir::ops::Op;
use eva_ir::scales::Block;
use eva_ir::types::TensorType;
use std::collections::HashMap;

impl FnLower<'_> {
    /// Adds a parameter for the scales of each that has any.
    pub(super) fn scales_of_params(&mut self, params: &mut Vec<ParamPlan>) -> Result<(), Error> {
        for (value, kind) in self.f.params() {
            let ty = self.tensor(value);
            if ty.scales.is_none() {
                continue;
            }
            let scales = self.scales_type(ty).map_err(|e| self.unsupported(value, e))?;
            let name = format!("{}{SCALES}", self.f.values[value].name);
            let (base, number) = (self.bases.len(), params.len());
            self.bases.push(Base::Param(number));
            params[value.index()].scales = Some(number);
            let (paged, whole, needed, prepared, scaled) = (false, false, false, None, None);
            let ty = scales;
            params.push(ParamPlan { name, kind, ty, base, paged, whole, needed, prepared, scales: scaled });
        }
        Ok(())
    }

    /// Adds a result for the scales of each that has any.
    pub(super) fn scales_of_results(&mut self, params: &[ParamPlan], results: &mut Vec<ResultPlan>) {
        for i in 0..results.len() {
            let Ok(ty) = self.scales_type(&results[i].ty) else { continue };
            let name = format!("{}{SCALES}", results[i].name);
            let state = results[i].state.and_then(|param| params[param].scales);
            results[i].scales = Some(results.len());
            results.push(ResultPlan { name, ty, state, scales: None });
        }
    }

    /// The tensor of a tensor's scales, whose extents must be fixed where blocks cut them.
    fn scales_type(&self, ty: &TensorType) -> Result<TensorType, LowerError> {
        let Some(scales) = &ty.scales else { return Err(LowerError::new(format!("{ty} has no scales"))) };
        let open = ty
            .shape
            .iter()
            .zip(&scales.blocks)
            .find(|(dim, block)| matches!(block, Block::Of(_)) && self.module.constant(dim).is_none());
        if let Some((dim, _)) = open {
            let message = format!(
                "`{dim}`, of which some indices share a scale, has no fixed value: give it one with `dim {dim} = …`"
            );
            return Err(LowerError::new(message));
        }
        Ok(TensorType::new(scales.encoding.dtype(), self.scales_shape(ty)))
    }

    fn scales_shape(&self, ty: &TensorType) -> Vec<Dim> {
        let shape = ty.scales_shape(&|dim| self.module.constant(dim)).unwrap_or_default();
        shape.iter().map(|dim| self.fix(dim)).collect()
    }

    /// A parameter with its scales, which are row-major; those of a state have room for the capacity, too.
    pub(super) fn scaled_param(&self, value: Value, view: BufView) -> BufView {
        let ty = self.tensor(value);
        let before = self.f.params().take_while(|(param, _)| *param != value);
        let rank = before.filter(|(param, _)| self.tensor(*param).scales.is_some()).count();
        let base = self.f.params().count() + rank;
        let mut home = self.scaled_home(view, ty, base, false);
        let is_state = self.f.values[value].def == Def::Param(ParamKind::State);
        if let Some(scales) = home.scales.as_mut().filter(|_| is_state && ty.rank() >= 2) {
            let mut by = scales.by.clone();
            by.strides[0] = &Dim::sym(CAPACITY) * &by.strides[1];
            **scales = ScalesView::new(ty, by);
        }
        home
    }

    /// The tensor `codes` of type `ty` with its scales in `base`.
    pub(super) fn scaled_home(
        &self,
        codes: BufView,
        ty: &TensorType,
        base: usize,
        blocked_first: bool,
    ) -> BufView {
        codes.with_scales(&self.fixed_type(ty), base, &self.scales_shape(ty), blocked_first)
    }

    /// Where the scales of a value about to be computed shall lie: in the scales of the result that it is, or in the
    /// arena. Products want those of neighbouring rows next to each other, callers and callees the order of parameters.
    pub(super) fn new_scaled(
        &mut self,
        value: Value,
        home: BufView,
        ty: &TensorType,
        slot: Option<usize>,
    ) -> BufView {
        let (base, blocked_first) = match slot {
            Some(i) => (self.result_scales_base(i), false),
            None => {
                let own = self.temp_scales(&home.name, ty);
                (own, !self.fusion.is_handed_over(self.f, value))
            }
        };
        self.scaled_home(home, ty, base, blocked_first)
    }

    fn temp_scales(&mut self, name: &str, ty: &TensorType) -> usize {
        let dtype = ty.scales.as_ref().map_or(ty.dtype, |scales| scales.encoding.dtype());
        let scales = TensorType::new(dtype, self.scales_shape(ty));
        self.temp(&format!("{name}{SCALES}"), &scales)
    }

    /// The base of the scales of result `i`.
    pub(super) fn result_scales_base(&mut self, i: usize) -> usize {
        let scaled = |i: &usize| self.tensor(self.f.results[*i]).scales.is_some();
        let number = self.f.results.len() + (0..i).filter(scaled).count();
        let known = self.bases.iter().position(|base| matches!(base, Base::Result(j) if *j == number));
        known.unwrap_or_else(|| {
            self.bases.push(Base::Result(number));
            self.bases.len() - 1
        })
    }

    /// A tensor of 8-bit floats in row-major order, its scales too: itself, or a copy.
    pub(super) fn packed_scaled(&mut self, view: BufView, ty: &TensorType) -> Result<BufView, LowerError> {
        let plain = |base: usize, scales: usize| {
            let codes = self.row_major(base, &view.name, ty);
            self.scaled_home(codes, ty, scales, false)
        };
        if let Some(scales) = &view.scales {
            let same = plain(view.base, scales.by.base);
            let alike = same
                .scales
                .as_ref()
                .is_some_and(|own| (&own.along, &own.offset) == (&scales.along, &scales.offset));
            if alike && (&same.strides, &same.offset) == (&view.strides, &view.offset) {
                return Ok(view);
            }
        }
        let name = format!("{}_packed", view.name);
        let base = self.temp(&name, &TensorType::new(ty.dtype, view.shape.iter().cloned()));
        let scales = self.temp_scales(&name, ty);
        let codes = self.row_major(base, &name, ty);
        let copy = self.scaled_home(codes, ty, scales, false);
        self.copy_scaled(&view, &copy, ty)?;
        Ok(copy)
    }

    /// Copies codes, and scales.
    pub(super) fn copy_scaled(
        &mut self,
        from: &BufView,
        to: &BufView,
        ty: &TensorType,
    ) -> Result<(), LowerError> {
        let (fixed, shape) = (self.fixed_type(ty), self.scales_shape(ty));
        let scales = |view: &BufView| view.scales.as_ref().and_then(|scales| scales.tensor(&fixed, &shape));
        let (Some(from_scales), Some(to_scales)) = (scales(from), scales(to)) else {
            return Err(LowerError::new("blocks that share a scale are not whole"));
        };
        self.copy(&from.codes(), &to.codes())?;
        self.copy(&from_scales, &to_scales)
    }

    /// Writes the kernels of a value of 8 bits that is other rows of one in memory: codes are moved as they are, and so are
    /// their scales, by the op itself.
    pub(super) fn moved(&mut self, value: Value, op: &Op, args: &[Value]) -> Result<(), LowerError> {
        let home = self.new_home(value, 0);
        let ty = self.tensor(value);
        let scales_of = |view: &BufView, ty: &TensorType| {
            let scales = view.scales.as_ref();
            let scales = scales.and_then(|s| s.tensor(&self.fixed_type(ty), &self.scales_shape(ty)));
            scales.ok_or_else(|| LowerError::new("blocks that share a scale are not whole"))
        };
        let (mut codes, mut scales) = (HashMap::new(), HashMap::new());
        for &arg in args.iter().filter(|&&arg| self.tensor(arg).scales.is_some()) {
            let view = self.home(arg);
            scales.insert(arg, scales_of(&view, self.tensor(arg))?);
            codes.insert(arg, view.codes());
        }
        let own = scales_of(&home, ty)?;
        self.moving(&home.codes(), op, args, &codes)?;
        self.moving(&own, op, args, &scales)?;
        self.homes.insert(value, vec![home]);
        Ok(())
    }

    /// The buffer of the scales of an argument, row-major.
    pub(super) fn scales_base(&mut self, arg: Value, kind: ParamKind) -> Result<usize, LowerError> {
        let home = self.home(arg);
        let home = if kind == ParamKind::State { home } else { self.packed(home, self.tensor(arg))? };
        let scales = home.scales.ok_or_else(|| LowerError::new("an argument has no scales"))?;
        Ok(scales.by.base)
    }

    /// Gives the results of a call their scales; the buffers of those that are not states'.
    pub(super) fn called_scales(
        &mut self,
        value: Value,
        results: &[ResultPlan],
        homes: &mut [BufView],
    ) -> Vec<Option<usize>> {
        let mut bases = Vec::new();
        for (i, result) in results.iter().enumerate().filter(|(_, result)| result.scales.is_some()) {
            // A state's home is the argument's, which has its scales.
            if result.state.is_some() {
                bases.push(None);
                continue;
            }
            let is_result = self.result_bases.iter().position(|base| *base == Some(homes[i].base));
            let base = match is_result {
                Some(j) => self.result_scales_base(j),
                None => {
                    self.temp_scales(&format!("{}.{}", self.f.values[value].name, result.name), &result.ty)
                }
            };
            homes[i] = self.scaled_home(homes[i].clone(), &result.ty, base, false);
            bases.push(Some(base));
        }
        bases
    }

    pub(super) fn fix_scales(&self, scales: ScalesView) -> ScalesView {
        let mut scales =
            ScalesView { by: self.fix_view(scales.by), offset: self.fix(&scales.offset), ..scales };
        for along in &mut scales.along {
            along.from = self.fix(&along.from);
            along.stride = self.fix(&along.stride);
            along.steps = along.steps.iter().map(|dim| self.fix(dim)).collect();
        }
        scales
    }
}
