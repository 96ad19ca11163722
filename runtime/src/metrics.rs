//! Prometheus metrics: our own names, and those of vLLM's names that have a true value here, because dashboards,
//! autoscaling recipes and inference gateways read those. One value serves both names.

use crate::status::Status;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds in seconds for what takes up to minutes.
const SECONDS: [f64; 14] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];
/// Bounds in seconds for the time between two tokens.
const TOKEN_SECONDS: [f64; 11] = [0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Bounds for counts of tokens.
const TOKENS: [f64; 13] = [
    1.0, 8.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0, 131_072.0,
];

/// The room for keys and values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CacheConfig {
    /// Tokens of a block.
    pub block_size: u64,
    /// Blocks that there are, wherever they are: vLLM's name.
    pub num_gpu_blocks: u64,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Finished {
    /// `stop` or `length`.
    pub finished_reason: &'static str,
}

/// What memory is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemoryKind {
    /// `weights`, `kv_cache`, `resident` or `limit`.
    pub kind: &'static str,
}

/// Which model answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Served {
    /// Its digest.
    pub digest: String,
}

/// How a request to the API was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// The route.
    pub route: Route,
    /// The HTTP status.
    pub code: u16,
}

/// Who used tokens, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Used {
    /// The name of the API key; empty without one.
    pub client: String,
    /// For what.
    pub kind: TokenKind,
}

/// What tokens are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum TokenKind {
    Prompt,
    Completion,
}

/// The routes that are told apart; whatever a client makes up is `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Route {
    ChatCompletions,
    Completions,
    Responses,
    Embeddings,
    Tokenize,
    Detokenize,
    Models,
    Other,
}

/// A gauge of a fraction.
pub type Fraction = Gauge<f64, AtomicU64>;

/// All metrics of a serving process.
#[derive(Debug)]
#[expect(missing_docs, reason = "each has its text in `new`, where it is registered")]
pub struct Metrics {
    registry: Registry,
    pub http_requests: Family<Answered, Counter>,
    pub client_tokens: Family<Used, Counter>,
    pub requests_running: Gauge,
    pub requests_waiting: Gauge,
    pub requests_refused: Counter,
    pub requests_cancelled: Counter,
    pub requests_failed: Counter,
    pub requests_finished: Family<Finished, Counter>,
    pub prompt_tokens: Counter,
    pub generation_tokens: Counter,
    pub kv_cache_usage: Fraction,
    pub cache_config: Family<CacheConfig, Gauge>,
    pub prefix_cache_queries: Counter,
    pub prefix_cache_hits: Counter,
    pub preemptions: Counter,
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub request_latency: Histogram,
    pub queue_time: Histogram,
    pub prefill_time: Histogram,
    pub decode_time: Histogram,
    pub request_prompt_tokens: Histogram,
    pub request_generation_tokens: Histogram,
    pub connections: Gauge,
    pub memory: Family<MemoryKind, Gauge>,
    pub served: Family<Served, Gauge>,
}

