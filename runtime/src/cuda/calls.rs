//! [`Calls`]: what a session has on a GPU, and how it runs a call there.

use super::code::Code;
use super::error::{CudaError, Need};
use super::graph::Graphs;
use super::launch::{Launch, of_kernel};
use super::memory::Buffer;
use crate::bind::{self, Addresses, Bound, walk};
use crate::error::Error;
use crate::exec::Executable;
use crate::finite;
use crate::session::Arg;
use eva_ir::dim::Sym;

/// Buffers of a session, kept from call to call, so that a call finds them where the one before had them.
pub(crate) struct Calls {
    /// One for each parameter that is an input.
    inputs: Vec<Option<Buffer>>,
    /// One for each result that is not a state's.
    results: Vec<Option<Buffer>>,
    arena: Option<Buffer>,
    /// The launches of the last call.
    last: Option<(Key, Vec<Launch>)>,
    graphs: Graphs<Key>,
    /// Whether calls become graphs; the first never does.
    pub(crate) use_graphs: bool,
    called: bool,
}

/// What launches depend on.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    sizes: Vec<(Sym, i64)>,
    addresses: Vec<usize>,
}

/// A call, its arguments checked.
pub(crate) struct Call<'a> {
    pub exe: &'a Executable,
    pub code: &'a Code,
    pub bound: &'a Bound,
    /// The extents that `bound` is for.
    pub sizes: &'a [(Sym, i64)],
    pub args: Vec<Arg<'a>>,
    /// Where each result goes.
    pub results: Vec<ResultAt>,
    /// What is there already, for messages.
    pub have: Need,
    /// Whether to look at what each kernel has written.
    pub finite: bool,
}

/// Where a result goes.
pub(crate) enum ResultAt {
    /// To a buffer of the session's own, of so many bytes.
    Own(usize),
    /// There; null for the result that is a state.
    Given(*mut u8),
}

/// What is added to an allocation that grows, so that it need not grow on every call: an eighth of it.
const HEADROOM: usize = 8;

/// Makes `slot` a buffer of at least `bytes` bytes.
fn reserve(slot: &mut Option<Buffer>, call: &Call, bytes: usize, what: &str) -> Result<*mut u8, CudaError> {
    if slot.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
        let grows = slot.take().is_some();
        let gpu = call.code.gpu();
        let roomy = if grows { bytes.saturating_add(bytes / HEADROOM) } else { bytes };
        let made = gpu.allocate(roomy, what).or_else(|_| gpu.allocate(bytes, what));
        *slot = Some(made.map_err(|e| with_numbers(e, call.have.clone()))?);
    }
    Ok(slot.as_ref().map_or(std::ptr::null_mut(), address))
}

/// A buffer's address, in the type that plans are run with. Nothing on the host reads or writes there.
pub(crate) fn address(buffer: &Buffer) -> *mut u8 {
    std::ptr::without_provenance_mut(buffer.address() as usize)
}

/// The error, with what else is in the GPU's memory.
pub(crate) fn with_numbers(error: CudaError, have: Need) -> CudaError {
    match error {
        CudaError::OutOfMemory(need) => {
            let Need { what, bytes, free, total, .. } = *need;
            CudaError::OutOfMemory(Box::new(Need { what, bytes, free, total, ..have }))
        }
        error => error,
    }
}

impl Calls {
    pub(crate) fn new() -> Self {
        Self {
            inputs: Vec::new(),
            results: Vec::new(),
            arena: None,
            last: None,
            graphs: Graphs::new(),
            use_graphs: true,
            called: false,
        }
    }

