//! What can go wrong while a model is loaded and while it runs.

use escadre_verify::Refusal;

/// Why a model cannot be served. [`LoadError::reason`] is the stable name of the cause.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes break a rule of their format, or contradict each other.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The model is well formed, but its architecture has no graph here.
    #[error("architecture {architecture:?} is not supported; supported are: {supported}")]
    ArchitectureUnsupported {
        /// As the file names it.
        architecture: String,
        /// Comma-separated.
        supported: String,
    },
    /// More context was asked for than the model was made for.
    #[error("a context of {requested} tokens was asked for, but the model has {limit}; ask for {limit} or less")]
    ContextTooLong {
        /// Tokens asked for.
        requested: usize,
        /// Tokens that the model can address.
        limit: usize,
    },
    /// The model does not fit into the memory that this process may use. Said before anything is loaded.
    #[error(
        "the model needs {needed} bytes of memory ({weights} for weights, {kv_cache} for keys and values of \
         {context} tokens, {headroom} for work space), but the limit is {available}; raise the memory limit or \
         lower the context"
    )]
    OutOfMemoryHost {
        /// The sum of the parts, in bytes.
        needed: u64,
        /// The limit, in bytes.
        available: u64,
        /// Bytes of weights as they are held.
        weights: u64,
        /// Bytes of keys and values.
        kv_cache: u64,
        /// Bytes for everything else.
        headroom: u64,
        /// Tokens that the keys and values are for.
        context: usize,
    },
    /// The model does not fit into the memory of the device that computes. Said before anything is loaded.
    #[error(
        "the model needs {needed} bytes of the accelerator's memory ({weights} for weights, {kv_cache} for keys and \
         values of {context} tokens, {headroom} for work space), but {available} are free; use a larger accelerator or \
         lower the context"
    )]
    OutOfMemoryGpu {
        /// The sum of the parts, in bytes.
        needed: u64,
        /// What is free, in bytes.
        available: u64,
        /// Bytes of weights as they are held.
        weights: u64,
        /// Bytes of keys and values.
        kv_cache: u64,
        /// Bytes for everything else.
        headroom: u64,
        /// Tokens that the keys and values are for.
        context: usize,
    },
    /// The tensor library refused what passed our checks.
    #[error("could not load tensor {tensor}")]
    Backend {
        /// Its name in the file.
        tensor: String,
        /// What the library said.
        #[source]
        source: ModelError,
    },
}

impl LoadError {
    /// The stable CamelCase reason, used in conditions, metrics and the termination message.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason.into(),
            Self::ArchitectureUnsupported { .. } => "ArchitectureUnsupported",
            Self::ContextTooLong { .. } => "ContextTooLong",
            Self::OutOfMemoryHost { .. } => "OutOfMemoryHost",
            Self::OutOfMemoryGpu { .. } => "OutOfMemoryGpu",
            Self::Backend { .. } => "WeightsMismatch",
        }
    }
}

/// Why a step of the decoder failed. The sequences of the batch are then in an unknown state and must be removed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The batch breaks a rule of `StepBatch`.
    #[error("invalid batch: {0}")]
    Batch(String),
    /// The tensor library failed.
    #[error("the tensor library failed: {0}")]
    Tensor(String),
}