impl Metrics {
    /// Metrics of a process that serves a model under this name.
    pub fn new(model_name: &str) -> Self {
        let seconds = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::default(),
            http_requests: Family::default(),
            client_tokens: Family::default(),
            requests_running: Gauge::default(),
            requests_waiting: Gauge::default(),
            requests_refused: Counter::default(),
            requests_cancelled: Counter::default(),
            requests_failed: Counter::default(),
            requests_finished: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            kv_cache_usage: Fraction::default(),
            cache_config: Family::default(),
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            preemptions: Counter::default(),
            time_to_first_token: seconds(),
            inter_token_latency: Histogram::new(TOKEN_SECONDS),
            request_latency: seconds(),
            queue_time: seconds(),
            prefill_time: seconds(),
            decode_time: seconds(),
            request_prompt_tokens: Histogram::new(TOKENS),
            request_generation_tokens: Histogram::new(TOKENS),
            connections: Gauge::default(),
            memory: Family::default(),
            served: Family::default(),
        };
        let mut registry = Registry::default();
        let labelled = registry.sub_registry_with_label(("model_name".into(), model_name.to_owned().into()));
        metrics.register_own(labelled);
        metrics.register_state(labelled);
        metrics.register_mirror(labelled);
        metrics.registry = registry;
        metrics
    }

    fn register_own(&self, registry: &mut Registry) {
        registry.register(
            "escadre_http_requests",
            "Requests to the API by route and status",
            self.http_requests.clone(),
        );
        registry.register(
            "escadre_client_tokens",
            "Tokens by the API key of whoever asked for them",
            self.client_tokens.clone(),
        );
        registry.register(
            "escadre_http_connections",
            "Open connections of the API",
            self.connections.clone(),
        );
        registry.register(
            "escadre_requests_running",
            "Requests that are being answered",
            self.requests_running.clone(),
        );
        registry.register(
            "escadre_requests_waiting",
            "Requests that wait for their turn",
            self.requests_waiting.clone(),
        );
        registry.register(
            "escadre_requests_refused",
            "Requests that were refused because the queue was full",
            self.requests_refused.clone(),
        );
        registry.register(
            "escadre_requests_cancelled",
            "Requests whose client went away before the answer was complete",
            self.requests_cancelled.clone(),
        );
        registry.register(
            "escadre_requests_failed",
            "Requests that the engine failed",
            self.requests_failed.clone(),
        );
        registry.register(
            "escadre_requests_finished",
            "Answers that are complete, by what ended them",
            self.requests_finished.clone(),
        );
        registry.register(
            "escadre_prompt_tokens",
            "Prompt tokens of requests that were started",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "escadre_generation_tokens",
            "Tokens that were generated",
            self.generation_tokens.clone(),
        );
        registry.register(
            "escadre_kv_cache_usage_ratio",
            "The part of the room for keys and values that running requests hold",
            self.kv_cache_usage.clone(),
        );
        registry.register(
            "escadre_prefix_cache_queries",
            "Prompt tokens that were looked for among those that are computed already",
            self.prefix_cache_queries.clone(),
        );
        registry.register(
            "escadre_prefix_cache_hits",
            "Prompt tokens that were found there, and not computed again",
            self.prefix_cache_hits.clone(),
        );
        registry.register(
            "escadre_preemptions",
            "Requests that gave way because the room for keys and values was full, and started again later",
            self.preemptions.clone(),
        );
        self.register_times(registry);
    }

    fn register_times(&self, registry: &mut Registry) {
        registry.register(
            "escadre_time_to_first_token_seconds",
            "From a request's arrival in the engine to its first token",
            self.time_to_first_token.clone(),
        );
        registry.register(
            "escadre_inter_token_latency_seconds",
            "The time between two tokens of an answer",
            self.inter_token_latency.clone(),
        );
        registry.register(
            "escadre_request_latency_seconds",
            "From a request's arrival in the engine to the end of its answer",
            self.request_latency.clone(),
        );
        registry.register(
            "escadre_request_queue_seconds",
            "The time that a request waited",
            self.queue_time.clone(),
        );
        registry.register(
            "escadre_request_prefill_seconds",
            "From a request's turn to its first token",
            self.prefill_time.clone(),
        );
        registry.register(
            "escadre_request_decode_seconds",
            "From a request's first token to the end of its answer",
            self.decode_time.clone(),
        );
        registry.register(
            "escadre_request_prompt_tokens",
            "Prompt tokens of each request that was answered",
            self.request_prompt_tokens.clone(),
        );
        registry.register(
            "escadre_request_generation_tokens",
            "Tokens of each answer that is complete",
            self.request_generation_tokens.clone(),
        );
    }

    fn register_state(&self, registry: &mut Registry) {
        registry.register(
            "escadre_memory_bytes",
            "Memory by what it is for: weights, kv_cache of running requests, resident in all, and the limit",
            self.memory.clone(),
        );
        registry.register(
            "escadre_model_info",
            "The digest of the model that answers; always 1",
            self.served.clone(),
        );
    }

    fn register_mirror(&self, registry: &mut Registry) {
        const TEXT: &str = "Mirror of the metric of this name without the prefix";
        registry.register("vllm:num_requests_running", TEXT, self.requests_running.clone());
        registry.register("vllm:num_requests_waiting", TEXT, self.requests_waiting.clone());
        registry.register("vllm:kv_cache_usage_perc", TEXT, self.kv_cache_usage.clone());
        registry.register("vllm:prefix_cache_queries", TEXT, self.prefix_cache_queries.clone());
        registry.register("vllm:prefix_cache_hits", TEXT, self.prefix_cache_hits.clone());
        registry.register("vllm:num_preemptions", TEXT, self.preemptions.clone());
        registry.register("vllm:prompt_tokens", TEXT, self.prompt_tokens.clone());
        registry.register("vllm:generation_tokens", TEXT, self.generation_tokens.clone());
        registry.register("vllm:request_success", TEXT, self.requests_finished.clone());
        registry.register(
            "vllm:time_to_first_token_seconds",
            TEXT,
            self.time_to_first_token.clone(),
        );
        registry.register(
            "vllm:inter_token_latency_seconds",
            TEXT,
            self.inter_token_latency.clone(),
        );
        registry.register("vllm:e2e_request_latency_seconds", TEXT, self.request_latency.clone());
        registry.register("vllm:request_queue_time_seconds", TEXT, self.queue_time.clone());
        registry.register("vllm:request_prefill_time_seconds", TEXT, self.prefill_time.clone());
        registry.register("vllm:request_decode_time_seconds", TEXT, self.decode_time.clone());
        registry.register("vllm:request_prompt_tokens", TEXT, self.request_prompt_tokens.clone());
        registry.register(
            "vllm:request_generation_tokens",
            TEXT,
            self.request_generation_tokens.clone(),
        );
        registry.register(
            "vllm:cache_config_info",
            "The room for keys and values, in blocks; always 1",
            self.cache_config.clone(),
        );
    }

    /// Says how much room there is for keys and values.
    pub fn has_blocks(&self, tokens: usize, blocks: usize) {
        let room = CacheConfig {
            block_size: tokens as u64,
            num_gpu_blocks: blocks as u64,
        };
        self.cache_config.get_or_create(&room).set(1);
    }

    /// Takes over what the status page knows; for each page of metrics anew.
    pub fn take_over(&self, status: &Status) {
        let memory = &status.memory;
        for (kind, bytes) in [
            ("weights", memory.weights_bytes),
            ("kv_cache", memory.kv_cache_bytes),
            ("resident", memory.resident_bytes),
            ("limit", memory.limit_bytes),
        ] {
            if let Some(bytes) = bytes {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                self.memory.get_or_create(&MemoryKind { kind }).set(bytes);
            }
        }
        if let Some(digest) = &status.served_digest {
            let served = Served {
                digest: digest.to_string(),
            };
            self.served.get_or_create(&served).set(1);
        }
    }

    /// The metrics in the text format of Prometheus and its successors.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Identity;
    use crate::status::{Board, Stage};

    #[test]
    fn own_and_mirrored_names_have_the_same_value() {
        let metrics = Metrics::new("smol");
        metrics.prompt_tokens.inc_by(5);
        metrics.kv_cache_usage.set(0.25);
        metrics
            .requests_finished
            .get_or_create(&Finished {
                finished_reason: "stop",
            })
            .inc();
        let text = metrics.text();
        for line in [
            "escadre_prompt_tokens_total{model_name=\"smol\"} 5",
            "vllm:prompt_tokens_total{model_name=\"smol\"} 5",
            "vllm:kv_cache_usage_perc{model_name=\"smol\"} 0.25",
            "vllm:request_success_total{model_name=\"smol\",finished_reason=\"stop\"} 1",
            "vllm:time_to_first_token_seconds_count{model_name=\"smol\"} 0",
            "vllm:request_prompt_tokens_count{model_name=\"smol\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn memory_and_digest_are_those_of_the_status_page() {
        let metrics = Metrics::new("smol");
        let board = Board::new(Identity::default(), Stage::Ready);
        let digest = format!("sha256:{}", "a".repeat(64));
        board.update(|status| {
            status.memory.weights_bytes = Some(7);
            status.served_digest = Some(digest.parse().unwrap());
        });
        metrics.take_over(&board.snapshot());
        let text = metrics.text();
        for line in [
            "escadre_memory_bytes{model_name=\"smol\",kind=\"weights\"} 7".to_owned(),
            format!("escadre_model_info{{model_name=\"smol\",digest=\"{digest}\"}} 1"),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("kind=\"kv_cache\""), "what is not known is not said");
    }
}