    /// Starts a call: everything it needs is allocated, inputs are copied, kernels are launched.
    ///
    /// # Safety
    /// The arguments and results are those of the bound function: buffers of the types and sizes that the plan and
    /// `bound` say, states not used by anyone else.
    pub(crate) unsafe fn start(&mut self, call: &Call) -> Result<(), Error> {
        let gpu = call.code.gpu();
        let name = &call.exe.func_plan(call.bound.func).name;
        // All memory first: there is room for all of the call, or none of it happens.
        self.inputs.resize_with(call.args.len(), || None);
        self.results.resize_with(call.results.len(), || None);
        let mut params = Vec::with_capacity(call.args.len());
        for (slot, arg) in self.inputs.iter_mut().zip(&call.args) {
            params.push(match arg {
                Arg::Kept(address) => *address,
                Arg::Input(bytes) => reserve(slot, call, bytes.len(), &format!("an input of @{name}"))?,
            });
        }
        let mut results = Vec::with_capacity(call.results.len());
        for (slot, at) in self.results.iter_mut().zip(&call.results) {
            results.push(match at {
                ResultAt::Given(address) => *address,
                ResultAt::Own(bytes) => reserve(slot, call, *bytes, &format!("a result of @{name}"))?,
            });
        }
        let what = format!("the activations of a call of @{name}");
        let arena = reserve(&mut self.arena, call, call.bound.arena, &what)?;
        for (slot, arg) in self.inputs.iter().zip(&call.args) {
            if let (Some(buffer), Arg::Input(bytes)) = (slot, arg) {
                buffer.write(0, bytes)?;
            }
        }

        let addresses = params.iter().chain(&results).chain([&arena]).map(|address| address.addr()).collect();
        if call.finite {
            let at = Addresses { params: &params, results: &results, arena };
            // SAFETY: the caller's.
            return unsafe { self.start_checked(call, at) };
        }
        let key = Key { sizes: call.sizes.to_vec(), addresses };
        if self.last.as_ref().is_none_or(|(have, _)| *have != key) {
            let mut launches = Vec::new();
            let mut prepare = |number: usize, bufs: &[*mut u8], with: &bind::Launch, _: &str| {
                let kernel = &call.exe.plan().kernels[eva_ir::entity::Entity::new(number)];
                launches.extend(call.code.prepare(number, kernel, bufs, &with.syms, with.programs)?);
                Ok(())
            };
            let constant = |at| call.exe.constant(at);
            let at = Addresses { params: &params, results: &results, arena };
            walk(call.exe.plan(), call.bound, call.bound.func, at, &constant, &mut prepare)?;
            self.last = Some((key, launches));
        }
        let (key, launches) = self.last.as_ref().expect("it was made above, if it was not there");
        let kernels = call.code.kernels();
        gpu.bind()?;
        let again = std::mem::replace(&mut self.called, true);
        if call.code.waits() {
            for launch in launches {
                let kernel = &kernels[launch.kernel];
                // SAFETY: the caller's; the session keeps the arena, inputs and results.
                unsafe { launch.start(gpu, kernel) }?;
                gpu.synchronize().map_err(|e| of_kernel(e, &kernel.name))?;
            }
        } else if again && self.use_graphs && launches.len() > 1 {
            // SAFETY: likewise.
            unsafe { self.graphs.start(key, gpu, kernels, launches) }?;
        } else {
            for launch in launches {
                // SAFETY: likewise.
                unsafe { launch.start(gpu, &kernels[launch.kernel]) }?;
            }
        }
        Ok(())
    }

    /// Runs a call kernel by kernel, and looks at what each has written.
    ///
    /// # Safety
    /// That of [`Calls::start`], of the addresses too.
    unsafe fn start_checked(&mut self, call: &Call, at: Addresses) -> Result<(), Error> {
        let (gpu, kernels) = (call.code.gpu(), call.code.kernels());
        gpu.bind()?;
        let constant = |at| call.exe.constant(at);
        let mut run = |number: usize, bufs: &[*mut u8], with: &bind::Launch, name: &str| {
            let kernel = &call.exe.plan().kernels[eva_ir::entity::Entity::new(number)];
            if let Some(launch) = call.code.prepare(number, kernel, bufs, &with.syms, with.programs)? {
                // SAFETY: the caller's.
                unsafe { launch.start(gpu, &kernels[launch.kernel]) }?;
                gpu.synchronize().map_err(|e| of_kernel(e, &kernels[launch.kernel].name))?;
            }
            finite::check(kernel, &with.syms, name, &mut |buf, from, bytes| {
                let mut host = vec![0; bytes];
                let at = bufs[buf].wrapping_offset(from as isize).addr() as u64;
                // SAFETY: elements of a buffer of the kernel, as `bind` has checked.
                unsafe { gpu.read_at(at, &mut host) }?;
                Ok(host)
            })
        };
        walk(call.exe.plan(), call.bound, call.bound.func, at, &constant, &mut run)
    }

    /// The launches of the last call.
    pub(super) fn launches(&self) -> &[Launch] {
        self.last.as_ref().map_or(&[], |(_, launches)| launches)
    }

    /// Makes all bytes of results and arena `0xff`.
    pub(crate) fn poison(&self) -> Result<(), CudaError> {
        let kept = self.results.iter().flatten().chain(&self.arena);
        kept.filter(|buffer| buffer.bytes() > 0).try_for_each(|buffer| buffer.fill(0xff))
    }

    /// The buffer of a result of the last call, which is in it once everything started before is done.
    pub(crate) fn take_result(&mut self, result: usize) -> Option<Buffer> {
        self.results.get_mut(result).and_then(Option::take)
    }

    /// Copies the first bytes of a result of the last call to `out`, once it is there.
    pub(crate) fn read(&self, result: usize, out: &mut [u8]) -> Result<(), Error> {
        let buffer = self.results.get(result).and_then(Option::as_ref);
        let buffer = buffer.ok_or_else(|| Error::Internal(format!("there is no result {result}")))?;
        Ok(buffer.read(0, out)?)
    }
}
