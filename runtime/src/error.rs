//! What can go wrong at run time.

/// Why something could not be compiled or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compiler refused.
    #[error(transparent)]
    Compile(#[from] eva_passes::Error),
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] eva_cranelift::Error),
    /// The backend for GPUs refused.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Ptx(#[from] eva_ptx::Error),
    /// The GPU.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// Kernels that were compiled ahead of time.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Artifact(#[from] crate::cuda::artifact::ArtifactError),
    /// A device that this program was built without.
    #[error("this program was built without support for `{0}`; build it with the feature `cuda`")]
    NoSuchDevice(crate::device::Device),
    /// There is no such function.
    #[error("the module has no function `{name}`; it has {have}")]
    NoFunction {
        /// The name asked for.
        name: String,
        /// The names there are.
        have: String,
    },
    /// A tensor that the function needs was not given.
    #[error("`{name}` of @{function} was not given: it is {ty}")]
    Missing {
        /// The parameter.
        name: String,
        /// The function.
        function: String,
        /// The parameter's type.
        ty: String,
    },
    /// A tensor that the function does not have was given.
    #[error("@{function} has no parameter `{name}`")]
    Unknown {
        /// The name given.
        name: String,
        /// The function.
        function: String,
    },
    /// States are in pages where they should not be, or the other way round.
    #[error("{0}")]
    Pages(String),
    /// A pool has too few pages.
    #[error("{wanted} more page{} needed, but of {pages} only {free} {} free", if *wanted == 1 { " is" } else { "s are" }, if *free == 1 { "is" } else { "are" })]
    OutOfPages {
        /// How many more are needed.
        wanted: usize,
        /// How many are free.
        free: usize,
        /// How many there are.
        pages: usize,
    },
    /// A result that the last call did not have, or that was taken.
    #[error("the last call of @{function} has no result `{name}`, or it was taken")]
    NoResult {
        /// The name asked for.
        name: String,
        /// The function.
        function: String,
    },
    /// A tensor that does not fit.
    #[error("`{name}` is {want}, but it was given {have}")]
    Shape {
        /// The parameter.
        name: String,
        /// Its type, with values of the extents where they are known.
        want: String,
        /// What was given.
        have: String,
    },
    /// What a function has of weights alone could not be computed.
    #[error("computing what @{function} needs of its weights: {error}")]
    Prepare {
        /// The function.
        function: String,
        /// Why not.
        error: Box<Error>,
    },
    /// A cache without enough room.
    #[error("the cache has room for {capacity} tokens, but {tokens} are needed")]
    Capacity {
        /// Its room.
        capacity: usize,
        /// What is needed.
        tokens: usize,
    },
    /// A NaN or an infinity, found because [`crate::Session::check_finite`] asked for it.
    #[error("{0}")]
    NotFinite(Box<crate::finite::NotFinite>),
    /// Sizes whose tensors do not fit in memory.
    #[error("the activations of this call need more memory than a machine can have: {0}")]
    TooLarge(String),
    /// The number of threads could not be set up.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why not.
        reason: String,
    },
    /// A mistake of the compiler's own.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}
