//! HTTP: the API on one port, probes and status on another, and how both begin and end.

pub mod admin;
mod admission;
mod body;
mod connection;
pub mod error;
mod guarded;
mod in_flight;
pub mod listen;
mod openai;
pub mod openapi;
mod probe;
mod record;
mod routes;
pub mod signals;
mod stream;
mod tls;

pub use in_flight::InFlight;
pub use probe::Probe;
pub(crate) use record::Record;
pub use routes::router;
pub use tls::{Tls, TlsError};

use crate::access::Access;
use crate::dialect::Dialect;
use crate::engine::Engine;
use crate::grammar::Grammars;
use crate::metrics::Metrics;
use crate::model::{GenerationDefaults, Pooling, SpecialTokens, Tokenizer};
use crate::trace::Tracer;
use crate::traffic::Traffic;
use error::{ApiError, Code};
use escadre_verify::Digest;
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What clients are told to wait while the model is loaded.
const LOADING_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What the API's handlers share.
pub struct App {
    served: OnceLock<Arc<Served>>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Where the operator sees how requests went.
    pub traffic: Arc<Traffic>,
    /// Who may ask.
    pub access: Arc<Access>,
    /// What makes spans of requests, if somebody collects them.
    pub tracer: Option<Tracer>,
    /// The largest body, in bytes.
    pub max_body_bytes: usize,
    /// Bounds how many prompts are rendered and tokenized at the same time: they compete with the engine for cores.
    preparing: Semaphore,
}

/// A model that can answer.
pub struct Served {
    /// The name that answers have.
    pub name: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// Its identity.
    pub digest: Digest,
    /// Model and build, in every answer.
    pub fingerprint: String,
    /// When it began to be served, in seconds since 1970.
    pub created: i64,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// Text to tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text, and what an answer's text says. Absent: the model has no chat template.
    pub dialect: Option<Dialect>,
    /// What holds answers to grammars.
    pub grammars: Grammars,
    /// What the model's authors suggest.
    pub generation: GenerationDefaults,
    /// How the vectors of texts are made. Absent: nobody says.
    pub pooling: Option<Pooling>,
    /// How many numbers such a vector has.
    pub hidden: usize,
    /// The way into the engine.
    pub engine: Engine,
}

impl App {
    /// An API whose model is still being loaded.
    pub fn new(
        metrics: Arc<Metrics>,
        traffic: Arc<Traffic>,
        access: Arc<Access>,
        max_body_bytes: usize,
        preparers: usize,
    ) -> Self {
        Self {
            served: OnceLock::new(),
            metrics,
            traffic,
            access,
            tracer: None,
            max_body_bytes,
            preparing: Semaphore::new(preparers.max(1)),
        }
    }

    /// The same, with spans of its requests.
    #[must_use]
    pub fn traced(self, tracer: Option<Tracer>) -> Self {
        Self { tracer, ..self }
    }

    /// Begins to answer. Has no effect the second time.
    pub fn begin_serving(&self, served: Served) {
        let _ = self.served.set(Arc::new(served));
    }

    /// The model, or the error that says that it is not there yet.
    pub(crate) fn served(&self) -> Result<Arc<Served>, ApiError> {
        self.served.get().cloned().ok_or_else(|| {
            ApiError::new(Code::ModelLoading, "the model is being loaded; try again later")
                .retry_after(LOADING_RETRY_AFTER)
        })
    }

    /// Does work that takes longer than asynchronous code may.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        served: &Arc<Served>,
        work: impl FnOnce(&Served) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let internal = |what: &str| ApiError::new(Code::InternalError, what);
        let _permit = self
            .preparing
            .acquire()
            .await
            .map_err(|_| internal("the server is ending"))?;
        let served = Arc::clone(served);
        tokio::task::spawn_blocking(move || work(&served))
            .await
            .map_err(|_| internal("the prompt could not be prepared"))?
    }
}

impl Served {
    /// Its names, its own first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }

    /// Checks the model that a request names. Gives back the name.
    pub(crate) fn check_name(&self, name: Value) -> Result<String, ApiError> {
        match name {
            Value::String(name) if self.names().any(|own| own == name) => Ok(name),
            Value::String(name) => {
                let shown: String = name.chars().take(200).collect();
                let message = format!(
                    "the model `{shown}` is not served here; this server has `{}`",
                    self.name
                );
                Err(ApiError::new(Code::ModelNotFound, message).param("model"))
            }
            _ => Err(ApiError::new(Code::InvalidValue, "`model` must be a string").param("model")),
        }
    }

    /// Checks that tokens of a client are in the vocabulary; `param` is the field that has them.
    pub(crate) fn check_tokens(&self, ids: &[u32], param: &'static str) -> Result<(), ApiError> {
        let vocabulary = self.tokenizer.vocabulary();
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => {
                let message = format!("`{param}` has the token {id}, but the vocabulary ends at {vocabulary}");
                Err(ApiError::new(Code::InvalidValue, message).param(param))
            }
        }
    }

    /// The tokens of a text.
    pub(crate) fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, ApiError> {
        self.tokenizer.encode(text, special).map_err(|error| {
            ApiError::new(
                Code::InvalidValue,
                format!("the prompt cannot be turned into tokens: {error}"),
            )
        })
    }

    /// The tokens of a prompt, with what the model wants to see at the beginning.
    pub(crate) fn tokens(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, ApiError> {
        let tokens = self.encode(text, special)?;
        let prefix = self.tokenizer.prefix();
        // Templates often write the first token themselves; it must not be there twice.
        let tokens = if tokens.starts_with(prefix) {
            tokens
        } else {
            [prefix, tokens.as_slice()].concat()
        };
        if tokens.is_empty() {
            return Err(ApiError::new(Code::InvalidValue, "the prompt is empty"));
        }
        Ok(tokens)
    }
}
